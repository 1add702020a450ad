"""Addresses get the name of the function that covers them, or none."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from tracer.symbols.elf import ElfImage
from tracer.symbols.table import SymbolTable, find_debug_file

LIBC = "/usr/lib/x86_64-linux-gnu/libc.so.6"
BASE = 0x1000


def image_of(symbols: list[tuple[str, int, int, bool]]) -> ElfImage:
    """An ELF image in memory with these functions (name, address, size, global) in an executable segment."""
    names, entries = b"\0", bytes(24)
    for name, value, size, is_global in symbols:
        entries += struct.pack("<IBBHQQ", len(names), 2 | (16 if is_global else 0), 0, 1, value, size)
        names += name.encode() + b"\0"
    header = 64 + 56
    at_names, at_sections = header + len(entries), header + len(entries) + len(names)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    file = ident + struct.pack("<HHIQQQIHHHHHH", 3, 62, 1, 0, 64, at_sections, 0, 64, 56, 1, 64, 3, 0)
    size = at_sections + 3 * 64
    file += struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, 0, size, 1 << 20, 4096)
    file += entries + names + bytes(64)
    file += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, header, len(entries), 2, 0, 8, 24)
    file += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, at_names, len(names), 0, 0, 1, 0)
    return ElfImage.from_bytes(file)


def test_sizes_are_respected() -> None:
    table = SymbolTable.from_elf(image_of([("f", 0x2000, 16, True), ("g", 0x3000, 16, True)]))
    assert table.lookup(0x2000) == (b"f", 0)
    assert table.lookup(0x200F) == (b"f", 15)
    assert table.lookup(0x2010) is None
    assert table.lookup(0x1FFF) is None


def test_a_symbol_without_size_reaches_to_the_next_or_four_kib() -> None:
    table = SymbolTable.from_elf(image_of([("asm", 0x2000, 0, True), ("g", 0x2100, 16, True), ("h", 0x4000, 0, True)]))
    assert table.lookup(0x20FF) == (b"asm", 0xFF)
    assert table.lookup(0x2110) is None
    assert table.lookup(0x4FFF) == (b"h", 0xFFF)
    assert table.lookup(0x5000) is None


def test_a_symbol_inside_of_another_does_not_hide_it() -> None:
    table = SymbolTable.from_elf(image_of([("outer", 0x2000, 0x100, True), ("inner", 0x2010, 0x10, False)]))
    assert table.lookup(0x2018) == (b"inner", 8)
    assert table.lookup(0x2030) == (b"outer", 0x30)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([("__libc_malloc", True), ("malloc", True), ("__malloc", True)], b"malloc"),
        ([("alpha", False), ("__beta", True)], b"__beta"),
        ([("longer_name", True), ("name", True)], b"name"),
    ],
)
def test_the_best_of_several_names_is_taken(names: list[tuple[str, bool]], expected: bytes) -> None:
    for order in (names, names[::-1]):
        table = SymbolTable.from_elf(image_of([(name, 0x2000, 16, is_global) for name, is_global in order]))
        assert table.lookup(0x2004) == (expected, 4)


def test_versions_are_cut_off() -> None:
    assert SymbolTable.from_elf(image_of([("f@@V_1", 0x2000, 8, True)])).lookup(0x2000) == (b"f", 0)


def test_every_function_of_libc_is_found() -> None:
    if not os.path.exists(LIBC):
        pytest.skip(f"{LIBC} is not installed")
    with ElfImage.open(LIBC) as image:
        table = SymbolTable.from_elf(image)
        by_value: dict[int, set[bytes]] = {}
        for symbol in image.symbols():
            if symbol.size:
                by_value.setdefault(symbol.value, set()).add(symbol.name)
        for value, names in by_value.items():
            found = table.lookup(value)
            assert found is not None and found[0] in names and found[1] == 0
        assert not table.damaged


def build(directory: Path, *options: str) -> Path:
    if shutil.which("gcc") is None or shutil.which("objcopy") is None:
        pytest.skip("gcc or objcopy is not installed")
    (directory / "a.c").write_text("static __attribute__((noinline)) int hidden(int n) { return n * 7; }\n"
                                   "int main(int c, char **v) { return hidden(c); }\n")  # fmt: skip
    subprocess.run(["gcc", "-O1", *options, "-o", "a", "a.c"], cwd=directory, check=True)
    subprocess.run(["objcopy", "--only-keep-debug", "a", "a.debug"], cwd=directory, check=True)
    subprocess.run(["strip", "a"], cwd=directory, check=True)
    subprocess.run(["objcopy", "--add-gnu-debuglink=a.debug", "a"], cwd=directory, check=True)
    return directory / "a"


@pytest.mark.parametrize("identified", [True, False])
def test_debug_files_are_found_by_link_and_checked(tmp_path: Path, identified: bool) -> None:
    path = build(tmp_path, "-Wl,--build-id=sha1" if identified else "-Wl,--build-id=none")
    root = tmp_path / "debug"
    target = root / str(tmp_path)[1:] / "a.debug"
    target.parent.mkdir(parents=True)
    shutil.move(tmp_path / "a.debug", target)
    with ElfImage.open(str(path)) as image:
        debug = find_debug_file(image, str(path), str(root))
        assert debug is not None
        names = {symbol.name: symbol.value for symbol in debug.symbols()}
        table = SymbolTable.from_elf(image, debug)
        assert table.lookup(names[b"hidden"]) == (b"hidden", 0)
        # Another program's debug file, under the right name, is refused.
        with open("/proc/self/exe", "rb") as other:
            target.write_bytes(other.read())
        assert find_debug_file(image, str(path), str(root)) is None


def test_debug_files_are_found_by_build_id(tmp_path: Path) -> None:
    path = build(tmp_path, "-Wl,--build-id=sha1")
    with ElfImage.open(str(path)) as image:
        assert image.build_id is not None
        target = tmp_path / f"debug/.build-id/{image.build_id[:2]}/{image.build_id[2:]}.debug"
        target.parent.mkdir(parents=True)
        shutil.move(tmp_path / "a.debug", target)
        found = find_debug_file(image, "/elsewhere/a", str(tmp_path / "debug"))
        assert found is not None and found.build_id == image.build_id
