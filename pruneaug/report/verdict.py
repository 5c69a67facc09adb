"""The verdict: does pruning pay on this platform, in words."""

from __future__ import annotations

import shlex
from typing import Literal

from pruneaug.report.analysis import dense_caution, gain_noise
from pruneaug.report.data import (
    Data,
    accuracy_loss,
    best_baseline,
    chosen_trial,
    closest_trial,
    expected_recovery,
    is_number,
    max_accuracy_loss,
    max_latency_ms,
    ratio,
    rows,
    section,
)
from pruneaug.report.words import has_lost, lost_points, milliseconds, points, times

Outcome = Literal["pays", "stay dense", "infeasible", "unmeasured", "failed", "unfinished"]


def outcome(data: Data) -> Outcome:
    """What the run came to.

    "pays": faster than the fastest dense runtime by more than the spread of its times, and within the accepted loss.
    "stay dense": it is not, or nothing accurate enough is predicted to be faster than dense.
    "unmeasured": a best network whose time nobody measured. "infeasible": no network kept enough accuracy, or the
    latency limit. "failed": every trial that was to be trained failed. "unfinished": the search has not ended.
    """
    if section(data, "status").get("state") in ("searching", "stopped"):
        return "unfinished"
    if not section(data, "best"):
        if closest_trial(data):
            return "stay dense" if chosen_trial(data) else "infeasible"
        if any(trial.get("state") == "failed" for trial in rows(data, "trials")):
            return "failed"
        return "infeasible" if _over_limit(data) else "stay dense"
    if not is_number(data.get("speedup_measured")):
        return "unmeasured"
    return "pays" if _is_faster(data) and not _exceeds(data, "validation") else "stay dense"


def verdict(data: Data) -> str:
    """The verdict in a few sentences: what was found, how sure it is, and what to do."""
    sentences = {
        "pays": _pays,
        "stay dense": _stay_dense,
        "unmeasured": _unmeasured,
        "infeasible": _infeasible,
        "failed": _failed,
        "unfinished": _unfinished,
    }[outcome(data)](data)
    cautions = _latency_caution(data), _test_caution(data), _dense_caution(data)
    return " ".join(sentence for sentence in [*sentences, *cautions] if sentence)


def headline(data: Data) -> str:
    """The verdict in a handful of words."""
    speedup = data.get("speedup_measured")
    return {
        "pays": f"{times(speedup)} faster",
        "stay dense": "Stay dense",
        "unmeasured": "Not measured yet",
        "infeasible": "Nothing kept enough accuracy" if max_latency_ms(data) is None else "Nothing kept the limit",
        "failed": "No trial succeeded",
        "unfinished": "Searching" if section(data, "status").get("state") == "searching" else "Search not finished",
    }[outcome(data)]


def _over_limit(data: Data) -> list[Data]:
    """The trials that are predicted to be faster than dense, but slower than the latency limit."""
    dense_ms, limit_ms = section(data, "dense").get("latency_ms_predicted"), max_latency_ms(data)
    if limit_ms is None or not is_number(dense_ms):
        return []
    known = [trial for trial in rows(data, "trials") if is_number(trial.get("latency_ms_predicted"))]
    return [trial for trial in known if limit_ms < trial["latency_ms_predicted"] < dense_ms]


def _is_faster(data: Data) -> bool:
    speedup = data["speedup_measured"]
    median, low = section(data, "best").get("latency_ms_measured"), best_baseline(data).get("p10")
    outside_spread = median < low if is_number(median) and is_number(low) else True
    return bool(speedup > 1.0 and outside_spread)


def _exceeds(data: Data, split: str) -> bool:
    loss, allowed = accuracy_loss(data, split), max_accuracy_loss(data)
    return loss is not None and allowed is not None and loss > allowed + 1e-9


def _loss_words(data: Data) -> str:
    loss, limit = accuracy_loss(data, "validation"), max_accuracy_loss(data)
    allowed, at_most = points(limit), milliseconds(max_latency_ms(data))
    if loss is None:
        return f"with at most {allowed} points of accuracy lost" if limit is not None else f"with at most {at_most}"
    if loss <= 0:
        noise, said = gain_noise(data), [lost_points(loss)] if loss < 0 else []
        if loss < 0 and noise is not None and -loss <= noise:
            said = [f"{lost_points(loss)}, within the noise of ± {points(noise)}"]
        said += [f"{allowed} could be lost"] if limit is not None else []
        return "and loses no validation accuracy" + (f" ({'; '.join(said)})" if said else "")
    what = f"{allowed} allowed" if limit is not None else f"{at_most} were allowed"
    return f"and loses {points(loss)} points of validation accuracy ({what})"


def _pays(data: Data) -> list[str]:
    best = section(data, "best")
    return [
        f"Pruning pays on this machine: the pruned network runs in {milliseconds(best.get('latency_ms_measured'))}, "
        f"{times(data['speedup_measured'])} faster than {_dense_words(data)}, {_loss_words(data)}."
    ]


def _stay_dense(data: Data) -> list[str]:
    if not section(data, "best"):
        return _nothing_faster(data)
    if _exceeds(data, "validation"):
        return [
            f"Stay dense: after its final fine-tuning the pruned network loses "
            f"{points(accuracy_loss(data, 'validation'))} points of validation accuracy, more than the "
            f"{points(max_accuracy_loss(data))} allowed.",
            "Fine-tune it longer (finetune.final.epochs), or search again with lower sparsities.",
        ]
    measured, speedup = milliseconds(section(data, "best").get("latency_ms_measured")), data["speedup_measured"]
    if speedup > 1.0:
        return [
            f"Stay dense: the pruned network runs in {measured}, and {_dense_words(data)} is as fast within the "
            f"spread of its times ({times(speedup)})."
        ]
    return [
        f"Stay dense: the best pruned network runs in {measured}, and {_dense_words(data)} is faster still.",
        "Allowing more accuracy loss or higher sparsities may change that; more trials alone rarely do.",
    ]


def _unmeasured(data: Data) -> list[str]:
    dense, best = section(data, "dense"), section(data, "best")
    predicted = ratio(dense.get("latency_ms_predicted"), best.get("latency_ms_predicted"))
    return [
        f"The best pruned network is predicted to run in {milliseconds(best.get('latency_ms_predicted'))}, "
        f"{times(predicted)} faster than the dense one by the same table, {_loss_words(data)}.",
        f"No time of the whole network was measured yet: `{_measuring_command(data)}` does.",
    ]


def _measuring_command(data: Data) -> str:
    run = shlex.quote(str(section(section(data, "job"), "spec").get("run") or "RUN"))
    searched = section(data, "status").get("state") == "searched"
    return f"pruneaug export {run}" if searched else f"pruneaug bench {run}/checkpoint"


def _unfinished(data: Data) -> list[str]:
    status, best = section(data, "status"), section(data, "best")
    done, wanted, limit = len(rows(data, "trials")), status.get("wanted"), max_accuracy_loss(data)
    allowed = "" if limit is None else f" ({points(limit)} allowed)"
    how_far = f"{done} of {wanted} trials are finished" if is_number(wanted) else f"{done} trials are finished"
    saved = ratio(section(data, "dense").get("latency_ms_predicted"), best.get("latency_ms_predicted"))
    closest, recovery = closest_trial(data), expected_recovery(data)
    if best:
        found = (
            f"So far trial {best.get('number')} is best: predicted {milliseconds(best.get('latency_ms_predicted'))}, "
            f"{times(saved)} faster than dense, {_loss_words(data)}."
            + (f" The final fine-tuning is expected to win {points(recovery)} back." if recovery > 0 else "")
        )
    elif closest:
        found = (
            "Nothing that keeps the limit is faster than dense yet: the most accurate, trial "
            f"{closest.get('number')}, {has_lost(closest['accuracy_loss'])}{allowed}."
        )
    else:
        found = "No trial was judged yet."
    go_on = "" if status.get("state") == "searching" else "The command that began it goes on with it."
    return [
        f"The search is under way: {how_far}." if not go_on else f"The search has stopped: {how_far}.",
        found,
        go_on,
    ]


def _infeasible(data: Data) -> list[str]:
    trials, allowed, closest = rows(data, "trials"), points(max_accuracy_loss(data)), closest_trial(data)
    saved = ratio(section(data, "dense").get("latency_ms_predicted"), closest.get("latency_ms_predicted"))
    if (limit_ms := max_latency_ms(data)) is not None:
        return [
            f"Stay dense: none of {len(trials)} trials was trained to its end within {milliseconds(limit_ms)}.",
            "Allow more latency, or offer higher sparsities.",
        ]
    return [
        f"Stay dense: none of {len(trials)} trials stayed within {allowed} points of accuracy loss.",
        f"The closest, trial {closest.get('number')} (predicted {times(saved)} faster), "
        f"{has_lost(closest['accuracy_loss'])}.",
        "Allow more loss, fine-tune each trial longer, or offer lower sparsities.",
    ]


def _nothing_faster(data: Data) -> list[str]:
    """No trial is both accurate enough and predicted to be faster than dense: slower ones are not even trained."""
    trials = rows(data, "trials")
    latencies = [trial["latency_ms_predicted"] for trial in trials if is_number(trial.get("latency_ms_predicted"))]
    fastest = min(latencies, default=None)
    return [
        "Stay dense: no pruned network that was tried is both accurate enough and predicted to be faster than the "
        f"dense one ({milliseconds(section(data, 'dense').get('latency_ms_predicted'))}; the fastest tried: "
        f"{milliseconds(fastest)}).",
        "Other patterns or higher sparsities may change that.",
    ]


def _failed(data: Data) -> list[str]:
    trials = rows(data, "trials")
    failed = [trial for trial in trials if trial.get("state") == "failed"]
    first, skipped = failed[0], len(trials) - len(failed)
    within = " and within the latency limit" if _over_limit(data) else ""
    return [
        f"No trial succeeded: {len(failed)} failed, trial {first.get('number')} with: {first.get('error')}.",
        f"The other {skipped} were not predicted to be faster than dense{within}." if skipped else "",
        "Mend that, then run again in a new folder; until then, stay dense.",
    ]


def _dense_words(data: Data) -> str:
    baseline = best_baseline(data)
    if not baseline:
        return "the fastest dense runtime"
    return f"the fastest dense runtime ({baseline['runtime']}, {milliseconds(baseline.get('latency_ms'))})"


def _latency_caution(data: Data) -> str:
    best, limit_ms = section(data, "best"), max_latency_ms(data)
    measured_ms = best.get("latency_ms_measured")
    if limit_ms is None or not is_number(measured_ms) or measured_ms <= limit_ms:
        return ""
    return (
        f"Measured, it takes {milliseconds(measured_ms)}, more than the {milliseconds(limit_ms)} that were allowed: "
        f"it was chosen by its predicted latency, {milliseconds(best.get('latency_ms_predicted'))}. A search with a "
        "lower limit may find one that keeps it."
    )


def _test_caution(data: Data) -> str:
    if not _exceeds(data, "test") or _exceeds(data, "validation"):
        return ""
    return (
        f"On the test data it loses {points(accuracy_loss(data, 'test'))} points, more than allowed: the choice was "
        "made on validation data, and a small test set scatters."
    )


def _dense_caution(data: Data) -> str:
    if dense_caution(data) is None:
        return ""
    return "The dense network itself is hardly better than guessing, so that its accuracies mean little."
