"""Peak memory of a training step against K and against the length: what grows is the slots that COD keeps,
and nothing with K beyond them.

python benchmarks/training_memory.py --json docs/results/training_memory.json
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pard2.bench.result_file import write_result
from pard2.checkpoints.loading import load_target
from pard2.config import ObjectiveConfig
from pard2.environment import meta
from training_loads import training_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="smollm2")
    parser.add_argument("--draft-tokens", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    target = load_target("smollm2", "float32", "cpu", weight_format="plain") if arguments.shape == "smollm2" else None
    about, results = meta(), []
    sizes = [(k, 512) for k in arguments.draft_tokens] + [(16, length) for length in arguments.lengths if length != 512]
    for k, length in sizes:
        step = Path(__file__).with_name("training_step.py")
        options = ["--shape", arguments.shape, "--draft-tokens", str(k), "--length", str(length), "--share-vocabulary", "--peak-of", "ours"]
        run = subprocess.run([sys.executable, str(step), *options], capture_output=True, text=True, check=True)
        memory = json.loads(run.stdout.splitlines()[-1])
        slots = len(training_row(target, 128, length, ObjectiveConfig(draft_tokens=k, feature_drop=0.0)).layout)
        results.append({"draft_tokens": k, "length": length, "slots": slots} | memory)
        print(json.dumps(results[-1]), flush=True)
    if arguments.json:
        write_result(arguments.json, about, results)


if __name__ == "__main__":
    main()
