"""Threads get a CPU each, in a process of their own: a test must not tie down the suite's."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="affinities are Linux's")

SCRIPT = """
import os, sys, threading, time
from pruneaug.profiler.placement import place_threads

threads = int(sys.argv[1])
stop = False

def work():
    while not stop:
        sum(range(1000))

def idle():
    while not stop:
        time.sleep(0.01)

busy, lazy = threading.Thread(target=work), threading.Thread(target=idle)
lazy.start(), busy.start()
place_threads(lambda: sum(range(1000)), threads)
print(*[sorted(os.sched_getaffinity(number)) for number in (0, busy.native_id, lazy.native_id)], sep=";")
stop = True
"""


def affinities(threads):
    output = subprocess.run([sys.executable, "-c", SCRIPT, str(threads)], capture_output=True, text=True, check=True)
    return [eval(part) for part in output.stdout.split(";")]


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")
def test_the_main_thread_and_the_busiest_other_get_a_cpu_each():
    allowed = sorted(os.sched_getaffinity(0))
    assert affinities(2) == [[allowed[0]], [allowed[1]], allowed]


def test_one_thread_gets_the_first_cpu():
    allowed = sorted(os.sched_getaffinity(0))
    assert affinities(1) == [[allowed[0]], allowed, allowed]


def test_where_there_are_too_few_cpus_nothing_changes():
    allowed = sorted(os.sched_getaffinity(0))
    assert affinities(len(allowed) + 1) == [allowed] * 3


RING = """
import os, sys, threading, time
from pruneaug.profiler.placement import draw_together

threads, before = int(sys.argv[1]), len(os.listdir("/proc/self/fd"))
start = time.perf_counter()
draw_together(threads, 0.2)
took = time.perf_counter() - start
print((took, threading.active_count(), len(os.listdir("/proc/self/fd")) - before, sorted(os.sched_getaffinity(0))))
"""


@pytest.mark.parametrize("threads", [1, 2, 3, 10_000])
def test_threads_wake_each_other_for_a_while_and_leave_nothing_behind(threads):
    output = subprocess.run([sys.executable, "-c", RING, str(threads)], capture_output=True, text=True, check=True)
    took, active, opened, cpus = eval(output.stdout)
    assert took >= 0.2
    assert (active, opened, set(cpus)) == (1, 0, os.sched_getaffinity(0))
