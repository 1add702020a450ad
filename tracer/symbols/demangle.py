"""C++ and Rust names as their authors wrote them, and text that is safe to print.

C++ is demangled by ``__cxa_demangle`` (Itanium C++ ABI, §3.4) of libstdc++, which bcc needs anyway. Names come from
untrusted files. A short one can stand for an exponentially long text (each substitution may double it), which the
function would print until memory is exhausted, so names whose expansion may be too long are left as they are: 4 of
the 62,052 in node, 25 of the 38,190 in libLLVM 14.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from functools import lru_cache
from typing import Any

from tracer.symbols.rust import demangle_v0

MAX_MANGLED = 4096
MAX_EXPANSION = 1 << 24
MAX_PRINTED = 8192

_REFERENCE = re.compile(r"S([0-9A-Z]*)_|(T[0-9A-Z]*_)|(Dp|sp|sZ)")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_ESCAPE = re.compile(r"\$([A-Z]{1,2}|u[0-9a-f]{1,6})\$|\.\.")
_RUST_NAMES = {"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">", "LP": "(", "RP": ")", "C": ","}
# C0 and C1 controls, bidirectional overrides, line separators, unpaired surrogates: whatever moves a terminal's cursor,
# changes its state or the order of what it shows.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def printable(name: str) -> str:
    """``name`` with control characters and the like as ``\\xNN`` or ``\\uNNNN``, cut after 8,192 characters."""
    text = name if len(name) <= MAX_PRINTED else name[:MAX_PRINTED] + "..."
    return _UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)


def demangle(name: bytes) -> str:
    """The printable, demangled form of a symbol's name; the name itself where it is not mangled or not understood."""
    text = name.decode("utf-8", "backslashreplace")
    if text.startswith("_R"):
        return printable(demangle_v0(text) or text)
    if not text.startswith("_Z") or len(name) > MAX_MANGLED or _expansion(text) > MAX_EXPANSION:
        return printable(text)
    return printable(_readable_rust(_cxa_demangle(name) or text))


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _expansion(text: str) -> int:
    """An upper bound of the demangled length, in units of a few characters.

    A reference repeats at most all that came before it; an expanded pack repeats at most once for each two characters
    of the name (``J...E`` holds its elements).
    """
    length = len(text)
    for match in _REFERENCE.finditer(text):
        length *= 2 if match[3] is None else max(2, len(text) // 2)
        if length > MAX_EXPANSION:
            break
    return length


def _readable_rust(text: str) -> str:
    """Rust's legacy mangling is C++'s with a hash at the end and escapes for what C++ names cannot hold."""
    stripped = _RUST_HASH.sub("", text)
    if stripped == text:
        return text
    return _RUST_ESCAPE.sub(_rust_character, re.sub(r"(^|::)_\$", r"\1$", stripped))


def _rust_character(match: re.Match[str]) -> str:
    code = match[1]
    if code is None:
        return "::"
    if code.startswith("u"):
        value = int(code[1:], 16)
        return chr(value) if value <= 0x10FFFF else match[0]
    return _RUST_NAMES.get(code, match[0])


def _cxa_demangle(name: bytes) -> str | None:
    functions = _library()
    if functions is None:
        return None
    call, free = functions
    status = ctypes.c_int()
    buffer = call(name, None, None, ctypes.byref(status))
    if not buffer:
        return None
    try:
        return ctypes.string_at(buffer).decode("utf-8", "backslashreplace")
    finally:
        free(buffer)


@lru_cache(maxsize=1)
def _library() -> tuple[Any, Any] | None:
    """(__cxa_demangle, free), or None on a system without libstdc++."""
    try:
        call = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return None
    call.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int)]
    call.restype = ctypes.c_void_p
    free.argtypes = [ctypes.c_void_p]
    free.restype = None
    return call, free
