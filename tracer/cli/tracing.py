"""One tracing session as a command runs it: what it needs is made, in the order that starts quickest."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tracer.calibration import Calibration
from tracer.cli.streams import say
from tracer.probes.holder import ProbeHolder
from tracer.push.outlets import Destinations, Outlets

if TYPE_CHECKING:
    from tracer.children import ChildTracers
    from tracer.cli.stopping import StopSignals
    from tracer.model.look import Recorder
    from tracer.model.report import Report
    from tracer.options import Options
    from tracer.probes.program import Program
    from tracer.target import TargetInfo
    from tracer.unwind.access import UnwindSizes


def trace(
    target: TargetInfo,
    options: Options,
    signals: StopSignals,
    destinations: Destinations,
    children: ChildTracers | None = None,
    recorder: Recorder | None = None,
) -> Report:
    """Trace a process to the end of the window; everything is detached then.

    ``recorder`` is not told of the report: it may have to be added to.
    """
    holder, calibration = ProbeHolder(), Calibration()  # they fork, so they come before the first thread
    outlets = Outlets(destinations, say)
    try:
        with outlets:
            # Compiling takes most of the start: meanwhile everything else is imported.
            with ThreadPoolExecutor(max_workers=1) as compiler:
                loading = compiler.submit(_compile, target.pid, options.max_live)
                from tracer.report.live import GuardedView, open_view
                from tracer.session import Session

                program, sizes = loading.result()
            session = Session(
                target,
                options,
                program,
                holder,
                sizes,
                say,
                signals.requested,
                calibration.result,
                on_tick=outlets.on_tick if outlets.is_wanted else None,
                on_forks=children.look if children is not None else None,
                recorder=recorder,
            )
            report = session.run(GuardedView(open_view(sys.stdout, sys.stderr, os.environ)))
        return outlets.noted(report)
    finally:
        calibration.close()
        holder.close()


def _compile(pid: int, max_live: int) -> tuple[Program, UnwindSizes]:
    from tracer.probes.program import Limits, Program
    from tracer.procfs.maps import read_maps
    from tracer.unwind.access import plan_sizes

    sizes = plan_sizes(pid, read_maps(pid))
    return Program(pid, Limits(live=max_live), sizes), sizes
