"""Records of a ring buffer, written here as the kernel writes them: into a file that stands for its pages."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from tracer.probes.ringbuf import RingBuffer

SIZE = mmap.PAGESIZE
BUSY, DISCARDED = 1 << 31, 1 << 30


class Ring:
    """The consumer's page, the producer's, and the data twice, as the mapping shows them."""

    def __init__(self) -> None:
        self.file = os.memfd_create("ring")
        os.ftruncate(self.file, 2 * mmap.PAGESIZE + 2 * SIZE)
        self.seen: list[bytes] = []
        self.buffer = RingBuffer(self.file, SIZE, self.seen.append)
        self.produced = 0

    def write(self, content: bytes, flags: int = 0) -> int:
        """Reserve and fill a record, as both copies of the data show it; returns its position."""
        at = self.produced
        self._put(at, struct.pack("<II", len(content) | flags, 0) + content)
        self.produced += (8 + len(content) + 7) & ~7
        os.pwrite(self.file, struct.pack("<Q", self.produced), mmap.PAGESIZE)
        return at

    def commit(self, at: int, length: int) -> None:
        self._put(at, struct.pack("<I", length))

    def _put(self, at: int, content: bytes) -> None:
        for index, byte in enumerate(content):
            for copy in (0, SIZE):
                os.pwrite(self.file, bytes([byte]), 2 * mmap.PAGESIZE + copy + (at + index) % SIZE)

    @property
    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.file, 8, 0), "little")


@pytest.fixture
def ring() -> Iterator[Ring]:
    ring = Ring()
    yield ring
    ring.buffer.close()
    os.close(ring.file)


def test_records_come_whole_and_in_order_and_are_given_back(ring: Ring) -> None:
    contents = [bytes([number]) * (number * 7 + 1) for number in range(20)]
    for content in contents:
        ring.write(content)
    ring.buffer.consume()
    assert ring.seen == contents and ring.consumed == ring.produced
    ring.buffer.consume()
    assert len(ring.seen) == 20


def test_a_record_over_the_end_of_the_data_is_in_one_piece(ring: Ring) -> None:
    for number in range(300):
        content = os.urandom(number % 90 + 1)
        ring.write(content)
        ring.buffer.consume()
        assert ring.seen[-1] == content
    assert ring.produced > 3 * SIZE


def test_one_that_is_being_written_ends_it_for_now(ring: Ring) -> None:
    ring.write(b"first")
    busy = ring.write(b"second", BUSY)
    ring.write(b"third")
    ring.buffer.consume()
    assert ring.seen == [b"first"] and ring.consumed == busy
    ring.commit(busy, len(b"second"))
    ring.buffer.consume()
    assert ring.seen == [b"first", b"second", b"third"]


def test_one_that_was_given_up_is_passed_over(ring: Ring) -> None:
    ring.write(b"never", DISCARDED)
    ring.write(b"first")
    ring.buffer.consume()
    assert ring.seen == [b"first"] and ring.consumed == ring.produced


def test_one_whose_handling_fails_is_not_handed_on_again() -> None:
    ring = Ring()

    def fail(_: bytes) -> None:
        raise ValueError("no")

    buffer = RingBuffer(ring.file, SIZE, fail)
    ring.write(b"first")
    with pytest.raises(ValueError, match="no"):
        buffer.consume()
    buffer.close()
    buffer.close()
    assert ring.consumed == ring.produced
