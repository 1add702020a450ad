"""The bound on what reads may cost: measured, foreseen, kept."""

from __future__ import annotations

import pytest

from tests.unit.watches import Clock
from tracer.watch.meter import ReadMeter


def read(meter: ReadMeter, clock: Clock, name: str, estimate: float, takes: float) -> None:
    clock.pass_by(takes)
    meter.record(name, estimate, takes)


def test_what_reads_cost_is_counted() -> None:
    clock = Clock()
    meter = ReadMeter(clock)
    read(meter, clock, "maps", 0.001, 0.002)
    read(meter, clock, "smaps", 0.01, 0.03)
    read(meter, clock, "smaps", 0.01, 0.01)
    clock.pass_by(9.958)
    assert [(cost.name, cost.count) for cost in meter.costs()] == [("smaps", 2), ("maps", 1)]
    assert meter.costs()[0].seconds == pytest.approx(0.04)
    assert meter.costs()[0].longest == pytest.approx(0.03)
    assert meter.share() == pytest.approx(0.0042)


def test_nothing_is_affordable_at_once_and_everything_with_time() -> None:
    clock = Clock()
    meter = ReadMeter(clock, share=0.01)
    assert not meter.affords("smaps", 0.001)
    clock.pass_by(0.11)
    assert meter.affords("smaps", 0.001)
    read(meter, clock, "smaps", 0.001, 0.001)
    assert not meter.affords("smaps", 0.001)
    clock.pass_by(0.1)
    assert meter.affords("smaps", 0.001)


def test_what_is_reserved_is_kept_free() -> None:
    clock = Clock()
    meter = ReadMeter(clock, share=0.01)
    clock.pass_by(10)
    meter.reserve(0.095)
    assert meter.affords("maps", 0.005) and not meter.affords("maps", 0.006)


def test_the_formula_is_corrected_by_experience_but_not_by_one_outlier() -> None:
    clock = Clock()
    meter = ReadMeter(clock)
    assert meter.foresee("smaps", 0.01) == 0.01
    for _ in range(4):
        read(meter, clock, "smaps", 0.01, 0.02)
    read(meter, clock, "smaps", 0.01, 5.0)
    assert meter.foresee("smaps", 0.02) == pytest.approx(0.04)
    assert meter.foresee("maps", 0.02) == 0.02


@pytest.mark.parametrize("cost", [0.0001, 0.004, 0.05, 0.4])
def test_the_share_is_kept_whatever_a_read_costs(cost: float) -> None:
    clock = Clock()
    meter = ReadMeter(clock, share=0.01)
    for _ in range(600):
        if meter.affords("smaps", 0.001):
            read(meter, clock, "smaps", 0.001, cost)
        clock.pass_by(1.0)
    # The first reads are let through by an estimate that is too low: one of them is the most by which it is exceeded.
    assert meter.share() <= 0.01 + cost / 600
    assert meter.costs()[0].count >= min(599, 0.5 * 6.0 / cost)
