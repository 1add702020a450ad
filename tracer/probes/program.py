"""The BPF programs and maps of one session: made, loaded, read and closed."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracer.bpf_source import bpf_directory
from tracer.errors import KernelError
from tracer.probes import kernel, layout
from tracer.probes.bytecode import first_reason, load_bytecode
from tracer.probes.maps import KernelMap, memory_of, memory_when_full, possible_cpus
from tracer.probes.ringbuf import RingBuffer
from tracer.unwind.access import UnwindSizes

_LOG_SIZE = 1 << 20
_PER_CPU = {5, 6, 10}  # BPF_MAP_TYPE_PERCPU_HASH, _PERCPU_ARRAY, _LRU_PERCPU_HASH
_KINDS = {
    "KPROBE": kernel.BPF_PROG_TYPE_KPROBE,
    "TRACEPOINT": kernel.BPF_PROG_TYPE_TRACEPOINT,
    "RAW_TRACEPOINT": kernel.BPF_PROG_TYPE_RAW_TRACEPOINT,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the maps, in entries; the hash maps take memory only as they fill."""

    live: int = 1 << 20
    stacks: int = 1 << 14
    threads: int = 1 << 14
    rss_keys: int = 1 << 16
    event_pages: int = 256
    filter_bits: int = 17


class Program:
    """The loaded programs; ``close`` (or the process's end) takes everything back.

    ``has_sessions``: uprobes by session links; ``has_call_events``: events of single system calls.
    """

    def __init__(self, target_tgid: int, limits: Limits, unwind: UnwindSizes) -> None:
        """Make the maps for one process; ``unwind`` sizes its unwind tables.

        Raises MissingDependencyError (no bcc) or KernelError (it refuses, and why).
        """
        self.has_sessions = kernel.has_uprobe_sessions()
        self.has_call_events = kernel.has_task_registers() and kernel.has_system_call_events()
        self.loaded: dict[str, int] = {}
        header = (bpf_directory() / "memtrace.h").read_text(encoding="utf-8")
        self.counter_names = layout.parse_counters(header)
        _raise_locked_memory_limit()
        self._cpus = possible_cpus()
        self._bytecode = load_bytecode(
            [
                f"-DFILTER_BITS={limits.filter_bits}",
                *(["-DSESSIONS"] if self.has_sessions else []),
                *(["-DCALL_EVENTS"] if self.has_call_events else []),
            ]
        )
        self._fds: dict[str, int] = {}
        self._events: RingBuffer | None = None
        self._event_bytes = limits.event_pages * mmap.PAGESIZE
        try:
            self._make_maps(_entries(limits, unwind, self._event_bytes))
        except OSError as error:
            self.close()
            raise KernelError(
                f"the kernel refused memtrace's BPF maps: {error.strerror}",
                "it needs kernel 5.10 or newer with CONFIG_BPF_SYSCALL, and CAP_SYS_ADMIN in the initial namespace",
            ) from error
        self._maps = {name: self._kernel_map(name) for name in self._fds}
        self.map("target").put(bytes(4), target_tgid.to_bytes(4, "little"))

    def _make_maps(self, entries: Mapping[str, int]) -> None:
        for name, shape in self._bytecode.maps.items():
            count = entries.get(name, shape.entries)
            self._fds[name] = kernel.create_map(
                shape.kind, shape.key_size, shape.value_size, count, shape.flags, name=name
            )

    def _kernel_map(self, name: str) -> KernelMap:
        shape = self._bytecode.maps[name]
        copies = self._cpus if shape.kind in _PER_CPU else 1
        return KernelMap(self._fds[name], shape.key_size, shape.value_size * copies)

    def load(self, function: str, kind: str, attach_type: int = 0) -> int:
        """Load one program, once; ``kind`` is ``KPROBE``, ``TRACEPOINT`` or ``RAW_TRACEPOINT``.

        Returns its file descriptor. Raises KernelError with the verifier's reason.
        """
        if function not in self.loaded:
            instructions = self._bytecode.linked(function, self._fds)
            try:
                fd = kernel.load_instructions(instructions, attach_type, _KINDS[kind], function)
            except OSError as error:
                reason = _verifiers_reason(instructions, attach_type, _KINDS[kind], error)
                raise KernelError(f"the kernel refused the BPF program {function}: {reason}") from error
            self.loaded[function] = fd
        return self.loaded[function]

    def set_tail_call(self, array: str, program_fd: int) -> None:
        """Put a program into slot 0 of a program array."""
        KernelMap(self.map_fd(array), 4, 4).put(bytes(4), program_fd.to_bytes(4, "little"))

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map, by its name in the C source."""
        return self._fds[name]

    def map(self, name: str) -> KernelMap:
        """Return a map by its name in the C source."""
        return self._maps[name]

    def on_event(self, handle: Callable[[layout.Event], None]) -> None:
        """Call ``handle`` for each VMA event, from within ``poll``."""

        def receive(record: bytes) -> None:
            handle(layout.Event._make(layout.EVENT.unpack_from(record)))

        self._events = RingBuffer(self.map_fd("events"), self._event_bytes, receive)

    def poll(self, timeout_ms: int) -> None:
        """Wait for events up to the timeout and hand them on."""
        if self._events is not None:
            self._events.poll(timeout_ms)

    def consume(self) -> None:
        """Hand on what lies in the ring buffer, without waiting for more."""
        if self._events is not None:
            self._events.consume()

    def control(self) -> layout.Control:
        """Return the control block."""
        value = self.map("control").get(bytes(4))
        return layout.Control._make(layout.CONTROL.unpack(value or bytes(layout.CONTROL.size)))

    def set_settings(self, settings: layout.Settings) -> None:
        """Tell the kernel side whether to trace, and what it needs for that."""
        self.map("settings").put(bytes(4), layout.SETTINGS.pack(*settings))

    def seed_control(self, control: layout.Control) -> None:
        """Write the control block; only while tracing is off, as the kernel side writes it otherwise."""
        self.map("control").put(bytes(4), layout.CONTROL.pack(*control))

    def counters(self) -> dict[str, int]:
        """Return all counters by name."""
        values: list[int] = []
        for _keys, chunk in self.map("counters").read():
            per_cpu = array("Q", chunk)
            values.extend(sum(per_cpu[i : i + self._cpus]) for i in range(0, len(per_cpu), self._cpus))
        return {counter.name: value for counter, value in zip(self.counter_names, values, strict=False)}

    @property
    def map_memory(self) -> int:
        """Bytes of kernel memory in all maps."""
        return sum(memory_of(fd) for fd in self._fds.values())

    @property
    def map_memory_limit(self) -> int:
        """Bytes of kernel memory in all maps when all are full."""
        return sum(memory_when_full(fd) for fd in self._fds.values())

    def close(self) -> None:
        """Unload everything. Safe to call twice."""
        if self._events is not None:
            self._events.close()
        for held in (self.loaded, self._fds):
            while held:
                os.close(held.popitem()[1])


def _entries(limits: Limits, unwind: UnwindSizes, event_bytes: int) -> dict[str, int]:
    """How many entries each map gets whose size is not in the source."""
    return {
        "live": limits.live,
        "totals": limits.stacks,
        "stacks": limits.stacks,
        "threads": limits.threads,
        "rss_sums": limits.rss_keys,
        "fault_runs": _possible_cpus(),
        "events": event_bytes,
        "unwind_rows": unwind.rows,
        "unwind_pages": unwind.pages,
        "unwind_mappings": unwind.mappings,
        "unwind_processes": unwind.processes,
    }


def _verifiers_reason(instructions: bytes, attach_type: int, kind: int, error: OSError) -> str:
    """Why a program that was refused is refused."""
    log = ctypes.create_string_buffer(_LOG_SIZE)
    with contextlib.suppress(OSError):
        os.close(kernel.load_instructions(instructions, attach_type, kind, log=log))
    return first_reason(log.value.decode("utf-8", "replace"), OSError(error.strerror))


def _possible_cpus() -> int:
    """How many CPUs the kernel may number (Documentation/admin-guide/cputopology.rst: "0-3", "0,2-7")."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(text.strip().replace(",", "-").split("-")[-1]) + 1


def _raise_locked_memory_limit() -> None:
    # Kernels before 5.11 charge BPF maps to RLIMIT_MEMLOCK; newer ones ignore it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
