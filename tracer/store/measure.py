"""A recording, or part of it, as one side of a comparison: its report, and rates with errors from its looks."""

from __future__ import annotations

from tracer.model.rates import Rate
from tracer.model.report import Report
from tracer.report.comparison import Measured
from tracer.store.course import class_rates, stack_rates
from tracer.store.part import looks_between, report_of_recording
from tracer.store.recording import Recording

# As few looks as tracer.model.rates makes a rate of.
_MIN_LOOKS = 4


def measure(recording: Recording, name: str, begin: float | None = None, end: float | None = None) -> Measured:
    """``begin`` and ``end`` are seconds since the start. Raises RecordingError, and UsageError for an empty part."""
    report = report_of_recording(recording, begin, end)
    looks = looks_between(recording, begin, end)
    rates = {}
    for number, rate in stack_rates(recording, looks).items():
        known = recording.stacks.get(number)
        if known is not None:
            rates[(str(known.kind), known.stack)] = rate
    return Measured(name, report, _of_report(rates, report, len(looks)), class_rates(recording, looks))


def _of_report(rates: dict[tuple[str, str], Rate], report: Report, looks: int) -> dict[tuple[str, str], Rate]:
    """The errors from the looks for the rates of the report, which knows blocks and pages."""
    found = {}
    for stack in report.stacks:
        rate = rates.get((stack.kind, stack.id))
        if rate is not None:
            found[(str(stack.kind), stack.id)] = Rate(stack.rate, rate.error)
        elif not stack.rate and looks >= _MIN_LOOKS:
            found[(str(stack.kind), stack.id)] = Rate(0.0, 0.0)  # it was looked at and did not move
    return found
