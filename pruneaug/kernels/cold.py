"""How far away a layer's weights are while it is timed.

In a network other layers have driven a layer's weights from the caches that are smaller than that. Copies in turn do
the same, and an instruction that flushes them, on CPUs that have one, takes less time.
"""

from __future__ import annotations

_COLD_BYTES, _CACHE_BYTES = 8 << 20, 64 << 20  # well beyond the caches of one core, of all
_LARGE_WEIGHTS = 1 << 19  # bytes; layers this large come in networks that no cache holds
_MOST_COPIES = 128


def cold_bytes(weight_bytes: int) -> int:
    """How much memory the copies of weights of this size take together, until each is as far away as in a network."""
    return _CACHE_BYTES if weight_bytes >= _LARGE_WEIGHTS else _COLD_BYTES


def is_beyond_caches(memory_bytes: int) -> bool:
    """Whether no cache holds copies that take so much memory together."""
    return memory_bytes >= _CACHE_BYTES


def copies(memory_bytes: int, size: int) -> int:
    """How many copies of `size` bytes take about so much memory; at least one, and not too many."""
    return max(1, min(_MOST_COPIES, memory_bytes // max(1, size)))


def cold_copies(weight_bytes: int) -> int:
    """How many copies weights of this size have."""
    return copies(cold_bytes(weight_bytes), weight_bytes)
