"""Clients that leave, wait, crowd and linger; keys, limits, and the end of the server."""

import contextlib
import json
import socket
import time

import pytest

from pard2 import Engine
from running import HELLO, Brake, new_draft, new_target, running, wait_until

LONG = {"max_tokens": 400, "ignore_eos": True}


@pytest.fixture(scope="module")
def pair():
    target = new_target()
    return target, new_draft(target)


@pytest.fixture
def start(pair):
    """Starts a server over these models; only one decodes at a time."""
    with contextlib.ExitStack() as stack:

        def run(engine_options=None, **options):
            engine = Engine(*pair, **({"max_batch": 2} | (engine_options or {})))
            return stack.enter_context(running(engine, **options))

        yield run


def ask_long(server, path="/v1/chat/completions", **fields):
    connection = server.connect()
    server.ask(connection, "POST", path, {"messages": HELLO, "temperature": 0} | LONG | fields)
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_keeps_its_place(start, stream):
    server = start()
    brake = Brake(server.engine)
    connection = ask_long(server, stream=stream)
    wait_until(lambda: server.engine.idle is False)
    brake.pass_cycles(3)
    assert server.engine.free_cache_tokens < server.engine.cache_tokens
    if stream:
        assert connection.getresponse().read1(10)
    connection.sock.shutdown(socket.SHUT_RDWR)  # a response that is not closed would keep it open
    wait_until(lambda: not server.service._tickets)  # the loop knows
    brake.let_go()
    wait_until(server.is_empty)
    assert brake.cycles <= 4  # the last one had been waiting at the brake when it left
    assert server.metric("pard2:requests_abandoned_total") == 1
    wait_until(lambda: any(" 499 " in line for line in server.lines))


def test_one_who_leaves_while_it_waits_is_decoded_all_the_same(start):
    server = start({"max_batch": 1})
    brake = Brake(server.engine)
    first, second = ask_long(server), ask_long(server, stream=True)
    wait_until(lambda: len(server.service._tickets) == 2)
    brake.pass_cycles(1)
    wait_until(lambda: server.metric("vllm:num_requests_waiting") == 1)
    second.getresponse().close()
    second.close()
    wait_until(lambda: len(server.service._tickets) == 1)
    brake.pass_cycles(2)
    assert server.metric("vllm:num_requests_waiting") == 0 and server.metric("vllm:num_requests_running") == 1
    assert not server.engine._scheduler._waiting  # else a queue of those who left could grow behind one who stays
    first.close()
    brake.let_go()
    wait_until(server.is_empty)


def test_too_many_who_wait_are_sent_away_and_told_when_to_come_back(start):
    server = start({"max_batch": 1}, max_waiting=1)
    brake = Brake(server.engine)
    waiting = [ask_long(server), ask_long(server)]
    wait_until(lambda: len(server.service._tickets) == 2)
    reply = server.chat()
    assert (reply.status, reply.error["type"], reply.error["code"]) == (429, "rate_limit_error", "queue_full")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert server.metric("pard2:requests_refused_total", status="429") == 1
    brake.let_go()
    assert [one.getresponse().status for one in waiting] == [200, 200]
    wait_until(server.is_empty)
    assert server.chat().status == 200
    assert "at once" in server.chat(n=3).error["message"]


def test_a_key_is_needed_or_leaks(start):
    server = start(api_key="sesame", log_format="json")
    asked = {"messages": HELLO, "max_tokens": 2}
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "sesame"},
        {"Authorization": "Basic sesame"},
        {"Authorization": "Bearer \xff"},
    ):
        for method, path in (("POST", "/v1/chat/completions"), ("GET", "/v1/models"), ("POST", "/tokenize"), ("GET", "/nothing")):
            reply = server.send(method, path, asked if method == "POST" else None, **headers)
            assert (reply.status, reply.error["code"], reply.headers["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
    assert server.send("POST", "/v1/chat/completions", asked, Authorization="Bearer sesame").status == 200
    assert server.send("GET", "/health").status == server.send("GET", "/metrics").status == 200
    assert "sesame" not in server.log.getvalue() + repr(server.service.options)


def test_metrics_behind_the_key(start):
    server = start(api_key="sesame", protect_metrics=True)
    assert server.send("GET", "/metrics").status == 401 and server.send("GET", "/health").status == 200
    assert server.send("GET", "/metrics", Authorization="Bearer sesame").status == 200


def test_bodies_and_headers_without_end(start):
    server = start(max_body=1000)
    assert server.chat([{"role": "user", "content": "x" * 2000}]).status == 413
    with socket.create_connection(("127.0.0.1", server.port)) as raw:  # no length is told beforehand
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        raw.sendall(b"".join(b"3e8\r\n" + b"x" * 1000 + b"\r\n" for _ in range(3)))
        assert b" 413 " in raw.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(b"GET /health HTTP/1.1\r\n" + b"X: " + b"x" * 200_000)
        assert b" 400 " in raw.recv(1000)
    assert server.send("GET", "/health").status == 200 and server.is_empty()


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_takes_too_long_is_ended_and_told(start, stream):
    server = start(timeout=0.3)
    brake = Brake(server.engine)
    reply = server.chat(stream=stream, **LONG)
    error = reply.events[-1]["error"] if stream else reply.error
    assert (reply.status, error["code"], error["type"]) == (200 if stream else 504, "timeout", "timeout_error")
    brake.let_go()
    wait_until(server.is_empty)


def test_other_origins_are_told_that_they_may(start):
    closed, opened = start(), start(allow_origin=["https://chat.example"])
    asked = {"Origin": "https://chat.example", "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in closed.send("OPTIONS", "/v1/chat/completions", None, **asked).headers
    assert "access-control-allow-origin" not in closed.send("GET", "/v1/models", None, Origin="https://chat.example").headers
    assert opened.send("OPTIONS", "/v1/chat/completions", None, **asked).headers["access-control-allow-origin"] == "https://chat.example"
    assert "access-control-allow-origin" not in opened.send("GET", "/v1/models", None, Origin="https://evil.example").headers


# --- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_a_pass_that_fails_ends_more_than_those_who_took_part(start, stream):
    server = start({"max_batch": 1})
    brake = Brake(server.engine)
    waiting = [ask_long(server, stream=stream), ask_long(server, stream=False, max_tokens=8)]
    wait_until(lambda: len(server.service._tickets) == 2)
    brake.pass_cycles(2)
    decode = server.engine._cycle.decode

    def fails(sequences):
        server.engine._cycle.decode = decode
        raise RuntimeError("a kernel broke\nwith much to say")

    server.engine._cycle.decode = fails
    brake.let_go()
    replies = [one.getresponse() for one in waiting]
    first = replies[0].read().decode()
    error = json.loads(first.split("data: ")[-2] if stream else first)["error"]
    assert error["type"] == "server_error" and "a kernel broke" in error["message"] and "\n" not in error["message"]
    assert [one.status for one in replies] == [200 if stream else 500, 200]
    wait_until(server.is_empty)


def test_a_pass_that_always_fails_holds_nobody_for_ever(start):
    server = start()

    def fails():
        raise RuntimeError("no device")

    step, server.engine.step = server.engine.step, fails
    assert (server.chat().status, server.complete().status) == (500, 500)
    server.engine.step = step
    assert server.chat().status == 200 and server.is_empty()


def test_a_template_that_fails_is_its_requests_own_error(start, pair):
    tokenizer = pair[0].tokenizer
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
        server = start()
        assert "no system turn" in server.chat().error["message"] and server.complete().status == 200
        tokenizer.chat_template = None
        assert server.chat().error["code"] == "no_chat_template"
    finally:
        tokenizer.chat_template = before


# --- the end ------------------------------------------------------------------------------------------


def test_the_first_signal_lets_requests_end_and_takes_no_more(start):
    server = start(drain_seconds=20)
    brake = Brake(server.engine)
    running_one, idle = ask_long(server, max_tokens=8, stream=True), server.connect()
    server.ask(idle, "GET", "/health")
    idle.getresponse().read()
    wait_until(lambda: len(server.service._tickets) == 1)
    server.server.handle_exit(15, None)
    wait_until(lambda: not server.service.ready)
    with pytest.raises(OSError):  # nobody listens any more
        for _ in range(200):
            server.send("GET", "/health")
            time.sleep(0.01)
    brake.let_go()
    assert running_one.getresponse().read().decode().endswith("data: [DONE]\n\n")
    server._thread.join(20)
    assert not server._thread.is_alive() and server.service.cut_off == 0


@pytest.mark.parametrize(("signals", "drain"), [(1, 0.2), (2, 100)], ids=["time is over", "a second signal"])
def test_what_does_not_end_in_time_is_cut_off(start, signals, drain):
    server = start(drain_seconds=drain)
    brake = Brake(server.engine)
    stream, whole = ask_long(server, stream=True), ask_long(server)
    response = stream.getresponse()
    wait_until(lambda: len(server.service._tickets) == 2)
    for _ in range(signals):
        server.server.handle_exit(15, None)
    if signals == 1:
        assert json.loads(response.read().decode().split("data: ")[-2])["error"]["code"] == "stopped"
        assert whole.getresponse().status == 503
    server._thread.join(20)
    brake.let_go()
    assert not server._thread.is_alive() and server.service.cut_off == 2
