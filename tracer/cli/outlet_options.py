"""The options that hand a running trace on: profiles pushed at intervals, and metrics."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tracer.push.outlets import Destinations
    from tracer.target import TargetInfo

_LEAST_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutletOptions:
    """What the user typed."""

    push: str | None
    push_interval: float
    metrics: str | None

    def destinations(self, target: TargetInfo) -> Destinations:
        """What that means for a process. Raises UsageError."""
        from tracer.push.endpoint import parse_endpoint
        from tracer.push.exporter import parse_place
        from tracer.push.outlets import Destinations

        return Destinations(
            parse_endpoint(self.push, os.environ, target.command, target.pid) if self.push is not None else None,
            self.push_interval,
            parse_place(self.metrics) if self.metrics is not None else None,
        )


_OPTIONS = (
    click.option(
        "--push",
        metavar="URL",
        help="Push pprof profiles to a Pyroscope-compatible server at intervals, such as http://localhost:4040.",
    ),
    click.option(
        "--push-interval",
        type=click.FloatRange(min=_LEAST_SECONDS, max=86_400.0),
        default=15.0,
        show_default=True,
        metavar="SECONDS",
        help="Distance of pushed profiles.",
    ),
    click.option(
        "--metrics",
        metavar="[HOST]:PORT|FILE",
        help="Serve Prometheus metrics, or keep them in FILE.prom for node_exporter.",
    ),
)


def outlet_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command these options; it receives them as ``outlet_options``, an OutletOptions."""

    @functools.wraps(function)
    def with_options(*arguments: Any, **options: Any) -> Any:
        ours = OutletOptions(**{each.name: options.pop(each.name) for each in fields(OutletOptions)})
        return function(*arguments, outlet_options=ours, **options)

    for option in reversed(_OPTIONS):
        with_options = option(with_options)
    return with_options
