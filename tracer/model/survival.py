"""What is left of blocks that were seen allocated in short windows, when most frees go unseen.

While the malloc probes are off, a block may be freed without a trace: what is still in the table of live blocks has
*lived through a gap*, and may be gone. How many are left follows from what the windows show. A death that comes at any
time falls into a window with the chance that is the windows' share of the time: so many frees of blocks from earlier
windows stand for so many deaths. As few frees tell little, the estimate is the lower end of what they allow. Blocks
that nobody is seen to free stay whole: a leak. Lives that are shorter than a gap end unseen; but then their addresses
are used again, and freed again, in a later window, which counts as a death just as well.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tracer.model.blocks import Blocks
from tracer.model.sampling import bytes_for

# How far below the estimate its lower end is, in standard errors of the number of frees.
_SIGMAS = 2.0


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which the malloc probes were in: nanoseconds of CLOCK_MONOTONIC; ``end`` 0: they still are."""

    start: int
    end: int = 0

    def seconds(self, now: int) -> float:
        """How long it lasted, or has lasted until ``now``."""
        return ((self.end or now) - self.start) / 1e9


def probed_share(windows: Sequence[Window], start: int, now: int) -> float:
    """The share of the time from ``start`` to ``now`` in which the probes were in."""
    if now <= start:
        return 1.0
    return min(1.0, sum(window.seconds(now) for window in windows) * 1e9 / (now - start))


def lived_through_gap(windows: Sequence[Window], time_ns: int, now: int) -> bool:
    """Whether the probes were off at some time since ``time_ns``."""
    last = windows[-1] if windows else Window(0)
    return time_ns < last.start or 0 < last.end < now


@dataclass(frozen=True, slots=True)
class KnownBlocks:
    """``live`` blocks. Where there were gaps: ``verified``, those of them that lived through one, and ``unverified``,
    which did, too, but are not among the live ones, as nothing proves that they are.
    """

    live: Blocks
    verified: Blocks | None = None
    unverified: Blocks | None = None


# Of these addresses, those at which the allocator itself has a block for live; None where it cannot tell.
Verify = Callable[[Sequence[int]], "set[int] | None"]


def sort_out(blocks: Blocks, windows: Sequence[Window], now: int, verify: Verify | None) -> KnownBlocks:
    """Set apart what lived through a gap, and keep of it what the allocator vouches for."""
    late = {i for i, birth in enumerate(blocks.times) if lived_through_gap(windows, birth, now)}
    addresses = [blocks.addresses[i] for i in sorted(late)]
    vouched = verify(addresses) if verify is not None and addresses else None
    none = blocks.where(lambda _: False)
    if vouched is None:
        return KnownBlocks(blocks.where(lambda i: i not in late), none, blocks.where(late.__contains__))
    live = blocks.where(lambda i: i not in late or blocks.addresses[i] in vouched)
    return KnownBlocks(live, blocks.where(lambda i: i in late and blocks.addresses[i] in vouched), none)


def share_left(blocks: int, late_frees: float, probed: float) -> float:
    """The share of a stack's blocks that is left, at least.

    So many ``blocks`` came out of their windows and were not seen freed, ``late_frees`` were; ``probed`` is the share
    of the time since in which they could be.
    """
    if not late_frees or not blocks:
        return 1.0
    if probed <= 0:
        return 0.0
    deaths = (late_frees + _SIGMAS * math.sqrt(late_frees)) / probed
    return max(0.0, 1 - max(0.0, deaths - late_frees) / blocks)


def _index_of(birth: int, windows: Sequence[Window]) -> int:
    return bisect_right([window.start for window in windows], birth) - 1


def stands_for_time(birth: int, windows: Sequence[Window], now: int) -> float:
    """How much time each second of the window of this birth stands for: the gap before it is like it, by supposition.

    Of a thread that the probes slow down, a window sees less than its share of the time: this errs on the low side.
    """
    index = _index_of(birth, windows)
    if index < 1:
        return 1.0
    window, before = windows[index], windows[index - 1]
    seconds = window.seconds(now)
    return ((window.end or now) - before.end) / 1e9 / seconds if seconds > 0 else 1.0


class Survivors:
    """What is probably live beyond the blocks that are known to be: places with a stack and estimated bytes.

    ``addresses`` ascend; they are those of the sampled blocks from which the estimates come.
    """

    def __init__(self, places: Sequence[tuple[int, int, float]] = ()) -> None:
        ordered = sorted(places)
        self._addresses = [address for address, _, _ in ordered]
        self._places = ordered

    def within(self, start: int, end: int) -> dict[int, float]:
        """Estimated bytes of each stack in a range of addresses."""
        found: dict[int, float] = defaultdict(float)
        for index in range(bisect_left(self._addresses, start), bisect_left(self._addresses, end)):
            _, stack, amount = self._places[index]
            found[stack] += amount
        return dict(found)


def lasting_share(blocks: Blocks, windows: Sequence[Window], now: int) -> dict[int, float]:
    """Of each stack's live ``blocks``, the share that seems to stay: as many as the older half of the windows has left.

    A leak leaves as much in every window, however long ago. Of blocks that come and go, those of the last windows are
    there, too, but they stand for nothing of the gaps before. A chunk that is in use does not say since when: the
    address may have been freed and used again.
    """
    if not windows:
        return {}
    middle = (windows[0].start + now) // 2
    older = sum(window.seconds(now) for window in windows if window.start < middle)
    whole = sum(window.seconds(now) for window in windows)
    early: dict[int, float] = defaultdict(float)
    total: dict[int, float] = defaultdict(float)
    for size, stack, birth, chance in zip(blocks.sizes, blocks.stacks, blocks.times, blocks.chances, strict=True):
        amount = bytes_for(size, chance)
        total[stack] += amount
        early[stack] += amount if birth < middle else 0.0
    return {stack: min(1.0, early[stack] / older * whole / amount) if older else 1.0 for stack, amount in total.items()}


def _unseen_shares(
    verified: Blocks,
    unverified: Blocks,
    left: Callable[[int, int], float],
    passing: Collection[int],
    windows: Sequence[Window],
    now: int,
) -> dict[int, float]:
    """Of what each stack's ``verified`` blocks would stand for in the gaps, the share that they do stand for."""
    there, others = Counter(verified.stacks), Counter(unverified.stacks)
    births: dict[int, set[int]] = defaultdict(set)
    for stack, birth in zip(verified.stacks, verified.times, strict=True):
        births[stack].add(_index_of(birth, windows))
    shares = lasting_share(verified, windows, now)
    for stack, count in there.items():
        # One window is one look: what it saw once may never have been before.
        if stack not in passing and len(births[stack]) > 1:
            shares[stack] = max(shares[stack], left(stack, count + others[stack]))
    return shares


def estimate_survivors(
    unverified: Blocks,
    verified: Blocks,
    late_frees: Mapping[int, int],
    windows: Sequence[Window],
    now: int,
    passing: Collection[int] = (),
) -> Survivors:
    """What is left of blocks that lived through a gap, and of those that were never seen, as they came in the gaps.

    ``unverified`` may have been freed since; ``verified`` are known to be live, and stand only for the unseen ones, as
    far as their stack seems to keep what it allocates.
    ``late_frees`` are the frees of each stack's blocks in windows later than their own; the blocks of ``passing``
    stacks mostly come and go.
    """
    # What was born in the first window could be seen freed in all the others.
    since = windows[0].end or now if windows else now
    probed = probed_share(windows[1:], since, now) if now > since else 0.0

    def left_of(stack: int, count: int) -> float:
        return share_left(count, late_frees.get(stack, 0), probed)

    left = {stack: left_of(stack, count) for stack, count in Counter(unverified.stacks).items()}
    unseen = _unseen_shares(verified, unverified, left_of, passing, windows, now)
    places = []
    for blocks, seen, share in ((unverified, 0.0, left), (verified, 1.0, unseen)):
        columns = (blocks.addresses, blocks.sizes, blocks.stacks, blocks.times, blocks.chances)
        for address, size, stack, birth, chance in zip(*columns, strict=True):
            stands_for = bytes_for(size, chance) * (stands_for_time(birth, windows, now) - seen)
            places.append((address, stack, stands_for * share[stack]))
    return Survivors(places)
