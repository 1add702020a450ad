"""ELF files: what real ones say, and that damaged ones do no harm."""

from __future__ import annotations

import lzma
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.heap.allocators import find_allocator
from tracer.symbols.elf import ElfError, ElfImage
from tracer.symbols.table import SymbolTable, find_debug_file

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
SOURCE = """
#include <stdlib.h>
__attribute__((noinline)) int work(int n) { return n * 3; }
static __attribute__((noinline)) void *take(size_t n) { return malloc(n); }
int main(int argc, char **argv) { void *p = take(argc); free(p); return work(argc); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dynamically linked program with a .symtab and a build ID."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    directory = tmp_path_factory.mktemp("elf")
    (directory / "a.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-Wl,--build-id=sha1", "-o", "a", "a.c"], cwd=directory, check=True)
    return directory / "a"


def real(name: str) -> Path:
    path = Path(name) if name.startswith("/") else LIBRARIES / name
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    return path


def exercise(data: bytes) -> None:
    """Everything that reads the file; only ElfError may come out."""
    try:
        image = ElfImage.from_bytes(data)
        starts, sizes = image.functions
        assert len(starts) == len(sizes) <= len(data)
        assert image.build_id is None or isinstance(image.build_id, str)
        assert isinstance(image.is_go, bool) and isinstance(image.is_static, bool)
        assert isinstance(image.needed, tuple) and isinstance(image.slots, dict)
        for symbol in image.symbols():
            image.file_offset_of(symbol.value)
        table = SymbolTable.from_elf(image)
        for address in (0, 0x1139, 1 << 63, *starts[:16]):
            table.lookup(address)
            image.vaddr_of_offset(address)
        find_debug_file(image, "/nowhere/x", "/nonexistent")
        find_allocator(image, "/x")
    except ElfError:
        pass


def test_libc_is_read() -> None:
    with ElfImage.open(str(real("libc.so.6"))) as image:
        names = {symbol.name for symbol in image.symbols()}
        assert image.soname == b"libc.so.6"
        assert {b"malloc", b"free", b"calloc"} <= names
        assert image.build_id is not None and len(image.build_id) == 40
        assert image.is_pie and not image.is_static and not image.is_go and not image.damaged


def test_symbols_agree_with_nm(program: Path) -> None:
    listed = subprocess.run(["nm", "--defined-only", program], capture_output=True, text=True, check=True).stdout
    expected = {(int(a, 16), n.encode()) for a, kind, n in map(str.split, listed.splitlines()) if kind in "Tt"}
    with ElfImage.open(str(program)) as image:
        assert {(symbol.value, symbol.name) for symbol in image.symbols()} == expected
        assert b"work" in {name for _, name in expected}
        assert any(symbol.name == b"take" and symbol.size for symbol in image.symbols())


def test_addresses_and_offsets_are_inverse(program: Path) -> None:
    with ElfImage.open(str(program)) as image:
        for vaddr in image.functions[0]:
            offset = image.file_offset_of(vaddr)
            assert offset is not None and image.vaddr_of_offset(offset) == vaddr
        assert image.file_offset_of(1 << 62) is None
        assert image.vaddr_of_offset(1 << 62) is None


def test_without_section_headers_the_dynamic_symbols_remain() -> None:
    data = bytearray(real("libc.so.6").read_bytes())
    whole = {symbol.name for symbol in ElfImage.from_bytes(bytes(data)).symbols()}
    data[40:48] = bytes(8)  # e_shoff
    data[60:62] = bytes(2)  # e_shnum
    image = ElfImage.from_bytes(bytes(data))
    assert not image.sections
    assert {symbol.name for symbol in image.symbols()} == whole
    assert image.build_id is not None


def test_debugdata_is_read(program: Path, tmp_path: Path) -> None:
    if shutil.which("objcopy") is None:
        pytest.skip("objcopy is not installed")
    (tmp_path / "mini.xz").write_bytes(lzma.compress(program.read_bytes()))
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, program], check=True)
    section = f".gnu_debugdata={tmp_path / 'mini.xz'}"
    subprocess.run(["objcopy", "--add-section", section, str(stripped)], check=True)
    with ElfImage.open(str(stripped)) as image:
        assert b"take" in {symbol.name for symbol in image.symbols()}


def test_a_decompression_bomb_is_cut(program: Path, tmp_path: Path) -> None:
    if shutil.which("objcopy") is None:
        pytest.skip("objcopy is not installed")
    (tmp_path / "bomb.xz").write_bytes(lzma.compress(bytes(200 << 20), preset=0))
    bomb = tmp_path / "bomb"
    subprocess.run(["objcopy", "--add-section", f".gnu_debugdata={tmp_path / 'bomb.xz'}", program, bomb], check=True)
    with ElfImage.open(str(bomb)) as image:
        assert list(image.symbols())
        assert image.damaged


def test_a_static_program_is_recognised(tmp_path: Path) -> None:
    if shutil.which("musl-gcc") is None:
        pytest.skip("musl-gcc is not installed")
    (tmp_path / "a.c").write_text(SOURCE)
    subprocess.run(["musl-gcc", "-static", "-o", "a", "a.c"], cwd=tmp_path, check=True)
    with ElfImage.open(str(tmp_path / "a")) as image:
        assert image.is_static and not image.needed


def test_what_is_no_elf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"#!/bin/sh\n" * 100)
    with pytest.raises(ElfError):
        ElfImage.open(str(tmp_path / "text"))
    with pytest.raises(ElfError):
        ElfImage.open("/dev/null")
    with pytest.raises(ElfError):
        ElfImage.from_bytes(b"")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ElfError):
        ElfImage.open(str(tmp_path / "fifo"))


def test_a_file_that_shrinks_while_open_is_an_error(program: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copy(program, copy)
    with ElfImage.open(str(copy)) as image:
        os.truncate(copy, 128)
        assert list(image.symbols()) == []
        assert image.damaged
        with pytest.raises(ElfError):
            image.read(1000, 100)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_truncated_files_do_no_harm(program: Path, data: st.DataObject) -> None:
    whole = program.read_bytes()
    exercise(whole[: data.draw(st.integers(0, len(whole)))])


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_flipped_bits_do_no_harm(program: Path, data: st.DataObject) -> None:
    changed = bytearray(program.read_bytes())
    tail = len(changed) - 64 * 32
    places = st.one_of(st.integers(0, 0x400), st.integers(tail, len(changed) - 1), st.integers(0, len(changed) - 1))
    for _ in range(data.draw(st.integers(1, 12))):
        changed[data.draw(places)] = data.draw(st.integers(0, 255))
    exercise(bytes(changed))


@settings(max_examples=100, deadline=None)
@given(
    field=st.sampled_from([24, 32, 40, 54, 56, 58, 60, 62, *range(64, 64 + 56 * 13, 8)]),
    value=st.sampled_from([0, 1, 0xFFFF, 0xFFFFFFFF, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
def test_lying_headers_do_no_harm(program: Path, field: int, value: int) -> None:
    changed = bytearray(program.read_bytes())
    struct.pack_into("<Q", changed, field, value)
    exercise(bytes(changed))


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=512))
def test_noise_behind_an_elf_header_does_no_harm(data: bytes) -> None:
    exercise(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\x00\x3e\x00" + data)
