"""The commands of docs/draft_for_8b.md, run in their order from the page itself: a model of two layers stands for the 8B."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from chat_tokenizer import CHATML, END_ID, VOCABULARY, byte_tokenizer
from fake_endpoint import fake_endpoint
from tiny import tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "draft_for_8b.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Installing, logging in, a GPU's name, and another program's server.
NOT_RUN = ("git clone", "python3 -m venv", "pip install", "python3 -c", "hf auth", "vllm serve")
# In place of the page's numbers; all else of a command or of the run is the page's.
SMALL = {
    "-n 20000": "-n 4",
    "-n 64": "-n 2",
    "--max-new-tokens 256": "--max-new-tokens 48",
    "--max-new-tokens 768": "--max-new-tokens 12",
    "pard2 verify": "pard2 verify --samples 0 --max-new-tokens 32",
    "pard2 bench": "pard2 bench --max-new-tokens 16",
    "lr: 3.0e-5": "lr: 2.0e-2",
    "epochs: 4": "epochs: 12",
    "max_length: 1024": "max_length: 128",
    "row_length: 4096": "row_length: 512",
    "save_every: 100": "save_every: 2",
    "evaluate_every: 250": "evaluate_every: 6",
    "evaluation_tokens: 256": "evaluation_tokens: 6",
    "rows_per_step: 16": "rows_per_step: 1",
}
THINKS = "{% if add_generation_prompt and enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


def write_model(directory: Path, layers: int) -> Path:
    """A random model that writes words of a few letters, and ends its turns."""
    model = tiny_model("qwen3", layers=layers, vocab=VOCABULARY, context=1024)
    tokenizer = byte_tokenizer(CHATML + THINKS)
    said = tokenizer(" aeinrst", add_special_tokens=False)["input_ids"] + [END_ID]
    with torch.no_grad():
        # The first number of every state is large, and the head takes it for a reason to say none but these.
        model.get_input_embeddings().weight[:, 0] = 4.0
        for block in model.model.layers:
            block.self_attn.o_proj.weight[0] = 0.0
            block.mlp.down_proj.weight[0] = 0.0
        head = model.get_output_embeddings().weight
        head[:, 0] = -8.0
        head[:, 1:] *= 0.3
        head[said, 0] = torch.tensor([0.6] + [0.0] * (len(said) - 1))  # often a space
    model.generation_config.eos_token_id = END_ID
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def blocks() -> Iterator[tuple[str, str]]:
    for match in _BLOCK.finditer(PAGE.read_text()):
        yield match[1], match[2]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    records = "".join(f'{{"messages": [{{"role": "user", "content": "question {n}"}}]}}\n' for n in range(6))
    (tmp_path / "data" / "users.jsonl").write_text(records)
    target, sibling = write_model(tmp_path / "target", 2), write_model(tmp_path / "sibling", 1)
    with fake_endpoint(str(target)) as server:
        yield SMALL | {"Qwen/Qwen3-8B": str(target), "Qwen/Qwen3-0.6B": str(sibling), "http://localhost:8000/v1": server.address}


def test_a_command_of_the_page_fails_or_leaves_nothing(pard2, small, tmp_path):
    run, unused = 0, set(small) | set(NOT_RUN)

    def adapted(text: str) -> str:
        for there, here in small.items():
            if there in text:
                unused.discard(there)
                text = text.replace(there, here)
        return text

    for language, text in blocks():
        if language == "yaml":
            (tmp_path / "my8b.yaml").write_text(adapted(text))
            continue
        for line in text.splitlines():
            if line.startswith(NOT_RUN):
                unused -= {command for command in NOT_RUN if line.startswith(command)}
                continue
            words = shlex.split(adapted(line), comments=True)
            if words[0] == "pard2":
                result = pard2(*words[1:])
                assert result.code == 0, (line, result)
                assert "warning" not in result.err or words[1] == "train", (line, result)
            else:
                subprocess.run(adapted(line), shell=True, check=True, cwd=tmp_path)
            run += 1
    assert run == 15 and not unused, (run, unused)
    left = {path.name for path in (tmp_path / "runs" / "my8b").iterdir()}
    assert {"draft", "best", "checkpoints", "metrics.jsonl", "curve.svg", "train.log"} <= left
    # All prompts but the held-out ones were answered, those that the model wrote itself among them.
    answers = (tmp_path / "data" / "answers.jsonl").read_text()
    assert answers.count("\n") == 8 and "synthetic-" in answers
