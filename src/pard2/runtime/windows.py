"""Sliding windows, as a model's config says them."""

from pard2.hf import PreTrainedConfig


def attention_windows(config: PreTrainedConfig) -> list[int | None]:
    """Each layer's sliding window in positions, as the config says it; None for full attention."""
    window = config.sliding_window if hasattr(config, "sliding_window") else None
    if hasattr(config, "layer_types") and config.layer_types is not None:
        return [window if kind == "sliding_attention" else None for kind in config.layer_types]
    return [window] * config.num_hidden_layers  # Mistral and its kin: all layers or none
