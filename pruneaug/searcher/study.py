"""The study: a job, its network and its latency table; searched, or gone on with, until it is finished."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pruneaug.errors import PruneaugError, SpecError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.protocol import DenseTraining, FineTuner, accepts
from pruneaug.latency.network import predict
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import Pruner, TaskCalibration
from pruneaug.searcher import STRATEGIES, decoding, history
from pruneaug.searcher.candidate import Evaluator, PruneAndFineTune
from pruneaug.searcher.cost import Clock
from pruneaug.searcher.dense import early_weights, prepare_dense
from pruneaug.searcher.domination import worthwhile
from pruneaug.searcher.driver import Driver
from pruneaug.searcher.ending import Winner, end_search
from pruneaug.searcher.executors import EXECUTORS
from pruneaug.searcher.executors.protocol import Executor, Setup
from pruneaug.searcher.objective import check_reachable, make_goal
from pruneaug.searcher.progress import Progress
from pruneaug.searcher.result import SearchResult
from pruneaug.searcher.rundir import RunDir, read_json, write_json
from pruneaug.searcher.saliency import saliency_from_json, saliency_to_json, weigh_space
from pruneaug.searcher.space import SearchSpace, build_space
from pruneaug.searcher.stoppers import OptunaStopper, Stopper, make_stopper
from pruneaug.searcher.strategies.protocol import LimitedStrategy, Strategy
from pruneaug.searcher.trial import closest_trial, read_records
from pruneaug.spec.models import JobSpec, SearchSpec
from pruneaug.tasks.protocol import Task

_DENSE = 3  # a purpose of seeds


def run_search(
    job: JobSpec,
    task: Task,
    network: Network,
    table: LatencyTable,
    rest_us: float,
    run_dir: str | Path,
    *,
    progress: Progress | None = None,
    evaluator: Evaluator | None = None,
    device: str = "cpu",
) -> SearchResult:
    """Search, or go on with a search that was stopped or killed, until `job.search.trials` trials have finished.

    `rest_us` is the time of all but the prunable layers; a resumed run keeps the one it began with.
    A trial that fails is recorded and the search goes on; one whose results cannot be kept stops it.

    Raises RunError if the folder belongs to another job or is in use, SpecError or PluginError for a job that cannot be
    searched, LatencyTableError if the table lacks the network's ops, TrainingError if the dense training fails,
    StorageError if a result cannot be kept (run again to go on).
    """
    strategy, pruner, finetuner = make_plugins(job)
    stopper, executor = make_stopper(job.search.stopper.name, job.search.stopper.options), make_executor(job)
    directions = _directions(strategy, job.search, stopper)
    space = build_space(network, job.space, table)
    run = RunDir(run_dir)
    if not run.info.exists():  # before anything is written or trained
        dense_us = predict(network, {}, table, rest_us).total_us
        check_reachable(job.search, dense_us, least_latency_us(strategy, replace(space, rest_us=rest_us)))
    with run.lock(), run.logging(), history.quiet_optuna():
        info = run.begin(job, _latencies_digest(space), rest_us)
        rest_us = float(info["rest_us"])
        dense, dense_accuracy = prepare_dense(
            task,
            job.task.train,
            finetuner,
            run,
            seed=history.trial_seed(job.search.seed, 0, _DENSE),
            progress=progress,
            device=device,
        )
        training = DenseTraining(job.task.train, early_weights(run))
        evaluator = evaluator or PruneAndFineTune(
            task, network, dense, pruner, finetuner, job.finetune, device, training
        )
        goal = make_goal(job.search, predict(network, {}, table, rest_us).total_us, dense_accuracy)
        space = replace(space, rest_us=rest_us, objective=goal.objective, max_latency_us=goal.max_latency_us)
        data = TaskCalibration(task, job.finetune.trial.batch_size, job.search.seed)
        space = _with_saliency(space, run, lambda: weigh_space(space, dense, network, pruner, data, job.space.saliency))
        records = read_records(run.trials)
        url, is_own = job.search.storage or f"sqlite:///{run.study}", job.search.storage is None
        study = history.open_study(url, str(info["study"]), directions, is_spare=is_own)
        clock = Clock()
        try:
            executor.open(Setup(evaluator, run.path, job.search.executor.workers, progress))
            driver = Driver(
                job=job,
                network=network,
                table=table,
                space=space,
                strategy=strategy,
                stopper=stopper,
                executor=executor,
                run=run,
                study=study,
                goal=goal,
                records=records,
                unfinished=history.reconcile(study, records, goal),
                is_resumable=isinstance(evaluator, PruneAndFineTune) and accepts(finetuner, "rungs"),
                progress=progress,
                clock=clock,
            )
            driver.run_trials()
            return _result(driver, end_search(driver))
        finally:
            executor.close()
            _write_cost(run, clock)


def make_plugins(job: JobSpec) -> tuple[Strategy, Pruner, FineTuner]:
    """The job's strategy, pruner and fine-tuner.

    Raises PluginError for these and for its stopper and executor, SpecError if they do not go together.
    """
    stopper = make_stopper(job.search.stopper.name, job.search.stopper.options)
    make_executor(job)
    strategy: Strategy = STRATEGIES.create(job.search.strategy, job.search.options)
    pruner: Pruner = PRUNERS.create(job.pruner.name, job.pruner.options)
    finetuner: FineTuner = FINETUNERS.create(job.finetune.name, job.finetune.options)
    _directions(strategy, job.search, stopper)
    _check_rungs(job.search, finetuner)
    return strategy, pruner, finetuner


def make_executor(job: JobSpec) -> Executor:
    """The job's executor. Raises PluginError."""
    executor: Executor = EXECUTORS.create(job.search.executor.name, job.search.executor.options)
    return executor


def least_latency_us(strategy: Strategy, space: SearchSpace) -> float:
    """The least latency that a network of the space can have, in microseconds: known before any training.

    Raises SpecError if the strategy has limits of its own that cannot be met.
    """
    if isinstance(strategy, LimitedStrategy):
        return strategy.least_us(space)
    return decoding.least_us(worthwhile(space))


def _with_saliency(space: SearchSpace, run: RunDir, weigh: Callable[[], SearchSpace]) -> SearchSpace:
    """The space with what each choice loses: weighed once per run."""
    if run.saliency.exists():
        return saliency_from_json(space, read_json(run.saliency))
    weighed = weigh()
    write_json(run.saliency, saliency_to_json(weighed))
    return weighed


def _directions(strategy: Strategy, search: SearchSpec, stopper: Stopper) -> int:
    """How many figures the study minimises: a strategy with `directions = 2` wants latency and loss.

    Raises SpecError for a stopper that cannot work with two.
    """
    directions = int(getattr(strategy, "directions", 1))
    if directions == 2 and isinstance(stopper, OptunaStopper):
        raise SpecError(
            f"search.stopper {search.stopper.name!r} compares one figure, but strategy {search.strategy!r} minimises "
            "two; choose `recovery` or `none`"
        )
    return directions


def _check_rungs(search: SearchSpec, finetuner: FineTuner) -> None:
    """Raises SpecError if trials cannot be judged on their way as the job asks."""
    rungs = [rung for rung in search.rungs if rung < 1]
    if search.stopper.name != "none" and not rungs:
        raise SpecError(
            f"search.stopper {search.stopper.name!r} stops trials at rungs, but search.rungs has none below 1; add "
            "`rungs: [0.25, 0.5]`"
        )
    if rungs and not accepts(finetuner, "rungs"):
        raise SpecError(
            f"search.rungs need a fine-tuner whose `finetune` takes `rungs`, but {type(finetuner).__name__} does not; "
            "leave out search.rungs and search.stopper"
        )


def _result(driver: Driver, winner: Winner | None) -> SearchResult:
    goal, records = driver.goal, driver.records
    return SearchResult(
        best=None if winner is None else winner.trial,
        best_accuracy=None if winner is None else winner.accuracy,
        closest=closest_trial(records),
        trials=tuple(records[number] for number in sorted(records)),
        dense_accuracy=goal.dense_accuracy,
        dense_latency_us=goal.dense_us,
        rest_us=driver.space.rest_us,
        max_accuracy_loss=goal.max_accuracy_loss,
        objective=goal.objective,
        max_latency_us=goal.max_latency_us,
        front=goal.front(records),
        repeats=() if winner is None else winner.repeats,
    )


def _write_cost(run: RunDir, clock: Clock) -> None:
    """What this driver cost is added to what earlier ones did; nothing is lost if it cannot be kept."""
    if not clock.has_laps:  # it found the search finished
        return
    with suppress(PruneaugError):
        write_json(run.cost, clock.totals(read_json(run.cost) if run.cost.exists() else {}))


def _latencies_digest(space: SearchSpace) -> str:
    """SHA-256 of what the search knows about times, to as many digits as survive another version of scipy."""
    layers = [
        (layer.name, [str(choice) for choice in layer.choices], [f"{us:.6g}" for us in layer.latencies_us])
        for layer in space.layers
    ]
    return hashlib.sha256(json.dumps(layers).encode()).hexdigest()
