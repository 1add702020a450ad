"""status, stat, statm and cmdline of processes of all kinds."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.errors import TargetError
from tracer.model.vma import RssCounters
from tracer.procfs import status
from tracer.procfs.maps import read_maps
from tracer.procfs.smaps import read_smaps

TEXT = b"""Name:\todd: \\nname
State:\tS (sleeping)
Tgid:\t7
Pid:\t7
PPid:\t1
Uid:\t1000\t1001\t1002\t1003
VmSize:\t   20 kB
VmRSS:\t    12 kB
RssAnon:\t       1 kB
RssFile:\t       3 kB
RssShmem:\t       8 kB
VmSwap:\t       5 kB
Threads:\t3
"""

# The main thread leaves by the bare system call, which ends a thread, not the process.
LEADERLESS = """
import ctypes, sys, threading
threading.Thread(target=sys.stdin.read).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)
"""


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """A quiet process that ends with its standard input."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process
        process.kill()


def test_the_fields_of_a_status() -> None:
    parsed = status.parse_status(TEXT)
    assert (parsed.name, parsed.state, parsed.tgid, parsed.ppid, parsed.uid) == ("odd: \\nname", "S", 7, 1, 1001)
    assert (parsed.threads, parsed.vm_size, parsed.kernel_thread) == (3, 20 << 10, False)
    assert parsed.counters == RssCounters(1 << 10, 3 << 10, 8 << 10, 5 << 10)


def test_a_kernel_thread_says_so() -> None:
    assert status.parse_status(b"Name:\tkworker/0:0\nState:\tI (idle)\nKthread:\t1\n").kernel_thread


def test_a_name_cannot_forge_fields() -> None:
    assert status.parse_status(b"Name:\tx RssAnon: 9 kB\nRssAnon:\t1 kB\n").counters.anon == 1024


def test_own_status() -> None:
    own = status.read_status(os.getpid())
    assert (own.tgid, own.ppid, own.uid, own.kernel_thread) == (os.getpid(), os.getppid(), os.geteuid(), False)
    assert own.vm_size > own.counters.rss > 0


def test_all_readers_agree_on_a_quiet_process(child: subprocess.Popen[bytes]) -> None:
    counters = status.read_counters(child.pid)
    assert counters == status.read_status(child.pid).counters
    # Kernels before 6.16 hold back some pages from the counters.
    assert abs(counters.rss - status.read_statm_rss(child.pid)) <= 64 * 4096 * (os.cpu_count() or 1)


def test_the_command_is_printable() -> None:
    arguments = ["sh", "-c", "echo; read line", "\xe9\x1b[31m\udcff\n", ""]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        assert status.read_command(process.pid) == "sh -c echo; read line \xe9\\x1b[31m\\xff\\n"
        process.kill()


def test_a_command_without_arguments_is_its_name() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie has no command line
    assert status.read_command(process.pid) == "[true]"
    process.wait()


def test_stat_with_a_name_that_looks_like_fields() -> None:
    assert status.parse_stat(b"12 (a) R 1 (b) c) S 4 5\n") == [b"S", b"4", b"5"]


def test_start_time_and_cpu_time_survive_an_odd_name() -> None:
    libc = ctypes.CDLL(None)
    old = Path("/proc/self/comm").read_bytes().rstrip(b"\n")
    before = status.read_start_time(os.getpid()), status.cpu_seconds(os.getpid())
    libc.prctl(15, b"a) R 1 2 (b", 0, 0, 0)
    try:
        assert status.read_start_time(os.getpid()) == before[0]
        assert before[1] <= status.cpu_seconds(os.getpid()) <= time.process_time() + 1
    finally:
        libc.prctl(15, old, 0, 0, 0)


def test_start_time_orders_processes(child: subprocess.Popen[bytes]) -> None:
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    started = status.read_start_time(child.pid) / os.sysconf("SC_CLK_TCK")
    assert status.read_start_time(os.getpid()) / os.sysconf("SC_CLK_TCK") <= started <= uptime


def test_kernel_threads_are_known_by_their_flag() -> None:
    if not Path("/proc/2/comm").exists() or Path("/proc/2/comm").read_text() != "kthreadd\n":
        pytest.skip("no kernel threads visible in this PID namespace")
    kthreadd = status.read_status(2)
    assert kthreadd.kernel_thread and kthreadd.counters == RssCounters()
    assert not status.is_kernel_thread(os.getpid())
    assert status.read_command(2) == "[kthreadd]"
    assert not read_maps(2) and not read_smaps(2)


def test_a_zombie_has_no_memory() -> None:
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    zombie = status.read_status(process.pid)
    assert (zombie.state, zombie.vm_size, zombie.counters, zombie.kernel_thread) == ("Z", 0, RssCounters(), False)
    assert read_maps(process.pid) == ()
    process.wait()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of the system call exit is x86-64's")
def test_a_leader_that_left_its_threads_behind() -> None:
    arguments = [sys.executable, "-c", LEADERLESS]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        deadline = time.monotonic() + 10
        while b"State:\tZ" not in Path(f"/proc/{process.pid}/status").read_bytes():
            assert time.monotonic() < deadline
        assert status.read_counters(process.pid).anon > 0
        assert status.read_statm_rss(process.pid) > 0
        assert b"[heap]" in {vma.path for vma in read_maps(process.pid)}
        assert sum(usage.rss for usage in read_smaps(process.pid)) > 0
        process.kill()


@pytest.mark.parametrize(
    "reader",
    [
        status.read_status,
        status.read_counters,
        status.read_statm_rss,
        status.read_command,
        status.read_start_time,
        status.cpu_seconds,
    ],
)
def test_a_process_that_does_not_exist(reader: object) -> None:
    assert callable(reader)
    with pytest.raises(TargetError):
        reader(4194305)
