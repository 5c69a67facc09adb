"""A child process that answers in lines, and every way in which it does not."""

import os
import sys
import time
from pathlib import Path

import pytest

from pruneaug.profiler.lines import LineProcess, ProcessEnded

ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


def child(code):
    return LineProcess([sys.executable, "-c", code], os.environ)


def test_lines_are_answered_one_by_one_even_when_several_come_at_once():
    with child(ECHO) as process:
        for number in range(3):
            process.send({"number": number})
        assert [process.read(30) for _ in range(3)] == [f'{{"number": {number}}}' for number in range(3)]


def test_a_line_that_is_not_there_yet_can_be_asked_for_again():
    with child(ECHO) as process:
        assert process.poll(0) is None
        process.send({"number": 1})
        assert process.poll(30) == '{"number": 1}'
        assert process.poll(0) is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('no such thing')", r"^ended with exit status 1: no such thing$"),
        ("import os; os.abort()", r"^died of SIGABRT"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"^died of SIGKILL$"),
        ("print('half a line', end='')", r"^ended with exit status 0$"),
        (
            "import sys; sys.stderr.write('x' * 9000 + 'the end'); sys.exit(3)",
            r"^ended with exit status 3: x{1493}the end$",
        ),
    ],
)
def test_a_process_that_ends_is_told_with_its_last_words(code, message):
    with child(code) as process:
        process.send({"to": "whom it may concern"})
        with pytest.raises(ProcessEnded, match=message):
            process.read(30)
        process.send({"the": "dead read nothing"})


def test_a_process_that_says_nothing_in_time_hung_and_is_killed_with_its_children(tmp_path):
    pid_file = tmp_path / "pid"
    code = f"""
import subprocess, sys, time
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(pid_file)!r}, "w").write(str(grandchild.pid))
print("started", flush=True)
time.sleep(600)
"""
    with child(code) as process:
        assert process.read(30) == "started"
        with pytest.raises(ProcessEnded, match=r"^hung: it gave no result within 0\.1 s$"):
            process.read(0.1)
    deadline = time.monotonic() + 30
    while is_running(int(pid_file.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
