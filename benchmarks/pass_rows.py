"""Milliseconds of a target's pass on a CPU by its rows, with the weights in each form, at several shapes.

    python benchmarks/pass_rows.py --json docs/results/pass_rows.json

Random weights, 64 tokens of context, logits of every row: 1 row is a plain step, K + 1 rows verify K tokens.
The forms take turns, round by round; medians.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pard2.bench.result_file import write_result
from pard2.environment import meta
from pard2.kernels.weight_format import WeightFormat, weight_formats
from pard2.runtime.decoder import Decoder
from pard2.runtime.hidden_states import HiddenStateRecorder
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.support import new_decoder
from pard2.runtime.token_batch import QuerySpan, TokenBatch

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "smollm2-135m": (
        "llama",
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
    ),
    "llama-3.2-1b": (
        "llama",
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}
        | {"vocab_size": 128256, "head_dim": 64},
    ),
    "qwen3-0.6b": (
        "qwen3",
        {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8}
        | {"vocab_size": 151936, "head_dim": 128},
    ),
}
CONTEXT = 64


def random_model(shape: str) -> PreTrainedModel:
    """In bfloat16, of numbers that repeat: to draw a billion of them would take a minute."""
    kind, sizes = SHAPES[shape]
    config = AutoConfig.for_model(kind, **sizes, max_position_embeddings=512, tie_word_embeddings=True)
    drawn = (torch.randn(2**20, generator=torch.Generator().manual_seed(0)) * 0.02).bfloat16()
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    state = {name: drawn.repeat(-(-tensor.numel() // len(drawn)))[: tensor.numel()].view(tensor.shape) for name, tensor in empty.state_dict().items()}
    state |= {name: torch.ones_like(tensor) for name, tensor in state.items() if "norm" in name}
    return type(empty).from_pretrained(None, config=config, state_dict=state, dtype=torch.bfloat16).eval().requires_grad_(False)


class Passes:
    """A decoder, and a cache with a context in it."""

    def __init__(self, shape: str, form: WeightFormat, most: int) -> None:
        model = random_model(shape)
        self.decoder: Decoder = new_decoder(model, shape, HiddenStateRecorder(model), form)
        self.cache = KVCache(model.config.num_hidden_layers, CONTEXT + most)
        region = self.cache.reserve(CONTEXT + most)
        assert region is not None
        self.region = region
        self.run(0, CONTEXT)

    @torch.inference_mode()
    def run(self, past: int, rows: int) -> float:
        """Milliseconds."""
        batch = TokenBatch(self.cache, [QuerySpan(self.region, past, rows)], torch.arange(rows) + 7)
        start = time.perf_counter()
        self.decoder.run(batch, None, torch.arange(rows))
        return (time.perf_counter() - start) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 5, 6, 7, 9, 16])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    about, results = meta(), []
    for shape in args.shapes:
        made = {form: Passes(shape, form, max(args.rows)) for form in weight_formats(torch.device("cpu"), torch.bfloat16) if form != "plain"}
        for rows in args.rows:
            took: dict[str, list[float]] = {form: [] for form in made}
            for _ in range(args.rounds):
                for form, passes in made.items():
                    passes.run(CONTEXT, rows)  # what another form left in the caches is not its own
                    took[form].append(passes.run(CONTEXT, rows))
            milliseconds = {form: round(median(each), 2) for form, each in took.items()}
            results.append({"shape": shape, "rows": rows, "milliseconds": milliseconds})
            print(f"{shape:<13} {rows:>3} rows  " + "  ".join(f"{form} {each:8.2f}" for form, each in milliseconds.items()), flush=True)
        del made
    if args.json:
        write_result(args.json, about, results)


if __name__ == "__main__":
    main()
