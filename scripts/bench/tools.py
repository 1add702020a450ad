"""The tracers that scripts.bench.overhead compares, each behind one interface: start on a process, be told to end."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from tests.bpf.harness import Json, Memtrace
from tracer.heap.allocators import AllocShape
from tracer.heap.discovery import Discovery
from tracer.probes import kernel
from tracer.procfs.maps import read_maps

ROOT = Path(__file__).resolve().parents[2]
MEMTRACE = {
    "full": ("--sample-bytes", "1", "--max-overhead", "none"),
    "sampled": ("--sample-bytes", "16384", "--max-overhead", "none"),
    "budget": ("--sample-bytes", "16384", "--max-overhead", "5"),
}
TOOLS = ("untraced", *MEMTRACE, "floor", "memleak", "heaptrack", "memray")


class Tool:
    """What traces a process; ``report`` is memtrace's, after the end."""

    report: Json | None = None

    def end(self) -> None:
        """Stop tracing."""


class RunningMemtrace(Tool):
    """memtrace with the options of a mode."""

    def __init__(self, pid: int, mode: str) -> None:
        self._memtrace = Memtrace(pid, *MEMTRACE[mode])
        self.pid = self._memtrace.pid

    def end(self) -> None:
        """Stop it, and keep its report."""
        self.report = self._memtrace.stop().required_report()


class Floor(Tool):
    """Empty programs on malloc and free alone, where memtrace would probe them, without return probes."""

    def __init__(self, pid: int) -> None:
        program = kernel.load_program(0, kernel.BPF_TRACE_UPROBE_MULTI)
        self._links = []
        for image in Discovery(pid).look(read_maps(pid)):
            sites = image.allocator.sites if image.allocator else ()
            wanted = (AllocShape.MALLOC, AllocShape.FREE)
            offsets = [site.file_offset for site in sites if site.kind == "entry" and site.shape in wanted]
            if offsets:
                self._links.append(kernel.link_uprobes(program, image.map_file, offsets, pid))
        os.close(program)

    def end(self) -> None:
        """Detach."""
        kernel.close_all(self._links)


class Memleak(Tool):
    """bcc's memleak, with our stub headers, as it needs some."""

    def __init__(self, pid: int, directory: Path, library: str) -> None:
        self._process = subprocess.Popen(
            ["memleak-bpfcc", "-p", str(pid), "-O", library, "3600"],
            env={**os.environ, "BCC_KERNEL_SOURCE": str(stub_headers(directory))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def end(self) -> None:
        """Stop it, and wait until its probes are gone."""
        self._process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(20)
        self._process.kill()
        self._process.wait()


def stub_headers(directory: Path) -> Path:
    """Our stub headers, and the one that memleak includes beside them."""
    place = directory / "stub"
    if not place.exists():
        shutil.copytree(ROOT / "bpf" / "stub", place)
        (place / "include/uapi/linux/ptrace.h").write_text(
            "#include <linux/types.h>\ntypedef unsigned long uint64_t;\n", encoding="ascii"
        )
    return place


@contextlib.contextmanager
def traced(tool: str, pid: int, directory: Path, library: str) -> Iterator[Tool]:
    """The tool on a process; ``library`` is the file with the allocator."""
    running: Tool
    if tool in MEMTRACE:
        running = RunningMemtrace(pid, tool)
    elif tool == "floor":
        running = Floor(pid)
    elif tool == "memleak":
        running = Memleak(pid, directory, library)
    else:
        running = Tool()
    try:
        yield running
    finally:
        running.end()


def is_installed(tool: str) -> bool:
    """Whether a tool can be compared here."""
    if tool == "memray":
        return find_spec(tool) is not None
    needed = {"memleak": "memleak-bpfcc", "heaptrack": "heaptrack"}
    return tool not in needed or shutil.which(needed[tool]) is not None


def environment(tool: str) -> dict[str, str]:
    """What a tool that is loaded into the program needs in its environment; heaptrack's trace is thrown away."""
    libraries = sorted(Path("/usr/lib").rglob("libheaptrack_preload.so")) if tool == "heaptrack" else []
    return {"LD_PRELOAD": str(libraries[0]), "DUMP_HEAPTRACK_OUTPUT": "/dev/null"} if libraries else {}


def launched(tool: str, argv: Sequence[str], directory: Path) -> list[str]:
    """The command that runs a workload: memray starts the Python program itself, and writes a capture."""
    if tool != "memray":
        return list(argv)
    return [sys.executable, "-m", "memray", "run", "-q", "-f", "-o", str(directory / "memray.bin"), *argv[1:]]


def python() -> list[str]:
    """The interpreter for Python workloads: the system's, with its own malloc traffic."""
    return [shutil.which("python3", path="/usr/bin") or sys.executable]
