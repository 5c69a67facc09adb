"""What is searched for: which trials may win, which is the best, and how far off the others are."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pruneaug.errors import SpecError
from pruneaug.searcher.space import Objective
from pruneaug.searcher.trial import ROUNDING, TrialRecord, excess
from pruneaug.spec.models import SearchSpec

Records = Mapping[int, TrialRecord]

_CLOSE = 3  # networks kept for each finalist that does not keep the limit yet


@dataclass(frozen=True, slots=True)
class Goal:
    """The objective of a search with all that it compares with.

    `latency`: the least latency below that of dense, with a loss of at most `max_accuracy_loss`. `accuracy`: the least
    loss, with a latency below that of dense and at most `max_latency_us`. `front`: both; what no other trial beats in
    one without losing in the other, and the `latency` answer is the network that the search ends with.

    A trial may lose `expected_recovery` more: so much the final fine-tuning is expected to win back.
    """

    objective: Objective
    dense_us: float
    dense_accuracy: float
    max_accuracy_loss: float
    max_latency_us: float | None = None
    expected_recovery: float = 0.0

    @property
    def trial_loss(self) -> float:
        """The largest loss of a feasible trial."""
        return self.max_accuracy_loss + self.expected_recovery

    def violation(self, loss: float, latency_us: float) -> float:
        """What a judged trial exceeds the limit by; at most 0 if it keeps it."""
        known = self.known_violation(latency_us)
        return excess(loss, self.trial_loss) if known is None else known

    def known_violation(self, latency_us: float) -> float | None:
        """What a trial of this latency exceeds the limit by, where training does not matter; else None."""
        return None if self.max_latency_us is None else excess(latency_us / self.max_latency_us, 1.0)

    def can_win(self, latency_us: float, records: Records) -> bool:
        """Whether a network of this latency could still be the best (of `front`: in the front)."""
        if latency_us >= self.dense_us:  # dense is there without training, and loses nothing
            return False
        if self.objective == "accuracy":
            return self.max_latency_us is None or latency_us <= self.max_latency_us
        if self.objective == "front":
            beaten = (r for r in judged(records) if r.latency_us <= latency_us and (r.accuracy_loss or 0.0) <= 0)
            return next(beaten, None) is None
        best = self.best(records)
        return best is None or latency_us < best.latency_us

    def loss_to_beat(self, latency_us: float, records: Records) -> float:
        """The largest loss with which a network of this latency could be the best (of `front`: in the front)."""
        if self.objective == "latency":
            return self.trial_loss
        others = judged(records) if self.objective == "accuracy" else _no_slower(judged(records), latency_us)
        return min((r.accuracy_loss for r in others if r.accuracy_loss is not None), default=1.0)

    def ranked(self, records: Records) -> list[TrialRecord]:
        """The feasible trials that are faster than dense, best first."""
        faster = [r for r in records.values() if r.feasible and r.latency_us < self.dense_us]
        return sorted(faster, key=self.rank)

    def rank(self, record: TrialRecord) -> tuple[float, float, int]:
        """Smaller is better; of equally good trials, the one that is better in the other figure."""
        loss = record.accuracy_loss or 0.0
        first, second = (loss, record.latency_us) if self.objective == "accuracy" else (record.latency_us, loss)
        return first, second, record.number

    def best(self, records: Records) -> TrialRecord | None:
        """The feasible trial that wins so far; None if dense does."""
        return next(iter(self.ranked(records)), None)

    def front(self, records: Records) -> tuple[TrialRecord, ...]:
        """The judged trials faster than dense that no other beats in latency and loss, fastest first."""
        return non_dominated(r for r in judged(records) if r.latency_us < self.dense_us)

    def finalists(self, records: Records, count: int, final_losses: Mapping[int, float]) -> list[TrialRecord]:
        """The trials that a longer fine-tuning may make the winner, the next one first, `count` with those that had it.

        `final_losses` are the losses after it, by the number of the trial. Of objective `accuracy` the best trials have
        their turn, in rank. Of the others the best one is the first, and then those that are faster than every finalist
        within the limit: what finalists won back tells which of them would keep it too. The fastest of these is the
        next, or the closest to the limit where none would.
        """
        left = [r for r in self.wanted(records, count) if r.number not in final_losses]
        if self.objective != "accuracy":
            kept_us = [records[n].latency_us for n, loss in final_losses.items() if self.ends_with(loss, records[n])]
            left = [r for r in left if r.latency_us < min(kept_us, default=self.dense_us)]
            best = self.best(records)
            if final_losses:
                left.sort(key=lambda r: (self._final_excess(r, records, final_losses), r.latency_us, r.number))
            elif best is not None:
                left.sort(key=lambda r: (r != best, r.feasible, r.violation or 0.0, r.latency_us, r.number))
        return left[: max(0, count - len(final_losses))]

    def ends_with(self, loss: float, record: TrialRecord) -> bool:
        """Whether a trial's network may be the one that the search ends with, if it loses so much now."""
        return excess(loss, self.max_accuracy_loss) <= 0 if self.max_latency_us is None else record.feasible

    def _final_excess(self, record: TrialRecord, records: Records, final_losses: Mapping[int, float]) -> float:
        """What a trial would exceed the limit by if it won back what the finalist did that had lost the most alike."""

        def lost(number: int) -> float:
            return records[number].accuracy_loss or 0.0

        loss = lost(record.number)
        alike = min(final_losses, key=lambda number: (abs(lost(number) - loss), number))
        return max(0.0, excess(loss - lost(alike) + final_losses[alike], self.max_accuracy_loss))

    def wanted(self, records: Records, finalists: int) -> list[TrialRecord]:
        """The trials whose networks the end of the search may need, the whole front if it is asked for.

        These are the best; the front from it to the fastest that needs nothing won back; and faster ones that exceed
        the allowed loss, the closest first, more than finalists: which of them are worth it shows later.
        """
        if self.objective == "accuracy":
            return self.ranked(records)[:finalists]
        front = self.front(records)
        if self.objective == "front":
            return list(front)
        feasible = [r for r in front if r.feasible]
        safe = [r.latency_us for r in feasible if self.ends_with(r.accuracy_loss or 0.0, r)]
        close = sorted((r for r in front if not r.feasible), key=lambda r: (r.violation or 0.0, r.latency_us, r.number))
        return [
            *(r for r in feasible if r.latency_us <= min(safe, default=self.dense_us)),
            *close[: _CLOSE * (finalists - 1)],
        ]

    def store_from(self, finalists: int) -> float:
        """The accuracy below which a trial's network is never needed."""
        if self.objective != "latency" or finalists > 1:
            return 0.0
        return self.dense_accuracy - self.trial_loss - 2 * ROUNDING

    def shortfall(self, loss: float) -> float:
        """What a stopper compares at a rung: the loss beyond what is allowed, or of `accuracy` the whole loss."""
        return loss if self.objective == "accuracy" else max(0.0, excess(loss, self.trial_loss))

    def constraints(self, record: TrialRecord, directions: int) -> dict[str, float]:
        """What the study takes as constraints, allowed when <= 0.

        A stopped trial is held against the limit at its last rung, a skipped one if it is known what it exceeds. A
        study of both figures needs none for the front.
        """
        if self.objective == "front" and directions == 2:
            return {}
        name = "latency" if self.objective == "accuracy" else "accuracy_loss"
        if record.violation is not None:
            return {name: record.violation}
        short = self.shortfall(self.dense_accuracy - record.rungs[-1][1]) if record.state == "stopped" else 0.0
        return {name: short} if short > 0 and self.objective != "accuracy" else {}

    def values(self, record: TrialRecord, directions: int) -> list[float]:
        """What the study minimises."""
        both = [record.latency_us, record.accuracy_loss or 0.0]
        if directions == 2:
            return both
        return both[1:] if self.objective == "accuracy" else both[:1]


def make_goal(search: SearchSpec, dense_us: float, dense_accuracy: float) -> Goal:
    """What `search` asks for, against a dense network of this latency and validation accuracy."""
    limit_us = _max_latency_us(search, dense_us)
    return Goal(
        search.objective, dense_us, dense_accuracy, search.max_accuracy_loss, limit_us, search.expected_recovery
    )


def check_reachable(search: SearchSpec, dense_us: float, least_us: float) -> None:
    """Raises SpecError if the limit is below the least latency that the search can reach."""
    limit_us = _max_latency_us(search, dense_us)
    if limit_us is None or limit_us >= least_us * (1 - ROUNDING):
        return
    key, asked, least = "max_latency_ms", f"{limit_us / 1e3:.4g} ms", least_us / 1e3
    if search.max_latency_ratio is not None:
        key, asked = "max_latency_ratio", f"{search.max_latency_ratio:g} ({asked})"
        least = least_us / dense_us
    raise SpecError(
        f"search.{key} must be reachable, but {asked} is asked and the fastest network of this space takes "
        f"{least_us / 1e3:.4g} ms; raise it to {_rounded_up(least):g} or more, or allow higher sparsities or more "
        "patterns"
    )


def _max_latency_us(search: SearchSpec, dense_us: float) -> float | None:
    if search.max_latency_ratio is not None:
        return search.max_latency_ratio * dense_us
    return None if search.max_latency_ms is None else search.max_latency_ms * 1e3


def _rounded_up(value: float) -> float:
    """To three significant digits, so that what a message advises is enough."""
    step = 10.0 ** (math.floor(math.log10(value)) - 2)
    return math.ceil(value / step) * step


def judged(records: Records) -> list[TrialRecord]:
    """The trials whose accuracy is known."""
    return [record for record in records.values() if record.accuracy_loss is not None]


def non_dominated(records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Those that no other beats in latency and loss, fastest first; of equal ones, the first."""
    front: list[TrialRecord] = []
    for record in sorted(records, key=lambda r: (r.latency_us, r.accuracy_loss or 0.0, r.number)):
        if not front or (record.accuracy_loss or 0.0) < (front[-1].accuracy_loss or 0.0):
            front.append(record)
    return tuple(front)


def _no_slower(records: Sequence[TrialRecord], latency_us: float) -> list[TrialRecord]:
    return [record for record in records if record.latency_us <= latency_us]
