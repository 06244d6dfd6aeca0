"""The chat page in a real browser; skipped where there is none."""

import json

import pytest

from browser import CHROMIUM, Browser
from pard2 import Engine
from pard2.serve.chat_page import FILES, PATHS
from running import Brake, new_draft, new_target, running, wait_until

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
ANSWERS = "document.querySelectorAll('.assistant')"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    '[x](https://e.example/"onmouseover="alert(1))',
    "`<img src=x onerror=alert(1)>`",
    "```html\n<img src=x onerror=alert(1)>\n```",
    "![x](https://e.example/x.png)",
    "<a href='javascript:alert(1)'>x</a>",
    "# <svg onload=alert(1)>",
    "- <iframe src=javascript:alert(1)>",
    "> <b>x</b>",
]


@pytest.fixture(scope="module")
def server():
    target = new_target()
    with running(Engine(target, new_draft(target), draft_tokens=4, max_batch=2)) as started:
        yield started


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture
def page(browser, server):
    browser.said.clear()
    browser.open(f"http://127.0.0.1:{server.port}/")
    browser.wait("document.getElementById('method').options.length > 0")
    browser.run("document.getElementById('max_tokens').value = 24")
    return browser


def test_the_page_is_all_that_it_loads_and_needs_no_key(server):
    for path, name in zip(PATHS, FILES, strict=True):
        reply = server.send("GET", path)
        assert reply.status == 200 and "default-src 'none'" in reply.headers["content-security-policy"], name
        code = "\n".join(line for line in reply.text.splitlines() if not line.startswith("//"))
        assert "http://" not in code and "innerHTML" not in code and "https://" not in code, name
    with running(server.engine, api_key="sesame") as locked:
        assert all(locked.send("GET", path).status == 200 for path in PATHS) and locked.send("GET", "/v1/models").status == 401


@needs_browser
def test_a_conversation_is_streamed_coloured_and_counted(page, server):
    page.type("Hello")
    page.enter()
    page.wait(f"{ANSWERS}.length === 1 && document.getElementById('send').disabled === false")
    expected = server.chat().json
    text = expected["choices"][0]["message"]["content"]
    assert page.run("[...document.querySelectorAll('.tokens span')].map((one) => one.textContent).join('')") == text
    accepted = expected["usage"]["completion_tokens_details"]["accepted_prediction_tokens"]
    assert 0 < page.run("document.querySelectorAll('.tokens .drafted').length") <= accepted
    assert float(page.run("document.getElementById('length').textContent")) > 1 and page.run("document.querySelectorAll('#positions i').length") == 4
    assert "pard2-td, length" in page.run("document.querySelector('.note').textContent")
    page.run("document.getElementById('colours').click()")
    assert page.run("getComputedStyle(document.querySelector('.tokens')).display") == "none"
    page.run("document.getElementById('colours').click()")
    # Another way of drafting, and a line break within a turn.
    page.run("document.getElementById('method').value = 'ar'; document.getElementById('said').focus()")
    page.type("one")
    page.enter(shift=True)
    page.type("two")
    page.enter()
    page.wait(f"{ANSWERS}.length === 2 && document.getElementById('send').disabled === false")
    assert page.run("[...document.querySelectorAll('.user .words')].at(-1).textContent") == "one\ntwo"
    assert page.run(f"{ANSWERS}[1].querySelectorAll('.drafted').length") == 0
    page.run("document.getElementById('again').click()")
    page.wait("document.getElementById('send').disabled === false")
    assert page.run(f"{ANSWERS}.length") == 2 and not page.said


@needs_browser
def test_escape_stops_an_answer_and_frees_its_place(page, server):
    brake = Brake(server.engine)
    page.run("document.getElementById('max_tokens').value = 400; document.getElementById('said').focus()")
    page.type("Hello")
    page.enter()
    wait_until(lambda: len(server.service._tickets) == 1)
    brake.pass_cycles(3)
    page.wait("document.querySelectorAll('.tokens span').length > 0")
    page.press("Escape", 27)
    page.wait("document.querySelector('.note').textContent === 'stopped'")
    brake.let_go()
    wait_until(server.is_empty)
    del server.engine.step
    assert not page.said


@needs_browser
def test_what_the_server_refuses_is_shown(page):
    page.run("document.getElementById('top_p').value = 5; document.getElementById('said').focus()")
    page.type("Hello")
    page.enter()
    page.wait("document.querySelector('.wrong')?.textContent.includes('top_p')")


@needs_browser
@pytest.mark.parametrize("said", HOSTILE)
def test_what_a_model_says_is_never_more_than_text(page, said):
    step = {"tokens": [said], "token_ids": [1], "accepted": 0, "proposed": 0}
    chunk = {"choices": [{"index": 0, "delta": {"content": said}, "finish_reason": "stop", "pard2": step}], "pard2": {"method": "ar"}}
    body = f"data: {json.dumps(chunk)}\n\ndata: [DONE]\n\n"
    page.run(f"window.fetch = async () => new Response({json.dumps(body)}); window.alert = () => {{ document.title = 'run' }}; 0")
    page.run("document.getElementById('said').focus()")
    page.type("Hello")
    page.enter()
    page.wait(f"{ANSWERS}.length === 1 && document.querySelector('.note').textContent.includes('stop')")
    page.run("document.getElementById('colours').click()")
    page.wait("document.querySelector('.words.answer').childNodes.length > 0")
    shown = page.run("[...document.querySelectorAll('.words.answer *, .tokens *')].map((one) => one.tagName.toLowerCase())")
    assert set(shown) <= {"p", "span", "code", "pre", "a", "h3", "ul", "li", "blockquote", "em", "strong"}, shown
    links = page.run("[...document.querySelectorAll('.words.answer a')].map((one) => one.href)")
    assert all(link.startswith("https://e.example/") for link in links)
    attributes = page.run("[...document.querySelectorAll('.words.answer *')].flatMap((one) => one.getAttributeNames())")
    assert set(attributes) <= {"href", "rel", "target"} and page.run("document.title") == "pard2"
    if "`" not in said and "(http" not in said:
        assert page.run("document.querySelector('.words.answer').textContent") == said.lstrip("#->").lstrip() or said.startswith(("<", "!", "["))


@needs_browser
def test_markdown_is_shown_as_such(page):
    text = "# One\n\nTwo **bold** and *it* and `a*b*`.\n\n1. x\n2. y\n\n```py\nif a < b:\n    c\n```\n> q\n\n---\n[l](https://e.example/a)"
    page.run(f"import('./page/markdown.js').then((m) => document.body.replaceChildren(m.markdown({json.dumps(text)})))")
    html = page.run("document.body.innerHTML")
    assert html == (
        '<h3>One</h3><p>Two <strong>bold</strong> and <em>it</em> and <code>a*b*</code>.</p><ol start="1"><li>x</li><li>y</li></ol>'
        "<pre><code>if a &lt; b:\n    c</code></pre><blockquote>q</blockquote><hr>"
        '<p><a href="https://e.example/a" rel="noopener noreferrer nofollow" target="_blank">l</a></p>'
    )


@needs_browser
def test_a_narrow_window_needs_no_sideways_scrolling(page):
    page.call("Emulation.setDeviceMetricsOverride", width=320, height=640, deviceScaleFactor=1, mobile=False)
    try:
        assert page.run("document.documentElement.scrollWidth") <= 320
    finally:
        page.call("Emulation.clearDeviceMetricsOverride")
