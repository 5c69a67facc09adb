"""The driver of a study: ask, predict, skip or submit; take what comes back, record it, and tell the study."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

import optuna

from pruneaug.errors import PluginError, PruneaugError, StorageError
from pruneaug.latency.network import predict
from pruneaug.latency.table import LatencyTable
from pruneaug.network.layers import Network
from pruneaug.searcher import history, origin
from pruneaug.searcher.candidate import achieved
from pruneaug.searcher.cost import Clock
from pruneaug.searcher.deaths import Deaths
from pruneaug.searcher.executors.protocol import Executor
from pruneaug.searcher.objective import Goal
from pruneaug.searcher.progress import Progress
from pruneaug.searcher.rundir import RunDir
from pruneaug.searcher.space import SearchSpace, assigned_sparsity, keep_faster
from pruneaug.searcher.stoppers import AtRung, Stopper
from pruneaug.searcher.strategies.protocol import Strategy
from pruneaug.searcher.trial import TrialRecord, is_over, write_record
from pruneaug.searcher.work import Event, Failed, Judged, Lost, RungScore, TrialWork
from pruneaug.sparsity.patterns import Assignment
from pruneaug.spec.models import JobSpec

_log = logging.getLogger(__name__)
_TRAIN = 1  # a purpose of seeds


@dataclass(slots=True)
class Running:
    """A trial that is being trained: Optuna's trial, what is known of it, the work, and the rungs told so far."""

    trial: optuna.Trial
    proposal: TrialRecord
    work: TrialWork
    reported: int = 0


@dataclass(slots=True)
class Driver:
    """One process's work on a study. `records`, `unfinished` and `running` change; nothing else."""

    job: JobSpec
    network: Network
    table: LatencyTable
    space: SearchSpace
    strategy: Strategy
    stopper: Stopper
    executor: Executor
    run: RunDir
    study: optuna.Study
    goal: Goal
    records: dict[int, TrialRecord]
    unfinished: dict[int, dict[str, object]]
    is_resumable: bool
    progress: Progress | None
    clock: Clock
    running: dict[int, Running] = field(default_factory=dict)

    def run_trials(self) -> None:
        """Until the search is over. Whatever ends it before its time, no finished trial is lost."""
        wanted = self.job.search.trials
        try:
            self._restore_weights()
            self._report()
            self._fill(wanted)
            while self.running:
                for event in self.wait():
                    self._take(event)
                self._fill(wanted)
        finally:
            self._give_up()
        if len(self.records) < wanted:
            _log.info("no trial starts after %g s spent in trials", self.job.search.timeout_s)

    def do(self, works: Sequence[TrialWork]) -> list[Judged | Failed]:
        """What became of these works, in their order; for all that is trained beside the trials."""
        busy = 0
        with Deaths(self.run, is_counting=not self.executor.is_isolated) as deaths:
            times = {work.key: deaths.times(work.key) for work in works}
            done: dict[str, Judged | Failed] = {
                work.key: Failed(work, _death(times[work.key]), 0.0)
                for work in works
                if times[work.key] > self.job.search.retries
            }
            waiting = [work for work in works if work.key not in done]
            while len(done) < len(works):
                while waiting and busy < self.executor.capacity:
                    deaths.begin(waiting[0].key)
                    self.executor.submit(waiting.pop(0))
                    busy += 1
                for event in self.wait():
                    _check_disk(event)
                    busy -= 1
                    deaths.end(event.work.key)
                    again = self._again(event) if isinstance(event, Lost) else None
                    if again is not None:
                        waiting.insert(0, again)
                    else:
                        done[event.work.key] = _as_failed(event) if isinstance(event, Lost) else event
        return [done[work.key] for work in works]

    def wait(self) -> Sequence[Event]:
        """What the executor tells next; a full disk, which ends the search, after what can still be kept."""
        with self.clock.training():
            events = self.executor.wait(self._on_rung)
        return sorted(events, key=_is_full)

    def _fill(self, wanted: int) -> None:
        """Start trials while there is room; those that cannot win are over at once."""
        limit_s = self.job.search.timeout_s
        while len(self.running) < self.executor.capacity:
            if is_over(self.records, wanted, limit_s, len(self.running)):
                return
            self._start(next(n for n in range(wanted) if n not in self.records and n not in self.running))

    def _start(self, number: int) -> None:
        """Ask, and submit or skip."""
        sampler = self.strategy.sampler(history.trial_seed(self.job.search.seed, number))
        trial = history.ask(self.study, sampler, number, self.unfinished.pop(number, None))
        try:
            proposal = self._propose(trial, number)
            if not self.goal.can_win(proposal.latency_us, self.records):
                self._finish(trial, replace(proposal, violation=self.goal.known_violation(proposal.latency_us)))
            elif (same := self._same_network(proposal.assignment)) is not None:
                known = self.goal.constraints(same, 1)  # or samplers would take it for untried, and come back to it
                self._finish(trial, replace(proposal, same_as=same.number, violation=next(iter(known.values()), None)))
            elif (error := self._killed_too_often(number)) is not None:
                self._finish(trial, replace(proposal, state="failed", error=error))
            else:
                running = Running(trial, *self._work(proposal))
                history.mark_submitted(trial)
                self.executor.submit(running.work)
                self.running[number] = running
        except BaseException:
            self._abandon(trial, number)
            raise

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
        assignment = keep_faster(proposed, self.network, self.table, self.space)
        return TrialRecord(
            number=number,
            state="skipped",
            params=trial.params,
            assignment=assignment,
            sparsity=assigned_sparsity(assignment, self.network),
            latency_us=self._latency_us(assignment),
            distributions=history.distributions_of(trial),
        )

    def _work(self, proposal: TrialRecord) -> tuple[TrialRecord, TrialWork]:
        """The work that trains a proposal, and the proposal with the trial that it begins with."""
        search, number = self.job.search, proposal.number
        source = self._nearest(proposal.assignment) if search.inherit else None
        folder = None if source is None else self.run.tuned_weights(source)
        work = TrialWork(
            key=str(number),
            number=number,
            assignment=proposal.assignment,
            seed=history.trial_seed(search.seed, number, _TRAIN),
            folder=self.run.trial_weights(number),
            rungs=tuple(rung * self.job.finetune.trial.epochs for rung in search.rungs if rung < 1),
            inherit=folder,
            store_from=0.0 if search.inherit else self.goal.store_from(self.job.finetune.finalists),
            checkpoint=self.run.checkpoint(str(number)) if self.is_resumable else None,
            timeout_s=search.trial_timeout_s,
        )
        is_refined = source is not None and folder == self.run.final_weights(source)
        return replace(proposal, inherited_from=source, inherited_refined=is_refined), work

    def _nearest(self, assignment: Assignment) -> int | None:
        finished = {n: r.assignment for n, r in self.records.items() if self.run.tuned_weights(n) is not None}
        found = origin.nearest(assignment, finished, self.network)
        if found is not None:
            with suppress(OSError):  # the times of the folders say which was used last
                self.run.trial_weights(found).touch()
        return found

    def _same_network(self, assignment: Assignment) -> TrialRecord | None:
        """The trial of the same network that was judged, if only at rungs, or is being trained."""
        known = [record for record in self.records.values() if record.state in ("complete", "stopped")]
        known += [running.proposal for running in self.running.values()]
        return next((record for record in known if record.assignment == assignment), None)

    def _killed_too_often(self, number: int) -> str | None:
        """Why a trial that took its driver with it again and again, as when memory runs out, is not tried once more."""
        allowed = self.job.search.retries + 1
        if self.executor.is_isolated or history.times_killed(self.study, number) < allowed:
            return None
        return _death(allowed)

    def _on_rung(self, work: TrialWork, rungs: tuple[RungScore, ...]) -> bool:
        """Whether a training goes on after its latest rung."""
        running = self.running.get(work.number)
        if running is None or running.work.key != work.key:  # not a trial: a finalist, or one that is made again
            return True
        with self.clock.own():
            loss, latency_us = self.goal.dense_accuracy - rungs[-1][1], running.proposal.latency_us
            self._report_rungs(running, rungs)
            if not self.goal.can_win(latency_us, self.records):
                return False
            to_beat = self.goal.loss_to_beat(latency_us, self.records)
            finished = list(self.records.values())
            return not self.stopper.stops(AtRung(rungs, loss, to_beat, finished, self.study, running.trial))

    def _report_rungs(self, running: Running, rungs: tuple[RungScore, ...]) -> None:
        """Those that the study has not heard of: a trial that goes on after a kill comes to its last rung again, or is
        already beyond it."""
        for index, (_, accuracy) in enumerate(rungs[running.reported :], start=running.reported):
            history.report_rung(
                self.study, running.trial, index, self.goal.shortfall(self.goal.dense_accuracy - accuracy)
            )
        running.reported = max(running.reported, len(rungs))

    def _take(self, event: Event) -> None:
        """Record what became of a trial, or give it to another worker."""
        _check_disk(event)
        running = self.running.get(event.work.number)
        if running is None:
            return
        if isinstance(event, Lost):
            again = self._again(event)
            if again is not None:
                running.work = again
                self.executor.submit(again)
                return
            event = _as_failed(event)
        if isinstance(event, Judged):
            self._report_rungs(running, event.rungs)
        self._finish(running.trial, self._record(running.proposal, event))
        del self.running[event.work.number]

    def _again(self, event: Lost) -> TrialWork | None:
        """The work for another worker; None if it took too many with it."""
        if event.work.attempt > self.job.search.retries:
            return None
        _log.warning("trial %d lost its worker (%s) and begins again", event.work.number, event.error)
        return replace(event.work, attempt=event.work.attempt + 1)

    def _finish(self, trial: optuna.Trial, record: TrialRecord) -> None:
        """Write the record, and only then tell the study."""
        record = replace(record, own_seconds=self.clock.lap())
        write_record(self.run.trials, record)
        self.records[record.number] = record
        history.tell(self.study, trial, record, self.goal)
        _log.info("trial %d %s: %s", record.number, record.state, _outcome(record))
        self.run.drop_checkpoint(str(record.number))
        if record.state != "skipped":
            self._drop_weights()
        self._report()

    def _record(self, proposal: TrialRecord, event: Judged | Failed) -> TrialRecord:
        """What became of a proposal; the latency is that of the sparsities which its masks really have."""
        record = replace(proposal, seconds=event.seconds, attempts=event.work.attempt)
        if isinstance(event, Failed):
            return replace(record, state="failed", error=event.error)
        record = replace(record, epochs=event.epochs, rungs=event.rungs)
        if event.stopped:
            return replace(record, state="stopped")
        loss = self.goal.dense_accuracy - event.accuracy
        assignment = achieved(proposal.assignment, event.sparsities, self.space)
        latency_us = self._latency_us(assignment)
        return replace(
            record,
            state="complete",
            assignment=assignment,
            sparsity=assigned_sparsity(assignment, self.network),
            latency_us=latency_us,
            accuracy_validation=event.accuracy,
            accuracy_loss=loss,
            violation=self.goal.violation(loss, latency_us),
        )

    def _latency_us(self, assignment: Assignment) -> float:
        return predict(self.network, assignment, self.table, self.space.rest_us).total_us

    def _drop_weights(self) -> None:
        """Keep the weights that the end of the search needs, that running trials begin with, and the last used."""
        wanted = self.goal.wanted(self.records, self.job.finetune.finalists)
        keep = {record.number for record in wanted}
        keep |= {record.inherited_from for record in wanted if record.inherited_from is not None}  # repeats need them
        keep |= {source for item in self.running.values() if (source := item.proposal.inherited_from) is not None}
        keep |= self.running.keys()
        if self.job.search.inherit:
            folders = [folder for folder in self.run.weights.glob("*") if folder.name.isdecimal()]
            folders.sort(key=lambda folder: (folder.stat().st_mtime, int(folder.name)), reverse=True)
            keep |= {int(folder.name) for folder in folders[: self.job.search.keep_weights]}
        self.run.drop_weights(keep)

    def _restore_weights(self) -> None:
        """Train again the trials whose weights are needed and gone: the same seed gives the same network."""
        while missing := [
            record
            for record in self.goal.wanted(self.records, self.job.finetune.finalists)
            if not self.run.has_weights(record.number)
        ]:
            record = missing[0]
            _log.warning("the weights of trial %d are gone; it is trained again", record.number)
            del self.records[record.number]
            proposal, work = self._work(record)
            (event,) = self.do([replace(work, store_from=0.0, rungs=())])
            self.records[record.number] = again = self._record(proposal, event)
            write_record(self.run.trials, again)
            self.run.drop_checkpoint(work.key)
        self._drop_weights()

    def _give_up(self) -> None:
        """Whatever is still being trained has no record: the next driver asks for it again."""
        for running in self.running.values():
            self.executor.stop(running.work.key)
            self._abandon(running.trial, running.work.number)
        self.running.clear()

    def _abandon(self, trial: optuna.Trial, number: int) -> None:
        """One with a record is left as it is: the next driver tells the study what the record says."""
        if number not in self.records:
            with suppress(StorageError):
                history.give_up(self.study, trial)

    def _report(self) -> None:
        if self.progress is not None:
            best = self.goal.best(self.records)
            note = "nothing feasible yet" if best is None else f"best {best.latency_us / 1000:.3f} ms"
            self.progress("Search", len(self.records), self.job.search.trials, note)


def _is_full(event: Event) -> bool:
    return isinstance(event, Failed) and event.full


def _check_disk(event: Event) -> None:
    """Raises StorageError if a disk was full: nothing is wrong with the trial, and it runs again when there is room."""
    if isinstance(event, Failed) and event.full:
        raise StorageError(event.error)


def _as_failed(event: Lost) -> Failed:
    error = f"its worker died {event.work.attempt} times: {event.error}"
    return Failed(event.work, error, event.seconds)


def _death(times: int) -> str:
    return f"the process died {times} times in this training; out of memory?"


def _outcome(record: TrialRecord) -> str:
    loss = "" if record.accuracy_loss is None else f", accuracy loss {record.accuracy_loss:.4f}"
    if record.same_as is not None:
        return f"the network of trial {record.same_as}"
    return record.error or f"{record.latency_us / 1000:.3f} ms at sparsity {record.sparsity:.3f}{loss}"
