"""`tensorboard`: event files that TensorBoard shows, one run of it for each trial and one for the search."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pruneaug.errors import PluginError
from pruneaug.trackers.figures import metrics_of, parameters_of, rungs_of
from pruneaug.trackers.protocol import Tracked, TrialData

FOLDER = "tensorboard"
_SEARCH = "search"
_LAST = "trial/seconds"  # written last: a trial with it is recorded whole
RUNG_STEPS = 1000
"""TensorBoard counts in whole steps: a rung at 0.25 epochs is at step 250."""


class TensorBoard:
    """Writes to `folder`, by default RUN/tensorboard.

    `search` holds each figure over the trials' numbers, `trial-<number>` a trial's parameters, figures and rungs.
    """

    def __init__(self, run: Tracked, folder: str | None = None) -> None:
        self._folder = Path(folder) if folder is not None else run.folder / FOLDER
        self._writer = _writer_class()
        self._search: Any = None
        self._recorded: set[int] = set()

    def trial_finished(self, record: TrialData) -> None:
        if self._search is None:
            self._recorded = recorded_steps(self._folder / _SEARCH)
            self._search = self._writer(str(self._folder / _SEARCH))
        number = int(record["number"])
        if number in self._recorded:
            return
        metrics = metrics_of(record)
        self._write_trial(number, record, metrics)
        for name, value in metrics.items():
            if f"trial/{name}" != _LAST:
                self._search.add_scalar(f"trial/{name}", value, number)
        self._search.add_scalar(_LAST, metrics.get("seconds", 0.0), number)
        self._search.flush()
        self._recorded.add(number)

    def closed(self) -> None:
        if self._search is not None:
            self._search.close()

    def _write_trial(self, number: int, record: TrialData, metrics: dict[str, float]) -> None:
        from torch.utils.tensorboard.summary import hparams

        folder = self._folder / f"trial-{number:04d}"
        shutil.rmtree(folder, ignore_errors=True)  # what a killed driver began
        with self._writer(str(folder)) as writer:
            state = "feasible" if (record.get("violation") or 0.0) <= 0 else "infeasible"
            told = {"state": record["state"] if record["state"] != "complete" else state}
            parameters = {k: v for k, v in parameters_of(record).items() if not k.startswith("layer.")}
            figures = {f"trial/{name}": value for name, value in metrics.items()}
            for summary in hparams(parameters | told, figures):  # type: ignore[no-untyped-call]
                writer.file_writer.add_summary(summary)
            writer.add_text("assignment", f"```\n{json.dumps(record.get('assignment') or {}, indent=1)}\n```", number)
            for name, value in metrics.items():
                writer.add_scalar(f"trial/{name}", value, number)
            for epochs, accuracy in rungs_of(record):
                writer.add_scalar("rungs/accuracy_validation", accuracy, round(RUNG_STEPS * epochs))


def recorded_steps(folder: Path) -> set[int]:
    """The numbers of the trials that the event files of the search hold."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

    if not folder.is_dir():
        return set()
    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0}).Reload()
    return {event.step for event in events.Scalars(_LAST)} if _LAST in events.Tags()[SCALARS] else set()


def _writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PluginError(
            f"the tracker 'tensorboard' needs the package tensorboard ({error}); pip install 'pruneaug[tensorboard]'"
        ) from error
    return SummaryWriter
