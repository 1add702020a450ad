"""The budget: how much tracing the target's CPU time allows. Pure: what it costs goes in, what to do comes out.

The limit is a share of the CPU time that the target uses, or of one CPU's where it uses less than that.

Above the limit it first samples more coarsely, where that would do, and then lets the malloc probes go. They come back
for short windows, at a distance at which what the windows cost is repaid by the limit, and stay when a window shows
that the load has fallen. Of page faults, as many get a stack as a part of the limit pays for.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum

from tracer.model.sampling import DEFAULT_SAMPLE_BYTES, LONGEST_SAMPLE_BYTES
from tracer.units import human_bytes, human_seconds, percent

TICK_SECONDS = 0.1
WINDOW_SECONDS = 0.02
# The promise is the limit; what is aimed at leaves room for what the counters do not see (probes coming and going).
_AIM = 0.45
# A window that costs less than this share of the limit ends the rest.
_COME_BACK = 0.8
_SHORTEST_REST, _LONGEST_REST = 0.9, 3.0
# Less CPU time than this (seconds) says nothing about shares.
_LEAST_CPU = 0.002
_LONGEST_WINDOW = 0.1
# A burst whose traps cost no more CPU time than this (seconds) beyond what the limit allows is let be.
_TOLERATED = 0.02
# A judgement looks back so far (seconds).
_MEMORY = 0.3
_CALM = 3.0
# The part of the limit that stacks of page faults may take, and the fewest that are taken: one in so many.
_FOR_FAULT_STACKS = 0.2
_FEWEST_FAULT_STACKS = 64


@dataclass(frozen=True, slots=True)
class Load:
    """What passed since the last look, in seconds: wall time, the target's CPU time, and what of it were our traps.

    ``sampled`` is the part of ``malloc`` that a coarser interval saves: stacks, return traps and tables.
    """

    wall: float
    cpu: float
    malloc: float = 0.0
    sampled: float = 0.0
    faults: float = 0.0
    fault_stacks: float = 0.0

    @property
    def cost(self) -> float:
        """All of it."""
        return self.malloc + self.faults

    def __add__(self, other: Load) -> Load:
        return Load(*(getattr(self, name) + getattr(other, name) for name in _LOAD_FIELDS))

    def __mul__(self, factor: float) -> Load:
        return Load(*(getattr(self, name) * factor for name in _LOAD_FIELDS))


_LOAD_FIELDS = tuple(Load.__dataclass_fields__)
_NOTHING = Load(0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be in force until the next look, ``look_in`` seconds from now.

    Of ``fault_stacks`` page faults one gets a stack.
    """

    sample_bytes: int
    probes_on: bool = True
    fault_stacks: int = 1
    look_in: float = TICK_SECONDS


@dataclass(frozen=True, slots=True)
class Step:
    """A change, for the report: seconds since the start, what was done, and the share of CPU time that led to it."""

    seconds: float
    action: str
    share: float


class _Phase(Enum):
    TRACING = 1
    RESTING = 2
    WINDOW = 3


@dataclass(slots=True)
class Budget:
    """Decides at each look. ``limit`` is a share of the target's CPU time (0.05), None for no limit."""

    limit: float | None
    sample_bytes: int = DEFAULT_SAMPLE_BYTES
    steps: list[Step] = field(default_factory=list)
    windows: int = 0
    _orders: Orders = field(init=False)
    _phase: _Phase = _Phase.TRACING
    _recent: Load = _NOTHING
    _since: Load = _NOTHING
    _debt: float = 0.0
    _calm: float = 0.0
    _seconds: float = 0.0
    _fault_load: Load = _NOTHING

    def __post_init__(self) -> None:
        self._orders = Orders(self.sample_bytes)

    @property
    def ever_off(self) -> bool:
        """Whether the malloc probes were off at any time."""
        return self.windows > 0 or self._phase is not _Phase.TRACING

    @property
    def resting(self) -> bool:
        """Whether the probes are in for windows only, if at all."""
        return self._phase is not _Phase.TRACING

    def look(self, load: Load) -> Orders:
        """Take in what passed since the last look; returns what is to be in force from now on."""
        self._seconds += load.wall
        if self.limit is None:
            return self._orders
        self._recent = self._recent * 0.5 ** (load.wall / _MEMORY) + load
        self._since = self._since + load
        self._debt = max(0.0, self._debt + load.cost - _AIM * self.limit * load.cpu)
        if self._phase is _Phase.TRACING:
            self._while_tracing(load)
        elif self._phase is _Phase.RESTING:
            self._while_resting()
        else:
            self._in_window()
        self._fault_load = self._fault_load * 0.5 ** (load.wall / _CALM) + load
        self._watch_faults()
        return self._orders

    def _while_tracing(self, load: Load) -> None:
        assert self.limit is not None
        share = _share(self._recent) if self._recent.cpu >= _LEAST_CPU else 0.0
        if share <= self.limit:
            self._calm = self._calm + load.wall if share <= 0.3 * self.limit else 0.0
            if self._calm >= _CALM:
                self._sample_finer()
            return
        self._calm = 0.0
        if self._debt < _TOLERATED:
            return
        if self._orders.sample_bytes < LONGEST_SAMPLE_BYTES and self._coarser_would_do():
            interval = max(DEFAULT_SAMPLE_BYTES, min(LONGEST_SAMPLE_BYTES, 4 * self._orders.sample_bytes))
            self._record(f"sampling every {human_bytes(interval)}", share)
            self._change(replace(self._orders, sample_bytes=interval))
        elif self._recent.malloc > self._recent.cost / 4:
            self._record("malloc probes off but for short windows; page faults and VMAs go on", share)
            self._rest()

    def _coarser_would_do(self) -> bool:
        """Whether without what sampling costs the limit would hold."""
        assert self.limit is not None
        rest = self._recent.cost - self._recent.sampled
        cpu = self._recent.cpu - self._recent.sampled
        return cpu > 0 and rest <= 0.9 * self.limit * cpu

    def _sample_finer(self) -> None:
        """Back to the interval that was asked for, where what its samples would cost fits in."""
        assert self.limit is not None
        self._calm = 0.0
        factor = self._orders.sample_bytes / self.sample_bytes
        more = self._recent.sampled * (factor - 1)
        idle = self._recent.cpu < _LEAST_CPU
        if factor > 1 and (idle or self._recent.cost + more <= self.limit / 2 * (self._recent.cpu + more)):
            self._record(f"sampling every {human_bytes(self.sample_bytes)} again", _share(self._recent))
            self._change(replace(self._orders, sample_bytes=self.sample_bytes))

    def _while_resting(self) -> None:
        rested = self._since.wall
        if rested < _LONGEST_REST and (rested < _SHORTEST_REST or self._debt > 0):
            return
        self._phase = _Phase.WINDOW
        self.windows += 1
        # In a window every block is taken: what can be learned from it counts, and its length bounds its cost.
        self._change(replace(self._orders, probes_on=True, sample_bytes=1, look_in=WINDOW_SECONDS))

    def _in_window(self) -> None:
        assert self.limit is not None
        seen = self._since
        if seen.cpu < _LEAST_CPU and seen.wall < _LONGEST_WINDOW:
            self._orders = replace(self._orders, look_in=WINDOW_SECONDS)
            return
        # What it would be at the interval that was asked for.
        cost, cpu = seen.cost - seen.sampled, seen.cpu - seen.sampled
        if seen.cpu < _LEAST_CPU or cost <= _COME_BACK * self.limit * max(cpu, 0.0):
            self._phase = _Phase.TRACING
            self._record("malloc probes back: the load has fallen", _share(seen))
            self._change(Orders(self.sample_bytes, fault_stacks=self._orders.fault_stacks))
        else:
            self._rest()

    def _rest(self) -> None:
        self._phase = _Phase.RESTING
        self._change(replace(self._orders, probes_on=False, sample_bytes=self.sample_bytes, look_in=TICK_SECONDS))

    def _watch_faults(self) -> None:
        """Take the stacks of so many page faults that they cost no more than a part of the limit."""
        assert self.limit is not None
        now = self._orders.fault_stacks
        if self._fault_load.cpu < _LEAST_CPU:
            return
        if_all = now * self._fault_load.fault_stacks / self._fault_load.cpu
        wanted = 1
        while wanted < _FEWEST_FAULT_STACKS and if_all / wanted > _FOR_FAULT_STACKS * self.limit:
            wanted *= 2
        if wanted > now or 4 * wanted <= now:
            if now == 1:
                self._record("stacks of a part of the page faults only", _share(self._fault_load))
            self._orders = replace(self._orders, fault_stacks=wanted)

    def _change(self, orders: Orders) -> None:
        self._orders = orders
        self._recent = self._since = _NOTHING

    def _record(self, action: str, share: float) -> None:
        self.steps.append(Step(self._seconds, action, share))


def _share(load: Load) -> float:
    return load.cost / load.cpu if load.cpu > 0 else 0.0


def describe(step: Step) -> str:
    """A step in words."""
    return f"{human_seconds(step.seconds)}: {step.action} (traps took {percent(step.share)} of its CPU time)"
