"""Tasks are shared out over workers, and none is lost."""

import threading

import pytest

from pruneaug.profiler.sharing import share


def keep(got, results):
    """The results, each added to `got` as it comes; what ends them is raised."""
    for result in results:
        got.append(result)
    return []


def doubled(task):
    yield task
    yield task


def test_every_task_is_done_once_by_some_worker():
    assert sorted(share(list(range(20)), [doubled] * 3)) == sorted(2 * list(range(20)))


def test_workers_work_at_the_same_time():
    both = threading.Barrier(2, timeout=60)

    def meet(task):
        both.wait()
        yield task

    assert sorted(share([1, 2], [meet, meet])) == [1, 2]


def test_what_stops_a_worker_is_raised_when_the_others_have_done_the_rest():
    begun = threading.Event()

    def broken(task):
        yield task
        begun.set()
        raise OSError("gone")

    def waiting(task):
        assert begun.wait(60)
        yield task

    results, got = share([1, 2, 3], [broken, waiting]), []
    with pytest.raises(OSError, match="gone"):
        got.extend(keep(got, results))
    assert sorted(got) == [1, 2, 3]


def test_no_task_begins_once_results_are_no_longer_asked_for():
    done = []

    def work(task):
        done.append(task)
        yield task

    results = share(list(range(100)), [work])
    assert next(results) == 0
    results.close()
    assert done == [0]
