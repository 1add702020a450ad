"""Mutated input for every parser of foreign bytes, with what came of it: for the tests and for scripts/bench/fuzz."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
import time
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tracer.heap.allocators import find_allocator
from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.debugstore import DebugStore, checked
from tracer.symbols.demangle import demangle
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError
from tracer.symbols.lines import LineReader
from tracer.symbols.perfmap import parse_perf_map
from tracer.symbols.table import SymbolTable, find_debug_file
from tracer.unwind import cache
from tracer.unwind.image import Segment, UnwindTableError
from tracer.unwind.tables import ImageTable, table_of_memory

Subject = Callable[[bytes], str]
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
SOURCE = """
#include <stdexcept>
#include <stdlib.h>
#include <vector>
__attribute__((noinline)) int work(int n) { if (n < 0) throw std::runtime_error("n"); return n * 3; }
static inline void *take(size_t n) { return malloc(n); }
int main(int argc, char **) { std::vector<int> v; v.push_back(argc); free(take(argc)); return work(v[0]); }
"""
PERF_MAP = b"".join(b"%x %x LazyCompile:*f%d app.js:%d\n" % (0x7F00 + i * 64, 60 + i % 9, i, i) for i in range(200))
NAMES = (
    b"_RINvNtC3std2io5print_NtNtC4core3fmt9ArgumentsE",
    b"_RINvC1a1fDG_INtNtC4core3ops2FnTRL0_hEEp6OutputhEL_Kj7b_KRe616263_KVNtC1b1SS1xj1_EE",
    b"_RNvXs0_NtNtCs8NwY_4core3num5floatC3f16NtNtB9_3str7FromStr8from_str",
    b"_RNqCs4fqI_11utf8_identsu30____7hkackfecea1cbdathfdh9hlq6y",
    b"_ZNSt6vectorIiSaIiEE17_M_realloc_insertIJRKiEEEvN9__gnu_cxx17__normal_iteratorIPiS1_EEDpOT_",
    b"_ZZN12_GLOBAL__N_13fooINSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEEvT_ENKUlvE_clEv",
    b"_ZN4core3fmt9Formatter9write_str17h0123456789abcdefE",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What inputs led to, by how many; the slowest in seconds."""

    results: Counter[str]
    slowest: float


def run(subject: Subject, seeds: Sequence[bytes], count: int, seed: int) -> Outcome:
    """Feed ``count`` mutations of the seeds to the subject. An exception is an outcome too, which begins with CRASH."""
    chance = random.Random(seed)
    results: Counter[str] = Counter()
    slowest = 0.0
    for _ in range(count):
        data = mutated(seeds, chance)
        began = time.perf_counter()
        try:
            result = subject(data)
        except Exception as error:
            result = f"CRASH {type(error).__name__}: {error}"
        slowest = max(slowest, time.perf_counter() - began)
        results[result] += 1
    return Outcome(results, slowest)


def mutated(seeds: Sequence[bytes], chance: random.Random) -> bytes:
    """One of the seeds with one to six changes, most of them near its start or end, where headers are."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 6)):
        size = len(data)
        if not size:
            break
        near = chance.choice((min(size, 0x400), min(size, 0x400), size))
        at = chance.randrange(near) if chance.random() < 0.7 else size - 1 - chance.randrange(min(size, 0x800))
        match chance.randrange(7):
            case 0 | 1:
                data[at] = chance.randrange(256)
            case 2 | 3:
                whole = at & ~7
                data[whole : whole + 8] = struct.pack("<Q", chance.choice(EXTREMES))
            case 4:
                data[at] ^= 1 << chance.randrange(8)
            case 5:
                other = chance.choice(seeds)
                start = chance.randrange(len(other))
                data[at : at + 64] = other[start : start + chance.randrange(1, 128)]
            case _:
                del data[chance.randrange(size) :]
    return bytes(data)


def read_elf(data: bytes) -> str:
    """Everything that reads an ELF file for symbols and allocators."""
    try:
        image = ElfImage.from_bytes(data)
        table = SymbolTable.from_elf(image)
        starts, _ = image.functions
        for address in (0, 0x1139, 1 << 63, *starts[:16]):
            table.lookup(address)
            image.vaddr_of_offset(address)
        find_debug_file(image, "/nowhere/x", "/nonexistent")
        find_allocator(image, "/x")
        assert isinstance(image.is_whole, bool) and isinstance(image.has_lines, bool) and image.base >= 0
    except ElfError as error:
        return f"refused: {error}"
    return "read, damage noted" if image.damaged or table.damaged else "read"


def read_unwind(data: bytes) -> str:
    """The unwind table of an image."""
    try:
        table = table_of_memory(data)
    except UnwindTableError as error:
        return f"refused: {error}"
    assert table.size <= 64 * len(data) + 4096
    return "read, entries left out" if table.reasons else "read"


def read_perf_map(data: bytes) -> str:
    """A JIT's map."""
    rows = sorted(parse_perf_map(data))
    starts = [row[0] for row in rows]
    assert len(rows) <= data.count(b"\n") + 1
    bisect_right(starts, 0x7F80)
    return "read" if len(rows) == data.count(b"\n") else "read, lines left out"


def read_cache_file(data: bytes) -> str:
    """A file of the cache of unwind tables."""
    return "refused" if cache._unpack(data, bytes(16)) is None else "read"


def read_name(data: bytes) -> str:
    """A mangled name."""
    text = demangle(data.replace(b"\0", b""))
    assert (len(text) <= 8200 * 6 and text.isprintable()) or not text.isascii()
    return "demangled" if text.encode("utf-8", "replace") != data else "left as it is"


class DebugAnswers:
    """A debuginfod server whose answers, from the status line on, are the input; and its client."""

    def __init__(self, build_id: str) -> None:
        self._build_id = build_id
        self._directory = tempfile.TemporaryDirectory()
        self._answer = b""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        threading.Thread(target=self._serve, daemon=True).start()

    def __call__(self, data: bytes) -> str:
        self._answer = data
        url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        client = Debuginfod(
            [url], DebugStore(Path(self._directory.name) / "x"), lambda line: None, timeout=1.0, budget=2.0
        )
        found = client.fetch(self._build_id, "x")
        if found is None:
            return f"refused: {next(iter(client.problems), 'not found')}"
        found.close()
        (Path(self._directory.name) / "x" / f"{self._build_id}.debug").unlink()
        return "taken"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(4096)
                    connection.sendall(self._answer)

    def close(self) -> None:
        """End the server."""
        self._listener.close()
        self._directory.cleanup()


def read_kept_file(build_id: str) -> Subject:
    """A file of the cache of debug files."""

    def read(data: bytes) -> str:
        fd = os.memfd_create("x")
        os.write(fd, data)
        try:
            checked(fd, build_id).close()
        except ElfError as error:
            return f"refused: {error}"
        return "taken"

    return read


def read_lines(data: bytes) -> str:
    """DWARF, by symbolic in its process."""
    reader = _line_reader()
    fd = os.memfd_create("x")
    os.write(fd, data)
    try:
        image = ElfImage.from_fd(fd)
    except ElfError as error:
        return f"refused: {error}"
    with image:
        found = reader.lookup(image, image.entry + 0x40)
    problems = list(reader.problems)
    reader.problems.clear()
    return f"refused: {problems[0]}" if problems else "read" if found else "read, no lines"


_READERS: list[LineReader] = []


def _line_reader() -> LineReader:
    """One for all inputs, and a new one when that has given up."""
    if not _READERS or _READERS[0]._failures >= 3 or _READERS[0]._left < 30:
        if _READERS:
            _READERS.pop().close()
        known = LineReader.available()
        assert known is not None
        _READERS.append(known)
    reader = _READERS[0]
    reader._open.clear()
    reader._refused.clear()
    return reader


@contextlib.contextmanager
def subjects() -> Iterator[dict[str, tuple[Subject, list[bytes], float]]]:
    """The parsers: name -> (function, seeds, share of the inputs). Raises FileNotFoundError without a compiler."""
    with tempfile.TemporaryDirectory() as directory:
        if shutil.which("g++") is None:
            raise FileNotFoundError("g++ is not installed")
        (Path(directory) / "p.cpp").write_text(SOURCE)
        command = ["g++", "-g", "-O1", "-Wl,--build-id=sha1", "-o", "p", "p.cpp"]
        subprocess.run(command, cwd=directory, check=True)
        program = (Path(directory) / "p").read_bytes()
        subprocess.run(["strip", "p"], cwd=directory, check=True)
        stripped = (Path(directory) / "p").read_bytes()
    build_id = ElfImage.from_bytes(program).build_id or ""
    table = ImageTable(array("Q", range(64)), array("Q", range(8)), 0x1000, (Segment(1, 2, 3),), Counter({"x": 1}))
    kept = cache._pack(table, bytes(16))
    head = b"HTTP/1.1 200 OK\r\nServer: x\r\n"
    answers = [
        head + b"Content-Length: %d\r\n\r\n" % len(program) + program,
        head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % len(program) + program + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    ]
    server = DebugAnswers(build_id)
    try:
        found: dict[str, tuple[Subject, list[bytes], float]] = {
            "ELF: symbols, allocators": (read_elf, [program, stripped], 0.2),
            ".eh_frame": (read_unwind, [program, stripped], 0.2),
            "perf map": (read_perf_map, [PERF_MAP], 0.1),
            "cached unwind table": (read_cache_file, [kept], 0.1),
            "cached debug file": (read_kept_file(build_id), [program], 0.1),
            "mangled name": (read_name, list(NAMES), 0.2),
            "debuginfod answer": (server, answers, 0.08),
        }
        if LineReader.available() is not None:
            found["DWARF (symbolic)"] = (read_lines, [program], 0.02)
        yield found
    finally:
        server.close()
        while _READERS:
            _READERS.pop().close()
