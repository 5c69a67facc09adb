from pathlib import Path

import pytest

from pruneaug.errors import DeviceError, SpecError
from pruneaug.platforms import Platform, detect
from pruneaug.platforms.remote import (
    DeviceFacts,
    allowed_cpus,
    device_warnings,
    read_files,
    remote_platform,
    tells_all,
)
from pruneaug.spec.platform import HardwareSpec

CPU = "sys/devices/system/cpu/cpu0"
PI = {
    "proc/cpuinfo": "Features\t: fp asimd\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\nCPU revision\t: 3\n",
    "proc/self/status": "Name:\tpython\nCpus_allowed_list:\t0-3\n",
    f"{CPU}/cache/index0/type": "Data",
    f"{CPU}/cache/index0/size": "32K",
    f"{CPU}/cache/index0/level": "1",
    f"{CPU}/cpufreq/scaling_governor": "ondemand",
    **{f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list": str(cpu) for cpu in range(4)},
}
FACTS = DeviceFacts("aarch64", "cortex-a72", PI)
NOTHING = HardwareSpec()
UNKNOWN = DeviceFacts(None, None, {})


def test_a_device_is_what_its_files_tell():
    platform = remote_platform(NOTHING, FACTS, None, "pi")
    assert (platform.name, platform.cpu, platform.arch, platform.isa) == (
        "pi",
        "ARM (0x41-0xd08-3)",
        "aarch64",
        ("neon",),
    )
    assert (platform.cores, platform.threads, platform.caches) == (4, 4, (("L1d", 32768),))
    assert platform.kernel_target() == {
        "lanes": 4,
        "registers": 32,
        "threads": 4,
        "mcpu": "cortex-a72",
        "triple": "aarch64-unknown-linux-gnu",
    }
    assert Platform.from_json(platform.to_json()) == platform


def test_a_device_like_this_machine_has_the_fingerprint_that_it_finds_itself():
    def read(path):
        try:
            return (Path("/") / path).read_text()
        except OSError:
            return None

    here = detect()
    facts = DeviceFacts(here.arch, None, read_files(read))
    found = remote_platform(NOTHING, facts, None, None)
    assert found.hardware_differences(here) == ()
    assert (found.fingerprint, found.name) == (here.fingerprint, here.name)


def test_what_the_spec_says_goes_before_what_the_device_tells():
    hardware = HardwareSpec(cpu="Pi 4", cores=2, caches={"L2": 1 << 20}, mcpu="cortex-a53", isa=["neon"])
    platform = remote_platform(hardware, FACTS, None, None)
    assert (platform.cpu, platform.cores, platform.caches, platform.mcpu) == (
        "Pi 4",
        2,
        (("L2", 1 << 20),),
        "cortex-a53",
    )
    assert platform.name.startswith("pi-4-2t-float32-")


def test_every_arm_has_neon_and_none_has_extensions_of_others():
    assert remote_platform(HardwareSpec(isa=[]), FACTS, None, "pi").isa == ("neon",)
    assert remote_platform(HardwareSpec(isa=["sve"]), FACTS, None, "pi").isa == ("neon", "sve")
    with pytest.raises(SpecError, match=r"hardware\.isa must be of aarch64 CPUs, but got avx512f; leave it out"):
        remote_platform(HardwareSpec(isa=["neon", "avx512f"]), FACTS, None, "pi")
    with pytest.raises(SpecError, match=r"hardware\.isa must be of x86_64 CPUs, but got sve"):
        remote_platform(HardwareSpec(arch="x86_64", isa=["avx2", "sve"]), FACTS, None, "pc")


def test_one_error_names_all_that_is_missing():
    with pytest.raises(DeviceError, match=r"arch, cpu, isa, cores .*hardware: \{arch: ..., cpu: ..., isa: ..., cores:"):
        remote_platform(NOTHING, UNKNOWN, None, None)
    assert not tells_all(HardwareSpec(arch="aarch64", cpu="Pi 4", isa=["neon"], cores=4))


def test_a_spec_can_tell_all():
    hardware = HardwareSpec(arch="x86_64", cpu="box", isa=["avx2", "fma"], cores=4, mcpu="haswell")
    assert tells_all(hardware)
    platform = remote_platform(hardware, UNKNOWN, 2, "box")
    assert (platform.threads, platform.caches, platform.vector_lanes) == (2, (), 8)


@pytest.mark.parametrize(
    ("arch", "isa", "mcpu"),
    [("aarch64", ["neon"], "generic"), ("x86_64", ["avx2", "avx512f"], "x86-64-v4"), ("x86_64", ["avx2"], "x86-64-v3")],
)
def test_a_device_without_a_compiler_gets_code_for_any_cpu_of_its_kind(arch, isa, mcpu):
    hardware = HardwareSpec(arch=arch, cpu="any", isa=isa, cores=1)
    assert remote_platform(hardware, UNKNOWN, None, None).mcpu == mcpu


def test_another_architecture_is_refused():
    with pytest.raises(DeviceError, match="aarch64, x86_64, but the device is riscv64"):
        remote_platform(NOTHING, DeviceFacts("riscv64", None, PI), None, None)


def test_more_threads_than_the_device_has_are_refused():
    with pytest.raises(SpecError, match="between 1 and the 4 CPUs of the device, but got 5"):
        remote_platform(NOTHING, FACTS, 5, None)


def test_a_governor_that_slows_the_device_is_warned_about():
    (warning,) = device_warnings(FACTS)
    assert warning.startswith("on the device the frequency governor is ondemand")


@pytest.mark.parametrize(
    ("status", "cpus"), [("Cpus_allowed_list:\t0-2,5\n", [0, 1, 2, 5]), ("Cpus_allowed_list:\t3\n", [3]), ("", [])]
)
def test_the_cpus_of_a_process_are_read(status, cpus):
    assert allowed_cpus(status) == cpus
