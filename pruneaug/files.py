"""Writing to disk so that a crash or a full disk at any moment leaves whole files behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pruneaug.errors import StorageError

_WAYS_OUT = {
    errno.ENOSPC: "the disk is full; make room and run again",
    errno.EDQUOT: "the disk quota is used up; make room and run again",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission is missing; make it writable or choose another folder",
    errno.EPERM: "permission is missing; make it writable or choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.EEXIST: "a part of the path is a file; choose another folder",
    errno.EISDIR: "the path is a folder; choose another name",
}
_TAIL_BYTES = 65536


@contextlib.contextmanager
def storage_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turn every OSError inside into a StorageError that names the path and the way out."""
    try:
        yield
    except OSError as error:
        way_out = _WAYS_OUT.get(error.errno or 0, "check the disk and the folder, then run again")
        raise StorageError(f"cannot write {os.fspath(path)}: {error.strerror or error}; {way_out}") from error


def check_folder(path: str | os.PathLike[str]) -> None:
    """Raises StorageError unless files can be made in the folder; it is left as it was, missing if it was missing."""
    with storage_errors(path):
        target = Path(os.path.realpath(path))
        missing = [folder for folder in (target, *target.parents) if not folder.exists()]
        try:
            target.mkdir(parents=True, exist_ok=True)
            (probe := target / f".probe.{os.getpid()}").touch()
            probe.unlink()
        finally:
            for folder in missing:
                with contextlib.suppress(OSError):  # another process may have begun to use it
                    folder.rmdir()


def atomic_write_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file by `text` (UTF-8): readers see the old file or the new one, never a part.

    Missing folders are made. Raises StorageError; the old file is then still there.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file by `data`: readers see the old file or the new one, never a part.

    Missing folders are made. Raises StorageError; the old file is then still there.
    """
    with atomic_file(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Replace the file by what is written to another path, which is given; for writers that take only a path.

    Readers see the old file or the new one, never a part. Missing folders are made. An OSError inside becomes a
    StorageError; after that and any other error the old file is still there.
    """
    with storage_errors(path):
        target = Path(os.path.realpath(path))  # a link is kept, and the file behind it replaced
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            yield part
            descriptor = os.open(part, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            part.replace(target)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        _sync_folder(target.parent)


def file_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(
    path: str | os.PathLike[str], line: str, *, is_whole: Callable[[bytes], bool] = lambda tail: False
) -> None:
    """Append one line (without its newline) and wait until it is on the disk.

    A last line without a newline was cut short by a crash: it is removed first, unless `is_whole` says that only its
    newline is missing. Missing folders are made. Processes may share the file.
    Raises StorageError; the file then ends where it ended before.
    """
    if "\n" in line:
        raise ValueError(f"a line must hold no newline, but got {line!r}")
    data = line.encode() + b"\n"
    with storage_errors(path):
        file_path = Path(path)
        file_path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not file_path.exists()
        descriptor = os.open(file_path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # closing the file releases it
            end = _mend_tail(descriptor, is_whole)
            try:
                _write_all(descriptor, data)
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, end)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            _sync_folder(file_path.parent)


def _mend_tail(descriptor: int, is_whole: Callable[[bytes], bool]) -> int:
    """Make the file end in a newline or be empty; returns its size in bytes."""
    size = os.fstat(descriptor).st_size
    start, tail = size, b""
    while start > 0:
        step = min(_TAIL_BYTES, start)
        _, newline, after = os.pread(descriptor, step, start - step).rpartition(b"\n")
        tail = after + tail
        start -= len(after)
        if newline:
            break
    if tail and is_whole(tail):
        _write_all(descriptor, b"\n")
        return size + 1
    if tail:
        os.ftruncate(descriptor, start)
    return start


def _write_all(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) != len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _sync_folder(folder: Path) -> None:
    """Make a new name in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
