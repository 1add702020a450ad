"""What a trap costs is measured in a child that leaves nothing behind."""

from __future__ import annotations

from tests.bpf.harness import wait_for
from tests.bpf.kernel import bpf_objects
from tracer.calibration import Calibration, TrapCosts


def test_traps_are_measured_and_all_is_given_back() -> None:
    before = bpf_objects()
    calibration = Calibration()
    costs = calibration.result(patience=20.0)
    calibration.close()
    assert costs.measured
    # No figure of this machine: only what must hold on any.
    assert 50 < costs.entry < costs.returned and costs.skipped < costs.returned
    assert costs.stepped > costs.entry
    # The kernel frees links after a grace period, in the background.
    wait_for(lambda: not {item for item in bpf_objects() - before if item.kind == "link"}, "its links are gone")


def test_who_cannot_wait_takes_the_figures_of_a_typical_machine() -> None:
    calibration = Calibration()
    try:
        assert calibration.result(patience=0.0) == TrapCosts()
        assert calibration.result() == TrapCosts(), "they do not change in the course of a trace"
    finally:
        calibration.close()
