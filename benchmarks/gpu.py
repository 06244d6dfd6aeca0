r"""What only a GPU can show, in parts with a time limit each; `gpu.sh` beside it sets up
a bare machine and calls it.

    python benchmarks/gpu.py --json docs/results/gpu.json [--parts cycles profile] \
        [--gguf SmolLM2-135M-Instruct.Q4_1.gguf]
    python benchmarks/gpu.py \
        --profile                    # only where the time of a cycle of eight sequences goes

Each part is a process of its own, in the order of PARTS, the most wanted first. Its results go into the file
as they come; a part that fails or whose time is up is noted there, and the others go on. The limits add up to
less than eight minutes. Without a GPU, or with --small, everything runs in small on the CPU, without captured
graphs: a trial of this script, whose figures mean nothing.

cycles: plain and target-dependent decoding in the shapes of Llama-3.1-8B and 3.2-1B, random weights made on
    the device, bfloat16, by batch size, eagerly and with captured graphs. Random weights accept nothing, so
    every cycle emits a token a sequence. The floor is the bytes of weights and cache that a cycle must read
    over the bandwidth that plain reading reaches. `slowest` of the timed cycles tells whether something was
    captured or compiled among them.
equality: the golden pair of the tests in float32, every method, alone and in batches, eagerly
    and with graphs, against transformers' own greedy text; sampled texts against those of
    plain decoding, alone and eager.
profile: the functions that take most of the time of a cycle, on the device and on the host.
training: steps of `pard2 train` in SmolLM2's shape, rows of 16,384 tokens, bfloat16.
regenerate: tokens a second of `pard2 data regenerate` in SmolLM2's shape.
trees: as equality, with proposals as trees.
host: `host_time.py` on this device.
embedded: as equality, the embedded pair; where its GGUF file is at hand.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Timer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pard2 import Engine
    from pard2.models.draft import Draft
    from pard2.models.target import Target

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden" / "pair_llama_s21"
NOTE_LINES = 12  # of what a failed part printed last
SLOW = 10  # times the limits on a CPU, which may be a busy one
WARM_UP, TOP = 8, 15  # cycles before the timed ones; functions of a profile
METHODS = ("ar", "vsd", "pard2-ti", "pard2-td")

Row = dict[str, Any]


class Sizes:
    """How large the work is: on a GPU, and in small on the CPU."""

    def __init__(self, small: bool) -> None:
        self.device = "cpu" if small else "cuda"
        self.arms: dict[str, bool] = {"eager": False} if small else {"eager": False, "graphs": True}  # and `cuda_graphs`
        self.dtype = "float32" if small else "bfloat16"
        self.batches, self.draft_tokens = ((1, 2), (4,)) if small else ((1, 8, 32), (8, 15))
        self.profiled_batch = 2 if small else 8
        self.context, self.cycles = (12, 2) if small else (520, 20)
        self.prompts, self.new_tokens = (2, 6) if small else (8, 24)
        self.model = (128, 16, 32, 4, 2, 1, 8) if small else (49152, 576, 1536, 30, 9, 3, 64)
        self.steps, self.row, self.document = (3, 64, 32) if small else (14, 16384, 320)
        self.answering_batches, self.answer_tokens = ((2,), 4) if small else ((256, 1024), 64)
        self.host_batches, self.host_cycles = ((1, 2), 2) if small else ((1, 8, 32, 128), 20)


# --- cycles and their profile ------------------------------------------------------------------------


def random_pair(sizes: Sizes) -> "tuple[Target, Draft]":
    """Of the 8B shape, with room for every cycle of `decode`."""
    import torch

    from pard2.checkpoints.loading import parse_dtype
    from pard2.models.target import Target
    from random_models import SHAPES, random_draft, random_model

    torch.manual_seed(0)
    shapes = SHAPES["llama"] if sizes.device == "cuda" else (sizes.model, sizes.model)
    positions, dtype = 4096, parse_dtype(sizes.dtype)
    target = Target(random_model(shapes[0], positions, dtype, torch.device(sizes.device)), name="random")
    return target, random_draft(shapes[1], target.hidden_size, max(sizes.draft_tokens), positions, dtype, target.device)


@contextmanager
def new_engine(target: "Target", draft: "Draft | None", method: str, graphs: bool, **options: Any) -> "Iterator[Engine]":
    """An engine that leaves the models' decoders as it found them: one that replays captures
    keeps them, and their size."""
    from pard2 import Engine

    models = [model for model in (target, draft) if model is not None]
    before = [model.decoder for model in models]
    try:
        yield Engine(target, None if method == "ar" else draft, method, cuda_graphs=graphs, **options)
    finally:
        for model, decoder in zip(models, before, strict=True):
            model.decoder = decoder


@contextmanager
def decoding(sizes: Sizes, pair: "tuple[Target, Draft]", method: str, k: int, batch: int, graphs: bool) -> "Iterator[Engine]":
    """Within, an engine whose every step is a cycle of so many sequences, beyond the first few."""
    import torch

    from loads import full_batch

    target, draft = pair
    reading = 2 + batch * sizes.context // 256
    most = reading + (WARM_UP + sizes.cycles + 2) * (k + 1)
    options = {"draft_tokens": k} if k else {}
    with new_engine(target, draft, method, graphs, max_batch=batch, cache_tokens=batch * (sizes.context + most + k + 1), **options) as engine:
        generator = torch.Generator().manual_seed(0)
        prompts = torch.randint(0, target.vocab_size - 1, (batch, sizes.context), generator=generator).tolist()
        with full_batch(engine, prompts, most):
            for _ in range(WARM_UP):
                engine.step()
            yield engine


def cycles(sizes: Sizes) -> Iterator[Row]:
    from common import read_bandwidth
    from random_models import position_bytes, weight_bytes

    pair = random_pair(sizes)
    bandwidth = read_bandwidth(pair[0].device, 64 if sizes.device == "cpu" else 2048)
    models = pair[0].model, pair[1].lm
    yield {"read_bytes_per_second": round(bandwidth), "weight_bytes": [weight_bytes(model) for model in models], "context": sizes.context}
    for batch in sizes.batches:
        floors = [1000 * (weight_bytes(model) + batch * sizes.context * position_bytes(model)) / bandwidth for model in models]
        for arm, graphs in sizes.arms.items():
            plain = None
            for k in (0, *sizes.draft_tokens[: 2 if batch == 1 else 1]):
                row = {"batch_size": batch, "arm": arm, "draft_tokens": k} | time_cycles(sizes, pair, k, batch, graphs)
                row["floor_milliseconds"] = floors[0] + (floors[1] if k else 0.0)
                row["over_floor"] = row["milliseconds"] / row["floor_milliseconds"]
                plain = plain or row["milliseconds"]
                yield row | {"over_plain": row["milliseconds"] / plain}


def time_cycles(sizes: Sizes, pair: "tuple[Target, Draft]", k: int, batch: int, graphs: bool) -> Row:
    """Milliseconds of a cycle, medians: all, the draft, the target, and what is outside of both."""
    with decoding(sizes, pair, "pard2-td" if k else "ar", k, batch, graphs) as engine:
        taken: list[tuple[float, float, float]] = []
        walls: list[float] = []
        for _ in range(sizes.cycles):
            before, started = engine.totals, time.perf_counter()
            engine.step()
            walls.append(1000 * (time.perf_counter() - started))
            done = engine.totals - before
            taken.append((done.draft_seconds, done.verify_seconds, walls[-1] / 1000 - done.draft_seconds - done.verify_seconds))
    parts = [1000 * median(column) for column in zip(*taken, strict=True)]
    named = dict(zip(("draft_milliseconds", "verify_milliseconds", "other_milliseconds"), parts, strict=True))
    return {"milliseconds": median(walls), **named, "slowest_milliseconds": max(walls)}


def profile(sizes: Sizes) -> Iterator[Row]:
    import torch
    from torch.profiler import ProfilerActivity

    pair = random_pair(sizes)
    on_device = torch.cuda.is_available() and sizes.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_device else [])]
    for arm, graphs in sizes.arms.items():
        k, batch = sizes.draft_tokens[0], sizes.profiled_batch
        with decoding(sizes, pair, "pard2-td", k, batch, graphs) as engine, torch.profiler.profile(activities=activities) as profiler:
            for _ in range(4):
                engine.step()
        averages = profiler.key_averages()
        for where, key in (("device", "self_device_time_total"), ("host", "self_cpu_time_total"))[0 if on_device else 1 :]:
            print(f"batch {batch}, K {k}, {arm}, {where}\n{averages.table(sort_by=key, row_limit=TOP, max_name_column_width=70)}", flush=True)
            most = sorted(averages, key=lambda one: getattr(one, key), reverse=True)[:TOP]
            for one in most:
                cost = {"milliseconds_a_cycle": getattr(one, key) / 4000, "calls_a_cycle": one.count / 4}
                yield {"batch_size": batch, "draft_tokens": k, "arm": arm, "where": where, "function": one.key[:120]} | cost


# --- equality ----------------------------------------------------------------------------------------


def equality(sizes: Sizes) -> Iterator[Row]:
    yield from compare_texts(sizes, str(GOLDEN / "target"), str(GOLDEN / "draft"), METHODS)


def trees(sizes: Sizes) -> Iterator[Row]:
    for nodes in (4, 16):
        for row in compare_texts(sizes, str(GOLDEN / "target"), str(GOLDEN / "draft"), ("pard2-ti", "pard2-td"), tree=nodes):
            yield row | {"tree": nodes}


def compare_texts(sizes: Sizes, target_name: str, draft_name: str, methods: tuple[str, ...], **options: Any) -> Iterator[Row]:
    """How many texts of each method, batch size and arm are what they must be."""
    from pard2 import Engine, SamplingParams
    from pard2.verify.greedy import greedy_reference

    first = Engine.from_pretrained(target_name, draft_name, "pard2-td", "float32", sizes.device, cuda_graphs=False)
    target, draft = first.target, first.draft
    cases = json.loads((GOLDEN / "decode.json").read_text())["cases"]
    prompts = [list(ids) for ids in dict.fromkeys(tuple(case["prompt"]) for case in cases)][: sizes.prompts]
    greedy = [greedy_reference(target, prompt, sizes.new_tokens) for prompt in prompts]
    sampling = [SamplingParams(max_tokens=sizes.new_tokens, temperature=1.0, seed=seed) for seed in range(len(prompts))]
    with new_engine(target, draft, "ar", False, max_batch=1) as plain:
        sampled = [plain.generate([prompt], one)[0].token_ids for prompt, one in zip(prompts, sampling, strict=True)]
    for arm, graphs in sizes.arms.items():
        for method in methods:
            for batch in (1, len(prompts)):
                k = {} if method == "ar" else {"draft_tokens": "full"}
                with new_engine(target, draft, method, graphs, max_batch=batch, **k, **options) as engine:
                    done = engine.generate(prompts, SamplingParams(max_tokens=sizes.new_tokens))
                    drawn = engine.generate(prompts, sampling)
                counts = {"equal": sum(one.token_ids == reference for one, reference in zip(done, greedy, strict=True))}
                counts |= {"equal_sampled": sum(one.token_ids == reference for one, reference in zip(drawn, sampled, strict=True))}
                stats = [one.stats for one in done]
                acceptance = 1 + sum(one.accepted for one in stats) / max(1, sum(one.cycles for one in stats))
                yield {"arm": arm, "method": method, "batch_size": batch, "prompts": len(prompts), **counts, "acceptance_length": acceptance}


def embedded(sizes: Sizes) -> Iterator[Row]:
    gguf = os.environ.get("PARD2_GGUF")
    if not gguf:
        yield {"left_out": "no GGUF file at hand"}
        return
    yield from compare_texts(sizes, gguf, str(ROOT / "src" / "pard2" / "assets" / "smollm2-draft"), ("ar", "pard2-ti", "pard2-td"))


# --- training and regeneration -----------------------------------------------------------------------


def save_target(directory: Path, sizes: Sizes) -> Path:
    """A chat model of random weights on disk: its tokenizer knows every id but the last as a word."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from random_models import random_model

    torch.manual_seed(0)
    model = random_model(sizes.model, 8192, torch.bfloat16 if sizes.device == "cuda" else torch.float32, torch.device(sizes.device))
    assert model.generation_config is not None
    model.generation_config.eos_token_id = 1
    model.save_pretrained(directory)
    words = ["<|start|>", "<|end|>", "user", "assistant", "system", "[UNK]", *(f"w{number}" for number in range(6, sizes.model[0] - 1))]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in words[:2]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[1], unk_token="[UNK]")
    turn = "<|start|> {{ m.role }} {{ m.content }} <|end|> "
    fast.chat_template = f"{{% for m in messages %}}{turn}{{% endfor %}}{{% if add_generation_prompt %}}<|start|> assistant {{% endif %}}"
    fast.save_pretrained(directory)
    return directory


def write_conversations(path: Path, count: int, sizes: Sizes, answered: bool) -> Path:
    """Conversations of random words, with answers of `document` words or without."""
    import random

    drawn = random.Random(0)
    text = lambda length: " ".join(f"w{drawn.randrange(6, sizes.model[0] - 1)}" for _ in range(length))  # noqa: E731
    with open(path, "w") as file:
        for number in range(count):
            messages = [{"role": "user", "content": text(8)}]
            messages += [{"role": "assistant", "content": text(sizes.document - 16)}] if answered else []
            file.write(json.dumps({"id": str(number), "messages": messages}) + "\n")
    return path


def command(*words: str) -> float:
    """Seconds of a command of pard2's, run in this process."""
    from pard2.cli.main import main

    started = time.perf_counter()
    try:
        main(list(words))
    except SystemExit as ending:
        if ending.code:
            raise
    return time.perf_counter() - started


def training(sizes: Sizes) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        precision = "bfloat16" if sizes.device == "cuda" else "float32"
        records = write_conversations(directory / "train.jsonl", 2 * sizes.row // sizes.document, sizes, True)
        config = {
            "target": {"name": str(save_target(directory / "target", sizes)), "dtype": precision},
            "draft": {"layers": 5 if sizes.device == "cuda" else 2, "share_vocabulary": True, "mask_token": sizes.model[0] - 1},
            "data": {"train": [str(records)], "max_length": sizes.document, "on_long": "cut", "row_length": sizes.row},
            "objective": {"draft_tokens": 8, "retention": 0.8},
            "optimizer": {"kind": "muon", "lr": 1e-3},
            "loop": {"output": str(directory / "run"), "steps": sizes.steps, "rows_per_step": 1, "precision": precision, "device": sizes.device},
        }
        if sizes.device == "cpu":
            config["draft"]["target_layers"] = [-1, -2]
        (directory / "run.yaml").write_text(json.dumps(config))  # which is YAML, too
        command("train", str(directory / "run.yaml"))
        metrics = [json.loads(line) for line in (directory / "run" / "metrics.jsonl").read_text().splitlines()]
    settled = metrics[len(metrics) // 2 :]  # compiled, and warm
    taken = {key: median(step[key] for step in settled) for key in ("seconds", "target_seconds", "wait_seconds", "tokens", "slots")}
    speeds = {f"{key}_per_second": taken[key] / taken["seconds"] for key in ("tokens", "slots")}
    yield taken | speeds | {"memory_bytes": metrics[-1]["memory_bytes"], "first_step_seconds": metrics[0]["seconds"], "steps": len(settled)}


def regenerate(sizes: Sizes) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        target = str(save_target(directory / "target", sizes))

        def answer(count: int, batch: int) -> tuple[float, int]:
            """Seconds and tokens of so many answers, loading included."""
            prompts = write_conversations(directory / "prompts.jsonl", count, sizes, False)
            output = directory / "answers.jsonl"
            options = ["--max-new-tokens", str(sizes.answer_tokens), "--batch-size", str(batch), "--device", sizes.device, "--force"]
            options += ["--dtype", sizes.dtype]
            seconds = command("data", "regenerate", "-t", target, "-i", str(prompts), "-o", str(output), *options)
            texts = [json.loads(line)["messages"][-1]["content"] for line in output.read_text().splitlines()]
            return seconds, sum(len(text.split()) for text in texts)

        answer(1, 1)  # imports, kernels
        for batch in sizes.answering_batches:
            short, few = answer(2, batch)
            long, many = answer(2 * batch, batch)
            yield {"batch_size": batch, "tokens": many, "seconds": long, "tokens_per_second": (many - few) / (long - short)}


# --- the host ----------------------------------------------------------------------------------------


def host(sizes: Sizes) -> Iterator[Row]:
    import torch

    import host_time

    device = torch.device(sizes.device)
    for method in ("ar", "pard2-td"):
        loads = {}
        for batch in sizes.host_batches:
            engine = host_time.new_engine(method, batch, "full", device, sizes.host_cycles)
            for decoders in host_time.DECODERS:
                loads[method, decoders, batch] = host_time.Load(engine, batch, decoders == host_time.DECODERS[0], sizes.host_cycles)
        yield from host_time.measure(loads, 2)


# --- parts -------------------------------------------------------------------------------------------

# What each part yields, and the seconds that it may take; the most wanted first.
PARTS: dict[str, tuple[Callable[[Sizes], Iterator[Row]], int]] = {
    "cycles": (cycles, 125),
    "equality": (equality, 50),
    "profile": (profile, 55),
    "training": (training, 65),
    "regenerate": (regenerate, 65),
    "trees": (trees, 40),
    "host": (host, 30),
    "embedded": (embedded, 45),
}


class ResultFile:
    """`{"meta": .., "parts": {name: how it went}, "results": [..]}`, written anew
    with every line that comes."""

    def __init__(self, path: Path | None, small: bool) -> None:
        from pard2.environment import meta

        self.path, self.small, self.about = path, small, meta()
        self.parts: dict[str, Row] = {}
        self.results: list[Row] = []

    def write(self) -> None:
        if self.path is not None:
            head = {"meta": self.about, "small": self.small, "parts": self.parts}
            text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, indent=1)}" for key, value in head.items())
            rows = ",\n".join(json.dumps(row) for row in self.results)
            self.path.write_text(f'{{\n{text},\n"results": [\n{rows}\n]\n}}\n')


def run_part(name: str, words: list[str], limit: float, file: ResultFile) -> None:
    """Run a part as a process of its own and take down what it says, and how it ended."""
    started, said = time.perf_counter(), []
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    up = Timer(limit, process.kill)
    up.start()
    for line in process.stdout or ():
        print(line, end="", flush=True)
        if line.startswith('{"part"'):
            file.results.append(json.loads(line))
            file.write()
        else:
            said.append(line.rstrip())
    code = process.wait()
    seconds = time.perf_counter() - started
    up.cancel()
    status = "done" if code == 0 else f"stopped after {limit:g} s" if seconds >= limit else "failed"
    file.parts[name] = {"status": status, "seconds": round(seconds, 1), "limit_seconds": limit}
    if status == "failed":
        file.parts[name]["said"] = said[-NOTE_LINES:]
    file.write()
    print(f"--- {name}: {status}, {seconds:.0f} s", flush=True)


def child(name: str, small: bool) -> None:
    for row in PARTS[name][0](Sizes(small)):
        print(json.dumps({"part": name, **row}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--profile", action="store_true", help="as --parts profile")
    parser.add_argument("--gguf", type=Path, help="the embedded target's file, where there is one")
    parser.add_argument("--small", action="store_true", help="on the CPU even where there is a GPU")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args.child, args.small)
    if args.gguf:
        os.environ["PARD2_GGUF"] = str(args.gguf.resolve())
    import torch

    file = ResultFile(args.json, args.small or not torch.cuda.is_available())
    for name in ["profile"] if args.profile else args.parts:
        words = [sys.executable, __file__, "--child", name, *(["--small"] if file.small else [])]
        run_part(name, words, PARTS[name][1] * (SLOW if file.small else 1), file)


if __name__ == "__main__":
    main()
