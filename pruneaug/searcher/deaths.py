"""Works that take the search's own process with them, as when memory runs out: counted on disk, or nobody knew."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pruneaug.errors import StorageError
from pruneaug.searcher.rundir import RunDir, deaths, read_json, write_json


class Deaths:
    """Counts a work that has begun and did not end, unless the process lived to tell.

    Used as a context: what has begun and not ended when it is left was given up, and does not count. `is_counting`
    False, for workers whose deaths are seen: nothing counts.
    """

    def __init__(self, run: RunDir, *, is_counting: bool = True) -> None:
        self._run, self._is_counting = run, is_counting
        self._before: dict[str, int] = {}

    def times(self, key: str) -> int:
        """How often the process died in this work. Raises RunError if the file is broken."""
        path = self._path(key)
        return int(read_json(path)["times"]) if self._is_counting and path.exists() else 0

    def begin(self, key: str) -> None:
        """Raises StorageError."""
        if self._is_counting:
            self._before[key] = self.times(key)
            write_json(self._path(key), {"times": self._before[key] + 1})

    def end(self, key: str) -> None:
        if self._before.pop(key, None) is not None:
            self._path(key).unlink(missing_ok=True)

    def __enter__(self) -> Deaths:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for key, times in self._before.items():
            if times == 0:
                self._path(key).unlink(missing_ok=True)
                continue
            with suppress(StorageError):  # a full disk is what it ends with, then
                write_json(self._path(key), {"times": times})

    def _path(self, key: str) -> Path:
        return deaths(self._run.checkpoint(key))
