"""Measuring groups one after the other, each record on the disk at once; what the file has already is not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pruneaug.profiler.cuda.cases import Group, Subject
from pruneaug.profiler.cuda.process import GpuProcess
from pruneaug.profiler.cuda.records import GpuRecord, Journal

Progress = Callable[[int, int, str], None]
"""(groups done, groups in all, the group that was measured last)."""


def profile_groups(
    groups: Mapping[Group, Sequence[Subject]],
    process: GpuProcess,
    journal: Journal,
    gpu: str,
    progress: Progress | None = None,
) -> dict[Group, list[GpuRecord]]:
    """A record of every subject of every group, on the GPU of this name.

    A group of which the journal has every subject, with a time or an error, is not measured; else all its subjects are
    measured again, since they take turns. Stopping at any moment loses no record that was made.

    Raises MeasurementError if the measuring process does not start, LatencyTableError if the journal is of another GPU,
    StorageError if a record cannot be written.
    """
    known = journal.load(gpu)
    found: dict[Group, list[GpuRecord]] = {}
    for done, (group, subjects) in enumerate(groups.items(), 1):
        if all((group, subject) in known for subject in subjects):
            found[group] = [known[group, subject] for subject in subjects]
        else:
            by_subject = {}
            for record in process.measure(group, subjects, gpu):
                journal.append(record)
                by_subject[record.subject] = record
            found[group] = [by_subject[subject] for subject in subjects]
        if progress is not None:
            where = group.pattern if group.sparsity == 0 else f"{group.pattern}@{group.sparsity:g}"
            progress(done, len(groups), f"{group.op.key} {group.dtype} {where}")
    return found
