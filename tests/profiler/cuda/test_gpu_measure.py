"""Groups that are measured: turns, copies, checks, and what a kernel that crashes, hangs or is wrong costs."""

import json

import numpy as np
import pytest
from fake_gpu import FAULTS, FIRST_US, NAME, FakeDevice, emulated, faulty, keep_empty_programs

from pruneaug.errors import DeviceError, InputError, LatencyTableError, MeasurementError
from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import parse_shape
from pruneaug.network.ops import LinearOp
from pruneaug.profiler.cuda.calls import library_calls
from pruneaug.profiler.cuda.cases import TORCH, Group, Subject, subjects_of
from pruneaug.profiler.cuda.data import GroupData
from pruneaug.profiler.cuda.measure import Trying, measure_group
from pruneaug.profiler.cuda.process import GpuProcess, worker_process
from pruneaug.profiler.cuda.records import GpuRecord, Journal, timed
from pruneaug.profiler.cuda.run import profile_groups

GROUP = Group(LinearOp(40, 48, 16), "bfloat16", "block:16x16", 0.5)
TORCH_ONLY = Subject(TORCH)
WIDE = Group(LinearOp(16, 32, 64), "float16", "dense", 0.0)
pytestmark = pytest.mark.usefixtures("with_fakes")


@pytest.mark.slow
def test_kernels_of_both_layouts_compute_the_layer_and_take_turns_with_torch(tmp_path):
    device, folder = emulated(), ProgramFolder(tmp_path)
    from fake_driver import fake_program

    subjects = subjects_of(GROUP, [TORCH])
    for subject in subjects[:-1]:
        folder.write(fake_program(parse_shape(subject.variant)))
    steps = list(measure_group(GROUP, subjects, device, folder, budget_s=0.0))
    assert steps[: len(subjects) + 1] == [*map(Trying, subjects), Trying(None)]
    records = steps[len(subjects) + 1 :]
    assert [(record.subject, record.error) for record in records] == [(subject, None) for subject in subjects]
    assert {subject.variant.split("-")[1] for subject in subjects[:-1]} == {"rows", "columns"}
    for record in records:
        assert 0 < record.max_relative_error < 4e-3
        assert record.zeros == pytest.approx(1 / 3)  # one of three blocks
        assert record.rounds == 5
        assert record.p10_us <= record.latency_us <= record.p90_us
        assert record.state["before"]["temperature_c"] < record.state["during"]["temperature_c"]
        assert record.not_recorded is None
    # In turns: each round takes the time of each subject once, one after the other.
    steps_us = np.diff([record.latency_us * record.launches for record in records])
    assert steps_us == pytest.approx(1.0)


def test_times_choose_by_one_half_and_are_of_the_other():
    times = np.array([1.0, 3.0, 2.0, 10.0, 30.0, 20.0])
    record = timed(GROUP, TORCH_ONLY, NAME, times)
    assert (record.choice_us, record.latency_us, record.rounds) == (2.0, 20.0, 3)
    assert GpuRecord.from_json(json.loads(json.dumps(record.to_json()))) == record


@pytest.mark.parametrize(
    ("l2_bytes", "copies"), [(0, 1), (1 << 16, 32), (1 << 30, 4096)], ids=["no cache", "64 KiB", "1 GiB"]
)
def test_as_many_copies_take_turns_as_fill_the_cache_twice(l2_bytes, copies):
    device = FakeDevice(faulty().driver, l2_bytes)
    data = GroupData(WIDE, device.torch_device)  # 4 KiB of weights, 1 KiB of inputs, 2 KiB of outputs
    found = library_calls(WIDE, TORCH_ONLY, data, device)
    assert len(found.calls) == copies
    for call in (*found.calls[:32], found.calls[-1]):
        found.forget() if call is not found.calls[0] else None
        call()
        assert found.relative_error(data) < 1e-3
    (record,) = [
        step
        for step in measure_group(WIDE, [TORCH_ONLY], device, ProgramFolder("."), budget_s=0.0)
        if isinstance(step, GpuRecord)
    ]
    assert (record.weight_copies, record.launches % copies) == (copies, 0)
    # Once, and so often that it is long enough.
    assert device.recorded_calls == list(dict.fromkeys([copies, record.launches]))
    assert record.latency_us == pytest.approx(FIRST_US / record.launches, rel=0.1)


def test_a_wrong_kernel_is_an_error_and_the_rest_goes_on(tmp_path):
    subjects = subjects_of(GROUP, [TORCH])
    folder = keep_empty_programs(tmp_path, GROUP)
    steps = list(measure_group(GROUP, subjects, faulty(), folder, budget_s=0.0))
    *wrong, right = [step for step in steps if isinstance(step, GpuRecord)]
    assert len(wrong) == 2
    assert all("outputs in bfloat16 must differ from float64" in record.error for record in wrong)
    assert (right.subject, right.error) == (TORCH_ONLY, None)


def test_what_is_wrong_after_its_turns_has_no_time():
    """As weights are that another subject has overwritten: a kernel that reads them may have done nothing, quickly."""
    device = FakeDevice(faulty().driver)
    record = device.recorded

    def spoiled(calls):
        run, times = record(calls), iter([True] * 2)
        return lambda: run() if next(times, False) else None  # it does nothing when it is timed

    device.recorded = spoiled
    steps = measure_group(WIDE, [TORCH_ONLY], device, ProgramFolder("."), budget_s=0.0)
    (record,) = [step for step in steps if isinstance(step, GpuRecord)]
    assert record.latency_us is None
    assert record.error.startswith("after it was timed outputs in float16 must differ from float64")


def test_what_is_not_compiled_is_an_error(tmp_path):
    steps = list(measure_group(GROUP, subjects_of(GROUP, []), faulty(), ProgramFolder(tmp_path), budget_s=0.0))
    assert all("must be compiled for sm_80" in step.error for step in steps if isinstance(step, GpuRecord))
    assert Trying(None) not in steps


def process_for(tmp_path, device="fake_gpu:faulty", **options):
    return GpuProcess(tmp_path, **{"timeout_s": 60.0, "budget_s": 0.0, "device": device, **options})


@pytest.mark.slow
def test_a_crash_a_hang_and_a_poisoned_context_cost_one_kernel_each(tmp_path, monkeypatch):
    group = Group(LinearOp(40, 48, 64), "bfloat16", "block:64x16", 0.5)
    subjects = subjects_of(group, [TORCH])
    keep_empty_programs(tmp_path, group)
    faults = {"columns-c16-none-t64n16": "abort", "columns-c16-none-t64n32": "poison", "columns-c16-none-t16": "hang"}
    monkeypatch.setenv(FAULTS, json.dumps(faults))
    with process_for(tmp_path, timeout_s=30.0) as process:
        name = process.gpu().name
        records = {str(record.subject): record for record in process.measure(group, subjects, name)}
    assert set(records) == {str(subject) for subject in subjects}
    errors = {what: [record.error for key, record in records.items() if part in key] for part, what in faults.items()}
    assert [error.split(":")[0] for error in errors["abort"]] == ["the measuring process died of SIGABRT"]
    assert "CUDA_ERROR_ILLEGAL_ADDRESS" in errors["poison"][0]
    assert "hung: it gave no result within 30 s" in errors["hang"][0]
    others = [record for key, record in records.items() if not any(part in key for part in faults)]
    assert len(others) == len(subjects) - 3
    assert all("must differ from float64" in record.error for record in others if record.subject.variant)
    assert records["torch"].error is None


def test_the_process_measures_on_the_gpu_of_its_number(tmp_path):
    with process_for(tmp_path, index=2) as process:
        assert process.gpu().name == f"{NAME} 2"


def test_a_device_that_is_not_there_and_a_process_that_does_not_start_are_told(tmp_path):
    with process_for(tmp_path, "fake_gpu:absent") as process, pytest.raises(InputError, match="needs a GPU that PyT"):
        process.gpu()
    with (
        process_for(tmp_path, "fake_gpu:broken") as process,
        pytest.raises(MeasurementError, match="must start, but it ended with exit status 1: no such luck"),
    ):
        process.gpu()


def test_another_kind_of_gpu_must_not_answer_in_the_middle(tmp_path):
    numbers = iter([0, 0, 2])  # names of the fakes differ by their number
    with GpuProcess(tmp_path, start=lambda: worker_process("fake_gpu:faulty", next(numbers))) as process:
        assert process.gpu() == process.gpu()
        with pytest.raises(DeviceError, match="another one answers: cpu: Fake GPU here, Fake GPU 2 there"):
            process.gpu()


class CountedProcess:
    """Gives every subject a time, and stops before the group of this number."""

    def __init__(self, stop=None):
        self.groups, self._stop = [], stop

    def measure(self, group, subjects, gpu):
        if len(self.groups) == self._stop:
            raise KeyboardInterrupt
        self.groups.append(group)
        for subject in subjects:
            yield timed(group, subject, gpu, np.array([1.0, 2.0]))


def test_a_second_call_goes_on_where_the_first_ended(tmp_path):
    journal = Journal(tmp_path / "times.jsonl")
    others = Group(GROUP.op, "float16", GROUP.pattern, 0.5)
    groups = {GROUP: [TORCH_ONLY, Subject("tvm", "key")], others: [TORCH_ONLY]}
    with pytest.raises(KeyboardInterrupt):
        profile_groups(groups, CountedProcess(stop=1), journal, NAME)
    second, said = CountedProcess(), []
    found = profile_groups(groups, second, journal, NAME, lambda *done: said.append(done))
    assert second.groups == [others]
    assert {group: [row.subject for row in rows] for group, rows in found.items()} == groups
    assert said[-1] == (2, 2, "linear-t40-i48-o16 float16 block:16x16@0.5")
    assert profile_groups(groups, CountedProcess(stop=0), journal, NAME) == found


def test_a_line_that_was_cut_short_is_left_out_and_one_that_is_wrong_is_named(tmp_path):
    journal = Journal(tmp_path / "times.jsonl")
    journal.append(timed(GROUP, TORCH_ONLY, NAME, np.array([1.0, 2.0])))
    whole = journal.path.read_text()
    journal.path.write_text(whole + whole[:50])
    assert list(journal.load(NAME)) == [(GROUP, TORCH_ONLY)]
    journal.append(timed(WIDE, TORCH_ONLY, NAME, np.array([1.0, 2.0])))
    assert list(journal.load(NAME)) == [(GROUP, TORCH_ONLY), (WIDE, TORCH_ONLY)]
    with pytest.raises(LatencyTableError, match="holds some of 'Fake GPU' and this is 'Another'; name another file"):
        journal.load("Another")
    journal.path.write_text('{"version": 2}\n')
    with pytest.raises(LatencyTableError, match=r"times\.jsonl:1: a record of a GPU must be one that .* got 2"):
        journal.load(NAME)
