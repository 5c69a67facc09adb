"""The study: propose, predict, train only what can win, judge, record; resumable at any moment."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import optuna
import torch

from pruneaug.errors import PluginError, PruneaugError, StorageError
from pruneaug.finetune import FINETUNERS
from pruneaug.finetune.protocol import FineTuner
from pruneaug.latency.network import predict
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network
from pruneaug.pruners import PRUNERS
from pruneaug.pruners.protocol import Pruner
from pruneaug.searcher import STRATEGIES, history
from pruneaug.searcher.candidate import Candidate, Evaluator, PruneAndFineTune, achieved, finite_accuracy
from pruneaug.searcher.dense import prepare_dense
from pruneaug.searcher.final import refine_best
from pruneaug.searcher.progress import Progress, training_progress
from pruneaug.searcher.result import SearchResult
from pruneaug.searcher.rundir import RunDir
from pruneaug.searcher.space import SearchSpace, assigned_sparsity, build_space, keep_faster
from pruneaug.searcher.strategies.protocol import Strategy
from pruneaug.searcher.trial import TrialRecord, best_trial, closest_trial, excess, is_over, read_records, write_record
from pruneaug.searcher.weights import save_tensors
from pruneaug.sparsity.patterns import Assignment
from pruneaug.spec.models import JobSpec
from pruneaug.tasks.protocol import Task

_log = logging.getLogger(__name__)
_MAX_KILLS = 3  # a trial that takes its driver with it, as when memory runs out, must not do so for ever
_TRAIN, _FINAL, _DENSE = 1, 2, 3  # purposes of seeds


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
    space = build_space(network, job.space, table)
    run = RunDir(run_dir)
    with run.lock(), run.logging(), history.quiet_optuna():
        info = run.begin(job, _latencies_digest(space), rest_us)
        dense, dense_accuracy = prepare_dense(
            task,
            job.task.train,
            finetuner,
            run,
            seed=history.trial_seed(job.search.seed, 0, _DENSE),
            progress=progress,
            device=device,
        )
        records = read_records(run.trials)
        study = history.open_study(job.search.storage or f"sqlite:///{run.study}", str(info["study"]))
        history.reconcile(study, records)
        driver = _Driver(
            job=job,
            network=network,
            table=table,
            rest_us=float(info["rest_us"]),
            space=space,
            strategy=strategy,
            evaluator=evaluator or PruneAndFineTune(task, network, dense, pruner, finetuner, job.finetune, device),
            run=run,
            study=study,
            dense_accuracy=dense_accuracy,
            dense_us=predict(network, {}, table, float(info["rest_us"])).total_us,
            records=records,
            progress=progress,
        )
        driver.run_trials()
        return driver.finish()


def make_plugins(job: JobSpec) -> tuple[Strategy, Pruner, FineTuner]:
    """The job's strategy, pruner and fine-tuner. Raises PluginError."""
    return (
        STRATEGIES.create(job.search.strategy, job.search.options),
        PRUNERS.create(job.pruner.name, job.pruner.options),
        FINETUNERS.create(job.finetune.name, job.finetune.options),
    )


@dataclass(slots=True)
class _Driver:
    """One process's work on a study. `records` grows; nothing else changes."""

    job: JobSpec
    network: Network
    table: LatencyTable
    rest_us: float
    space: SearchSpace
    strategy: Strategy
    evaluator: Evaluator
    run: RunDir
    study: optuna.Study
    dense_accuracy: float
    dense_us: float
    records: dict[int, TrialRecord]
    progress: Progress | None

    def run_trials(self) -> None:
        wanted, limit_s = self.job.search.trials, self.job.search.timeout_s
        self._restore_best()
        self._report(wanted)
        while not is_over(self.records, wanted, limit_s):
            number = next(n for n in range(wanted) if n not in self.records)
            self._run_trial(number)
            self._drop_weights()
            self._report(wanted)
        if len(self.records) < wanted:
            _log.info("no trial starts after %g s spent in trials", limit_s)

    def finish(self) -> SearchResult:
        best = self._best()
        accuracy = None
        if best is not None:
            seed = history.trial_seed(self.job.search.seed, best.number, _FINAL)
            report = training_progress(self.progress, "Final fine-tuning")
            accuracy = refine_best(self.run, best, self.evaluator, seed=seed, progress=report)
        return SearchResult(
            best=best,
            best_accuracy=accuracy,
            closest=closest_trial(self.records),
            trials=tuple(self.records[number] for number in sorted(self.records)),
            dense_accuracy=self.dense_accuracy,
            dense_latency_us=self.dense_us,
            rest_us=self.rest_us,
            max_accuracy_loss=self.job.search.max_accuracy_loss,
        )

    def _run_trial(self, number: int) -> None:
        """Ask, judge, write the record, and only then tell the study."""
        seed = history.trial_seed(self.job.search.seed, number)
        trial = history.ask(self.study, self.strategy.sampler(seed), number)
        try:
            record = self._judge(self._propose(trial, number))
            write_record(self.run.trials, record)
        except BaseException:
            with suppress(StorageError):
                history.give_up(self.study, trial)
            raise
        self.records[number] = record
        history.tell(self.study, trial, record)
        _log.info("trial %d %s: %s", number, record.state, _outcome(record))

    def _propose(self, trial: optuna.Trial, number: int) -> TrialRecord:
        """A record of what is known before any training; `skipped` until it is judged."""
        name = self.job.search.strategy
        try:
            with history.study_errors():
                proposed = self.strategy.propose(trial, self.space)
        except PruneaugError:
            raise
        except Exception as error:
            raise PluginError(f"the strategy {name!r} failed: {type(error).__name__}: {error}; mend it") from error
        layers = {layer.name: layer for layer in self.space.layers}
        for layer, choice in proposed.items():
            if layer not in layers or choice != layers[layer].nearest(choice.pattern, choice.sparsity):
                raise PluginError(
                    f"a strategy must propose what the space allows, but {name!r} gave {choice} to layer {layer!r}; "
                    "take choices from LayerSpace.nearest"
                )
        assignment = keep_faster(proposed, self.network, self.table)
        return TrialRecord(
            number=number,
            state="skipped",
            params=trial.params,
            assignment=assignment,
            sparsity=assigned_sparsity(assignment, self.network),
            latency_us=self._latency_us(assignment),
            distributions=history.distributions_of(trial),
        )

    def _judge(self, proposal: TrialRecord) -> TrialRecord:
        best = self._best()
        # Dense is feasible without training, so it is what the first trials must beat.
        if proposal.latency_us >= (self.dense_us if best is None else best.latency_us):
            return proposal
        if history.times_killed(self.study, proposal.number) >= _MAX_KILLS:
            return replace(
                proposal, state="failed", error=f"the process died {_MAX_KILLS} times in this trial; out of memory?"
            )
        return self._train(proposal)

    def _train(self, proposal: TrialRecord) -> TrialRecord:
        """The record of the trained and judged proposal; its weights are on disk if it is the best so far."""
        started = time.monotonic()
        try:
            report = training_progress(self.progress, f"Trial {proposal.number}")
            seed = history.trial_seed(self.job.search.seed, proposal.number, _TRAIN)
            candidate = self.evaluator.prune(proposal.assignment, seed=seed, progress=report)
            record = self._judged(proposal, candidate, time.monotonic() - started)
            if self._best(record) is record:
                folder = self.run.trial_weights(record.number)
                save_tensors(folder / "model.safetensors", candidate.weights)
                save_tensors(folder / "masks.safetensors", candidate.masks)
        except StorageError:  # nothing is wrong with the trial: it runs again when there is room
            raise
        except Exception as error:  # of any plug-in, of memory: one broken trial never ends a search
            _log.warning("trial %d failed", proposal.number, exc_info=True)
            shutil.rmtree(self.run.trial_weights(proposal.number), ignore_errors=True)
            torch.cuda.empty_cache()
            text = f"{type(error).__name__}: {error}"
            return replace(proposal, state="failed", error=text, seconds=time.monotonic() - started)
        return record

    def _judged(self, proposal: TrialRecord, candidate: Candidate, seconds: float) -> TrialRecord:
        """The record of a candidate; its latency is that of the sparsities which its masks really have."""
        accuracy = finite_accuracy(candidate.accuracy)
        loss = self.dense_accuracy - accuracy
        assignment = achieved(proposal.assignment, candidate.masks, self.space)
        return replace(
            proposal,
            state="complete",
            assignment=assignment,
            sparsity=assigned_sparsity(assignment, self.network),
            latency_us=self._latency_us(assignment),
            accuracy_validation=accuracy,
            accuracy_loss=loss,
            violation=excess(loss, self.job.search.max_accuracy_loss),
            epochs=candidate.epochs,
            seconds=seconds,
        )

    def _best(self, *more: TrialRecord) -> TrialRecord | None:
        return best_trial({**self.records, **{record.number: record for record in more}}, self.dense_us)

    def _latency_us(self, assignment: Assignment) -> float:
        return predict(self.network, assignment, self.table, self.rest_us).total_us

    def _drop_weights(self) -> None:
        best = self._best()
        self.run.drop_weights(None if best is None else best.number)

    def _restore_best(self) -> None:
        """Train the best trial again if someone removed its weights: the same seed gives the same network."""
        while (best := self._best()) is not None:
            if (self.run.trial_weights(best.number) / "masks.safetensors").exists():
                break
            _log.warning("the weights of trial %d, the best one, are gone; it is trained again", best.number)
            del self.records[best.number]
            self.records[best.number] = record = self._train(best)
            write_record(self.run.trials, record)
        self._drop_weights()

    def _report(self, wanted: int) -> None:
        if self.progress is not None:
            best = self._best()
            note = "nothing feasible yet" if best is None else f"best {best.latency_us / 1000:.3f} ms"
            self.progress("Search", len(self.records), wanted, note)


def _latencies_digest(space: SearchSpace) -> str:
    """SHA-256 of what the search knows about times, to as many digits as survive another version of scipy."""
    layers = [
        (layer.name, [str(choice) for choice in layer.choices], [f"{us:.6g}" for us in layer.latencies_us])
        for layer in space.layers
    ]
    return hashlib.sha256(json.dumps(layers).encode()).hexdigest()


def _outcome(record: TrialRecord) -> str:
    loss = "" if record.accuracy_loss is None else f", accuracy loss {record.accuracy_loss:.4f}"
    return record.error or f"{record.latency_us / 1000:.3f} ms at sparsity {record.sparsity:.3f}{loss}"
