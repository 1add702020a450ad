"""Which processes a view is about: by pid, by patterns, and never memtrace itself."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tracer.errors import MemtraceError, UsageError
from tracer.procfs.source import ProcSource
from tracer.procfs.status import parse_status


@dataclass(frozen=True, slots=True)
class Selection:
    """What to show. An empty ``pids`` and a pattern that is None select everything.

    ``process`` is searched in the name and in the command line, ``mapping`` in the mapped name, ``user`` in the
    user's name. ``itself`` are the pids of memtrace, which never show; ``wrappers`` those of the commands that run it
    (sudo, timeout, a shell), whose command lines hold the pattern: they show unless ``process`` selects.
    """

    pids: frozenset[int] = frozenset()
    process: re.Pattern[str] | None = None
    mapping: re.Pattern[str] | None = None
    user: re.Pattern[str] | None = None
    itself: frozenset[int] = frozenset()
    wrappers: frozenset[int] = field(default_factory=frozenset)

    def takes_pid(self, pid: int) -> bool:
        """Whether this process may be shown at all."""
        return not self.pids or pid in self.pids

    def takes_user(self, name: str) -> bool:
        """Whether this user's processes may be shown."""
        return self.user is None or self.user.search(name) is not None

    def takes_process(self, pid: int, name: str, command: str) -> bool:
        """Whether the name or the command line is one of those asked for."""
        if self.process is None:
            return True
        if pid in self.wrappers and pid not in self.pids:
            return False
        return self.process.search(name) is not None or self.process.search(command) is not None

    def takes_mapping(self, name: str) -> bool:
        """Whether a mapping of this name counts."""
        return self.mapping is None or self.mapping.search(name) is not None

    def in_words(self) -> str:
        """What was asked for, to be told when there is none."""
        words = [f"pid {', '.join(map(str, sorted(self.pids)))}"] if self.pids else []
        patterns = (("process", self.process), ("mapping", self.mapping), ("user", self.user))
        words += [f"{name} {pattern.pattern!r}" for name, pattern in patterns if pattern is not None]
        return " and ".join(words) or "at all"


def pattern(text: str, option: str) -> re.Pattern[str]:
    """A regular expression; raises UsageError where it is none."""
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{option}: {text!r} is no regular expression: {error}") from None


def own_wrappers(source: ProcSource, arguments: Sequence[str], pid: int | None = None) -> frozenset[int]:
    """The ancestors of this process in whose command lines its own arguments stand: sudo, timeout, sh -c, watch.

    They match whatever pattern memtrace was given, as it is part of their command lines too.
    """
    wanted = [os.fsencode(argument) for argument in arguments]
    if not wanted:
        return frozenset()
    found = set()
    for ancestor in _ancestors(source, os.getpid() if pid is None else pid):
        try:
            words = source.read(ancestor, "cmdline").rstrip(b"\0").split(b"\0")
        except MemtraceError:
            continue
        if _holds(words, wanted):
            found.add(ancestor)
    return frozenset(found)


def _ancestors(source: ProcSource, pid: int) -> Iterable[int]:
    seen = {pid}
    while True:
        try:
            pid = parse_status(source.read(pid, "status")).ppid
        except MemtraceError:
            return
        if pid <= 0 or pid in seen:
            return
        seen.add(pid)
        yield pid


def _holds(words: Sequence[bytes], wanted: Sequence[bytes]) -> bool:
    """True where the wanted words end the command line, or stand, however quoted, in one argument (sh -c)."""
    if list(words[-len(wanted) :]) == list(wanted):
        return True
    return any(b"memtrace" in word and all(part in word for part in wanted) for word in words)
