r"""Is speculative decoding equal to transformers' own greedy generate? float32, every prompt, every method.

python benchmarks/equality.py --suites eval_gsm8k.jsonl eval_humaneval.jsonl eval_math500.jsonl \
    --prompts 60 --json docs/results/equality.json
"""

import argparse
from pathlib import Path

from rich.progress import track

from pard2.bench.result_file import write_result
from pard2.checkpoints.embedded import embedded_draft
from pard2.data.chat import prompt_ids
from pard2.data.records import read_records, up_to_user
from pard2.engine.engine import Engine, SamplingParams
from pard2.environment import meta
from pard2.verify.greedy import greedy_reference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--methods", nargs="+", default=["ar", "pard2-ti", "pard2-td"])
    parser.add_argument("--prompts", type=int, default=60, help="taken from the suites in turn")
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about = meta()

    first = Engine.from_pretrained(args.target, args.draft or embedded_draft(), "pard2-td", "float32")
    engines = {method: Engine(first.target, first.draft, method) for method in args.methods}
    suites = [read_records(suite) for suite in args.suites]
    records = [record for turn in zip(*suites, strict=False) for record in turn][: args.prompts]
    equal = dict.fromkeys(args.methods, 0)
    differing = []
    params = SamplingParams(max_tokens=args.new_tokens)
    for record in track(records, description="prompts"):
        ids = prompt_ids(first.target.tokenizer, up_to_user(record))
        reference = greedy_reference(first.target, ids, args.new_tokens)
        for method, engine in engines.items():
            (completion,) = engine.generate([ids], params)
            if completion.token_ids == reference:
                equal[method] += 1
            else:
                differing.append({"id": record["id"], "method": method})
    results = [{"method": m, "dtype": "float32", "prompts": len(records), "new_tokens": args.new_tokens, "equal": n} for m, n in equal.items()]
    write_result(args.json, about, results, differing=differing)
    for result in results:
        print(f"{result['method']:<9} {result['equal']} of {result['prompts']} equal")


if __name__ == "__main__":
    main()
