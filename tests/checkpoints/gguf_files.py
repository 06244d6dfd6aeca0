"""Small GGUF files in any quantisation, laid out as llama.cpp's converter lays out a model's."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, GGUFWriter, get_tensor_name_map, quants
from transformers import PreTrainedModel


def write_gguf(model: PreTrainedModel, path: Path, quantisation: str, leave_out: str | None = None) -> None:
    """A Llama or Qwen 3 model with a tokenizer of single bytes.

    leave_out: the GGUF name of a tensor.
    """
    config, architecture = model.config, model.config.model_type
    writer = GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(model.model.layers[0].self_attn.head_dim)
    writer.add_value_length(model.model.layers[0].self_attn.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size)
    kind = next(kind for kind in MODEL_ARCH if MODEL_ARCH_NAMES[kind] == architecture)
    known, state = get_tensor_name_map(kind, config.num_hidden_layers), model.state_dict()
    for name, tensor in state.items():
        stem, _, last = name.rpartition(".")
        stored = f"{known.get_name(stem)}.{last}"
        if stored == leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        _add(writer, stored, _permuted(name, tensor.numpy(), config), quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _permuted(name: str, weight: np.ndarray, config: Any) -> np.ndarray:
    """llama.cpp rotates neighbouring numbers of queries and keys; its converter moves them together."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or config.model_type != "llama":
        return weight
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _add(writer: GGUFWriter, name: str, weight: np.ndarray, quantisation: str) -> None:
    kind = GGMLQuantizationType[quantisation]
    if weight.ndim == 1:
        writer.add_tensor(name, np.ascontiguousarray(weight, np.float32))
    else:
        writer.add_tensor(name, quants.quantize(np.ascontiguousarray(weight, np.float32), kind), raw_dtype=kind)


def _add_tokenizer(writer: GGUFWriter, size: int) -> None:
    tokens = [*"abcdefghijklmnopqrstuvwxyz", "ab", *(f"<{number}>" for number in range(size - 27))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * size)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)
