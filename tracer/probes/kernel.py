"""The kernel calls that bcc does not offer: links, perf events and tracefs, as plain file descriptors.

Everything attached here is held by a file descriptor alone, so that the kernel takes it away when memtrace ends in
whatever way, SIGKILL included.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# bpf(2) commands (include/uapi/linux/bpf.h).
BPF_MAP_CREATE = 0
BPF_MAP_LOOKUP_ELEM = 1
BPF_MAP_UPDATE_ELEM = 2
BPF_MAP_DELETE_ELEM = 3
BPF_PROG_LOAD = 5
BPF_OBJ_GET_INFO_BY_FD = 15
BPF_RAW_TRACEPOINT_OPEN = 17
BPF_MAP_LOOKUP_BATCH = 24
BPF_MAP_LOOKUP_AND_DELETE_BATCH = 25
BPF_LINK_CREATE = 28
BPF_ENABLE_STATS = 32

BPF_PROG_TYPE_KPROBE = 2
BPF_PROG_TYPE_TRACEPOINT = 5
BPF_PROG_TYPE_RAW_TRACEPOINT = 17

BPF_TRACE_UPROBE_MULTI = 48
BPF_TRACE_UPROBE_SESSION = 57

_LOAD_ATTEMPTS = 5
_LONGEST_NAME = 15  # BPF_OBJ_NAME_LEN with its end

_EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)
# call bpf_get_current_task_btf; r1 = r0; call bpf_task_pt_regs; r0 = 0; exit
_TASK_REGISTERS = (
    struct.pack("<BBhi", 0x85, 0, 0, 158)
    + struct.pack("<BBhi", 0xBF, 0x01, 0, 0)
    + struct.pack("<BBhi", 0x85, 0, 0, 175)
    + struct.pack("<BBhi", 0xB7, 0, 0, 0)
    + _EXIT
)

_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400
_PERF_EVENT_IOC_SET_BPF = 0x40042408
# PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY: an event that counts nothing.
_DUMMY_EVENT = struct.pack("<IIQQQQQIIQQ", 1, 72, 9, 0, 0, 0, 0, 0, 0, 0, 0)
_PERF_ATTR_SIZE = 72  # PERF_ATTR_SIZE_VER1: up to config2, which holds a uprobe's offset

# bpf, perf_event_open, and the mount calls that have one number everywhere.
_SYSCALLS = {"x86_64": (321, 298), "aarch64": (280, 241)}
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSCONFIG_CMD_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _numbers() -> tuple[int, int]:
    try:
        return _SYSCALLS[platform.machine()]
    except KeyError:
        raise OSError(errno.ENOSYS, f"memtrace does not know the system calls of {platform.machine()}") from None


def bpf(command: int, attributes: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> int:
    """Call bpf(2) with an attribute block; a ctypes buffer is written back. Raises OSError."""
    block = attributes if isinstance(attributes, ctypes.Array) else ctypes.create_string_buffer(bytes(attributes), 128)
    return _syscall(_numbers()[0], ctypes.c_int(command), ctypes.byref(block), ctypes.c_uint(len(block)))


def load_program(answer: int, attach_type: int = 0, kind: int = BPF_PROG_TYPE_KPROBE) -> int:
    """Load a program that does nothing but return ``answer``; returns its file descriptor. Raises OSError."""
    instructions = struct.pack("<BBhi", 0xB7, 0, 0, answer) + _EXIT  # r0 = answer; exit
    return load_instructions(instructions, attach_type, kind)


def load_instructions(
    instructions: bytes,
    attach_type: int = 0,
    kind: int = BPF_PROG_TYPE_KPROBE,
    name: str = "",
    log: ctypes.Array[ctypes.c_char] | None = None,
) -> int:
    """Load a program given as instructions; returns its file descriptor. Raises OSError.

    With ``log``, the verifier writes its reasons there, which takes its time.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    where = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
    attributes = struct.pack(
        "<IIQQIIQII16sII",
        kind,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        *where,
        0,
        0,
        name.encode()[:_LONGEST_NAME],
        0,
        attach_type,
    )
    for _ in range(_LOAD_ATTEMPTS):
        # The verifier gives up where a signal is pending (kernel/bpf/verifier.c); the signal's handler has run by then.
        with contextlib.suppress(BlockingIOError):
            return bpf(BPF_PROG_LOAD, attributes)
    return bpf(BPF_PROG_LOAD, attributes)


def create_map(kind: int, key_size: int, value_size: int, entries: int, flags: int, name: str = "") -> int:
    """Make a map; returns its file descriptor. Raises OSError."""
    shape = struct.pack("<5I", kind, key_size, value_size, entries, flags)
    return bpf(BPF_MAP_CREATE, shape + bytes(8) + name.encode()[:_LONGEST_NAME].ljust(16, b"\0"))


def map_shape(fd: int) -> tuple[int, int, int, int, int]:
    """Type, key size, value size, entries and flags of a map (struct bpf_map_info). Raises OSError."""
    info = ctypes.create_string_buffer(88)
    bpf(BPF_OBJ_GET_INFO_BY_FD, struct.pack("<IIQ", fd, len(info), ctypes.addressof(info)))
    kind, _, key_size, value_size, entries, flags = struct.unpack_from("<6I", info.raw)
    return kind, key_size, value_size, entries, flags


def has_uprobe_sessions() -> bool:
    """Whether the kernel has session links (6.13), and with them uprobe-multi links that can be trusted.

    Those exist from kernel 6.6, but filtered by thread instead of by process until 6.10 (commit 46ba0e49b642).
    """
    return _loads(lambda: load_program(0, BPF_TRACE_UPROBE_SESSION))


def has_task_registers() -> bool:
    """Whether a tracepoint's program can read the user's registers: helpers 158 and 175, Linux 5.15 with BTF."""
    return _loads(lambda: load_instructions(_TASK_REGISTERS, kind=BPF_PROG_TYPE_TRACEPOINT))


def has_system_call_events() -> bool:
    """Whether the events of single system calls can be had: CONFIG_FTRACE_SYSCALLS, tracefs, and perf events at all."""
    try:
        os.close(_perf_event(_DUMMY_EVENT, 0, -1))
        tracefs = open_tracefs()
    except OSError:
        return False
    try:
        return bool(read_at(tracefs, "events/syscalls/sys_enter_mmap/id"))
    except OSError:
        return False
    finally:
        os.close(tracefs)


def _loads(load: Callable[[], int]) -> bool:
    try:
        os.close(load())
    except OSError:
        return False
    return True


def enable_run_times() -> int:
    """Have the kernel time all BPF programs as long as the returned descriptor is open (5.8). Raises OSError."""
    return bpf(BPF_ENABLE_STATS, struct.pack("<I", 0))


def open_raw_tracepoint(name: str, program_fd: int) -> int:
    """Attach a program to a raw tracepoint; returns the file descriptor that holds it. Raises OSError."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf(BPF_RAW_TRACEPOINT_OPEN, struct.pack("<QI", ctypes.addressof(text), program_fd))


def link_uprobes(program_fd: int, path: str, offsets: Sequence[int], pid: int, cookies: Sequence[int] = ()) -> int:
    """Attach a program to many file offsets of one file in one process at once (kernel 6.6).

    With ``cookies``, one for each offset, it is a session: the program runs at the functions' entry and return
    (kernel 6.13). Returns the link's file descriptor. Raises OSError.
    """
    name = ctypes.create_string_buffer(os.fsencode(path))
    places = (ctypes.c_ulong * len(offsets))(*offsets)
    values = (ctypes.c_uint64 * len(cookies))(*cookies)
    attributes = struct.pack(
        "<IIIIQQQQIII",
        program_fd,
        0,
        BPF_TRACE_UPROBE_SESSION if cookies else BPF_TRACE_UPROBE_MULTI,
        0,
        ctypes.addressof(name),
        ctypes.addressof(places),
        0,
        ctypes.addressof(values) if cookies else 0,
        len(offsets),
        0,
        pid,
    )
    return bpf(BPF_LINK_CREATE, attributes)


def open_perf_uprobe(program_fd: int, path: str, offset: int, pid: int, *, on_return: bool) -> int:
    """Attach a program to one file offset by a perf event (every kernel from 4.17). Raises OSError."""
    device = Path("/sys/bus/event_source/devices/uprobe")
    kind = int((device / "type").read_text())
    name = ctypes.create_string_buffer(os.fsencode(path))
    attributes = struct.pack(
        "<IIQQQQQIIQQ", kind, _PERF_ATTR_SIZE, int(on_return), 1, 0, 0, 0, 0, 0, ctypes.addressof(name), offset
    )
    return _open_perf_event(attributes, pid, -1, program_fd)


def open_tracepoint(program_fd: int, event_id: int) -> int:
    """Attach a program to a trace event by its id; it runs for every process on every CPU. Raises OSError."""
    attributes = struct.pack("<IIQQQQQIIQQ", _PERF_TYPE_TRACEPOINT, _PERF_ATTR_SIZE, event_id, 1, 0, 0, 0, 0, 0, 0, 0)
    return _open_perf_event(attributes, -1, 0, program_fd)


def _perf_event(attributes: bytes, pid: int, cpu: int) -> int:
    block = ctypes.create_string_buffer(attributes, _PERF_ATTR_SIZE)
    return _syscall(
        _numbers()[1],
        ctypes.byref(block),
        ctypes.c_int(pid),
        ctypes.c_int(cpu),
        ctypes.c_int(-1),
        ctypes.c_ulong(_PERF_FLAG_FD_CLOEXEC),
    )


def _open_perf_event(attributes: bytes, pid: int, cpu: int, program_fd: int) -> int:
    fd = _perf_event(attributes, pid, cpu)
    try:
        fcntl.ioctl(fd, _PERF_EVENT_IOC_SET_BPF, program_fd)
        fcntl.ioctl(fd, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd


def close_all(descriptors: list[int]) -> None:
    """Close and forget all descriptors, at the same time: the kernel waits for a grace period at each detach."""
    with ThreadPoolExecutor(max_workers=max(1, len(descriptors))) as pool:
        # close(2) gives the descriptor up even where it reports an error, so there is nothing to try again.
        list(pool.map(_close_quietly, descriptors))
    descriptors.clear()


def _close_quietly(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)


def open_tracefs() -> int:
    """Return a directory file descriptor of tracefs, mounted or not. Raises OSError.

    Where nobody has mounted it, it is mounted detached (fsopen(2), kernel 5.2): visible through this descriptor
    alone, so that memtrace leaves no mount behind.
    """
    for place in ("/sys/kernel/tracing", "/sys/kernel/debug/tracing"):
        if os.path.isdir(f"{place}/events"):
            return os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    context = _syscall(_FSOPEN, ctypes.c_char_p(b"tracefs"), ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        _syscall(_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_FSCONFIG_CMD_CREATE), None, None, ctypes.c_int(0))
        return _syscall(_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(0))
    finally:
        os.close(context)


def read_at(directory_fd: int, path: str, limit: int = 1 << 16) -> bytes:
    """Read a small file below a directory file descriptor. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory_fd)
    try:
        return os.read(fd, limit)
    finally:
        os.close(fd)
