"""Each look reads no more than is needed to tell what changed, and no more than the meter affords."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.unit.watches import GIB, KIB, MIB, Clock, FakeProcess, anon, of_file
from tracer.errors import KernelError
from tracer.model.vma import VmaUsage
from tracer.watch.ladder import Ladder
from tracer.watch.meter import ReadMeter

HEAP, ANON, FILE = 0x1000_1000, 0x7F00_0000_0000, 0x7F80_0000_0000


def small(clock: Clock, **more: object) -> FakeProcess:
    return FakeProcess(clock, [anon(HEAP, 8 * MIB), anon(ANON, 4 * MIB), of_file(FILE, 2 * MIB)], **more)  # type: ignore[arg-type]


def large(clock: Clock, **more: object) -> FakeProcess:
    """Smaps of it would take 60 ms by the formula."""
    return FakeProcess(clock, [anon(HEAP, 2 * GIB), anon(ANON, 4 * MIB), of_file(FILE, 2 * MIB)], **more)  # type: ignore[arg-type]


def ladder_of(process: FakeProcess, *, settle: float = 1000.0) -> Ladder:
    """A ladder on which the meter affords much, as after ``settle`` seconds."""
    meter = ReadMeter(process.clock)
    process.clock.pass_by(settle)
    ladder = Ladder(process, meter, process.clock)
    process.reads.clear()
    process.scanned.clear()
    return ladder


def grow(process: FakeProcess, index: int, by: int, *, size: bool = True) -> VmaUsage:
    old = process.usages[index]
    vma = replace(old.vma, end=old.vma.end + by) if size else old.vma
    process.usages[index] = replace(
        old, vma=vma, rss=old.rss + by, anonymous=old.anonymous + by, private_dirty=old.private_dirty + by
    )
    return process.usages[index]


def test_the_first_look_is_a_whole_snapshot() -> None:
    process = small(Clock())
    ladder = Ladder(process, ReadMeter(process.clock), process.clock)
    assert process.reads == ["maps", "smaps"]
    first = ladder.first
    assert (first.seconds, first.private, first.private_is_exact) == (0.0, 12 * MIB, True)
    assert first.classes == {"anonymous": 12 * MIB, "file": 2 * MIB}
    assert ladder.start.is_smaps


def test_a_large_process_is_not_read_by_smaps() -> None:
    process = large(Clock())
    process.usages[0] = anon(HEAP, 8 * GIB)
    ladder = Ladder(process, ReadMeter(process.clock), process.clock)
    assert process.reads == ["maps", "pagemap"]
    assert not ladder.start.is_smaps and not ladder.first.private_is_exact
    assert ladder.first.private == 8 * GIB + 4 * MIB, "by RssAnon + VmSwap"


def test_full_reads_smaps_all_the_same() -> None:
    process = large(Clock())
    process.usages[0] = anon(HEAP, 8 * GIB)
    Ladder(process, ReadMeter(process.clock), process.clock, float("inf"))
    assert process.reads == ["maps", "smaps"]


def test_nothing_is_read_while_nothing_changes() -> None:
    process = small(Clock())
    ladder = ladder_of(process)
    process.clock.pass_by(1)
    look = ladder.look()
    assert process.reads == []
    assert (look.private, look.detail_age, look.seconds) == (12 * MIB, 0.0, 1.0)


def test_private_memory_is_read_again_after_a_while_for_fork_does_not_show_in_the_counters() -> None:
    process = small(Clock())
    ladder = ladder_of(process)
    process.usages[0] = replace(process.usages[0], private_dirty=MIB)  # the rest is shared with a child now
    process.clock.pass_by(9)
    assert ladder.look().private == 12 * MIB
    process.clock.pass_by(2)
    assert ladder.look().private == 5 * MIB
    assert process.reads == ["smaps_rollup"]


def test_a_small_process_is_read_whole() -> None:
    process = small(Clock())
    ladder = ladder_of(process)
    grow(process, 0, MIB)
    process.clock.pass_by(1)
    look = ladder.look()
    assert process.reads == ["smaps"]
    assert (look.private, look.private_is_exact, look.classes["anonymous"]) == (13 * MIB, True, 13 * MIB)


def test_of_a_large_one_only_what_can_have_changed() -> None:
    process = large(Clock())
    ladder = ladder_of(process)
    grown = grow(process, 1, MIB, size=False)
    process.clock.pass_by(1)
    look = ladder.look()
    assert process.reads == ["pagemap", "smaps_rollup"], "the size did not change, so maps did not"
    assert process.scanned == [(process.usages[0].vma, grown.vma)], "no pages of files moved"
    assert look.classes["anonymous"] == 2 * GIB + 5 * MIB
    assert look.private == 2 * GIB + 5 * MIB


def test_pages_of_files_are_looked_for_in_files() -> None:
    process = large(Clock())
    ladder = ladder_of(process)
    old = process.usages[2]
    process.usages[2] = replace(old, rss=old.rss - MIB)
    process.clock.pass_by(1)
    assert ladder.look().classes["file"] == MIB
    assert process.scanned == [(old.vma,)]


def test_maps_is_read_where_the_size_changed() -> None:
    process = large(Clock())
    ladder = ladder_of(process)
    process.usages.append(anon(FILE + GIB, 3 * MIB))
    process.clock.pass_by(1)
    look = ladder.look()
    assert process.reads[:2] == ["maps", "pagemap"]
    assert look.classes["anonymous"] == 2 * GIB + 7 * MIB


def test_mappings_that_changed_without_the_size_show_in_the_sum() -> None:
    process = large(Clock())
    ladder = ladder_of(process)
    process.usages[1] = anon(FILE + GIB, 5 * MIB, 4 * MIB + MIB)
    process.usages[2] = of_file(FILE, MIB)  # one MiB less, so that the size is the same
    process.clock.pass_by(1)
    ladder.look()
    assert "maps" not in process.reads
    grow(process, 0, MIB, size=False)
    process.clock.pass_by(1)
    look = ladder.look()
    assert "maps" in process.reads
    assert look.classes["anonymous"] == 2 * GIB + 6 * MIB


def test_without_scan_smaps_is_the_only_way() -> None:
    process = large(Clock(), has_scan=False)
    ladder = ladder_of(process)
    grow(process, 0, MIB)
    process.clock.pass_by(1)
    assert ladder.look().private_is_exact
    assert process.reads == ["smaps"]


def test_without_rollup_private_memory_follows_the_counters() -> None:
    process = large(Clock(), errors={"smaps_rollup": KernelError("no rollup")})
    ladder = ladder_of(process)
    grow(process, 0, MIB)
    process.clock.pass_by(1)
    look = ladder.look()
    assert (look.private, look.private_is_exact) == (2 * GIB + 5 * MIB, False)


def test_huge_pages_of_hugetlb_are_not_taken_for_rss() -> None:
    process = large(Clock())
    huge = anon(FILE + 9 * GIB, 0, 2 * MIB)
    process.usages.append(replace(huge, flags=("rd", "wr", "ht")))
    ladder = ladder_of(process)
    grow(process, 0, MIB, size=False)
    process.clock.pass_by(1)
    ladder.look()
    assert huge.vma not in process.scanned[0]


def test_the_last_look_is_like_the_first() -> None:
    process = small(Clock())
    ladder = ladder_of(process)
    grow(process, 0, MIB)
    process.clock.pass_by(1)
    look = ladder.finish()
    assert process.reads == ["maps", "smaps"] and ladder.detail.is_smaps
    assert look.private == 13 * MIB and look.classes["anonymous"] == 13 * MIB


def test_new_memory_is_classified_and_what_is_gone_forgotten() -> None:
    process = small(Clock())
    ladder = ladder_of(process)
    for round_ in range(20):
        stack = VmaUsage(replace(anon(FILE + GIB * (round_ + 1), MIB).vma, path=b"[stack]"), MIB)
        process.usages[3:] = [stack]
        grow(process, 0, 64 * KIB)
        process.clock.pass_by(1)
        assert ladder.look().classes["stack"] == MIB
    assert len(ladder.classes) == 4


@pytest.mark.parametrize("cost", [0.02, 0.05, 0.3])
def test_it_backs_off_from_a_process_that_is_dear_to_read(cost: float) -> None:
    """However slow this kernel answers, reading stays within one part in a hundred of the time."""
    clock = Clock()
    process = large(clock, costs=dict.fromkeys(("maps", "pagemap", "smaps", "smaps_rollup"), cost))
    meter = ReadMeter(clock)
    ladder = Ladder(process, meter, clock)
    ages = []
    for _ in range(600):
        grow(process, 0, MIB)
        clock.pass_by(1)
        ages.append(ladder.look().detail_age)
    ladder.finish()
    assert meter.share() <= 0.0105
    assert len(process.reads) >= min(60, 3.0 / cost), "it does not give up either"
    assert max(ages) > 1
    assert ladder.series.newest() == pytest.approx(2 * GIB + 604 * MIB), "the cheap figures are of every look"


def test_a_read_that_fails_has_cost_something_too() -> None:
    process = large(Clock(), costs={"maps": 0.5})
    meter = ReadMeter(process.clock)
    process.errors["smaps"] = KernelError("no")
    with pytest.raises(KernelError):
        Ladder(process, meter, process.clock)
    assert [(cost.name, cost.seconds) for cost in meter.costs()] == [("maps", 0.5), ("smaps", 0.0)]


def test_a_torn_snapshot_is_taken_again() -> None:
    process = small(Clock())
    usages = process.usages
    process.usages = [*usages, anon(HEAP + 4 * KIB, MIB)]  # it overlaps the first one
    ladder = Ladder(process, ReadMeter(process.clock), process.clock)
    assert process.reads.count("smaps") == 3 and ladder.torn
