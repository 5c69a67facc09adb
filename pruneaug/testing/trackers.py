"""What every tracker must keep: subclass the contract in a test, as those of pruneaug.testing.contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pruneaug.trackers.protocol import Tracked, Tracker


def finished_trial(number: int, state: str = "complete", **more: Any) -> dict[str, Any]:
    """The record of a finished trial, as a tracker is told it."""
    judged = {"accuracy_validation": 0.9, "accuracy_loss": 0.01, "violation": -0.01, "rungs": [[0.25, 0.7], [0.5, 0.8]]}
    return {
        "version": 1,
        "number": number,
        "state": state,
        "params": {"pattern 0": "block:8x1", "sparsity": 0.85},
        "assignment": {"0": {"pattern": "block:8x1", "sparsity": 0.85}},
        "sparsity": 0.8,
        "latency_us": 1500.0 - number,
        "epochs": 1.0,
        "seconds": 12.5,
        "error": None,
        **(judged if state == "complete" else {}),
        **more,
    }


class TrackerContract:
    """Of a Tracker. Override `make`, and `recorded`: the numbers of the trials that the other tool holds, repeated ones
    as often as it holds them.
    """

    def make(self, run: Tracked) -> Tracker:
        raise NotImplementedError

    def recorded(self, run: Tracked) -> list[int]:
        raise NotImplementedError

    @pytest.fixture
    def run(self, tmp_path: Path) -> Tracked:
        return Tracked(tmp_path, "a run", {"task": {"name": "digits"}})

    def test_it_has_both_methods(self, run: Tracked) -> None:
        assert isinstance(self.make(run), Tracker)

    def test_trials_of_every_state_are_recorded(self, run: Tracked) -> None:
        tracker = self.make(run)
        for number, state in enumerate(("complete", "skipped", "stopped", "failed")):
            tracker.trial_finished(finished_trial(number, state, error="no room" if state == "failed" else None))
        tracker.closed()
        assert sorted(self.recorded(run)) == [0, 1, 2, 3]

    def test_a_search_that_goes_on_records_no_trial_twice(self, run: Tracked) -> None:
        for until in (1, 3, 3):
            tracker = self.make(run)
            for number in range(until):
                tracker.trial_finished(finished_trial(number))
            tracker.closed()
        assert sorted(self.recorded(run)) == [0, 1, 2]

    def test_figures_that_are_not_known_are_left_out(self, run: Tracked) -> None:
        tracker = self.make(run)
        unknown = ("accuracy_validation", "accuracy_loss", "sparsity", "seconds", "rungs", "params")
        tracker.trial_finished(finished_trial(0) | dict.fromkeys(unknown))
        tracker.trial_finished({"number": 1, "state": "failed"})
        tracker.closed()
        assert sorted(self.recorded(run)) == [0, 1]

    def test_closing_without_a_trial_and_closing_twice_are_fine(self, run: Tracked) -> None:
        tracker = self.make(run)
        tracker.closed()
        tracker.closed()
