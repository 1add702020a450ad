"""What the page's script works on: stacks, VMAs and series as columns, every text and frame written once.

Stacks are stored as a tree of frames from the outermost inwards, so that 77,000 stacks take megabytes, not hundreds
of them. Text has passed ``printable``. Sizes are bytes, times seconds; addresses are text, as they exceed 2**53.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from tracer.model.report import Frame, Report, StackGrowth
from tracer.model.timeline import Timeline
from tracer.report.frames import culprit, frame_name, without_allocator
from tracer.report.safe import printable
from tracer.report.words import KINDS, cause_in_words, growth_by_stack, share_basis

# A box of its own at the root: nobody should take the outermost frame that was read for the start of the thread.
_ENDS_EARLY = Frame("(stack ends early)", None, 0)
_NO_FRAMES = Frame("(no frames)", None, 0)
_NOTHING = -1
# Numbers of JavaScript are exact up to here.
_EXACT = 1 << 53


def payload(report: Report, timeline: Timeline) -> dict[str, Any]:
    """All that the page's script needs, as what ``json.dumps`` takes; the same report gives the same value."""
    texts = _Texts()
    stacks = sorted(report.stacks, key=lambda stack: (-stack.bytes, stack.id))
    tree = _Tree(texts)
    leaves = tree.add_all([_path(stack) for stack in stacks])
    return {
        "growth": report.growth,
        "seconds": report.seconds,
        "timeline": _timeline(timeline, texts),
        "kinds": {kind: list(words) for kind, words in KINDS.items()},
        "stacks": _stacks(report, stacks, leaves, texts),
        "nodes": {"up": tree.up, "frame": tree.frame},
        "frames": tree.frames,
        "functions": tree.functions,
        "modules": tree.modules,
        "vmas": _vmas(report, texts),
        "ledger": _ledger(report, stacks, texts),
        "strings": texts.items,
    }


class _Texts:
    """Texts by number, each made printable once."""

    def __init__(self) -> None:
        self.items: list[str] = []
        self._numbers: dict[str, int] = {}

    def number(self, text: str | None) -> int:
        """The number of a text; -1 for None."""
        if text is None:
            return _NOTHING
        number = self._numbers.get(text)
        if number is None:
            number = self._numbers[text] = len(self.items)
            self.items.append(printable(text))
        return number


class _Tree:
    """The stacks as one tree: node -> distance to its parent's number, and its frame; both in depth-first order."""

    def __init__(self, texts: _Texts) -> None:
        self._texts = texts
        self.up: list[int] = []
        self.frame: list[int] = []
        self.frames: dict[str, list[Any]] = {
            name: [] for name in ("function", "offset", "distance", "file", "line", "inlined")
        }
        self.functions: dict[str, list[int]] = {"name": [], "full": [], "module": []}
        self.modules: dict[str, list[int]] = {"path": [], "build_id": []}
        self._known: dict[str, dict[Hashable, int]] = {"frames": {}, "functions": {}, "modules": {}}
        # Frames are shared between stacks: asking for their identity first saves hashing nine fields a million times.
        self._by_identity: dict[int, int] = {}

    def add_all(self, paths: Sequence[tuple[Frame, ...]]) -> list[int]:
        """Add paths, outermost frame first; returns the node at which each ends."""
        numbered = [tuple(map(self._frame_number, path)) for path in paths]
        leaves = [_NOTHING] * len(paths)
        # In this order neighbours share most of their path: what they share is a stack of open nodes.
        open_nodes: list[tuple[int, int]] = []
        for index in sorted(range(len(paths)), key=numbered.__getitem__):
            path = numbered[index]
            shared = 0
            while shared < min(len(path), len(open_nodes)) and open_nodes[shared][0] == path[shared]:
                shared += 1
            del open_nodes[shared:]
            for frame in path[shared:]:
                node = len(self.frame)
                self.up.append(node - open_nodes[-1][1] if open_nodes else 0)
                self.frame.append(frame)
                open_nodes.append((frame, node))
            leaves[index] = open_nodes[-1][1]
        return leaves

    def _frame_number(self, frame: Frame) -> int:
        number = self._by_identity.get(id(frame))
        if number is None:
            number = self._by_identity[id(frame)] = self._once("frames", frame, lambda: self._add_frame(frame))
        return number

    def _once(self, what: str, key: Hashable, add: Callable[[], None]) -> int:
        known = self._known[what]
        if key not in known:
            add()
            known[key] = len(known)
        return known[key]

    def _add_frame(self, frame: Frame) -> None:
        name = frame_name(frame)
        key = (name, frame.function, frame.module, frame.build_id)
        function = self._once("functions", key, lambda: self._add_function(name, frame))
        for column, value in {
            "function": function,
            "offset": frame.offset if frame.offset < _EXACT else f"{frame.offset:x}",
            "distance": frame.function_offset,
            "file": self._texts.number(frame.file),
            "line": frame.line,
            "inlined": int(frame.inlined),
        }.items():
            self.frames[column].append(value)

    def _add_function(self, name: str, frame: Frame) -> None:
        module = _NOTHING
        if frame.module is not None:
            module = self._once("modules", (frame.module, frame.build_id), lambda: self._add_module(frame))
        full = frame.function if frame.function is not None and frame.function != name else None
        for column, value in {
            "name": self._texts.number(name),
            "full": self._texts.number(full),
            "module": module,
        }.items():
            self.functions[column].append(value)

    def _add_module(self, frame: Frame) -> None:
        self.modules["path"].append(self._texts.number(frame.module))
        self.modules["build_id"].append(self._texts.number(frame.build_id))


def _path(stack: StackGrowth) -> tuple[Frame, ...]:
    """The frames from the outermost on; a stack that was not read to its end says so where its root would be."""
    if not stack.frames:
        return (_NO_FRAMES,)
    root = () if stack.complete else (_ENDS_EARLY,)
    return (*root, *reversed(stack.frames))


def _stacks(report: Report, stacks: Sequence[StackGrowth], leaves: list[int], texts: _Texts) -> dict[str, Any]:
    """Columns of the stacks. ``folded``: how many of the innermost frames are the allocator's."""
    of_growth = growth_by_stack(report)
    return {
        "basis": share_basis(report, of_growth),
        "held": sum(stack.bytes for stack in stacks),
        "id": [printable(stack.id) for stack in stacks],
        "leaf": leaves,
        "folded": [len(stack.frames) - len(without_allocator(stack.frames)) for stack in stacks],
        "culprit": [culprit(stack.frames) or 0 for stack in stacks],
        "kind": [texts.number(stack.kind) for stack in stacks],
        "class": [texts.number(stack.vma_class) for stack in stacks],
        "trend": [texts.number(stack.trend) for stack in stacks],
        "complete": [int(stack.complete) for stack in stacks],
        "bytes": [stack.bytes for stack in stacks],
        "error": [stack.bytes_error for stack in stacks],
        "count": [stack.count for stack in stacks],
        "allocated": [stack.allocated_bytes for stack in stacks],
        "freed": [stack.freed_bytes for stack in stacks],
        "allocated_count": [stack.allocated_count for stack in stacks],
        "freed_count": [stack.freed_count for stack in stacks],
        "growth": [of_growth.get(stack.id, 0) for stack in stacks],
        "rate": [round(stack.rate) for stack in stacks],
        "oldest": [round(stack.oldest, 3) for stack in stacks],
    }


def _vmas(report: Report, texts: _Texts) -> dict[str, Any]:
    rows = sorted(report.vmas, key=lambda row: (-abs(row.growth), row.vma.start))
    return {
        "start": [f"{row.vma.start:x}" for row in rows],
        "end": [f"{row.vma.end:x}" for row in rows],
        "size": [row.vma.size for row in rows],
        "perms": [texts.number(row.vma.perms) for row in rows],
        "path": [texts.number(row.vma.path.decode("utf-8", "surrogateescape")) for row in rows],
        "class": [texts.number(row.vma_class) for row in rows],
        "rss": [row.rss for row in rows],
        "growth": [row.growth for row in rows],
        "gone": [int(row.gone) for row in rows],
    }


def _ledger(report: Report, stacks: Sequence[StackGrowth], texts: _Texts) -> dict[str, Any]:
    """Rows of the ledger, with the number of the stack in the columns of stacks."""
    numbers = {stack.id: number for number, stack in enumerate(stacks)}
    rows = report.ledger
    return {
        "class": [texts.number(row.vma_class) for row in rows],
        "cause": [texts.number(cause_in_words(row.cause)) for row in rows],
        "stack": [_NOTHING if row.stack is None else numbers.get(row.stack, _NOTHING) for row in rows],
        "bytes": [row.bytes for row in rows],
    }


def _timeline(timeline: Timeline, texts: _Texts) -> dict[str, Any]:
    return {
        "seconds": [round(seconds, 3) for seconds in timeline.seconds],
        "rss": list(timeline.rss),
        "classes": [[texts.number(name), list(series)] for name, series in timeline.classes.items()],
        "markers": [[round(marker.seconds, 3), texts.number(marker.text)] for marker in timeline.markers],
        "has_course": timeline.has_course,
    }
