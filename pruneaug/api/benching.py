"""What all benchmarks of networks share: who takes part, and what is said of their times."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from pruneaug.api.job import Progress, stage
from pruneaug.exporter.checkpoint import Checkpoint
from pruneaug.platforms import Platform
from pruneaug.profiler.gpu_networks import GPU_PACKAGES, absent_gpu_packages, check_gpu_runtimes
from pruneaug.profiler.network import ROUNDS, NetworkTime, Subject
from pruneaug.profiler.place import Place
from pruneaug.profiler.runtimes import RUNTIMES, absent_packages, check_runtimes, installed_versions, package_versions
from pruneaug.report.data import OWN_SPARSE
from pruneaug.searcher.space import assigned_sparsity

BASELINES = tuple(RUNTIMES)


def described(times: Sequence[NetworkTime], platform: Platform, against: Sequence[str]) -> dict[str, Any]:
    """What the results of all benchmarks of networks say: the platform, the runtimes, and those that were skipped."""
    runtimes = [as_json(time) for time in times]
    return {
        "platform": platform.name,
        "threads": platform.threads,
        **summary(times),
        "max_relative_error": _largest([row["max_relative_error"] for row in runtimes]),
        "runtimes": runtimes,
        "fallbacks": [
            {"runtime": time.runtime, "operators": operators, "share": share}
            for time in times
            for operators, share in (time.fallbacks or {}).items()
        ],
        "skipped": {name: why for name in against if (why := _absent(name, platform))},
        "versions": dict(platform.versions) | _versions(against, platform),
    }


def _absent(name: str, platform: Platform) -> str | None:
    """Why a runtime cannot run, and how to install it; None if it can."""
    return absent_gpu_packages(name) if platform.is_gpu else absent_packages(name)


def _versions(names: Sequence[str], platform: Platform) -> dict[str, str]:
    if platform.is_gpu:
        return installed_versions(package for name in names for package in GPU_PACKAGES[name])
    return package_versions(names)


def disturbances(times: Sequence[NetworkTime]) -> tuple[str, ...]:
    """A warning if the machine was not quiet for some runtimes."""
    names = ", ".join(dict.fromkeys(time.runtime for time in times if time.disturbed))
    if not names:
        return ()
    return (
        f"the machine did not become quiet while these were measured: {names}; other programs, or other machines on "
        "the same host, may have slowed them down unequally; measure again when it is quiet",
    )


def _largest(errors: Sequence[float | None]) -> float | None:
    """None if any is missing: what was not compared is not known to be right."""
    known = [error for error in errors if error is not None]
    return max(known) if known and len(known) == len(errors) else None


def measure(
    place: Place,
    against: Sequence[str],
    *,
    dense: Subject,
    pruned: Subject | None,
    more: Sequence[Subject] = (),
    rounds: int = ROUNDS,
    progress: Progress | None = None,
) -> tuple[NetworkTime, ...]:
    """Times of the dense network in those runtimes of `against` that are installed, in ours, of the pruned one, and of
    `more` at the end. On a remote device there is only ours.

    Raises InputError for an unknown runtime, DeviceError if the device is lost.
    """
    (check_runtimes if place.gpu is None else check_gpu_runtimes)(against)
    names = () if place.remote is not None else tuple(dict.fromkeys(against))
    others = [Subject(name, dense.model, dense.program) for name in names if _absent(name, place.platform) is None]
    subjects = [*others, dense, *([] if pruned is None else [pruned]), *more]
    return place.time(subjects, rounds=rounds, progress=stage(progress, "Bench"))


def compile_only(place: Place, pruned: Subject, progress: Progress | None = None) -> NetworkTime:
    """The pruned network compiled, checked and saved where it says, and not timed.

    It is checked on the device if that is remote. Raises DeviceError if it is lost.
    """
    (result,) = place.time([pruned], rounds=0, progress=stage(progress, "Compile"))
    return result


def fastest(
    candidates: Sequence[Subject],
    patterns: Sequence[str],
    place: Place,
    rounds: int,
    progress: Progress | None,
) -> tuple[list[dict[str, Any]], int | None]:
    """What was measured of each of several candidates, and the number of the fastest; None if there is none.

    The times that choose it are not those that are reported for it: a lucky reading earns nothing.
    """
    if len(candidates) < 2:
        return [], 0 if candidates else None
    times = place.time(candidates, rounds=rounds, progress=stage(progress, "Patterns"))
    best = min(range(len(times)), key=lambda i: float("inf") if (ms := times[i].latency_ms) is None else ms)
    rows = [{"pattern": pattern, **as_json(time)} for pattern, time in zip(patterns, times, strict=True)]
    return rows, best


def summary(times: Sequence[NetworkTime]) -> dict[str, Any]:
    """`latency_ms` by runtime, the fastest dense runtime, and how much faster than it the pruned network is."""
    latency = {time.runtime: time.latency_ms for time in times if time.latency_ms is not None}
    dense = {name: value for name, value in latency.items() if name != OWN_SPARSE}
    best = min(dense, key=lambda name: dense[name], default=None)
    pruned = latency.get(OWN_SPARSE)
    speedup = dense[best] / pruned if best is not None and pruned else None
    return {"latency_ms": latency, "best_dense": best, "speedup_vs_best_dense": speedup}


def as_json(time: NetworkTime) -> dict[str, Any]:
    """JSON values; a relative error that is not finite, of a network whose outputs are not, is null."""
    relative_error = time.max_relative_error
    return {
        "runtime": time.runtime,
        "latency_ms": time.latency_ms,
        "p10": time.p10_ms,
        "p90": time.p90_ms,
        "runs": time.runs,
        "max_relative_error": relative_error if relative_error is not None and isfinite(relative_error) else None,
        "error": time.error,
    }


def of_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a result says of a checkpoint's pruning."""
    patterns = {str(choice.pattern) for choice in checkpoint.assignment.values() if not choice.is_dense}
    return {
        "pattern": patterns.pop() if len(patterns) == 1 else "mixed",
        "sparsity": assigned_sparsity(checkpoint.assignment, checkpoint.network),
        "kept_dense": [],
    }


def elsewhere(checkpoint: Checkpoint, platform: Platform) -> tuple[str, ...]:
    """A warning if the checkpoint is for another platform."""
    there = checkpoint.platform
    if there.fingerprint == platform.fingerprint:
        return ()
    return (
        f"the network was pruned for {there.name} ({there.cpu}), and this is {platform.name} ({platform.cpu}): "
        "these are no times of that platform",
    )


def predicted_ms(checkpoint: Checkpoint, platform: Platform) -> float | None:
    """What the export predicted, if it was for this platform."""
    if checkpoint.info["platform"]["fingerprint"] != platform.fingerprint:
        return None
    value = checkpoint.info["latency"]["ms_predicted"]
    return None if value is None else float(value)
