"""The latency store: one append-only file of JSON lines per kernel library, in one folder per platform."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from pathlib import Path

from pruneaug.errors import LatencyTableError
from pruneaug.files import append_line
from pruneaug.latency.records import LatencyRecord, record_from_json, record_to_json
from pruneaug.latency.table import LatencyTable
from pruneaug.network.ops import Op

_LIBRARY = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True, slots=True)
class Difference:
    """One cell that two stores time differently; None where a store has no time."""

    op: Op
    pattern: str
    sparsity: float
    library: str
    latency_us: float | None
    other_latency_us: float | None


class LatencyStore:
    """The records of one platform: `folder`/<library>.jsonl. Nothing is written before the first append."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def libraries(self) -> tuple[str, ...]:
        """The kernel libraries that have a file, sorted."""
        return tuple(sorted(path.stem for path in self.folder.glob("*.jsonl")))

    def append(self, record: LatencyRecord) -> None:
        """Add one record; it is on the disk when this returns. Raises StorageError, and the file is then as before."""
        if not _LIBRARY.fullmatch(record.library):
            raise LatencyTableError(
                f"a library's name must be lower-case letters, digits, '_' and '-', but got {record.library!r}"
            )
        append_line(self._path(record.library), record_to_json(record), is_whole=_is_record)

    def load(self) -> list[LatencyRecord]:
        """All records in the order they were written, library by library.

        A last line that a crash cut short is left out with a warning, and removed by the next append. Raises
        LatencyTableError with file and line for any other broken line.
        """
        return [record for library in self.libraries() for record in self._load(library)]

    def table(self) -> LatencyTable:
        """The table over all records. Raises LatencyTableError if there is no store."""
        if not self.libraries():
            raise LatencyTableError(f"{self.folder} must hold a latency table, but it has none; run `pruneaug profile`")
        return LatencyTable(self.load())

    def merge(self, other: LatencyStore) -> int:
        """Add the other store's records that this one lacks; returns how many. Merging again adds none."""
        known = {record_to_json(record) for record in self.load()}
        added = 0
        for record in other.load():
            line = record_to_json(record)
            if line not in known:
                known.add(line)
                self.append(record)
                added += 1
        return added

    def diff(self, other: LatencyStore) -> tuple[Difference, ...]:
        """The cells whose latest time differs from the other store's, or that only one of them has."""
        ours, theirs = LatencyTable(self.load()).latest(), LatencyTable(other.load()).latest()
        times = {key: record.latency_us for key, record in ours.items()}
        other_times = {key: record.latency_us for key, record in theirs.items()}
        return tuple(
            Difference(*key, times.get(key), other_times.get(key))
            for key in {**ours, **theirs}
            if times.get(key) != other_times.get(key)
        )

    def _path(self, library: str) -> Path:
        return self.folder / f"{library}.jsonl"

    def _load(self, library: str) -> list[LatencyRecord]:
        path = self._path(library)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise LatencyTableError(f"{path} must be readable, but {error.strerror}") from error
        *lines, tail = data.split(b"\n")
        if tail and _is_record(tail):
            lines.append(tail)
        elif tail:
            warnings.warn(
                f"{path}:{len(lines) + 1}: the last line was cut short by a crash and is left out; "
                "`pruneaug profile` measures it again",
                RuntimeWarning,
                stacklevel=3,
            )
        return [_parse(line, f"{path}:{number}", library) for number, line in enumerate(lines, 1)]


def _parse(line: bytes, place: str, library: str) -> LatencyRecord:
    try:
        record = record_from_json(line.decode())
    except (LatencyTableError, UnicodeDecodeError) as error:
        raise LatencyTableError(
            f"{place}: {error}; remove this line and run `pruneaug profile` to measure it again"
        ) from error
    if record.library != library:
        raise LatencyTableError(
            f"{place}: a record's library must be its file's ({library}), but got {record.library!r}; "
            f"move the line to {record.library}.jsonl"
        )
    return record


def _is_record(line: bytes) -> bool:
    try:
        record_from_json(line.decode())
    except (LatencyTableError, UnicodeDecodeError):
        return False
    return True
