"""The plain sections of the page: heading, verdict, figures, warnings, summary, what stays dense, the job."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from html import escape

import yaml

from pruneaug.report.analysis import gain_noise
from pruneaug.report.data import (
    Data,
    accuracy_loss,
    best_baseline,
    max_accuracy_loss,
    ratio,
    rows,
    section,
)
from pruneaug.report.verdict import headline, outcome, verdict
from pruneaug.report.words import (
    MISSING,
    count,
    milliseconds,
    percent,
    points,
    signed_percent,
    signed_points,
    size,
    times,
)


def titled_section(title: str, lead: str, content: str) -> str:
    """A section of the page; `content` is markup, the rest is escaped."""
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="lead">{escape(lead)}</p>\n{content}\n</section>'


def header(data: Data) -> str:
    platform, network = section(data, "platform"), section(data, "network")
    threads = platform.get("threads")
    facts = [
        platform.get("cpu") or platform.get("name"),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else None,
        network.get("name"),
        f"{count(network['parameters'])} parameters" if network.get("parameters") else None,
        f"{count(network['macs'])} MACs" if network.get("macs") else None,
        _moment(data.get("created_at")),
    ]
    line = " · ".join(escape(str(fact)) for fact in facts if fact)
    name = escape(str(section(data, "job").get("name") or "Job"))
    return f'<header>\n<div class="brand">pruneaug report</div>\n<h1>{name}</h1>\n<p class="meta">{line}</p>\n</header>'


def _moment(written: object) -> str | None:
    """ "2026-11-22T11:49:35+00:00" -> "2026-11-22 11:49 UTC"; another text as it is."""
    try:
        moment = datetime.fromisoformat(str(written))
    except ValueError:
        return str(written) if written else None
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment.tzinfo is not None else str(written)


def marked_up(text: str) -> str:
    """The text as markup, commands between back-ticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def verdict_banner(data: Data) -> str:
    kind = outcome(data).replace(" ", "-")
    words = data.get("verdict") or verdict(data)
    return (
        f'<div class="verdict {kind}"><strong>{escape(headline(data))}</strong>\n<p>{marked_up(str(words))}</p></div>'
    )


def cards(data: Data) -> str:
    """The four figures that decide; nothing where no network was found."""
    best, dense = section(data, "best"), section(data, "dense")
    if not best:
        return ""
    baseline = best_baseline(data)
    figures = [
        (
            "Latency, measured",
            milliseconds(best.get("latency_ms_measured")),
            f"dense {milliseconds(baseline.get('latency_ms'))} ({baseline.get('runtime', 'not measured')})",
        ),
        _accuracy_card(data),
        (
            "Operations removed",
            percent(best.get("operation_sparsity")),
            f"{percent(best.get('sparsity'))} of the weights",
        ),
        ("Non-zero weights", size(best.get("size_bytes")), f"{size(dense.get('size_bytes'))} dense"),
    ]
    boxes = "".join(
        f'<div><div class="name">{escape(name)}</div><div class="figure">{escape(figure)}</div>'
        f'<div class="note">{escape(note)}</div></div>'
        for name, figure, note in figures
    )
    return f'<div class="cards">{boxes}</div>'


def _accuracy_card(data: Data) -> tuple[str, str, str]:
    loss, limit, noise = accuracy_loss(data, "validation"), max_accuracy_loss(data), gain_noise(data)
    note = f"{points(limit)} allowed to be lost" if limit is not None else "latency has the limit"
    if loss is None or loss >= 0:
        return "Accuracy lost, validation", f"{points(loss)} points", note
    if noise is not None and -loss <= noise:
        note = f"within the noise of ± {points(noise)}; {note}"
    return "Accuracy gained, validation", f"{points(-loss)} points", note


def warnings(data: Data) -> str:
    listed = [str(warning) for warning in data.get("warnings") or ()]
    if not listed:
        return ""
    items = "".join(f"<li>{marked_up(warning)}</li>" for warning in listed)
    return f'<section class="warnings">\n<h2>Read with care</h2>\n<ul>{items}</ul>\n</section>'


def summary_rows(data: Data) -> list[tuple[str, str, str, str]]:
    """(figure, dense, pruned, change), in words; also what the terminal shows."""
    dense, best = section(data, "dense"), section(data, "best")

    def change_of_accuracy(split: str) -> str:
        loss = accuracy_loss(data, split)
        return MISSING if loss is None else f"{signed_points(loss)} points"

    def faster(key: str) -> str:
        speedup = ratio(dense.get(key), best.get(key))
        return (
            MISSING
            if speedup is None
            else f"{times(speedup)} faster"
            if speedup >= 1
            else f"{times(1 / speedup)} slower"
        )

    def spread(figures: Data) -> str:
        low, high = milliseconds(figures.get("latency_ms_p10")), milliseconds(figures.get("latency_ms_p90"))
        if MISSING in (low, high):
            return MISSING
        return f"{low.removesuffix(' ms')} – {high}"

    smaller = ratio(best.get("size_bytes"), dense.get("size_bytes"))
    return [
        ("Latency, measured", *_both(dense, best, "latency_ms_measured", milliseconds), faster("latency_ms_measured")),
        ("10th – 90th percentile", spread(dense), spread(best), ""),
        (
            "Latency, predicted",
            *_both(dense, best, "latency_ms_predicted", milliseconds),
            faster("latency_ms_predicted"),
        ),
        (
            "Accuracy, validation",
            *_both(dense, best, "accuracy_validation", _accuracy),
            change_of_accuracy("validation"),
        ),
        ("Accuracy, test", *_both(dense, best, "accuracy_test", _accuracy), change_of_accuracy("test")),
        ("Sparsity of the weights", *_both(dense, best, "sparsity", percent), ""),
        ("Sparsity of the operations", *_both(dense, best, "operation_sparsity", percent), ""),
        (
            "Size of the non-zero weights",
            *_both(dense, best, "size_bytes", size),
            MISSING if smaller is None else signed_percent(smaller - 1),
        ),
    ]


def summary(data: Data) -> str:
    """The figures of both networks; where no pruned one was found, those of the dense network alone."""
    found, best_measured = bool(section(data, "best")), section(data, "best").get("latency_ms_measured")
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="num">{escape(dense)}</td>'
        + (f'<td class="num strong">{escape(best)}</td><td class="num soft">{escape(change)}</td>' if found else "")
        + "</tr>"
        for name, dense, best, change in summary_rows(data)
    )
    heads = ("Dense", "Pruned", "Change") if found else ("Dense",)
    head = "".join(f'<th class="num" scope="col">{name}</th>' for name in heads)
    table = f'<table class="summary stack"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
    if not found:
        return titled_section("The dense network", "As compiled by pruneaug for this machine.", table)
    lead = "Both compiled by pruneaug for this machine and measured in turns; other dense runtimes are further below."
    if best_measured is None:
        lead = "Predicted by the latency table of this machine; the whole networks are not measured yet."
    if artifact := data.get("artifact"):
        lead += f" The compiled network is {artifact}."
    return titled_section("Dense and pruned, side by side", lead, table)


def kept_dense(data: Data) -> str:
    listed = [(escape(str(row.get("name"))), marked_up(str(row.get("reason")))) for row in rows(data, "kept_dense")]
    body = "".join(f'<tr><td class="mono break">{name}</td><td>{reason}</td></tr>' for name, reason in listed)
    if not body:
        return ""
    head = '<thead><tr><th scope="col">Layer</th><th scope="col">Why</th></tr></thead>'
    table = f"<table>{head}<tbody>{body}</tbody></table>"
    return titled_section("Layers left as they are", "Layers with weights that pruneaug does not prune.", table)


def job(data: Data) -> str:
    spec = section(data, "job").get("spec")
    if not spec:
        return ""
    written = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return (
        "<section><details><summary>The job, with every default</summary>\n"
        f"<pre>{escape(written)}</pre></details></section>"
    )


def footer(data: Data) -> str:
    versions = section(section(data, "platform"), "versions")
    listed = " · ".join(escape(f"{name} {version}") for name, version in versions.items())
    return f"<footer>{listed}</footer>" if listed else ""


def _both(dense: Data, best: Data, key: str, words: Callable[[object], str]) -> tuple[str, str]:
    return words(dense.get(key)), words(best.get(key))


def _accuracy(value: object) -> str:
    return percent(value, 2)
