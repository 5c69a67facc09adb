"""What a CUDA kernel is compiled for, and what a thread block may use there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pruneaug.errors import InputError

# Bytes of shared memory that one thread block may ask for, by compute capability (CUDA C++ programming guide, table of
# technical specifications).
_SHARED_PER_BLOCK = {"80": 163, "86": 99, "87": 163, "89": 99, "90": 227}
_KIB = 1024
OLDEST_ARCH = "sm_80"  # what is written for it runs on all later ones
_REGISTERS_PER_BLOCK = 65536
REGISTERS_PER_THREAD = 255
THREADS_PER_BLOCK = 1024


@dataclass(frozen=True)
class CudaTarget:
    """A GPU architecture by its name in CUDA, such as "sm_80" or "sm_90a".

    Raises InputError for one that these kernels are not written for.
    """

    arch: str

    def __post_init__(self) -> None:
        if self._capability not in _SHARED_PER_BLOCK:
            known = ", ".join(f"sm_{number}" for number in _SHARED_PER_BLOCK)
            raise InputError(f"a CUDA architecture must be one of {known}, sm_90a, but got {self.arch!r}; choose one")

    @property
    def _capability(self) -> str:
        return "90" if self.arch == "sm_90a" else self.arch.removeprefix("sm_")

    @property
    def shared_bytes(self) -> int:
        """Shared memory that a thread block may use, in bytes."""
        return _SHARED_PER_BLOCK[self._capability] * _KIB

    @property
    def has_wgmma(self) -> bool:
        """Whether warpgroups multiply together."""
        return self.arch == "sm_90a"

    def registers(self, threads: int) -> int:
        """Registers that each thread of a block of so many may use."""
        # They are dealt out to warps in units of 256, 8 for each thread.
        return min(REGISTERS_PER_THREAD, _REGISTERS_PER_BLOCK // threads // 8 * 8)

    @cached_property
    def tvm(self) -> Any:
        """TVM's target."""
        import tvm  # the compiler; a compiled kernel is launched without it

        return tvm.target.Target(
            {
                "kind": "cuda",
                "arch": self.arch,
                "max_shared_memory_per_block": self.shared_bytes,
                "max_threads_per_block": THREADS_PER_BLOCK,
                "thread_warp_size": 32,
            }
        )
