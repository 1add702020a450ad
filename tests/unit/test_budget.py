"""The controller against simulated loads: the limit holds, it settles, it comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.budget import TICK_SECONDS, WINDOW_SECONDS, Budget, Load, Orders
from tracer.model.sampling import DEFAULT_SAMPLE_BYTES, LONGEST_SAMPLE_BYTES

LIMIT = 0.05
TRAP, SAMPLED, FAULT, STACK = 0.7e-6, 1.5e-6, 0.3e-6, 0.7e-6
# Putting the probes in and taking them out takes so long; meanwhile they are in, to half.
SWITCHING = 0.02


@dataclass
class Target:
    """A process that would like to do so many malloc calls and page faults a second on so many CPUs.

    A call takes ``work`` seconds of CPU time untraced, so that traps slow a busy process down.
    """

    calls: Callable[[float], float]
    faults: float = 0.0
    cpus: float = 1.0
    work: float = 20e-9
    bytes: int = 300
    budget: Budget = field(default_factory=lambda: Budget(LIMIT))
    now: float = 0.0
    log: list[tuple[float, float, float, Orders]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        orders = self.log[-1][3] if self.log else Orders(self.budget.sample_bytes)
        end = self.now + seconds
        while self.now < end:
            load = self._pass(orders.look_in, orders, probed=1.0 if orders.probes_on else 0.0)
            before, orders = orders, self.budget.look(load)
            self.log.append((self.now, load.cost, load.cpu, orders))
            if before.probes_on != orders.probes_on:
                switching = self._pass(SWITCHING, orders, probed=0.5)
                self.log.append((self.now, switching.cost, switching.cpu, orders))
                # What passes meanwhile is seen at the next look.
                self._carried = switching

    _carried: Load = field(default_factory=lambda: Load(0.0, 0.0))

    def _pass(self, wall: float, orders: Orders, probed: float) -> Load:
        chance = min(1.0, self.bytes / orders.sample_bytes)
        dear = 2 * TRAP + chance * SAMPLED
        of_faults = self.faults * wall * (FAULT + STACK / orders.fault_stacks)
        wanted = self.calls(self.now) * wall
        room = self.cpus * wall - of_faults
        slow, quick = probed * wall / wall, 1 - probed
        each = self.work + slow * dear
        calls = min(wanted, room / each) if each > 0 else wanted
        if slow and quick:
            calls = slow * min(wanted, room / (self.work + dear)) + quick * min(wanted, room / self.work)
            slow = min(wanted, room / (self.work + dear)) * slow / max(calls, 1e-9)
        malloc = calls * slow * dear
        cpu = min(self.cpus * wall, calls * self.work + malloc + of_faults)
        self.now += wall
        load = Load(
            wall,
            cpu,
            malloc=malloc,
            sampled=calls * slow * chance * SAMPLED,
            faults=of_faults,
            fault_stacks=self.faults * wall * STACK / orders.fault_stacks,
        )
        carried, self._carried = self._carried, Load(0.0, 0.0)
        return load + carried

    def share(self, since: float) -> float:
        """Traps' share of CPU time from then on."""
        rows = [row for row in self.log if row[0] > since]
        return sum(row[1] for row in rows) / sum(row[2] for row in rows)

    @property
    def orders(self) -> Orders:
        return self.log[-1][3]


def steady(rate: float) -> Callable[[float], float]:
    return lambda _now: rate


def test_a_quiet_process_is_traced_as_asked() -> None:
    target = Target(steady(5_000), cpus=0.5, work=1e-4)
    target.run(20)
    assert not target.budget.steps and not target.budget.ever_off
    assert target.orders == Orders(DEFAULT_SAMPLE_BYTES)


@pytest.mark.parametrize("cpus", [1.0, 4.0, 32.0])
def test_a_hot_loop_is_let_go_within_three_seconds(cpus: float) -> None:
    target = Target(steady(1e12), cpus=cpus)
    target.run(20)
    assert target.budget.resting and len(target.budget.steps) == 1
    assert target.budget.steps[0].seconds < 1
    assert target.share(since=3) < LIMIT
    assert target.budget.windows >= 5


def test_windows_are_short_and_take_every_block() -> None:
    target = Target(steady(1e12))
    target.run(10)
    windows = [orders for _, _, _, orders in target.log if orders.probes_on][1:]
    assert windows and all(orders.look_in == WINDOW_SECONDS and orders.sample_bytes == 1 for orders in windows)


def test_it_comes_back_when_the_load_falls() -> None:
    target = Target(lambda now: 1e12 if now < 10 else 100.0)
    target.run(15)
    assert not target.budget.resting and target.orders.probes_on
    assert target.orders.sample_bytes == DEFAULT_SAMPLE_BYTES and target.orders.look_in == TICK_SECONDS
    assert [step.action.split(":")[0] for step in target.budget.steps][-1] == "malloc probes back"


def test_large_blocks_are_sampled_more_coarsely_first() -> None:
    """At 15 KiB, samples are most of the cost: coarser ones keep the probes in."""
    target = Target(steady(25_000), work=39e-6, bytes=15 << 10, budget=Budget(LIMIT, 4096))
    target.run(10)
    assert not target.budget.ever_off and 4096 < target.orders.sample_bytes <= LONGEST_SAMPLE_BYTES
    assert target.budget.steps[0].action.startswith("sampling every")
    assert target.share(since=3) < LIMIT


def test_finer_again_when_there_is_room() -> None:
    target = Target(lambda now: 25_000 if now < 5 else 0, work=39e-6, bytes=15 << 10, budget=Budget(LIMIT, 4096))
    target.run(20)
    assert target.orders.sample_bytes == 4096


def test_everything_is_given_up_for_samples_before_the_probes_go() -> None:
    target = Target(steady(19_000), work=50e-6, budget=Budget(LIMIT, 1))
    target.run(5)
    assert target.orders.sample_bytes == DEFAULT_SAMPLE_BYTES and not target.budget.ever_off


def test_without_a_limit_nothing_changes() -> None:
    target = Target(steady(1e12), budget=Budget(None, 1))
    target.run(5)
    assert target.orders == Orders(1) and not target.budget.steps


def test_a_faulting_process_has_stacks_of_a_part_of_its_faults() -> None:
    target = Target(steady(0.0), faults=400_000)
    target.run(10)
    assert target.orders.fault_stacks > 1 and target.orders.probes_on
    assert sum("stacks of a part" in step.action for step in target.budget.steps) == 1
    stacks = 400_000 * STACK / target.orders.fault_stacks
    assert stacks <= 0.2 * LIMIT * (stacks + 400_000 * FAULT) * 1.01 or target.orders.fault_stacks == 64


def test_an_idle_process_keeps_its_probes() -> None:
    target = Target(steady(0.0))
    target.run(5)
    assert target.orders == Orders(DEFAULT_SAMPLE_BYTES) and not target.budget.steps


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.0, 300.0, 3e4, 1e6, 1e12]), min_size=1, max_size=8),
    st.floats(0.3, 6.0),
    st.sampled_from([0.5, 1.0, 8.0]),
    st.sampled_from([20e-9, 1e-6, 100e-6]),
)
def test_whatever_the_load_does_the_cost_is_bounded(
    rates: list[float], seconds: float, cpus: float, work: float
) -> None:
    """Over a minute of a load that changes at any pace: the limit, and what it takes to notice each rise of it."""
    target = Target(lambda now: rates[int(now / seconds) % len(rates)], cpus=cpus, work=work)
    target.run(60)
    spent, used = sum(row[1] for row in target.log), sum(row[2] for row in target.log)
    assert spent <= LIMIT * used + 0.35 * cpus * (1 + 60 / max(seconds, 1.0))
