"""What a cycle costs on this device: passes of Llama-3.1-8B's and Llama-3.2-1B's shapes with random weights, by batch size and K.

    python benchmarks/layer_shapes.py --json docs/results/layer_shapes.json
    python benchmarks/layer_shapes.py --shapes tiny --batch-sizes 1 2 --ks 4 --context 32 --rounds 2 --json /dev/stdout   # a trial on a CPU

Nothing is loaded. A plain step is a pass of the target over one row of each sequence; a verify step, over K + 1; a draft step is a pass of
the draft over the `--read` tokens that the last cycle emitted and K - 1 masks, with the target's features. All sequences have the same context.
The floor of a step is the bytes of its weights over the bandwidth that plain reading reaches. `cycle_over_plain` is (draft +
verify) / plain: an acceptance length above it is a gain, and their ratio the speed-up. Where `--cycles` is not 0, the engine runs as many
whole cycles (random weights accept nothing, so its draft reads one token a cycle), which shows what passes outside the models.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import torch
from torch import nn
from transformers import LlamaConfig

from common import SHAPES, in_turn, random_model, read_bandwidth, seconds
from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import parse_device, parse_dtype
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.models.draft import Draft, DraftSpec
from pard2.models.target import Target
from pard2.runtime.kv_cache import KVCache
from pard2.runtime.token_batch import QuerySpan, TokenBatch

PREFILL_ROWS = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", choices=SHAPES, default="llama")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--ks", nargs="+", type=int, default=[4, 8, 12, 16])
    parser.add_argument("--context", type=int, default=512, help="tokens that each sequence holds")
    parser.add_argument("--read", type=int, default=6, help="tokens that the draft reads in a cycle, at most K + 1")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--cycles", type=int, default=16, help="of the engine; 0 for none")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    device, dtype = parse_device(args.device), parse_dtype(args.dtype)
    longest = args.context + max(2 * max(args.ks) + 2, args.cycles + 1)
    target_shape, draft_shape = SHAPES[args.shapes]
    target = Target(random_model(target_shape, longest + 1, dtype, device))
    draft = random_draft(draft_shape, target, longest + 1, max(args.ks), dtype, device)
    bandwidth = read_bandwidth(device)
    floors = {name: 1000 * weight_bytes(model) / bandwidth for name, model in (("target", target.model), ("draft", draft.lm))}
    results = []
    for size in args.batch_sizes:
        results += measure_batch(args, target, draft, size, longest, floors)
        write_result(args.json, about, results, settings=settings(args, target, draft, bandwidth))


def settings(args: argparse.Namespace, target: Target, draft: Draft, bandwidth: float) -> dict:
    return {
        "target_bytes": weight_bytes(target.model),
        "draft_bytes": weight_bytes(draft.lm),
        "read_bytes_per_second": round(bandwidth),
        "context": args.context,
        "read": args.read,
        "dtype": args.dtype,
        "shapes": SHAPES[args.shapes],
    }


def random_draft(shape: Sequence[int], target: Target, positions: int, most: int, dtype: torch.dtype, device: torch.device) -> Draft:
    layers = (-1, -2, -3, -4)
    width = target.hidden_size * len(layers)
    lm = random_model(shape, positions, dtype, device)
    spec = DraftSpec(mask_token=shape[0] - 1, draft_tokens=most, target_layers=layers, target_dim=width)
    projection = nn.Linear(width, shape[1], bias=False, dtype=dtype, device=device)
    return Draft(lm, spec, projection).eval().requires_grad_(False)


def weight_bytes(model: nn.Module) -> int:
    """Of all matrices that a pass reads: everything but the embedding, of which it reads a row for each token."""
    table = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters() if weight is not table)


@torch.inference_mode()
def measure_batch(args: argparse.Namespace, target: Target, draft: Draft, size: int, longest: int, floors: dict[str, float]) -> list[dict]:
    device = target.device
    target_pass = passes(target.config, target.decoder_dtype, size, longest, args.context, device)
    draft_pass = passes(draft.config, draft.decoder_dtype, size, longest, args.context, device)
    layers = draft.spec.target_layers

    def run_target(batch: TokenBatch, features: bool) -> None:
        target.run(batch, torch.arange(batch.num_tokens, device=device), layers if features else ())

    def run_draft(batch: TokenBatch, k: int) -> None:
        features = torch.randn(batch.num_tokens, draft.spec.target_dim, dtype=draft.decoder_dtype, device=device)
        rows = torch.arange(batch.num_tokens, device=device).view(size, -1)[:, -k:].flatten()
        draft.run(batch, features, rows)

    work: dict[tuple[str, int], Callable[[], float]] = {("plain", 0): lambda: seconds(lambda: run_target(target_pass(1), False), device)}
    for k in args.ks:
        read = min(args.read, k + 1)
        work["verify", k] = lambda k=k: seconds(lambda: run_target(target_pass(k + 1), True), device)
        work["draft", k] = lambda k=k, read=read: seconds(lambda: run_draft(draft_pass(read + k - 1), k), device)
    in_turn(work, 2)  # warm-up
    took = {key: 1000 * median(values) for key, values in in_turn(work, args.rounds).items()}
    engines = run_engines(args, target, draft, size, longest) if args.cycles else {}
    plain = took["plain", 0]
    results = [
        {
            "batch_size": size,
            "draft_tokens": 0,
            "plain_milliseconds": plain,
            "plain_over_floor": plain / floors["target"],
            "engine": engines.get(0),
        }
    ]
    for k in args.ks:
        verify, drafted = took["verify", k], took["draft", k]
        results.append(
            {
                "batch_size": size,
                "draft_tokens": k,
                "draft_milliseconds": drafted,
                "verify_milliseconds": verify,
                "draft_over_floor": drafted / floors["draft"],
                "verify_over_floor": verify / floors["target"],
                "verify_over_plain": verify / plain,
                "cycle_over_plain": (drafted + verify) / plain,
                "engine": engines.get(k),
            }
        )
        print(f"batch {size:>2}, K {k:>2}: plain {plain:.2f} ms, draft {drafted:.2f}, verify {verify:.2f}, cycle {(drafted + verify) / plain:.2f}")
    return results


def passes(config: LlamaConfig, dtype: torch.dtype, size: int, longest: int, context: int, device: torch.device) -> Callable[[int], TokenBatch]:
    """Makes passes over so many new rows of each of `size` sequences, behind a context of zeros."""
    cache = KVCache(config.num_hidden_layers, size * longest)
    like = torch.empty(0, dtype=dtype, device=device)
    for layer in range(config.num_hidden_layers):
        for buffer in cache.layer(layer, config.num_key_value_heads, config.head_dim, config.head_dim, like):
            buffer.zero_()
    regions = [cache.reserve(longest) for _ in range(size)]

    def new_pass(tokens: int) -> TokenBatch:
        spans = [QuerySpan(region, context, tokens) for region in regions]
        return TokenBatch(cache, spans, torch.randint(0, config.vocab_size - 1, (size * tokens,), device=device))

    return new_pass


def run_engines(args: argparse.Namespace, target: Target, draft: Draft, size: int, longest: int) -> dict[int, dict]:
    """Milliseconds of whole cycles, by K; 0 is plain decoding."""
    generator = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, target.vocab_size - 1, (size, args.context), generator=generator).tolist()
    params = SamplingParams(args.cycles + 1, ignore_eos=True)
    found = {}
    for k in [0, *args.ks]:
        engine = Engine(target, draft if k else None, "pard2-td" if k else "ar", k or "auto", max_batch=size, cache_tokens=size * longest)
        for _ in range(2):  # the first time is warm-up
            before = engine.totals
            list(engine.generate(prompts, params))
            totals = engine.totals - before
        parts = {"draft": totals.draft_seconds, "verify": totals.verify_seconds, "other": totals.other_seconds}
        found[k] = {f"{name}_milliseconds": 1000 * part / totals.cycles for name, part in parts.items()}
    return found


if __name__ == "__main__":
    main()
