"""The platform.json beside a latency table, which keeps one machine's times from being used as another's."""

from __future__ import annotations

import json
from pathlib import Path

from pruneaug.errors import LatencyTableError
from pruneaug.files import atomic_write_text
from pruneaug.latency.store import LatencyStore
from pruneaug.platforms.platform import Platform

FILE_NAME = "platform.json"


def write_platform(folder: str | Path, platform: Platform) -> None:
    """Write `folder`/platform.json. Raises StorageError."""
    atomic_write_text(Path(folder) / FILE_NAME, json.dumps(platform.to_json(), indent=2) + "\n")


def read_platform(folder: str | Path) -> Platform:
    """The platform whose times `folder` holds. Raises LatencyTableError if its file is missing or broken."""
    path = Path(folder) / FILE_NAME
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError("it holds no JSON object")
    except FileNotFoundError:
        raise LatencyTableError(
            f"a latency table must have a {FILE_NAME} beside it, but {path} does not exist; run `pruneaug profile`"
        ) from None
    except (OSError, ValueError) as error:
        raise LatencyTableError(
            f"{path} must be a platform, but {error}; restore it or profile into another folder"
        ) from error
    try:
        return Platform.from_json(value)
    except LatencyTableError as error:
        raise LatencyTableError(f"{path}: {error}") from error


def match_platform(folder: str | Path, platform: Platform) -> tuple[str, ...]:
    """Check that `folder` holds times of this platform; returns warnings about other package versions.

    Raises LatencyTableError that shows the fields in which hardware, threads or dtype differ.
    """
    stored = read_platform(folder)
    if differences := platform.hardware_differences(stored):
        raise LatencyTableError(
            f"the latency table {folder} must be of this platform, but it is of another: {'; '.join(differences)}; "
            "choose another platform.name, or ask for the threads that the table was measured with"
        )
    return tuple(
        f"the times in {folder} were measured with another version of {difference}; they may have changed"
        for difference in platform.version_differences(stored)
    )


def claim_folder(folder: str | Path, platform: Platform) -> tuple[str, ...]:
    """Make a folder without a table this platform's, or check that it is; returns `match_platform`'s warnings.

    Raises LatencyTableError if it holds another platform's times, StorageError if it cannot be written.
    """
    if not LatencyStore(folder).libraries() and not (Path(folder) / FILE_NAME).exists():
        write_platform(folder, platform)
    return match_platform(folder, platform)


def merge_folder(folder: str | Path, other: str | Path) -> int:
    """Add the records of another folder of the same platform; returns how many were new. Merging again adds none.

    Raises LatencyTableError if the folders hold different platforms, StorageError if a record cannot be written.
    """
    claim_folder(folder, read_platform(other))
    return LatencyStore(folder).merge(LatencyStore(other))


def open_store(latency_db: str | Path, platform: Platform) -> LatencyStore:
    """The platform's store in a latency database, not checked and not made: see `claim_folder`."""
    return LatencyStore(Path(latency_db) / platform.name)
