"""Names as their authors wrote them, and never an escape sequence."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.symbols import demangle as module
from tracer.symbols.demangle import demangle, printable

needs_libstdcxx = pytest.mark.skipif(module._library() is None, reason="libstdc++ is not installed")


@needs_libstdcxx
@pytest.mark.parametrize(
    ("mangled", "expected"),
    [
        (b"_Znwm", "operator new(unsigned long)"),
        (b"_ZNSt6vectorIiSaIiEE9push_backERKi", "std::vector<int, std::allocator<int> >::push_back(int const&)"),
        (b"_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE", "core::fmt::Formatter::write_str"),
        (
            b"_ZN58_$LT$alloc..string..String$u20$as$u20$core..fmt..Write$GT$9write_str17h0123456789abcdefE",
            "<alloc::string::String as core::fmt::Write>::write_str",
        ),
        (b"malloc", "malloc"),
        (b"_Zbroken", "_Zbroken"),
        (b"", ""),
    ],
)
def test_names_are_demangled(mangled: bytes, expected: str) -> None:
    assert demangle(mangled) == expected


def test_without_the_library_names_stay_mangled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_library", lambda: None)
    assert demangle(b"_Znwm") == "_Znwm"


def doubling(levels: int) -> bytes:
    """A name each level of which prints the one before twice."""
    name = "_Z1f1AIiiE"
    for level in range(1, levels):
        inner = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[min(level - 1, 35)]
        name += f"S_IS{inner}_S{inner}_E"
    return name.encode()


def test_names_that_expand_exponentially_are_left_alone() -> None:
    start = time.monotonic()
    for levels in range(1, 36):
        assert len(demangle(doubling(levels))) <= module.MAX_PRINTED + 3
    assert demangle(doubling(35)) == doubling(35).decode()
    assert time.monotonic() - start < 20  # Minutes, and all memory, where the bound is missing.


def test_long_names_are_cut() -> None:
    assert len(demangle(b"_Z" + b"x" * 1_000_000)) == module.MAX_PRINTED + 3


@given(st.one_of(st.text(), st.text("\x1b\r\n\x9b[]0;\x07\u202e\u200fa")))
def test_nothing_unprintable_is_left(text: str) -> None:
    shown = printable(text)
    shown.encode()
    assert not any(ord(c) < 0x20 or 0x7F <= ord(c) < 0xA0 or c in "\u202e\u200f\u2028" for c in shown)


@given(st.binary(max_size=300))
def test_any_bytes_can_be_shown(name: bytes) -> None:
    demangle(name).encode()
    demangle(b"_Z" + name.replace(b"\0", b"")).encode()


def test_an_escape_sequence_is_shown_as_text() -> None:
    assert demangle(b"\x1b]0;owned\x07") == "\\x1b]0;owned\\x07"
