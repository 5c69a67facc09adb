"""Which layers hold the network back: where its time goes, what could still be saved there, and at what price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaug.report.data import Data, is_number, rows
from pruneaug.report.folder import value_of
from pruneaug.report.words import percent

LEAST_TRIALS = 10
_SIGNIFICANT = 0.05
_NAMED = 5


@dataclass(frozen=True, slots=True)
class Holding:
    """One layer of the predicted network, its latency as shares of the whole network's.

    saves: what its fastest choice would save. lost_more: the saliency that this choice loses beyond what is lost now,
    as a share of the largest such loss of all layers. correlation: rank correlation of its sparsity with the accuracy
    lost, over all judged trials; None where it is not clear.
    """

    name: str
    pattern: str
    share: float
    saves: float | None
    lost_more: float | None
    correlation: float | None


def layer_facts(facts: Data, layers: Iterable[Data], records: Sequence[Data]) -> list[dict[str, Any]]:
    """Rows of the report's `layers` with `latency_us_least`, `lost_more` and `correlation`."""
    known = {layer["name"]: layer for layer in facts.get("layers") or ()}
    extended = []
    for row in layers:
        layer = known.get(row["name"]) or {}
        choices = [choice for choice in layer.get("choices") or () if is_number(choice.get("latency_us"))]
        fastest = min(choices, key=lambda choice: choice["latency_us"], default=None)
        now, then = value_of(layer, row, "lost"), None if fastest is None else fastest.get("lost")
        extended.append(
            {
                **row,
                "latency_us_least": None if fastest is None else fastest["latency_us"],
                "lost_more": then - now if is_number(now) and is_number(then) else None,
                "correlation": correlation(str(row["name"]), records),
            }
        )
    return extended


def correlation(layer: str, records: Sequence[Data]) -> float | None:
    """Spearman's rank correlation of a layer's sparsity with the accuracy lost, over the judged trials.

    None with fewer than LEAST_TRIALS of them, without variation, or where chance gives as much in 1 of 20 cases.
    """
    judged = [
        (((record.get("assignment") or {}).get(layer) or {}).get("sparsity", 0.0), record["accuracy_loss"])
        for record in records
        if record.get("state") == "complete" and is_number(record.get("accuracy_loss"))
    ]
    if len(judged) < LEAST_TRIALS or any(len(set(values)) < 2 for values in zip(*judged, strict=True)):
        return None
    from scipy.stats import spearmanr  # takes long to import, and every command imports this room

    found = spearmanr(*zip(*judged, strict=True))
    return float(found.statistic) if found.pvalue < _SIGNIFICANT else None


def holdings(data: Data) -> list[Holding]:
    """The layers of the predicted network, the slowest first; empty where their times are not known."""
    layers = rows(data, "layers")
    rest = data.get("rest_us")
    total = sum(layer["latency_us"] for layer in layers if is_number(layer.get("latency_us")))
    total += rest if is_number(rest) else 0.0
    if total <= 0:
        return []
    most = max((layer["lost_more"] for layer in layers if is_number(layer.get("lost_more"))), default=0.0)
    found = [_holding(layer, total, most) for layer in layers if is_number(layer.get("latency_us"))]
    return sorted(found, key=lambda holding: -holding.share)


def holding_words(data: Data) -> list[str]:
    """In sentences: where half of the time goes, what the rest takes, and what the fastest choices would save."""
    listed = holdings(data)
    if not listed:
        return []
    half: list[Holding] = []
    layers_share = sum(holding.share for holding in listed)
    while sum(holding.share for holding in half) < layers_share / 2:
        half.append(listed[len(half)])
    many = f" and {len(half) - _NAMED} more" if len(half) > _NAMED else ""
    named = ", ".join(f"{holding.name} ({percent(holding.share, 0)})" for holding in half[:_NAMED])
    rest = max(1 - layers_share, 0.0)
    sentences = [
        f"Half of what the layers take is in {len(half)} of {len(listed)}: {named}{many}.",
        f"What is not a prunable layer takes {percent(rest, 0)}." if rest >= 0.005 else "",
    ]
    saves = [holding.saves for holding in listed if holding.saves is not None]
    if saves:
        sentences.append(
            f"Were every layer at the fastest choice of its space, {percent(sum(saves), 0)} of the latency would go, "
            "whatever that lost."
        )
    return [sentence for sentence in sentences if sentence]


def _holding(layer: Data, total: float, most: float) -> Holding:
    latency, least, lost = layer["latency_us"], layer.get("latency_us_least"), layer.get("lost_more")
    clear = layer.get("correlation")
    return Holding(
        name=str(layer.get("name")),
        pattern=str(layer.get("pattern")),
        share=latency / total,
        saves=max(latency - least, 0.0) / total if is_number(least) else None,
        lost_more=max(lost, 0.0) / most if is_number(lost) and most > 0 else None,
        correlation=clear if is_number(clear) else None,
    )
