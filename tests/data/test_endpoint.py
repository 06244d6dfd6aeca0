"""A server's answers: every record once or listed as failed, whatever the server and the network do."""

import time
from collections.abc import Iterator
from email.utils import formatdate
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fake_endpoint import FakeEndpoint, answer, body, die, fake_endpoint, half, reset, silence, slowly, status
from pard2.data import endpoint
from pard2.data.endpoint import Endpoints
from pard2.data.records import Record, RecordWriter, read_records
from pard2.data.regenerate import Failure, answer_settings, regenerate
from pard2.errors import Pard2Error

GREEDY = answer_settings(5, 0.0, 1.0, 0)


@pytest.fixture
def server() -> Iterator[FakeEndpoint]:
    with fake_endpoint() as one:
        yield one


@pytest.fixture
def other() -> Iterator[FakeEndpoint]:
    with fake_endpoint() as one:
        yield one


def prompts(*texts: str) -> list[Record]:
    return [{"id": text, "messages": [{"role": "user", "content": text}]} for text in texts]


def endpoints(*servers: FakeEndpoint, settings: dict[str, Any] = GREEDY, **options: Any) -> Endpoints:
    quick: dict[str, Any] = {"concurrency": 4, "timeout": 5.0, "retries": 2, "backoff": 0.01}
    return Endpoints([s.address for s in servers], "tiny", settings, **(quick | options))


def run(output: Path, records: list[Record], asked: Endpoints, settings: dict[str, Any] = GREEDY, **options: Any) -> dict[str, str]:
    """The errors by id."""
    with RecordWriter(output) as writer:
        failures: list[Failure] = regenerate(records, writer, asked.reply, "the-target", settings, **options)
    return {failure["id"]: failure["error"] for failure in failures}


def said(output: Path) -> dict[str, str]:
    return {record["id"]: record["messages"][-1]["content"] for record in read_records(output)}


def test_count_in_is_count_out_and_failures_whatever_the_server_does(tmp_path: Path, server: FakeEndpoint) -> None:
    server.script = {
        "500, then well": [status(500)],
        "busy, then well": [status(429), status(503)],
        "silent, then well": [silence],
        "reset, then well": [reset],
        "cut, then well": [half],
        "no JSON, then well": [body("<html>"), body('{"choices": []}')],
        "slow": [slowly(0.3)],
        "500 for ever": [status(500, "out of\nmemory")] * 9,
        "silent for ever": [silence] * 9,
        "reset for ever": [reset] * 9,
        "no JSON for ever": [body("<html>")] * 9,
        "too long": [status(400, "at most 4096 tokens")],
        "odd": [status(422)],
        "deep JSON, then well": [body("[" * 100_000)],
    }
    records = prompts("well", *server.script, "well again")
    failures = run(tmp_path / "out", records, endpoints(server, timeout=2.0, concurrency=8))  # a busy machine may take a second to accept
    answers = said(tmp_path / "out")
    assert sorted([*answers, *failures]) == sorted(record["id"] for record in records)
    assert all(text == f"echo {name}" for name, text in answers.items())
    assert {name: error.replace(server.address, "HERE") for name, error in failures.items()} == {
        "500 for ever": "HERE: 500: out of memory (tried 3 times)",
        "silent for ever": "HERE: no answer in time (tried 3 times)",
        "reset for ever": "HERE: Connection reset by peer (tried 3 times)",
        "no JSON for ever": "HERE: not a chat completion: <html> (tried 3 times)",
        "too long": "400: at most 4096 tokens",
        "odd": "422: because",
    }
    tries = {"well": 1, "500, then well": 2, "busy, then well": 3, "slow": 1, "500 for ever": 3, "too long": 1, "odd": 1}
    assert tries.items() <= server.asked.items()  # fails if what cannot pass is asked again, or what may pass is not


def test_the_request_says_what_the_settings_say(tmp_path: Path, server: FakeEndpoint) -> None:
    """Fails if greedy answers are sampled at a server's own temperature, or an old
    answer is sent to be continued."""
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    records = [{"id": "a", "messages": [*messages, {"role": "assistant", "content": "old"}], "source": "x"}]
    run(tmp_path / "out", records, endpoints(server))
    assert server.requests == [{"model": "tiny", "messages": messages, "max_tokens": 5, "temperature": 0.0}]
    assert "Authorization" not in server.headers[0]
    assert read_records(tmp_path / "out") == [
        {
            "id": "a",
            "messages": [*messages, {"role": "assistant", "content": "echo u"}],
            "source": "x",
            "finish_reason": "stop",
            "model": "the-target",
            "settings": {"max_new_tokens": 5, "temperature": 0.0},
        }
    ]


def test_tools_and_template_arguments_of_a_record_are_sent(tmp_path: Path, server: FakeEndpoint) -> None:
    """Fails if the target answers another prompt than the one that a draft is trained with."""
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "user", "content": "u"}]
    record = {"id": "a", "messages": messages, "tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    run(tmp_path / "out", [record], endpoints(server))
    sent = server.requests[0]
    assert sent["tools"] == record["tools"] and sent["chat_template_kwargs"] == record["chat_template_kwargs"]
    assert sent["messages"][0]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x": 1}'}
    assert read_records(tmp_path / "out")[0]["messages"][0]["tool_calls"] == [call]


def test_sampled_answers_have_seeds_of_their_own_that_a_resumed_run_sends_again(tmp_path: Path, server: FakeEndpoint, other: FakeEndpoint) -> None:
    sampled = answer_settings(5, 0.7, 0.9, 3, {"top_k": -1})
    run(tmp_path / "all", prompts("a", "b", "c"), endpoints(server, settings=sampled, api_key="key"), sampled)
    run(tmp_path / "one", prompts("b"), endpoints(other, settings=sampled), sampled)
    seeds = {request["messages"][0]["content"]: request["seed"] for request in server.requests}
    assert len(set(seeds.values())) == 3 and all(0 <= seed < 2**31 for seed in seeds.values())
    expected = {"model": "tiny", "max_tokens": 5, "temperature": 0.7, "top_p": 0.9, "top_k": -1, "seed": seeds["b"]}
    assert other.requests == [expected | {"messages": [{"role": "user", "content": "b"}]}]
    assert server.headers[0]["Authorization"] == "Bearer key"
    assert read_records(tmp_path / "one")[0]["settings"] == sampled


@pytest.mark.parametrize("date", [False, True], ids=["seconds", "date"])
def test_retry_after_is_waited_for(tmp_path: Path, server: FakeEndpoint, date: bool) -> None:
    server.script = {"a": [status(429, Retry_After=formatdate(time.time() + 2, usegmt=True) if date else "1")]}
    began = time.monotonic()
    assert run(tmp_path / "out", prompts("a"), endpoints(server)) == {}
    assert 0.9 < time.monotonic() - began < 4.0


@pytest.mark.parametrize("header", ["-5", "nan", "inf", "soon", "", "1e300", "Mon, 99 Zer 2026"])
def test_a_retry_after_that_is_nonsense_or_never_does_not_stop_the_run(tmp_path: Path, server: FakeEndpoint, header: str) -> None:
    server.script = {"a": [status(503, Retry_After=header)]}
    began = time.monotonic()
    assert run(tmp_path / "out", prompts("a"), endpoints(server, timeout=0.5)) == {}
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (status(401, "no"), r"`api_key`: a key is needed by http://.* \(401: no\)"),
        (status(403, "no"), r"`api_key`: a key is needed"),
        (status(404, "no such model"), r"`endpoint` http.* `model` tiny are \(404: no such model\)"),
        (status(302, "moved", Location="http://127.0.0.1:9/"), r"`endpoint` .*\(302: moved\)"),
        (answer("4", reasoning_content="2 and 2"), "`endpoint` .*takes the thoughts out of its answers"),
    ],
)
def test_what_would_fail_for_every_record_stops_the_run_at_once(tmp_path: Path, server: FakeEndpoint, behaviour: Any, message: str) -> None:
    server.script = {"b": [behaviour]}
    with pytest.raises(Pard2Error, match=message):
        run(tmp_path / "out", prompts("a", "b", "c", "d"), endpoints(server, concurrency=1))
    assert server.asked == {"a": 1, "b": 1}
    assert said(tmp_path / "out") == {"a": "echo a"}


@pytest.mark.parametrize(
    ("behaviour", "text", "error"),
    [
        (answer("cut", "length"), "cut", None),
        (answer("", "stop"), "", None),
        (answer("half a th", "abort"), "echo a", None),
        (answer("half a th", None), "echo a", None),
        (answer("I cann", "content_filter"), None, "ended by finish_reason content_filter"),
        (answer(None, "tool_calls", content=None, tool_calls=[{}]), None, "no text (finish_reason tool_calls)"),
        (answer(None, "stop", content=None), None, "no text (finish_reason stop)"),
        (answer("\ud800", "stop"), None, "the answer is not Unicode text"),
    ],
)
def test_only_what_the_target_said_to_the_end_or_the_limit_is_an_answer(
    tmp_path: Path, server: FakeEndpoint, behaviour: Any, text: str | None, error: str | None
) -> None:
    """Text that a filter ended would be learned as if the target had ended it there."""
    server.script = {"a": [behaviour]}
    failures = run(tmp_path / "out", prompts("a"), endpoints(server))
    assert failures == ({} if error is None else {"a": error})
    if error is None:
        assert said(tmp_path / "out") == {"a": text}


def test_answers_are_written_as_they_come_and_counted(tmp_path: Path, server: FakeEndpoint) -> None:
    """Fails if one slow answer keeps those behind it in memory, where a kill loses them."""
    server.script = {"slow": [slowly(0.5)], "bad": [status(400)]}
    steps: list[tuple[int, int]] = []
    run(tmp_path / "out", prompts("slow", "bad", "a", "b"), endpoints(server), progress=lambda *step: steps.append(step))
    assert list(said(tmp_path / "out"))[-1] == "slow"
    assert sorted(steps) == [(1, 0), (1, 7), (1, 7), (1, 7)]


def test_no_more_requests_at_once_than_asked_for(tmp_path: Path, server: FakeEndpoint) -> None:
    server.always = slowly(0.05)
    assert run(tmp_path / "out", prompts(*"abcdefghi"), endpoints(server, concurrency=3)) == {}
    assert server.most_at_once == 3


def test_load_is_spread_over_several_endpoints(tmp_path: Path, server: FakeEndpoint, other: FakeEndpoint) -> None:
    server.always = other.always = slowly(0.05)
    assert run(tmp_path / "out", prompts(*"abcdefghijkl"), endpoints(server, other)) == {}
    assert server.most_at_once == other.most_at_once == 2
    assert 4 <= len(server.requests) <= 8


def test_a_slow_endpoint_is_asked_less_often(tmp_path: Path, server: FakeEndpoint, other: FakeEndpoint) -> None:
    """Fails if requests are dealt out in turn: the run would last as long as its slowest server."""
    server.always, other.always = slowly(0.3), slowly(0.02)
    assert run(tmp_path / "out", prompts(*"abcdefghijklmnopqrst"), endpoints(server, other)) == {}
    assert len(server.requests) < len(other.requests) / 2


def test_the_others_take_over_from_an_endpoint_that_dies(tmp_path: Path, server: FakeEndpoint, other: FakeEndpoint) -> None:
    server.script = {letter: [die] for letter in "efghijkl"}
    other.always = slowly(0.02)
    letters = "abcdefghijklmnopqrstuvwxyz"
    assert run(tmp_path / "out", prompts(*letters), endpoints(server, other, retries=3)) == {}
    assert sorted(said(tmp_path / "out")) == list(letters)
    assert server.closed.is_set() and len(other.requests) > 13


def test_a_server_that_is_gone_for_good_ends_the_run(tmp_path: Path, server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a night is spent on failing a hundred thousand records one after the other."""
    monkeypatch.setattr(endpoint, "MOST_LOST", 5)
    server.script = {"c": [die]}
    with pytest.raises(Pard2Error, match="5 records in a row were not answered, at last: http.*Connection refused.*the same command goes on"):
        run(tmp_path / "out", prompts(*"abcdefghijklmnop"), endpoints(server, concurrency=1))
    assert said(tmp_path / "out") == {"a": "echo a", "b": "echo b"}
    assert (tmp_path / "out.failures.jsonl").read_text().count("Connection refused") == 5


def test_records_that_fail_on_their_own_do_not_end_the_run(tmp_path: Path, server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "MOST_LOST", 2)
    server.script = {letter: [status(400)] for letter in "abcd"} | {letter: [status(500)] * 3 for letter in "eg"}
    assert sorted(run(tmp_path / "out", prompts(*"abcdefgh"), endpoints(server, concurrency=1))) == list("abcdeg")


def test_a_stopped_run_asks_only_for_what_is_missing(tmp_path: Path, server: FakeEndpoint, other: FakeEndpoint) -> None:
    server.always = slowly(0.03)

    def interrupt_third(_records: int, _tokens: int) -> None:
        if len(said(tmp_path / "out")) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", prompts(*"abcdefgh"), endpoints(server, concurrency=1), progress=interrupt_third)
    time.sleep(0.1)
    assert len(server.requests) <= 4  # fails if a stopped run goes on asking
    assert list(said(tmp_path / "out")) == ["a", "b", "c"]
    run(tmp_path / "out", prompts(*"abcdefgh"), endpoints(other))
    assert other.asked == dict.fromkeys("defgh", 1)
    assert len(read_records(tmp_path / "out")) == 8


def test_stopping_does_not_wait_for_requests_under_way(server: FakeEndpoint) -> None:
    """Ctrl-C would seem dead for as long as --timeout."""
    server.script = {"b": [silence], "c": [status(503, Retry_After="60")]}
    began = time.monotonic()
    replies = endpoints(server, timeout=60.0).reply(prompts("a", "b", "c", "d"))
    assert sorted(record["id"] for record, _ in islice(replies, 2)) == ["a", "d"]
    replies.close()
    assert time.monotonic() - began < 5.0


def test_check_finds_what_is_not_served_and_lists_what_is(server: FakeEndpoint, other: FakeEndpoint) -> None:
    endpoints(server, other).check()
    other.models = ["org/one", "org/two"]
    with pytest.raises(Pard2Error, match=rf"`endpoint` {other.address} does not serve 'tiny'; name what it serves with `model`: org/one, org/two"):
        endpoints(server, other).check()


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (status(401, "no key"), r"`api_key`: a key is needed by .*401: no key"),
        (status(404), "most addresses end in /v1"),
        (status(503, "loading"), r"does not list its models \(503: loading\)"),
        (body("<html>"), "does not list its models"),
        (body('{"data": [1]}'), "does not list its models"),
        (silence, "no answer in time; is the server up"),
        (reset, "Connection reset by peer; is the server up"),
    ],
)
def test_check_says_in_one_line_what_is_wrong_with_an_address(server: FakeEndpoint, behaviour: Any, message: str) -> None:
    server.always = behaviour
    with pytest.raises(Pard2Error, match=message) as error:
        endpoints(server, timeout=0.3).check()
    assert "\n" not in str(error.value)


def test_check_of_a_server_that_is_down(server: FakeEndpoint) -> None:
    server.close()
    with pytest.raises(Pard2Error, match=rf"`endpoint` {server.address}: Connection refused; is the server up"):
        endpoints(server).check()


def test_check_of_a_server_that_speaks_no_tls(server: FakeEndpoint) -> None:
    with pytest.raises(Pard2Error, match="`endpoint` https://.*SSL.*; is the server up"):
        Endpoints([server.address.replace("http", "https")], "tiny", GREEDY).check()


@pytest.mark.parametrize(
    "address",
    [
        *("host:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1", "http://[::1/v1", "http://host/v1?x=1"),
        # What http.client or the name's encoding refuses when the first request is
        # made, each by its own error.
        *("http://a b/", "http://host/v1 x", f"http://{'a' * 64}/v1", "http://..a/v1", "http://a..b/v1"),
        *("http://a\nb/v1", "http://a\x1bb/v1", "http://host/é"),
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(Pard2Error, match="is not an address such as http://host:8000/v1"):
        Endpoints([address], "tiny", GREEDY)


def test_what_cannot_be_sent_is_refused_without_showing_the_key() -> None:
    with pytest.raises(Pard2Error, match="`api_key`") as error:
        Endpoints(["http://host"], "tiny", GREEDY, api_key="se\ncret")
    assert "cret" not in str(error.value)
    for field in ("seed", "chat_template_kwargs"):
        with pytest.raises(Pard2Error, match=f"`extra_body` may not hold '{field}'"):
            Endpoints(["http://host"], "tiny", GREEDY | {"extra_body": {field: {}}})
