"""For all tests: the processes that they start are to end by Ctrl-C, also where the shell has this run ignore it."""

from __future__ import annotations

import signal

# What is ignored stays ignored in every child, as after `pytest &` in a script.
signal.signal(signal.SIGINT, signal.default_int_handler)
