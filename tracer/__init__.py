"""memtrace: which call stacks grow a running process, and where every byte of the growth went."""

__version__ = "0.1.0"
