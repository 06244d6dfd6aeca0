r"""llama.cpp without a draft against ours, on the same GGUF file and the same prompts, in turn.

    python -m venv .llama && .llama/bin/pip install llama-cpp-python==0.3.36     # compiles for many minutes
    python benchmarks/llama_cpp.py --python .llama/bin/python --suites eval_gsm8k.jsonl eval_humaneval.jsonl \
        --json docs/results/llama_cpp.json --picture docs/results/llama_cpp.svg

llama.cpp gets the embedded target's Q4_1 file and, made of it, Q4_0 and Q8_0; ours decodes plainly and by
PARD-2 TD, with bfloat16 and with int8 weights, K chosen by the engine. All are greedy, over the same prompt
tokens, one at a time, on as many threads as torch takes; a rate is of what follows the first token. For each
prompt everybody comes once, in an order that turns round. The children are processes that stay loaded and
sleep between prompts; OpenBLAS gets one thread there, since its idle threads spin.

On a Xeon with AMX that build died of an illegal instruction as it decoded. There:
CMAKE_ARGS="-DGGML_NATIVE=OFF" with -DGGML_X=ON for each X of AVX, AVX2, FMA, F16C, BMI2, AVX512,
AVX512_VBMI, AVX512_VNNI, AVX512_BF16.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch

from pard2.bench.result_file import write_result
from pard2.bench.suites import read_suites
from pard2.checkpoints.embedded import embedded_draft
from pard2.checkpoints.gguf import embedded_gguf
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.read import load_draft
from pard2.engine.engine import Engine
from pard2.engine.prompts import encode_prompt
from pard2.engine.sampling import SamplingParams
from pard2.environment import meta
from pard2.intervals import bootstrap

FORMS = ("Q4_0", "Q4_1", "Q8_0")
BASE = "llama.cpp Q4_0"

# The other interpreter's part: a line {"tokens", "most", "stops"} in, a line {"tokens", "seconds"} out.
CHILD = """
import json, sys, time
import llama_cpp
if sys.argv[1] == "quantise":
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize = int(sys.argv[4]), True
    sys.exit(llama_cpp.llama_model_quantize(sys.argv[2].encode(), sys.argv[3].encode(), params))
model = llama_cpp.Llama(sys.argv[2], n_ctx=2048, n_threads=int(sys.argv[3]), n_threads_batch=int(sys.argv[3]), verbose=False)
for line in sys.stdin:
    asked = json.loads(line)
    model.reset()
    found, start = [], 0.0
    for token in model.generate(asked["tokens"], temp=0.0, repeat_penalty=1.0, top_k=1):
        if not found:
            start = time.perf_counter()
        found.append(int(token))
        if len(found) == asked["most"] or token in asked["stops"]:
            break
    print(json.dumps({"tokens": found, "seconds": time.perf_counter() - start}), flush=True)
"""
_TYPES = {"Q4_0": 2, "Q8_0": 7}  # llama.cpp's numbers


class LlamaCpp:
    """A process of the other interpreter that holds one model."""

    def __init__(self, python: Path, model: Path) -> None:
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        command = [str(python), "-I", "-c", CHILD, "run", str(model), str(torch.get_num_threads())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def answer(self, tokens: list[int], most: int, stops: list[int]) -> tuple[list[int], float]:
        """New tokens, and how many a second after the first."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps({"tokens": tokens, "most": most, "stops": stops}), file=self._process.stdin, flush=True)
        found = json.loads(self._process.stdout.readline())
        return found["tokens"], (len(found["tokens"]) - 1) / found["seconds"]

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


class Ours:
    def __init__(self, form: str | None, method: str, draft: str) -> None:
        target = load_target("smollm2", "bfloat16", "cpu", form)
        self.target = target
        self._engine = Engine(target, load_draft(draft, target, torch.bfloat16, True) if method != "ar" else None, method, max_batch=1)

    def answer(self, tokens: list[int], most: int, stops: list[int]) -> tuple[list[int], float]:
        (completion,) = self._engine.generate([tokens], SamplingParams(max_tokens=most))
        return completion.token_ids, completion.stats.tokens_per_second

    def close(self) -> None:
        pass


def quantised(python: Path, directory: Path) -> dict[str, Path]:
    """The embedded file in each form."""
    found = {"Q4_1": embedded_gguf()}
    for name, number in _TYPES.items():
        found[name] = directory / f"{name}.gguf"
        subprocess.run([str(python), "-I", "-c", CHILD, "quantise", *map(str, (found["Q4_1"], found[name], number))], check=True, capture_output=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True, help="an interpreter that has llama-cpp-python")
    parser.add_argument("--suites", nargs="+", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=20, help="of each suite")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--draft", default=None, help="by default the embedded one")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--picture", type=Path, help="an SVG; needs matplotlib")
    args = parser.parse_args()
    if args.picture and find_spec("matplotlib") is None:  # said before the long run
        parser.error("--picture needs matplotlib: pip install matplotlib")
    about, suites = meta(), read_suites(args.suites, args.prompts)
    draft, rows = args.draft or embedded_draft(), []
    with tempfile.TemporaryDirectory() as directory:
        files = quantised(args.python, Path(directory))
        about["megabytes"] = {name: round(file.stat().st_size / 1e6, 1) for name, file in files.items()}
        about["llama_cpp_python"] = subprocess.run(
            [str(args.python), "-I", "-c", "import llama_cpp; print(llama_cpp.__version__)"], check=True, capture_output=True, text=True
        ).stdout.strip()
        runners: dict[str, Any] = {f"llama.cpp {name}": LlamaCpp(args.python, files[name]) for name in FORMS}
        for form, method in ((None, "ar"), (None, "pard2-td"), ("int8", "ar"), ("int8", "pard2-td")):
            runners[f"pard2 {'plain' if method == 'ar' else 'TD'} {form or 'bf16'}"] = Ours(form, method, draft)
        target = next(one.target for one in runners.values() if isinstance(one, Ours))
        stops = sorted(target.eos_token_ids)
        for suite in suites:
            rates: dict[str, list[float]] = {name: [] for name in runners}
            for number, prompt in enumerate(suite.prompts):
                tokens = encode_prompt(target, prompt)
                turn = number % len(runners)
                for name in [*runners][turn:] + [*runners][:turn]:
                    answer, rate = runners[name].answer(tokens, args.new_tokens, stops)
                    rates[name].append(rate if len(answer) > 8 else float("nan"))
            for name, each in rates.items():
                pairs = [(a, b) for a, b in zip(each, rates[BASE], strict=True) if a == a and b == b]
                ratio = [(a / b, 1.0) for a, b in pairs]
                row = {"suite": suite.name, "runner": name, "tokens_per_second": round(median(a for a, _ in pairs), 2), "prompts": len(pairs)}
                row |= {"ratio": round(median(a for a, _ in ratio), 3), "interval_of_mean_ratio": bootstrap(ratio, lambda s: s[..., 0] / s[..., 1])}
                rows.append(row)
                print(f"{suite.name:<14} {name:<18} {row['tokens_per_second']:7.1f} tokens/s  {row['ratio']:.2f} of {BASE}", flush=True)
            write_result(args.json, about, rows)
        for runner in runners.values():
            runner.close()
    if args.picture:
        draw(rows, args.picture)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    suites, names = list(dict.fromkeys(row["suite"] for row in rows)), list(dict.fromkeys(row["runner"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 3.4))
    for number, name in enumerate(names):
        heights = [next(row["tokens_per_second"] for row in rows if (row["suite"], row["runner"]) == (suite, name)) for suite in suites]
        places = [at + (number - len(names) / 2 + 0.5) / (len(names) + 1) for at in range(len(suites))]
        axes.bar(places, heights, 1 / (len(names) + 1), label=name, color=plt.get_cmap("Greys" if "llama" in name else "Greens")(0.35 + 0.1 * number))
    axes.set_xticks(range(len(suites)), suites)
    axes.set_ylabel("tokens/s")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, ncols=2, frameon=False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


if __name__ == "__main__":
    sys.exit(main())
