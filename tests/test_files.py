"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import json
import os

import pytest

from qsdformer.errors import UserError
from qsdformer.files import (
    atomic_path,
    check_writable,
    exported_kind,
    write_csv,
    write_json,
    write_text,
)


def test_the_file_appears_with_all_missing_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    write_text(path, "grüße\n")
    assert path.read_text(encoding="utf-8") == "grüße\n"
    assert os.listdir(path.parent) == ["file.txt"]


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / "a.json", {"x": [1, 2.5]})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"x": [1, 2.5]}
    assert text.endswith("\n")


def test_nothing_is_at_the_path_before_the_end(tmp_path):
    path = tmp_path / "file"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"


def _write_half(path, error: BaseException) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(type(error)):
        _write_half(path, error)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_full_disk_is_one_line_that_names_file_and_reason(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(UserError, match="No space left on device") as caught:
        _write_half(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "below" / "x"
    with pytest.raises(UserError, match="cannot write") as caught:
        write_text(path, "x")
    assert str(path) in str(caught.value)


def test_a_refused_permission_is_one_line(tmp_path):
    with pytest.raises(UserError, match="Permission denied") as caught:
        _write_half(tmp_path / "file", PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    with pytest.raises(UserError, match="Permission denied"):
        write_text(folder / "x", "x")


def test_a_folder_in_the_way_is_an_error_and_stays(tmp_path):
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(UserError, match="cannot write"):
        write_text(path, "x")
    assert path.is_dir()
    assert os.listdir(tmp_path) == ["taken"]


def test_a_link_stays_one_and_what_it_leads_to_is_written(tmp_path):
    real, link = tmp_path / "real" / "file", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)
    check_writable(link)
    write_text(link, "x")
    assert link.is_symlink()
    assert real.read_text() == "x"
    assert os.listdir(real.parent) == ["file"]


def test_a_device_or_pipe_is_written_to_and_stays(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    check_writable(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "x")
        assert os.read(reader, 10) == b"x"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    write_text(os.devnull, "x")
    assert not os.path.isfile(os.devnull)
    with pytest.raises(UserError, match="no file but a device or a pipe"):
        exported_kind(pipe)


def test_advice_is_what_helps(tmp_path):
    for write in (check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(UserError, match="Is a directory; name a file in it"):
            write(tmp_path)
        with pytest.raises(UserError, match="File name too long; choose a shorter name"):
            write(tmp_path / ("x" * 245))
    assert not os.listdir(tmp_path)


def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_name_that_is_not_utf_8_is_written_by_its_bytes(tmp_path):
    write_csv(tmp_path / "a.csv", ["name"], [{"name": "caf\udce9"}])
    assert (tmp_path / "a.csv").read_text("utf-8").split() == ["name", r"caf\udce9"]
