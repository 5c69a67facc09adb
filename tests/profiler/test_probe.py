"""The probe beside measurements of networks: when it takes a machine for quiet."""

import json

import pytest

from pruneaug.platforms.detect import detect
from pruneaug.profiler import probe as probes
from pruneaug.profiler import timing

TOGETHER = [15e-6, 20e-6, 13e-6, 100e-6]
APART = [15e-6, 20e-6, 52e-6, 100e-6]


class Machine:
    """What the probe's process answers: these seconds in turn, the last again and again. Counts times of drawing."""

    def __init__(self, monkeypatch, *, virtual=True):
        self.answers, self.drawn = [], 0
        for name, value in {
            "LineProcess": lambda *_: self,
            "is_virtual": lambda: virtual,
            "draw_together": self.draw,
            "_REST_S": 0.0,
        }.items():
            monkeypatch.setattr(probes, name, value)
        for module in (probes, timing):  # tests that measure do not wait
            monkeypatch.setattr(module, "LONGEST_WAIT_S", 30.0)
        monkeypatch.setattr(probes.ProbeProcess, "fastest", {})
        monkeypatch.setattr(probes.ProbeProcess, "apart", set())

    def draw(self, threads, seconds):
        self.drawn += 1

    def send(self, _):
        pass

    def read(self, _):
        return json.dumps({"seconds": self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]})


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


def test_cpus_that_always_lay_apart_are_drawn_together(machine):
    machine.answers = [APART] * 16 + [TOGETHER]
    probe = probes.ProbeProcess(detect())
    assert not probe.is_quiet(probe.run())
    assert probe.is_quiet(probe.wait())
    assert machine.drawn == 3  # each time after five looks


def test_cpus_that_stay_apart_are_waited_for_once(machine):
    machine.answers = [APART]
    first, second = probes.ProbeProcess(detect()), probes.ProbeProcess(detect())
    assert first.is_quiet(first.wait())
    waited = machine.drawn
    assert waited > 10
    assert second.is_quiet(second.wait())
    assert machine.drawn == waited


def test_cpus_that_once_lay_together_are_disturbed_while_they_stay_apart(machine):
    machine.answers = [TOGETHER, APART]
    probe = probes.ProbeProcess(detect())
    probe.run()
    assert not probe.is_quiet(probe.wait())


def test_cpus_of_hardware_are_compared_with_nothing_but_themselves(monkeypatch):
    machine = Machine(monkeypatch, virtual=False)
    machine.answers = [APART]
    probe = probes.ProbeProcess(detect())
    assert probe.is_quiet(probe.wait())
    assert machine.drawn == 0


def test_a_probe_whose_process_has_ended_disturbs_no_measurement(machine, monkeypatch):
    def read(_):
        raise probes.ProcessEnded("was killed")

    machine.answers = [APART]
    probe = probes.ProbeProcess(detect())
    probe.run()
    monkeypatch.setattr(machine, "read", read)
    assert probe.is_quiet(probe.wait())
    assert machine.drawn == 0
