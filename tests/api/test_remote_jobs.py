"""Jobs whose platform is a remote device, without one: what is asked of it, and when."""

import json
from dataclasses import replace

import pytest
from toy_flow import pruneaug, toy_job, write_job

from pruneaug.api import profiling
from pruneaug.api.benching import BASELINES, compile_only, measure
from pruneaug.api.job import OpenJob, open_job
from pruneaug.api.profiling import estimate_profile, profile
from pruneaug.errors import DeviceError
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms import write_platform
from pruneaug.profiler.network import NetworkTime, Subject
from pruneaug.profiler.place import Place
from pruneaug.profiler.run import REMOTE_MEASURER, ProfileResult
from pruneaug.spec.platform import RemoteSpec
from pruneaug.testing.platform import ANALYTIC_PLATFORM

PI = replace(
    ANALYTIC_PLATFORM, name="pi", arch="aarch64", isa=("neon",), cores=4, threads=2, mcpu="cortex-a72",
    triple="aarch64-unknown-linux-gnu",
)  # fmt: skip
TRACKER = {"address": "127.0.0.1:9190", "tracker_key": "pi4", "devices": 3, "timeout_s": 50.0}
REMOTE = RemoteSpec.model_validate(TRACKER)


def remote_job(folder, **changes):
    return open_job(
        toy_job(folder, **{"platform__name": "pi", "platform__threads": 2, **changes, "platform__remote": TRACKER})
    )


@pytest.fixture
def asked(monkeypatch):
    """The threads and names for which the device was asked."""
    found = []

    def detect(remote, threads, name):
        found.append((threads, name))
        return replace(PI, threads=threads or 4)

    monkeypatch.setattr("pruneaug.api.job.detect_remote", detect)
    return found


def test_a_device_is_not_asked_once_its_table_tells_what_it_is(tmp_path, asked):
    assert remote_job(tmp_path).platform == PI
    assert asked == [(2, "pi")]
    write_platform(tmp_path / "db" / "pi", replace(PI, versions=(("apache-tvm", "0.1"),)))
    for threads in (2, None):
        platform = remote_job(tmp_path, platform__threads=threads).platform
        assert replace(platform, versions=()) == PI
        assert dict(platform.versions)["apache-tvm"] != "0.1"  # what compiles now
    assert asked == [(2, "pi")]


def test_a_device_is_asked_for_other_threads_and_without_a_name(tmp_path, asked):
    write_platform(tmp_path / "db" / "pi", PI)
    assert remote_job(tmp_path, platform__threads=4).platform.threads == 4
    assert remote_job(tmp_path, platform__name=None).platform.name == "pi"
    assert asked == [(4, "pi"), (2, None)]


def test_the_table_of_this_machine_is_not_taken_for_the_devices(tmp_path, asked):
    write_platform(tmp_path / "db" / "pi", replace(PI, triple=None))
    remote_job(tmp_path).platform  # noqa: B018 - a property that asks
    assert asked == [(2, "pi")]


def test_a_profile_is_shared_by_the_devices_and_measures_our_kernels(tmp_path, asked, monkeypatch):
    calls = {}

    def profile_ops(*args, **values):
        calls.update(values)
        raise DeviceError("seen")

    monkeypatch.setattr(profiling, "profile_ops", profile_ops)
    job = remote_job(tmp_path)
    with pytest.raises(DeviceError, match="seen"):
        profile(job.spec)
    assert calls["measurer"] == REMOTE_MEASURER
    assert calls["options"] == {"remote": json.loads(REMOTE.model_dump_json())}
    assert calls["libraries"] == ("tvm",)
    assert calls["workers"] == 3
    assert calls["timeout_s"] == 250.0
    missing, cells, _ = estimate_profile(job)
    assert missing == cells
    assert cells < estimate_profile(open_job(toy_job(tmp_path))).cells  # no dense layers of other libraries


def test_the_rest_of_a_network_is_measured_there(tmp_path, asked, monkeypatch):
    seen = []
    monkeypatch.setattr(profiling, "profile_ops", lambda *args, **values: ProfileResult(0, 0, (), ()))
    monkeypatch.setattr(profiling, "sample_network", lambda *args: "sampled")
    monkeypatch.setattr(OpenJob, "rest", lambda self: None)
    monkeypatch.setattr(LatencyStore, "table", lambda self: None)
    monkeypatch.setattr(profiling, "write_rest", lambda *args: None)
    monkeypatch.setattr(profiling, "measure_rest", lambda sampled, place, told: seen.append(place))
    write_platform(tmp_path / "db" / "pi", PI)
    profile(remote_job(tmp_path).spec)
    (place,) = seen
    assert (place.platform.fingerprint, place.remote, place.gpu) == (PI.fingerprint, REMOTE, None)


def test_whole_networks_are_measured_there_in_our_runtime_only(monkeypatch):
    timed = []

    def time_remotely(subjects, platform, remote, *, rounds, progress):
        timed.append(([subject.runtime for subject in subjects], remote, rounds))
        return tuple(NetworkTime(subject.runtime, 1.0, 1.0, 1.0, 1, 0.0) for subject in subjects)

    monkeypatch.setattr("pruneaug.profiler.place.time_remotely", time_remotely)
    dense, pruned = Subject("pruneaug-dense", None, None), Subject("pruneaug-sparse", None, None)
    place = Place(PI, REMOTE)
    assert len(measure(place, BASELINES, dense=dense, pruned=pruned, rounds=2)) == 2
    assert compile_only(place, pruned).runtime == "pruneaug-sparse"
    assert timed == [(["pruneaug-dense", "pruneaug-sparse"], REMOTE, 2), (["pruneaug-sparse"], REMOTE, 0)]


def test_doctor_tells_what_the_device_of_a_job_is(tmp_path, monkeypatch):
    monkeypatch.setattr("pruneaug.api.planning.examine", lambda remote, threads, name: (PI, ("it is hot",)))
    ended = pruneaug("doctor", "--job", write_job(tmp_path, platform__remote=TRACKER), "--json")
    told = json.loads(ended.out)
    assert (told["device"]["address"], told["device"]["compiled for"]) == ("127.0.0.1:9190", "cortex-a72")
    assert told["load"]["warnings"] == ["it is hot"]


def test_doctor_needs_a_job_with_a_device(tmp_path):
    ended = pruneaug("doctor", "--job", write_job(tmp_path))
    assert ended.code == 2
    assert "must have platform.remote" in ended.err
