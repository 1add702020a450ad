"""What of a look is new against the look before: the rows that a recording keeps of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracer.model.look import Held, Look, StackKey
from tracer.model.report import Frame, StackKind
from tracer.model.vma import Snapshot, VmaUsage
from tracer.store.codec import encode
from tracer.store.rows import Row, cell, row_of, to_json, vma_values
from tracer.store.writer import Changes

# So many VMAs, the largest, are followed one by one; classes count all.
MAX_VMAS = 4096


@dataclass(frozen=True, slots=True)
class Named:
    """The frames of a stack; ``complete`` where they are all."""

    stack: int
    frames: tuple[Frame, ...]
    complete: bool


class Observer:
    """Compares each look with what was known before."""

    def __init__(self) -> None:
        self.frames: dict[Frame, int] = {}
        self._named: dict[int, Named] = {}
        self._ids: dict[StackKey, int] = {}
        self._kinds: dict[int, list[StackKind]] = {}
        self._allocations: dict[int, tuple[int, ...]] = {}
        self._mapped: dict[StackKey, Held] = {}
        self._read_ns = -1
        self._classes: dict[str, tuple[int, int]] = {}
        self._vma_ids: dict[tuple[Any, ...], int] = {}
        self._vma_classes: dict[int, str] = {}
        self._vmas: dict[int, tuple[int, int]] = {}
        self._meta: dict[str, Any] = {}

    def changes(self, look: Look, named: Iterable[Named] = (), *, stacks: bool = True) -> Changes:
        """The rows for a look; without ``stacks`` those of the process and its memory only."""
        changes = Changes(_look_row(look), self._new_meta(look))
        rows: dict[str, list[Row]] = {"stacks": [], "vmas": []}
        series: dict[str, list[Row]] = {"stack_looks": [], "class_looks": [], "vma_looks": []}
        if stacks:
            self._note_stacks(look, rows["stacks"], series["stack_looks"])
            changes.frames = self._note_names(named, rows["stacks"])
        if look.snapshot.time_ns != self._read_ns:
            self._read_ns = look.snapshot.time_ns
            self._note_classes(look, series["class_looks"])
            self._note_vmas(look.snapshot, look.classes, rows["vmas"], series["vma_looks"])
        changes.rows, changes.series = rows, series
        return changes

    def _new_meta(self, look: Look) -> dict[str, Any]:
        now: dict[str, Any] = {
            "probed": list(look.probed),
            "notes": list(look.notes),
            "losses": dict(look.losses),
            "sampling": encode(look.sampling),
            "rss_source": look.rss_source,
        }
        new = {name: value for name, value in now.items() if self._meta.get(name) != value}
        self._meta |= new
        return new

    def _note_stacks(self, look: Look, rows: list[Row], series: list[Row]) -> None:
        before = self._allocations
        changed = [(stack, totals) for stack, totals in look.allocations.items() if before.get(stack) != totals]
        for stack, totals in changed:
            count, size, frees, freed = totals[:4]
            held = Held(size - freed, count - frees, size, count, freed, frees)
            series.append((self._id_of(("malloc", stack), rows), *held))
        before.update(changed)
        if look.mapped is None:
            return
        for key in self._mapped.keys() - look.mapped.keys():
            # What is gone has been given back.
            was = self._mapped[key]
            gone = Held(0, 0, was.allocated_bytes, was.allocated_count, was.allocated_bytes, was.allocated_count)
            series.append((self._ids[key], *gone))
        for key, held in look.mapped.items():
            if self._mapped.get(key) != held:
                series.append((self._id_of(key, rows), *held))
        self._mapped = dict(look.mapped)

    def _id_of(self, key: StackKey, rows: list[Row]) -> int:
        number = self._ids.get(key)
        if number is None:
            number = self._ids[key] = len(self._ids) + 1
            self._kinds.setdefault(key[1], []).append(key[0])
            rows.append(self._stack_row(key, self._named.get(key[1])))
        return number

    def _stack_row(self, key: StackKey, named: Named | None) -> Row:
        frames = to_json([self.frames[frame] for frame in named.frames]) if named else None
        return (self._ids[key], f"{key[1]:016x}", key[0], int(named.complete) if named else None, frames)

    def _note_names(self, named: Iterable[Named], rows: list[Row]) -> list[tuple[int, Frame]]:
        new: list[tuple[int, Frame]] = []
        for each in named:
            self._named[each.stack] = each
            for frame in each.frames:
                if frame not in self.frames:
                    self.frames[frame] = len(self.frames) + 1
                    new.append((self.frames[frame], frame))
            rows += [self._stack_row((kind, each.stack), each) for kind in self._kinds.get(each.stack, ())]
        return new

    def _note_classes(self, look: Look, series: list[Row]) -> None:
        rss: Counter[str] = Counter()
        size: Counter[str] = Counter()
        for usage in look.snapshot.usages:
            name = look.classes.get(usage.vma.start, "anonymous")
            rss[name] += usage.rss
            size[name] += usage.vma.size
        read_at = max(0.0, look.seconds - look.snapshot_age)
        for name in size.keys() | self._classes.keys():
            now = rss[name], size[name]
            if self._classes.get(name) != now:
                self._classes[name] = now
                series.append((name, *now, read_at))

    def _note_vmas(self, snapshot: Snapshot, classes: Mapping[int, str], rows: list[Row], series: list[Row]) -> None:
        usages: Iterable[VmaUsage] = snapshot.usages
        if len(snapshot.usages) > MAX_VMAS:
            usages = sorted(usages, key=lambda usage: -usage.rss)[:MAX_VMAS]
        now: dict[int, tuple[int, int]] = {}
        for usage in usages:
            vma = usage.vma
            key = (vma.start, vma.perms, vma.offset, vma.device, vma.inode, vma.path)
            number = self._vma_ids.setdefault(key, len(self._vma_ids) + 1)
            name = classes.get(vma.start, "anonymous")
            if self._vma_classes.get(number) != name:
                self._vma_classes[number] = name
                rows.append(row_of("vmas", {"id": number, **vma_values(vma), "class": name}))
            now[number] = (vma.end, usage.rss)
        changed = [(number, *state) for number, state in now.items() if self._vmas.get(number) != state]
        gone = [(number, 0, 0) for number in self._vmas.keys() - now.keys()]
        series += [(number, cell(end), rss) for number, end, rss in changed + gone]
        self._vmas = now


def _look_row(look: Look) -> Row:
    totals = look.allocations.values()
    return (
        look.seconds,
        look.rss.anon,
        look.rss.file,
        look.rss.shmem,
        look.rss.swap,
        sum(total[1] - total[3] for total in totals),
        sum(total[0] - total[2] for total in totals),
        look.self_cpu,
        look.self_rss,
        to_json({name: value for name, value in look.counters.items() if value}),
    )
