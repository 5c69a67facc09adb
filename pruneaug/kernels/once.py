"""Values that are costly to make and asked for by several threads: each is made once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Once(Generic[Value]):
    """Values by their keys. Safe to use from several threads."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Future[Value]] = {}
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` returned for this key: the first thread that asks calls it, the others wait.

        What it raises is raised in all of them, and the next that asks tries again.
        """
        with self._lock:
            is_first = key not in self._made
            future = self._made.setdefault(key, Future())
        if is_first:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    del self._made[key]
                future.set_exception(error)
        return future.result()
