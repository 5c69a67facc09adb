"""A search watched from its run folder: what is known so far, told from the trials' files alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pruneaug.errors import RunError
from pruneaug.report.data import (
    Data,
    best_feasible,
    expected_recovery,
    is_number,
    max_accuracy_loss,
    max_latency_ms,
    ratio,
    section,
)
from pruneaug.report.folder import LAYERS, constraint_of, read_job, read_object, read_trial, trial_numbers, trial_row
from pruneaug.report.words import epoch_words, lost_points, milliseconds, points, ratio_words, seconds, trial_state
from pruneaug.searcher.cost import ending_s

_RECENT = 20
"""So many of the last trials tell how long the next ones take."""


class RunWatch:
    """The finished trials of a run. `poll` reads those that are new; all else is told from what was read.

    wanted: how many trials the search is for. running: the trials that are on their way, as the progress tells.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = Path(folder)
        self._constraint: Data = {}
        self._timeout_s: float | None = None
        self._finetune: Data = {}
        self._workers = 1
        self.dense_ms: float | None = None
        self.rows: dict[int, Data] = {}
        self.wanted: int | None = None
        self.running: set[int] = set()

    def poll(self) -> list[Data]:
        """The rows of the trials that finished since the last call, by number. A file that is not whole is left out."""
        if self.dense_ms is None:
            self._read_facts()
        new = []
        for number in sorted(trial_numbers(self._folder) - self.rows.keys()):
            record = read_trial(self._folder, number)
            if record:
                self.rows[number] = trial_row(record)
                new.append(self.rows[number])
        self.running -= self.rows.keys()
        return new

    def count(self, state: str) -> int:
        return sum(row.get("state") == state for row in self.rows.values())

    @property
    def limit_words(self) -> str:
        """What is allowed."""
        data = {"constraint": self._constraint}
        loss, latency = max_accuracy_loss(data), max_latency_ms(data)
        if loss is None:
            return f"at most {milliseconds(latency)} allowed"
        recovery = expected_recovery(data)
        return f"{points(loss)} allowed" + (f" and {points(recovery)} to be won back" if recovery > 0 else "")

    @property
    def epochs(self) -> float:
        return self._sum("epochs")

    @property
    def trial_seconds(self) -> float:
        return self._sum("seconds")

    @property
    def best(self) -> Data:
        """The feasible trial that wins so far; empty if there is none that is faster than dense."""
        dense = self.dense_ms
        faster = [
            row
            for row in self.rows.values()
            if dense is None or not is_number(row["latency_ms_predicted"]) or row["latency_ms_predicted"] < dense
        ]
        return best_feasible(faster, {"constraint": self._constraint})

    @property
    def seconds_left(self) -> float | None:
        """What the other trials will take if they take what the last ones did, skipped ones among them; and the end."""
        recent = [row["seconds"] for _, row in sorted(self.rows.items())[-_RECENT:] if is_number(row.get("seconds"))]
        if self.wanted is None or not recent:
            return None
        left = float((self.wanted - len(self.rows)) * sum(recent) / len(recent) / max(len(self.running), 1))
        if self._timeout_s is not None:
            left = min(left, self._timeout_s - self.trial_seconds)
        return max(left, 0.0) + self._ending_s()

    def speedup(self, row: Data) -> float | None:
        return ratio(self.dense_ms, row.get("latency_ms_predicted"))

    def counts_words(self) -> str:
        """As in "12 done, 3 skipped, 1 failed; running 16, 17"."""
        names = {"complete": "done", "skipped": "skipped", "stopped": "stopped", "failed": "failed"}
        counts = {state: self.count(state) for state in names}
        told = [f"{count} {names[state]}" for state, count in counts.items() if count or state == "complete"]
        running = f"; running {', '.join(map(str, sorted(self.running)))}" if self.running else ""
        return ", ".join(told) + running

    def trial_words(self, row: Data) -> str:
        """One finished trial in a line."""
        parts = [milliseconds(row.get("latency_ms_predicted"))]
        if (speedup := self.speedup(row)) is not None:
            parts[0] += f" ({ratio_words(speedup)})"
        if is_number(row.get("accuracy_loss")):
            parts.append(lost_points(row["accuracy_loss"]))
        if is_number(row.get("epochs")) and row["epochs"] > 0:
            parts.append(f"{epoch_words(row['epochs'])} in {seconds(row.get('seconds'))}")
        if row.get("error"):
            parts.append(str(row["error"]))
        star = " (best)" if row is self.best else ""
        return f"trial {row.get('number')} {trial_state(row)}{star}: {', '.join(parts)}"

    def _ending_s(self) -> float:
        """What follows the trials, if an epoch takes what it did in them."""
        epoch_s = self.trial_seconds / self.epochs if self.epochs > 0 else 0.0
        trial_s, final_s = (
            float(section(self._finetune, name).get("epochs", 0.0)) * epoch_s for name in ("trial", "final")
        )
        refined = sum(1 for _ in (self._folder / "finals").glob("*/record.json"))
        finalists = max(int(self._finetune.get("finalists", 0)) - refined, 0)
        return ending_s(trial_s, final_s, finalists, int(self._finetune.get("repeats", 0)), self._workers)

    def _sum(self, key: str) -> float:
        return float(sum(row[key] for row in self.rows.values() if is_number(row.get(key))))

    def _read_facts(self) -> None:
        try:
            job: dict[str, Any] = read_job(self._folder)
        except RunError:
            return
        dense_us = read_object(self._folder / LAYERS).get("latency_us_dense")
        self.dense_ms = dense_us / 1e3 if is_number(dense_us) else None
        self._constraint = constraint_of(job, self.dense_ms)
        timeout_s = section(job, "search").get("timeout_s")
        self._timeout_s = timeout_s if is_number(timeout_s) else None
        self._finetune = section(job, "finetune")
        self._workers = int(section(section(job, "search"), "executor").get("workers", 1))
