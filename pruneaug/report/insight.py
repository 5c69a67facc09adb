"""What the trials teach, on the page and in words: the price of more speed, what training bought, what holds back."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from pruneaug.report import bars
from pruneaug.report.analysis import FASTER_BY, faster_cost, gain_noise, reference_of, training_steps, trial_front
from pruneaug.report.data import (
    Data,
    accuracy_loss,
    chosen_trial,
    expected_recovery,
    is_number,
    max_accuracy_loss,
    ratio,
    section,
)
from pruneaug.report.front import Reference, Step
from pruneaug.report.holding import Holding, holding_words, holdings
from pruneaug.report.layers import pattern_words
from pruneaug.report.lines import Chart, Series, figure
from pruneaug.report.sections import titled_section
from pruneaug.report.words import (
    MISSING,
    epoch_words,
    has_lost,
    lost_points,
    milliseconds,
    percent,
    points,
    seconds,
    signed_points,
    times,
)

_SHOWN = 12
_FULL_BARS = (0.05, 0.1, 0.25, 0.5, 1.0)
"""What a full bar may stand for: the least that holds the largest share."""
_NUM = ' class="num"'


def faster_words(data: Data) -> str:
    """What the next 10 % of latency would cost in accuracy, and how sure that is; empty if nothing was chosen."""
    cost = faster_cost(data)
    if cost is None:
        return ""
    goal = f"The next {percent(FASTER_BY, 0)} of latency"
    goal += f" (from {milliseconds(cost['from_ms'])} to {milliseconds(cost['to_ms'])})"
    slower = f"trial {cost['low_trial']} {has_lost(cost['low'])}"
    error = "" if cost["error"] is None else f" One standard error of the accuracy is {points(cost['error'])} points."
    if cost["estimate"] is None:
        return f"{goal}: no trial that fast was trained to its end, so its price is not known; {slower}.{error}"
    more, loss, now = cost["estimate"] - cost["loss_now"], cost["estimate"], cost["loss_now"]
    price = f"about {points(more)} points of accuracy" if more > 0 else "no accuracy"
    then, before = lost_points(loss), lost_points(now)
    before = points(abs(now)) if then.split()[-1] == before.split()[-1] else before
    return (
        f"{goal} would cost {price}, {then} instead of {before}: "
        f"it lies between two trials of the front: {slower}, and trial {cost['high_trial']}, faster than that, "
        f"{has_lost(cost['high'])}, after their short fine-tuning.{error}"
    )


def cost_words(data: Data) -> str:
    """What the search cost: epochs, time in trials, its own time beside them."""
    search = section(data, "search")
    epochs, spent, own = search.get("epochs"), search.get("seconds"), search.get("seconds_own")
    if not is_number(epochs) and not is_number(spent):
        return ""
    parts = [epoch_words(epochs) if is_number(epochs) else "", seconds(spent) if is_number(spent) else ""]
    words = f"The trials took {' and '.join(part for part in parts if part)}"
    if is_number(final := search.get("epochs_final")) and final > 0:
        words += f", the final fine-tuning {epoch_words(final)} more"
    if is_number(own):
        share = f" ({percent(own / spent)} of the trials' time)" if is_number(spent) and 0 < own < spent else ""
        words += f"; the search itself took {seconds(own)} beside them{share}"
    return f"{words}."


def repeat_words(data: Data) -> str:
    """The winner made again with other seeds; empty if it was not."""
    repeats = section(section(data, "best"), "repeats")
    accuracies = [value for value in repeats.get("accuracies") or () if is_number(value)]
    if not accuracies:
        return ""
    spread = f" ± {points(repeats['spread'])} points (standard deviation)" if is_number(repeats.get("spread")) else ""
    lowest, highest = min(accuracies), max(accuracies)
    seeds = f"{len(accuracies)} other seed{'' if len(accuracies) == 1 else 's'}"
    failed = f"; {repeats['failed']} failed" if repeats.get("failed") else ""
    return (
        f"Made again with {seeds}: validation accuracy {percent(repeats.get('mean'), 2)}{spread}, "
        f"from {percent(lowest, 2)} to {percent(highest, 2)}{failed}."
    )


def recovery_words(data: Data) -> str:
    """What the final fine-tuning won back, and how to search faster networks if it left much of the limit unused.

    Empty if it won back nothing, or where that is not known.
    """
    limit, lost = max_accuracy_loss(data), accuracy_loss(data, "validation")
    before, tuned = chosen_trial(data).get("accuracy_loss"), section(data, "search").get("epochs_final")
    if limit is None or lost is None or not is_number(before) or not tuned or before <= lost:
        return ""
    won = before - lost
    now = f"{points(lost)} points are lost" if lost > 0 else "no accuracy is lost"
    words = f"The final fine-tuning won back {points(won)} points: {now} now, and {points(limit)} could be."
    if won <= expected_recovery(data) or limit - lost <= (gain_noise(data) or 0.0):
        return words
    return (
        f"{words} So a search whose trials may lose as much more, with `search.expected_recovery: {won:.3f}`, may come "
        "to a faster network."
    )


def training_section(data: Data) -> str:
    """The area under the front over epochs of training, and what more speed would cost."""
    reference = reference_of([data])
    words = [faster_words(data), cost_words(data), recovery_words(data), repeat_words(data)]
    said = "".join(f"<p>{escape(text)}</p>" for text in words if text)
    steps = [] if reference is None else training_steps(data, reference)
    drawn = figure(covered_chart([("", steps)], reference)) if reference is not None and len(steps) > 1 else ""
    if not said and not drawn:
        return ""
    lead = "" if reference is None or not drawn else reference_words(reference)
    return titled_section("What training bought", lead, drawn + f'<div class="prose">{said}</div>')


def reference_words(reference: Reference) -> str:
    return (
        "How much of the plane of latency and loss the trials cover (hypervolume), by the epochs they were trained: "
        f"100 % would be no latency and no loss, 0 % is dense ({milliseconds(reference.latency_ms)}) or a loss of "
        f"{points(reference.loss)} points."
    )


def covered_chart(runs: Sequence[tuple[str, Sequence[Step]]], reference: Reference) -> Chart:
    """Covered area over epochs, one line for each run."""
    last = max((steps[-1].epochs for _, steps in runs if steps), default=1.0) or 1.0
    most = max((steps[-1].covered for _, steps in runs if steps), default=0.0)
    return Chart(
        title="Covered area over epochs of training",
        x_name="epochs of training in trials",
        y_name="covered area, %",
        x_range=(0.0, 1.03 * last),
        y_range=(0.0, max(1.1 * most, 0.01)),
        series=[_covered(name, colour, steps) for colour, (name, steps) in enumerate(runs)],
        y_factor=100,
    )


def _covered(name: str, colour: int, steps: Sequence[Step]) -> Series:
    corners: list[tuple[float, float]] = []
    marks = []
    for before, step in pairwise(steps):
        corners += [(before.epochs, before.covered), (step.epochs, before.covered)]
        if step.covered > before.covered:
            marks.append((step.epochs, step.covered, f"{name or 'Trial'} {step.trial}: {percent(step.covered)}"))
    if steps:
        corners.append((steps[-1].epochs, steps[-1].covered))
    return Series(name, colour, corners, marks)


def front_rows(data: Data) -> list[tuple[str, ...]]:
    """Where the front is what was searched: trial, latency, speed-up and accuracy change of each of its trials."""
    if section(data, "constraint").get("objective") != "front":
        return []
    dense_ms = section(data, "dense").get("latency_ms_predicted")
    return [
        (
            str(point.trial),
            milliseconds(point.latency_ms),
            times(ratio(dense_ms, point.latency_ms)),
            signed_points(point.loss),
        )
        for point in trial_front(data)
    ]


FRONT_COLUMNS = ("Trial", "Latency", "Speed-up", "Accuracy change, points")


def front_section(data: Data) -> str:
    """The front as a table, where it is what was searched."""
    listed = front_rows(data)
    if not listed:
        return ""
    head = "".join(f'<th scope="col"{_NUM}>{name}</th>' for name in FRONT_COLUMNS)
    body = "".join(f"<tr>{''.join(f'<td{_NUM}>{words}</td>' for words in row)}</tr>" for row in listed)
    lead = "What no other trial beats in both, fastest first; latencies predicted, losses after the short fine-tuning."
    return titled_section("The front", lead, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def holding_section(data: Data) -> str:
    """The slowest layers of the pruned network: their share, what could be saved there, how sensitive they are."""
    listed = holdings(data)
    if not listed:
        return ""
    shown, words = listed[:_SHOWN], " ".join(holding_words(data))
    full = next(end for end in _FULL_BARS if shown[0].share <= end or end == _FULL_BARS[-1])
    columns = ["Layer", "Pattern", "Share of the latency", "Could save"]
    has_lost = any(holding.lost_more is not None for holding in shown)
    has_clear = any(holding.correlation is not None for holding in shown)
    columns += ["Sensitivity"] if has_lost else []
    columns += ["Correlation"] if has_clear else []
    head = "".join(f'<th scope="col"{_NUM if index > 2 else ""}>{name}</th>' for index, name in enumerate(columns))
    body = "".join(_row(holding, full, has_lost, has_clear) for holding in shown)
    table = f'<table class="holding stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    notes = [
        f"Share of the latency: a full bar is {percent(full, 0)}.",
        "Could save: the share of the network's latency that the fastest choice of the layer's space would take off.",
    ]
    if has_lost:
        notes.append(
            "Sensitivity: the saliency that this choice would lose, against the most sensitive layer's (100 %)."
        )
    if has_clear:
        notes.append(
            "Correlation: rank correlation of the layer's sparsity with the accuracy lost, over all judged trials, "
            "where it is clearer than chance; layers that were pruned together share it."
        )
    if len(listed) > len(shown):
        notes.append(f"The {len(listed) - len(shown)} faster layers are in the table of all layers.")
    said = "".join(f"<p>{escape(note)}</p>" for note in notes)
    return titled_section("What holds the network back", words, f'{table}<div class="prose soft">{said}</div>')


def _row(holding: Holding, full: float, has_lost: bool, has_clear: bool) -> str:
    drawn = bars.bar(holding.share, full, "pruned", f"{holding.name}: {percent(holding.share)} of the latency", 9)
    cells = [
        f'<td class="mono break">{escape(holding.name)}</td>',
        f"<td>{escape(pattern_words(holding.pattern))}</td>",
        f'<td><div class="pair"><div class="track">{drawn}</div><span>{percent(holding.share)}</span></div></td>',
        _cell("could save", percent(holding.saves)),
    ]
    if has_lost:
        cells.append(_cell("sensitivity", percent(holding.lost_more, 0)))
    if has_clear:
        clear = MISSING if holding.correlation is None else f"{holding.correlation:+.2f}".replace("-", "−")
        cells.append(_cell("correlation", clear))
    return f"<tr>{''.join(cells)}</tr>"


def _cell(name: str, words: str) -> str:
    return f'<td class="num" data-name="{name}">{words}</td>'
