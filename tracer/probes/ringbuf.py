"""Reads a BPF ring buffer (Documentation/bpf/ringbuf.rst) through its mapping: records come without a system call."""

from __future__ import annotations

import ctypes
import mmap
import select
from collections.abc import Callable

# struct bpf_ringbuf_hdr: length with two flags in its highest bits, and the page number.
_HEADER_SIZE = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_LENGTH = _DISCARDED - 1


class RingBuffer:
    """One ring buffer of ``size`` bytes of data; ``handle`` gets each record's bytes, in order.

    The positions only grow. The kernel maps the data twice in a row, so that no record is cut. A record's data is there
    once the producer's position says so: on x86-64, where loads are not reordered.
    """

    def __init__(self, fd: int, size: int, handle: Callable[[bytes], None]) -> None:
        """Raises OSError where the kernel refuses the mapping."""
        self._handle = handle
        self._mask = size - 1
        page = mmap.PAGESIZE
        self._consumer_page = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._pages = mmap.mmap(fd, page + 2 * size, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._data_start = page
        # One store of 8 bytes, as the kernel reads it meanwhile.
        self._consumed = ctypes.c_uint64.from_buffer(self._consumer_page)
        self._fd = fd
        self._epoll: select.epoll | None = None

    def poll(self, timeout_ms: int) -> None:
        """Wait for records up to the timeout and hand them on."""
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self._fd, select.EPOLLIN)
        self._epoll.poll(timeout_ms / 1000)
        self.consume()

    def consume(self) -> None:
        """Hand on what is there. A record that is being written ends it: the rest comes next time."""
        position = self._consumed.value
        while position < int.from_bytes(self._pages[:8], "little"):
            start = self._data_start + (position & self._mask)
            header = int.from_bytes(self._pages[start : start + 4], "little")
            if header & _BUSY:
                return
            length = header & _LENGTH
            record = self._pages[start + _HEADER_SIZE : start + _HEADER_SIZE + length]
            position += (length + _HEADER_SIZE + 7) & ~7
            self._consumed.value = position
            if not header & _DISCARDED:
                self._handle(record)

    def close(self) -> None:
        """Unmap it. Safe to call twice."""
        if self._epoll is not None:
            self._epoll.close()
        if not self._consumer_page.closed:
            del self._consumed
            self._consumer_page.close()
            self._pages.close()
