"""`generate`: what it prints, and every way in which a user can get it wrong."""

import io
import json
import shutil

import pytest
import torch
from rich.console import Console

from chat_tokenizer import byte_tokenizer
from conftest import CONTEXT
from pard2.checkpoints.loading import load_target
from pard2.checkpoints.write import save_draft
from pard2.cli import console
from pard2.cli import generate as command
from pard2.data.chat import prompt_ids
from pard2.engine import pair
from pard2.engine.engine import Engine
from pard2.engine.sampling import SamplingParams
from pard2.errors import Pard2Error
from tiny import greedy, tiny_lm_draft


@pytest.fixture
def ask(pard2, target_directory):
    """Says hello to the tiny target in float32."""
    return lambda *options: pard2("generate", "-t", target_directory, "-p", "hello", "--dtype", "float32", "--device", "cpu", *options)


@pytest.fixture
def run(pard2, target_directory):
    """As `ask`, without a prompt."""
    return lambda *options: pard2("generate", "-t", target_directory, "--dtype", "float32", "--device", "cpu", *options)


def test_json_has_the_promised_keys_and_the_targets_text(ask, target_directory, draft_directory):
    target = load_target(str(target_directory), "float32", "cpu")
    prompt = prompt_ids(target.tokenizer, [{"role": "user", "content": "hello"}])
    expected = greedy(target, prompt, 20)
    for method in ("ar", "vsd", "pard", "pard2-ti", "pard2-td"):
        result = ask("-d", draft_directory, "-m", method, "--max-new-tokens", 20, "--json")
        assert result.code == 0, result
        answer = json.loads(result.out)
        assert list(answer) == ["text", "token_ids", "prompt_tokens", "completion_tokens", "finish_reason", "method", "commits", "stats"]
        assert answer["token_ids"] == expected and answer["method"] == method
        assert answer["prompt_tokens"] == len(prompt) and answer["completion_tokens"] == len(expected)
        assert answer["finish_reason"] == "length"
        wanted = "cycles proposed accepted acceptance_length accepted_by_position accepted_per_cycle prefill_seconds decode_seconds tokens_per_second"
        assert set(wanted.split()) <= set(answer["stats"])


def test_json_alone_is_on_standard_output(ask, draft_directory):
    result = ask("-d", draft_directory, "--json")
    assert result.out.count("\n") == 1 and json.loads(result.out)["method"] == "pard2-td"


def test_text_goes_to_standard_output_and_the_summary_does_not(ask):
    result = ask("--max-new-tokens", 5)
    assert result.code == 0 and "tokens/s" in result.err and "tokens/s" not in result.out


def test_streamed_text_is_shown_as_it_is_made_and_is_the_same_text(ask, draft_directory, monkeypatch):
    options = ("-d", draft_directory, "--draft-tokens", 4, "--max-new-tokens", 30)
    events = []
    echo, step = command.typer.echo, Engine.step
    monkeypatch.setattr(command.typer, "echo", lambda text="", nl=True: (events.append("text" if text else "end"), echo(text, nl=nl)))
    monkeypatch.setattr(Engine, "step", lambda engine: (events.append("step"), step(engine)))
    streamed = ask(*options, "--stream")
    shown = events.copy()
    assert streamed.code == 0 and "tokens/s" in streamed.err
    assert streamed.out == ask(*options).out
    steps = [i for i, event in enumerate(shown) if event == "step"]
    assert "text" in shown[steps[0] : steps[-1]] and shown[-1] == "end"


def test_a_stop_text_ends_the_answer_before_it(ask):
    options = ("--max-new-tokens", 30, "--raw", "--json")
    whole = json.loads(ask(*options).out)
    stop = whole["text"][5:8]
    cut = json.loads(ask(*options, "--stop", "no such text", "--stop", stop).out)
    assert cut["text"] == whole["text"][: whole["text"].index(stop)] and cut["finish_reason"] == "stop"


def test_a_seeded_text_depends_on_the_method_or_the_draft(ask, draft_directory):
    """Greedy proposals: the text is the seed's alone."""
    options = ("--temperature", 1.5, "--top-k", 20, "--max-new-tokens", 20, "--json")
    first, again, other = (json.loads(ask(*options, "--seed", seed, "-m", "ar").out)["token_ids"] for seed in (1, 1, 2))
    drafted = json.loads(ask(*options, "--seed", 1, "-d", draft_directory, "--draft-tokens", 3).out)["token_ids"]
    assert first == again == drafted and first != other


def test_logprobs_are_in_the_json_where_asked_for_alone(ask):
    answer = json.loads(ask("--logprobs", 2, "--max-new-tokens", 5, "--json").out)
    assert list(answer)[-1] == "logprobs"
    for token, entry in zip(answer["token_ids"], answer["logprobs"], strict=True):
        assert entry["token_id"] == token and [token, entry["logprob"]] == entry["top"][0] and len(entry["top"]) == 2
    assert "--logprobs is shown with --json alone" in ask("--logprobs", 2).error


def test_several_answers_are_a_line_each_in_order_and_those_of_each_prompt_alone(run):
    options = ("--temperature", 1, "--seed", 5, "--max-new-tokens", 12, "--json")
    both = run("-p", "hello", "-p", "a longer prompt", "--n", 2, "--batch-size", 3, *options)
    assert both.code == 0, both
    answers = [json.loads(line) for line in both.out.splitlines()]
    assert [(a["prompt"], a["index"]) for a in answers] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert answers[0]["token_ids"] != answers[1]["token_ids"]
    for number, prompt in enumerate(["hello", "a longer prompt"]):
        alone = json.loads(run("-p", prompt, *options).out)
        together = answers[2 * number]
        assert alone["token_ids"] == together["token_ids"] and set(together) - set(alone) == {"prompt", "index"}


def test_several_answers_as_text_can_be_told_apart(run):
    out = run("-p", "hello", "--n", 2, "--max-new-tokens", 5).out
    text = run("-p", "hello", "--max-new-tokens", 5).out
    assert out == f"--- prompt 0, answer 0 ---\n{text}--- prompt 0, answer 1 ---\n{text}"


def test_prompts_of_a_file(run, tmp_path):
    file = tmp_path / "prompts.jsonl"
    said = [[{"role": "user", "content": "hello"}], [{"role": "user", "content": "bye"}, {"role": "assistant", "content": "an old answer"}]]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in said))
    options = ("--max-new-tokens", 5, "--json")
    of_file, of_words = (
        [json.loads(line)["token_ids"] for line in run(*prompts, *options).out.splitlines()]
        for prompts in (("--prompts", file), ("-p", "hello", "-p", "bye"))
    )
    assert of_file == of_words and len(of_file) == 2
    assert "-p and --prompts are both given" in run("--prompts", file, "-p", "x").error
    assert "--raw continues a text; the conversations" in run("--prompts", file, "--raw").error
    assert "cannot read" in run("--prompts", tmp_path / "none").error
    file.write_text('{"messages": [{"role": "system", "content": "x"}]}')
    assert "has no user message" in run("--prompts", file).error


def test_piped_answers_go_to_the_progress_bar(run, monkeypatch):
    """Rich's bar takes standard output over, and would print results on the
    terminal, where no pipe gets them."""
    terminal = io.StringIO()
    monkeypatch.setattr(console, "console", Console(file=terminal, force_terminal=True))
    result = run("-p", "hello", "-p", "bye", "--max-new-tokens", 3, "--json")
    assert result.code == 0 and len(result.out.splitlines()) == 2
    assert "answers" in terminal.getvalue() and "token_ids" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (["--max-new-tokens", "7"], "max_tokens", 7),
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--top-k", "7"], "top_k", 7),
        (["--top-p", "0.5"], "top_p", 0.5),
        (["--min-p", "0.5"], "min_p", 0.5),
        (["--repetition-penalty", "1.5"], "repetition_penalty", 1.5),
        (["--presence-penalty", "-0.5"], "presence_penalty", -0.5),
        (["--frequency-penalty", "0.5"], "frequency_penalty", 0.5),
        (["--logit-bias", "7=0.5", "--logit-bias", "0=-100"], "logit_bias", {7: 0.5, 0: -100.0}),
        (["--seed", "7"], "seed", 7),
        (["--n", "2"], "n", 2),
        (["--stop", "a", "--stop", "b c"], "stop", ("a", "b c")),
        (["--ignore-eos"], "ignore_eos", True),
        (["--stop-token-id", "7", "--stop-token-id", "9"], "stop_token_ids", (7, 9)),
        (["--min-new-tokens", "3"], "min_tokens", 3),
        (["--include-stop-str-in-output"], "include_stop_str_in_output", True),
        (["--logprobs", "0", "--json"], "logprobs", 0),
    ],
)
def test_a_sampling_option_reaches_another_setting_or_none(ask, monkeypatch, options, field, value):
    asked = []

    def completions(_engine, _prompts, params, _raw):
        asked.append(params)
        raise Pard2Error("enough")

    monkeypatch.setattr(Engine, "completions", completions)
    assert ask(*options).code == 2
    default = SamplingParams()
    differing = {name for name in default.__dict__ if getattr(asked[0], name) != getattr(default, name)}
    assert differing == {field} and getattr(asked[0], field) == value


def test_engine_options_reach_the_engine(run, monkeypatch):
    def build(*_args, **options):
        raise Pard2Error(json.dumps(options))

    monkeypatch.setattr(Engine, "from_pretrained", build)
    options = ("--cache-tokens", 500, "--batch-size", 3, "--draft-sampling", "sampled", "--verification", "block", "--ngram-first", 5)
    expected = {
        "dtype": "float32",
        "device": "cpu",
        "method": None,
        "draft_tokens": "auto",
        "tree": 0,
        "tree_top_k": None,
        "cuda_graphs": None,
        "weights": "auto",
    }
    expected |= {"max_batch": 3, "cache_tokens": 500, "draft_sampling": "sampled", "verification": "block"}
    expected |= {"ngram_min": None, "ngram_max": 8, "ngram_first": 5, "ngram_cap": 8}
    assert json.loads(run("-p", "x", "--n", 8, *options).error) == expected
    assert json.loads(run("-p", "x", *options).error)["max_batch"] == 1  # one answer needs no memory for more


def test_drawn_proposals_judged_by_block(ask, draft_directory):
    options = ("-d", draft_directory, "--temperature", 1, "--seed", 3, "--draft-tokens", 3, "--draft-sampling", "sampled", "--json")
    for rule in ("token", "block"):
        answer = json.loads(ask(*options, "--verification", rule).out)
        assert answer["stats"]["proposed"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--temperature", "-1"], "--temperature -1.0"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--top-k", "-2"], "--top-k -2"),
        (["--top-p", "1.5"], "--top-p 1.5"),
        (["--min-p", "2"], "--min-p 2.0"),
        (["--repetition-penalty", "0"], "--repetition-penalty 0.0"),
        (["--presence-penalty", "3"], "--presence-penalty 3.0"),
        (["--frequency-penalty", "-3"], "--frequency-penalty -3.0"),
        (["--logit-bias", "7"], "--logit-bias '7' is not of the form ID=BIAS"),
        (["--logit-bias", "x=1"], "--logit-bias 'x=1' is not of the form"),
        (["--logit-bias", "7=1", "--logit-bias", "7=2"], "--logit-bias names token 7 twice"),
        (["--logit-bias", "7=101"], "--logit-bias 7=101.0"),
        (["--seed", "-1"], "--seed -1"),
        (["--n", "0"], "--n 0"),
        (["--stop", ""], "--stop ''"),
        (["--stop", "x"] * 17, "--stop has 17 texts"),
        (["--logprobs", "21", "--json"], "--logprobs 21"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--draft-tokens", "0"], "--draft-tokens 0: at least 1"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--cache-tokens", "1"], "--cache-tokens 1"),
        (["--draft-sampling", "some"], "--draft-sampling 'some' is neither"),
        (["--verification", "all"], "--verification 'all' is neither"),
        (["--verification", "block"], "add --draft-sampling sampled"),
        (["--stream", "--json"], "--stream shows the text of one answer"),
        (["--stream", "--n", "2"], "--stream shows the text of one answer"),
        (["-p", " "], "the prompt is empty"),
    ],
)
def test_bad_input_is_told_before_the_long_load(ask, monkeypatch, options, message):
    def load(*_args, **_kwargs):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(pair, "load_target", load)
    assert message in ask(*options).error


def test_a_biased_token_outside_the_vocabulary(ask):
    assert "--logit-bias names token 1000" in ask("--logit-bias", "1000=1").error


def test_a_request_larger_than_the_cache_names_the_way_out(ask):
    assert "--cache-tokens" in ask("--cache-tokens", 30, "--max-new-tokens", 20).error
    assert ask("--cache-tokens", CONTEXT + 1, "--max-new-tokens", 20).code == 0


Z = byte_tokenizer()("z")["input_ids"][0]


@pytest.fixture
def deaf_to_z(target_directory, tmp_path):
    """A target whose weights are damaged where only the letter z leads."""
    directory = copy(target_directory, tmp_path)
    target = load_target(str(directory), "float32", "cpu")
    with torch.no_grad():
        target.model.get_input_embeddings().weight[Z] = torch.nan
    target.model.save_pretrained(directory)
    return directory


def test_an_answer_that_fails_is_one_line_and_the_others_are_there(pard2, deaf_to_z):
    options = ("-t", deaf_to_z, "--raw", "--dtype", "float32", "--device", "cpu", "--max-new-tokens", 4, "--logit-bias", f"{Z}=-100", "--json")
    assert "logits that are no numbers" in pard2("generate", "-p", "z", *options).error
    result = pard2("generate", "-p", "hello", "-p", "z", "-p", "bye", *options)
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [a["finish_reason"] for a in answers] == ["length", "error", "length"] and "NaN" in answers[1]["error"]
    assert result.code == 2 and "error: 1 of 3 answers failed; prompt 1: " in result.err and "Traceback" not in result.err
    for answer, prompt in ((answers[0], "hello"), (answers[2], "bye")):
        assert answer["token_ids"] == json.loads(pard2("generate", "-p", prompt, *options).out)["token_ids"]


def test_raw_leaves_the_chat_template_out(ask):
    assert json.loads(ask("--raw", "--json").out)["prompt_tokens"] == len("hello")


def test_unknown_models(pard2, ask, tmp_path):
    assert "no model 'no/such-model'" in pard2("generate", "-t", "no/such-model", "-p", "x").error
    assert "no model 'a b'" in pard2("generate", "-t", "a b", "-p", "x").error
    assert "no such GGUF file" in pard2("generate", "-t", "none.gguf", "-p", "x").error
    assert "no model" in ask("-d", tmp_path / "none").error


def test_prompts_that_cannot_be_answered(run):
    assert "the prompt is empty" in run("-p", "").error
    longest = run("-p", "x" * CONTEXT, "--raw", "--max-new-tokens", 3)
    assert longest.code == 0
    assert f"has {CONTEXT + 1} tokens" in run("-p", "x" * (CONTEXT + 1), "--raw").error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--draft-tokens", "7"], "--draft-tokens 7: this draft was trained for 6"),
        (["--draft-tokens", "many"], "--draft-tokens 'many' is neither"),
        (["-m", "medusa"], "-m 'medusa' is not one of ar, ngram, vsd"),
        (["--dtype", "int4"], "--dtype 'int4' is not one of"),
        (["--device", "tpu9"], "--device 'tpu9'"),
    ],
)
def test_options_that_make_no_sense_name_themselves(ask, draft_directory, options, message):
    assert message in ask("-d", draft_directory, *options).error


def test_a_method_without_its_draft(ask, lm_directory):
    assert "needs a draft; name one with -d" in ask("-m", "pard2-td").error
    assert "not a PARD-2 draft" in ask("-m", "pard2-td", "-d", lm_directory).error
    assert "no mask token" in ask("-m", "pard", "-d", lm_directory).error


def test_a_draft_of_another_vocabulary(ask, tmp_path):
    save_draft(tiny_lm_draft(vocab=61), tmp_path / "other")
    assert "vocabulary of 61" in ask("-d", tmp_path / "other").error


def copy(source, tmp_path):
    shutil.copytree(source, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.mark.parametrize("damage", ["cut", "empty", "noise"])
def test_corrupt_weights(ask, draft_directory, tmp_path, damage):
    directory = copy(draft_directory, tmp_path)
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "noise": b"\x7f" * 100}[damage])
    assert str(directory) in ask("-d", directory).error


def test_a_pickle_that_would_run_code_does_not_run(ask, pard2, draft_directory, tmp_path):
    directory = copy(draft_directory, tmp_path)
    trace = tmp_path / "executed"

    class Evil:
        def __reduce__(self):
            return (open, (str(trace), "w"))

    torch.save({"target_proj.weight": Evil()}, directory / "warp_model.bin")
    assert "corrupt or holds more than tensors" in ask("-d", directory).error
    assert "corrupt or holds more than tensors" in pard2("draft", "info", directory).out
    assert not trace.exists()
    torch.load(directory / "warp_model.bin", weights_only=False)  # the trap itself works
    assert trace.exists()


def test_a_lost_projection_says_that_ti_would_work_and_it_does(ask, draft_directory, tmp_path):
    directory = copy(draft_directory, tmp_path)
    (directory / "warp_model.bin").unlink()
    assert "-m pard2-ti" in ask("-d", directory).error
    assert ask("-d", directory, "-m", "pard2-ti").code == 0


def test_missing_options_are_usage_errors(pard2):
    assert pard2("data", "synthesize", "-n", 1, "-o", "x").code == 2
    assert pard2("generate", "-t", "x", "-p", "y", "--no-such-option").code == 2
    assert pard2("nonsense").code == 2


def test_ctrl_c_is_one_line_and_130(ask, monkeypatch):
    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "step", interrupted)
    result = ask()
    assert result.code == 130 and result.out == ""
    assert result.err.endswith("error: interrupted\n") and "Traceback" not in result.err


def test_a_bug_keeps_its_traceback(ask, monkeypatch):
    """Only a user's mistake may be told in one line."""

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr(Engine, "step", broken)
    with pytest.raises(ZeroDivisionError):
        ask()
