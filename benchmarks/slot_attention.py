"""Attention over the slots of a row, forward and backward: by blocks against SDPA with the square mask.

    python benchmarks/slot_attention.py --json docs/results/slot_attention.json

A row of answer tokens alone, in documents of equal length, with chains thinned by COD (r = 0.7, r_min = 0.1).
Heads are those of SmolLM2. On a GPU FlexAttention takes part. All take turns, round by round; seconds are
medians, `faster` is the median of the ratios within a round. The mask, the spans or the BlockMask are made
once, as for all layers of a step, and are not timed, but they count as memory; peak memory is what a process
of its own, holding query, key, value and the output's gradient, takes beside them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention.flex_attention import flex_attention

from common import in_turn, seconds
from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import parse_device, parse_dtype
from pard2.environment import meta
from pard2.objective.block_mask import block_mask
from pard2.objective.cod import keep_masks
from pard2.objective.layout import SlotLayout, attention_mask, build_layout, key_spans
from pard2.objective.slot_attention import slot_attention
from training_loads import peak_bytes, resting_bytes

Pass = Callable[[Tensor, Tensor, Tensor], Tensor]


def row(length: int, documents: int, draft_tokens: int, device: torch.device) -> SlotLayout:
    generator = torch.Generator().manual_seed(0)
    lengths = [length // documents] * documents
    answer = torch.ones(lengths[0], dtype=torch.bool)
    return build_layout(lengths, [keep_masks(answer, draft_tokens, 0.7, 0.1, generator) for _ in lengths]).to(device)


def attention(kind: str, layout: SlotLayout, scale: float) -> Pass:
    """Of query [H, S, D], key and value [KV, S, D]."""
    if kind == "dense":
        mask = attention_mask(layout)
        return lambda q, k, v: F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=mask, scale=scale, enable_gqa=True)[0]
    spans = key_spans(layout)
    if kind == "blocks":
        return lambda q, k, v: slot_attention(q, k, v, spans, scale)
    blocks, compiled = block_mask(spans), torch.compile(flex_attention)
    return lambda q, k, v: compiled(q[None], k[None], v[None], block_mask=blocks, scale=scale, enable_gqa=True)[0]


def inputs(slots: int, arguments: argparse.Namespace, device: torch.device) -> list[Tensor]:
    """Query, key, value and a gradient of the output, position by position in
    memory, as a model makes them."""
    heads, groups, width = arguments.heads
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(slots, h, width, generator=generator).transpose(0, 1) for h in (heads, groups, groups, heads)]
    tensors = [tensor.to(device, parse_dtype(arguments.dtype)) for tensor in tensors]
    return [*(tensor.requires_grad_() for tensor in tensors[:3]), tensors[3]]


def forward_backward(attend: Pass, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of query, key and value."""
    output = attend(*tensors[:3])
    return [output.detach(), *torch.autograd.grad(output, tensors[:3], tensors[3])]


def measure(length: int, documents: int, arguments: argparse.Namespace, device: torch.device) -> dict:
    layout = row(length, documents, arguments.draft_tokens, device)
    tensors = inputs(len(layout), arguments, device)
    kinds = ["dense", "blocks"] + (["flex"] if device.type == "cuda" else [])
    passes = {kind: attention(kind, layout, arguments.heads[2] ** -0.5) for kind in kinds}
    found = {kind: forward_backward(attend, tensors) for kind, attend in passes.items()}  # also warms up
    differences = {
        kind: max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found[kind], found["dense"], strict=True)) for kind in kinds[1:]
    }
    del found
    work = {kind: lambda attend=attend: seconds(lambda: forward_backward(attend, tensors), device) for kind, attend in passes.items()}
    taken = in_turn(work, arguments.rounds)
    memory = {kind: peak(kind, length, documents) for kind in kinds}
    return {
        "length": length,
        "documents": documents,
        "slots": len(layout),
        "seconds": {kind: median(times) for kind, times in taken.items()},
        "faster": {kind: median(d / t for d, t in zip(taken["dense"], taken[kind], strict=True)) for kind in kinds[1:]},
        "peak_bytes": memory,
        "peak_share": {kind: memory[kind] / memory["dense"] for kind in kinds[1:]},
        "largest_relative_difference": differences,
    }


def peak(kind: str, length: int, documents: int) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", kind, str(length), str(documents)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048])
    parser.add_argument("--documents", nargs="+", type=int, default=[1, 4], help="in a row")
    parser.add_argument("--draft-tokens", type=int, default=16)
    parser.add_argument("--heads", nargs=3, type=int, default=[9, 3, 64], help="query heads, key-value heads, head_dim")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default=None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--peak-of", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = parse_device(arguments.device)
    if arguments.peak_of:
        layout = row(int(arguments.peak_of[1]), int(arguments.peak_of[2]), arguments.draft_tokens, device)
        tensors = inputs(len(layout), arguments, device)
        small = row(16, 1, 4, device)  # loads what the first pass loads
        forward_backward(attention(arguments.peak_of[0], small, 1.0), inputs(len(small), arguments, device))
        resting = resting_bytes()
        forward_backward(attention(arguments.peak_of[0], layout, 1.0), tensors)
        print(json.dumps(peak_bytes() - resting))
        return
    about = meta()
    results = []
    for length in arguments.lengths:
        for documents in arguments.documents:
            results.append(measure(length, documents, arguments, device))
            print(json.dumps(results[-1]), flush=True)
            settings = {
                "heads": arguments.heads,
                "draft_tokens": arguments.draft_tokens,
                "dtype": arguments.dtype,
                "threads": torch.get_num_threads(),
            }
            write_result(arguments.json, about, results, settings=settings)


if __name__ == "__main__":
    main()
