"""What goes on beside a search: the files that a report of an unfinished run needs, and the trackers."""

from __future__ import annotations

import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from pruneaug.api.job import OpenJob, Progress
from pruneaug.errors import PluginError, PruneaugError
from pruneaug.files import atomic_write_text
from pruneaug.latency.table import LatencyTable
from pruneaug.report.folder import LAYERS, STATUS, read_object, read_trial, trial_numbers
from pruneaug.searcher.space import build_space
from pruneaug.sparsity.patterns import DENSE
from pruneaug.spec import public_settings
from pruneaug.spec.models import PlugIn
from pruneaug.trackers import TRACKERS
from pruneaug.trackers.protocol import Tracked, Tracker

_log = logging.getLogger(__name__)
SEARCH = "Search"
_INTERVAL_S = 1.0

MakeTracker = Callable[[], Tracker]


def make_trackers(job: OpenJob) -> list[tuple[str, Tracker]]:
    """The job's trackers by name. Raises PluginError for a name or an option that is none, and a package that lacks."""
    run = Tracked(Path(job.spec.run).resolve(), Path(job.spec.run).name, public_settings(job.spec))
    named = [PlugIn(name=item) if isinstance(item, str) else item for item in job.spec.search.trackers]
    return [(plugin.name, _made(plugin, run)) for plugin in named]


def _made(plugin: PlugIn, run: Tracked) -> Tracker:
    try:
        tracker = TRACKERS.create(plugin.name, plugin.options, run)
    except PruneaugError:
        raise
    except Exception as error:
        raise PluginError(f"the tracker {plugin.name!r} cannot begin: {type(error).__name__}: {error}") from error
    if not isinstance(tracker, Tracker):
        raise PluginError(f"the tracker {plugin.name!r} must have `trial_finished` and `closed`, but is {tracker!r}")
    return tracker


def layers_json(job: OpenJob, table: LatencyTable, rest_us: float) -> dict[str, Any]:
    """What layers.json holds: all that a report needs to know of the network, its space and its platform."""
    space = build_space(job.network, job.spec.space, table)
    dense = [layer.layer.calls * table.latency_us(layer.layer.op, DENSE) for layer in space.layers]
    return {
        "version": 1,
        "platform": job.platform.to_json(),
        "network": {
            "name": job.spec.task.model.name if job.spec.task.model else type(job.model).__name__,
            "parameters": sum(parameter.numel() for parameter in job.model.parameters()),
            "macs": sum(layer.calls * layer.op.macs for layer in job.network.layers),
        },
        "validation_examples": job.task.size("validation"),
        "latency_us_dense": rest_us + sum(dense),
        "rest_us": rest_us,
        "kept_dense": [{"name": kept.name, "reason": kept.reason} for kept in job.network.kept_dense],
        "layers": [
            {
                "name": layer.name,
                "op": layer.layer.op.key,
                "calls": layer.layer.calls,
                "latency_us_dense": dense_us,
                "choices": [
                    {**choice.to_json(), "latency_us": latency_us}
                    for choice, latency_us in zip(layer.choices, layer.latencies_us, strict=True)
                ],
            }
            for layer, dense_us in zip(space.layers, dense, strict=True)
        ],
    }


class Following:
    """A search's progress on its way to the user: on it, the run's status is written and its trackers are told.

    Nothing here may end a search: a file that cannot be written is left out, and a tracker that fails is told no more.
    """

    def __init__(
        self,
        folder: Path,
        facts: Callable[[], dict[str, Any]],
        trackers: Sequence[tuple[str, Tracker]],
        progress: Progress | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._facts = facts
        self._trackers = list(trackers)
        self._progress = progress
        self._clock = clock
        self._told: set[int] = set()
        self._is_begun = False
        self._written = float("-inf")
        self._wanted: int | None = None
        self._running: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Following:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_begun:  # else the folder may belong to another driver
            self._tell()
            self._running.clear()
            self._write_status(searching=False)
        for name, tracker in list(self._trackers):
            self._guard(name, tracker, tracker.closed)

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """A stage's progress. The driver holds the run's lock when it says the first."""
        if not self._is_begun:
            self._begin()
        is_news = stage == SEARCH or stage not in self._running
        self._note(stage, done, total, note)
        if stage == SEARCH:
            self._tell()
        if is_news or self._clock() - self._written >= _INTERVAL_S:
            self._write_status(searching=True)
        if self._progress is not None:
            self._progress(stage, done, total, note)

    def _begin(self) -> None:
        self._is_begun = True
        try:
            facts = self._facts()
            if read_object(self._folder / LAYERS) != facts:
                atomic_write_text(self._folder / LAYERS, json.dumps(facts, indent=1, allow_nan=False) + "\n")
        except Exception:
            _log.warning("%s could not be written; the report will say less", LAYERS, exc_info=True)

    def _note(self, stage: str, done: int, total: int, note: str) -> None:
        if stage != SEARCH:
            self._running[stage] = {"done": done, "total": total, "note": note}
            return
        self._wanted = total
        finished = trial_numbers(self._folder)
        trials = {name: _number(name) for name in self._running}
        self._running = {name: self._running[name] for name, n in trials.items() if n is not None and n not in finished}

    def _write_status(self, searching: bool) -> None:
        self._written = self._clock()
        status = {
            "version": 1,
            "pid": os.getpid(),
            "searching": searching,
            "updated_at": time.time(),
            "wanted": self._wanted,
            "running": self._running,
        }
        part = self._folder / f".{STATUS}.{os.getpid()}.part"
        try:  # not synced to the disk: it is out of date a second later
            with open(part, "w", encoding="utf-8") as file:
                json.dump(status, file, indent=1)
            os.replace(part, self._folder / STATUS)
        except (OSError, ValueError):
            _log.warning("%s could not be written", STATUS, exc_info=True)

    def _tell(self) -> None:
        for number in sorted(trial_numbers(self._folder) - self._told):
            record = read_trial(self._folder, number)
            self._told.add(number)
            for name, tracker in list(self._trackers) if record else ():
                self._guard(name, tracker, partial(tracker.trial_finished, record))

    def _guard(self, name: str, tracker: Tracker, call: Callable[[], None]) -> None:
        """Call it; if it fails, warn once and tell the tracker no more."""
        try:
            call()
        except Exception as error:
            self._trackers = [pair for pair in self._trackers if pair[1] is not tracker]
            _log.warning("the tracker %s failed", name, exc_info=True)
            warnings.warn(
                f"the tracker {name!r} failed and is told no more ({type(error).__name__}: {error}); "
                "the search goes on, and a later search of this run tells it all trials again",
                RuntimeWarning,
                stacklevel=2,
            )


def _number(stage: str) -> int | None:
    name, _, number = stage.partition(" ")
    return int(number) if name == "Trial" and number.isdecimal() else None
