"""The cells of a latency table on a GPU: each is a group, and its time that of the fastest subject."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import groupby

from pruneaug.kernels.cuda.program import ProgramFolder
from pruneaug.kernels.cuda.shapes import Shape, parse_shape
from pruneaug.kernels.cuda.variants import TORCH, TORCH_2_4
from pruneaug.latency.records import LatencyRecord
from pruneaug.latency.table import RUNTIME_LIBRARY
from pruneaug.platforms.cuda import check_gpu
from pruneaug.platforms.platform import Platform
from pruneaug.profiler.cells import MOST_VARIANTS, failed
from pruneaug.profiler.cuda.cases import DENSE, NETWORK_LAYOUTS, Group, Subject, shapes_of, subjects_of
from pruneaug.profiler.cuda.process import GpuProcess
from pruneaug.profiler.cuda.programs import compile_missing
from pruneaug.profiler.cuda.records import GpuRecord, Journal, by_speed
from pruneaug.profiler.cuda.run import Progress
from pruneaug.profiler.plan import Cell, Task
from pruneaug.sparsity.patterns import TWO_OF_FOUR

_LIBRARIES = {DENSE: (TORCH,), str(TWO_OF_FOUR): (TORCH_2_4,)}  # what computes a pattern beside our kernels


def shapes_of_cells(cells: Iterable[Cell], dtype: str, arch: str) -> list[Shape]:
    """The kernels that may be measured for these cells on an architecture, each once."""
    groups = dict.fromkeys(_group(cell, dtype) for cell in cells)
    return list(dict.fromkeys(shape for group in groups for shape in shapes_of(group, NETWORK_LAYOUTS, arch)))


class CellWorker:
    """Measures the cells of tasks on a GPU; `records` are those of all subjects so far, `warnings` what is to be told.

    A dense cell of RUNTIME_LIBRARY is the faster of our kernels and PyTorch's layer, and a network on a GPU may run
    both; of 2:4 it is PyTorch's layer alone. Of a pattern all variants are measured at the first sparsity, and at each
    other the fastest of the one before.
    """

    def __init__(self, process: GpuProcess, journal: Journal) -> None:
        """`journal` gets the record of each subject."""
        self._process, self._journal = process, journal
        self._lacking: Collection[str] = ()
        self.records: list[GpuRecord] = []
        self.warnings: list[str] = []

    def prepare(self, cells: Iterable[Cell], platform: Platform, progress: Progress | None = None) -> None:
        """Start the process, and compile the kernels of these cells that are not compiled; `progress` is told of them.

        Raises DeviceError if the GPU is another than `platform`, InputError if there is none or our kernels are not
        written for it, MeasurementError if the measuring process does not start.
        """
        self.warnings += [
            f"earlier times were measured with another version of {difference}; they may have changed"
            for difference in check_gpu(platform, self._process.gpu())
        ]
        folder = ProgramFolder(self._process.kernels)
        shapes = shapes_of_cells(cells, platform.dtype, platform.arch)
        self._lacking, warnings = compile_missing(shapes, platform.arch, folder, progress)
        self.warnings += warnings

    def join(self, prepared: CellWorker, platform: Platform) -> None:
        """Start the process, to measure the same cells as another worker on another GPU of the same kind.

        Raises DeviceError, InputError, MeasurementError as `prepare`.
        """
        check_gpu(platform, self._process.gpu())
        self._lacking = prepared._lacking

    def measure(self, task: Task) -> Iterator[LatencyRecord]:
        """Exactly one record for each cell, in order.

        Raises MeasurementError if the measuring process does not start again, StorageError.
        """
        best: dict[str, list[Subject]] = {}
        for group, cells in groupby(task.cells, lambda cell: _group(cell, task.platform.dtype)):
            subjects, records = best.get(group.pattern) or self._subjects(group, task.platform.arch), []
            for record in self._process.measure(group, subjects, task.platform.cpu):
                self._journal.append(record)
                records.append(record)
            self.records += records
            best[group.pattern] = [record.subject for record in by_speed(records)[:MOST_VARIANTS]]
            for cell in cells:
                yield cell_record(cell, task.platform, records)

    def _subjects(self, group: Group, arch: str) -> list[Subject]:
        subjects = subjects_of(group, _LIBRARIES.get(group.pattern, ()), NETWORK_LAYOUTS, arch)
        return [subject for subject in subjects if subject.variant not in self._lacking]


def cell_record(cell: Cell, platform: Platform, records: Sequence[GpuRecord]) -> LatencyRecord:
    """The record of a cell from those of the subjects of its group."""
    ours = cell.library == RUNTIME_LIBRARY
    subjects = [record for record in records if ours or record.subject == Subject(cell.library)]
    found = by_speed(subjects)
    if not found:
        return failed(cell, platform, _why(subjects))
    best = found[0]
    assert best.latency_us is not None
    assert best.p10_us is not None
    assert best.p90_us is not None
    assert best.max_relative_error is not None
    return LatencyRecord(
        cell.op, cell.pattern, cell.sparsity, cell.library, _variant(best.subject), platform.dtype, platform.threads,
        latency_us=best.latency_us, p10_us=best.p10_us, p90_us=best.p90_us, runs=best.rounds,
        max_relative_error=best.max_relative_error, measured_at=best.measured_at,
    )  # fmt: skip


def _group(cell: Cell, dtype: str) -> Group:
    return Group(cell.op, dtype, cell.pattern, cell.sparsity)


def _variant(subject: Subject) -> str:
    """Our chunk and tile, or the library; what else a kernel is compiled for follows from the layer and the network."""
    if not subject.variant:
        return subject.library
    shape = parse_shape(subject.variant)
    return f"c{shape.chunk}-{shape.variant}"


def _why(subjects: Sequence[GpuRecord]) -> str:
    """Why none of the subjects has a time."""
    if not subjects:
        return "none of its kernels is compiled; the warnings of the profile say why"
    first = f"{subjects[0].subject}: {subjects[0].error}"
    return first if len(subjects) == 1 else f"all {len(subjects)} kernels failed; the first, {first}"
