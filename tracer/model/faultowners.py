"""Which allocating stack a page fault in the allocator's memory belongs to, by the callers that both have.

A fresh page is touched within malloc, or by who gets the block: the stack of the fault then goes on with the same
callers as the stack of the call of malloc.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# How many callers beyond the one that touches the page both must have, where the stacks are that deep.
_INNERMOST = 8


@dataclass(frozen=True, slots=True)
class Allocating:
    """A stack of calls of malloc: addresses, innermost first, the function that calls it, and whether its blocks are
    known to come and go."""

    ips: Sequence[int]
    caller: str | None
    comes_and_goes: bool


def match_faults(
    faulting: Mapping[int, Sequence[int]],
    allocating: Mapping[int, Allocating],
    function_of: Callable[[int, int], str | None],
) -> dict[int, int | None]:
    """Stacks of page faults -> allocating stacks; None for one whose blocks come and go. Others are left out.

    ``function_of(stack, index)`` names the function at a frame.
    """
    same_call: dict[tuple[int, ...], list[int]] = defaultdict(list)
    same_caller: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for stack, known in allocating.items():
        if len(known.ips) > 1:
            same_call[tuple(known.ips[1:])].append(stack)
        if len(known.ips) > 2:
            same_caller[tuple(known.ips[2:])].append(stack)
    found: dict[int, int | None] = {}
    for fault, ips in faulting.items():
        candidates = _within_malloc(ips, same_call) or _by_caller(fault, ips, same_caller, allocating, function_of)
        if candidates:
            staying = [stack for stack in candidates if not allocating[stack].comes_and_goes]
            found[fault] = staying[0] if staying else None
    return found


def _within_malloc(ips: Sequence[int], same_call: Mapping[tuple[int, ...], list[int]]) -> list[int]:
    """The page was touched in malloc itself, or further in: the rest of the stack is the call's."""
    for start in range(min(len(ips), _INNERMOST)):
        if found := same_call.get(tuple(ips[start:])):
            return found
    return []


def _by_caller(
    fault: int,
    ips: Sequence[int],
    same_caller: Mapping[tuple[int, ...], list[int]],
    allocating: Mapping[int, Allocating],
    function_of: Callable[[int, int], str | None],
) -> list[int]:
    """It was touched by the function that called malloc, or further in from there."""
    for start in range(1, min(len(ips), _INNERMOST)):
        candidates = same_caller.get(tuple(ips[start:]))
        if candidates:
            toucher = function_of(fault, start - 1)
            found = [stack for stack in candidates if toucher and allocating[stack].caller == toucher]
            if found:
                return found
    return []
