import errno
import os
from dataclasses import replace

import pytest

from pruneaug import files
from pruneaug.errors import LatencyTableError, StorageError
from pruneaug.latency.records import record_to_json
from pruneaug.latency.store import Difference, LatencyStore
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.plan import Cell
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_record

OP = LinearOp(4, 64, 64)
DENSE = analytic_record(Cell(OP, "dense", 0.0, "torch"), ANALYTIC_PLATFORM)
SPARSE = [analytic_record(Cell(OP, "block:8x1", sparsity), ANALYTIC_PLATFORM) for sparsity in (0.5, 0.7, 0.9)]


@pytest.fixture
def store(tmp_path):
    store = LatencyStore(tmp_path / "machine")
    for record in [DENSE, *SPARSE]:
        store.append(record)
    return store


def test_a_store_gives_back_what_was_appended_one_file_per_library(store):
    assert store.libraries() == ("torch", "tvm")
    assert store.load() == [DENSE, *SPARSE]
    assert (store.folder / "tvm.jsonl").read_text().splitlines() == [record_to_json(record) for record in SPARSE]


def test_a_store_that_does_not_exist_is_empty_and_is_not_made_by_reading(tmp_path):
    store = LatencyStore(tmp_path / "none")
    assert store.load() == []
    assert not store.folder.exists()
    with pytest.raises(LatencyTableError, match=r"none must hold a latency table.*run `pruneaug profile`"):
        store.table()


def test_a_last_line_cut_anywhere_is_left_out_with_a_warning_and_mended_by_the_next_append(store):
    path = store.folder / "tvm.jsonl"
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in (start + 1, start + 40, len(whole) - 2):
        path.write_bytes(whole[:end])
        with pytest.warns(RuntimeWarning, match=r"tvm.jsonl:3: the last line was cut short"):
            assert store.load() == [DENSE, *SPARSE[:2]]
        store.append(SPARSE[2])
        assert path.read_bytes() == whole


@pytest.mark.filterwarnings("error")
def test_a_last_record_that_lacks_only_its_newline_is_kept(store):
    path = store.folder / "tvm.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    assert store.load() == [DENSE, *SPARSE]
    another = replace(SPARSE[0], variant="other")
    store.append(another)
    assert store.load() == [DENSE, *SPARSE, another]


@pytest.mark.parametrize("broken", [b"", b"<<<<<<< HEAD", b"{", b"\xff\xfe", b"0" * 100, b"null"])
def test_a_broken_line_in_the_middle_is_an_error_with_file_and_line(store, broken):
    path = store.folder / "tvm.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], broken, *lines[1:]]))
    with pytest.raises(LatencyTableError, match=r"tvm\.jsonl:2: .*remove this line and run `pruneaug profile`"):
        store.load()


def test_a_record_in_another_librarys_file_is_an_error(store):
    (store.folder / "tvm.jsonl").rename(store.folder / "other.jsonl")
    with pytest.raises(LatencyTableError, match=r"other\.jsonl:1: .*its file's \(other\), but got 'tvm'"):
        store.load()


def test_a_library_that_is_no_file_name_is_refused(store):
    with pytest.raises(LatencyTableError, match=r"but got '\.\./tvm'"):
        store.append(replace(DENSE, library="../tvm"))


def test_a_full_disk_is_a_storage_error_and_loses_nothing(store, monkeypatch):
    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "write", no_space)
    with pytest.raises(StorageError, match=r"tvm\.jsonl: No space left on device; .*make room"):
        store.append(SPARSE[0])
    monkeypatch.undo()
    assert store.load() == [DENSE, *SPARSE]


def test_a_full_device_is_a_storage_error(tmp_path):
    (tmp_path / "tvm.jsonl").symlink_to("/dev/full")
    with pytest.raises(StorageError, match=r"tvm\.jsonl: No space left on device"):
        LatencyStore(tmp_path).append(SPARSE[0])


def test_merge_is_a_union_that_can_be_repeated(store, tmp_path):
    other = LatencyStore(tmp_path / "other")
    newer = replace(SPARSE[0], latency_us=1.0, measured_at="2026-02-01T00:00:00+00:00")
    for record in [SPARSE[0], newer, newer]:
        other.append(record)
    assert store.merge(other) == 1
    assert store.load() == [DENSE, *SPARSE, newer]
    assert store.merge(other) == 0
    assert other.merge(store) == 3
    assert {record_to_json(record) for record in other.load()} == {record_to_json(record) for record in store.load()}


def test_diff_shows_the_cells_whose_times_differ(store, tmp_path):
    other = LatencyStore(tmp_path / "other")
    for record in [SPARSE[0], replace(SPARSE[1], latency_us=1.0), replace(DENSE, library="tvm")]:
        other.append(record)
    assert set(store.diff(other)) == {
        Difference(OP, "dense", 0.0, "torch", DENSE.latency_us, None),
        Difference(OP, "block:8x1", 0.7, "tvm", SPARSE[1].latency_us, 1.0),
        Difference(OP, "block:8x1", 0.9, "tvm", SPARSE[2].latency_us, None),
        Difference(OP, "dense", 0.0, "tvm", None, DENSE.latency_us),
    }
    assert store.diff(store) == ()
