"""Files as people have them: read as what they say, or refused with a line that shows what is wanted."""

import gzip
import json
import lzma
import os
import threading
from pathlib import Path

import pytest

from pard2.data.records import read_records
from pard2.data.sources import ROW_FORM, open_source
from pard2.errors import Pard2Error

ASK, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
ROW = {"messages": [ASK, ANSWER]}
LINES = "".join(json.dumps({"id": name, **ROW}) + "\n" for name in "ab").encode()


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"instruction": "2+2?", "input": "", "output": "4"}, [ASK, ANSWER]),
        ({"instruction": "Add.", "input": "2+2", "output": "4"}, [{"role": "user", "content": "Add.\n\n2+2"}, ANSWER]),
        ({"instruction": "2+2?", "output": "4", "system": "s"}, [{"role": "system", "content": "s"}, ASK, ANSWER]),
        ({"prompt": "2+2?", "completion": "4"}, [ASK, ANSWER]),
        ({"prompt": [{"role": "system", "content": "s"}, ASK], "completion": [ANSWER]}, [{"role": "system", "content": "s"}, ASK, ANSWER]),
        ({"question": "2+2?", "answer": "4"}, [ASK, ANSWER]),
        ({"question": "2+2?", "answer": None}, [ASK]),
        ({"messages": json.dumps([ASK, ANSWER])}, [ASK, ANSWER]),
        ({"text": "2+2?4", "messages": [ASK, ANSWER], "question": "x", "answer": "y"}, [ASK, ANSWER]),
        ({"text": "x", "question": "2+2?", "answer": "4"}, [ASK, ANSWER]),
        ({"messages": [ASK | {"role": "Human"}, ANSWER | {"role": "Assistant"}]}, [ASK, ANSWER]),
        ({"messages": [ASK | {"role": "USER"}, ANSWER | {"role": "ai"}]}, [ASK, ANSWER]),
        ({"messages": [ASK, ANSWER | {"role": "model"}]}, [ASK, ANSWER]),
        ({"conversations": [{"from": "Human", "value": "2+2?"}, {"from": "GPT", "value": "4"}]}, [ASK, ANSWER]),
        # The chat template's own: they stay.
        (
            {"messages": [ASK | {"role": "developer"}, ANSWER | {"role": "observation"}]},
            [ASK | {"role": "developer"}, ANSWER | {"role": "observation"}],
        ),
    ],
)
def test_a_row_is_what_was_said_and_by_whom(tmp_path, row, messages):
    path = tmp_path / "f.jsonl"
    path.write_text(json.dumps(row | {"source": "x"}) + "\n")
    (record,) = read_records(path)
    assert record["messages"] == messages and record["id"] == "f.jsonl:1" and record["source"] == "x"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "u", "chosen": "a", "rejected": "b"}, "`chosen` is not read"),
        ({"prompt": "u", "rejected": "b"}, "`rejected` is not read"),
        ({"instruction": "u", "history": [["a", "b"]]}, "`history` is not read"),
        ({"instruction": "u", "response": "a"}, "it has instruction, response"),
        ({"conversation": [ASK]}, "it has conversation"),
        ({"custom_id": "1", "body": ROW}, "it has custom_id, body"),
        ({"id": "x"}, "it has nothing"),
        ([ASK], "it is not an object"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "a part of type 'image_url'; only text can be learned"),
        ({"instruction": ["u"], "output": "a"}, "a part of type 'str'; only text can be learned"),
    ],
)
def test_what_is_not_read_is_told_with_the_form_that_is(tmp_path, row, reason):
    (tmp_path / "f.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(Pard2Error, match="f.jsonl:1") as caught:
        read_records(tmp_path / "f.jsonl")
    assert reason in str(caught.value) and ROW_FORM in str(caught.value)


FILES = {
    "rows.jsonl": LINES,
    "rows.txt": LINES,
    "rows": LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + LINES,
    "windows.jsonl": LINES.replace(b"\n", b"\r\n"),
    "rows.jsonl.gz": gzip.compress(LINES, mtime=0),
    "renamed.jsonl": gzip.compress(b"\xef\xbb\xbf" + LINES, mtime=0),
    "rows.jsonl.xz": lzma.compress(LINES),
    "rows.json": b"[" + b", ".join(LINES.splitlines()) + b"]",
    "pretty.json": b"\n" + json.dumps([json.loads(line) for line in LINES.splitlines()], indent=2).encode(),
    "rows.json.gz": gzip.compress(b"[" + b",".join(LINES.splitlines()) + b"]", mtime=0),
    "rows.csv": b'id,question,answer,note\n"a",2+2?,4,\n\nb,"2+2?","4",x\n',
    "bom.csv": b"\xef\xbb\xbfid,question,answer\r\na,2+2?,4\r\nb,2+2?,4\r\n",
    "rows.tsv": b"id\tquestion\tanswer\na\t2+2?\t4\nb\t2+2?\t4\n",
    "rows.csv.gz": gzip.compress(b"id,question,answer\na,2+2?,4\nb,2+2?,4\n", mtime=0),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_records(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    records = read_records(tmp_path / name)
    assert [(record["id"], record["messages"]) for record in records] == [(one, [ASK, ANSWER]) for one in "ab"]
    assert open_source(tmp_path / name).count == 2


def test_places_are_lines(tmp_path):
    """Of a table, too, whose cells may hold several; an array has numbers."""
    (tmp_path / "f.csv").write_text('question,answer\n"a\nb",c\n' + f"d,{'e' * 200_000}\n")
    assert [where.rpartition(":")[2] for where, _ in open_source(tmp_path / "f.csv").rows()] == ["2", "4"]
    (tmp_path / "f.json").write_text("[\n\n{},\n{}]")
    assert [where.rpartition(":")[2] for where, _ in open_source(tmp_path / "f.json").rows()] == ["1", "2"]


def test_a_pattern_is_all_its_files(tmp_path):
    for number in (2, 1):
        (tmp_path / f"part{number}.jsonl").write_bytes(LINES.replace(b'"id": "', f'"id": "{number}'.encode()))
    source = open_source(tmp_path / "part*.jsonl")
    assert source.count == 4 and [part.file.name for part in source.parts] == ["part1.jsonl", "part2.jsonl"]
    assert [record["id"] for record in read_records(tmp_path / "part*.jsonl")] == ["1a", "1b", "2a", "2b"]
    (tmp_path / "odd[1].jsonl").write_bytes(LINES)  # a name and no pattern
    assert len(read_records(tmp_path / "odd[1].jsonl")) == 2
    with pytest.raises(Pard2Error, match=r"cannot read .*none\*.jsonl: no file has a name of that pattern"):
        open_source(tmp_path / "none*.jsonl")


def test_a_file_whose_name_is_no_text_has_ids_that_are(tmp_path):
    """The answers' file could not be written, after all answers had been made."""
    (tmp_path / "caf\udce9.jsonl").write_bytes(b'{"text": "once upon"}\n')
    (record,) = read_records(tmp_path / "*.jsonl")
    assert record["id"] == "caf\\udce9.jsonl:1"


@pytest.mark.parametrize("name", ["pipe", "-"])
def test_a_pipe_is_read_once_and_can_be_gone_through_again(tmp_path, name, monkeypatch):
    if name == "-":
        reading, writing = os.pipe()
        os.write(writing, gzip.compress(LINES, mtime=0))
        os.close(writing)
        real = os.dup(0)
        os.dup2(reading, 0)
    else:
        name = str(tmp_path / "pipe")
        os.mkfifo(name)
        threading.Thread(target=lambda: Path(name).write_bytes(gzip.compress(LINES, mtime=0)), daemon=True).start()
    try:
        source = open_source(name)
        assert source.count == 2 and source.file is None
        assert [row["id"] for _ in range(2) for _, row in source.rows()] == ["a", "b", "a", "b"]
        assert open_source(name).count == 2
    finally:
        if name == "-":
            os.dup2(real, 0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("f.txt", b"Once upon a time\n", f"f.txt:1 is not JSON: Expecting value; a row is one line such as {ROW_FORM}"),
        ("f.jsonl", LINES + b"oops\n", f"f.jsonl:3 is not JSON: Expecting value; a row is one line such as {ROW_FORM}"),
        (
            "f.json",
            json.dumps(ROW, indent=1).encode(),
            f"f.json:1 is not JSON: Expecting property name enclosed in double quotes; a row is one line such as {ROW_FORM}",
        ),
        ("f.json", b"[{}, {]", "f.json: is not JSON: Expecting property name"),
        ("f.json", b'[{"a": "\\ud83d"}]', "f.json: holds \\ud83d, half of a surrogate pair"),
        ("f.jsonl.gz", gzip.compress(LINES, mtime=0)[:-9], "cannot read .*f.jsonl.gz: Compressed file ended"),
        ("f.jsonl.gz", gzip.compress(LINES, mtime=0)[:20] + b"x" * 40, "cannot read .*f.jsonl.gz: "),
        ("f.jsonl.xz", lzma.compress(LINES)[:-30], "cannot read .*f.jsonl.xz: "),
        ("f.jsonl", LINES.decode().encode("utf-16"), "cannot read .*f.jsonl: not UTF-8 text"),
        ("f.jsonl.zst", b"\x28\xb5\x2f\xfd\x00", "cannot read .*f.jsonl.zst: not UTF-8 text"),
        ("f.csv", b"question,answer\na,b,c\n", "f.csv:2 has 3 cells, and its first line names 2 columns"),
        ("f.csv", b'question,answer\na,"b\n', "cannot read .*f.csv: unexpected end of data"),
        ("f.csv", b"question;answer\na;b\n", "f.csv:2 has no `messages`, `conversations` or `text`; it has question;answer"),
        ("f.parq", b"my notes", "cannot read .*f.parq: "),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Pard2Error) as caught:
        read_records(tmp_path / name)
    prefix, _, rest = reason.partition(".*")
    said = str(caught.value)
    assert (prefix in said and rest in said) and "\n" not in said, said


def test_names_that_no_file_can_have_are_one_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    for name in ("a\0b", "x" * 300, "loop", "/dev/zero", "data/f.csv", "data/f.jsonl.gz"):
        with pytest.raises(Pard2Error, match="cannot read ") as caught:
            open_source(name)
        assert "\n" not in str(caught.value)
