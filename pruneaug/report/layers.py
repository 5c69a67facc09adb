"""The layers on the page: what each became, and where the time goes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from pruneaug.errors import InputError
from pruneaug.report import bars
from pruneaug.report.data import Data, is_number, ratio, rows, section
from pruneaug.report.sections import titled_section
from pruneaug.report.words import describe_op, microseconds, milliseconds, percent, times
from pruneaug.sparsity.patterns import parse_pattern

_COLOURS = 8


def layers_section(data: Data) -> str:
    layers = rows(data, "layers")
    if not layers:
        return ""
    kinds = pattern_kinds(layers)
    rest, found = data.get("rest_us"), bool(section(data, "best"))
    rest = rest if is_number(rest) and microseconds(rest) != microseconds(0.0) else 0.0
    content = _legend(kinds, rest > 0) + _shares(layers, kinds, rest, found) + _table(layers, kinds, found)
    lead = (
        "Times from the latency table. The first two bars show the whole network, layer beside layer; "
        "what is not a prunable layer takes the same time in both."
        if found
        else "Times of the dense network, from the latency table. The first bar shows all of it, layer beside layer."
    )
    return titled_section("Layer by layer", lead, content)


def pattern_kinds(layers: Sequence[Data]) -> dict[str, str]:
    """Pattern -> colour class, dense first and then by block size, so that near colours are near blocks."""
    patterns = sorted({str(layer.get("pattern")) for layer in layers} - {"dense"}, key=_block_size)
    return {"dense": "dense", **{name: f"p{index % _COLOURS}" for index, name in enumerate(patterns)}}


def _block_size(pattern: str) -> tuple[int, str]:
    try:
        block = parse_pattern(pattern)
    except InputError:
        return 0, pattern
    return (block.rows * block.cols if block else 0), pattern


def pattern_words(pattern: object) -> str:
    """ "block:8x1" -> "8×1" and "nm:2:4" -> "2:4", as a table of layers shows it."""
    return str(pattern).removeprefix("block:").removeprefix("nm:").replace("x", "×")


def _legend(kinds: dict[str, str], rest: bool) -> str:
    entries = [(kind, pattern_words(name)) for name, kind in kinds.items()] + (
        [("rest", "rest of the network")] if rest else []
    )
    items = "".join(f'<li><span class="swatch s-{kind}"></span>{escape(words)}</li>' for kind, words in entries)
    return f'<ul class="legend">{items}</ul>'


def _shares(layers: Sequence[Data], kinds: dict[str, str], rest_us: float, found: bool) -> str:
    dense = [_part(layer, "latency_us_dense", "dense", "dense") for layer in layers]
    pruned = [
        _part(layer, "latency_us", kinds.get(str(layer.get("pattern")), "dense"), _choice_words(layer))
        for layer in layers
    ]
    rest = [bars.Part(rest_us, "rest", f"Rest of the network: {microseconds(rest_us)}")] if rest_us > 0 else []
    whole = {"Dense": dense, "Pruned": pruned} if found else {"Dense": dense}
    totals = [sum(part.value for part in [*parts, *rest]) for parts in whole.values()]
    shown = "".join(
        f"<span>{name}</span>{bars.stacked([*parts, *rest], max(totals))}"
        f'<span class="num">{milliseconds(total / 1000)}</span>'
        for (name, parts), total in zip(whole.items(), totals, strict=True)
    )
    return f'<div class="shares">{shown}</div>'


def _part(layer: Data, key: str, kind: str, words: str) -> bars.Part:
    value = layer.get(key)
    return bars.Part(
        value if is_number(value) else 0.0, kind, f"{layer.get('name')}, {words}: {microseconds(layer.get(key))}"
    )


def _choice_words(layer: Data) -> str:
    if layer.get("pattern") == "dense":
        return "dense"
    return f"{pattern_words(layer.get('pattern'))} at {percent(layer.get('sparsity'), 0)}"


def _table(layers: Sequence[Data], kinds: dict[str, str], found: bool) -> str:
    slowest = max(
        (layer[key] for layer in layers for key in ("latency_us", "latency_us_dense") if is_number(layer.get(key))),
        default=0.0,
    )
    body = "".join(_row(layer, kinds if found else {}, slowest) for layer in layers)
    heads = ("Layer", "Pattern", "Sparsity", "Dense and pruned latency", "Speed-up") if found else ("Layer", "Latency")
    head = "".join(f'<th scope="col"{_NUM if name == "Speed-up" else ""}>{name}</th>' for name in heads)
    return f'<table class="layers stack"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


_NUM = ' class="num"'


def _row(layer: Data, kinds: dict[str, str], slowest: float) -> str:
    """A row of the table; without `kinds` there is no pruned network to show beside the dense one."""
    pattern = str(layer.get("pattern"))
    kind = kinds.get(pattern, "dense")
    calls = layer.get("calls") or 1
    op = describe_op(layer.get("op")) + (f", {calls} calls" if calls > 1 else "")
    kernel = " ".join(str(layer[key]) for key in ("library", "variant") if layer.get(key))
    speedup = ratio(layer.get("latency_us_dense"), layer.get("latency_us"))
    slower = " slower" if speedup is not None and speedup < 1 else ""
    dense = _latency_bar(layer, "latency_us_dense", slowest, "dense")
    name = f'<td><span class="mono break">{escape(str(layer.get("name")))}</span><small>{escape(op)}</small></td>'
    if not kinds:
        return f'<tr>{name}<td><div class="pair">{dense}</div></td></tr>'
    return (
        f'<tr>{name}<td title="{escape(kernel)}"><span class="chip"><span class="swatch s-{kind}"></span>'
        f"{escape(pattern_words(pattern))}</span></td><td>{_sparsity(layer, kind)}</td>"
        f'<td><div class="pair">{dense}'
        f"{_latency_bar(layer, 'latency_us', slowest, kind)}</div></td>"
        f'<td class="num strong{slower}">{times(speedup)}</td></tr>'
    )


def _sparsity(layer: Data, kind: str) -> str:
    sparsity = layer.get("sparsity")
    if layer.get("pattern") == "dense" or not is_number(sparsity):
        return ""
    drawn = bars.bar(sparsity, 1.0, kind, f"{layer.get('name')}: {_choice_words(layer)}", 8)
    return (
        f'<div class="sparsity"><div class="track">{drawn}</div><span class="num">{percent(sparsity, 0)}</span></div>'
    )


def _latency_bar(layer: Data, key: str, slowest: float, kind: str) -> str:
    value = layer.get(key)
    words = microseconds(value)
    drawn = bars.bar(value if is_number(value) else 0.0, slowest, kind, f"{layer.get('name')}: {words}", 9)
    return f"<div>{drawn}</div><span>{words}</span>"
