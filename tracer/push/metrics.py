"""A running session as Prometheus metrics.

The number of time series is bounded: a stack's are there as long as it is among the first few, and no longer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from tracer import __version__
from tracer.errors import MissingDependencyError
from tracer.model.live import LiveState
from tracer.report.safe import printable

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric

TOP_STACKS = 20

_MAX_LABEL = 120


class LiveMetrics:
    """Metrics of the latest state, made when they are asked for."""

    def __init__(self) -> None:
        self._state: LiveState | None = None
        self._updated = 0.0

    def update(self, state: LiveState) -> None:
        """Take over a new state."""
        self._state, self._updated = state, time.time()

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is depends on the state."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics but those of memtrace's own process."""
        state = self._state
        if state is None:
            return
        yield from _of_process(state, self._updated)
        yield from _of_stacks(state)
        yield from _of_tracing(state)


def registry_of(metrics: LiveMetrics) -> CollectorRegistry:
    """These metrics and those of memtrace's own process. Raises MissingDependencyError without the library."""
    try:
        from prometheus_client import CollectorRegistry, ProcessCollector
    except ImportError:
        raise MissingDependencyError(
            "--metrics needs the Python package prometheus_client",
            "install python3-prometheus-client (Debian), or in a checkout: .venv/bin/pip install -e '.[metrics]'",
        ) from None
    registry = CollectorRegistry()
    registry.register(metrics)
    ProcessCollector(namespace="memtrace", registry=registry)
    return registry


def _gauge(name: str, words: str, labels: Iterable[str], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    from prometheus_client.core import GaugeMetricFamily

    family = GaugeMetricFamily(f"memtrace_{name}", words, labels=["pid", *labels])
    for values, number in rows:
        family.add_metric([_label(value) for value in values], number)
    return family


def _counter(name: str, words: str, labels: Iterable[str], rows: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    from prometheus_client.core import CounterMetricFamily

    family = CounterMetricFamily(f"memtrace_{name}", words, labels=["pid", *labels])
    for values, number in rows:
        family.add_metric([_label(value) for value in values], number)
    return family


def _of_process(state: LiveState, updated: float) -> Iterator[Metric]:
    pid = str(state.pid)
    members = (("anon", state.rss.anon), ("file", state.rss.file), ("shmem", state.rss.shmem))
    yield _gauge(
        "info",
        "What is traced, and by which version.",
        ["command", "version"],
        [((pid, state.command, __version__), 1)],
    )
    yield _gauge(
        "rss_bytes", "Resident memory by kind of page.", ["member"], [((pid, name), size) for name, size in members]
    )
    yield _gauge("swap_bytes", "Memory swapped out.", [], [((pid,), state.rss.swap)])
    yield _gauge(
        "rss_growth_bytes", "Growth of RSS since tracing began.", [], [((pid,), state.rss.rss - state.rss_start.rss)]
    )
    classes = [((pid, name), size) for name, size in state.rss_by_class.items()]
    yield _gauge("class_rss_bytes", "Resident memory by class of VMA, at the latest look.", ["class"], classes)
    yield _gauge("class_age_seconds", "How long ago the latest look at the VMAs was.", [], [((pid,), state.class_age)])
    yield _gauge("window_seconds", "For how long the process has been traced.", [], [((pid,), state.seconds)])
    yield _gauge("updated_timestamp_seconds", "When these figures were taken.", [], [((pid,), updated)])


def _of_stacks(state: LiveState) -> Iterator[Metric]:
    pid = str(state.pid)
    top = sorted(state.stacks, key=lambda stack: -stack.bytes)[:TOP_STACKS]
    labels = [(pid, stack.id, stack.kind, stack.label) for stack in top]
    names = ["stack", "kind", "site"]
    yield _gauge("live_bytes", "Allocated since tracing began and not freed.", [], [((pid,), state.live_bytes)])
    yield _gauge("live_blocks", "The number of these blocks.", [], [((pid,), state.live_count)])
    yield _gauge(
        "stack_live_bytes",
        "The same by call stack: those that hold most.",
        names,
        zip(labels, (stack.bytes for stack in top), strict=True),
    )
    yield _gauge(
        "stack_live_blocks",
        "The number of these blocks.",
        names,
        zip(labels, (stack.count for stack in top), strict=True),
    )
    yield _gauge(
        "stack_rate_bytes_per_second",
        "Mean growth since tracing began.",
        names,
        zip(labels, (stack.rate for stack in top), strict=True),
    )


def _of_tracing(state: LiveState) -> Iterator[Metric]:
    pid = str(state.pid)
    losses = [((pid, name), count) for name, count in state.losses.items()]
    yield _counter("losses", "What was lost, by kind: above 0, figures are incomplete.", ["loss"], losses)
    yield _counter("probe_hits", "How often memtrace's probes were hit.", [], [((pid,), state.probe_hits)])


def _label(value: str) -> str:
    text = printable(value)
    return text if len(text) <= _MAX_LABEL else text[: _MAX_LABEL - 3] + "..."
