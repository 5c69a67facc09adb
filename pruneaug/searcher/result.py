"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pruneaug.searcher.space import Objective
from pruneaug.searcher.trial import TrialRecord, excess

Outcome = Literal["found", "stay dense", "infeasible", "failed"]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    `best` is the trial that wins by the objective, and only if it is faster than the dense network: None means that
    dense is the answer. `best_accuracy` is its validation accuracy after the long fine-tuning; with several finalists
    that may be what made it keep the limit. `closest` is the judged trial that lost least accuracy. `front`: the judged
    trials that no other beats in latency and loss, fastest first. `repeats`: validation accuracies of the winner made
    again with other seeds. Accuracies are fractions on validation data; latencies are predicted ones.
    """

    best: TrialRecord | None
    best_accuracy: float | None
    closest: TrialRecord | None
    trials: tuple[TrialRecord, ...]
    dense_accuracy: float
    dense_latency_us: float
    rest_us: float
    max_accuracy_loss: float
    objective: Objective = "latency"
    max_latency_us: float | None = None
    front: tuple[TrialRecord, ...] = ()
    repeats: tuple[float, ...] = ()

    @property
    def repeats_mean(self) -> float | None:
        """Mean validation accuracy of the winner made again with other seeds; None if it was not."""
        return fmean(self.repeats) if self.repeats else None

    @property
    def repeats_spread(self) -> float | None:
        """Standard deviation of the same; None for fewer than two."""
        return stdev(self.repeats) if len(self.repeats) > 1 else None

    @property
    def outcome(self) -> Outcome:
        """What the search came to.

        "found": a feasible network faster than dense. "infeasible": networks were judged and none kept enough
        accuracy, or none was, and what is faster than dense is over the latency limit. "failed": none was judged,
        because all that were to be trained failed. "stay dense": nothing that kept enough accuracy, or nothing at all,
        is predicted to be faster than dense.
        """
        if self.best is not None:
            return "found"
        if self.closest is not None:
            feasible_us = [trial.latency_us for trial in self.trials if trial.feasible]
            # A faster one that is feasible had accuracy to win back, and did not.
            return "stay dense" if feasible_us and min(feasible_us) >= self.dense_latency_us else "infeasible"
        if any(trial.state == "failed" for trial in self.trials):
            return "failed"
        return "infeasible" if self._over_limit else "stay dense"

    @property
    def _over_limit(self) -> int:
        """How many trials are predicted to be faster than dense, but slower than the latency limit."""
        limit_us = self.max_latency_us
        if limit_us is None:
            return 0
        return sum(limit_us < trial.latency_us < self.dense_latency_us for trial in self.trials)

    @property
    def how_close(self) -> str:
        """One sentence on how near the search came to the constraint."""
        allowed = f"a loss of {self.max_accuracy_loss:.4f} is allowed"
        if self.max_latency_us is not None:
            allowed = f"a latency of {self.max_latency_us / 1e3:.4g} ms is allowed"
        if self.best is not None:
            loss = self.best.accuracy_loss or 0.0
            has_limit = self.max_latency_us is None
            if has_limit and excess(loss, self.max_accuracy_loss) > 0 and self.best_accuracy is not None:
                # The long fine-tuning brought it within the limit.
                loss = self.dense_accuracy - self.best_accuracy
            changes = f"loses {loss:.4f}" if loss >= 0 else f"gains {-loss:.4f}"
            return f"trial {self.best.number} {changes} of validation accuracy, and {allowed}"
        if self.closest is None:
            errors = [trial.error for trial in self.trials if trial.state == "failed"]
            over = self._over_limit
            if not errors and over:
                return f"{over} of {len(self.trials)} trials were predicted to be over the limit, and only {allowed}"
            if not errors:
                return f"dense is the answer: none of {len(self.trials)} trials was predicted to be faster"
            within = " and within the latency limit" if over else ""
            failed = f"{len(errors)} of {len(self.trials)} failed, the others were not faster than dense{within}"
            return f"no trial was judged: {failed}; the first said: {errors[0]}"
        if self.outcome == "stay dense":
            return f"dense is the answer: no trial that kept enough accuracy is faster, and {allowed}"
        return (
            f"trial {self.closest.number} came closest: it loses {self.closest.accuracy_loss:.4f} "
            f"of validation accuracy at sparsity {self.closest.sparsity:.3f}, but only {allowed}"
        )
