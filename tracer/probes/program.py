"""The BPF programs and maps of one session: compiled by bcc against the stub headers, loaded, read and closed."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracer.bpf_source import bpf_directory
from tracer.errors import KernelError
from tracer.probes import kernel, layout
from tracer.probes.bcc_import import import_bcc
from tracer.probes.maps import KernelMap, memory_of, memory_when_full, possible_cpus
from tracer.unwind.access import UnwindSizes

# bcc rewrites map accesses in the main text only, so the files are joined, not included.
_SOURCES = (
    "memtrace.h",
    "unwind.h",
    "common.bpf.c",
    "unwind.bpf.c",
    "stack.bpf.c",
    "pending.bpf.c",
    "sample.bpf.c",
    "alloc.bpf.c",
    "vma.bpf.c",
    "rss.bpf.c",
    "process.bpf.c",
)

_MAPS: dict[str, tuple[int, int]] = {
    "settings": (4, layout.SETTINGS.size),
    "control": (4, layout.CONTROL.size),
    "unwind_processes": (4, 16),
    "stacks": (8, layout.STACK_SIZE),
    "live": (layout.LIVE_KEY.size, layout.LIVE_VALUE.size),
    "totals": (layout.TOTALS_KEY.size, layout.TOTALS_VALUE.size),
    "rss_last": (4, layout.RSS_LAST.size),
    "rss_sums": (layout.RSS_KEY.size, layout.RSS_VALUE.size),
    "fault_runs": (4, layout.FAULT_RUN.size),
}
# Those that are not read here: by the kernel side alone, by bcc, or mapped into memory.
_OTHER_MAPS = ("counters", "live_filter", "threads", "events", "unwind_rows", "unwind_pages", "unwind_mappings")


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
        """Compile for one process; ``unwind`` sizes its unwind tables.

        Raises MissingDependencyError (no bcc) or KernelError (it refuses, and why).
        """
        self._bcc: Any = import_bcc()
        self.has_sessions = kernel.has_uprobe_sessions()
        self.has_call_events = kernel.has_task_registers() and kernel.has_system_call_events()
        self.loaded: dict[str, int] = {}
        directory = bpf_directory()
        header = (directory / "memtrace.h").read_text(encoding="utf-8")
        self.counter_names = layout.parse_counters(header)
        _raise_locked_memory_limit()
        self._bpf: Any = self._compile(directory, target_tgid, limits, unwind)
        self._cpus = possible_cpus()
        self._maps = {name: KernelMap(self._bpf[name].map_fd, *sizes) for name, sizes in _MAPS.items()}
        self._maps["counters"] = KernelMap(self._bpf["counters"].map_fd, 4, 8 * self._cpus)

    def _compile(self, directory: Path, target_tgid: int, limits: Limits, unwind: UnwindSizes) -> Any:
        os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stub")
        flags = [
            f"-DTARGET_TGID={target_tgid}",
            f"-DMAX_LIVE={limits.live}",
            f"-DMAX_STACKS={limits.stacks}",
            f"-DMAX_THREADS={limits.threads}",
            f"-DMAX_RSS_KEYS={limits.rss_keys}",
            f"-DEVENT_PAGES={limits.event_pages}",
            f"-DMAX_CPUS={_possible_cpus()}",
            f"-DFILTER_BITS={limits.filter_bits}",
            *(["-DSESSIONS"] if self.has_sessions else []),
            *(["-DCALL_EVENTS"] if self.has_call_events else []),
            *unwind.flags(),
        ]
        with captured_stderr() as messages:
            try:
                return self._bcc.BPF(text=_joined_source(directory), cflags=flags)
            except Exception as error:  # bcc raises bare Exception
                raise KernelError(
                    f"the kernel or bcc refused memtrace's BPF maps or programs: {_first_reason(messages(), error)}",
                    "it needs kernel 5.10 or newer with CONFIG_BPF_SYSCALL, and CAP_SYS_ADMIN in the initial namespace",
                ) from error

    def load(self, function: str, kind: str, attach_type: int = -1) -> int:
        """Load one program; ``kind`` is ``KPROBE``, ``TRACEPOINT`` or ``RAW_TRACEPOINT``.

        Returns its file descriptor. Raises KernelError with the verifier's reason.
        """
        bpf = self._bcc.BPF
        with captured_stderr() as messages:
            try:
                loaded = self._bpf.load_func(function, getattr(bpf, kind), attach_type=attach_type)
            except Exception as error:
                raise KernelError(
                    f"the kernel refused the BPF program {function}: {_first_reason(messages(), error)}"
                ) from error
        self.loaded[function] = int(loaded.fd)
        return int(loaded.fd)

    def set_tail_call(self, array: str, program_fd: int) -> None:
        """Put a program into slot 0 of a program array."""
        KernelMap(self.map_fd(array), 4, 4).put(bytes(4), program_fd.to_bytes(4, "little"))

    def map_fd(self, name: str) -> int:
        """The file descriptor of a map, by its name in the C source."""
        return int(self._bpf[name].map_fd)

    def map(self, name: str) -> KernelMap:
        """Return a map by its name in the C source."""
        return self._maps[name]

    def on_event(self, handle: Callable[[layout.Event], None]) -> None:
        """Call ``handle`` for each VMA event, from within ``poll``."""

        def receive(_context: object, data: int, size: int) -> int:
            handle(layout.Event._make(layout.EVENT.unpack_from(ctypes.string_at(data, size))))
            return 0

        self._bpf["events"].open_ring_buffer(receive)

    def poll(self, timeout_ms: int) -> None:
        """Wait for events up to the timeout and hand them on."""
        self._bpf.ring_buffer_poll(timeout_ms)

    def consume(self) -> None:
        """Hand on what lies in the ring buffer, without waiting for more."""
        self._bpf.ring_buffer_consume()

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
        return sum(memory_of(self.map_fd(name)) for name in (*_MAPS, *_OTHER_MAPS))

    @property
    def map_memory_limit(self) -> int:
        """Bytes of kernel memory in all maps when all are full."""
        return sum(memory_when_full(self.map_fd(name)) for name in (*_MAPS, *_OTHER_MAPS))

    def close(self) -> None:
        """Unload everything. Safe to call twice."""
        self._bpf.cleanup()


def _joined_source(directory: Path) -> str:
    parts = ["#include <linux/types.h>\n#include <asm/page.h>\n"]
    for name in _SOURCES:
        parts.append(f'#line 1 "{name}"\n')
        parts.append((directory / name).read_text(encoding="utf-8"))
    return "".join(parts)


def _possible_cpus() -> int:
    """How many CPUs the kernel may number (Documentation/admin-guide/cputopology.rst: "0-3", "0,2-7")."""
    text = Path("/sys/devices/system/cpu/possible").read_text(encoding="ascii")
    return int(text.strip().replace(",", "-").split("-")[-1]) + 1


def _raise_locked_memory_limit() -> None:
    # Kernels before 5.11 charge BPF maps to RLIMIT_MEMLOCK; newer ones ignore it.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Bcc's libraries write their reasons straight to file descriptor 2: keep them for one clear line."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)

        def messages() -> str:
            sink.seek(0)
            return sink.read().decode("utf-8", "replace")

        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _first_reason(messages: str, error: Exception) -> str:
    """The line that says why: a compiler error, or the verifier's last word before its statistics."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line or "not permitted" in line.lower():
            return line
    told = [line for line in lines if not line.startswith(("processed ", "bpf: Failed"))]
    return told[-1] if told else str(error)
