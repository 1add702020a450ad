"""Which stacks of two sessions are the same code: told by names, which outlive restarts and rebuilt binaries.

Addresses move with each start (ASLR), offsets and ids with each build, versions of libraries with each update. What
stays are the names of functions and of modules, so these are compared; and of a frame without a name, its offset where
both sessions had the very same file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tracer.model.report import Frame, StackGrowth
from tracer.report.frames import plain_name, without_allocator

StackName = tuple[str, ...]

# Where a thread's own code begins: what calls it belongs to the C library.
_OUTERMOST = frozenset({"main", "start_thread"})
_STARTUP = frozenset(
    {"__libc_start_call_main", "__libc_start_main", "_start", "clone", "clone3", "__clone3", "__clone"}
)
_VERSION = re.compile(r"(?:[-.]\d[\w.]*)?\.so(?:\.[\w.]*)?$")
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_C_LIBRARY = "libc.so"
PROGRAM = "(program)"


def stack_name(stack: StackGrowth, program: str, known_files: frozenset[str] = frozenset()) -> StackName:
    """What names a stack in every session: its kind, then its frames, innermost first.

    ``program`` is the executable's file name, which may differ between builds. ``known_files`` are build IDs that both
    sessions have: in these files offsets mean the same. Inlined functions do not count, for a session without debug
    information does not see them; recursion counts once.
    """
    names: list[str] = []
    for frame in _own(without_allocator(stack.frames)):
        name = _frame_name(frame, program, known_files)
        if not names or names[-1] != name:
            names.append(name)
    return (stack.kind, *names)


def program_of(command: str) -> str:
    """The executable's file name, by the command line."""
    return (command.split() or [""])[0].rpartition("/")[2]


def build_ids(stacks: Sequence[StackGrowth]) -> frozenset[str]:
    """Of which files, by their build IDs, there are frames."""
    return frozenset(frame.build_id for stack in stacks for frame in stack.frames if frame.build_id)


def _own(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Without what is inlined, and without the C library's frames: those that begin a thread, and the innermost.

    The latter are variants of memcpy, system calls, ...: they differ between machines.
    """
    kept = [frame for frame in frames if not frame.inlined] or list(frames)
    while len(kept) > 1 and _module(kept[0], "") == _C_LIBRARY:
        kept.pop(0)
    for index, frame in enumerate(kept):
        if frame.function in _OUTERMOST and all(_is_startup(outer) for outer in kept[index + 1 :]):
            return kept[: index + 1]
    while len(kept) > 1 and _is_startup(kept[-1]):
        kept.pop()
    return kept


def _is_startup(frame: Frame) -> bool:
    return frame.function in _STARTUP or (frame.function is None and _module(frame, "") == _C_LIBRARY)


def _frame_name(frame: Frame, program: str, known_files: frozenset[str]) -> str:
    module = _module(frame, program)
    if frame.function is None:
        return f"{module}+{frame.offset:#x}" if frame.build_id in known_files else f"{module}+?"
    return f"{_RUST_HASH.sub('', plain_name(frame.function))} ({module})"


def _module(frame: Frame, program: str) -> str:
    """The module's file name without a version."""
    name = (frame.module or "").removesuffix(" (deleted)").rpartition("/")[2]
    if program and name == program:
        return PROGRAM
    return _VERSION.sub(".so", name) if not name.startswith("perf-") else "(generated)"
