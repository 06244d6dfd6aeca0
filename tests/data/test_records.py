"""JSONL files: errors that name the line, and files that survive a kill."""

import errno
import json
import os

import pytest

from pard2.data.records import RecordWriter, read_records, up_to_user
from pard2.errors import Pard2Error


def record(name, text="hi"):
    return {"id": name, "messages": [{"role": "user", "content": text}]}


def write(path, *records):
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "f.jsonl:2 is not JSON"),
        ('"text"', "f.jsonl:2 has no `messages`"),
        ("{}", "f.jsonl:2 has no `messages`"),
        ('{"messages": []}', "f.jsonl:2 has no `messages`"),
        ('{"messages": [{"role": "user"}]}', "f.jsonl:2: message 1 of `messages` has no `content` text"),
        ('{"messages": [{"role": "user", "content": null}]}', "f.jsonl:2: message 1 of `messages` has no `content` text"),
        ('{"messages": ["hi"]}', "f.jsonl:2: message 1 of `messages` is not an object"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = write(tmp_path / "f.jsonl", record("a"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(Pard2Error, match=message):
        read_records(path)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    with pytest.raises(Pard2Error, match="No such file"):
        read_records(tmp_path / "none.jsonl")
    (tmp_path / "latin").write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(Pard2Error, match="not UTF-8"):
        read_records(tmp_path / "latin")
    (tmp_path / "empty").write_text("\n\n")
    with pytest.raises(Pard2Error, match="holds no records"):
        read_records(tmp_path / "empty")


def test_ids_do_not_depend_on_the_folder_and_are_strings(tmp_path):
    """With the path in its id, a record would be done again by a run resumed from another directory."""
    path = write(tmp_path / "f.jsonl", {"messages": record("x")["messages"]}, record(7), record(None))
    assert [r["id"] for r in read_records(path)] == ["f.jsonl:1", "7", "f.jsonl:3"]


def test_up_to_user_drops_the_old_answer_and_keeps_the_record():
    conversation = [{"role": r, "content": r} for r in ("system", "user", "assistant", "user", "assistant")]
    original = {"id": "a", "messages": conversation}
    assert up_to_user(original) == conversation[:4]
    assert len(original["messages"]) == 5
    assert up_to_user({"id": "a", "messages": conversation[2:3]}) == []


def test_a_writer_goes_on_where_a_kill_left_off(tmp_path):
    path = tmp_path / "out.jsonl"
    with RecordWriter(path) as writer:
        writer.write([record("a", "é\u2028"), record("b")])
    path.write_bytes(path.read_bytes() + b'{"id": "c", "mess')
    with RecordWriter(path) as writer:
        assert writer.done == {"a", "b"}
        writer.write([record("c")])
    assert [r["id"] for r in read_records(path)] == ["a", "b", "c"]
    assert read_records(path)[0]["messages"][0]["content"] == "é\u2028"


def test_a_file_torn_in_its_only_line_is_begun_anew(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"id": "a", ')
    with RecordWriter(path) as writer:
        assert writer.done == set()
        writer.write([record("a")])
    assert [r["id"] for r in read_records(path)] == ["a"]


@pytest.mark.parametrize("content", [b"my notes", b"my notes\n", b"\xff\xfe\n", b"[1]\n", b'{"id": 1}\n'])
def test_a_file_of_something_else_is_refused_and_left_as_it_was(tmp_path, content):
    """Cutting a torn last line off a file that is not ours would destroy it."""
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(Pard2Error, match="something other than records.*`output`"):
        RecordWriter(path)
    assert path.read_bytes() == content


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Pard2Error, match="cannot write"):
        RecordWriter(tmp_path / "file" / "out.jsonl")
    with pytest.raises(Pard2Error, match="cannot write.*regular file"):
        RecordWriter(tmp_path)


def test_work_that_fails_before_its_first_record_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), RecordWriter(tmp_path / "out.jsonl"):
        raise RuntimeError
    assert not (tmp_path / "out.jsonl").exists()


def test_an_existing_empty_file_is_not_taken_away(tmp_path):
    (tmp_path / "out.jsonl").touch()
    RecordWriter(tmp_path / "out.jsonl").close()
    assert (tmp_path / "out.jsonl").exists()


def test_a_full_disk_is_one_line_and_keeps_what_is_there(tmp_path, monkeypatch):
    path = tmp_path / "out.jsonl"
    with RecordWriter(path) as writer:
        writer.write([record("a")])

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(Pard2Error, match="No space left on device; what it holds is kept"):
            writer.write([record("b")])
    assert read_records(path)[0]["id"] == "a"


def test_a_second_run_into_one_file_is_refused(tmp_path):
    """Each would write what the other has, and cut off the line that the other is writing."""
    path = tmp_path / "answers.jsonl"
    with RecordWriter(path) as writer:
        writer.write([{"id": "a", "messages": [{"role": "user", "content": "x"}]}])
        with pytest.raises(Pard2Error, match="another run is writing to .*answers.jsonl; wait for it, or name another file with `output`"):
            RecordWriter(path)
    with RecordWriter(path) as again:
        assert again.done == {"a"}
