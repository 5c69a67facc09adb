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


@pytest.mark.parametrize(("budget_s", "rounds"), [(0.0, 8), (0.0201, 20), (100.0, 60)])
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
