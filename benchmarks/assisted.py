r"""Our methods against transformers' plain, assisted and prompt-lookup generation: same
model, same draft, same prompts.

    python benchmarks/assisted.py --suites eval_gsm8k.jsonl eval_humaneval.jsonl --prompts 10 \
        --json docs/results/assisted.json

transformers' assistant is the draft's plain LM, run token by token, as in our `vsd`. transformers has copies
of both models of its own, in the dtype named and as it loads them, with its default settings
(`--assistant-tokens` for others). Greedy, one sequence at a time, to the end of the answer. All take turns,
prompt by prompt; tokens and seconds are of whole calls, prompt included.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.progress import track

from common import in_turn, seconds, suite_prompts
from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.loading import load_target, parse_dtype
from pard2.checkpoints.read import load_draft
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.intervals import bootstrap

BASES = ("transformers", "ar")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--methods", nargs="+", default=["vsd", "pard2-ti", "pard2-td"])
    parser.add_argument("--prompts", type=int, default=2, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--assistant-tokens", type=int, nargs="*", default=[], help="also: always so many, whatever the assistant's confidence")
    parser.add_argument("--lookup-tokens", type=int, default=10, help="of prompt lookup; 10 as in transformers' documentation")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default=None)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    draft_name = args.draft or embedded_draft()
    target = load_target(args.target, args.dtype, args.device)
    suites = suite_prompts(args.suites, target, args.prompts)
    longest = max(len(prompt) for prompts in suites.values() for prompt in prompts) + args.new_tokens
    draft = load_draft(draft_name, target, parse_dtype(args.dtype), "pard2-td" in args.methods or None)
    callers = theirs(args, draft_name, target.eos_token_ids)
    for method in ("ar", *args.methods):
        engine = Engine(target, None if method == "ar" else draft, method, max_batch=1, cache_tokens=longest)
        callers[method] = ours(engine, args.new_tokens)
    first = next(iter(suites.values()))[0]
    for call in callers.values():
        call(first)

    results = []
    for suite, prompts in suites.items():
        spent: dict[str, list[tuple[int, float]]] = {name: [] for name in callers}
        equal = dict.fromkeys(callers, 0)
        for prompt in track(prompts, description=suite):
            texts: dict[str, list[int]] = {}

            def timed(name: str, prompt: list[int] = prompt, texts: dict[str, list[int]] = texts) -> float:
                return seconds(lambda: texts.update({name: callers[name](prompt)}), target.device)

            took = in_turn({name: lambda name=name: timed(name) for name in callers}, args.rounds)
            for name in callers:
                spent[name].append((len(texts[name]) * args.rounds, sum(took[name])))
                equal[name] += texts[name] == texts["ar"]
        results += [one_result(suite, name, spent, equal[name]) for name in callers]
        write_result(args.json, about, results)
    for r in results:
        print(f"{r['suite']:<12} {r['method']:<28} {r['tokens_per_second']:8.1f} tokens/s  " + "  ".join(f"{r[f'over_{b}']:.2f}x {b}" for b in BASES))


def ours(engine: Engine, new_tokens: int) -> Callable[[list[int]], list[int]]:
    params = SamplingParams(max_tokens=new_tokens)
    return lambda prompt: engine.generate([prompt], params)[0].token_ids


def theirs(args: argparse.Namespace, draft_name: str, stops: frozenset[int]) -> dict[str, Callable[[list[int]], list[int]]]:
    """transformers' ways to generate, on models loaded for them alone."""
    target = load_target(args.target, args.dtype, args.device, weight_format="plain")
    assistant = load_draft(draft_name, target, parse_dtype(args.dtype), False, weight_format="plain").lm

    def caller(fixed: int | None = None, **options: object) -> Callable[[list[int]], list[int]]:
        def call(prompt: list[int]) -> list[int]:
            if "assistant_model" in options:
                set_assistant(assistant, fixed)
            ids = torch.tensor([prompt], device=target.device)
            output = target.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.new_tokens,
                do_sample=False,
                repetition_penalty=1.0,
                eos_token_id=sorted(stops) or None,
                pad_token_id=0,
                **options,
            )
            return output[0, len(prompt) :].tolist()

        return call

    return {
        "transformers": caller(),
        "transformers assisted": caller(assistant_model=assistant),
        **{f"transformers assisted, {k}": caller(k, assistant_model=assistant) for k in args.assistant_tokens},
        "transformers prompt lookup": caller(prompt_lookup_num_tokens=args.lookup_tokens),
    }


def set_assistant(assistant: torch.nn.Module, fixed: int | None) -> None:
    """transformers adapts these on the model itself, so they are set before each call."""
    config = type(assistant.generation_config)()
    if fixed is not None:
        config.num_assistant_tokens, config.num_assistant_tokens_schedule, config.assistant_confidence_threshold = fixed, "constant", 0.0
    assistant.generation_config = config


def one_result(suite: str, name: str, spent: dict[str, list[tuple[int, float]]], equal: int) -> dict:
    """spent: (tokens, seconds) of each prompt, by method."""
    tokens, took = (sum(column) for column in zip(*spent[name], strict=True))
    result = {"suite": suite, "method": name, "prompts": len(spent[name]), "tokens": tokens, "tokens_per_second": tokens / took}
    for base in BASES:
        pairs = [(*ours, *other) for ours, other in zip(spent[name], spent[base], strict=True)]
        result[f"over_{base}"] = tokens / took / (sum(p[2] for p in pairs) / sum(p[3] for p in pairs))
        result[f"over_{base}_interval"] = bootstrap(pairs, lambda s: s[..., 0] / s[..., 1] / (s[..., 2] / s[..., 3]))
    return result | {"equal_outputs": equal}


if __name__ == "__main__":
    main()
