r"""Drafts exported to vLLM: do they say there what vLLM says by itself, is as much accepted as in pard2, and
what do they gain in each engine over its own plain decoding?

    make test-vllm
    python benchmarks/engines.py --python .venv-vllm/bin/python --drafts pard2=smollm2 --json engines.json

The same prompts, machine and arithmetic for both engines, one after the other; of vLLM its processes' own
time. The exit code is 1 where a draft does not pass `pard2 export --check`.
"""

import argparse
import sys
import tempfile
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from pard2.bench.named_suites import own_records
from pard2.bench.result_file import write_result
from pard2.checkpoints.meta import meta_target
from pard2.data.conversations import up_to_user
from pard2.data.records import read_records
from pard2.engine.prompts import encode_prompt
from pard2.environment import meta
from pard2.export.engine_form import engine_form
from pard2.export.instructions import speculative_config
from pard2.export.vllm_check import check_in_vllm, vllm_version
from pard2.models.draft_kind import DraftKind
from pard2.models.eagle3 import Eagle3Draft


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="smollm2")
    parser.add_argument("--drafts", nargs="+", required=True, metavar="NAME=DRAFT")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that has vLLM")
    parser.add_argument("--suite", type=Path, help="JSONL of prompts; by default our own")
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    about, version = meta(), vllm_version(args.python)
    about["argv"] = [about["argv"][0], *(words.partition("=")[0] for words in args.drafts)]  # where files lay matters to nobody
    shapes = meta_target(args.target)
    records = (own_records() if args.suite is None else read_records(args.suite))[: args.prompts]
    prompts = [encode_prompt(shapes, up_to_user(record)) for record in records]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        for name, draft in (words.split("=", 1) for words in args.drafts):
            form, directory = engine_form(draft, "vllm", args.target), Path(place) / name
            form.write(directory)
            ways = (False, True) if form.draft.kind is DraftKind.PROJECTED else (False,)
            for features, dtype, concurrency in product(ways, args.dtypes, args.concurrency):
                config = speculative_config(form.draft, str(directory), features)
                found = check_in_vllm(config, args.target, prompts, args.new_tokens, args.python, dtype, concurrency)
                named = {"draft": name, "features": features or isinstance(form.draft, Eagle3Draft), "dtype": dtype, "concurrency": concurrency}
                results.append(named | asdict(found) | {"passed": found.passed})
                print(results[-1], flush=True)
                write_result(args.json, about, results, vllm=version, new_tokens=args.new_tokens)
    if not all(one["passed"] for one in results):
        sys.exit("not all as it should be")


if __name__ == "__main__":
    main()
