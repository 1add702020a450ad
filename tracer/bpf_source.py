"""Where the BPF C sources lie: beside the package in a checkout and in the .deb, inside it in a wheel."""

from __future__ import annotations

from pathlib import Path

from tracer.errors import MissingDependencyError

# What tells our `bpf` directory from another one of that name, and what compiling needs first.
_LANDMARK = "stub/include/linux/types.h"


def bpf_directory() -> Path:
    """Return the directory of the BPF C sources; its ``stub`` is what bcc takes as ``BCC_KERNEL_SOURCE``.

    Raises MissingDependencyError where neither place holds them, as after a partial copy.
    """
    package = Path(__file__).resolve().parent
    candidates = (package / "bpf", package.parent / "bpf")
    for directory in candidates:
        if (directory / _LANDMARK).is_file():
            return directory
    places = " nor ".join(str(directory) for directory in candidates)
    raise MissingDependencyError(f"the BPF sources of memtrace are neither in {places}", "install memtrace again")
