"""Interleaved timing, with a clock that the calls themselves move."""

import pytest

from pruneaug.profiler import timing


class Clock:
    """Stands still but for what `spend` adds."""

    def __init__(self):
        self.now_s, self.log = 0.0, []

    def call(self, name, seconds):
        def spend():
            self.log.append(name)
            self.now_s += seconds

        return spend


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock.now_s)
    return clock


def test_calls_take_turns_and_each_gets_its_own_times(clock):
    slow, fast = timing.interleaved_us([clock.call("a", 3e-3), clock.call("b", 1e-3)], budget_s=0.0401)
    assert slow == pytest.approx([3000.0] * 10)
    assert fast == pytest.approx([1000.0] * 10)
    assert clock.log == ["a", "a", "b", "b"] + ["a", "b"] * 10


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 8), (0.0201, 20), (100.0, 40)])
def test_the_budget_sets_the_rounds_between_the_least_and_the_most(clock, budget_s, rounds):
    (times,) = timing.interleaved_us([clock.call("a", 1e-3)], budget_s=budget_s)
    assert len(times) == rounds


def test_a_call_shorter_than_the_clock_can_tell_is_repeated_within_one_reading(clock):
    (times,) = timing.interleaved_us([clock.call("a", 2e-6)], budget_s=0.0)
    assert times == pytest.approx([2.0] * 8)
    assert len(clock.log) == 2 + 8 * 10


def test_a_call_that_takes_no_time_at_all_is_timed_too(clock):
    (times,) = timing.interleaved_us([clock.call("a", 0.0)], budget_s=0.0)
    assert times == pytest.approx([0.0] * 8)


class Disturbed:
    """A probe, and a call, that take twice as long in rounds of these numbers."""

    def __init__(self, clock, rounds):
        self.clock, self.rounds, self.calls = clock, rounds, -2  # two calls come before the first round

    def factor(self):
        return 2 if self.calls in self.rounds else 1

    def call(self):
        self.clock.now_s += 1e-3 * self.factor()
        self.calls += 1

    def probe(self):
        self.clock.now_s += 30e-6 * self.factor()


def test_rounds_in_which_the_probe_was_slow_are_left_out(clock):
    disturbed = Disturbed(clock, {2, 3, 5})
    (times,) = timing.interleaved_us([disturbed.call], budget_s=0.0, probe=timing.Probe(disturbed.probe))
    assert times == pytest.approx([1000.0] * 8)
    assert disturbed.calls == 8 + 5  # the round before a slow probe is left out too


def test_where_all_is_disturbed_patience_ends(clock):
    disturbed = Disturbed(clock, set(range(1000)))
    probe = timing.Probe(disturbed.probe)
    probe.noted([30e-6])
    (times,) = timing.interleaved_us([disturbed.call], budget_s=0.0, probe=probe)
    assert times == pytest.approx([2000.0] * 8)
    assert disturbed.calls == 3 * 8


def test_the_least_disturbed_rounds_are_taken_where_too_few_are_quiet(clock):
    disturbed = Disturbed(clock, set(range(3, 1000)))
    (times,) = timing.interleaved_us([disturbed.call], budget_s=0.0, probe=timing.Probe(disturbed.probe))
    assert len(times) == 8
    assert times[:2] == pytest.approx([1000.0] * 2)
    assert disturbed.calls == 3 * 8


def test_a_disturbed_machine_is_waited_for_before_the_first_call_and_not_for_ever(clock, monkeypatch):
    disturbed, slept = Disturbed(clock, set()), []
    disturbed.factor = lambda: 2 if len(slept) < 7 else 1
    probe = timing.Probe(disturbed.probe)
    probe.noted([30e-6])
    monkeypatch.setattr(timing.time, "sleep", slept.append)
    monkeypatch.setattr(timing, "LONGEST_WAIT_S", 4.0)
    (times,) = timing.interleaved_us([disturbed.call], budget_s=0.0, probe=probe)
    assert slept == [0.5] * 7
    assert times == pytest.approx([1000.0] * 8)

    disturbed.factor = lambda: 2
    (times,) = timing.interleaved_us([disturbed.call], budget_s=0.0, probe=probe)
    assert slept == [0.5] * 8
    assert times == pytest.approx([2000.0] * 8)
