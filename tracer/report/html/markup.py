"""HTML that is safe by construction: whatever is not Markup is text, and text is escaped."""

from __future__ import annotations

import html
import json
from typing import Any

from tracer.report.safe import printable

_VOID = frozenset({"br", "hr"})
# Nothing in a data block may end it, open a comment, or be taken for markup by a reader that is no JSON parser.
_IN_SCRIPT = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(value: str) -> Markup:
    """Foreign text as HTML: control characters and bidirectional overrides appear as their escapes."""
    return Markup(html.escape(printable(value)))


def tag(name: str, *content: str, **attributes: str | bool) -> Markup:
    """An element. ``class_`` and ``for_`` lose their underscore, ``aria_label`` becomes ``aria-label``.

    An attribute that is True has no value; one that is False is left out.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items() if value is not False)
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(*content)}</{name}>")


def join(*content: str) -> Markup:
    """Several pieces, of which those that are no Markup are escaped."""
    return Markup("".join(piece if isinstance(piece, Markup) else text(piece) for piece in content))


def _attribute(key: str, value: str | bool) -> str:
    name = key.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{text(str(value))}"'


def data_block(value: Any) -> str:
    """``value`` as JSON that is inert inside of a script element: ASCII, without ``<``, ``>`` and ``&``.

    Raises ValueError for numbers that JSON does not have (nan, inf).
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).translate(_IN_SCRIPT)
