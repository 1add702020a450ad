"""Addresses of real processes get names, also when the process or the library is gone."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tracer.model.vma import Vma
from tracer.procfs.maps import parse_maps
from tracer.symbols.perfmap import parse_perf_map
from tracer.symbols.resolver import Resolver, open_mapping, unescaped


def maps_of(pid: int) -> tuple[Vma, ...]:
    return parse_maps(Path(f"/proc/{pid}/maps").read_bytes())


def address_of(name: str) -> int:
    # Not by the program's own symbols: in a program that is not position-independent, malloc's address is a stub.
    value = ctypes.cast(getattr(ctypes.CDLL("libc.so.6"), name), ctypes.c_void_p).value
    assert value is not None
    return value


@pytest.fixture
def own() -> Iterator[Resolver]:
    resolver = Resolver(os.getpid())
    resolver.update(maps_of(os.getpid()))
    yield resolver
    resolver.close()


def test_own_libc(own: Resolver) -> None:
    (frame,) = own.resolve(address_of("malloc") + 1)
    assert frame.function == "malloc" and frame.function_offset == 1
    assert frame.module is not None and "libc" in frame.module
    assert frame.build_id and frame.language == "native"


def test_a_return_address_is_looked_up_one_before(own: Resolver) -> None:
    start = address_of("malloc")
    assert own.resolve(start + 5, return_address=True) == own.resolve(start + 4)


def test_an_address_outside_of_everything(own: Resolver) -> None:
    (frame,) = own.resolve(0x10)
    assert (frame.function, frame.module, frame.offset) == (None, None, 0x10)


def test_the_vdso_is_read_from_memory(own: Resolver) -> None:
    vdso = next((vma for vma in maps_of(os.getpid()) if vma.path == b"[vdso]"), None)
    if vdso is None:
        pytest.skip("this kernel maps no vdso")
    names = {own.resolve(vdso.start + at)[0].function for at in range(0, vdso.size, 16)}
    assert names & {"clock_gettime", "__vdso_clock_gettime", "__kernel_clock_gettime"}
    assert own.resolve(vdso.start)[0].module == "[vdso]"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "p.c").write_text("int plugged(int n) { return n * 5; }\n")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", "plug.so", "p.c"], cwd=tmp_path, check=True)
    return tmp_path / "plug.so"


PROGRAM = """
import ctypes, sys
lib = ctypes.CDLL(sys.argv[1])
print(ctypes.cast(lib.plugged, ctypes.c_void_p).value, flush=True)
sys.stdin.readline()
import _ctypes; _ctypes.dlclose(lib._handle)
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def plugged(library: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that has the library open at the address, closes it on a line of input, and ends on another."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    yield process, int(process.stdout.readline())
    process.kill()
    process.communicate()


def step(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_after_the_target_ended(plugged: tuple[subprocess.Popen[str], int], library: Path) -> None:
    process, address = plugged
    resolver = Resolver(process.pid)
    resolver.update(maps_of(process.pid))
    process.kill()
    process.wait()
    library.unlink()
    (frame,) = resolver.resolve(address)
    assert frame.function == "plugged" and frame.module == str(library)
    resolver.close()


def test_a_library_that_was_unloaded(plugged: tuple[subprocess.Popen[str], int]) -> None:
    process, address = plugged
    resolver = Resolver(process.pid)
    resolver.update(maps_of(process.pid))
    step(process)
    assert process.stdout is not None and process.stdout.readline() == "closed\n"
    resolver.update(maps_of(process.pid))
    assert resolver.resolve(address)[0].function == "plugged"
    resolver.close()


def test_the_newest_mapping_wins(library: Path) -> None:
    """One range, used by the library, then by another file, then by the library again."""
    inode = library.stat().st_ino
    old = Vma(0x10000, 0x20000, "r-xp", 0, "00:00", inode, os.fsencode(library))
    new = Vma(0x10000, 0x20000, "r-xp", 0, "00:00", 1, b"/other")
    resolver = Resolver(os.getpid(), open_mapping=lambda pid, vma: os.open(library, os.O_RDONLY))
    for vma, module in ((old, str(library)), (new, "/other"), (old, str(library))):
        resolver.update([vma])
        assert resolver.resolve(0x10000 + 0x100)[0].module == module
    resolver.update([])
    assert resolver.resolve(0x10000 + 0x100)[0].module == str(library)
    resolver.close()


def test_a_file_that_cannot_be_opened_is_counted() -> None:
    vma = Vma(0x10000, 0x20000, "r-xp", 0x3000, "00:00", 7, b"/nowhere/\x1b[31mx (deleted)")
    resolver = Resolver(os.getpid())
    resolver.update([vma])
    (frame,) = resolver.resolve(0x10010)
    assert (frame.function, frame.module, frame.offset) == (None, "/nowhere/\\x1b[31mx (deleted)", 0x3010)
    assert resolver.unopened == 1


def test_another_file_under_the_same_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    status = (tmp_path / "x").stat()
    if os.major(status.st_dev) == 0:
        pytest.skip("inode numbers are not compared on this file system")
    vma = Vma(0, 0x1000, "r-xp", 0, "00:00", status.st_ino + 1, os.fsencode(tmp_path / "x"))
    with pytest.raises(OSError):
        open_mapping(os.getpid(), vma)


def test_a_perf_map_names_generated_code() -> None:
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    vma = Vma(0x7000_0000_0000, 0x7000_0001_0000, "rwxp", 0, "00:00", 0, b"")
    resolver = Resolver(os.getpid())
    try:
        path.write_bytes(b"700000000100 40 LazyCompile:~old app.js:1\n700000000100 40 LazyCompile:*new app.js:1\n")
        resolver.update([vma])
        (frame,) = resolver.resolve(vma.start + 0x110)
        assert (frame.function, frame.function_offset) == ("LazyCompile:*new app.js:1", 0x10)
        assert frame.module == str(path) and frame.offset == vma.start + 0x110
        assert resolver.resolve(vma.start + 0x200)[0].function is None
        with path.open("ab") as file:
            file.write(b"700000000200 10 later\nnoise\n700000000300 zz bad\n")
        resolver.update([vma])
        assert resolver.resolve(vma.start + 0x200)[0].function == "later"
    finally:
        path.unlink(missing_ok=True)
        resolver.close()


def test_a_link_in_place_of_a_perf_map_is_refused(tmp_path: Path) -> None:
    path = Path(f"/tmp/perf-{os.getpid()}.map")
    (tmp_path / "secret").write_bytes(b"700000000100 40 secret\n")
    path.symlink_to(tmp_path / "secret")
    resolver = Resolver(os.getpid())
    try:
        resolver.update([Vma(0x7000_0000_0000, 0x7000_0001_0000, "rwxp", 0, "00:00", 0, b"")])
        assert resolver.resolve(0x7000_0000_0110)[0].function is None
    finally:
        path.unlink()
        resolver.close()


def test_descriptors_are_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    resolver = Resolver(os.getpid())
    resolver.update(maps_of(os.getpid()))
    resolver.resolve(address_of("malloc"))
    assert len(os.listdir("/proc/self/fd")) > before
    resolver.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_perf_map_lines_that_are_none_are_left_out() -> None:
    assert parse_perf_map(b"10 2 a b\n\nx\n10\n-1 2\n99999999999999999999999 1 x\n20 1 c") == [
        (0x10, 0, 2, b"a b"),
        (0x20, 6, 1, b"c"),
    ]


def test_paths_are_unescaped() -> None:
    assert unescaped(b"/a\\012b (deleted)") == b"/a\nb"
