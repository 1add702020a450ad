"""A report as weighted stacks: what folded stacks and pprof are made of.

Five figures go with each stack. ``inuse_*`` is what is held at the end of the window, ``alloc_*`` what was allocated in
it, and ``rss_growth`` what the ledger books to the stack: its sum over all samples is the growth of RSS. What the
ledger books to no stack (memory kept by the allocator, given back, unexplained) is a sample of its own, so that the sum
holds; its frames are words in brackets.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from tracer.model.report import Frame, Report, StackGrowth
from tracer.report.safe import printable

Metric = Literal["inuse_objects", "inuse_space", "alloc_objects", "alloc_space", "rss_growth"]
METRICS: tuple[Metric, ...] = get_args(Metric)
DEFAULT_METRIC: Metric = "inuse_space"

# The cause under which the ledger books a stack of each kind.
_CAUSE_OF = {"malloc": "live", "mmap": "mapped", "brk": "mapped", "fault": "faulted"}
_MAX_NAME = 1024
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"


@dataclass(frozen=True, slots=True)
class Sample:
    """A stack (``frames[0]`` is the innermost) and its figures in the order of METRICS: counts, and bytes."""

    frames: tuple[Frame, ...]
    values: tuple[int, ...]
    kind: str
    vma_class: str


def samples(report: Report) -> Iterator[Sample]:
    """The stacks in the order of the report, then what the ledger books to none.

    A stack whose memory lies in several classes has a sample for each.
    """
    growth = _growth_by_stack(report)
    for stack in report.stacks:
        by_class = growth.pop((_CAUSE_OF[stack.kind], stack.id), {})
        yield Sample(stack.frames, (*_held(stack), by_class.pop(stack.vma_class, 0)), stack.kind, stack.vma_class)
        for vma_class, amount in by_class.items():
            yield Sample(stack.frames, (0, 0, 0, 0, amount), stack.kind, vma_class)
    for (cause, _), by_class in growth.items():
        for vma_class, amount in by_class.items():
            yield Sample(_words(cause, vma_class), (0, 0, 0, 0, amount), cause, vma_class)


def name_of(frame: Frame) -> str:
    """The whole name of a frame, printable and of bearable length; ``module+0xoffset`` where no symbol covers it."""
    if frame.function:
        name = printable(frame.function)
    else:
        module = printable((frame.module or "").rpartition("/")[2])
        name = f"{module}+{frame.offset:#x}" if module else f"{frame.offset:#x}"
    return name if len(name) <= _MAX_NAME else name[: _MAX_NAME - 1] + _ELLIPSIS


def _held(stack: StackGrowth) -> tuple[int, int, int, int]:
    return stack.count, stack.bytes, stack.allocated_count, stack.allocated_bytes


def _growth_by_stack(report: Report) -> dict[tuple[str, str | None], dict[str, int]]:
    growth: dict[tuple[str, str | None], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in report.ledger:
        growth[(row.cause, row.stack)][row.vma_class] += row.bytes
    return growth


def _words(cause: str, vma_class: str) -> tuple[Frame, Frame]:
    return Frame(f"[{cause}]", None, 0), Frame(f"[{vma_class}]", None, 0)
