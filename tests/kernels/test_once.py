"""Values that are made once, asked for by several threads."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from pruneaug.kernels.once import Once


def test_the_first_that_asks_makes_it_and_the_others_wait():
    made, begun, go_on = Once(), threading.Event(), threading.Event()
    makers = []

    def make():
        makers.append(threading.get_ident())
        begun.set()
        assert go_on.wait(10)
        return object()

    with ThreadPoolExecutor(4) as threads:
        first = threads.submit(made.get, "key", make)
        assert begun.wait(10)
        others = [threads.submit(made.get, "key", make) for _ in range(3)]
        assert made.get("another", lambda: 1) == 1, "one key does not wait for another"
        assert not any(other.done() for other in others)
        go_on.set()
        assert all(other.result() is first.result() for other in others)
    assert len(makers) == 1


def test_none_is_a_value_too():
    made, calls = Once(), []
    for _ in range(2):
        assert made.get(0, lambda: calls.append(0)) is None
    assert len(calls) == 1


def test_who_waits_for_one_that_fails_gets_its_error_and_the_next_tries_again(monkeypatch):
    made, begun, waiting = Once(), threading.Event(), threading.Event()

    class Watched(Future):
        def result(self, timeout=None):
            waiting.set()
            return super().result(timeout)

    monkeypatch.setattr("pruneaug.kernels.once.Future", Watched)

    def fail():
        begun.set()
        assert waiting.wait(10)
        raise ValueError("broken")

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(made.get, "key", fail)
        assert begun.wait(10)
        second = threads.submit(made.get, "key", lambda: 7)
        for asked in (first, second):
            with pytest.raises(ValueError, match="broken"):
                asked.result()
    assert made.get("key", lambda: 7) == 7
