"""Builds the target programs on demand: build(name, out_dir) -> path of the program.

All speak the protocol of target.h (ready line, `g`, `q`; one JSON truth per phase). Each shows one behaviour:

leak_malloc         malloc pairs with free; malloc(0) is a block; failed requests are none
leak_calloc         calloc's size is a product; one that overflows is none
leak_realloc        realloc as malloc, as free, moving, shrinking; a failed one keeps the old block
leak_reallocarray   the same for reallocarray
leak_aligned        posix_memalign, aligned_alloc, memalign, valloc, pvalloc; a bad alignment allocates nothing
leak_strdup         an allocation made by libc for its caller still leads to the caller
leak_new            new, new[], nothrow, aligned, a vector's buffer; a throwing new is survived
free_old            blocks older than the tracer are freed and resized: no total goes below zero
churn               much allocation without growth is not reported as growth
cache               growth up to a limit, then level: not a leak
direct_mmap         mappings cut, replaced, grown, moved and dropped in part are counted to the byte
direct_brk          the program break moved without an allocator
arenas              eight threads, eight arenas, one leak
big                 blocks that the allocator maps one by one, resident in part
forker              what a child does is not the parent's
execer              exec empties the books and probes are placed anew
dlopener            code, and an allocator, that are loaded after the attach
malloc_address      the executable's own symbol `malloc` is a stub (-no-pie)
function_table      malloc called through a table of pointers only
absent_stack        malloc called below stack pages that were never touched
frag_half           every second block freed: half of the heap is free, in holes
frag_page           all but one block of each page freed: hardly a page is free as a whole
frag_top            the end of the heap freed, and kept by a high trim threshold
frag_arenas         as frag_half, in the arenas of several threads
frag_mixed          every kind of chunk in several arenas; the main one also in pieces, or with gaps
heap_churn          the heap changes all the time beside blocks that stay (command `c`)
heartbeat           how long the target is held up (commands `b` and `e`)
hot                 attach, detach and probes survive threads that do nothing but malloc and free (command `c`)
hot_leak            the same, and one call in many leaks: what a budget must find (command `c`)
zoo                 every kind of memory gets its class (commands `m`, `f`, `s` and `x`)
random_vm           the model of the address space is the kernel's after any system calls (commands `n` and `g`)
handover            the same with four threads that hand addresses on to each other
mix                 sizes of all kinds, whose live bytes are known (commands `g` and `f`)
touch               page faults and nothing else (command `c`)
fault_runs          callers that take turns in touching pages are told apart
leaky-server        the demonstration: a server with a leak, a cache, churn and a mapped log
fixed-server        the same, rebuilt without the leak: what `memtrace diff` is to find
grow                a Python program that grows (a script: see command())

Each plain C leak_* also comes as NAME_musl, NAME_musl_static, NAME_static (glibc) and NAME_stripped (static, without
symbols: nothing says where malloc is), frag_mixed as frag_mixed_stripped too. The frag_* targets also say what
mallinfo2 says, and trim themselves (commands `i` and `t`, see frag.h). leak_malloc and leak_new run under other
allocators by LD_PRELOAD.

As a program: build.py OUT_DIR [NAME...] builds some or all and prints their paths.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

SOURCE_DIR = Path(__file__).resolve().parent

# Frame pointers and no tail calls: the stack is what the source says, also for a tracer that needs both.
FLAGS = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
)


class MissingCompiler(Exception):
    """A compiler that a target needs is not installed."""


@dataclass(frozen=True, slots=True)
class Target:
    """How a program is made. `library` is the source of a shared library that is put beside it as libNAME.so.

    `headers` are those besides target.h that it includes.
    """

    name: str
    source: str
    compiler: str = "gcc"
    flags: tuple[str, ...] = ()
    strip: bool = False
    library: str | None = None
    headers: tuple[str, ...] = ()


PLAIN_LEAKS = ("leak_malloc", "leak_calloc", "leak_realloc", "leak_reallocarray", "leak_aligned", "leak_strdup")


def _variants(plain: Target) -> Iterator[Target]:
    yield replace(plain, name=f"{plain.name}_musl", compiler="musl-gcc")
    yield replace(plain, name=f"{plain.name}_musl_static", compiler="musl-gcc", flags=("-static",))
    yield replace(plain, name=f"{plain.name}_static", flags=("-static",))
    yield replace(plain, name=f"{plain.name}_stripped", flags=("-static",), strip=True)


def _all_targets() -> Iterator[Target]:
    for name in PLAIN_LEAKS:
        plain = Target(name, f"{name}.c")
        yield plain
        yield from _variants(plain)
    yield Target("leak_new", "leak_new.cpp", compiler="g++", flags=("-std=c++17",))
    for name in ("free_old", "churn", "cache", "direct_mmap", "direct_brk", "arenas", "big", "forker", "execer"):
        yield Target(name, f"{name}.c")
    yield Target("dlopener", "dlopener.c", library="plugin.c")
    yield Target("malloc_address", "malloc_address.c", flags=("-no-pie", "-fno-pie"))
    yield Target("function_table", "function_table.c")
    yield Target("absent_stack", "absent_stack.c")
    for name in ("frag_half", "frag_page", "frag_top", "frag_arenas", "frag_mixed", "heap_churn"):
        yield Target(name, f"{name}.c", headers=("frag.h",))
    yield Target("frag_mixed_stripped", "frag_mixed.c", flags=("-static",), strip=True, headers=("frag.h",))
    yield Target("heartbeat", "heartbeat.c")
    yield Target("hot", "hot.c")
    yield Target("touch", "touch.c")
    yield Target("fault_runs", "fault_runs.c")
    yield Target("hot_leak", "hot_leak.c")
    yield Target("zoo", "zoo.c")
    yield Target("random_vm", "random_vm.c")
    yield Target("handover", "handover.c")
    yield Target("mix", "mix.c")
    yield Target("leaky-server", "leaky_server.c")
    yield Target("fixed-server", "leaky_server.c", flags=("-DEXPIRE_SESSIONS",))


TARGETS: dict[str, Target] = {target.name: target for target in _all_targets()}


def build(name: str, out_dir: Path) -> Path:
    """The path of a program, built unless out_dir has it from the same sources, flags and compiler already.

    Raises MissingCompiler, and subprocess.CalledProcessError with the compiler's words when it fails.
    """
    target = TARGETS[name]
    directory = out_dir / f"{name}-{_content_hash(target)}"
    if not directory.exists():
        out_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir) as scratch:
            made = Path(scratch) / "made"
            made.mkdir()
            _compile(target, made)
            _move_into_place(made, directory)
    return directory / name


def command(name: str, out_dir: Path, *arguments: str | int) -> list[str]:
    """The command line that runs a target, `grow` included."""
    program = [sys.executable, str(SOURCE_DIR / "grow.py")] if name == "grow" else [str(build(name, out_dir))]
    return [*program, *map(str, arguments)]


def _compile(target: Target, directory: Path) -> None:
    if target.library:
        library = directory / f"lib{Path(target.library).stem}.so"
        _run_compiler(target.compiler, *FLAGS, "-fPIC", "-shared", str(SOURCE_DIR / target.library), "-o", str(library))
    program = directory / target.name
    _run_compiler(target.compiler, *FLAGS, *target.flags, str(SOURCE_DIR / target.source), "-o", str(program))
    if target.strip:
        _run_compiler("strip", "--strip-all", str(program))


def _run_compiler(compiler: str, *arguments: str) -> None:
    _compiler_version(compiler)
    done = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        error = subprocess.CalledProcessError(done.returncode, [compiler, *arguments])
        error.add_note(done.stderr)
        raise error


def _move_into_place(made: Path, directory: Path) -> None:
    try:
        os.rename(made, directory)
    except OSError:
        if not directory.exists():  # otherwise another process was first, with the same result
            raise


def _content_hash(target: Target) -> str:
    content = hashlib.sha256(repr((target, FLAGS, _compiler_version(target.compiler))).encode())
    for file in ("target.h", *target.headers, target.source, target.library):
        if file:
            content.update((SOURCE_DIR / file).read_bytes())
    return content.hexdigest()[:12]


@functools.cache
def _compiler_version(compiler: str) -> str:
    if shutil.which(compiler) is None:
        raise MissingCompiler(f"{compiler} is not installed")
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    for target_name in sys.argv[2:] or TARGETS:
        print(build(target_name, Path(sys.argv[1])))
