from dataclasses import replace

import pytest

from pruneaug.errors import LatencyTableError, StorageError
from pruneaug.network.ops import LinearOp
from pruneaug.platforms import claim_folder, match_platform, merge_folder, open_store, read_platform, write_platform
from pruneaug.profiler.plan import Cell
from pruneaug.testing.platform import ANALYTIC_PLATFORM, analytic_record

RECORD = analytic_record(Cell(LinearOp(1, 2, 3), "dense", 0.0), ANALYTIC_PLATFORM)


def test_a_platform_is_read_back_as_written(tmp_path):
    write_platform(tmp_path / "deep", ANALYTIC_PLATFORM)
    assert read_platform(tmp_path / "deep") == ANALYTIC_PLATFORM


def test_a_new_folder_becomes_the_platforms(tmp_path):
    store = open_store(tmp_path, ANALYTIC_PLATFORM)
    assert store.folder == tmp_path / "analytic"
    assert claim_folder(store.folder, ANALYTIC_PLATFORM) == ()
    store.append(RECORD)
    assert claim_folder(store.folder, ANALYTIC_PLATFORM) == ()
    assert read_platform(store.folder) == ANALYTIC_PLATFORM


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"threads": 1}, "threads: 1 here, 2 there"),
        ({"isa": ("avx2", "fma", "avx512f")}, "isa: .*avx512f.* here, .* there"),
        ({"cpu": "Xeon"}, "cpu: Xeon here, analytic there"),
    ],
)
def test_another_machines_table_is_refused_with_the_differing_fields(tmp_path, change, shown):
    write_platform(tmp_path, ANALYTIC_PLATFORM)
    with pytest.raises(LatencyTableError, match=rf"must be of this platform.*{shown}; choose another platform\.name"):
        claim_folder(tmp_path, replace(ANALYTIC_PLATFORM, **change))


def test_other_versions_are_only_warned_about(tmp_path):
    write_platform(tmp_path, replace(ANALYTIC_PLATFORM, versions=(("torch", "2.13.0"), ("apache-tvm", "0.27"))))
    now = replace(ANALYTIC_PLATFORM, name="x", versions=(("torch", "2.13.0"), ("apache-tvm", "0.28")))
    (warning,) = match_platform(tmp_path, now)
    assert "another version of apache-tvm: 0.28 here, 0.27 there" in warning


def test_a_table_without_its_platform_is_refused(tmp_path):
    open_store(tmp_path, ANALYTIC_PLATFORM).append(RECORD)
    with pytest.raises(LatencyTableError, match=r"platform\.json beside it, but .* does not exist"):
        claim_folder(tmp_path / "analytic", ANALYTIC_PLATFORM)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"name": "x"}', "\x00"])
def test_a_broken_platform_file_is_an_error_that_names_it(tmp_path, text):
    (tmp_path / "platform.json").write_text(text)
    with pytest.raises(LatencyTableError, match=r"platform\.json.*another folder"):
        read_platform(tmp_path)


def test_folders_of_one_platform_merge_whatever_their_names(tmp_path):
    for name in ("a", "b"):
        platform = replace(ANALYTIC_PLATFORM, name=name)
        claim_folder(tmp_path / name, platform)
        open_store(tmp_path, platform).append(replace(RECORD, variant=name))
    assert merge_folder(tmp_path / "a", tmp_path / "b") == 1
    assert merge_folder(tmp_path / "a", tmp_path / "b") == 0
    assert merge_folder(tmp_path / "new", tmp_path / "a") == 2
    assert read_platform(tmp_path / "new").fingerprint == ANALYTIC_PLATFORM.fingerprint


def test_folders_of_different_platforms_do_not_merge(tmp_path):
    write_platform(tmp_path / "a", ANALYTIC_PLATFORM)
    write_platform(tmp_path / "b", replace(ANALYTIC_PLATFORM, threads=1))
    with pytest.raises(LatencyTableError, match="threads: 1 here, 2 there"):
        merge_folder(tmp_path / "a", tmp_path / "b")


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "analytic").write_text("a file")
    with pytest.raises(StorageError, match="analytic"):
        claim_folder(tmp_path / "analytic", ANALYTIC_PLATFORM)
