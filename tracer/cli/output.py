"""Where a report goes: standard output, or a file that is complete or not there at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from tracer.errors import MemtraceError, UsageError


class ReportFile:
    """An output file, checked before tracing begins and put in place when the report is complete.

    What is no regular file (a pipe, a device) is written to as it is, never replaced; of a symbolic link, what it leads
    to is.
    """

    def __init__(self, path: Path, *, force: bool, binary: bool = False) -> None:
        """Raises UsageError where the file exists and is not to be replaced, or cannot be written."""
        path = path.resolve() if path.is_symlink() else path
        if path.is_dir():
            raise UsageError(f"{path} is a directory", "name a file")
        if path.exists() and not force:
            raise UsageError(f"{path} exists", "choose another name, or replace it with --force")
        self._path = path
        self._replace = force
        self._binary = binary
        self._temporary: Path | None = None
        try:
            self._file: IO[Any] = self._open()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}", "choose another place") from None

    def _open(self) -> IO[Any]:
        if self._path.exists() and not stat.S_ISREG(self._path.stat().st_mode):
            descriptor = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.set_blocking(descriptor, True)
        else:
            descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
            self._temporary = Path(name)
            os.fchmod(descriptor, 0o666 & ~_umask())  # whoever ran sudo wants to read it
        if self._binary:
            return os.fdopen(descriptor, "wb")
        return os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace")

    def write(self, render: Callable[[Any], None]) -> None:
        """Write the report and put it in place in one step. Raises MemtraceError where that fails."""
        try:
            with self._file:
                render(self._file)
            self._put_in_place()
        except FileExistsError as error:
            raise MemtraceError(
                f"{self._path} has come into being meanwhile and is kept", "the report is on standard output"
            ) from error
        except OSError as error:
            raise MemtraceError(
                f"{self._path} could not be written: {error.strerror}", "the report is on standard output"
            ) from error

    def _put_in_place(self) -> None:
        if self._temporary is None:
            return
        if self._replace:
            os.replace(self._temporary, self._path)
        else:
            os.link(self._temporary, self._path)  # unlike rename, fails where the name is taken
            self._temporary.unlink()

    def discard(self) -> None:
        """Leave no trace of a report that was not made."""
        self._file.close()
        if self._temporary is not None:
            self._temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def write_to_stdout(render: Callable[[Any], None], *, binary: bool = False) -> None:
    """Write to standard output; characters that its encoding lacks are escaped, not fatal."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        render(sys.stdout.buffer if binary else sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:
        abandon_stdout()
        raise
    except OSError as error:
        abandon_stdout()
        raise MemtraceError(
            f"the report could not be written to standard output: {error.strerror}", "write it to a file: -o FILE"
        ) from error


def abandon_stdout() -> None:
    """Let what is still buffered go nowhere: at the end of the interpreter a second failure would be a traceback."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
