"""``python -m tracer``: the same as the command ``memtrace``."""

from tracer.command import main

main()
