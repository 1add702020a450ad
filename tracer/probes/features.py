"""Tries what this kernel and bcc allow: each feature by using it, on this very process, and never by version numbers.

Nothing is attached to another process, but the tracepoints are the kernel's own and run, for milliseconds, wherever
they are hit; their programs leave at once unless this process hits them.
"""

from __future__ import annotations

import ctypes
import os
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tracer.bpf_source import bpf_directory
from tracer.errors import KernelError, MemtraceError
from tracer.model.health import Outcome, tried
from tracer.probes import kernel
from tracer.probes.bcc_import import import_bcc
from tracer.probes.bytecode import captured_stderr
from tracer.probes.maps import KernelMap
from tracer.probes.program import Limits, Program
from tracer.probes.tracepoints import (
    FAULT_TRACEPOINTS,
    RAW_CALLS,
    RAW_TRACEPOINTS,
    call_event_ids,
    rss_stat_event,
    rss_stat_layout_matches,
)
from tracer.procfs.maps import read_maps
from tracer.unwind.access import UnwindSizes

# bpf(2): commands and map types of include/uapi/linux/bpf.h.
_BPF_MAP_CREATE = 0
_BPF_MAP_TYPE_ARRAY, _BPF_MAP_TYPE_RINGBUF = 2, 27
_BPF_F_MMAPABLE = 1 << 10
_SMALL = Limits(live=1024, stacks=64, threads=64, rss_keys=64, event_pages=8)
_CALLS = 3
_SESSION = kernel.BPF_TRACE_UPROBE_SESSION

COMPILE, RING_BUFFER, MMAPABLE = "BPF programs", "ring buffer", "mappable arrays"
PERF_UPROBE, UPROBE_MULTI, UPROBE_SESSION = "uprobe by perf event", "uprobe-multi", "uprobe session"
_UPROBES = (PERF_UPROBE, UPROBE_MULTI, UPROBE_SESSION)
PROCESS_IDS = "process ids"
RSS_STAT = "kmem:rss_stat"


def bcc_version() -> Outcome:
    """Whether bcc can be imported, and which one it is."""

    def attempt() -> str:
        module = import_bcc()
        return f"{getattr(module, '__version__', 'of unknown version')} in {os.path.dirname(module.__file__ or '?')}"

    return tried(attempt)


def bpf_features() -> dict[str, Outcome]:
    """What tracing rests on, by name, each tried; needs the rights to trace.

    Where the programs cannot be compiled and loaded, what needs them is ``untried``.
    """
    found = {
        RING_BUFFER: tried(lambda: _make_map(_BPF_MAP_TYPE_RINGBUF, 0, 0, resource.getpagesize(), 0)),
        MMAPABLE: tried(lambda: _make_map(_BPF_MAP_TYPE_ARRAY, 4, 8, 1, _BPF_F_MMAPABLE)),
    }
    began = time.monotonic()
    program: Program | None = None

    def compile_all() -> str:
        nonlocal program
        program = Program(os.getpid(), _SMALL, UnwindSizes(rows=1, pages=1, mappings=1, processes=1))
        return f"compiled against memtrace's own headers, ready in {time.monotonic() - began:.2f} s"

    found[COMPILE] = tried(compile_all)
    if program is None:
        wanted = (RSS_STAT, *FAULT_TRACEPOINTS, *RAW_CALLS, *RAW_TRACEPOINTS, *_UPROBES, PROCESS_IDS)
        return found | dict.fromkeys(wanted, Outcome("untried", "needs compiled BPF programs"))
    try:
        return found | _tracepoints(program) | _uprobes()
    finally:
        program.close()


def _make_map(kind: int, key_size: int, value_size: int, entries: int, flags: int) -> str:
    os.close(kernel.bpf(_BPF_MAP_CREATE, struct.pack("<5I", kind, key_size, value_size, entries, flags)))
    return ""


def _tracepoints(program: Program) -> dict[str, Outcome]:
    found = {RSS_STAT: tried(lambda: _attach_rss_stat(program))}
    functions = {**dict.fromkeys(FAULT_TRACEPOINTS, "on_page_fault"), **RAW_TRACEPOINTS}
    if not program.has_call_events:
        functions |= RAW_CALLS
    for name, function in functions.items():
        found[name] = tried(_raw_attempt(program, name, function))
    if program.has_call_events:
        found |= dict.fromkeys(RAW_CALLS, tried(lambda: _attach_call_events(program)))
    return found


def _attach_call_events(program: Program) -> str:
    """Where single system calls have events, those are used, so that all other calls cost nothing."""
    tracefs = kernel.open_tracefs()
    try:
        ids = call_event_ids(tracefs, "mmap")
    finally:
        os.close(tracefs)
    for function, event_id in zip(("on_memory_call", "on_memory_call_end"), ids, strict=True):
        os.close(kernel.open_tracepoint(program.load(function, "TRACEPOINT"), event_id))
    return "by the events of single system calls"


def _raw_attempt(program: Program, name: str, function: str) -> Callable[[], str]:
    def attempt() -> str:
        os.close(kernel.open_raw_tracepoint(name, program.load(function, "RAW_TRACEPOINT")))
        return ""

    return attempt


def _attach_rss_stat(program: Program) -> str:
    described, event_id = rss_stat_event()
    if not rss_stat_layout_matches(described):
        raise KernelError("its fields are laid out in a way that memtrace does not know")
    os.close(kernel.open_tracepoint(program.load("on_rss_stat", "TRACEPOINT"), event_id))
    return ""


def _uprobes() -> dict[str, Outcome]:
    """The three kinds of uprobe, put on a function of this process's libc, which is then called."""
    try:
        with _hit_counter() as counter:
            found = {name: tried(_uprobe_attempt(counter, name)) for name in _UPROBES}
            return found | {PROCESS_IDS: tried(counter.check_process_id)}
    except MemtraceError as error:
        return dict.fromkeys((*_UPROBES, PROCESS_IDS), Outcome("missing", error.cause))


def _uprobe_attempt(counter: _HitCounter, kind: str) -> Callable[[], str]:
    return lambda: counter.attempt(kind)


class _HitCounter:
    """The program of bpf/features.bpf.c, and a place in this process to probe."""

    def __init__(self, bpf: Any, kprobe: int) -> None:
        self._bpf = bpf
        self._kprobe = kprobe
        self._seen = KernelMap(bpf[b"seen"].map_fd, 4, 8)
        self._function = ctypes.CDLL(None).labs
        self._path, self._offset = _place_of(ctypes.cast(self._function, ctypes.c_void_p).value or 0)

    def attempt(self, kind: str) -> str:
        """Attach by that kind of uprobe, call the function, and see whether the program ran; raises KernelError."""
        program_fd = self._load({UPROBE_MULTI: kernel.BPF_TRACE_UPROBE_MULTI, UPROBE_SESSION: _SESSION}.get(kind, -1))
        try:
            descriptor = self._attach(kind, program_fd)
        finally:
            os.close(program_fd)
        try:
            before = self._read(0)
            for _ in range(_CALLS):
                self._function(-1)
            hits = self._read(0) - before
        finally:
            os.close(descriptor)
        # A session's program runs at the entry and at the return.
        expected = _CALLS * (2 if kind == UPROBE_SESSION else 1)
        if hits != expected:
            raise KernelError(f"it can be attached, but saw {hits} of {expected} hits")
        return ""

    def check_process_id(self) -> str:
        """Whether BPF programs know this process by the number that it knows itself by; raises KernelError."""
        number = self._read(1)
        if not number:
            raise KernelError("no uprobe ran that could tell")
        if number != os.getpid():
            raise KernelError(f"this process is {os.getpid()} here, and {number} to the kernel")
        return "those of the kernel"

    def _attach(self, kind: str, program_fd: int) -> int:
        if kind == PERF_UPROBE:
            return kernel.open_perf_uprobe(program_fd, self._path, self._offset, os.getpid(), on_return=False)
        attach_type = kernel.BPF_TRACE_UPROBE_MULTI if kind == UPROBE_MULTI else _SESSION
        path = ctypes.create_string_buffer(os.fsencode(self._path))
        place = (ctypes.c_ulong * 1)(self._offset)
        # struct { prog_fd, target_fd, attach_type, flags; uprobe_multi: path, offsets, ref_ctr_offsets, cookies, cnt,
        # flags, pid } of union bpf_attr.
        link = (ctypes.addressof(path), ctypes.addressof(place), 0, 0, 1, 0, os.getpid())
        return kernel.bpf(kernel.BPF_LINK_CREATE, struct.pack("<4I4Q3I", program_fd, 0, attach_type, 0, *link))

    def _load(self, attach_type: int) -> int:
        try:
            loaded = self._bpf.load_func(b"on_hit", self._kprobe, attach_type=attach_type)
        except Exception as error:  # bcc raises bare Exception
            raise KernelError("the kernel refuses such a program") from error
        # bcc would take the same function for the next kind, too: the descriptor is ours from here on.
        del self._bpf.funcs[b"on_hit"]
        return int(loaded.fd)

    def _read(self, index: int) -> int:
        return int.from_bytes(self._seen.get(index.to_bytes(4, "little")) or b"", "little")


@contextmanager
def _hit_counter() -> Iterator[_HitCounter]:
    bcc: Any = import_bcc()
    directory = bpf_directory()
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stub")
    source = "#include <linux/types.h>\n" + (directory / "features.bpf.c").read_text(encoding="utf-8")
    with captured_stderr():
        try:
            bpf = bcc.BPF(text=source.encode())
        except Exception as error:  # bcc raises bare Exception
            raise KernelError("bcc refused the program that tries uprobes") from error
        try:
            yield _HitCounter(bpf, bcc.BPF.KPROBE)
        finally:
            bpf.cleanup()


def _place_of(address: int) -> tuple[str, int]:
    """The file and the offset in it of a function of this process, by the mapping that it is in."""
    for vma in read_maps(os.getpid()):
        if vma.start <= address < vma.end and vma.is_file:
            return f"/proc/self/map_files/{vma.start:x}-{vma.end:x}", vma.offset + address - vma.start
    raise KernelError("this process has no file behind its C library")
