"""The lower half of the demangler for Rust's v0 names: characters in, text out, within limits."""

from __future__ import annotations

import re
from collections.abc import Callable

MAX_DEPTH = 128
MAX_STEPS = 1 << 14
MAX_OUTPUT = 1 << 14

_DIGITS = {c: i for i, c in enumerate("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")}
_DECIMAL = re.compile("0|[1-9][0-9]*")


class NotMangledError(ValueError):
    """The name does not follow the grammar, or exceeds the limits."""


class FullError(Exception):
    """As much was written as may be."""


class Reader:
    """Reads the name and writes the text in one pass; a back reference reads an earlier part again."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._out: list[str] = []
        self._length = 0
        self._silent = 0
        self._depth = 0
        self._steps = 0

    def written(self) -> str:
        """The text so far."""
        return "".join(self._out)

    # Reading and writing

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        if self._at >= len(self._text):
            raise NotMangledError
        self._at += 1
        return self._text[self._at - 1]

    def _eat(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._at += 1
        return True

    def _print(self, text: str) -> None:
        if self._silent:
            return
        self._out.append(text)
        self._length += len(text)
        if self._length > MAX_OUTPUT:
            raise FullError

    def _enter(self) -> None:
        self._depth += 1
        self._steps += 1
        if self._depth > MAX_DEPTH or self._steps > MAX_STEPS:
            raise NotMangledError

    def _list(self, item: Callable[[], None], separator: str = ", ") -> int:
        """{item} "E", written with the separator between; returns how many there were."""
        count = 0
        while not self._eat("E"):
            if count:
                self._print(separator)
            item()
            count += 1
        return count

    def _base62(self) -> int:
        if self._eat("_"):
            return 0
        value = 0
        while not self._eat("_"):
            value = value * 62 + _DIGITS.get(self._next(), 1 << 64)
            if value >= 1 << 64:
                raise NotMangledError
        return value + 1

    def _optional62(self, tag: str) -> int:
        return self._base62() + 1 if self._eat(tag) else 0

    def _identifier(self) -> tuple[str, int]:
        """[disambiguator] ["u"] length ["_"] bytes -> (name, disambiguator)"""
        disambiguator = self._optional62("s")
        return self._plain_identifier(), disambiguator

    def _plain_identifier(self) -> str:
        is_punycode = self._eat("u")
        length = _DECIMAL.match(self._text, self._at)
        if length is None or len(length[0]) > 4:
            raise NotMangledError
        self._at = length.end()
        self._eat("_")
        start, self._at = self._at, self._at + int(length[0])
        if self._at > len(self._text):
            raise NotMangledError
        name = self._text[start : self._at]
        return _from_punycode(name) if is_punycode else name

    def _back_reference(self, parse: Callable[[], object]) -> None:
        """ "B" base-62-number: what stands at that earlier place. Nothing is read again where nothing is written."""
        tag_at = self._at - 1
        target = self._base62()
        if target >= tag_at:
            raise NotMangledError
        if self._silent:
            return
        here, self._at = self._at, target
        parse()
        self._at = here


def _from_punycode(name: str) -> str:
    """RFC 3492, with "_" where that has "-"."""
    basic, found, coded = name.rpartition("_")
    try:
        return (f"{basic}-{coded}" if found else coded).encode().decode("punycode")
    except (UnicodeError, OverflowError, ValueError):
        return f"punycode{{{name}}}"
