"""The entry point: as little as possible before an early Ctrl-C is harmless."""

from __future__ import annotations

import signal

# Until tracing has begun there is nothing to report, and a traceback out of half an import helps nobody.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from tracer.cli.main import main

__all__ = ["main"]
