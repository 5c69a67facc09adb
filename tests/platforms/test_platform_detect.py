import json
import os
from dataclasses import fields, replace

import pytest

from pruneaug.errors import LatencyTableError, SpecError
from pruneaug.platforms import Platform, detect
from pruneaug.platforms.detect import cache_sizes, cpu_model, is_virtual, usable_cores, vector_extensions
from pruneaug.testing.platform import ANALYTIC_PLATFORM

X86 = """processor\t: 0
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz
stepping\t: 8
flags\t\t: fpu fma avx avx2 avx512f avx512_vnni amx_tile

processor\t: 1
model name\t: another
"""
ARM = """processor\t: 0
Features\t: fp asimd sve
CPU implementer\t: 0x41
CPU part\t: 0xd40
CPU revision\t: 1
"""


def machine(root, cpuinfo, siblings=(), quota=None):
    """A root folder with the files of a machine."""
    files = {"proc/cpuinfo": cpuinfo}
    for cpu, text in enumerate(siblings):
        files[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = text
    for index, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        for name, text in (("level", level), ("type", kind), ("size", size)):
            files[f"sys/devices/system/cpu/cpu0/cache/index{index}/{name}"] = str(text)
    if quota:
        files["sys/fs/cgroup/cpu.max"] = quota
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n")
    return root


def test_this_machine_is_detected_and_survives_json():
    platform = detect()
    assert 1 <= platform.threads == platform.cores <= os.cpu_count()
    assert platform.vector_lanes in (4, 8, 16)
    assert Platform.from_json(json.loads(json.dumps(platform.to_json()))) == platform
    assert detect() == platform
    assert platform.fingerprint[:6] in platform.name


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [(X86, False), (X86.replace("fma avx ", "fma hypervisor avx "), True), (ARM, False), ("", False)],
)
def test_a_virtual_machine_says_so(tmp_path, cpuinfo, expected):
    assert is_virtual(machine(tmp_path, cpuinfo)) is expected


def test_an_x86_machine_is_read_from_its_files(tmp_path):
    platform = detect(threads=1, root=machine(tmp_path, X86))
    assert platform.cpu == "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz (6-143-8)"
    assert platform.caches == (("L1d", 49152), ("L2", 2097152))
    assert platform.name.startswith("intel-xeon-platinum-8481c-6-143-8-1t-float32-")
    assert {"avx2", "fma", "avx512f", "avx512_vnni"} <= set(platform.isa)
    assert (platform.vector_lanes, platform.vector_registers) == (16, 32)


def test_an_arm_machine_is_read_from_its_files(tmp_path):
    root = machine(tmp_path, ARM)
    info = {"Features": "fp asimd sve", "CPU implementer": "0x41", "CPU part": "0xd40", "CPU revision": "1"}
    assert detect(root=root).cpu == cpu_model(info) == "ARM (0x41-0xd40-1)"
    assert vector_extensions(info, "aarch64") == ("neon", "sve")


def test_a_machine_that_tells_nothing_still_has_a_platform(tmp_path):
    platform = detect(threads=1, root=tmp_path)
    assert platform.caches == ()
    assert platform.cpu
    assert platform.name


@pytest.mark.parametrize(
    ("isa", "lanes", "registers"),
    [((), 4, 16), (("avx2", "fma"), 8, 16), (("avx2", "avx512f"), 16, 32), (("neon",), 4, 32)],
)
def test_vector_width_follows_from_the_extensions(isa, lanes, registers):
    platform = replace(ANALYTIC_PLATFORM, isa=isa)
    assert (platform.vector_lanes, platform.vector_registers) == (lanes, registers)


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        (["0,4", "1,5", "0,4", "1,5"], None, 2),
        (["0", "1", "2", "3"], "200000 100000", 2),
        (["0", "1", "2", "3"], "50000 100000", 1),
        (["0", "1", "2", "3"], "max 100000", 4),
        ([], None, 4),
    ],
)
def test_cores_are_physical_and_within_a_containers_quota(tmp_path, siblings, quota, cores):
    assert usable_cores([0, 1, 2, 3], machine(tmp_path, X86, siblings, quota)) == cores


def test_caches_of_a_machine_without_sys_are_unknown(tmp_path):
    assert cache_sizes(tmp_path) == ()


@pytest.mark.parametrize("threads", [0, -1, 10**6])
def test_threads_must_fit_the_machine(threads):
    with pytest.raises(SpecError, match=rf"threads .* must be between 1 and .* but got {threads}"):
        detect(threads=threads)


@pytest.mark.parametrize("name", ["", "a/b", "..", "my machine", "-x"])
def test_a_name_must_be_a_folder_name(name):
    with pytest.raises(SpecError, match=r"platform\.name must be"):
        detect(name=name)


@pytest.mark.parametrize("field", [field.name for field in fields(Platform)])
def test_the_fingerprint_holds_hardware_threads_and_dtype_only(field):
    value = getattr(ANALYTIC_PLATFORM, field)
    other = {str: "other", int: 99, tuple: (("other", 1),) if field == "caches" else (("other", "1"),)}
    changed = replace(ANALYTIC_PLATFORM, **{field: other.get(type(value), "other")})
    free = field in ("name", "mcpu", "versions", "triple")
    assert (changed.fingerprint == ANALYTIC_PLATFORM.fingerprint) == free


def test_the_target_names_the_cpu_where_it_is_known():
    lanes, registers = ANALYTIC_PLATFORM.vector_lanes, ANALYTIC_PLATFORM.vector_registers
    expected = {"lanes": lanes, "registers": registers, "threads": 2, "mcpu": "", "triple": ""}
    assert ANALYTIC_PLATFORM.kernel_target() == expected
    assert replace(ANALYTIC_PLATFORM, mcpu="znver5").kernel_target() == expected | {"mcpu": "znver5"}


@pytest.mark.parametrize(
    "change",
    [{"cores": None}, {"cores": "many"}, {"caches": [1]}, {"isa": 3}, {"versions": None}, {"fingerprint": "0" * 12}],
)
def test_a_broken_platform_is_refused(change):
    with pytest.raises(LatencyTableError, match="into another folder"):
        Platform.from_json({**ANALYTIC_PLATFORM.to_json(), **change})
