"""Settings of all tests: no timing decides one. And a toy job that was profiled and searched, once a session."""

import os
import shutil
import signal

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Tests run in several processes: threads that wait for work must not keep the others from theirs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "0")
# Tests measure beside other tests: the machine will not become quiet.
os.environ.setdefault("PRUNEAUG_LONGEST_WAIT_S", "0")

# A shell that runs the tests in the background leaves Ctrl-C ignored, which processes that a test starts would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)


CPUS = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One more than CPUs: many a test waits for processes that it started."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items):
    """The slow ones first: at the end they would keep one worker busy while the others have nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _all_cpus():
    """A test that measures ties its threads to one CPU each; the next one has them all again."""
    yield
    if CPUS is not None:
        os.sched_setaffinity(0, CPUS)


@pytest.fixture
def computed():
    """Times are computed, not measured."""
    from pruneaug.testing.network import computed_times

    with computed_times():
        yield


@pytest.fixture(scope="session")
def _stages(tmp_path_factory):
    """A folder for each of profiled, searched, exported: the toy job's after that command."""
    from toy_flow import pruneaug, write_job

    from pruneaug.testing.network import computed_times

    folder = tmp_path_factory.mktemp("toy")
    job = write_job(folder)
    with computed_times():
        for stage, words in {"profiled": ("profile", job), "searched": ("search", job)}.items():
            assert pruneaug(*words).code == 0
            shutil.copytree(folder, folder.with_name(f"{folder.name}-{stage}"))
        assert pruneaug("export", folder / "run").code == 0
    shutil.copytree(folder, folder.with_name(f"{folder.name}-exported"))
    return folder


@pytest.fixture
def toy_at(_stages, tmp_path, computed):
    """The folder of the toy job as it is after `stage`; it is the test's own."""

    def at(stage):
        from toy_flow import write_job

        shutil.copytree(_stages.with_name(f"{_stages.name}-{stage}"), tmp_path, dirs_exist_ok=True)
        write_job(tmp_path)
        resolved = tmp_path / "run" / "resolved.yaml"
        if resolved.exists():
            resolved.write_text(resolved.read_text().replace(str(_stages), str(tmp_path)))
        return tmp_path

    return at


@pytest.fixture(scope="session")
def builder():
    """Compiles kernels for this machine; one for all tests, so that each kernel is compiled once."""
    from pruneaug.kernels.build import Builder, CpuTarget
    from pruneaug.platforms import detect

    platform = detect(threads=2)
    return Builder(CpuTarget(**platform.kernel_target()))
