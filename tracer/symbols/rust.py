"""Rust's v0 mangling (``_R...``): a symbol's name as the path that its author wrote.

Grammar: Rust RFC 2603 and the rustc book, "v0 Symbol Format". Names come from untrusted files, and back references let
a short one stand for an exponentially long text: depth, steps and output are bounded. What exceeds them or does not
follow the grammar is not demangled. Crates' hashes and the types of integer constants are left out.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from tracer.symbols.rustreader import FullError, NotMangledError, Reader

MAX_NAME = 4096
MAX_LIFETIMES = 256

_BASIC_TYPES = {
    **{"a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize", "j": "usize"},
    **{"l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16", "u": "()", "v": "..."},
    **{"x": "i64", "y": "u64", "z": "!"},
}
_SIGNED, _UNSIGNED = "aslxni", "htmyoj"
_NIBBLES = re.compile("[0-9a-f]*_")
_ESCAPES = {"\\": "\\\\", "\t": "\\t", "\r": "\\r", "\n": "\\n", "\0": "\\0"}
# What LLVM and the like append: ".llvm.1234", ".cold", ".lto_priv.0".
_SUFFIX = re.compile(r"(?:\.llvm\.[0-9A-F@]+)?([.$][ -~]*)?")


def demangle_v0(name: str) -> str | None:
    """The path that the mangled ``name`` stands for, at most about 16,384 characters of it; None if it is none."""
    if not name.startswith("_R") or not name.isascii() or len(name) > MAX_NAME:
        return None
    parser = _Parser(name[2:])
    try:
        return parser.symbol()
    except (NotMangledError, RecursionError):
        return None
    except FullError:
        return parser.written()


class _Parser(Reader):
    """The grammar: a method for each of its rules, which writes what the rule stands for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._bound_lifetimes = 0

    def symbol(self) -> str:
        """symbol-name = path [instantiating-crate] [vendor-specific-suffix]"""
        self._path(in_value=True)
        if self._peek().isupper():
            self._silent += 1
            self._path(in_value=False)
            self._silent -= 1
        suffix = _SUFFIX.fullmatch(self._text, self._at)
        if suffix is None:
            raise NotMangledError
        return self.written() + (suffix[1] or "")

    # Paths

    def _path(self, *, in_value: bool) -> None:
        self._enter()
        tag = self._next()
        if tag == "C":
            self._print(self._identifier()[0])
        elif tag == "N":
            self._nested(in_value=in_value)
        elif tag in "MXY":
            self._implementation(tag)
        elif tag == "I":
            self._path(in_value=in_value)
            self._print("::<" if in_value else "<")
            self._list(self._generic_argument)
            self._print(">")
        elif tag == "B":
            self._back_reference(lambda: self._path(in_value=in_value))
        else:
            raise NotMangledError
        self._depth -= 1

    def _nested(self, *, in_value: bool) -> None:
        space = self._next()
        if not space.isalpha():
            raise NotMangledError
        self._path(in_value=in_value)
        name, disambiguator = self._identifier()
        if space.isupper():
            kind = {"C": "closure", "S": "shim"}.get(space, space)
            self._print(f"::{{{kind}{':' if name else ''}{name}#{disambiguator}}}")
        elif name:
            self._print(f"::{name}")

    def _implementation(self, tag: str) -> None:
        """<T>, <T as Trait>: the path of the impl block itself says only where it stands."""
        if tag != "Y":
            self._optional62("s")
            self._silent += 1
            self._path(in_value=False)
            self._silent -= 1
        self._print("<")
        self._type()
        if tag != "M":
            self._print(" as ")
            self._path(in_value=False)
        self._print(">")

    def _open_path(self) -> bool:
        """A path whose list of generic arguments, if it has one, is left open; returns whether it is."""
        is_open = False

        def again() -> None:
            nonlocal is_open
            is_open = self._open_path()

        self._enter()
        if self._eat("B"):
            self._back_reference(again)
        elif self._eat("I"):
            self._path(in_value=False)
            self._print("<")
            self._list(self._generic_argument)
            is_open = True
        else:
            self._path(in_value=False)
        self._depth -= 1
        return is_open

    def _generic_argument(self) -> None:
        if self._eat("L"):
            self._print(self._lifetime(self._base62()))
        elif self._eat("K"):
            self._constant(in_value=False)
        else:
            self._type()

    def _lifetime(self, index: int) -> str:
        if index == 0:
            return "'_"
        depth = self._bound_lifetimes - index
        if depth < 0:
            raise NotMangledError
        return f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}"

    # Types

    def _type(self) -> None:
        self._enter()
        tag = self._next()
        if tag in _BASIC_TYPES:
            self._print(_BASIC_TYPES[tag])
        elif tag in "RQ":
            self._reference(tag)
        elif tag in "PO":
            self._print("*const " if tag == "P" else "*mut ")
            self._type()
        elif tag in "AS":
            self._array(tag)
        elif tag == "T":
            self._print("(")
            self._print(",)" if self._list(self._type) == 1 else ")")
        elif tag == "F":
            self._in_binder(self._function)
        elif tag == "D":
            self._print("dyn ")
            self._in_binder(lambda: self._list(self._dyn_trait, " + "))
            self._dyn_lifetime()
        elif tag == "W":
            self._type()
            self._print(" is ")
            self._pattern()
        elif tag == "B":
            self._back_reference(self._type)
        else:
            self._at -= 1
            self._path(in_value=False)
        self._depth -= 1

    def _reference(self, tag: str) -> None:
        self._print("&")
        if self._eat("L"):
            index = self._base62()
            self._print(self._lifetime(index) + " " if index else "")
        self._print("" if tag == "R" else "mut ")
        self._type()

    def _array(self, tag: str) -> None:
        self._print("[")
        self._type()
        if tag == "A":
            self._print("; ")
            self._constant(in_value=True)
        self._print("]")

    def _in_binder(self, parse: Callable[[], object]) -> None:
        count = self._optional62("G")
        if count > MAX_LIFETIMES:
            raise NotMangledError
        self._steps += count
        before = self._bound_lifetimes
        self._bound_lifetimes += count
        if count:
            self._print(f"for<{', '.join(self._lifetime(count - i) for i in range(count))}> ")
        parse()
        self._bound_lifetimes = before

    def _function(self) -> None:
        if self._eat("U"):
            self._print("unsafe ")
        if self._eat("K"):
            abi = "C" if self._eat("C") else self._plain_identifier().replace("_", "-")
            self._print(f'extern "{abi}" ')
        self._print("fn(")
        self._list(self._type)
        self._print(")")
        if not self._eat("u"):
            self._print(" -> ")
            self._type()

    def _dyn_trait(self) -> None:
        is_open = self._open_path()
        while self._eat("p"):
            self._print(", " if is_open else "<")
            is_open = True
            self._print(self._plain_identifier() + " = ")
            self._type()
        if is_open:
            self._print(">")

    def _dyn_lifetime(self) -> None:
        if not self._eat("L"):
            raise NotMangledError
        index = self._base62()
        if index:
            self._print(f" + {self._lifetime(index)}")

    def _pattern(self) -> None:
        self._enter()
        tag = self._next()
        if tag == "R":
            self._constant(in_value=False)
            self._print("..=")
            self._constant(in_value=False)
        elif tag == "O":
            self._list(self._pattern, " | ")
        elif tag == "N":
            self._print("!null")
        else:
            raise NotMangledError
        self._depth -= 1

    # Constants

    def _constant(self, *, in_value: bool) -> None:
        """A constant's value; outside of an expression, one that is not a mere literal stands in braces."""
        self._enter()
        tag = self._next()
        if tag == "p":
            self._print("_")
        elif tag in _SIGNED or tag in _UNSIGNED:
            self._print("-" if tag in _SIGNED and self._eat("n") else "")
            digits = self._hex()
            self._print(str(int(digits or "0", 16)) if len(digits) <= 16 else "0x" + digits)
        elif tag == "b":
            self._print({"": "false", "0": "false", "1": "true"}.get(self._hex()) or self._fail())
        elif tag == "c":
            value = int(self._hex() or "0", 16)
            self._print(_literal(chr(value), "'") if value < 0x110000 else self._fail())
        elif tag == "B":
            self._back_reference(lambda: self._constant(in_value=in_value))
        elif tag == "R" and self._eat("e"):
            self._print(self._string())
        else:
            self._print("" if in_value else "{")
            self._composite(tag)
            self._print("" if in_value else "}")
        self._depth -= 1

    def _composite(self, tag: str) -> None:
        def element() -> None:
            self._constant(in_value=True)

        if tag == "e":
            self._print("*" + self._string())
        elif tag in "RQ":
            self._print("&" if tag == "R" else "&mut ")
            element()
        elif tag == "A":
            self._print("[")
            self._list(element)
            self._print("]")
        elif tag == "T":
            self._print("(")
            self._print(",)" if self._list(element) == 1 else ")")
        elif tag == "V":
            self._path(in_value=True)
            self._fields(element)
        else:
            raise NotMangledError

    def _fields(self, element: Callable[[], None]) -> None:
        """The fields of a struct or of an enum's variant: none ("U"), numbered ("T") or named ("S")."""

        def named() -> None:
            self._print(self._identifier()[0] + ": ")
            element()

        kind = self._next()
        if kind == "T":
            self._print("(")
            self._list(element)
            self._print(")")
        elif kind == "S":
            self._print(" { ")
            self._list(named)
            self._print(" }")
        elif kind != "U":
            raise NotMangledError

    def _hex(self) -> str:
        """Hexadecimal digits up to "_", without leading zeros."""
        digits = _NIBBLES.match(self._text, self._at)
        if digits is None:
            raise NotMangledError
        self._at = digits.end()
        return digits[0][:-1].lstrip("0")

    def _string(self) -> str:
        digits = _NIBBLES.match(self._text, self._at)
        if digits is None:
            raise NotMangledError
        self._at = digits.end()
        try:
            return _literal(bytes.fromhex(digits[0][:-1]).decode(), '"')
        except ValueError:
            return self._fail()

    @staticmethod
    def _fail() -> str:
        raise NotMangledError


def _literal(text: str, quote: str) -> str:
    escaped = "".join(f"\\{c}" if c == quote else _ESCAPES.get(c, c) for c in text)
    return f"{quote}{escaped}{quote}"
