"""The Python of README and docs runs and prints what it is said to print, on tiny random models."""

import re
from pathlib import Path

import pytest

import file_index
import pard2
from chat_tokenizer import END_ID, MASK_ID, VOCABULARY, byte_tokenizer
from pard2.engine import pair
from pard2.models.draft import Draft
from pard2.models.target import Target
from pard2.transformers import kept
from tiny import set_eos, tiny_draft, tiny_model

ROOT = Path(__file__).parent.parent
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_STATED = re.compile(r"# -> (.*)$", re.MULTILINE)


@pytest.fixture
def tiny_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is named, a tiny pair is loaded; all else about `Engine.from_pretrained` is real."""
    target = Target(tiny_model(layers=3, vocab=VOCABULARY, context=1024, initializer_range=0.2), byte_tokenizer(), "tiny")
    set_eos(target, END_ID)
    draft = tiny_draft(target, [0, 2], draft_tokens=6, projection=0.05, mask_token=MASK_ID)

    def load_target(_name: str, *_where: object) -> Target:
        return target

    def load_draft(_name: str, *_where: object, **_more: object) -> Draft:
        return draft

    monkeypatch.setattr(pair, "load_target", load_target)
    monkeypatch.setattr(pair, "load_draft", load_draft)
    monkeypatch.setattr(kept, "load_draft", load_draft)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_: byte_tokenizer())
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: target.model)


def blocks(path: Path) -> list[str]:
    """The fenced Python of a page, each block after empty lines, so that tracebacks name the page's lines."""
    text = path.read_text()
    return ["\n" * text.count("\n", 0, match.start(1)) + match[1] for match in _BLOCK.finditer(text)]


@pytest.mark.parametrize("page", ["README.md", "docs/python.md", "docs/transformers.md"])
@pytest.mark.usefixtures("tiny_pair")
def test_shown_python_fails_or_prints_something_else(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    found = blocks(ROOT / page)
    assert found
    for block in found:
        exec(compile(block, str(ROOT / page), "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        # A block states all that it prints, or nothing of it.
        stated = _STATED.findall(block)
        assert not stated or printed == stated, block.strip()


def test_a_public_name_is_missing_from_the_page() -> None:
    page = (ROOT / "docs/python.md").read_text()
    for name in pard2.__all__:
        assert hasattr(pard2, name)
        assert name.startswith("__") or f"`{name}`" in page, name


def test_the_list_of_files_is_not_that_of_the_source():
    """A file was added, renamed or described anew."""
    listed = file_index.listed(file_index.PAGE.read_text())
    assert listed == file_index.file_index(ROOT / "src/pard2"), "run: python benchmarks/file_index.py"
    assert listed.count(".py ") == len([path for path in (ROOT / "src/pard2").rglob("*.py") if path.name != "__init__.py"])


def test_a_benchmark_script_is_missing_from_the_page():
    page = (ROOT / "docs/bench.md").read_text()
    for script in (ROOT / "benchmarks").glob("*.py"):
        assert "__main__" not in script.read_text() or f"`{script.name}`" in page, script.name


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_link_leads_nowhere(page: Path):
    """A page or a heading was renamed. A heading's anchor: lower case, hyphens for spaces, no other signs."""
    for name, heading in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", page.read_text()):
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), name
        if heading:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], f"{name}#{heading}"
