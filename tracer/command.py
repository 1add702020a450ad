"""The entry point: as little as possible before an early Ctrl-C is harmless."""

from __future__ import annotations

# The built-in part of `signal`: the module itself runs for a millisecond, in which a Ctrl-C would give a traceback.
import _signal  # type: ignore[import-not-found]

# Until tracing has begun there is nothing to report, and a traceback out of half an import helps nobody.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from tracer.cli.main import main

__all__ = ["main"]
