"""Claims cut ranges as if each address were painted by itself."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tracer.model.class_names import ClassRange
from tracer.model.painting import OPEN, Claims, joined, paint


@st.composite
def tilings(draw: st.DrawFn) -> list[ClassRange]:
    position, pieces = draw(st.integers(0, 5)), []
    for _ in range(draw(st.integers(0, 6))):
        size = draw(st.integers(1, 8))
        pieces.append(ClassRange(position, position + size, draw(st.sampled_from([OPEN, OPEN, "heap", "file"]))))
        position += size + draw(st.sampled_from([0, 0, 3]))
    return pieces


CLAIMS = st.lists(
    st.builds(
        lambda start, size, name: ClassRange(start, start + size, name, "of it"),
        st.integers(0, 50),
        st.integers(0, 12),
        st.sampled_from(["bss", "jit"]),
    ),
    max_size=8,
)


def addresses(ranges: list[ClassRange]) -> dict[int, tuple[str, str]]:
    return {address: (r.name, r.detail) for r in ranges for address in range(r.start, r.end)}


def wanted(claims: list[ClassRange]) -> dict[int, tuple[str, str]]:
    """Of claims that overlap, the one that begins first (and of these, the one that was made first)."""
    return addresses(sorted(claims, key=lambda claim: claim.start)[::-1])


@given(tilings(), CLAIMS, st.sampled_from([OPEN, "heap"]))
def test_painting_is_address_by_address(pieces: list[ClassRange], claims: list[ClassRange], over: str) -> None:
    before, claimed = addresses(pieces), wanted(claims)
    painted = paint(pieces, Claims(claims), over)
    expected = {
        address: claimed.get(address, content) if content[0] == over else content for address, content in before.items()
    }
    assert addresses(painted) == expected
    for one, other in pairwise(painted):
        assert one.start < one.end <= other.start < other.end


@given(CLAIMS, st.integers(0, 60), st.integers(0, 60))
def test_claims_are_found_by_address(claims: list[ClassRange], one: int, other: int) -> None:
    start, end = min(one, other), max(one, other)
    found = addresses(list(Claims(claims).within(start, end)))
    claimed = wanted(claims)
    assert {a: c for a, c in found.items() if start <= a < end} == {
        a: c for a, c in claimed.items() if start <= a < end
    }


@given(tilings())
def test_joining_changes_no_address(pieces: list[ClassRange]) -> None:
    together = joined(pieces)
    assert addresses(together) == addresses(pieces)
    for one, other in pairwise(together):
        assert one.end < other.start or one.name != other.name
