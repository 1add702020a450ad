"""``python -m tracer``: the same as the command ``memtrace``."""

import _signal  # type: ignore[import-not-found]

# As in tracer.command: also while that one is looked for.
if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from tracer.command import main

main()
