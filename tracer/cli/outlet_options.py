"""The options that hand a running trace on: profiles pushed at intervals, and metrics."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from tracer.cli.option_groups import option_group

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

# For commands that trace: they receive these options as ``outlet_options``.
outlet_options = option_group("outlet_options", OutletOptions, _OPTIONS)
