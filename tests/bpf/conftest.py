"""Gates and fixtures of the tests that trace: skip where tracing is not possible, and leave nothing behind.

MEMTRACE_REQUIRE_BPF=1 turns the skip into a failure. MEMTRACE_TARGETS_DIR keeps the built target programs.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from tests.bpf.harness import HarnessError, Target, process_state, wait_for
from tests.bpf.kernel import BpfObject, bpf_objects, bpf_refusal, held_objects, object_name
from tests.targets.build import MissingCompiler, command

HERE = Path(__file__).resolve().parent
TRACEFS_PROBES = Path("/sys/kernel/tracing/uprobe_events")
FREED_DEADLINE = 10.0  # the kernel frees programs and maps after a grace period, in the background

_PR_SET_CHILD_SUBREAPER = 36

StartTarget = Callable[..., Target]
T = TypeVar("T")


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root"
    try:
        import bcc  # noqa: F401
    except ImportError as error:
        return f"needs bcc (Debian: python3-bpfcc) for {sys.executable}: {error}"
    return bpf_refusal()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if item.path.is_relative_to(HERE)]
    reason = _why_not() if ours else None
    for item in ours:
        item.add_marker(pytest.mark.bpf)
        if reason is not None and os.environ.get("MEMTRACE_REQUIRE_BPF") != "1":
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def bpf_is_usable() -> None:
    """Fails every test of a run that MEMTRACE_REQUIRE_BPF=1 forbids to skip."""
    reason = _why_not()
    if reason is not None:
        pytest.fail(f"MEMTRACE_REQUIRE_BPF=1, but: {reason}")


@pytest.fixture(autouse=True, scope="session")
def orphans_come_to_us() -> None:
    """Makes processes that outlive their parent our children, so that nothing_left_behind sees them."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails a test after which a BPF object, a probe of tracefs or a child process is there that was not before."""
    children, objects, probes = _children(), bpf_objects(), _tracefs_probes()
    yield
    left_children = _outlasting(lambda: _reaped(_children() - children))
    names = [f"process {pid} ({_command_of(pid)})" for pid in sorted(left_children)]
    for pid in left_children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left_objects = _outlasting(lambda: _ours(bpf_objects() - objects))
    names += [f"BPF {item.kind} {item.id} {object_name(item)}" for item in sorted(left_objects)]
    names += [f"probe {line}" for line in sorted(_tracefs_probes() - probes)]
    if names:
        pytest.fail("left behind: " + "; ".join(names))


@pytest.fixture(scope="session")
def targets_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where target programs are built."""
    kept = os.environ.get("MEMTRACE_TARGETS_DIR")
    return Path(kept) if kept else tmp_path_factory.mktemp("targets")


@pytest.fixture
def start_target(targets_dir: Path) -> Iterator[StartTarget]:
    """start_target(name, *arguments, env=None) -> Target, built if need be and ended with the test.

    Skips the test if the target's compiler is missing.
    """
    with contextlib.ExitStack() as running:

        def start(name: str, *arguments: str | int, env: dict[str, str] | None = None) -> Target:
            try:
                argv = command(name, targets_dir, *arguments)
            except MissingCompiler as error:
                pytest.skip(str(error))
            return running.enter_context(Target(argv, env))

        yield start


def _outlasting(left: Callable[[], set[T]]) -> set[T]:
    # What was there at every look until the deadline: what another tracer makes and frees meanwhile is not ours.
    lasting = left()

    def gone() -> bool:
        lasting.intersection_update(left())
        return not lasting

    with contextlib.suppress(HarnessError):
        wait_for(gone, "freed", FREED_DEADLINE)
    return lasting


def _ours(objects: set[BpfObject]) -> set[BpfObject]:
    # Without those that processes which do not descend from the test hold: other tracers on this machine.
    if not objects:
        return objects
    family = _descendants()
    pids = (int(entry) for entry in os.listdir("/proc") if entry.isdecimal())
    return objects.difference(*(held_objects(pid) for pid in pids if pid not in family))


def _parents() -> dict[int, int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError):
                stat = Path(f"/proc/{entry}/stat").read_bytes()
                parents[int(entry)] = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return parents


def _children() -> set[int]:
    return {pid for pid, parent in _parents().items() if parent == os.getpid()}


def _descendants() -> set[int]:
    family, parents = {os.getpid()}, _parents()
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _reaped(children: set[int]) -> set[int]:
    # Those that still run; takes leave of the ones that have ended.
    for pid in children:
        if process_state(pid) == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return {pid for pid in children if process_state(pid) not in ("", "Z")}


def _command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return "?"


def _tracefs_probes() -> set[str]:
    with contextlib.suppress(OSError):
        return set(TRACEFS_PROBES.read_text().splitlines())
    return set()
