"""What the server tells about itself: metrics, a line for each request, ids."""

import json
import logging

import pytest

from pard2 import Engine
from pard2.serve.access_log import AccessLog
from running import HELLO, new_draft, new_target, running, wait_until

SECRET = "Mellon is the word"


@pytest.fixture(scope="module")
def engine():
    target = new_target()
    return Engine(target, new_draft(target), draft_tokens=4, max_batch=2)


def test_metrics_are_counted_by_the_names_of_vllm(engine):
    with running(engine) as server:
        whole = server.chat(n=2, temperature=1.0, seed=1).json
        assert server.chat(stream=True).events
        server.chat(temperature=-1)
        usage, one = whole["usage"], server.chat().json["usage"]
        traced = server.chat(pard2={"trace": True}).json
        trace = [step for step in traced["choices"][0]["pard2"]["trace"] if step["proposed"]]
        text = server.send("GET", "/metrics").text
        for name in ("vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds", "vllm:request_time_per_output_token_seconds"):
            assert server.metric(f"{name}_count") == 5, text
        assert sum(server.metric("vllm:request_success_total", finished_reason=reason) for reason in ("stop", "length")) == 5
        assert server.metric("vllm:prompt_tokens_total") == 5 * usage["prompt_tokens"] == 5 * one["prompt_tokens"]
        said = usage["completion_tokens"] + 2 * one["completion_tokens"] + traced["usage"]["completion_tokens"]
        assert server.metric("vllm:generation_tokens_total") == said
        drafts, proposed, accepted = (server.metric(f"vllm:spec_decode_num_{what}_total") for what in ("drafts", "draft_tokens", "accepted_tokens"))
        assert server.metric("vllm:inter_token_latency_seconds_count") >= drafts >= len(trace) and proposed >= drafts and accepted <= proposed
        positions = [server.metric("vllm:spec_decode_num_accepted_tokens_per_pos_total", position=str(place)) for place in range(4)]
        assert sum(positions) == accepted and positions == sorted(positions, reverse=True) and positions[0] > 0
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"):
            assert server.metric(name, model_name="tiny", engine="0") == 0
        assert server.metric("pard2:cycles_total") > 0 and server.metric("pard2:pass_seconds_total", part="verify") > 0
        assert server.metric("pard2:requests_total", method="pard2-td") == 5
        assert server.metric("pard2:requests_refused_total", status="400") == 1


def test_a_request_has_one_id(engine):
    with running(engine) as server:
        assert server.chat().headers["x-request-id"] != server.chat().headers["x-request-id"]
        body = {"messages": HELLO, "max_tokens": 2}
        reply = server.send("POST", "/v1/chat/completions", body, X_Request_Id="team-a/42")
        assert reply.headers["x-request-id"] == "team-a/42"
        for given in ("a b", "x" * 200, "é", 'a"b'):
            assert server.send("GET", "/nothing", None, X_Request_Id=given.encode("latin-1")).headers["x-request-id"] != given
        wait_until(lambda: any("request_id=team-a/42" in line for line in server.lines))


def test_a_line_of_json_for_each_request_says_how_it_went_and_no_word_of_it(engine):
    with running(engine, log_format="json") as server:
        usage = server.chat([{"role": "user", "content": SECRET}], stream=True, stream_options={"include_usage": True}).events[-1]["usage"]
        server.chat([{"role": "user", "content": SECRET}], top_p=5)
        server.send("GET", "/health"), server.send("GET", "/metrics")
        server.send("GET", "/nothing%0aforged")
        wait_until(lambda: len(server.lines) == 3)
    first, second, third = map(json.loads, server.lines)
    assert (first["http_method"], first["path"], first["status"], first["stream"]) == ("POST", "/v1/chat/completions", 200, True)
    assert (first["prompt_tokens"], first["completion_tokens"]) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert first["accepted"] == usage["completion_tokens_details"]["accepted_prediction_tokens"] and first["method"] == "pard2-td"
    assert 0 < first["first_token_seconds"] <= first["seconds"] and first["client"] == "127.0.0.1" and first["time"].startswith("20")
    assert second["status"] == 400 and "top_p" in second["error"] and third["status"] == 404
    assert "Mellon" not in server.log.getvalue()


def test_prompts_are_logged_where_that_is_asked_for(engine):
    with running(engine, log_format="json", log_prompts=True) as server:
        answer = server.chat([{"role": "user", "content": SECRET}]).json["choices"][0]["message"]["content"]
        wait_until(lambda: len(server.lines) == 1)
    (line,) = map(json.loads, server.lines)
    assert SECRET in line["prompts"][0] and line["answers"] == [answer]


def test_a_text_line_cannot_be_forged_and_a_closed_log_stops_nobody(tmp_path):
    file = tmp_path / "log"
    with open(file, "w") as stream:
        AccessLog("text", stream).write(
            {"client": "1.2.3.4", "http_method": "GET", "path": "/\n2026 x GET / 200", "status": 404, "error": "\x1b[31m", "x": None}
        )
    (line,) = file.read_text().splitlines()
    assert " 1.2.3.4 GET /\\n2026 x GET / 200 404 error=\\x1b[31m" in line
    AccessLog("json", stream).write({"status": 200})


def test_a_mistake_of_the_server_is_told_in_the_same_shape(engine, caplog):
    with running(engine) as server:
        server.service.preparer.chat = lambda body: 1 / 0
        with caplog.at_level(logging.CRITICAL):
            reply = server.chat()
        assert (reply.status, reply.error["type"], reply.error["code"]) == (500, "server_error", "internal")
        assert "division" not in reply.text and server.complete().status == 200
        wait_until(server.is_empty)
