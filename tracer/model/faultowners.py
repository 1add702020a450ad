"""Which allocating stack a page fault in the allocator's memory belongs to, by the callers that both have.

A fresh page is touched within malloc, or by who gets the block: the stack of the fault then goes on with the same
callers as the stack of the call of malloc.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# So many frames may lie between the caller that both have in common and the allocator, or the touch.
_BETWEEN = 10
# Code without names: addresses that are this close are taken to be in one function.
_CLOSE = 512
_FILLS = re.compile(r"_*(mem|wmem|str|wcs|bzero|bcopy)")


@dataclass(frozen=True, slots=True)
class Allocating:
    """A stack of calls of malloc: addresses, innermost first, and whether its blocks are known to come and go."""

    ips: Sequence[int]
    comes_and_goes: bool


def match_faults(
    faulting: Mapping[int, Sequence[int]],
    allocating: Mapping[int, Allocating],
    function_at: Callable[[int], str | None],
) -> dict[int, int | None]:
    """Stacks of page faults -> allocating stacks; None for one whose blocks come and go. Others are left out.

    ``function_at`` names the function at a return address.
    """
    by_callers: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for stack, known in allocating.items():
        for depth in range(1, min(len(known.ips), _BETWEEN)):
            by_callers[tuple(known.ips[depth:])].append((stack, depth))
    found: dict[int, int | None] = {}
    for fault, ips in faulting.items():
        candidates = _candidates(ips, allocating, by_callers, function_at)
        if candidates:
            staying = [stack for stack in candidates if not allocating[stack].comes_and_goes]
            found[fault] = staying[0] if staying else None
    return found


def _candidates(
    ips: Sequence[int],
    allocating: Mapping[int, Allocating],
    by_callers: Mapping[tuple[int, ...], list[tuple[int, int]]],
    function_at: Callable[[int], str | None],
) -> list[int]:
    """The allocating stacks that share most callers: up to the call of malloc itself, or up to who touches the page."""
    for start in range(min(len(ips), _BETWEEN)):
        same = by_callers.get(tuple(ips[start:]), [])
        within = [stack for stack, depth in same if depth == 1]
        if within or not same:
            if within:
                return within
            continue
        # Between the common function and the page there may be memset, but no function that allocates for itself.
        if start == 1 or (start > 1 and _FILLS.match(function_at(ips[start - 2]) or "")):
            near = [
                stack
                for stack, depth in same
                if _same_function(ips[start - 1], allocating[stack].ips[depth - 1], function_at)
            ]
            if near:
                return near
    return []


def _same_function(ip: int, other: int, function_at: Callable[[int], str | None]) -> bool:
    name, other_name = function_at(ip), function_at(other)
    return name == other_name if name or other_name else abs(ip - other) < _CLOSE
