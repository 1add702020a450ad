"""Standard output as a stream of lines while a command runs, and words to the user beside it."""

from __future__ import annotations

import sys
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from tracer.cli.output import abandon_stdout
from tracer.errors import MemtraceError
from tracer.report.safe import printable

if TYPE_CHECKING:
    from tracer.report.screen import View

State = TypeVar("State")


class StdoutView(Generic[State]):
    """A view that writes to standard output line by line; where that fails, the command ends aloud."""

    def __init__(self, view: View[State]) -> None:
        self._view = view

    def __enter__(self) -> Self:
        self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.__exit__(kind, error, trace)

    def update(self, state: State) -> None:
        """Write the newest state. Raises BrokenPipeError, and MemtraceError where writing fails in another way."""
        try:
            self._view.update(state)
        except BrokenPipeError:
            abandon_stdout()
            raise
        except OSError as error:
            abandon_stdout()
            raise MemtraceError(f"standard output cannot be written to: {error.strerror}") from error

    def poll(self) -> bool:
        """True when the user asks to stop."""
        return self._view.poll()


def say(line: str) -> None:
    """A line for the user on stderr; that it cannot be written must not cost the report."""
    with suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
