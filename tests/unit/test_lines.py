"""Source lines and inlined functions, and a reader of them that may die, dawdle or swell without harm."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.model.vma import Vma
from tracer.symbols.elf import ElfImage
from tracer.symbols.lines import LineReader
from tracer.symbols.resolver import Resolver

SOURCE = """\
#include <stdlib.h>
static inline __attribute__((always_inline)) void *deep(size_t n) {
    return malloc(n);
}
static inline __attribute__((always_inline)) void *middle(size_t n) {
    return deep(n + 1);
}
template <typename T> __attribute__((noinline)) void *outer(T n) {
    void *p = middle(n);
    *(volatile char *)p = 1;
    return p;
}
int main(int argc, char **) { return !outer<long>(argc); }
"""
MAPPED_AT = 0x5555_0000_0000

needs_symbolic = pytest.mark.skipif(
    importlib.util.find_spec("symbolic") is None, reason="symbolic is not installed (the extra 'lines')"
)
pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("g++", "objdump", "objcopy", "strip"))), reason="g++ or binutils are not installed"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the program: as PIE, not as PIE, and stripped with a debug file beside it."""
    directory = tmp_path_factory.mktemp("lines")
    (directory / "p.cpp").write_text(SOURCE)
    for name, flag in (("pie", "-pie"), ("fixed", "-no-pie")):
        command = ["g++", "-g", "-O2", flag, "-fPIE" if name == "pie" else "-fno-PIE", "-Wl,--build-id=sha1"]
        subprocess.run([*command, "-o", name, "p.cpp"], cwd=directory, check=True)
    for command in (
        ["objcopy", "--only-keep-debug", "pie", "stripped.debug"],
        ["strip", "-o", "stripped", "pie"],
        ["objcopy", "--add-gnu-debuglink=stripped.debug", "stripped"],
        ["strip", "-g", "-o", "linked", "pie"],
        ["objcopy", "--add-gnu-debuglink=stripped.debug", "linked"],
    ):
        subprocess.run(command, cwd=directory, check=True)
    (directory / ".debug").mkdir()
    (directory / "stripped.debug").rename(directory / ".debug" / "stripped.debug")
    return directory


def return_address(program: Path) -> int:
    """The image address behind the call of malloc in outer<long>."""
    listing = subprocess.run(["objdump", "-d", program], capture_output=True, text=True, check=True).stdout
    lines = listing[listing.index("<_Z5outerIlEPvT_>:") :].splitlines()
    call = next(i for i, line in enumerate(lines) if "malloc" in line)
    match = re.match(r"\s*([0-9a-f]+):", lines[call + 1])
    assert match is not None
    return int(match[1], 16)


def resolver_of(program: Path, lines: LineReader | None) -> tuple[Resolver, int]:
    """A resolver to which the program's code is mapped, and the address of malloc's call in it."""
    with ElfImage.open(str(program)) as image:
        code = next(s for s in image.segments if s.type == 1 and s.is_executable)
    size = code.memsz + 0xFFF & ~0xFFF
    vma = Vma(MAPPED_AT, MAPPED_AT + size, "r-xp", code.offset, "00:00", 7, os.fsencode(program))
    resolver = Resolver(os.getpid(), open_mapping=lambda pid, vma: os.open(program, os.O_RDONLY), lines=lines)
    resolver.update([vma])
    reference = program.with_name("fixed" if program.name == "fixed" else "pie")
    return resolver, MAPPED_AT + return_address(reference) - code.vaddr


@pytest.fixture
def reader() -> Iterator[LineReader]:
    found = LineReader.available()
    assert found is not None
    yield found
    found.close()


@needs_symbolic
@pytest.mark.parametrize("name", ["pie", "fixed", "stripped", "linked"])
def test_inlined_functions_come_before_the_one_they_are_in(name: str, built: Path, reader: LineReader) -> None:
    resolver, address = resolver_of(built / name, reader)
    frames = resolver.resolve(address, return_address=True)
    assert [(f.function, Path(f.file or "").name, f.line, f.inlined) for f in frames] == [
        ("deep", "p.cpp", 3, True),
        ("middle", "p.cpp", 6, True),
        ("void* outer<long>(long)", "p.cpp", 9, False),
    ]
    assert {(f.module, f.offset, f.build_id) for f in frames} == {
        (str(built / name), frames[0].offset, frames[0].build_id)
    }
    assert frames[-1].function_offset and not frames[0].function_offset
    assert not resolver.problems
    resolver.close()


@needs_symbolic
def test_while_tracing_nobody_reads_lines(built: Path, reader: LineReader) -> None:
    resolver, address = resolver_of(built / "pie", reader)
    (frame,) = resolver.resolve(address, return_address=True, lines=False)
    assert frame.function == "void* outer<long>(long)" and frame.file is None
    assert reader._worker is None
    assert len(resolver.resolve(address, return_address=True)) == 3
    assert resolver.resolve(address, return_address=True, lines=False) == (frame,)
    resolver.close()
    assert reader._worker is None


def test_without_the_library_only_functions_are_named(built: Path) -> None:
    resolver, address = resolver_of(built / "pie", None)
    (frame,) = resolver.resolve(address, return_address=True)
    assert (frame.function, frame.file, frame.inlined) == ("void* outer<long>(long)", None, False)
    assert not resolver.problems
    resolver.close()


def test_a_library_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert LineReader.available() is None


@needs_symbolic
def test_every_line_is_addr2lines(built: Path, reader: LineReader) -> None:
    with ElfImage.open(str(built / "fixed")) as image:
        start, size = next((s.value, s.size) for s in image.symbols() if s.name == b"_Z5outerIlEPvT_")
        addresses = range(start, start + size)
        command = ["addr2line", "-i", "-a", "-e", str(built / "fixed"), *map(hex, addresses)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for address, block in zip(addresses, re.split(r"^0x[0-9a-f]+\n", listed, flags=re.M)[1:], strict=True):
            expected = [int(line.rpartition(":")[2].split()[0]) for line in block.splitlines()]
            assert [at.line for at in reader.lookup(image, address)] == expected


@needs_symbolic
@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"memory": 1 << 20}, "the reader of debug information died (out of memory, or a damaged file)"),
        ({"budget": 0.0}, None),
    ],
)
def test_limits_are_kept(limits: dict[str, float], problem: str | None, built: Path) -> None:
    known = LineReader.available()
    assert known is not None
    reader = LineReader(known._library, **limits)  # type: ignore[arg-type]
    with ElfImage.open(str(built / "pie")) as image:
        assert reader.lookup(image, image.entry) == () and reader.lookup(image, image.entry) == ()
    assert list(reader.problems) == ([problem] if problem else [])
    reader.close()


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("import time; time.sleep(60)", "debug information took too long to read"),
        (
            "import os; os.kill(os.getpid(), 11)",
            "the reader of debug information died (out of memory, or a damaged file)",
        ),
        (
            "import socket; socket.socket(fileno=0).sendall(b'x' * (5 << 20))",
            "the reader of debug information died (out of memory, or a damaged file)",
        ),
        (
            "import socket; socket.socket(fileno=0).sendall(b'[1]\\n')",
            "the reader of debug information died (out of memory, or a damaged file)",
        ),
    ],
)
def test_a_reader_that_fails_is_given_up(
    program: str, problem: str, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "worker.py").write_text(program)
    monkeypatch.setattr("tracer.symbols.lines._WORKER", str(tmp_path / "worker.py"))
    monkeypatch.setattr("tracer.symbols.lines._START_SECONDS", 0.0)
    reader = LineReader(tmp_path, patience=0.5)
    with ElfImage.open(str(built / "pie")) as image:
        assert reader.lookup(image, image.entry) == ()
        assert reader.lookup(image, image.entry) == ()
    assert reader.problems == {problem: 1}
    assert reader._worker is None


@needs_symbolic
def test_damaged_debug_information_is_named(built: Path, tmp_path: Path, reader: LineReader) -> None:
    data = bytearray((built / "pie").read_bytes())
    with ElfImage.open(str(built / "pie")) as image:
        section = image.section(b".debug_info")
        assert section is not None
        data[section.offset : section.offset + section.size] = b"\xff" * section.size
    (tmp_path / "damaged").write_bytes(data)
    with ElfImage.open(str(tmp_path / "damaged")) as image:
        found = reader.lookup(image, return_address(built / "pie") - 1)
    # Whether the library finds the damage or skips it, nothing false comes out.
    assert found == () or all(at.path is None for at in found)
