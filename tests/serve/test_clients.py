"""Clients that others wrote get the text that `pard2 generate` gives."""

import asyncio
import json
import os
import shutil
import subprocess

import openai
import pytest

from pard2 import Engine, SamplingParams
from running import HELLO, NAME, Brake, new_draft, new_target, running, wait_until

PARAMS = {"model": NAME, "messages": HELLO, "temperature": 0, "max_completion_tokens": 24}

NODE_MODULES = "PARD2_NODE_MODULES"


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def expected(plain):
    return plain.generate([HELLO], SamplingParams(max_tokens=24))[0]


def test_openai_whole_and_streamed(client, expected):
    whole = client.chat.completions.create(**PARAMS)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (expected.text, expected.finish_reason)
    assert whole.usage.completion_tokens == len(expected.token_ids) and whole.usage.completion_tokens_details.accepted_prediction_tokens > 0
    chunks = list(client.chat.completions.create(**PARAMS, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected.text
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens and chunks[-1].choices == []
    traced = client.chat.completions.create(**PARAMS, extra_body={"pard2": {"method": "ar", "trace": True}})
    assert traced.choices[0].message.content == expected.text and traced.choices[0].pard2["stats"]["proposed"] == 0
    logprobs = client.chat.completions.create(**PARAMS, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert len(logprobs) == len(expected.token_ids) and logprobs[0].top_logprobs[0].token == logprobs[0].token


def test_openai_completions_and_models(client, plain):
    texts = ["Once", "The sea"]
    found = client.completions.create(model=NAME, prompt=texts, temperature=0, max_tokens=24)
    assert [one.text for one in found.choices] == [one.text for one in plain.generate(texts, SamplingParams(max_tokens=24), raw=True)]
    streamed = client.completions.create(model=NAME, prompt="Once", temperature=0, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == found.choices[0].text
    assert [model.id for model in client.models.list()] == [NAME] and client.models.retrieve(NAME).owned_by == "pard2"


def test_openai_async_and_a_stream_that_is_left(server, expected):
    async def run():
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
            several = await asyncio.gather(*(client.chat.completions.create(**PARAMS) for _ in range(6)))
            assert [one.choices[0].message.content for one in several] == [expected.text] * 6
            stream = await client.chat.completions.create(**PARAMS | {"max_completion_tokens": 400}, stream=True, extra_body={"ignore_eos": True})
            async for _ in stream:
                break
            await stream.close()

    asyncio.run(run())
    wait_until(server.is_empty)


def test_openai_raises_what_it_raises_elsewhere():
    target = new_target()
    engine = Engine(target, new_draft(target), max_batch=1)
    with running(engine, api_key="sesame", max_waiting=0) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client, pytest.raises(openai.AuthenticationError, match="API key"):
            client.chat.completions.create(**PARAMS)
        with openai.OpenAI(base_url=url, api_key="sesame", max_retries=0) as client:
            with pytest.raises(openai.BadRequestError, match="top_p") as refusal:
                client.chat.completions.create(**PARAMS, top_p=5)
            assert refusal.value.param == "top_p"
            with pytest.raises(openai.NotFoundError, match="gpt-4"):
                client.chat.completions.create(**PARAMS | {"model": "gpt-4"})
            brake = Brake(engine)
            stream = client.chat.completions.create(**PARAMS, stream=True)
            wait_until(lambda: len(server.service._tickets) == 1)
            with pytest.raises(openai.RateLimitError):
                client.chat.completions.create(**PARAMS)
            step, engine._cycle.decode = engine._cycle.decode, None  # the next cycle fails
            brake.let_go()
            with pytest.raises(openai.APIError, match="decoding stopped"):
                list(stream)
            engine._cycle.decode = step


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(server, expected):
    body = json.dumps({"messages": HELLO, "temperature": 0, "max_tokens": 24})
    url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
    words = ["curl", "-sS", "--fail", "--noproxy", "*", url, "-H", "Content-Type: application/json", "-d"]
    assert json.loads(subprocess.check_output([*words, body]))["choices"][0]["message"]["content"] == expected.text
    streamed = subprocess.check_output([*words, body.replace("{", '{"stream": true, ', 1), "-N"]).decode()
    assert streamed.count("data: ") > 2 and streamed.endswith("data: [DONE]\n\n")


# --- clients that are tried where they are installed --------------------------------------------------


def test_litellm(server, expected, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks the network
    litellm = pytest.importorskip("litellm")
    asked = {"model": f"openai/{NAME}", "api_base": f"http://127.0.0.1:{server.port}/v1", "api_key": "none", "messages": HELLO, "temperature": 0}
    assert litellm.completion(**asked, max_tokens=24).choices[0].message.content == expected.text
    streamed = litellm.completion(**asked, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == expected.text
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**asked | {"messages": [{"role": "user", "content": "x" * 2000}]})


def test_langchain(server, expected):
    langchain_openai = pytest.importorskip("langchain_openai")
    chat = langchain_openai.ChatOpenAI(model=NAME, base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", temperature=0, max_tokens=24)
    assert chat.invoke("Hello").content == "".join(part.content for part in chat.stream("Hello")) == expected.text


_SCRIPT = """
const OpenAI = require("openai");
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const body = JSON.parse(process.argv[3]);
(async () => {
  const whole = (await client.chat.completions.create(body)).choices[0].message.content;
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) streamed += chunk.choices[0]?.delta?.content ?? "";
  const error = await client.chat.completions.create({ ...body, top_p: 5 }).catch((error) => `${error.status} ${error.param}`);
  console.log(JSON.stringify([whole, streamed, error]));
})();
"""


@pytest.mark.skipif(shutil.which("node") is None or NODE_MODULES not in os.environ, reason=f"{NODE_MODULES} does not say where npm's openai is")
def test_javascript(server, expected, tmp_path):
    (tmp_path / "script.cjs").write_text(_SCRIPT)
    words = ["node", str(tmp_path / "script.cjs"), f"http://127.0.0.1:{server.port}/v1", json.dumps(PARAMS)]
    found = json.loads(subprocess.check_output(words, env=os.environ | {"NODE_PATH": os.environ[NODE_MODULES]}, timeout=60))
    assert found == [expected.text, expected.text, "400 top_p"]
