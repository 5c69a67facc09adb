"""What TVM says without being asked: a warning for every constant that it saves or loads, its memory's scope."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_SCOPES = (b"Warning: Scope Saving:", b"Warning: Scope Loaded:")
_redirecting = threading.Lock()  # the process has one standard error


@contextmanager
def without_scopes() -> Iterator[None]:
    """Leave these warnings out of what is written to standard error inside; all else comes at the end.

    TVM writes them from C++, whatever the level of its log.
    """
    with _redirecting, tempfile.TemporaryFile() as written:
        stderr = _duplicate(_STDERR)
        if stderr is None:
            yield
            return
        os.dup2(written.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(stderr, _STDERR)
            os.close(stderr)
            written.seek(0)
            for line in written:
                if not any(scope in line for scope in _SCOPES):
                    os.write(_STDERR, line)


def _duplicate(descriptor: int) -> int | None:
    """Another descriptor of the same file; None if this one is closed."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None
