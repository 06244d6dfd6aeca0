"""Clients at their worst, for a server that must stay up: `pard2 serve` over a tiny random pair.

    python benchmarks/serve_stress.py --requests 2000 --json docs/results/serve_stress.json

A third of the clients leave in the midst of an answer; others send nonsense, bodies that are too long or too
deep, headers without end, half of a request, or read slowly or never. The rest must get the text of plain
decoding, and afterwards nothing may be left: no place, nobody who waits, and no more memory than after the
500th request, but for 5 %. Memory is that of the server's process. `make test` runs a short form of it.
"""

import argparse
import http.client
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"
PATHS = ("/v1/chat/completions", "/v1/completions")
PROMPTS = ["Hello", "Why is the sky blue?", "Name three rivers.", "Count to ten.", "ü", "x" * 100]
MOST_TOKENS = 48
SETTINGS: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 1.0, "seed": 7}, {"temperature": 0, "n": 2}, {"temperature": 0, "stop": ["e"]}]
_JUNK = (None, True, -1, 0, 10**30, 1.5, "", "x", [], {}, [[]], {"a": 1}, "\x00", "é" * 50, float("nan"))
_NEVER_READ = 8  # streams at most that stay open until the end


def asked(prompt: str, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}], "max_tokens": MOST_TOKENS} | settings | more


class Stress:
    """Clients of one server. expected: the texts of each prompt with each setting, by their numbers."""

    def __init__(self, port: int, expected: dict[tuple[int, int], list[str]], seed: int = 0) -> None:
        self._port, self._expected, self._seed = port, expected, seed
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, numbers: range, clients: int = 16) -> None:
        """The requests of these numbers, each decided by its number and the seed."""
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._request, numbers))

    def end(self) -> None:
        for one in self._open:
            one.close()
        self._open.clear()

    def _request(self, number: int) -> None:
        chance = random.Random(f"{self._seed} {number}")
        kinds = {
            self.leaves: 33,
            self.whole: 22,
            self.streamed: 15,
            self.malformed: 15,
            self.half: 4,
            self.slow: 3,
            self.deep: 3,
            self.long_body: 2,
            self.long_headers: 2,
            self.never_reads: 1,
        }
        (kind,) = chance.choices(list(kinds), list(kinds.values()))
        try:
            outcome = kind(chance)
        except (OSError, http.client.HTTPException) as error:
            outcome = f"{type(error).__name__}: {error}"
            self._wrong(f"{kind.__name__} {number}: {outcome}")
        with self._lock:
            self.counts[f"{kind.__name__}: {outcome}"] += 1

    def _wrong(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what[:300])

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self._port, timeout=120)

    def _ask(self, body: Any, path: str = PATHS[0]) -> http.client.HTTPConnection:
        connection = self._connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("POST", path, data, {"Content-Type": "application/json"})
        return connection

    def _check(self, key: tuple[int, int], status: int, texts: list[str]) -> str:
        if status == 200 and texts != self._expected[key]:
            self._wrong(f"{key}: {texts} and not {self._expected[key]}")
        elif status != 200:
            self._wrong(f"{key}: status {status}, {texts}")
        return str(status)

    def _pick(self, chance: random.Random, **more: Any) -> tuple[tuple[int, int], dict[str, Any]]:
        key = chance.randrange(len(PROMPTS)), chance.randrange(len(SETTINGS))
        return key, asked(PROMPTS[key[0]], SETTINGS[key[1]], **more)

    # --- those who want an answer -----------------------------------------------------------------

    def whole(self, chance: random.Random) -> str:
        key, body = self._pick(chance)
        response = self._ask(body).getresponse()
        held = json.loads(response.read())
        return self._check(key, response.status, [one["message"]["content"] for one in held.get("choices", [])])

    def streamed(self, chance: random.Random, pause: float = 0.0) -> str:
        key, body = self._pick(chance, stream=True)
        response = self._ask(body).getresponse()
        data = b""
        while part := response.read1(64 if pause else 65536):
            data += part
            time.sleep(pause)
        texts = [""] * SETTINGS[key[1]].get("n", 1)
        events = [one for one in data.decode().split("\n\n") if one.startswith("data: {")]
        for one in events:
            for choice in json.loads(one[6:]).get("choices", []):
                texts[choice["index"]] += choice["delta"].get("content", "")
        if response.status == 200 and not data.endswith(b"data: [DONE]\n\n"):
            self._wrong(f"{key}: a stream without an end, {data[-100:]!r}")
        return self._check(key, response.status, texts)

    def slow(self, chance: random.Random) -> str:
        return self.streamed(chance, 0.002)

    # --- those who do not -------------------------------------------------------------------------

    def leaves(self, chance: random.Random) -> str:
        """In the midst of an answer, whole or streamed, or before it."""
        _, body = self._pick(chance, stream=chance.random() < 0.7, max_tokens=200, ignore_eos=True)
        connection = self._ask(body)
        time.sleep(chance.random() * 0.05)
        if body["stream"] and chance.random() < 0.7:
            connection.getresponse().read1(chance.randrange(1, 2000))
        if connection.sock is not None:
            connection.sock.shutdown(socket.SHUT_RDWR)
            connection.sock.close()
        return "left"

    def malformed(self, chance: random.Random) -> str:
        data, path = malformed(chance), chance.choice(PATHS)
        response = self._ask(data, path).getresponse()
        text = response.read().decode()
        if response.status not in (200, 400, 404):
            self._wrong(f"{data[:100]!r}: status {response.status}")
        if response.status != 200 and "data: " not in text and set(json.loads(text)) != {"error"}:
            self._wrong(f"{data[:100]!r}: {text[:100]}")
        return str(response.status)

    def half(self, chance: random.Random) -> str:
        """Sends a part of a request, and leaves."""
        body = json.dumps(self._pick(chance)[1])
        data = f"POST {PATHS[0]} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        with socket.create_connection((HOST, self._port)) as raw:
            raw.sendall(data[: chance.randrange(1, len(data))])
        return "left"

    def deep(self, chance: random.Random) -> str:
        return self._refused(b'{"messages": ' + b"[" * chance.choice((1000, 100_000)), 400)

    def long_body(self, chance: random.Random) -> str:
        return self._refused(json.dumps(asked("x" * 10_000_000, {})).encode(), 413)

    def _refused(self, data: bytes, status: int) -> str:
        response = self._ask(data).getresponse()
        if response.status != status or "error" not in json.loads(response.read()):
            self._wrong(f"status {response.status} and not {status}")
        return str(response.status)

    def long_headers(self, chance: random.Random) -> str:
        with socket.create_connection((HOST, self._port)) as raw:
            raw.settimeout(60)
            try:
                raw.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 2 * 65536 + b"\r\n\r\n")
                found = re.match(rb"HTTP/1.1 (\d+)", raw.recv(100))
            except ConnectionError:  # it may have hung up before all was sent
                return "hung up"
        return found[1].decode() if found else "nothing"

    def never_reads(self, chance: random.Random) -> str:
        if len(self._open) >= _NEVER_READ:
            return "enough of them"
        connection = self._ask(self._pick(chance, stream=True, n=2, max_tokens=200, ignore_eos=True)[1])
        self._open.append(connection.sock)
        return "open"


def malformed(chance: random.Random) -> bytes:
    """A body that is wrong in one of many ways, or by chance in none that matters."""
    body: dict[str, Any] = asked("Hello", {"temperature": 0, "stop": ["x"], "n": 1, "pard2": {"trace": True}}, max_tokens=4)
    way = chance.randrange(5)
    if way == 0:
        del body[chance.choice(list(body))]
    elif way == 1:
        body[chance.choice([*body, "prompt", "seed", "top_p", "logit_bias", "tools", "stream_options", "logprobs", "model"])] = chance.choice(_JUNK)
    elif way == 2:
        body[f"field_{chance.randrange(1000)}"] = chance.choice(_JUNK[1:])
    elif way == 3:
        body["messages"] = [chance.choice([*_JUNK, {"role": chance.choice(_JUNK), "content": chance.choice(_JUNK)}])]
    data = json.dumps(body).encode()
    if way == 4:
        place = chance.randrange(len(data))
        data = data[:place] + bytes(chance.randrange(256) for _ in range(chance.randrange(4))) + data[place + chance.randrange(3) :]
    return data


def metric(port: int, name: str) -> float:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(f"{name}{{"))


def left(port: int, seconds: float = 60.0) -> dict[str, float]:
    """What is still held, once that has had time to go."""
    ends = time.monotonic() + seconds
    while True:
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        held = {name: metric(port, name) for name in names}
        if not any(held.values()) or time.monotonic() > ends:
            return held
        time.sleep(0.05)


# --- a server of its own ------------------------------------------------------------------------------


def make_pair(directory: Path) -> dict[tuple[int, int], list[str]]:
    """A tiny random target and draft on disk; what plain decoding says to each prompt."""
    sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / part) for part in ("", "data")]
    from chat_tokenizer import END_ID, MASK_ID, VOCABULARY, byte_tokenizer
    from pard2 import Engine, SamplingParams
    from pard2.checkpoints.loading import load_target
    from pard2.checkpoints.write import save_draft
    from tiny import tiny_draft, tiny_model

    model = tiny_model(layers=3, vocab=VOCABULARY, context=512, initializer_range=0.2)
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory / "target")
    byte_tokenizer().save_pretrained(directory / "target")
    target = load_target(str(directory / "target"), "float32", "cpu")
    save_draft(tiny_draft(target, [0, 2], draft_tokens=6, projection=0.05, mask_token=MASK_ID), directory / "draft")
    engine = Engine(target, method="ar")
    return expected_texts(lambda prompt, fields: engine.generate([prompt], SamplingParams(max_tokens=MOST_TOKENS, **fields)))


def expected_texts(generate: Any) -> dict[tuple[int, int], list[str]]:
    pairs = [(p, s) for p in range(len(PROMPTS)) for s in range(len(SETTINGS))]
    return {(p, s): [one.text for one in generate(PROMPTS[p], SETTINGS[s])] for p, s in pairs}


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        expected = make_pair(Path(name))
        words = f"serve -t {name}/target -d {name}/draft --dtype float32 --device cpu --port 0 --batch-size 8 --drain-seconds 10".split()
        process = subprocess.Popen([sys.executable, "-m", "pard2", *words], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        assert process.stderr is not None
        port = next(int(found[1]) for line in process.stderr if (found := re.search(r"http://[\d.]+:(\d+)/v1", line)))
        threading.Thread(target=lambda: [None for _ in process.stderr], daemon=True).start()
        stress, began, memory = Stress(port, expected, args.seed), time.perf_counter(), []
        step = max(1, args.requests // 20)
        for first in range(0, args.requests, step):
            stress.run(range(first, min(first + step, args.requests)))
            memory.append({"requests": first + step, "bytes": resident(process.pid)})
            print(f"{first + step} requests, {memory[-1]['bytes'] / 1e6:.1f} MB, {len(stress.wrong)} wrong", flush=True)
        stress.end()
        held = left(port)
        process.terminate()
        code = process.wait(60)
    early = next(one["bytes"] for one in memory if one["requests"] >= min(500, args.requests))
    growth = memory[-1]["bytes"] / early - 1
    found = {
        "requests": args.requests,
        "seconds": time.perf_counter() - began,
        "outcomes": dict(sorted(stress.counts.items())),
        "wrong": stress.wrong,
        "left": held,
        "exit_code": code,
        "growth_from_the_500th": growth,
    }
    print(json.dumps(found, indent=1))
    if args.json:
        from pard2.bench.result_file import write_result
        from pard2.environment import meta

        write_result(args.json, meta(), memory, **found)
    sys.exit(bool(stress.wrong or any(held.values()) or code or growth > 0.05))


if __name__ == "__main__":
    main()
