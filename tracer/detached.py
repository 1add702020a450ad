"""For children of memtrace that are to outlive it for a moment, to leave things in order."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_NAME = 15


def leave_the_terminal(name: bytes) -> None:
    """What ends memtrace is not to end this process: it leaves by itself when memtrace has gone.

    ``name`` is at most 15 bytes, and not memtrace's own: `pkill -9 memtrace` is not to hit it.
    """
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_NAME, name, 0, 0, 0)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
