"""`ray`: trials on a Ray cluster, scheduled by Ray Tune. The only file that imports ray."""

from __future__ import annotations

import logging
import os
import pickle
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pruneaug.errors import PluginError, PruneaugError, SpecError, TrainingError
from pruneaug.searcher.executors.protocol import Setup
from pruneaug.searcher.executors.sending import cannot_load, pack, unpack
from pruneaug.searcher.work import Event, Failed, Judged, Lost, OnRung, RungScore, TrialWork, do_work, timeout_text

try:
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler
    from ray.tune.search import Searcher
except ImportError as error:
    raise PluginError(f"the executor 'ray' needs Ray Tune ({error}); pip install 'pruneaug[ray]'") from error

_IDLE_S = 0.2  # how long Tune waits for the next work when it has nothing else to do
_CLOSE_S = 30.0
_EXPERIMENT = "tune"  # Tune's name for it, and a folder


class RayTune:
    """Ray Tune's trials, one for each work; all nodes must see the run folder under the same path.

    `address`: of a running cluster ("auto", "host:port"); None starts Ray on this machine. `cpus`, `gpus`: what each
    trial takes, `gpus` may be a fraction; `cpus` None shares out this machine's cores, or is 1 on a cluster.
    """

    is_isolated = True

    def __init__(self, address: str | None = None, cpus: float | None = None, gpus: float = 0.0) -> None:
        if (cpus is not None and cpus <= 0) or gpus < 0:
            raise SpecError(
                f"search.executor.options need cpus > 0 and gpus >= 0, but got cpus={cpus!r}, gpus={gpus!r}"
            )
        self._address, self._cpus, self._gpus = address, cpus, gpus
        self._thread: threading.Thread | None = None
        self._owns_ray = False

    def open(self, setup: Setup) -> None:
        self.capacity = setup.workers
        self._owns_ray = not ray.is_initialized()
        if self._owns_ray:
            try:
                ray.init(
                    address=self._address or "local",  # or it would join any cluster that it finds here
                    runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}},  # where the user's modules are
                    log_to_driver=False,
                    configure_logging=False,  # it would print the search's own log
                )
            except (ConnectionError, RuntimeError) as error:
                raise _no_ray(self._address, error) from error
        shared = self._address is None and self._owns_ray
        cpus = self._cpus or (max(1, len(os.sched_getaffinity(0)) // setup.workers) if shared else 1)
        resources = {"cpu": cpus, **({"gpu": self._gpus} if self._gpus else {})}
        _check_resources(resources)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail are in the records
        self._desk = _Desk(setup.folder / "ray")
        trainable = tune.with_parameters(
            _train,
            packed=pack(setup.evaluator),
            device="cuda" if self._gpus else None,
            threads=max(1, int(cpus)),
        )
        self._tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                num_samples=-1,
                search_alg=_Feed(self._desk),
                scheduler=_Rungs(self._desk),
                reuse_actors=True,
                trial_dirname_creator=_folder_name,
            ),
            run_config=tune.RunConfig(
                name=_EXPERIMENT,
                storage_path=str(setup.folder / "ray"),
                stop=_Stop(self._desk),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),  # the driver gives lost work to another worker
            ),
        )
        self._thread = threading.Thread(target=self._fit, name="ray-tune", daemon=True)
        self._thread.start()

    def submit(self, work: TrialWork) -> None:
        self._desk.put(work)

    def wait(self, on_rung: OnRung) -> Sequence[Event]:
        while True:
            try:
                found = self._desk.found.get(timeout=1.0)
            except queue.Empty:
                if self._thread is None or not self._thread.is_alive():
                    raise TrainingError(
                        f"Ray Tune must run as long as the search does, but it ended ({self._desk.error}); run again: "
                        "finished trials are kept"
                    ) from None
                continue
            if isinstance(found, _Unusable):
                raise cannot_load(found.error)
            if not isinstance(found, _AtRung):
                return (found,)
            found.answer.put(on_rung(found.work, found.rungs))

    def stop(self, key: str) -> None:
        self._desk.give_up(key)

    def close(self) -> None:
        if self._thread is not None:
            self._desk.close()
            self._thread.join(_CLOSE_S)
            self._thread = None
        if self._owns_ray:
            ray.shutdown()

    def _fit(self) -> None:
        # Tune's own loggers would write every result to disk; the records of the run hold them already.
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
        os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # which prints a table even at verbosity 0, into the search's own
        try:
            self._tuner.fit()
        except BaseException as error:
            self._desk.error = f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class _AtRung:
    """A trial that waits at a rung for its answer."""

    work: TrialWork
    rungs: tuple[RungScore, ...]
    answer: queue.SimpleQueue[bool]


@dataclass(frozen=True, slots=True)
class _Unusable:
    """A worker cannot load the task; the next one could not either."""

    error: str


@dataclass
class _Desk:
    """What the driver's thread and Tune's hand to each other. folder: seen by all nodes."""

    folder: Path
    found: queue.SimpleQueue[Event | _AtRung | _Unusable] = field(default_factory=queue.SimpleQueue)
    waiting: deque[TrialWork] = field(default_factory=deque)
    running: dict[str, tuple[TrialWork, float]] = field(default_factory=dict)  # Tune's id -> work, begun
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False
    error: str = "no error"

    def put(self, work: TrialWork) -> None:
        with self.changed:
            self.waiting.append(work)
            self.changed.notify()

    def take(self, trial_id: str) -> TrialWork | None:
        """The next work; waits a moment for it if there is nothing else to do."""
        with self.changed:
            if not self.waiting and not self.running and not self.closed:
                self.changed.wait(_IDLE_S)
            if self.closed or not self.waiting:
                return None
            work = self.waiting.popleft()
            self.running[trial_id] = (work, time.monotonic())
            return work

    def late(self, trial_id: str) -> Path:
        """A file that a trial leaves which took too long."""
        return self.folder / f"late-{trial_id}"

    def begun(self, trial_id: str) -> tuple[TrialWork, float] | None:
        with self.changed:
            return self.running.get(trial_id)

    def done(self, trial_id: str, event: Event | None) -> None:
        with self.changed:
            if self.running.pop(trial_id, None) is not None and event is not None:
                self.found.put(event)

    def give_up(self, key: str) -> None:
        with self.changed:
            self.waiting = deque(work for work in self.waiting if work.key != key)
            self.running = {trial_id: item for trial_id, item in self.running.items() if item[0].key != key}

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def __reduce__(self) -> tuple[type[_Desk], tuple[Path]]:
        """Tune stores its searcher; what lies here has no meaning in another process."""
        return _Desk, (self.folder,)


class _Feed(Searcher):  # type: ignore[misc]
    """Gives Tune one trial for each work."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def suggest(self, trial_id: str) -> Mapping[str, Any] | str | None:
        if self._desk.closed:
            return str(Searcher.FINISHED)
        work = self._desk.take(trial_id)
        return None if work is None else {"work": pickle.dumps(work), "late": str(self._desk.late(trial_id))}

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """The outcome was told before; a trial that ends without one lost its worker."""
        begun = self._desk.begun(trial_id)
        if begun is None:
            return
        work, began = begun
        seconds = time.monotonic() - began
        if self._desk.late(trial_id).exists():
            event: Event = Failed(work, f"TrialTimeout: {timeout_text(work)}", seconds)
        else:
            reason = self._desk.folder / _EXPERIMENT / trial_id / "error.txt"
            event = Lost(work, f"its Ray worker or node died; see {reason}", seconds)
        self._desk.done(trial_id, event)

    def save(self, checkpoint_path: str) -> None:
        """The run folder holds all that is needed to resume."""

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Rungs(FIFOScheduler):  # type: ignore[misc]
    """Asks the driver at each rung whether the trial goes on, and hands over what a trial ends with."""

    def __init__(self, desk: _Desk) -> None:
        super().__init__()
        self._desk = desk

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        begun = self._desk.begun(trial.trial_id)
        if begun is None:
            return str(TrialScheduler.STOP)
        work, began = begun
        if "outcome" in result:
            self._desk.done(trial.trial_id, pickle.loads(result["outcome"]))
            return str(TrialScheduler.CONTINUE)
        if "unusable" in result:
            self._desk.done(trial.trial_id, None)
            self._desk.found.put(_Unusable(result["unusable"]))
            return str(TrialScheduler.STOP)
        if "rungs" not in result:
            return str(TrialScheduler.CONTINUE)
        rungs = tuple((float(epochs), float(accuracy)) for epochs, accuracy in result["rungs"])
        at = _AtRung(work, rungs, queue.SimpleQueue())
        self._desk.found.put(at)
        if self._answer(at):
            return str(TrialScheduler.CONTINUE)
        seconds = time.monotonic() - began
        event = Judged(work, 0.0, rungs[-1][0], seconds, {}, rungs, stored=False, stopped=True)
        self._desk.done(trial.trial_id, event)
        return str(TrialScheduler.STOP)

    def _answer(self, at: _AtRung) -> bool:
        while not self._desk.closed:
            try:
                return at.answer.get(timeout=1.0)
            except queue.Empty:
                continue
        return False


class _Stop(tune.Stopper):  # type: ignore[misc]
    """Ends Tune when the driver closes its executor."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._desk.closed


def _train(config: dict[str, Any], packed: bytes, device: str | None, threads: int) -> None:
    """One Tune trial, on whatever node it landed."""
    import torch

    torch.set_num_threads(threads)
    try:
        evaluator = unpack(packed, device)
    except Exception as error:  # whatever importing a user's modules raises
        tune.report({"unusable": f"{type(error).__name__}: {error}"})
        return
    work: TrialWork = pickle.loads(config["work"])

    def on_rung(_: TrialWork, rungs: tuple[RungScore, ...]) -> bool:
        tune.report({"rungs": rungs})  # comes back when the trial may go on, and never if it is stopped
        return True

    watchdog = None
    if work.timeout_s is not None:  # a trial that hangs cannot be told to end, but its process can
        watchdog = threading.Timer(work.timeout_s, _end_late, [config["late"]])
        watchdog.daemon = True
        watchdog.start()
    try:
        outcome = do_work(work, evaluator, on_rung)
    finally:
        if watchdog is not None:
            watchdog.cancel()
    tune.report({"outcome": pickle.dumps(outcome)})


def _end_late(path: str) -> None:
    Path(path).touch()
    os._exit(1)


def _no_ray(address: str | None, error: Exception) -> PruneaugError:
    if address is None:
        return TrainingError(f"Ray must start on this machine, but does not ({error}); run again, or `ray stop` first")
    return SpecError(
        f"search.executor.options.address must name a running Ray cluster, but {address!r} does not answer ({error}); "
        "start one with `ray start --head`, or leave it out"
    )


def _folder_name(trial: Any) -> str:
    return str(trial.trial_id)


def _check_resources(resources: Mapping[str, float]) -> None:
    """Raises SpecError if no node of the cluster could ever take a trial."""
    names = {"cpu": "CPU", "gpu": "GPU"}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(names[key], 0) >= value for key, value in resources.items()) for node in nodes):
        asked = ", ".join(f"{value:g} {names[key]}" for key, value in resources.items())
        have = "; ".join(", ".join(f"{node.get(name, 0):g} {name}" for name in names.values()) for node in nodes)
        raise SpecError(
            f"each trial takes {asked}, but no node of the Ray cluster has as much (they have {have}); lower "
            "search.executor.options.cpus or gpus"
        )
