"""Which reader a snapshot uses, and how it notices that it was torn."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tracer.errors import TargetError
from tracer.model.vma import RssCounters, Snapshot, Vma, VmaUsage
from tracer.procfs import snapshot as module
from tracer.procfs.pagemap import Residency
from tracer.procfs.snapshot import SnapshotPlan, is_torn, plan_snapshot, take_snapshot
from tracer.procfs.status import ProcessStatus

MIB = 1 << 20
STATUS = ProcessStatus("x", "S", 1, 0, 0, 1, 30 * MIB, RssCounters(anon=10 * MIB), False)


def usage(start: int, end: int, rss: int = 0, path: bytes = b"") -> VmaUsage:
    return VmaUsage(Vma(start * MIB, end * MIB, "rw-p", 0, "00:00", 0, path), rss * MIB)


def snapshot(*usages: VmaUsage) -> Snapshot:
    return Snapshot(0, usages, RssCounters())


WHOLE = (usage(10, 20, 10), usage(30, 50), usage(90, 91, path=b"[vsyscall]"))


@pytest.fixture
def quiet() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_cheap_smaps_is_preferred(quiet: int) -> None:
    plan = plan_snapshot(quiet)
    assert plan.source == "smaps" and 0 < plan.smaps_seconds < 0.1 and plan.vma_count > 10
    taken = take_snapshot(quiet, clock_ns=lambda: 42)
    assert (taken.source, taken.torn, taken.time_ns) == ("smaps", False, 42)
    assert any(row.flags for row in taken.usages)


def test_costly_smaps_is_avoided(quiet: int) -> None:
    with Residency(quiet) as residency:
        expected = "pagemap" if residency.has_scan else "smaps"
    taken = take_snapshot(quiet, max_smaps_seconds=0)
    assert (taken.source, taken.torn) == (expected, False)
    by_smaps = take_snapshot(quiet)
    assert [(row.vma, row.rss) for row in taken.usages] == [(row.vma, row.rss) for row in by_smaps.usages]
    assert taken.counters == by_smaps.counters


def test_smaps_is_used_where_nothing_cheaper_exists(quiet: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_has_scan", lambda pid: False)
    plan = plan_snapshot(quiet, max_smaps_seconds=0)
    assert plan.source == "smaps" and plan.smaps_seconds > 0
    assert take_snapshot(quiet, max_smaps_seconds=0).source == "smaps"


def test_a_whole_snapshot_is_not_torn() -> None:
    assert not is_torn(snapshot(*WHOLE), STATUS, STATUS)


def test_overlapping_vmas_are_torn() -> None:
    assert is_torn(snapshot(usage(10, 25, 10), usage(20, 35)), STATUS, STATUS)


def test_sizes_that_do_not_add_up_are_torn() -> None:
    assert is_torn(
        snapshot(*WHOLE[1:]), replace(STATUS, counters=RssCounters()), replace(STATUS, counters=RssCounters())
    )
    grown = replace(STATUS, vm_size=31 * MIB)
    assert is_torn(snapshot(*WHOLE), grown, grown)
    assert not is_torn(snapshot(*WHOLE), STATUS, grown)


def test_resident_bytes_that_do_not_add_up_are_torn() -> None:
    off = replace(STATUS, counters=RssCounters(anon=10 * MIB + 65 * 4096 * (os.cpu_count() or 1)))
    assert is_torn(snapshot(*WHOLE), off, off)
    assert not is_torn(snapshot(*WHOLE), STATUS, off)
    held_back = replace(STATUS, counters=RssCounters(anon=10 * MIB + 64 * 4096))
    assert not is_torn(snapshot(*WHOLE), held_back, held_back)


@pytest.mark.parametrize(
    ("torn_reads", "seconds", "expected_reads", "expected_torn"),
    [(0, 0.01, 1, False), (1, 0.01, 2, False), (9, 0.01, 3, True), (9, 5.0, 1, True)],
)
def test_torn_snapshots_are_retried_unless_costly(
    monkeypatch: pytest.MonkeyPatch, torn_reads: int, seconds: float, expected_reads: int, expected_torn: bool
) -> None:
    reads: list[int] = []

    def read_smaps(pid: int) -> tuple[VmaUsage, ...]:
        reads.append(pid)
        return WHOLE[1:] if len(reads) <= torn_reads else WHOLE

    monkeypatch.setattr(module, "read_smaps", read_smaps)
    monkeypatch.setattr(module, "read_status", lambda pid: STATUS)
    taken = take_snapshot(1, plan=SnapshotPlan("smaps", seconds, 3, 0))
    assert (len(reads), taken.torn) == (expected_reads, expected_torn)


def test_kernel_threads_and_zombies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "read_status", lambda pid: replace(STATUS, vm_size=0, kernel_thread=True))
    with pytest.raises(TargetError, match="thread of the kernel"):
        take_snapshot(1)
    monkeypatch.setattr(module, "read_status", lambda pid: replace(STATUS, vm_size=0, state="Z"))
    with pytest.raises(TargetError, match="has ended"):
        plan_snapshot(1)
