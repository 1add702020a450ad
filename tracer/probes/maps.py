"""BPF maps read and written by file descriptor, many entries a call."""

from __future__ import annotations

import ctypes
import errno
import re
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tracer.probes import kernel

_BATCH = 4096
# BPF_MAP_TYPE_HASH, BPF_F_NO_PREALLOC (include/uapi/linux/bpf.h), and struct htab_elem with what the allocator adds.
_HASH, _NO_PREALLOC, _ELEMENT_HEAD = 1, 1, 64
_BATCH_ATTRIBUTES = struct.Struct("<QQQQIIQQ")
_ELEMENT_ATTRIBUTES = struct.Struct("<IIQQQ")


class KernelMap:
    """A hash or array map: elements go in and out as bytes."""

    def __init__(self, fd: int, key_size: int, value_size: int) -> None:
        self.fd = fd
        self._key_size = key_size
        self._value_size = value_size

    def get(self, key: bytes) -> bytes | None:
        """Return the value at ``key``, or None. Raises OSError for all but a missing key."""
        value = ctypes.create_string_buffer(self._value_size)
        try:
            self._element(kernel.BPF_MAP_LOOKUP_ELEM, key, value)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return value.raw

    def put(self, key: bytes, value: bytes) -> None:
        """Write the value at ``key``. Raises OSError, E2BIG where the map is full."""
        self._element(kernel.BPF_MAP_UPDATE_ELEM, key, ctypes.create_string_buffer(value, self._value_size))

    def delete(self, key: bytes) -> None:
        """Delete ``key``; a missing one is no error."""
        try:
            self._element(kernel.BPF_MAP_DELETE_ELEM, key, None)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise

    def _element(self, command: int, key: bytes, value: ctypes.Array[ctypes.c_char] | None) -> None:
        key_buffer = ctypes.create_string_buffer(key, self._key_size)
        address = ctypes.addressof(value) if value is not None else 0
        kernel.bpf(command, _ELEMENT_ATTRIBUTES.pack(self.fd, 0, ctypes.addressof(key_buffer), address, 0))

    def read(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield all elements in chunks: the keys one after the other, and likewise their values.

        Entries added or deleted meanwhile may be seen or not; none is seen twice (kernel/bpf/hashtab.c,
        __htab_map_lookup_and_delete_batch: bucket by bucket).
        """
        return self._batches(kernel.BPF_MAP_LOOKUP_BATCH)

    def drain(self) -> Iterator[tuple[bytes, bytes]]:
        """As ``read``, and delete what was read in the same step, so that no update in between is lost."""
        return self._batches(kernel.BPF_MAP_LOOKUP_AND_DELETE_BATCH)

    def _batches(self, command: int) -> Iterator[tuple[bytes, bytes]]:
        capacity = _BATCH
        # The position is opaque; for a hash it is a bucket number, for an array a key: never larger than 64 bytes.
        position_in, position_out = ctypes.create_string_buffer(64), ctypes.create_string_buffer(64)
        first = True
        while True:
            keys = ctypes.create_string_buffer(capacity * self._key_size)
            values = ctypes.create_string_buffer(capacity * self._value_size)
            attributes = ctypes.create_string_buffer(
                _BATCH_ATTRIBUTES.pack(
                    0 if first else ctypes.addressof(position_in),
                    ctypes.addressof(position_out),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    capacity,
                    self.fd,
                    0,
                    0,
                ),
                128,
            )
            last = False
            try:
                kernel.bpf(command, attributes)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # one bucket holds more than the buffer
                    capacity *= 2
                    continue
                if error.errno != errno.ENOENT:
                    raise
                last = True
            count = _BATCH_ATTRIBUTES.unpack_from(attributes)[4]
            if count:
                yield keys.raw[: count * self._key_size], values.raw[: count * self._value_size]
            if last:
                return
            position_in.raw = position_out.raw
            first = False


def possible_cpus() -> int:
    """How many values an element of a per-CPU map has: /sys/devices/system/cpu/possible ends with the last CPU."""
    listed = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(re.split("[,-]", listed.strip())[-1]) + 1


def memory_of(fd: int) -> int:
    """Bytes of kernel memory that a map takes now, as /proc/self/fdinfo states it; 0 if unknown."""
    return _described(fd).get("memlock", 0)


def memory_when_full(fd: int) -> int:
    """Bytes of kernel memory that a map takes when it is full; a hash map's elements are made one by one."""
    described = _described(fd)
    now = described.get("memlock", 0)
    if described.get("map_type") != _HASH or not described.get("map_flags", 0) & _NO_PREALLOC:
        return now
    element = _ELEMENT_HEAD + sum(-(-described[name] // 8) * 8 for name in ("key_size", "value_size"))
    # The elements that there are already count twice: few, at the start.
    return now + described["max_entries"] * element


def _described(fd: int) -> dict[str, int]:
    """The numbers that /proc/self/fdinfo tells of a map."""
    try:
        text = Path(f"/proc/self/fdinfo/{fd}").read_text(encoding="ascii")
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        name, _, value = line.partition(":")
        with suppress(ValueError):  # flags are octal or hexadecimal, lists are none of ours
            found[name] = int(value, 16 if "x" in value else 8 if value.strip().startswith("0") else 10)
    return found
