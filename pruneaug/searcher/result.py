"""What a search found."""

from __future__ import annotations

from dataclasses import dataclass

from pruneaug.searcher.trial import TrialRecord


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    `best` is the feasible trial of lowest predicted latency, and only if that is below the dense network's: None means
    that dense is the answer. `best_accuracy` is its validation accuracy after the long fine-tuning. `closest` is the
    judged trial that lost least accuracy. Accuracies are fractions on validation data; latencies are predicted ones.
    """

    best: TrialRecord | None
    best_accuracy: float | None
    closest: TrialRecord | None
    trials: tuple[TrialRecord, ...]
    dense_accuracy: float
    dense_latency_us: float
    rest_us: float
    max_accuracy_loss: float

    @property
    def how_close(self) -> str:
        """One sentence on how near the search came to the constraint."""
        allowed = f"a loss of {self.max_accuracy_loss:.4f} is allowed"
        if self.best is not None:
            return f"trial {self.best.number} loses {self.best.accuracy_loss:.4f} of validation accuracy, and {allowed}"
        if self.closest is None:
            errors = [trial.error for trial in self.trials if trial.state == "failed"]
            first = f"; the first said: {errors[0]}" if errors else ""
            failed = f"{len(errors)} of {len(self.trials)} failed, the others were not faster than dense"
            return f"no trial was judged: {failed}{first}"
        return (
            f"trial {self.closest.number} came closest: it loses {self.closest.accuracy_loss:.4f} "
            f"of validation accuracy at sparsity {self.closest.sparsity:.3f}, but only {allowed}"
        )
