"""A report as folded stacks, a line each: ``outermost;...;innermost VALUE``.

The form that flamegraph.pl, inferno, speedscope and many others read. Stacks that look alike are one line.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TextIO

from tracer.model.report import Report
from tracer.report.samples import DEFAULT_METRIC, METRICS, Metric, name_of, samples


def write_folded(report: Report, file: TextIO, metric: Metric = DEFAULT_METRIC) -> None:
    """Write the stacks with their figure, the largest first.

    The form knows no negative values: what shrank (with ``rss_growth``) is left out.
    """
    index = METRICS.index(metric)
    totals: dict[str, int] = defaultdict(int)
    for sample in samples(report):
        if sample.values[index]:
            totals[";".join(_name(name_of(frame)) for frame in reversed(sample.frames))] += sample.values[index]
    for stack, value in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        if value > 0:
            file.write(f"{stack or '[no frames]'} {value}\n")


def _name(name: str) -> str:
    """A name in which nothing ends a frame, a line or the stack; blanks within it are allowed.

    A ``#`` at the start of a line is a comment to some readers.
    """
    name = name.replace(";", ":").strip()
    return f"\\x23{name[1:]}" if name.startswith("#") else name or "[no name]"
