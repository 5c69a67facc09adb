"""The measured network on the page: against the other dense runtimes, and against its own prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pruneaug.report import bars
from pruneaug.report.data import OWN_SPARSE, Data, is_number, own_runtimes, rows
from pruneaug.report.sections import titled_section
from pruneaug.report.words import milliseconds, signed_percent

_LONGEST_WHISKER = 1.5
"""Against the slowest runtime's median."""


@dataclass(frozen=True, slots=True)
class MeasuredRuntime:
    """One measured way to run the network, all times in milliseconds; `error` says why there is no time."""

    name: str
    latency_ms: float | None
    p10: float | None
    p90: float | None
    predicted_ms: float | None
    pruned: bool
    error: str | None


def measured_runtimes(data: Data) -> list[MeasuredRuntime]:
    """The pruned network and every dense runtime, fastest first, failures last."""
    listed = {str(row.get("runtime")): row for row in [*rows(data, "baselines"), *own_runtimes(data)]}
    measured = [_measured(name, row) for name, row in listed.items()]
    return sorted(measured, key=lambda r: (r.latency_ms is None, r.latency_ms or 0.0))


def runtimes_section(data: Data) -> str:
    runtimes = measured_runtimes(data)
    if not runtimes:
        return ""
    marked = [f for r in runtimes for f in (r.latency_ms, r.predicted_ms) if f is not None]
    # One disturbed runtime must not shrink all bars: its whisker is cut.
    whiskers = [min(r.p90, _LONGEST_WHISKER * max(marked)) for r in runtimes if r.p90 is not None and marked]
    full = 1.02 * max([*marked, *whiskers], default=0.0)
    body = "".join(_row(runtime, full) for runtime in runtimes)
    table = (
        '<table class="runtimes stack"><thead><tr><th scope="col">Runtime</th><td></td>'
        f'<th class="num" scope="col">Latency</th></tr></thead><tbody>{body}</tbody></table>'
    )
    lead = _lead(data, runtimes)
    if any(runtime.p90 is not None and runtime.p90 > full for runtime in runtimes):
        lead += " A whisker without an end goes further than the chart."
    return titled_section("Measured, whole network", lead, table)


def _lead(data: Data, runtimes: Sequence[MeasuredRuntime]) -> str:
    words = "Measured in turns on this machine; bars are medians, whiskers the 10th to 90th percentile."
    if any(runtime.predicted_ms is not None for runtime in runtimes):
        words += " The upright stroke is what the latency table predicted."
    if is_number(data.get("prediction_error")):
        words += f" Prediction error of the pruned network: {signed_percent(data['prediction_error'])}."
    return words


def _row(runtime: MeasuredRuntime, full: float) -> str:
    name = escape(runtime.name)
    if runtime.latency_ms is None:
        reason = escape(runtime.error or "not measured")
        return f'<tr><td>{name}</td><td class="soft break" colspan="2">{reason}</td></tr>'
    drawn = bars.bar_with_spread(
        runtime.latency_ms,
        runtime.p10,
        runtime.p90,
        runtime.predicted_ms,
        full,
        "pruned" if runtime.pruned else "dense",
        _words(runtime),
    )
    strong = " strong" if runtime.pruned else ""
    return (
        f'<tr><td class="{strong.strip()}">{name}</td><td>{drawn}</td>'
        f'<td class="num{strong}">{milliseconds(runtime.latency_ms)}</td></tr>'
    )


def _words(runtime: MeasuredRuntime) -> str:
    words = f"{runtime.name}: {milliseconds(runtime.latency_ms)}"
    if runtime.p10 is not None and runtime.p90 is not None:
        words += f", 10th to 90th percentile {milliseconds(runtime.p10)} to {milliseconds(runtime.p90)}"
    return words if runtime.predicted_ms is None else f"{words}, predicted {milliseconds(runtime.predicted_ms)}"


def _measured(name: str, row: Data) -> MeasuredRuntime:
    error = row.get("error")
    return MeasuredRuntime(
        name=name,
        latency_ms=None if error else _number(row, "latency_ms"),
        p10=_number(row, "p10"),
        p90=_number(row, "p90"),
        predicted_ms=_number(row, "predicted_ms"),
        pruned=name == OWN_SPARSE,
        error=str(error) if error else None,
    )


def _number(row: Data, key: str) -> float | None:
    value = row.get(key)
    return value if is_number(value) else None
