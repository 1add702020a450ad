"""Options that several commands share: a group of them reaches a command as one object."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def option_group(name: str, kind: type, options: Sequence[Decorator]) -> Decorator:
    """A decorator for commands: adds ``options``, and passes their values as ``kind`` under ``name``.

    The fields of the dataclass ``kind`` are the options' names.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def with_options(*arguments: Any, **values: Any) -> Any:
            group = kind(**{each.name: values.pop(each.name) for each in fields(kind)})
            return function(*arguments, **{name: group}, **values)

        for option in reversed(options):
            with_options = option(with_options)  # type: ignore[assignment]
        return with_options

    return decorate
