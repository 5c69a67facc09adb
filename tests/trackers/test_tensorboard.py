"""The event files are read back with TensorBoard's own reader."""

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from pruneaug.testing.trackers import TrackerContract, finished_trial
from pruneaug.trackers.protocol import Tracked
from pruneaug.trackers.tensorboard import TensorBoard


def read(folder):
    return EventAccumulator(str(folder)).Reload()


class TestTensorBoard(TrackerContract):
    def make(self, run):
        return TensorBoard(run)

    def recorded(self, run):
        return [event.step for event in read(run.folder / "tensorboard" / "search").Scalars("trial/seconds")]


@pytest.fixture
def folder(tmp_path):
    tracker = TensorBoard(Tracked(tmp_path, "a run", {}), folder=str(tmp_path / "events"))
    for number in range(2):
        tracker.trial_finished(finished_trial(number))
    tracker.closed()
    return tmp_path / "events"


def test_the_search_has_each_figure_over_the_trials_numbers(folder):
    events = read(folder / "search")
    assert [(e.step, e.value) for e in events.Scalars("trial/latency_ms")] == [
        (0, pytest.approx(1.5)),
        (1, pytest.approx(1.499)),
    ]
    assert {"trial/accuracy_validation", "trial/accuracy_loss", "trial/sparsity", "trial/epochs"} <= set(
        events.Tags()["scalars"]
    )


def test_a_trial_has_its_parameters_figures_rungs_and_assignment(folder):
    events = read(folder / "trial-0001")
    rungs = [(event.step, event.value) for event in events.Scalars("rungs/accuracy_validation")]
    assert rungs == [(250, pytest.approx(0.7)), (500, pytest.approx(0.8))]
    start = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    parameters = plugin_data_pb2.HParamsPluginData.FromString(start).session_start_info.hparams
    assert parameters["pattern 0"].string_value == "block:8x1"
    assert parameters["sparsity"].number_value == 0.85
    assert parameters["state"].string_value == "feasible"
    (text,) = events.Tensors("assignment/text_summary")
    assert b"block:8x1" in text.tensor_proto.string_val[0]


def test_a_trial_that_a_killed_driver_began_is_written_anew(folder, tmp_path):
    for path in (folder / "search").iterdir():
        path.unlink()
    tracker = TensorBoard(Tracked(tmp_path, "a run", {}), folder=str(folder))
    tracker.trial_finished(finished_trial(1))
    tracker.closed()
    assert len(list((folder / "trial-0001").iterdir())) == 1
    assert [event.step for event in read(folder / "trial-0001").Scalars("trial/seconds")] == [1]
