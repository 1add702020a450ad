"""The errors that a user may meet: each carries its cause, the fix and the exit code."""

from __future__ import annotations

EXIT_OK = 0
EXIT_CANNOT_TRACE = 1
EXIT_USAGE = 2
# Growth above a limit that the user set: for CI.
EXIT_ABOVE_LIMIT = 3


class MemtraceError(Exception):
    """A failure with a cause and, where there is one, the fix; printed as one or two lines on stderr."""

    exit_code = EXIT_CANNOT_TRACE

    def __init__(self, cause: str, fix: str | None = None) -> None:
        super().__init__(cause)
        self.cause = cause
        self.fix = fix


class TargetError(MemtraceError):
    """The process to be traced does not exist, is of a kind that has no memory to trace, or has ended."""


class PrivilegeError(MemtraceError):
    """The rights of the caller do not suffice."""


class KernelError(MemtraceError):
    """The kernel refuses, or lacks, something that tracing needs."""


class MissingDependencyError(MemtraceError):
    """A package of the system is missing."""


class UsageError(MemtraceError):
    """The command line asks for something that cannot be."""

    exit_code = EXIT_USAGE


class RecordingError(MemtraceError):
    """A file is no recording, or one that is damaged or of a later version."""
