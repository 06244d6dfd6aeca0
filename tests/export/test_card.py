"""The card of a draft: everything that is known, nothing that is not, and nothing that a name could break."""

import dataclasses
import json
from pathlib import Path

import pytest
import yaml

from bench_files import META, write_results
from pard2.checkpoints.draft_identity import draft_identity
from pard2.checkpoints.draft_report import DraftReport
from pard2.checkpoints.eagle3 import save_eagle3
from pard2.checkpoints.write import save_draft
from pard2.engine.methods import methods_for
from pard2.errors import Pard2Error
from pard2.export.base_model import BaseModel, base_model
from pard2.export.card import MARK, card, front_matter
from pard2.export.card_facts import CardFacts, Stated, gather_facts
from pard2.models.draft_kind import DraftKind
from tiny import pard_draft, tiny_draft, tiny_lm_draft, tiny_target
from tiny_eagle3 import tiny_eagle3

GOLDEN = Path(__file__).parent / "card.md"
RUN = {
    "step": 300,
    "config": {
        "method": "pard2",
        "target": {"name": "/models/target", "revision": None, "dtype": "bfloat16"},
        "draft": {"layers": [0, 1], "path": None},
        "data": {"train": ["/home/me/answers.jsonl", "org/more:train"]},
        "objective": {
            "draft_tokens": 6,
            "weighting": "cat",
            "ce_alpha": 0.1,
            "kd_alpha": 1.0,
            "retention": 0.7,
            "min_retention": 0.1,
            "feature_drop": 0.1,
        },
        "optimizer": {"kind": "muon", "lr": 0.006, "schedule": "linear", "min_lr_ratio": 0.02},
        "loop": {"rows_per_step": 4, "precision": "bfloat16", "output": "/home/me/runs/one"},
    },
    "meta": META | {"hardware": META["hardware"] | {"gpu": "NVIDIA H200"}},
    "data": {"conversations": 1000, "tokens": 500_000, "answer_tokens": 300_000},
    "trained": {"tokens": 1_500_000, "answer_tokens": 900_000, "slots": 4_000_000, "seconds": 7200.5, "processes": 2},
}


@pytest.fixture(scope="module")
def target():
    return tiny_target()


@pytest.fixture
def draft(target, tmp_path):
    save_draft(tiny_draft(target), tmp_path / "draft")
    return tmp_path / "draft"


def made(directory, *results, **stated):
    return card(gather_facts(directory, results, Stated(**stated)))


def front_of(text):
    assert text.startswith("---\n")
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_of_a_trained_and_measured_draft(draft, tmp_path):
    """To write it anew, look at what changed: `GOLDEN.write_text(text)`."""
    (draft / "training.json").write_text(json.dumps(RUN))
    (draft / "notes.md").write_text("It knows *nothing*.\n")
    file = write_results(
        tmp_path / "r.json", "/home/me/draft", draft_identity(draft), suites=("gsm8k", "it_s|odd"), batch_sizes=(1, 4), temperatures=(0.0, 1.0)
    )
    older = write_results(tmp_path / "older.json", "draft", None, methods=("pard2-td",), plan={"weights": "int8"})
    text = made(draft, file, older, name="me/draft", datasets=("org/more",), license="mit")
    assert text == GOLDEN.read_text()
    assert "/home/me" not in text and "/models" not in text and "/data" not in text


def test_what_is_not_known_is_told_as_known(draft):
    text = made(draft)
    assert front_of(text) == {
        "library_name": "pard2",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-model", "pard-2"],
    }
    assert "Not measured yet. `pard2 bench -t tiny-llama -d draft -s gsm8k" in text and "leaves a `training.json`" in text
    assert "Not stated; `pard2 card --license ID`" in text and "## Measured by" not in text and "## Notes" not in text
    assert text.endswith(MARK + "\n") and "None" not in text


def test_front_matter_breaks_at_a_name(draft):
    text = made(draft, name="a: b\n---\n# x", datasets=("org/one: two", "- three"), license="mit", target="org/t@v1")
    front = front_of(text)
    assert front["license"] == "mit" and front["base_model"] == "org/t" and front["datasets"] == ["org/one: two", "- three"]
    assert r"# a: b\\n---\\n# x" in text and "\n# x" not in text


def test_names_are_read_as_markdown(draft, tmp_path):
    nasty = "<b>|*x*_y_`z`](http://evil)&lt;"
    file = write_results(tmp_path / "r.json", "d", draft_identity(draft), suites=(nasty,))
    text = made(draft, file, name=nasty)
    shown = r"\<b\>\|\*x\*\_y\_\`z\`\](http://evil)\&lt;"
    assert f"# {shown}\n" in text and f"| {shown} (4) | PARD-2 TD |" in text
    for line in text.splitlines():
        if line.startswith("| ") and "PARD-2 T" in line:
            assert (
                len(line.replace("\\|", "").split("|"))
                == len(["", " suite ", " method ", " AL ", " by position ", ""]) + ("tokens/s" in line or "x (" in line) * 2
            )


# --- kinds ----------------------------------------------------------------------------------------


def siblings(target, directory):
    """A draft of each kind, with what its card must say."""
    save_draft(tiny_draft(target), directory / "projected")
    draft = tiny_draft(target)
    draft.projection = None
    save_draft(draft, directory / "layered")
    save_draft(pard_draft(target), directory / "masked")
    save_draft(tiny_lm_draft(), directory / "lm")
    save_eagle3(tiny_eagle3(target), directory / "eagle3")
    save_eagle3(tiny_eagle3(target), directory / "speculators", layout="speculators")


SAYS = {
    "projected": ("A PARD-2 draft: it proposes several tokens in one pass, with the target's features (TD)", "pard-2", "pard2-td"),
    "layered": ("A PARD-2 draft without its projection", "pard-2", "pard2-ti"),
    "masked": ("A PARD draft: it proposes several tokens in one pass", "pard", "pard"),
    "lm": ("An ordinary small language model, used as a draft", None, "vsd"),
    "eagle3": ("An EAGLE-3 draft: one layer on the target's features", "eagle-3", "eagle3"),
    "speculators": ("An EAGLE-3 draft: one layer on the target's features", "eagle-3", "eagle3"),
}


def test_each_kind_says_what_it_is_and_where_it_runs(target, tmp_path):
    siblings(target, tmp_path)
    for name, (opening, tag, method) in SAYS.items():
        file = write_results(tmp_path / f"{name}.json", name, draft_identity(tmp_path / name), methods=(method,))
        text = made(tmp_path / name, file)
        assert f"\n{opening}" in text, name
        assert front_of(text)["tags"] == ["speculative-decoding", "draft-model", *filter(None, [tag])], name
        assert text.count("| gsm8k (4) | ") == 2 and "| vLLM | " in text and "| SGLang | " in text, name
    assert "| layout | speculators' |" in made(tmp_path / "speculators") and "| layout | the plain one of EAGLE-3 |" in made(tmp_path / "eagle3")
    assert "has no projection" in made(tmp_path / "layered") and "has no projection" not in made(tmp_path / "projected")


# --- results of another draft ---------------------------------------------------------------------


def refused(*of, **stated):
    with pytest.raises(Pard2Error) as caught:
        made(*of, **stated)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_results_of_another_draft_are_told_of_this_one(draft, target, tmp_path):
    save_draft(tiny_draft(target, seed=2), tmp_path / "other")
    ours, theirs = draft_identity(draft), draft_identity(tmp_path / "other")
    other = write_results(tmp_path / "other.json", "draft", theirs)
    message = refused(draft, other)
    assert message.startswith("other.json is of another draft (draft), whose weights or config are not those of ") and "pard2 bench -d" in message
    several = {"new": "x", "old": "y"}
    both = write_results(tmp_path / "both.json", several, {"new": theirs, "old": ours}, methods={"new": ["pard2-td"], "old": ["pard2-ti"]})
    text = made(draft, both)
    assert "PARD-2 TI" in text and "PARD-2 TD |" not in text  # those of `old` alone
    neither = write_results(tmp_path / "neither.json", several, {"new": theirs, "old": theirs}, methods={"new": ["pard2-td"], "old": ["pard2-ti"]})
    assert "neither.json is of other drafts (new, old), of which none has the weights" in refused(draft, neither)


def test_an_older_file_of_several_drafts_is_guessed_at(draft, tmp_path):
    methods = {"a": ["pard2-td"], "b": ["pard2-ti"]}
    unsaid = write_results(tmp_path / "unsaid.json", {"a": "x", "b": "y"}, None, methods=methods)
    assert "unsaid.json does not say which of its drafts (a, b) " in refused(draft, unsaid)
    by_place = write_results(tmp_path / "place.json", {"a": "x", "b": str(draft)}, None, methods=methods)
    text = made(draft, by_place)
    assert "PARD-2 TI" in text and "PARD-2 TD |" not in text and "does not say which weights it had then" in text


def test_an_older_file_measured_what_this_draft_cannot_do(draft, target, tmp_path):
    save_draft(pard_draft(target), tmp_path / "pard")
    file = write_results(tmp_path / "r.json", "draft", None)
    assert "it measured pard2-td, which " in refused(tmp_path / "pard", file)
    save_eagle3(tiny_eagle3(target), tmp_path / "eagle3")
    assert "it measured pard2-ti, which " in refused(tmp_path / "eagle3", file)


def test_a_file_without_a_draft(draft, tmp_path):
    assert "measured no draft" in refused(draft, write_results(tmp_path / "r.json", None, None, methods=("ngram",)))
    identity = draft_identity(draft)
    assert "has no results of this draft yet" in refused(draft, write_results(tmp_path / "n.json", "d", identity, methods=("ngram",)))
    for damage in ({"draft": 5}, {"draft_identity": 5}, {"draft_identity": {"d": "x"}}, {"draft": ["d"]}):
        file = write_results(tmp_path / "d.json", "d", identity)
        held = json.loads(file.read_text())
        file.write_text(json.dumps(held | {"plan": held["plan"] | damage}))
        assert "is of another version of `pard2 bench`, or damaged" in refused(draft, file)
        file.unlink()


# --- what else is read ----------------------------------------------------------------------------


def test_a_record_of_something_else_is_believed(draft):
    for text in ("", "[]", "{}", '{"step": -1, "config": {}, "meta": {}}', '{"step": 1, "config": 5, "meta": {}}'):
        (draft / "training.json").write_text(text)
        assert "training.json is not what `pard2 train` writes, or damaged; move it away" in refused(draft)


def test_a_record_of_an_older_version_says_what_it_does_not_know(draft):
    (draft / "training.json").write_text(json.dumps({key: RUN[key] for key in ("step", "config", "meta")}))
    text = made(draft)
    assert "| trained on | 300 steps of 4 rows |" in text and "| time |" not in text and "None" not in text
    (draft / "training.json").write_text(json.dumps({"step": 1, "config": {"method": 5, "loop": 3, "draft": {"path": "/x/parent"}}, "meta": {}}))
    text = made(draft)
    assert "| starts from | parent |" in text and "| precision |" not in text and "| hardware |" not in text


def test_the_targets_licence_is_read_where_it_lies(draft, tmp_path):
    (tmp_path / "target").mkdir()
    for front, license in (
        ("---\nlicense: llama3.1\n---\n# x", "llama3.1"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n: :\n---\n", None),
        ("# no front\n", None),
        ("---\nlicense: 'a b'\n---\n", None),
    ):
        (tmp_path / "target" / "README.md").write_text(front)
        assert front_of(made(draft, target=str(tmp_path / "target"))).get("license") == license
    assert front_of(made(draft, target=str(tmp_path / "target"), license="other"))["license"] == "other"
    assert base_model("smollm2", given=False) == BaseModel("smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert "is no identifier of a licence" in refused(draft, license="Apache 2.0")
    assert "is neither a directory nor a hub id" in refused(draft, target="no such/model/here")


def test_a_name_in_a_file_is_taken_for_an_id_of_the_hub():
    for name in ("target", "../x", "..", "/abs/target", "a//b", "a--b/c", "-a/b"):
        assert base_model(name, given=False).hub_id is None, name
    assert base_model("org/target@v1", given=False).hub_id == "org/target"


def test_notes_that_cannot_be_read(draft, tmp_path):
    assert "cannot read" in refused(draft, notes=tmp_path / "none.md")
    (tmp_path / "n.md").write_bytes(b"\xff")
    assert "is not UTF-8 text" in refused(draft, notes=tmp_path / "n.md")
    (tmp_path / "n.md").write_text("## By hand\n\nHello.\n")
    text = made(draft, notes=tmp_path / "n.md")
    assert "\n\n## Notes\n\n## By hand\n\nHello.\n\n## Acceptance" in text and "leaves a `training.json`" not in text


def test_a_directory_that_is_no_draft(tmp_path):
    assert "config.json is missing" in refused(tmp_path)


def test_a_draft_that_lacks_a_kind_has_no_words():
    report = DraftReport(name="d", architecture="A", layers=1, hidden_size=1, vocab_size=1, parameters=1, dtype="F32", kind=DraftKind.LM)
    facts = CardFacts(
        name="d", report=report, methods=["vsd"], base=None, license=None, inherited=True, datasets=(), training=None, results=(), notes=None
    )
    for kind in DraftKind:
        if kind is not DraftKind.NONE:
            one = dataclasses.replace(facts, report=dataclasses.replace(report, kind=kind), methods=methods_for(kind))
            assert yaml.safe_load(front_matter(one).strip("-")) and "-t TARGET -d d" in card(one)
