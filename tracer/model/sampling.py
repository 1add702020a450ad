"""Sampling by bytes: what a sampled block stands for, and how far an estimate may be off.

The kernel side takes a block of ``size`` bytes with the chance ``1 - exp(-size / interval)``, and always from the
interval's size on (bpf/sample.bpf.c). A sum over the sampled blocks, each divided by its chance, is an unbiased
estimate of the sum over all (Horvitz and Thompson, 1952), with a variance that the same blocks tell.
"""

from __future__ import annotations

import math

# A chance of 1, as the kernel counts: bpf/memtrace.h.
CERTAIN = 1 << 32
# 64 samples in a leak of 1 MiB: it is missed once in 10^28, and told within 25 %; one of 10 MiB within 8 %. A sampled
# call costs about twice an unsampled one, so that of blocks of 300 bytes, say, sampling adds 2 % to the traps' cost.
DEFAULT_SAMPLE_BYTES = 16 << 10
# At the longest distance that the budget may set, a leak of 1 MiB has 16 samples.
LONGEST_SAMPLE_BYTES = 64 << 10

_NORMAL_95 = 1.96


def scale_of(interval: int) -> int:
    """``settings.sample_scale`` of an interval in bytes."""
    return (1 << 48) // interval


def chance_of(size: int, interval: int) -> int:
    """The chance, in 1 / CERTAIN, that a block of ``size`` bytes is sampled: bpf/sample.bpf.c, step by step."""
    size = max(size, 1)
    if size >= interval:
        return CERTAIN
    x = size * scale_of(interval) >> 16
    total = CERTAIN
    for term in range(10, 1, -1):
        total = CERTAIN - (x * total >> 32) // term
    return x * total >> 32


def bytes_for(size: int, chance: int) -> int:
    """The bytes that a sampled block stands for, rounded as in the kernel."""
    return size if chance >= CERTAIN or not chance else ((size << 32) + chance // 2) // chance


def blocks_for(chance: int) -> float:
    """The number of blocks that a sampled block stands for."""
    return 1.0 if chance >= CERTAIN or not chance else CERTAIN / chance


class Estimate:
    """A sum over blocks, of which those added are a sample; a sum over all where each was certain."""

    __slots__ = ("_drawn", "_variance", "bytes", "count")

    def __init__(self) -> None:
        self.bytes = 0
        self.count = 0.0
        self._variance = 0.0
        self._drawn = 0

    def add(self, size: int, chance: int) -> None:
        """Add a sampled block: ``size`` bytes of it count, and it had this chance to be sampled."""
        stands_for = bytes_for(size, chance)
        self.bytes += stands_for
        self.count += blocks_for(chance)
        if stands_for != size:
            self._variance += float(stands_for) * (stands_for - size)
            self._drawn += 1

    @property
    def error(self) -> int:
        """Half of the 95 % interval, in bytes; 0 for an exact sum.

        The estimate of the variance is itself too small where few were drawn, as it is when the sum is: one more sample
        of the mean kind makes up for it.
        """
        if not self._drawn:
            return 0
        return math.ceil(_NORMAL_95 * math.sqrt(self._variance * (1 + 1 / self._drawn)))
