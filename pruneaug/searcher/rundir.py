"""The run folder: everything that is needed to resume after a kill at any moment.

resolved.yaml            the job
run.json                 what the run was begun with: name of the study, digests, latency of the rest
lock                     held by the driver while it runs
run.log                  one line per event
study.db                 Optuna's study; can be rebuilt from trials/
dense/                   model.safetensors, record.json: the network before pruning
trials/<number>.json     the finished trials; these files are the truth
weights/<number>/        model.safetensors, masks.safetensors of the trials that the end of the search needs, and of
                         those that others may inherit from
checkpoints/<name>       a training on its way: of a trial, of the dense network, of the end of the search; beside it
                         <name>.rungs.json, how it was judged so far, and <name>.deaths.json, how often the search died
finals/<number>/         a finalist after the long fine-tuning
best/                    model.safetensors, masks.safetensors, record.json: the winner
saliency.json            what each choice of each layer loses of the scores
cost.json                seconds: of the trials, and of the search beside them
workers/<number>.log     what worker processes wrote
final.json               test accuracies, each read once
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from pruneaug.errors import RunError
from pruneaug.files import atomic_write_text, storage_errors
from pruneaug.searcher.weights import MASKS
from pruneaug.spec.load import load_job
from pruneaug.spec.models import JobSpec
from pruneaug.spec.resolve import dump_job, job_digest, result_settings

VERSION = 1
_locked_here: set[Path] = set()


class RunDir:
    """The paths of one run folder, its lock, and the check that it belongs to the job."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()  # two names of one folder share its lock
        self.resolved = self.path / "resolved.yaml"
        self.info = self.path / "run.json"
        self.log = self.path / "run.log"
        self.study = self.path / "study.db"
        self.trials = self.path / "trials"
        self.dense = self.path / "dense"
        self.weights = self.path / "weights"
        self.best = self.path / "best"
        self.finals = self.path / "finals"
        self.checkpoints = self.path / "checkpoints"
        self.saliency = self.path / "saliency.json"
        self.cost = self.path / "cost.json"
        self.workers = self.path / "workers"
        self.final = self.path / "final.json"

    def begin(self, job: JobSpec, latencies: str, rest_us: float) -> dict[str, Any]:
        """Begin the run, or resume it; returns what run.json holds.

        `latencies` identifies the times that the table gives to the search space. Raises RunError if the folder
        belongs to another job or if the times changed since: trials would no longer compare.
        """
        if not self.info.exists():
            if self.trials.exists():
                raise RunError(
                    f"a run folder must hold run.json, but {self.path} holds only trials; choose a new `run`"
                )
            atomic_write_text(self.resolved, dump_job(job))
            info = {
                "version": VERSION,
                "study": f"pruneaug-{uuid.uuid4().hex}",
                "job": job_digest(job),
                "latencies": latencies,
                "rest_us": rest_us,
            }
            write_json(self.info, info)
            return info
        info = read_json(self.info)
        if info.get("version") != VERSION:
            raise RunError(
                f"a run folder must be of version {VERSION}, but {self.path} is of {info.get('version')!r}; "
                "go on with the pruneaug that began it, or choose a new folder with `run` (--set run=...)"
            )
        if info.get("job") != job_digest(job) and (differing := self._differing(job)):
            raise RunError(
                f"a run folder belongs to one job, but {self.path} was begun with another value of "
                f"{differing}; set them back, or choose a new folder with `run` (--set run=...)"
            )
        if info.get("latencies") != latencies:
            raise RunError(
                f"the latencies must stay as they were when {self.path} was begun, but the latency table gives other "
                "times now; put the old table back, or choose a new folder with `run` (--set run=...)"
            )
        atomic_write_text(self.resolved, dump_job(job))  # trials, timeout and storage may differ
        return info

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other drivers out. The kernel frees the lock when this process ends, however it ends.

        Raises RunError if another driver has it.
        """
        path = self.path / "lock"
        if path in _locked_here:
            raise RunError(f"a run folder takes one driver at a time, but this process already runs {self.path}")
        with storage_errors(path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        with file:
            try:
                # Not flock: data-loading children inherit that one, and may outlive a killed driver.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise RunError(
                    f"a run folder takes one driver at a time, but {self.path} is in use by {holder}; "
                    "wait for it, or choose a new folder with `run` (--set run=...)"
                ) from None
            with storage_errors(path):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                file.flush()
            _locked_here.add(path)
            try:
                yield
            finally:
                _locked_here.discard(path)

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Copy what pruneaug logs inside to run.log."""
        with storage_errors(self.log):
            handler = _LogFile(self.log, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger = logging.getLogger("pruneaug")
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            with contextlib.suppress(OSError):
                handler.close()

    def trial_weights(self, number: int) -> Path:
        """The folder of one trial's weights and masks."""
        return self.weights / str(number)

    def final_weights(self, number: int) -> Path:
        """The folder of one finalist after the long fine-tuning."""
        return self.finals / str(number)

    def has_weights(self, number: int) -> bool:
        """Whether the trial's weights and masks are there; the masks are written last."""
        return (self.trial_weights(number) / MASKS).exists()

    def tuned_weights(self, number: int) -> Path | None:
        """The folder of a trial's weights and masks, after a long fine-tuning that helped; None if they are gone."""
        folders = (self.final_weights(number), self.trial_weights(number))
        return next((folder for folder in folders if (folder / MASKS).exists()), None)

    def checkpoint(self, name: str) -> Path:
        """Where a training on its way is kept."""
        return self.checkpoints / name

    def drop_checkpoint(self, name: str) -> None:
        """Remove a checkpoint, and what lies beside it: the training is over and its result is safe."""
        path = self.checkpoint(name)
        for file in (path, rung_scores(path), deaths(path)):
            file.unlink(missing_ok=True)

    def drop_weights(self, keep: Collection[int]) -> None:
        """Remove the weights of all trials but these. What cannot be removed stays: it is only in the way."""
        names = {str(number) for number in keep}
        for folder in self.weights.glob("*"):
            if folder.name not in names:
                shutil.rmtree(folder, ignore_errors=True)

    def _differing(self, job: JobSpec) -> str:
        """The keys with other values; none if only keys were added, since it was begun, that have their defaults."""
        begun, now = result_settings(load_job(self.resolved)), result_settings(job)
        # An empty mapping has no keys to tell apart: it is not there once it has some.
        begun, now = ({key: value for key, value in values.items() if value != {}} for values in (begun, now))
        keys = [key for key in {**begun, **now} if begun.get(key) != now.get(key)]
        words = [[repr(values[key]) if key in values else "not set" for values in (begun, now)] for key in keys]
        return ", ".join(f"{key} ({before}, now {after})" for key, (before, after) in zip(keys, words, strict=True))


def rung_scores(checkpoint: Path) -> Path:
    """Where the rungs of a training lie, as they were judged so far: {"rungs": [[epochs, accuracy], ...]}."""
    return checkpoint.with_name(f"{checkpoint.name}.rungs.json")


def deaths(checkpoint: Path) -> Path:
    """Where it is counted how often a training took the search's own process with it: {"times": count}."""
    return checkpoint.with_name(f"{checkpoint.name}.deaths.json")


class _LogFile(logging.FileHandler):
    """A log that a full disk cuts short; what must not be lost is written elsewhere, and fails with a message."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Raises StorageError."""
    atomic_write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Raises RunError if the file is missing or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} must hold JSON, but does not ({error}); choose a new folder with `run`") from error
    if not isinstance(value, dict):
        raise RunError(
            f"{path} must hold a JSON object, but holds {type(value).__name__}; choose a new folder with `run`"
        )
    return value
