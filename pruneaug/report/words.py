"""Figures as words: how the report writes numbers, ops and trials, on the page and on the terminal."""

from __future__ import annotations

from pruneaug.errors import InputError
from pruneaug.network.ops import LinearOp, parse_op
from pruneaug.report.data import Data, is_number

MISSING = "–"
_MINUS = "−"


def significant(value: float, digits: int = 3) -> str:
    """`value` with about `digits` significant digits and no exponent: 1234.5 -> "1,234", 0.04567 -> "0.0457"."""
    if value == 0:
        return "0"
    size = abs(value)
    decimals = digits - 1
    while size >= 10 and decimals > 0:
        size /= 10
        decimals -= 1
    while size < 1 and decimals < 6:
        size *= 10
        decimals += 1
    text = f"{value:,.{decimals}f}".replace("-", _MINUS)
    return text if any(digit in text for digit in "123456789") else "0"


def milliseconds(value: object) -> str:
    """Always in ms: times of one table must compare at a glance."""
    return f"{significant(value)} ms" if is_number(value) else MISSING


def microseconds(value: object) -> str:
    return f"{significant(value)} µs" if is_number(value) else MISSING


def percent(value: object, decimals: int = 1) -> str:
    """A fraction as per cent: 0.983 -> "98.3 %"."""
    return f"{100 * value:.{decimals}f} %".replace("-", _MINUS) if is_number(value) else MISSING


def points(value: object) -> str:
    """A difference of accuracies in percentage points: 0.0042 -> "0.42"."""
    if not is_number(value):
        return MISSING
    text = f"{100 * value:.2f}".replace("-", _MINUS)
    return "0.00" if text == f"{_MINUS}0.00" else text


def signed_points(loss: object) -> str:
    """The change of accuracy that is a loss: 0.0111 -> "−1.11", -0.0084 -> "+0.84"."""
    if not is_number(loss):
        return MISSING
    text = points(-loss)
    return text if text == "0.00" or text.startswith(_MINUS) else f"+{text}"


def lost_points(loss: float) -> str:
    """0.0111 -> "1.11 points lost", -0.0084 -> "0.84 points gained"."""
    gained = signed_points(loss).startswith("+")
    return f"{points(abs(loss))} points {'gained' if gained else 'lost'}"


def has_lost(loss: float) -> str:
    """0.0111 -> "lost 1.11 points", -0.0084 -> "gained 0.84 points"."""
    size, _, verb = lost_points(loss).rpartition(" ")
    return f"{verb} {size}"


def epochs(value: object) -> str:
    """A number of epochs, to one decimal, or two digits if it is below 1: 2.8235 -> "2.8", 0.4706 -> "0.47"."""
    if not is_number(value):
        return MISSING
    text = f"{value:,.1f}" if abs(value) >= 1 else significant(value, 2)
    return text.rstrip("0").removesuffix(".") if "." in text else text


def epoch_words(value: object) -> str:
    """1.0 -> "1 epoch", 2.8235 -> "2.8 epochs"."""
    return f"{epochs(value)} epoch{'' if epochs(value) == '1' else 's'}"


def signed_percent(value: object) -> str:
    """A relative difference with its sign: 0.034 -> "+3.4 %"."""
    return f"{100 * value:+.1f} %".replace("-", _MINUS) if is_number(value) else MISSING


def times(value: object) -> str:
    """A speed-up: 2.934 -> "2.93×"."""
    return f"{value:,.{2 if abs(value) < 10 else 1}f}×" if is_number(value) else MISSING


def ratio_words(value: object) -> str:
    """A speed-up over dense in words: 2.934 -> "2.93× faster than dense", 0.5 -> "2.00× slower than dense"."""
    if not is_number(value) or value <= 0:
        return MISSING
    return f"{times(value)} faster than dense" if value >= 1 else f"{times(1 / value)} slower than dense"


def size(value: object) -> str:
    """Bytes in MB (10^6): 3_210_000 -> "3.21 MB"."""
    return f"{significant(value / 1e6)} MB" if is_number(value) else MISSING


def count(value: object) -> str:
    """A large count: 23_500_000 -> "23.5 M"."""
    if not is_number(value):
        return MISSING
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{significant(value / scale)} {unit}"
    return f"{value:,.0f}"


def seconds(value: object) -> str:
    """A duration: 4521 -> "1 h 15 min"."""
    if not is_number(value):
        return MISSING
    if value < 60:
        return f"{significant(value, 2)} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def describe_op(key: object) -> str:
    """An op's key in words: "conv 3×3, 64 → 128, 32×32, stride 2". A key that is no op is shown as it is."""
    try:
        op = parse_op(str(key))
    except InputError:
        return str(key)
    if isinstance(op, LinearOp):
        tokens = f", {op.tokens} tokens" if op.tokens > 1 else ""
        return f"linear, {op.in_features} → {op.out_features}{tokens}"
    strides = "×".join(map(str, op.stride)) if op.stride[0] != op.stride[1] else str(op.stride[0])
    parts = [
        f"conv {op.kernel[0]}×{op.kernel[1]}, {op.in_channels} → {op.out_channels}, {op.height}×{op.width}",
        f"stride {strides}" if op.stride != (1, 1) else "",
        f"dilation {op.dilation[0]}" if op.dilation != (1, 1) else "",
        f"{op.groups} groups" if op.groups > 1 else "",
        f"batch {op.batch}" if op.batch > 1 else "",
    ]
    return ", ".join(part for part in parts if part)


def trial_state(trial: Data) -> str:
    """One word for what became of a trial: feasible, infeasible, skipped, stopped or failed."""
    if trial.get("state") in ("skipped", "stopped", "failed"):
        return str(trial["state"])
    return "feasible" if trial.get("feasible") else "infeasible"
