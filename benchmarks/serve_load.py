"""A server under load: how long clients wait, and what the server adds to the engine's own time.

    python benchmarks/serve_load.py -s gsm8k humaneval --json docs/results/serve.json

One server after the other, for each method. First streams that ask for one answer after the other, 1, 8, ..
of them at once: `overhead` is the time that went by over what the engine's passes took, less one. Then
arrivals as they come: gaps are drawn from an exponential distribution (a Poisson process), whether answers
are there or not, so a server that is too slow shows a queue. Times are the client's, over the loopback: to
the first token, and for each token after it (of one answer, on average).
"""

import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from pard2.bench.result_file import write_result
from pard2.bench.suites import read_suites
from pard2.environment import meta

HOST = "127.0.0.1"
_MOST_STREAMS = 256  # of arrivals, so that a slow server is not met with a thread for each


@dataclass(frozen=True)
class Answer:
    """Seconds to the first token, for each further one, and for all; tokens of it."""

    first: float
    each: float
    whole: float
    tokens: int


@contextmanager
def server(words: list[str]) -> Iterator[int]:
    """`pard2 serve` with these options; its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pard2", "serve", *words, "--port", "0"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    told = []
    try:
        for line in process.stderr:
            told.append(line)
            if found := re.search(r"http://[\d.]+:(\d+)/v1", line):
                break
        else:
            raise SystemExit("".join(told))
        threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(60)


def ask(port: int, body: dict[str, Any]) -> Answer:
    connection = http.client.HTTPConnection(HOST, port, timeout=600)
    began = time.perf_counter()
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    first, last, data = 0.0, 0.0, b""
    while part := response.read1(65536):
        last = time.perf_counter()
        first = first or last
        data += part
    connection.close()
    if response.status != 200 or not data.endswith(b"data: [DONE]\n\n"):
        raise SystemExit(f"status {response.status}: {data[-300:]!r}")
    tokens = json.loads(data.decode().split("data: ")[-2])["usage"]["completion_tokens"]
    return Answer(first - began, (last - first) / max(1, tokens - 1), last - began, tokens)


def pass_seconds(port: int) -> float:
    """What all passes of the engine have taken so far."""
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("pard2:pass_seconds_total{"))


def share(values: list[float], part: float) -> float:
    """The value that this part of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summary(answers: list[Answer], seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"requests": len(answers), "seconds": seconds, "tokens": sum(one.tokens for one in answers)}
    found["tokens_per_second"] = found["tokens"] / seconds
    for name in ("first", "each", "whole"):
        values = [getattr(one, name) for one in answers]
        found |= {f"{name}_p{round(100 * part)}": share(values, part) for part in (0.5, 0.95, 0.99)}
    return found


def closed(port: int, body: Callable[[int], dict[str, Any]], streams: int, requests: int) -> dict[str, Any]:
    """So many streams, each asking again as soon as it is answered."""
    before, began = pass_seconds(port), time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        answers = list(pool.map(lambda number: ask(port, body(number)), range(requests)))
    seconds = time.perf_counter() - began
    spent = pass_seconds(port) - before
    return summary(answers, seconds) | {"streams": streams, "engine_seconds": spent, "overhead": seconds / spent - 1}


def arriving(port: int, body: Callable[[int], dict[str, Any]], rate: float, requests: int) -> dict[str, Any]:
    """Arrivals at so many a second on average."""
    chance, began = random.Random(0), time.perf_counter()
    with ThreadPoolExecutor(_MOST_STREAMS) as pool:
        coming = []
        due = began
        for number in range(requests):
            due += chance.expovariate(rate)
            time.sleep(max(0.0, due - time.perf_counter()))
            coming.append(pool.submit(ask, port, body(number)))
        answers = [one.result() for one in coming]
    return summary(answers, time.perf_counter() - began) | {"rate": rate}


def picture(results: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, (first, speed) = pyplot.subplots(1, 2, figsize=(9, 3.4))
    for method in dict.fromkeys(one["method"] for one in results):
        own = [one for one in results if one["method"] == method and "rate" in one]
        rates = [one["rate"] for one in own]
        (line,) = first.plot(rates, [one["first_p50"] for one in own], marker="o", label=f"{method}, median")
        first.plot(rates, [one["first_p95"] for one in own], marker="o", linestyle=":", color=line.get_color(), label=f"{method}, 95 %")
        speed.plot(rates, [1000 * one["each_p50"] for one in own], marker="o", label=method)
    first.set(xlabel="requests a second", ylabel="seconds to the first token", yscale="log")
    speed.set(xlabel="requests a second", ylabel="milliseconds a token, median", ylim=(0, None))
    for axes in (first, speed):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-t", "--target", default="smollm2")
    parser.add_argument("-d", "--draft")
    parser.add_argument("-s", "--suites", nargs="+", required=True)
    parser.add_argument("-m", "--methods", nargs="+", default=["ar", "pard2-td"])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32], help="streams that ask again and again")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.25, 0.5, 1, 2], help="arrivals a second")
    parser.add_argument("--requests", type=int, default=64, help="of each line")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path, help="an SVG; needs matplotlib")
    args = parser.parse_args()
    if args.picture and find_spec("matplotlib") is None:  # said before the long run
        parser.error("--picture needs matplotlib: pip install matplotlib")
    about, results = meta(), []
    prompts = [prompt for suite in read_suites(args.suites, args.requests) for prompt in suite.prompts]
    random.Random(0).shuffle(prompts)

    def body(number: int) -> dict[str, Any]:
        prompt = prompts[number % len(prompts)]
        held = prompt if isinstance(prompt, dict) else {"messages": prompt}
        return held | {"temperature": 0, "max_tokens": args.max_tokens, "stream": True, "stream_options": {"include_usage": True}}

    for method in args.methods:
        drafted = [] if args.draft is None or method == "ar" else ["-d", args.draft]
        options = [*drafted, "-m", method, "--batch-size", str(args.batch_size), "--max-waiting", str(args.requests)]
        with server(["-t", args.target, *options]) as port:
            closed(port, body, min(args.streams), 2)  # warm
            for streams in args.streams:
                results.append({"method": method} | closed(port, body, streams, max(streams, args.requests)))
                tell(results[-1])
            for rate in args.rates:
                results.append({"method": method} | arriving(port, body, rate, args.requests))
                tell(results[-1])
    added = {f"{one['method']}, {one['streams']}": one["overhead"] for one in results if "streams" in one}
    print(f"added to the engine's own time, median of all: {100 * median(added.values()):.1f} %")
    if args.json:
        write_result(args.json, about, results)
    if args.picture:
        picture(results, args.picture)


def tell(one: dict[str, Any]) -> None:
    what = f"{one['streams']} streams" if "streams" in one else f"{one['rate']:g} a second"
    added = f", {100 * one['overhead']:.1f} % above the engine's own time" if "overhead" in one else ""
    print(
        f"{one['method']}, {what}: first token {one['first_p50']:.3f} s (95 %: {one['first_p95']:.3f}), {1000 * one['each_p50']:.1f} ms a token, "
        f"{one['tokens_per_second']:.1f} tokens/s{added}",
        flush=True,
    )


if __name__ == "__main__":
    main()
