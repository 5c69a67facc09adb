"""The Optuna study, kept in step with the trial records.

The records on disk are the truth; the study is what samplers and dashboards read. A record becomes in the study:

- `complete`: COMPLETE, its value the latency in microseconds, with the constraint `accuracy_loss` (allowed when <= 0);
- `skipped`: PRUNED with the latency as its one report. Samplers rank it after the feasible trials, by latency, and
  before the infeasible ones; it is never the best trial, and it says nothing about accuracy;
- `failed`: FAIL, which samplers ignore.

Every ask is marked with the number of the record that it is for. A driver that dies leaves a RUNNING trial, which
`reconcile` finishes: from its record if that was written, as FAIL otherwise, and then the number is asked for again.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping

import numpy as np
import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError, SQLAlchemyError

from pruneaug.errors import RunError, SpecError, StorageError
from pruneaug.searcher.trial import TrialRecord
from pruneaug.spec.resolve import hide_password

NUMBER = "number"
RECORDED = "recorded"
KILLED = "killed"
_DISK_FAULTS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)
_STATES = {"complete": TrialState.COMPLETE, "skipped": TrialState.PRUNED, "failed": TrialState.FAIL}


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


def open_study(url: str, name: str) -> optuna.Study:
    """Open or begin the study. Raises SpecError for a URL that is none, RunError for a storage that does not answer."""
    shown = hide_password(url)
    try:
        storage = optuna.storages.RDBStorage(url)
        return optuna.create_study(study_name=name, storage=storage, direction="minimize", load_if_exists=True)
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


def reconcile(study: optuna.Study, records: Mapping[int, TrialRecord]) -> None:
    """Finish what a dead driver left RUNNING, and add the records that the study does not hold."""
    with study_errors():
        trials = study.get_trials(deepcopy=False)
        held = {frozen.user_attrs.get(RECORDED) for frozen in trials if frozen.state.is_finished()}
        for frozen in trials:
            if frozen.state != TrialState.RUNNING:
                continue
            number, trial = int(frozen.user_attrs.get(NUMBER, -1)), Trial(study, frozen._trial_id)
            if number in records and number not in held:
                _tell(study, trial, records[number])
                held.add(number)
            else:
                trial.set_user_attr(KILLED, True)
                study.tell(trial, state=TrialState.FAIL)
        for number, record in records.items():
            if number not in held:
                study.add_trial(_frozen(record))


def times_killed(study: optuna.Study, number: int) -> int:
    """How often a driver was killed while it worked on the trial of this number."""
    with study_errors():
        trials = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
    return sum(trial.user_attrs.get(NUMBER) == number and KILLED in trial.user_attrs for trial in trials)


def ask(study: optuna.Study, sampler: optuna.samplers.BaseSampler, number: int) -> Trial:
    """A new trial for the record of this number."""
    with study_errors():
        study.sampler = sampler
        trial = study.ask()
        trial.set_user_attr(NUMBER, number)
        return trial


def give_up(study: optuna.Study, trial: Trial) -> None:
    """Finish a trial of which there will be no record; its number is asked for again by the next driver."""
    with study_errors():
        study.tell(trial, state=TrialState.FAIL)


def tell(study: optuna.Study, trial: Trial, record: TrialRecord) -> None:
    """Finish the trial as its record, already on disk, says."""
    with study_errors():
        _tell(study, trial, record)


def distributions_of(trial: Trial) -> dict[str, str]:
    """Parameter -> Optuna's JSON of its range."""
    return {name: distribution_to_json(item) for name, item in trial.distributions.items()}


def _tell(study: optuna.Study, trial: Trial, record: TrialRecord) -> None:
    for key, value in _user_attrs(record).items():
        trial.set_user_attr(key, value)
    for key, value in _constraints(record).items():
        if key not in trial.constraints:  # set, but not told, by a driver that died
            trial.set_constraint(key, value)
    if record.state == "skipped":
        trial.report(record.latency_us, step=0)
    study.tell(trial, record.latency_us if record.state == "complete" else None, _STATES[record.state])


def _frozen(record: TrialRecord) -> FrozenTrial:
    """The finished trial of a record that the study lost."""
    is_skipped = record.state == "skipped"
    return optuna.trial.create_trial(
        state=_STATES[record.state],
        value=None if record.state == "failed" else record.latency_us,
        params=dict(record.params),
        distributions={name: json_to_distribution(text) for name, text in record.distributions.items()},
        user_attrs={NUMBER: record.number, **_user_attrs(record)},
        intermediate_values={0: record.latency_us} if is_skipped else None,
        constraints=_constraints(record),
    )


def _constraints(record: TrialRecord) -> dict[str, float]:
    return {} if record.violation is None else {"accuracy_loss": record.violation}


def _user_attrs(record: TrialRecord) -> dict[str, object]:
    """What dashboards show, and at last the mark that the record is told."""
    facts = {"feasible": record.feasible, "accuracy_validation": record.accuracy_validation, "error": record.error}
    return {**{key: value for key, value in facts.items() if value is not None}, RECORDED: record.number}
