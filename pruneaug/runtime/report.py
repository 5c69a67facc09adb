"""What a compiled network consists of: which kernels, what has none of ours, and where the time goes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pruneaug.kernels.products import PRODUCTS
from pruneaug.runtime.steps import KernelStep, Steps

_MOST_MODULES = 3  # that a line names
_MOST_ROWS = 20
_REGION = re.compile(r"region_(\d+)_")


@dataclass(frozen=True, slots=True)
class StepReport:
    """One step: the layer or operators that it computes, and our kernel; no kernel means TVM's own loops.

    `modules` are the paths of the modules that operators without a kernel come from, but for the network itself.
    """

    origin: str
    kernel: str | None
    modules: tuple[str, ...] = ()

    def __str__(self) -> str:
        """ "lstm, add in encoder.rnn"."""
        if not self.modules:
            return self.origin
        shown, more = self.modules[:_MOST_MODULES], len(self.modules) - _MOST_MODULES
        return f"{self.origin} in {', '.join(shown)}{f' and {more} more' if more > 0 else ''}"


@dataclass(frozen=True, slots=True)
class StepTime:
    """The time of one step in one forward pass: that of all its kernels or loops together."""

    step: StepReport
    latency_us: float


class StepTimes(tuple[StepTime, ...]):
    """The steps of a network with their times, in the order of execution; printed, those that take longest."""

    __slots__ = ()

    def __repr__(self) -> str:
        total_us = sum(time.latency_us for time in self)
        longest = sorted(self, key=lambda time: -time.latency_us)
        rows = [_time_row(str(time.step), time.step.kernel, time.latency_us, total_us) for time in longest[:_MOST_ROWS]]
        if others := longest[_MOST_ROWS:]:
            rest_us = sum(time.latency_us for time in others)
            rows.append(_time_row(f"{len(others)} other steps", "", rest_us, total_us))
        rows.append(_time_row("all steps", "", total_us, total_us))
        return _table([("step", "kernel", "µs", "share"), *rows])


@dataclass(frozen=True, slots=True, repr=False)
class CompileReport:
    """The steps of a compiled function, in the order of execution; printed, how many each kernel computes.

    `first_region` is the number of its first step without a kernel: a module counts them through all its functions, and
    names their loops by it.
    """

    steps: tuple[StepReport, ...]
    first_region: int = 0

    @classmethod
    def of(cls, steps: Steps, first_region: int = 0) -> CompileReport:
        reports = (
            StepReport(step.origin, step.call.name)
            if isinstance(step, KernelStep)
            else StepReport(step.origin, None, step.modules)
            for step in steps.steps
        )
        return cls(tuple(reports), first_region)

    def __repr__(self) -> str:
        kernels = Counter(step.kernel for step in self.steps if step.kernel is not None)
        lines = [self.summary]
        if kernels:
            lines.append(_table([("kernel", "steps"), *((name, str(n)) for name, n in kernels.most_common())]))
        if self.fallbacks:
            shown = [f"  {number} ×  {step}" for step, number in Counter(self.fallbacks).most_common(_MOST_ROWS)]
            lines += ["without a kernel of ours, by TVM's own loops:", *shown]
            if len(set(self.fallbacks)) > _MOST_ROWS:
                lines.append("  ... see `fallbacks`")
        return "\n".join([*lines, "`profile(*inputs)` of the network tells the time of every step."])

    @property
    def summary(self) -> str:
        """The numbers of steps, in a few words."""
        steps = f"{len(self.steps)} step{'s' * (len(self.steps) != 1)}"
        return f"{steps}, {self.products} of them layers, {len(self.fallbacks)} without a kernel of ours"

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """The operators that have no kernel of ours, a string for each run of them; also the modules that run them."""
        return tuple(str(step) for step in self.steps if step.kernel is None)

    @property
    def products(self) -> int:
        """How many calls of linear layers and convolutions our kernels compute."""
        return sum(step.kernel in PRODUCTS for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        return {"steps": [asdict(step) for step in self.steps], "first_region": self.first_region}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> CompileReport:
        steps = (StepReport(step["origin"], step["kernel"], tuple(step["modules"])) for step in value["steps"])
        return cls(tuple(steps), int(value["first_region"]))


def step_times(report: CompileReport, calls: Sequence[tuple[str, float]]) -> StepTimes:
    """The report's steps, each with its time, from the name and microseconds of every call of one forward pass.

    A step whose result is a constant is computed when the network is compiled: it takes no time. Operators that TVM has
    fused with those of a later step count there. A call that belongs to no step, such as a copy that a view turned out
    to need, is a step of its own without a kernel.
    """
    times = [0.0] * len(report.steps)
    others: list[tuple[int, StepTime]] = []  # each with the number of steps before it
    regions: dict[int, int] = {}  # number in the module -> number of the step
    for index, step in enumerate(report.steps):
        if step.kernel is None:
            regions[report.first_region + len(regions)] = index
    at = -1  # the step of the last call
    for name, latency_us in calls:
        step_index = _step_of(name, report, regions, at)
        if step_index is None:
            others.append((at + 1, StepTime(StepReport(name, None), latency_us)))
            continue
        times[step_index] += latency_us
        at = step_index
    found = [StepTime(step, latency_us) for step, latency_us in zip(report.steps, times)]
    for before, other in reversed(others):
        found.insert(before, other)
    return StepTimes(found)


def fallback_shares(times: Sequence[StepTime]) -> dict[str, float]:
    """The operators of every step without a kernel of ours -> their share of all steps' time, the largest first."""
    total_us = sum(time.latency_us for time in times)
    spent_us: dict[str, float] = {}
    for time in times:
        if time.step.kernel is None:
            spent_us[time.step.origin] = spent_us.get(time.step.origin, 0.0) + time.latency_us
    ordered = sorted(spent_us.items(), key=lambda item: -item[1])
    return {origin: latency_us / total_us if total_us else 0.0 for origin, latency_us in ordered}


def _step_of(name: str, report: CompileReport, regions: dict[int, int], at: int) -> int | None:
    """The step that a call belongs to, the last one being that of step `at`; None if it belongs to none."""
    ahead = range(at + 1, len(report.steps))
    numbers = [int(number) for number in _REGION.findall(name)]
    if not numbers:
        return next((index for index in ahead if _is_kernel(name, report.steps[index].kernel)), None)
    # Before the next kernel that runs. Equal regions share the loops of the first one, so the number may be an older
    # one's: then it is the region at hand, or the next one.
    named = max((regions[number] for number in numbers if number in regions), default=-1)
    if named >= at and named != -1:
        return named
    if at >= 0 and report.steps[at].kernel is None:
        return at
    return next((index for index in ahead if report.steps[index].kernel is None), None)


def _is_kernel(name: str, kernel: str | None) -> bool:
    """Whether a function of this name is the kernel: a module numbers its functions of equal names."""
    return kernel is not None and _stem(name) == _stem(kernel)


def _stem(name: str) -> str:
    return name.replace(" ", "_").rstrip("0123456789")


def _time_row(step: str, kernel: str | None, latency_us: float, total_us: float) -> tuple[str, ...]:
    share = latency_us / total_us if total_us else 0.0
    return step, "none of ours" if kernel is None else kernel, f"{latency_us:.1f}", f"{share:.1%}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, then of numbers from the first cell on that is one in the last row."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    is_number = [cell[:1].isdigit() for cell in rows[-1]]
    lines = []
    for row in rows:
        columns = zip(row, widths, is_number)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in columns))
    return "\n".join(lines)
