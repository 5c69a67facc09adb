"""The crew alone, with tasks written in Python; that kernels compute the same with it, all other tests show."""

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
from tvm.support import cc

from pruneaug.kernels import crew

TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
LAUNCH = ctypes.CFUNCTYPE(ctypes.c_int, TASK, ctypes.c_void_p, ctypes.c_int)


class Crew:
    """A crew of this test's own; `left` counts what it left to others."""

    def __init__(self, folder):
        path = folder / "crew.so"
        cc.create_shared(str(path), [str(crew.SOURCE)], options=list(crew.OPTIONS))
        self.library = ctypes.CDLL(str(path))
        self.left = Counter()
        self._others = LAUNCH(self._leave)
        self.library.pruneaug_crew_begin(self._others)

    def _leave(self, task, data, tasks):
        self.left[tasks] += 1
        return 0

    def threads(self, threads):
        self.library.pruneaug_crew_threads(threads)

    def launch(self, task, tasks=0):
        return self.library.pruneaug_crew_launch(TASK(task), None, tasks)


@pytest.fixture
def own(tmp_path):
    return Crew(tmp_path)


def counting(done, task=None):
    def run(number, group, data):
        done[number, ctypes.cast(group + 8, ctypes.POINTER(ctypes.c_int32))[0]] += 1
        return task(number) if task else 0

    return run


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("tasks", [0, 1, 2, 5, 20])
def test_every_task_runs_once(own, threads, tasks):
    own.threads(threads)
    done = Counter()
    for _ in range(20):
        assert own.launch(counting(done), tasks) == 0
    count = tasks or threads
    assert done == dict.fromkeys(((number, count) for number in range(count)), 20)
    assert not own.left


def test_threads_that_slept_wake_up(own):
    own.threads(3)
    done = Counter()
    for _ in range(5):
        time.sleep(0.02)  # ten times as long as they stay awake
        own.launch(counting(done))
    assert sum(done.values()) == 15


def test_threads_that_are_not_wanted_for_a_while_do_not_take_old_tasks(own):
    done = Counter()
    for threads in [5, 2, 1, 5, 3, 4] * 20:
        own.threads(threads)
        own.launch(counting(done))
        assert sum(done.values()) == threads
        done.clear()


def test_tasks_run_at_the_same_time(own):
    own.threads(3)
    all_there = threading.Barrier(3, timeout=30)
    assert own.launch(counting(Counter(), lambda number: all_there.wait() and 0)) == 0


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_one_failed_task_fails_the_launch(own, failing):
    own.threads(3)
    done = Counter()
    assert own.launch(counting(done, lambda number: -5 if number == failing else 0)) == -1
    assert sum(done.values()) == 3
    assert own.launch(counting(done)) == 0


def test_who_did_not_ask_or_finds_it_taken_is_left_to_others(own):
    own.launch(counting(Counter()), 4)
    assert own.left == {4: 1}
    own.threads(2)

    def launch_in_there(number):
        return own.launch(counting(Counter()), 9)  # by the thread that has it, and by one that did not ask

    own.launch(counting(Counter(), launch_in_there))
    assert own.left == {4: 1, 9: 2}
    other = threading.Thread(target=lambda: own.launch(counting(Counter()), 6))
    other.start()
    other.join()
    assert own.left[6] == 1
    own.threads(257)
    own.launch(counting(Counter()), 5)
    assert own.left[5] == 1


def test_threads_take_turns(own):
    done = Counter()

    def use():
        own.threads(2)
        for _ in range(200):
            own.launch(counting(done))

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    assert sum(done.values()) + 2 * own.left[0] == 3 * 200 * 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forking a process that has threads
def test_a_child_process_starts_threads_of_its_own(own):
    own.threads(3)
    own.launch(counting(Counter()))
    child = os.fork()
    if child == 0:
        done = Counter()
        own.launch(counting(done))
        os._exit(sum(done.values()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_kernels_use_the_crew_and_without_a_compiler_those_of_tvm(monkeypatch):
    # In a process of its own, for each process has one crew.
    code = """if True:
        import torch
        from pruneaug.kernels import crew
        from pruneaug.kernels.build import Builder, CpuTarget
        from pruneaug.kernels.handover import handover_call
        target = CpuTarget(8, 16, 2)
        x = torch.arange(2 * 64, dtype=torch.float32)
        y = Builder(target).run(handover_call(target, 64), x)
        assert torch.equal(y, torch.cat([x[64:], x[:64]]))
        print(crew._crew is not None)
    """

    def run():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()

    assert run() == "True"
    monkeypatch.setenv("CXX", "there-is-no-such-compiler")
    assert run() == "False"
