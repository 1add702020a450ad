"""Who we are on this machine, and what its administrator has forbidden: capabilities, namespaces, lockdown, sysctls."""

from __future__ import annotations

import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import KernelError
from tracer.model.health import Check, Outcome, tried
from tracer.units import human_bytes

_SYS_PTRACE, _SYS_ADMIN = 19, 21
# include/linux/proc_ns.h: the inode numbers of the initial namespaces.
_INITIAL_USER, _INITIAL_PID = 0xEFFFFFFD, 0xEFFFFFFC
_SUDO = "run it with sudo, as root of the machine and not of a container"


def rights_checks(root: Path = Path("/")) -> Iterator[Check]:
    """The checks that need no trying; ``root`` is where /proc and /sys are looked for."""
    yield _architecture()
    capabilities = _effective_capabilities(root)
    for number, name, loss in (
        (_SYS_ADMIN, "CAP_SYS_ADMIN", "no uprobe and no BPF program can be loaded"),
        (_SYS_PTRACE, "CAP_SYS_PTRACE", "other users' processes cannot be read"),
    ):
        has = capabilities >> number & 1
        yield Check("rights", name, Outcome("ok" if has else "missing"), loss, _SUDO, required=True)
    yield _namespace(root, "user", _INITIAL_USER, "capabilities of a container do not suffice for uprobes")
    yield _namespace(root, "pid", _INITIAL_PID, "processes have other numbers here than in the kernel")
    yield _lockdown(root)
    yield _sysctl(root, "perf_event_paranoid", "binds only those who are not root")
    yield _sysctl(root, "unprivileged_bpf_disabled", "binds only those who are not root")
    yield _memlock()


def _architecture() -> Check:
    machine = platform.machine()
    state = Outcome("ok" if machine == "x86_64" else "missing", f"{platform.release()} {machine}")
    return Check(
        "machine",
        "kernel",
        state,
        "only x86-64 is known well enough to be traced",
        "trace on an x86-64 machine",
        required=True,
    )


def _effective_capabilities(root: Path) -> int:
    status = (root / "proc/self/status").read_text(encoding="ascii", errors="replace")
    return next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)


def _namespace(root: Path, kind: str, initial: int, loss: str) -> Check:
    def attempt() -> str:
        if os.stat(root / f"proc/self/ns/{kind}").st_ino != initial:
            raise KernelError("memtrace runs in another one, that of a container")
        return ""

    fix = "run it on the host, with the process's number there"
    return Check("rights", f"initial {kind} namespace", tried(attempt), loss, fix, required=True)


def _lockdown(root: Path) -> Check:
    """Kernel lockdown (kernel_lockdown(7)): with confidentiality, BPF may not read memory."""
    try:
        text = (root / "sys/kernel/security/lockdown").read_text(encoding="ascii", errors="replace")
        mode = text.partition("[")[2].partition("]")[0]
    except OSError:
        mode = "none"  # not built in, or securityfs is not mounted: then the programs' loading tells
    return Check(
        "rights",
        "kernel lockdown",
        Outcome("missing" if mode == "confidentiality" else "ok", mode),
        "BPF programs may not read memory: no arguments, no stacks",
        "boot without lockdown=confidentiality",
        required=True,
    )


def _sysctl(root: Path, name: str, meaning: str) -> Check:
    try:
        value = (root / "proc/sys/kernel" / name).read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        value = "not there"
    return Check("rights", name, Outcome("ok", f"{value}; {meaning}"))


def _memlock() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    words = ["unlimited" if limit == resource.RLIM_INFINITY else human_bytes(limit) for limit in (soft, hard)]
    detail = f"{words[0]}, may be raised to {words[1]}; counts before kernel 5.11, where memtrace raises it itself"
    return Check("rights", "locked memory", Outcome("ok", detail))
