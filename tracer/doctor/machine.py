"""Everything that this machine allows, tried one by one: each check with what is lost without it and how to get it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from tracer.bpf_source import bpf_directory
from tracer.cachedir import VARIABLE, default_directory, open_cache_directory
from tracer.doctor.rights import rights_checks
from tracer.model.health import Check, Outcome, tried
from tracer.procfs import features as proc

_NEWER = "a newer kernel: {}"
# Name, what is lost without it, how to get it, whether nothing works without it.
_TRACING = (
    ("ring buffer", "changes of the address space cannot be followed", _NEWER.format("5.8"), True),
    ("mappable arrays", "unwind tables cannot be given to the kernel", _NEWER.format("5.5"), True),
    (
        "BPF programs",
        "nothing can be traced",
        "a kernel from 5.10 with CONFIG_BPF_SYSCALL, and bcc from the same distribution",
        True,
    ),
    ("process ids", "the process to trace is not recognised", "run memtrace on the host, not in a container", True),
    ("uprobe by perf event", "no allocation can be traced", "a kernel with CONFIG_UPROBE_EVENTS", True),
    ("uprobe-multi", "attaching takes longer: one call for each probe", _NEWER.format("6.6"), False),
    (
        "uprobe session",
        "uprobe-multi is not trusted, and every call costs a return probe",
        _NEWER.format("6.13"),
        False,
    ),
    ("sys_enter", "mmap, munmap and brk cannot be followed", "a kernel with CONFIG_FTRACE_SYSCALLS", True),
    ("sys_exit", "mmap, munmap and brk cannot be followed", "a kernel with CONFIG_FTRACE_SYSCALLS", True),
    ("sched_process_exec", "a process that runs another program is not recognised", "CONFIG_BPF_EVENTS", True),
    ("task_newtask", "threads and children are not counted", "CONFIG_BPF_EVENTS", True),
    ("sched_process_exit", "memory of threads that ended is not given back", "CONFIG_BPF_EVENTS", True),
    ("kmem:rss_stat", "growth of RSS has no stack where malloc is not probed", _NEWER.format("5.15"), False),
    ("page_fault_user", "growth of RSS has no address, and no stack", _NEWER.format("5.15, x86-64"), False),
    (
        "page_fault_kernel",
        "pages that the kernel touches for the process have no address",
        _NEWER.format("5.15"),
        False,
    ),
)
_READERS = (
    (proc.ROLLUP, "memtrace ps reads all of smaps, and takes several times as long", _NEWER.format("4.14"), False),
    (proc.PAGEMAP, "large processes are read by smaps, which holds up their mmap calls", _NEWER.format("6.7"), False),
    (proc.PROCMAP, "single mappings are looked up in the whole of maps", _NEWER.format("6.11"), False),
    (
        proc.VMA_NAMES,
        "memory named by its program or by glibc cannot be told from other anonymous memory",
        "a kernel from 5.17 with CONFIG_ANON_VMA_NAME (Debian's and Ubuntu's have it)",
        False,
    ),
    (proc.MAP_FILES, "deleted and hidden files cannot be opened: no probes, no names", "run it with sudo", True),
    (proc.MEMORY, "malloc's arenas and stacks cannot be told from other memory", "run it with sudo", False),
)
# Module, what for, how to get it. Of the charts, any one will do.
_LIBRARIES = (
    (
        "capstone",
        "probes stand on a function's first instruction: up to ten times the cost",
        "apt install python3-capstone",
    ),
    ("symbolic", "stacks have no source lines and no inlined functions", "pip install -e '.[lines]'"),
    ("numpy", "large address spaces are read more slowly", "apt install python3-numpy"),
    ("matplotlib", "charts cannot be written as PNG", "apt install python3-matplotlib"),
)


def machine_checks() -> Iterator[Check]:
    """All checks of this machine, cheap ones first; the BPF ones take about a second."""
    rights = list(rights_checks())
    yield from rights
    yield from _bcc_checks()
    may_trace = not any(check.prevents for check in rights)
    yield from _tracing_checks(may_trace)
    outcomes = proc.proc_features()
    yield from (Check("memory", name, outcomes[name], loss, fix, required) for name, loss, fix, required in _READERS)
    yield from _extras()


def can_trace(checks: Sequence[Check]) -> bool:
    """Whether everything is there without which tracing does not work."""
    return not any(check.prevents for check in checks)


def _bcc_checks() -> Iterator[Check]:
    from tracer.probes.features import bcc_version

    yield Check("tracing", "bcc", bcc_version(), "nothing can be traced", "apt install python3-bpfcc", required=True)
    sources = tried(lambda: str(bpf_directory()))
    yield Check("tracing", "BPF sources", sources, "nothing can be traced", "install memtrace again", required=True)


def _tracing_checks(may_trace: bool) -> Iterator[Check]:
    if may_trace:
        from tracer.probes.features import bpf_features

        outcomes: Mapping[str, Outcome] = bpf_features()
    else:
        outcomes = {}
    untried = Outcome("untried", "needs the rights above")
    for name, loss, fix, required in _TRACING:
        yield Check("tracing", name, outcomes.get(name, untried), loss, fix, required)


def _extras() -> Iterator[Check]:
    for module, loss, fix in _LIBRARIES:
        yield Check("extras", module, _library(module), loss, fix)
    servers = os.environ.get("DEBUGINFOD_URLS", "").split()
    yield Check(
        "extras",
        "debuginfod",
        Outcome("ok", " ".join(servers)) if servers else Outcome("missing", "DEBUGINFOD_URLS is not set"),
        "functions of stripped files have no names where no debug package is installed",
        "sudo DEBUGINFOD_URLS=ADDRESS memtrace PID, with the address of your distribution's server",
    )
    yield Check(
        "extras",
        "cache of unwind tables",
        tried(_cache),
        "tables are made anew for each trace, up to two seconds for a large program",
        f"name a directory that only you can write to: {VARIABLE}=DIRECTORY",
    )


def _library(name: str) -> Outcome:
    """Whether a module could be imported; it is not, as some take a second."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    return Outcome("ok") if spec is not None else Outcome("missing", f"not installed for {sys.executable}")


def _cache() -> str:

    directory = default_directory()
    os.close(open_cache_directory(directory, create=os.geteuid() == 0))
    return str(directory)
