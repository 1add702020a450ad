"""``memtrace doctor``: what this machine, or a process on it, allows."""

from __future__ import annotations

import sys
from typing import TextIO

import click

from tracer.cli.params import Pid


@click.command()
@click.argument("pid", type=Pid(), required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON (schema memtrace-doctor/1).")
def doctor(pid: int | None, as_json: bool) -> None:
    """What this machine allows: each thing is tried, with what is lost without it and how to get it.

    With PID also what tracing that process would come to: its allocators and where they would be probed, and how much
    of its code can be unwound. Nothing is attached to it.

    Exit status: 0 tracing would work, 1 it would not, 2 usage.
    """
    from tracer.cli.output import write_to_stdout
    from tracer.doctor.machine import can_trace, machine_checks
    from tracer.doctor.target import examine

    target = None if pid is None else examine(pid)
    checks = list(machine_checks())
    works = can_trace(checks) and (target is None or target.is_traceable)

    def render(out: TextIO) -> None:
        if as_json:
            from tracer.report.doctor import write_doctor_json

            write_doctor_json(checks, target, works, out)
            return
        import shutil

        from tracer.report.doctor import doctor_lines, verdict_lines
        from tracer.report.lines import page_for, write_lines

        page = page_for(out, cut_in_pipe=True)
        lines = list(doctor_lines(checks, target, page))
        if out.isatty() and len(lines) >= shutil.get_terminal_size().lines:
            lines += [("", ""), *verdict_lines(checks, target, page)]
        write_lines(lines, out)

    write_to_stdout(render)
    sys.exit(0 if works else 1)
