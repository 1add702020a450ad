"""What the tests ask of the kernel by bpf(2) itself, without bcc: may we, and which objects are there."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SYSCALL = {"x86_64": 321, "aarch64": 280}.get(os.uname().machine)

_PROG_LOAD, _PROG_GET_NEXT_ID, _MAP_GET_NEXT_ID, _LINK_GET_NEXT_ID = 5, 11, 12, 31
_NEXT_ID = {"program": _PROG_GET_NEXT_ID, "map": _MAP_GET_NEXT_ID, "link": _LINK_GET_NEXT_ID}
_GET_FD_BY_ID = {"program": 13, "map": 14, "link": 30}
_OBJ_GET_INFO_BY_FD = 15
_NAME_OFFSET = {"program": 64, "map": 24}  # in struct bpf_prog_info and bpf_map_info
_PROG_TYPE_KPROBE = 2

# What /proc/PID/fdinfo calls the ids of the objects that a descriptor holds.
_FDINFO = {b"prog_id": "program", b"map_id": "map", b"link_id": "link"}


class BpfObject(NamedTuple):
    """A program, map or link that the kernel holds."""

    kind: str
    id: int


def bpf_refusal() -> str | None:
    """Why this process cannot load a BPF program for a uprobe, or None when it can (tried with the smallest one)."""
    if _SYSCALL is None:
        return f"bpf(2) of {os.uname().machine} is not known to the tests"
    code = ctypes.create_string_buffer(struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0), 16)
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "<IIQQ", _PROG_TYPE_KPROBE, 2, ctypes.addressof(code), ctypes.addressof(license_text)
    ).ljust(48, b"\0")
    try:
        fd, _ = _bpf(_PROG_LOAD, attributes)
    except OSError as error:
        return f"the kernel refuses to load a BPF program: {error.strerror}"
    os.close(fd)
    return None


def bpf_objects() -> set[BpfObject]:
    """All programs, maps and links of this kernel; links only where it can enumerate them (5.8)."""
    return {BpfObject(kind, number) for kind in _NEXT_ID for number in _ids(kind)}


def held_objects(pid: int) -> set[BpfObject]:
    """The objects that a process holds by file descriptor."""
    held: set[BpfObject] = set()
    try:
        entries = os.listdir(f"/proc/{pid}/fdinfo")
    except OSError:
        return held
    for entry in entries:
        try:
            lines = Path(f"/proc/{pid}/fdinfo/{entry}").read_bytes().splitlines()
        except OSError:
            continue  # closed meanwhile
        fields = (line.partition(b":") for line in lines)
        held |= {BpfObject(_FDINFO[key], int(value)) for key, _, value in fields if key in _FDINFO}
    return held


def object_name(item: BpfObject) -> str:
    """The name that an object was given, "" if it has none or is gone."""
    if item.kind not in _NAME_OFFSET:
        return ""
    try:
        fd, _ = _bpf(_GET_FD_BY_ID[item.kind], struct.pack("<III", item.id, 0, 0))
    except OSError:
        return ""
    try:
        info = ctypes.create_string_buffer(256)
        _bpf(_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    except OSError:
        return ""
    finally:
        os.close(fd)
    offset = _NAME_OFFSET[item.kind]
    return info.raw[offset : offset + 16].split(b"\0", 1)[0].decode(errors="replace")


def _ids(kind: str) -> Iterator[int]:
    last = 0
    while True:
        try:
            _, answer = _bpf(_NEXT_ID[kind], struct.pack("<III", last, 0, 0))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EINVAL):  # no more; no such command in this kernel
                return
            raise
        (last,) = struct.unpack_from("<I", answer, 4)
        yield last


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    # Returns the call's result and the attributes, into which some commands write.
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    result = libc.syscall(_SYSCALL, command, buffer, len(attributes))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result, buffer.raw
