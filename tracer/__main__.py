"""``python -m tracer``: the same as the command ``memtrace``."""

from tracer.cli.main import main

main()
