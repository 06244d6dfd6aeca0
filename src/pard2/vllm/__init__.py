"""PARD-2 drafts with the target's features (TD) in stock vLLM: a plug-in that vLLM finds by itself where both
are installed.

vLLM's way for EAGLE-3 hands a draft model the target's hidden states; `draft` is a model for that way.
"""


def register() -> None:
    """Called by vLLM in each of its processes (entry point `vllm.general_plugins`)."""
    from vllm import ModelRegistry

    # What vLLM makes of the architecture of a draft that it is told to run as EAGLE-3.
    for name in ("Llama", "Qwen3"):
        ModelRegistry.register_model(f"Eagle3{name}ForCausalLM", f"pard2.vllm.draft:{name}Draft")
