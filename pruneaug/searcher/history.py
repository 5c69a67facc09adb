"""The Optuna study, kept in step with the trial records.

The records on disk are the truth; the study is what samplers and dashboards read. A record becomes in the study:

- `complete`: COMPLETE, its value what the objective minimises (the latency in microseconds, or the accuracy loss; both
  where the strategy asks for two directions), with the constraint `accuracy_loss` or `latency` (allowed when <= 0);
- `stopped`: PRUNED with its rungs as reports, at steps 1, 2, ..., and what it exceeded the limit by as the constraint;
- `skipped`: PRUNED with the latency as its one report. Samplers rank it after the feasible trials, by latency, and
  before the infeasible ones; it is never the best trial, and it says nothing about accuracy. Where its violation is
  known, of a latency limit or of a network that was judged before, that is its constraint;
- `failed`: FAIL, which samplers ignore.

Every ask is marked with the number of the record that it is for. A driver that dies leaves a RUNNING trial, which
`reconcile` finishes: from its record if that was written, as FAIL otherwise, and then the number is asked for again.
"""

from __future__ import annotations

import contextlib
import sqlite3
import warnings
from collections.abc import Iterator, Mapping

import numpy as np
import optuna
import sqlalchemy
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError

from pruneaug.errors import RunError, SpecError, StorageError
from pruneaug.searcher.objective import Goal
from pruneaug.searcher.trial import TrialRecord
from pruneaug.spec.resolve import hide_password

NUMBER = "number"
RECORDED = "recorded"
KILLED = "killed"
SUBMITTED = "submitted"
_DISK_FAULTS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
_STATES = {
    "complete": TrialState.COMPLETE,
    "skipped": TrialState.PRUNED,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Silence Optuna's lines on stderr: the driver writes its own."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextlib.contextmanager
def study_errors() -> Iterator[None]:
    """Turn what the storage raises into a StorageError."""
    try:
        yield
    except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        raise StorageError(
            f"the study must be writable, but its storage failed ({error}); mend it (a full disk?), then run again: "
            "finished trials are kept"
        ) from error


def open_study(url: str, name: str, directions: int = 1, *, is_spare: bool = False) -> optuna.Study:
    """Open or begin the study, of one figure to minimise or of two (latency and loss).

    `is_spare`: an SQLite file that could be made again. It is not waited for at each of a trial's some twenty commits;
    a kill loses nothing by that, a power cut may break it.

    Raises SpecError for a URL that is none, RunError for a storage that does not answer.
    """
    shown = hide_password(url)
    try:
        storage = optuna.storages.RDBStorage(url)
        if is_spare:
            sqlalchemy.event.listen(storage.engine, "connect", _do_not_wait)
            storage.engine.dispose()  # connections that were made before
        return optuna.create_study(
            study_name=name, storage=storage, directions=["minimize"] * directions, load_if_exists=True
        )
    except (ArgumentError, NoSuchModuleError, ImportError, ValueError) as error:
        raise SpecError(
            f"search.storage must be a URL such as 'postgresql://host/name' whose driver is installed, but got "
            f"{shown!r} ({error})"
        ) from error
    except (DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        if _is_disk_fault(error):
            raise StorageError(
                f"cannot write the study {shown!r}: {error}; make room and see that it may be written, then run again"
            ) from error
        raise RunError(
            f"the study's storage {shown!r} must answer, but does not ({error}); check it, or if it is the study.db of "
            "a run folder, delete it: it is made again from the trial records"
        ) from error


def _do_not_wait(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")


def _is_disk_fault(error: BaseException | None) -> bool:
    """Whether SQLite met a full, broken or read-only disk, however often the error was wrapped."""
    while error is not None:
        for cause in (error, getattr(error, "orig", None)):
            if isinstance(cause, sqlite3.Error) and cause.sqlite_errorcode & 0xFF in _DISK_FAULTS:
                return True
        error = error.__cause__
    return False


def trial_seed(seed: int, number: int, what: int = 0) -> int:
    """A seed of its own for each trial and purpose; the order of trials or a restart does not change it."""
    return int(np.random.SeedSequence([seed, number, what]).generate_state(1)[0])


def reconcile(study: optuna.Study, records: Mapping[int, TrialRecord], goal: Goal) -> dict[int, dict[str, object]]:
    """Finish what a dead driver left RUNNING, and add the records that the study does not hold.

    Returns, by number, the parameters of trials that were being trained and have no record: asked again, they go on.
    """
    unfinished: dict[int, dict[str, object]] = {}
    with study_errors():
        trials = study.get_trials(deepcopy=False)
        held = {frozen.user_attrs.get(RECORDED) for frozen in trials if frozen.state.is_finished()}
        for frozen in trials:
            number = int(frozen.user_attrs.get(NUMBER, -1))
            if SUBMITTED in frozen.user_attrs and number not in records:
                unfinished[number] = dict(frozen.params)
            if frozen.state != TrialState.RUNNING:
                continue
            trial = Trial(study, frozen._trial_id)
            if number in records and number not in held:
                _tell(study, trial, records[number], goal)
                held.add(number)
                continue
            trial.set_user_attr(KILLED, True)
            study.tell(trial, state=TrialState.FAIL)
        for number, record in records.items():
            if number not in held:
                study.add_trial(_frozen(record, goal, len(study.directions)))
    return unfinished


def times_killed(study: optuna.Study, number: int) -> int:
    """How often a driver was killed while it worked on the trial of this number."""
    with study_errors():
        trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return sum(trial.user_attrs.get(NUMBER) == number and KILLED in trial.user_attrs for trial in trials)


def ask(
    study: optuna.Study,
    sampler: optuna.samplers.BaseSampler,
    number: int,
    params: Mapping[str, object] | None = None,
) -> Trial:
    """A new trial for the record of this number, with these parameters if there are any."""
    if params:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.PartialFixedSampler(dict(params), sampler)
    with study_errors():
        study.sampler = sampler
        trial = study.ask()
        trial.set_user_attr(NUMBER, number)
        return trial


def give_up(study: optuna.Study, trial: Trial) -> None:
    """Finish a trial of which there will be no record; its number is asked for again by the next driver."""
    with study_errors():
        study.tell(trial, state=TrialState.FAIL)


def mark_submitted(trial: Trial) -> None:
    """From now on the trial is being trained: who finds it unfinished asks for it again with its parameters."""
    with study_errors():
        trial.set_user_attr(SUBMITTED, True)


def report_rung(study: optuna.Study, trial: Trial, index: int, value: float) -> None:
    """What a rung, counted from 0, showed. A study of two figures cannot hold it."""
    if len(study.directions) == 1:
        with study_errors():
            trial.report(value, step=index + 1)


def tell(study: optuna.Study, trial: Trial, record: TrialRecord, goal: Goal) -> None:
    """Finish the trial as its record, already on disk, says."""
    with study_errors():
        _tell(study, trial, record, goal)


def distributions_of(trial: Trial) -> dict[str, str]:
    """Parameter -> Optuna's JSON of its range."""
    return {name: distribution_to_json(item) for name, item in trial.distributions.items()}


def _tell(study: optuna.Study, trial: Trial, record: TrialRecord, goal: Goal) -> None:
    directions = len(study.directions)
    for key, value in _user_attrs(record).items():
        trial.set_user_attr(key, value)
    known = trial.constraints
    for key, value in goal.constraints(record, directions).items():
        if key not in known:  # set, but not told, by a driver that died
            trial.set_constraint(key, value)
    if record.state == "skipped" and directions == 1:  # rungs were reported when they were reached
        trial.report(record.latency_us, step=0)
    values = goal.values(record, directions) if record.state == "complete" else None
    study.tell(trial, values, _STATES[record.state])


def _frozen(record: TrialRecord, goal: Goal, directions: int) -> FrozenTrial:
    """The finished trial of a record that the study lost."""
    reports = _reports(record, goal) if directions == 1 else {}
    values = goal.values(record, directions) if record.state == "complete" else None
    if record.state in ("skipped", "stopped") and reports:
        values = [reports[max(reports)]]  # as Optuna does with the last report of a trial told PRUNED
    return optuna.trial.create_trial(
        state=_STATES[record.state],
        values=values,
        params=dict(record.params),
        distributions={name: json_to_distribution(text) for name, text in record.distributions.items()},
        user_attrs={NUMBER: record.number, **_user_attrs(record)},
        intermediate_values=reports,
        constraints=goal.constraints(record, directions),
    )


def _reports(record: TrialRecord, goal: Goal) -> dict[int, float]:
    """Step -> what was reported: rungs from step 1; of a skipped trial its latency, at step 0."""
    if record.state == "skipped":
        return {0: record.latency_us}
    losses = [goal.dense_accuracy - accuracy for _, accuracy in record.rungs]
    return {step: goal.shortfall(loss) for step, loss in enumerate(losses, start=1)}


def _user_attrs(record: TrialRecord) -> dict[str, object]:
    """What dashboards show, and at last the mark that the record is told."""
    facts = {"feasible": record.feasible, "accuracy_validation": record.accuracy_validation, "error": record.error}
    return {**{key: value for key, value in facts.items() if value is not None}, RECORDED: record.number}
