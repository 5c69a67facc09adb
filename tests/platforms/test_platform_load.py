import pytest

from pruneaug.platforms.load import CpuTicks, busy, cpu_ticks, frequency_warnings, use_warnings


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def test_busy_answers_on_this_machine():
    assert all(isinstance(warning, str) for warning in busy(0.02))


def test_a_machine_that_tells_nothing_is_not_warned_about(tmp_path):
    assert busy(0.0, root=tmp_path) == ()


def test_ticks_are_read_as_linux_writes_them(tmp_path):
    write(tmp_path, proc__stat="cpu  10 1 20 1000 5 2 3 7 0 0\ncpu0 10 1 20 1000 5 2 3 7 0 0")
    assert cpu_ticks(tmp_path) == CpuTicks(used=36, stolen=7, total=36 + 7 + 1005)
    write(tmp_path, proc__stat="strange")
    assert cpu_ticks(tmp_path) is None


@pytest.mark.parametrize(
    ("used", "stolen", "own", "words"),
    [
        (0, 0, 0, []),
        (50, 0, 50, []),  # all of it is this process
        (50, 0, 0, ["other processes use 1.0 of 2 CPUs"]),
        (60, 0, 55, []),
        (0, 10, 0, ["the hypervisor takes 10%"]),
        (100, 10, 0, ["other processes use 2.0 of 2 CPUs", "the hypervisor"]),
    ],
)
def test_use_by_others_and_stolen_time_are_warned_about(used, stolen, own, words):
    found = use_warnings(CpuTicks(1000, 100, 5000), CpuTicks(1000 + used, 100 + stolen, 5100), own, 2)
    assert len(found) == len(words)
    assert all(warning.startswith(word) for warning, word in zip(found, words))


def test_two_readings_at_the_same_moment_say_nothing():
    assert use_warnings(CpuTicks(1, 1, 5), CpuTicks(1, 1, 5), 0.0, 2) == ()


def test_a_saving_governor_and_a_capped_frequency_are_warned_about(tmp_path):
    policy = "sys__devices__system__cpu__cpu{}__cpufreq__"
    for cpu in (0, 1):
        write(
            tmp_path,
            **{
                policy.format(cpu) + "scaling_governor": "powersave" if cpu else "performance",
                policy.format(cpu) + "scaling_max_freq": "2000000",
                policy.format(cpu) + "cpuinfo_max_freq": "3500000",
            },
        )
    governor, cap = frequency_warnings(tmp_path)
    assert "governor is performance, powersave" in governor
    assert "cpu0 is limited to 2.0 of 3.5 GHz" in cap
