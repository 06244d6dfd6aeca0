"""What cannot be answered is refused by name, in OpenAI's shape, and leaves nothing behind."""

import json
import re

import pytest

from running import CONTEXT, HELLO

USER = HELLO[0]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
AUDIO = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}]

# Fields of a chat, the field that is named, and what the message says.
CHATS = [
    ({"best": 1}, "best", "does not know it"),
    ({"n_probs": 5}, "n_probs", "not supported"),
    ({"functions": []}, "functions", "tools"),
    ({"audio": {}}, "audio", "text"),
    ({"suffix": "x"}, "suffix", "not supported"),
    ({"reasoning_effort": "low"}, "reasoning_effort", "chat_template_kwargs"),
    ({"chat_template": "{{ x }}"}, "chat_template", "--chat-template"),
    ({"guided_json": {}}, "guided_json", "form"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
    ({"tool_choice": "required"}, "tool_choice", "none or auto"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", "none or auto"),
    ({"modalities": ["audio"]}, "modalities.0", "text"),
    ({"continue_final_message": True}, "continue_final_message", ""),
    ({"echo": True}, "echo", ""),
    ({"best_of": 2}, "best_of", ""),
    ({"messages": ...}, "messages", "missing"),
    ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "list"),
    ({"messages": ["hi"]}, "messages", "message 1"),
    ({"messages": [{"content": "x"}]}, "messages", "role"),
    ({"messages": [USER, {"role": "user"}]}, "messages", "message 2"),
    ({"messages": IMAGE}, "messages", "'image_url'"),
    ({"messages": AUDIO}, "messages", "'input_audio'"),
    ({"messages": [{"role": "user", "content": "x" * 2000}]}, "messages", f"context .* {CONTEXT}"),
    ({"tools": {"a": 1}}, "tools", "list"),
    ({"chat_template_kwargs": [1]}, "chat_template_kwargs", "dict"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs", "itself"),
    ({"max_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": -5}, "max_tokens", "at least 1"),
    ({"max_completion_tokens": 0}, "max_tokens", "at least 1"),
    ({"max_tokens": "5"}, "max_tokens", "integer"),
    ({"max_tokens": 1.5}, "max_tokens", "integer"),
    ({"max_tokens": True}, "max_tokens", "integer"),
    ({"temperature": -1}, "temperature", "number"),
    ({"temperature": "hot"}, "temperature", "number"),
    ({"temperature": [0]}, "temperature", "number"),
    ({"top_p": 0}, "top_p", "above 0"),
    ({"top_p": 1.1}, "top_p", "at most 1"),
    ({"top_k": -2}, "top_k", "off"),
    ({"min_p": 2}, "min_p", "0"),
    ({"seed": -1}, "seed", "whole number"),
    ({"seed": 2**63}, "seed", "whole number|integer"),
    ({"n": 0}, "n", "1 to"),
    ({"n": 10**6}, "n", "1 to"),
    ({"n": 100}, "n", "at once"),
    ({"stop": 5}, "stop", "string"),
    ({"stop": [1]}, "stop", "string"),
    ({"stop": ""}, "stop", "1 to"),
    ({"stop": ["x"] * 17}, "stop", "at most"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids", "vocabulary"),
    ({"logit_bias": {"x": 1}}, "logit_bias", "token id"),
    ({"logit_bias": {"9999": 1}}, "logit_bias", "vocabulary"),
    ({"logit_bias": {"1": 1000}}, "logit_bias", "-100 to 100"),
    ({"logit_bias": [1]}, "logit_bias", "dict"),
    ({"presence_penalty": 3}, "presence_penalty", "-2 to 2"),
    ({"frequency_penalty": -3}, "frequency_penalty", "-2 to 2"),
    ({"repetition_penalty": 0}, "repetition_penalty", "number"),
    ({"min_tokens": 100}, "min_tokens", "no more"),
    ({"logprobs": 5}, "logprobs", "bool"),
    ({"top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
    ({"stream": "yes"}, "stream", "bool"),
    ({"stream_options": {"include": 1}}, "stream_options.include", "not supported"),
    ({"model": 5}, "model", "string"),
    ({"pard2": {"speed": 1}}, "pard2.speed", "not supported"),
    ({"pard2": {"method": "fast"}}, "pard2", "not one of"),
    ({"pard2": {"method": "vsd", "draft_tokens": 0}}, "pard2", "at least 1"),
    ({"pard2": {"method": "eagle3"}}, "pard2", "EAGLE-3"),
    ({"pard2": {"draft_tokens": 100}}, "pard2", "trained for 6"),
    ({"pard2": {"draft_tokens": "many"}}, "pard2.draft_tokens", ""),
]
COMPLETIONS = [
    ({"prompt": ...}, "prompt", "missing"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": []}, "prompt", "empty"),
    ({"prompt": [[]]}, "prompt", "empty"),
    ({"prompt": 5}, "prompt", "string|list"),
    ({"prompt": {"a": 1}}, "prompt", "string|list"),
    ({"prompt": ["a", 1]}, "prompt", "list of either"),
    ({"prompt": [1, 2.5]}, "prompt", "list of either"),
    ({"prompt": [None]}, "prompt", "list of either"),
    ({"prompt": [True]}, "prompt", "whole numbers"),
    ({"prompt": [10**6]}, "prompt", "token id"),
    ({"prompt": [-1]}, "prompt", "token id"),
    ({"prompt": ["a"] * 100}, "n", "at once"),
    ({"prompt": [7] * (CONTEXT + 1)}, "prompt", "context"),
    ({"echo": True, "logprobs": 1}, "echo", "without"),
    ({"logprobs": True}, "logprobs", "integer"),
    ({"logprobs": 21}, "logprobs", "20"),
    ({"suffix": "x"}, "suffix", "end"),
    ({"messages": HELLO}, "messages", "not supported"),
    ({"tools": []}, "tools", "not supported"),
]


def check(server, reply, param, says):
    error = reply.error
    assert (reply.status, error["type"]) == (400, "invalid_request_error"), reply
    assert error["param"] == param and re.search(says, error["message"]), error
    assert server.is_empty()


@pytest.mark.parametrize(("fields", "param", "says"), CHATS, ids=lambda value: str(value)[:40])
def test_a_chat_is_refused_without_naming_the_field(server, fields, param, says):
    check(server, server.chat(**fields), param, says)


@pytest.mark.parametrize(("fields", "param", "says"), COMPLETIONS, ids=lambda value: str(value)[:40])
def test_a_completion_is_refused_without_naming_the_field(server, fields, param, says):
    check(server, server.complete(**fields), param, says)


def test_a_prompt_that_does_not_fit_has_the_code_that_clients_look_for(server):
    error = server.chat([{"role": "user", "content": "x" * 2000}]).error
    assert error["code"] == "context_length_exceeded" and "maximum context length" in error["message"]
    # It reads the prompt to its end, but there is no place for an answer.
    assert server.complete([7] * CONTEXT, max_tokens=1).status == 200


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nonsense", "not JSON"),
        ("[1]", "no JSON object"),
        ("5", "no JSON object"),
        ("null", "no JSON object"),
        (b"\xff\xfe{}", "UTF-8"),
        ('{"messages": "\\ud83d"}', "surrogate"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ('{"messages": ' + "[" * 5000 + "]" * 5000 + "}", "nested|messages"),
        ('{"n": ' + "9" * 10_000 + "}", "digits"),
        ('{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', "temperature"),
        ('{"' + "x" * 5000 + '": 1, "messages": []}', "not supported"),
        ('{"a\\u0000\\nb": 1, "messages": []}', "not supported"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_malformed_body_is_no_error_of_one_line(server, body, says):
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        reply = server.send("POST", path, body)
        assert reply.status == 400 and len(reply.error["message"]) < 300, reply
        if path == "/v1/chat/completions":
            assert re.search(says, reply.error["message"]), reply


def test_paths_methods_and_types_that_there_are_not(server):
    assert server.send("GET", "/v1/embeddings").status == 404 and "/v1/embeddings" in server.send("GET", "/v1/embeddings").error["message"]
    reply = server.send("GET", "/v1/chat/completions")
    assert reply.status == 405 and reply.error and reply.headers["allow"] == "POST"
    body = json.dumps({"messages": HELLO})
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):  # which a page of another origin may send unasked
        assert server.send("POST", "/v1/chat/completions", body, Content_Type=kind).status == 415
    assert server.send("POST", "/v1/chat/completions", body, Content_Type="application/json; charset=utf-8").status == 200
    assert server.send("POST", "/tokenize", {}).error["param"] == "prompt"
    assert "vocabulary" in server.send("POST", "/detokenize", {"tokens": [10**6]}).error["message"]
    for path in ("/docs", "/openapi.json", "/redoc"):
        assert server.send("GET", path).status == 404


@pytest.mark.parametrize("field", ["user", "metadata", "store", "service_tier", "prediction", "parallel_tool_calls", "safety_identifier"])
def test_a_field_that_changes_nothing_is_refused(server, field):
    assert server.chat(**{field: {"a": 1}}).status == 200


def test_null_is_no_value(server):
    fields = ("top_p", "stop", "seed", "tools", "logit_bias", "response_format", "unknown", "pard2", "n")
    assert server.chat(**dict.fromkeys(fields)).status == 200
    assert server.chat(response_format={"type": "text"}, modalities=["text"]).status == 200
