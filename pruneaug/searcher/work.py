"""What is handed to an executor, what comes back, and how a worker does it, wherever it runs."""

from __future__ import annotations

import logging
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pruneaug.errors import StorageError
from pruneaug.finetune.protocol import Progress
from pruneaug.searcher.candidate import Candidate, Evaluator, Session, finite_accuracy
from pruneaug.searcher.origin import Origin
from pruneaug.searcher.rundir import read_json, rung_scores, write_json
from pruneaug.searcher.weights import MASKS, MODEL, load_tensors, save_tensors
from pruneaug.sparsity.masks import mask_sparsity
from pruneaug.sparsity.patterns import Assignment

_log = logging.getLogger(__name__)

RungScore = tuple[float, float]
"""(epochs trained so far, validation accuracy then)."""


@dataclass(frozen=True, slots=True)
class TrialWork:
    """One network to be made and judged: plain data that may go to another process or machine.

    key: tells works on their way apart. number: the trial that it belongs to. folder: where its weights go; all workers
    must see it. checkpoint: where its training is kept on its way, to go on there after a kill, or None. rungs: epochs
    at which it is judged on its way. inherit: the folder of a finished network to begin with, or None. refine: the
    folder of a pruned network to fine-tune for longer, or None. store_from: the accuracy from which its weights are
    worth storing. timeout_s: when it counts as hanging. attempt: from 1; each lost worker makes it one more.
    """

    key: str
    number: int
    assignment: Assignment
    seed: int
    folder: Path
    rungs: tuple[float, ...] = ()
    inherit: Path | None = None
    refine: Path | None = None
    store_from: float = 0.0
    checkpoint: Path | None = None
    timeout_s: float | None = None
    attempt: int = 1


@dataclass(frozen=True, slots=True)
class Judged:
    """The network was made and judged; its weights and masks are in the work's folder if `stored`.

    sparsities: of each mask. stopped: a rung ended it, and there is neither an accuracy nor anything stored.
    """

    work: TrialWork
    accuracy: float
    epochs: float
    seconds: float
    sparsities: Mapping[str, float]
    rungs: tuple[RungScore, ...] = ()
    stored: bool = True
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Failed:
    """The network could not be made; `error` says why. full: the disk is what failed, and nothing is wrong with it."""

    work: TrialWork
    error: str
    seconds: float
    full: bool = False


@dataclass(frozen=True, slots=True)
class Lost:
    """The worker died, and not by itself being told so: the work may be given to another."""

    work: TrialWork
    error: str
    seconds: float


Event = Judged | Failed | Lost
OnRung = Callable[[TrialWork, tuple[RungScore, ...]], bool]
"""Called with the work and all its rungs so far; False ends the training."""


class TrialTimeout(Exception):
    """A trial took longer than it may."""


def do_work(
    work: TrialWork, evaluator: Evaluator, on_rung: OnRung, progress: Progress | None = None
) -> Judged | Failed:
    """Make the network, judge it, and store it. Whatever goes wrong in it comes back as Failed."""
    started = time.monotonic()
    try:
        rungs = _scores_before(work)
        with _time_limit(work):
            candidate = _candidate(work, evaluator, rungs, on_rung, progress)
        if candidate.stopped:
            return Judged(
                work, 0.0, candidate.epochs, time.monotonic() - started, {}, tuple(rungs), stored=False, stopped=True
            )
        accuracy = finite_accuracy(candidate.accuracy)
        is_stored = accuracy >= work.store_from
        if is_stored:
            save_tensors(work.folder / MODEL, candidate.weights)
            save_tensors(work.folder / MASKS, candidate.masks)
        sparsities = {name: mask_sparsity(mask) for name, mask in candidate.masks.items()}
        seconds = time.monotonic() - started
        return Judged(work, accuracy, candidate.epochs, seconds, sparsities, tuple(rungs), is_stored)
    except StorageError as error:  # nothing is wrong with the trial: it runs again when there is room
        return Failed(work, str(error), time.monotonic() - started, full=True)
    except Exception as error:  # of any plug-in, of memory: one broken trial never ends a search
        _log.warning("trial %d failed", work.number, exc_info=True)
        shutil.rmtree(work.folder, ignore_errors=True)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return Failed(work, f"{type(error).__name__}: {error}", time.monotonic() - started)


def _candidate(
    work: TrialWork, evaluator: Evaluator, rungs: list[RungScore], on_rung: OnRung, progress: Progress | None
) -> Candidate:
    def judge(epochs: float, accuracy: float) -> bool:
        # A training that goes on after a kill comes to the rung of its checkpoint once more.
        rungs[:] = [*(rung for rung in rungs if rung[0] < epochs), (epochs, finite_accuracy(accuracy))]
        if work.checkpoint is not None:
            write_json(rung_scores(work.checkpoint), {"rungs": rungs})
        return on_rung(work, tuple(rungs))

    session = Session(work.rungs, judge, work.checkpoint, None if work.inherit is None else Origin.load(work.inherit))
    options: dict[str, Any] = {} if session.is_plain else {"session": session}
    if work.refine is None:
        return evaluator.prune(work.assignment, seed=work.seed, progress=progress, **options)
    weights, masks = load_tensors(work.refine / MODEL), load_tensors(work.refine / MASKS)
    return evaluator.refine(weights, masks, seed=work.seed, progress=progress, **options)


def _scores_before(work: TrialWork) -> list[RungScore]:
    """The rungs that this training was judged at before it was interrupted."""
    if work.checkpoint is None or not (path := rung_scores(work.checkpoint)).exists():
        return []
    return [(float(epochs), float(accuracy)) for epochs, accuracy in read_json(path)["rungs"]]


@contextmanager
def _time_limit(work: TrialWork) -> Iterator[None]:
    """Raise TrialTimeout inside after the work's time; only a main thread can, and only while Python runs."""
    if work.timeout_s is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise TrialTimeout(timeout_text(work))

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, work.timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def timeout_text(work: TrialWork) -> str:
    what, key = ("trial", "trial_timeout_s") if work.refine is None else ("final fine-tuning", "final_timeout_s")
    return f"the {what} took longer than search.{key}, {work.timeout_s or 0.0:g} s; raise it if that is too short"
