"""Turns of processes: quiet ones count, disturbed ones are asked for again, and patience ends."""

import json

import pytest

from pruneaug.profiler.lines import ProcessEnded
from pruneaug.profiler.timing import Probe
from pruneaug.profiler.turns import PATIENCE, TurnTaking


class Machine(Probe):
    """A probe, and a process, that take twice as long in the turns of these numbers."""

    def __init__(self, disturbed, dies_at=None):
        super().__init__(lambda: None)
        self.disturbed, self.dies_at, self.turn = disturbed, dies_at, -1

    def factor(self):
        return 2.0 if self.turn in self.disturbed else 1.0

    def run(self):
        return self.noted([self.factor()])

    def send(self, request):
        self.turn += 1
        assert request == {"seconds": 0.5, "least": 3}

    def read(self, timeout_s):
        if self.turn == self.dies_at:
            raise ProcessEnded("died")
        return json.dumps({"times_us": [self.turn + 100.0 * self.factor()] * 3})


@pytest.fixture
def take():
    def run(machine, rounds=3):
        turns = TurnTaking({7: machine}, machine, rounds, 0.5)
        while turns.go_on():
            turns.round()
        return turns

    return run


def test_turns_beside_a_slow_probe_are_left_out(take):
    turns = take(Machine({1, 3}))
    assert turns.times_us(7) == [100.0] * 3 + [105.0] * 3 + [106.0] * 3  # 2 and 4 follow slow probes
    assert not turns.is_disturbed(7)


def test_the_least_disturbed_are_taken_when_patience_ends(take):
    machine = Machine(set(range(2, 100)))
    turns = take(machine)
    assert turns.times_us(7) == [100.0] * 3 + [101.0] * 3 + [202.0] * 3
    assert turns.is_disturbed(7)
    assert machine.turn == 3 * PATIENCE - 1


def test_a_disturbed_machine_is_waited_for_without_a_turn(take, monkeypatch):
    class Waking(Machine):
        looks = 0

        def run(self):
            self.looks += 1
            return self.noted([1.0 if self.looks == 1 or self.looks > 42 else 2.0])

    machine, slept = Waking(set()), []
    monkeypatch.setattr("pruneaug.profiler.timing.LONGEST_WAIT_S", 20.0)
    monkeypatch.setattr("time.sleep", slept.append)
    assert take(machine).times_us(7) == [101.0] * 3 + [102.0] * 3 + [103.0] * 3  # turn 0 ended beside a slow probe
    assert machine.turn == 3
    assert slept.count(0.5) == 8


def test_waiting_ends(take, monkeypatch):
    slept = []
    monkeypatch.setattr("pruneaug.profiler.timing.LONGEST_WAIT_S", 2.0)
    monkeypatch.setattr("time.sleep", slept.append)
    take(Machine(set(range(1, 100))))
    assert slept.count(0.5) == 4


def test_a_process_that_ends_leaves_with_its_error(take):
    turns = take(Machine(set(), dies_at=1))
    assert turns.errors == {7: "its process died"}
    assert not turns.processes


def test_where_nothing_probes_every_turn_counts(take, monkeypatch):
    machine = Machine(set())
    monkeypatch.setattr(machine, "run", lambda: machine.noted([1.0]))
    assert take(machine).times_us(7) == [100.0] * 3 + [101.0] * 3 + [102.0] * 3
