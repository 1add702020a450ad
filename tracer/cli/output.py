"""Where a report goes: standard output, or a file that is complete or not there at all."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from tracer.errors import MemtraceError, UsageError


class ReportFile:
    """An output file, checked before tracing begins and put in place when the report is complete."""

    def __init__(self, path: Path, *, force: bool) -> None:
        """Raises UsageError where the file exists and is not to be replaced, or cannot be written."""
        if path.is_dir():
            raise UsageError(f"{path} is a directory", "name a file")
        if path.exists() and not force:
            raise UsageError(f"{path} exists", "choose another name, or replace it with --force")
        try:
            descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another place") from None
        self._path = path
        self._temporary = Path(name)
        self._file: TextIO = os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")

    def write(self, render: Callable[[TextIO], None]) -> None:
        """Write the report and put it in place in one step. Raises MemtraceError where the disk refuses."""
        try:
            with self._file:
                render(self._file)
            os.replace(self._temporary, self._path)
        except OSError as error:
            raise MemtraceError(
                f"{self._path} could not be written: {error.strerror}", "the report follows on standard output"
            ) from error

    def discard(self) -> None:
        """Leave no trace of a report that was not made."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)


def write_to_stdout(render: Callable[[TextIO], None]) -> None:
    """Write to standard output; characters that its encoding lacks are escaped, not fatal."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    render(sys.stdout)
    sys.stdout.flush()
