import errno
import multiprocessing
import os
import stat

import pytest

from pruneaug import files
from pruneaug.errors import StorageError
from pruneaug.files import append_line, atomic_file, atomic_write_bytes, atomic_write_text, check_folder, storage_errors


def raise_no_space(*_args, **_kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_atomic_write_makes_missing_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    atomic_write_text(path, "old")
    atomic_write_text(path, "new ü")
    assert path.read_text(encoding="utf-8") == "new ü"
    assert os.listdir(path.parent) == ["file.json"]


def test_a_written_file_is_readable_by_others_as_the_umask_says(tmp_path):
    previous = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "file", b"x")
        append_line(tmp_path / "lines", "x")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "lines").stat().st_mode) == 0o644


def test_atomic_write_follows_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    atomic_write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("broken", ["os.fsync", "os.replace"])
def test_a_full_disk_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch, broken):
    path = tmp_path / "file.json"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, broken.removeprefix("os."), raise_no_space)
    with pytest.raises(StorageError, match=rf"{path}.*No space left.*make room and run again"):
        atomic_write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_writer_that_takes_a_path_replaces_the_file_only_when_it_is_done(tmp_path):
    path = tmp_path / "a" / "network.so"
    with atomic_file(path) as part:
        part.write_text("old")
        assert not path.exists()
    with pytest.raises(TypeError), atomic_file(path) as part, part.open("w") as file:
        file.writelines(["half", None])
    with pytest.raises(StorageError, match=rf"{path}.*No such file"), atomic_file(path):
        pass  # nothing was written
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["network.so"]


def test_append_adds_whole_lines(tmp_path):
    path = tmp_path / "a" / "lines.jsonl"
    for line in ["one", "two", ""]:
        append_line(path, line)
    assert path.read_bytes() == b"one\ntwo\n\n"


@pytest.mark.parametrize("length", [1, 5, 65535, 65536, 65537, 200000])
def test_append_removes_a_line_that_was_cut_short(tmp_path, length):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n" + b"x" * length)
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_append_removes_a_cut_line_that_is_the_whole_file(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"x" * 70000)
    append_line(path, "one")
    assert path.read_bytes() == b"one\n"


def test_append_completes_a_whole_line_that_lacks_only_its_newline(tmp_path):
    path = tmp_path / "lines"
    path.write_bytes(b"one\n{two}")
    append_line(path, "three", is_whole=lambda tail: tail == b"{two}")
    assert path.read_bytes() == b"one\n{two}\nthree\n"


def test_append_refuses_a_newline(tmp_path):
    with pytest.raises(ValueError, match="no newline"):
        append_line(tmp_path / "lines", "a\nb")


def test_append_to_a_full_device_is_a_storage_error():
    with pytest.raises(StorageError, match=r"/dev/full.*No space left on device.*make room"):
        append_line("/dev/full", "x")


def test_a_short_write_is_undone(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    write = os.write
    monkeypatch.setattr(files.os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    with pytest.raises(StorageError, match="disk is full"):
        append_line(path, "two and more")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"


def test_a_failed_fsync_is_undone(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    monkeypatch.setattr(files.os, "fsync", raise_no_space)
    with pytest.raises(StorageError):
        append_line(path, "two")
    monkeypatch.undo()
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("write", [append_line, atomic_write_text])
def test_a_file_where_a_folder_must_be_is_a_storage_error(tmp_path, write):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="choose another folder"):
        write(tmp_path / "file" / "deeper" / "name", "x")


@pytest.mark.parametrize("write", [append_line, atomic_write_text])
def test_a_folder_where_a_file_must_be_is_a_storage_error(tmp_path, write):
    with pytest.raises(StorageError, match="choose another name"):
        write(tmp_path, "x")


def test_an_error_without_number_still_names_the_path():
    with pytest.raises(StorageError, match="cannot write here: strange; check the disk"), storage_errors("here"):
        raise OSError("strange")


def append_many(path, name):
    for number in range(50):
        append_line(path, f"{name} {number} " + name * 300)


def test_processes_append_to_the_same_file_without_mixing_lines(tmp_path):
    path = tmp_path / "lines"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_many, args=(path, name)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    expected = {f"{name} {number} " + name * 300 for name in "abc" for number in range(50)}
    lines = path.read_text().splitlines()
    assert len(lines) == 150
    assert set(lines) == expected


def test_a_folder_is_checked_and_left_as_it_was(tmp_path):
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("x")
    check_folder(tmp_path / "there" / "new")
    check_folder(tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["file"]
    with pytest.raises(StorageError, match="a part of the path is a file"):
        check_folder(tmp_path / "there" / "file" / "run")
    with pytest.raises(StorageError, match="cannot write /proc/no/run"):
        check_folder("/proc/no/run")
