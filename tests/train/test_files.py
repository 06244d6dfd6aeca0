"""Directories appear whole or not at all."""

from pathlib import Path

import pytest

from pard2.errors import Pard2Error
from pard2.files import recover, whole_directory


def write(path: Path, text: str) -> None:
    with whole_directory(path) as beside:
        (beside / "file").write_text(text)


def test_it_appears_and_replaces(tmp_path):
    write(tmp_path / "deep" / "d", "one")
    (tmp_path / "deep" / "d" / "stale").write_text("")
    write(tmp_path / "deep" / "d", "two")
    assert [p.name for p in (tmp_path / "deep" / "d").iterdir()] == ["file"]
    assert (tmp_path / "deep" / "d" / "file").read_text() == "two"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["d"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_in_the_block_leaves_the_old_one(tmp_path, error):
    write(tmp_path / "d", "one")
    with pytest.raises(error), whole_directory(tmp_path / "d") as beside:
        (beside / "file").write_text("half")
        raise error
    assert (tmp_path / "d" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def break_second_rename(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """The new directory's rename fails, once the old one has been set aside."""
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.startswith(".d-") and not self.name.endswith("-old") and target.name == "d":
            raise error
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


def test_ctrl_c_between_the_renames_puts_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path / "d", "one")
    break_second_rename(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "d", "two")
    assert (tmp_path / "d" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_failing_disk_is_one_line(tmp_path, monkeypatch):
    write(tmp_path / "d", "one")
    break_second_rename(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(Pard2Error, match="cannot write .*d: No space left on device; what it held before is kept"):
        write(tmp_path / "d", "two")
    assert (tmp_path / "d" / "file").read_text() == "one"


def test_a_kill_between_the_renames_is_undone_by_the_next_reader(tmp_path):
    """Without it, training would start again from step 0 and say nothing."""
    write(tmp_path / "d", "one")
    (tmp_path / "d").rename(tmp_path / ".d-old")  # as the kill leaves it
    recover(tmp_path / "d")
    assert (tmp_path / "d" / "file").read_text() == "one"
    recover(tmp_path / "d")
    recover(tmp_path / "never-there")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_kill_after_the_renames_leaves_the_new_one(tmp_path):
    write(tmp_path / "d", "two")
    (tmp_path / ".d-old").mkdir()
    recover(tmp_path / "d")
    assert (tmp_path / "d" / "file").read_text() == "two"
    write(tmp_path / "d", "three")
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_file_is_not_replaced(tmp_path):
    (tmp_path / "d").write_text("precious")
    with pytest.raises(Pard2Error, match="it is a file and must be a directory"):
        write(tmp_path / "d", "one")
    assert (tmp_path / "d").read_text() == "precious"


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "d").symlink_to(tmp_path / "disk")
    write(tmp_path / "d", "one")
    assert (tmp_path / "d").is_symlink() and (tmp_path / "disk" / "file").read_text() == "one"
