"""Every answer is the engine's own, whole or streamed, in both APIs."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from pard2 import Engine, SamplingParams
from pard2.engine.statistics import Step, TokenLogprob
from pard2.serve.told import Told
from running import HELLO, NAME, running

PROMPTS = ["Hello", "Why is the sky blue?", "Name three rivers."]


def said(plain, messages, **params):
    """What plain decoding says to a conversation, or to a raw text."""
    raw = isinstance(messages, str)
    return plain.generate([messages], SamplingParams(**({"max_tokens": 24} | params)), raw=raw)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_chat_is_answered_with_another_text_than_plain_decoding(server, plain, prompt):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt}]
    (expected,) = said(plain, messages)
    body = server.chat(messages).json
    (choice,) = body["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text} and choice["finish_reason"] == expected.finish_reason
    assert (body["object"], body["model"], choice["index"], choice["logprobs"]) == ("chat.completion", NAME, 0, None)
    usage = body["usage"]
    assert usage["prompt_tokens"] == expected.prompt_tokens and usage["completion_tokens"] == len(expected.token_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    details = usage["completion_tokens_details"]
    assert details["accepted_prediction_tokens"] > 0 and details["rejected_prediction_tokens"] >= 0


@pytest.mark.parametrize(
    "params", [{}, {"temperature": 1.0, "seed": 7, "top_p": 0.9}, {"stop": ["e"]}, {"temperature": 1.0, "seed": 3, "n": 3}], ids=str
)
def test_the_pieces_of_a_stream_do_not_add_up_to_the_whole(server, plain, params):
    expected = said(plain, HELLO, **params)
    body = server.chat(stream=True, stream_options={"include_usage": True}, **params).events
    *chunks, last = body
    assert last["choices"] == [] and all(chunk["usage"] is None for chunk in chunks)
    assert {(chunk["id"], chunk["object"], chunk["model"]) for chunk in body} == {(last["id"], "chat.completion.chunk", NAME)}
    for one in expected:
        own = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == one.index]
        assert own[0]["delta"]["role"] == "assistant" and all("role" not in choice["delta"] for choice in own[1:])
        assert "".join(choice["delta"].get("content", "") for choice in own) == one.text
        assert [choice["finish_reason"] for choice in own if choice["finish_reason"]] == [one.finish_reason] == [own[-1]["finish_reason"]]
    assert last["usage"] == server.chat(**params).json["usage"] | {"completion_tokens_details": last["usage"]["completion_tokens_details"]}
    assert last["usage"]["completion_tokens"] == sum(len(one.token_ids) for one in expected)


def test_a_stream_without_usage_holds_some(server):
    assert all("usage" not in chunk for chunk in server.chat(stream=True).events)


def test_completions_of_texts_and_token_ids(server, plain):
    texts, ids = ["Once upon", "The sea"], [[70, 71, 72], [80, 81]]
    expected = [said(plain, text)[0].text for text in texts]
    assert [choice["text"] for choice in server.complete(texts).json["choices"]] == expected
    assert server.complete(texts[0]).json["choices"][0]["text"] == expected[0]
    by_ids = [one.text for one in plain.generate(ids, SamplingParams(max_tokens=24))]
    assert [choice["text"] for choice in server.complete(ids).json["choices"]] == by_ids
    assert server.complete(ids[1]).json["choices"][0]["text"] == by_ids[1]
    two = server.complete(texts, n=2, temperature=1.0, seed=5).json
    assert [choice["index"] for choice in two["choices"]] == [0, 1, 2, 3] and two["object"] == "text_completion"
    assert [choice["text"] for choice in two["choices"]] == [one.text for t in texts for one in said(plain, t, n=2, temperature=1.0, seed=5)]
    assert two["usage"]["prompt_tokens"] == sum(map(len, texts))


def test_completions_end_after_sixteen_tokens_unless_more_are_asked_for(server):
    assert server.complete(max_tokens=..., ignore_eos=True).json["usage"]["completion_tokens"] == 16


def test_echo_tells_the_prompt_before_each_answer(server, plain):
    (expected,) = said(plain, "Once")
    assert server.complete(echo=True).json["choices"][0]["text"] == "Once" + expected.text
    assert server.complete([79, 110], echo=True).json["choices"][0]["text"].startswith(plain.tokenizer.decode([79, 110]))
    pieces = [choice["text"] for chunk in server.complete(echo=True, stream=True).events for choice in chunk["choices"]]
    assert "".join(pieces) == "Once" + expected.text and pieces[0].startswith("Once")


def test_log_probabilities_of_chats(server, plain):
    (expected,) = said(plain, HELLO, logprobs=2)
    for logprobs in (
        server.chat(logprobs=True, top_logprobs=2).json["choices"][0]["logprobs"]["content"],
        [
            one
            for chunk in server.chat(logprobs=True, top_logprobs=2, stream=True).events
            for c in chunk["choices"]
            for one in c["logprobs"]["content"]
        ],
    ):
        assert [one["token"] for one in logprobs] == [plain.tokenizer.decode([token]) for token in expected.token_ids]
        assert [one["logprob"] for one in logprobs] == pytest.approx([one.logprob for one in expected.logprobs], abs=1e-4)
        assert all(len(one["top_logprobs"]) == 2 and one["bytes"] == list(one["token"].encode()) for one in logprobs)
    assert server.chat(logprobs=True).json["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


def test_log_probabilities_of_completions(server, plain):
    (expected,) = said(plain, "Once", logprobs=3)
    whole = server.complete(logprobs=3).json["choices"][0]["logprobs"]
    streamed = [c["logprobs"] for chunk in server.complete(logprobs=3, stream=True).events for c in chunk["choices"]]
    for held in (whole, {name: [one for part in streamed for one in part[name]] for name in whole}):
        assert held["tokens"] == [plain.tokenizer.decode([token]) for token in expected.token_ids]
        assert held["token_logprobs"] == pytest.approx([one.logprob for one in expected.logprobs], abs=1e-4)
        assert held["text_offset"] == [sum(map(len, held["tokens"][:i])) for i in range(len(held["tokens"]))]
        assert all(token in top for token, top in zip(held["tokens"], held["top_logprobs"], strict=True))
    assert server.complete(logprobs=0).json["choices"][0]["logprobs"]["top_logprobs"][0] is None


@pytest.mark.parametrize(
    "extension", [{"method": "ar"}, {"method": "pard2-ti"}, {"draft_tokens": 2}, {"method": "pard2-td", "draft_tokens": "full"}, {}], ids=str
)
def test_another_way_of_drafting_says_another_text(server, plain, extension):
    (expected,) = said(plain, HELLO)
    body = server.chat(pard2=extension | {"trace": True}).json
    choice = body["choices"][0]
    assert choice["message"]["content"] == expected.text
    trace, stats = choice["pard2"]["trace"], choice["pard2"]["stats"]
    assert [token for step in trace for token in step["token_ids"]] == expected.token_ids
    assert "".join(piece for step in trace for piece in step["tokens"]) == expected.text
    assert sum(step["accepted"] for step in trace) == stats["accepted"] == body["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
    assert body["pard2"]["method"] == extension.get("method", "pard2-td")
    assert stats["proposed"] == 0 if extension.get("method") == "ar" else stats["proposed"] > 0
    most = {"full": 6}.get(extension.get("draft_tokens"), extension.get("draft_tokens", 6))
    assert max(step["proposed"] for step in trace) <= most
    streamed = server.chat(pard2=extension | {"trace": True}, stream=True).events
    steps = [c["pard2"] for chunk in streamed for c in chunk["choices"]]
    assert "".join(piece for step in steps for piece in step["tokens"]) == expected.text
    assert steps[-1]["stats"]["accepted"] == sum(step["accepted"] for step in steps) and all("stats" not in step for step in steps[:-1])


def test_other_engines_are_made_one_after_the_other_and_not_without_end(server):
    for draft_tokens in (1, 2, 3, 5, 6):
        assert server.chat(pard2={"draft_tokens": draft_tokens}).status == 200
    assert len(server.service.engines.all) == 1 + 3 and server.metric("pard2:engines") == 4
    cycles = server.metric("pard2:cycles_total")
    assert server.chat(pard2={"draft_tokens": 2}).status == 200 and server.metric("pard2:cycles_total") > cycles  # nor do counts go back


def test_a_token_that_cannot_be_has_a_logarithm_that_json_has(plain):
    never = float("-inf")
    step = Step(token_ids=(70,), accepted=0, proposed=0, seconds=0.0, logprobs=(TokenLogprob(70, never, ((71, -0.5), (72, never))),))
    told = Told(plain.tokenizer)
    for found in (told.chat_logprobs(step), told.completion_logprobs(step)):
        assert "-9999.0" in json.dumps(found, allow_nan=False)


def test_tools_and_template_arguments_reach_the_template(target, plain):
    source = "{% if tools %}{{ tools[0].function.name }}{% endif %}{{ mood }}{% for m in messages %}{{ m.content }}{% endfor %}"
    engine = Engine(target, method="ar")
    before, target.tokenizer.chat_template = target.tokenizer.chat_template, source
    tools = [{"type": "function", "function": {"name": "weather"}}]
    try:
        with running(engine, {"mood": "calm"}) as server:

            def tokens(**fields):
                return server.chat(max_tokens=1, **fields).json["usage"]["prompt_tokens"]

            text = "Hello"
            assert tokens() == len("calm" + text)
            assert tokens(chat_template_kwargs={"mood": "mad!!!", "unread": 1, "chat_template": "x"}) == len("mad!!!" + text)
            assert tokens(tools=tools) == tokens(tools=tools, tool_choice="auto") == len("weather" + "calm" + text)
            assert tokens(tools=tools, tool_choice="none") == len("calm" + text)
            said = server.send("POST", "/tokenize", {"messages": HELLO, "tools": tools, "chat_template_kwargs": {"mood": ""}}).json
            assert said["count"] == len("weather" + text)
    finally:
        target.tokenizer.chat_template = before


def test_texts_become_tokens_and_back(server, plain):
    ids = plain.tokenizer("sky ü")["input_ids"]
    said = server.send("POST", "/tokenize", {"prompt": "sky ü", "return_token_strs": True}).json
    assert said == {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": plain.tokenizer.convert_ids_to_tokens(ids)}
    assert server.send("POST", "/detokenize", {"tokens": ids}).json == {"prompt": "sky ü"}


def test_models(server):
    (model,) = server.send("GET", "/v1/models").json["data"]
    assert (model["id"], model["object"], model["owned_by"], model["max_model_len"]) == (NAME, "model", "pard2", 512)
    assert server.send("GET", f"/v1/models/{NAME}").json == model
    assert model["pard2"]["method"] == "pard2-td" and {"ar", "ngram", "pard2-ti"} < set(model["pard2"]["methods"])
    assert server.send("GET", "/v1/models/gpt-4").error["code"] == "model_not_found"
    assert server.chat(model=NAME).status == 200 and server.chat(model="gpt-4").status == 404


def test_a_chat_without_a_limit_ends_where_the_room_does(server):
    body = server.chat(max_tokens=..., ignore_eos=True).json
    assert body["usage"]["total_tokens"] == 512 + 1 and body["choices"][0]["finish_reason"] == "length"  # the last one is never read


def test_many_at_once_say_what_each_says_alone(server, plain):
    prompts = [f"{prompt} {i}" for i in range(4) for prompt in PROMPTS]
    expected = [said(plain, [{"role": "user", "content": prompt}])[0].text for prompt in prompts]
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda prompt: server.chat([{"role": "user", "content": prompt}]).json["choices"][0]["message"]["content"], prompts))
    assert found == expected
