"""Probes stand on instructions that the kernel emulates, where the arguments still are what they were."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tracer.heap.allocators import find_allocator
from tracer.heap.placement import Placement, emulated_offset, is_emulated, place
from tracer.symbols.elf import ElfImage

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
MALLOC = ("rdi", "rsp")
FREE = ("rdi",)


@pytest.fixture(autouse=True)
def capstone() -> Any:
    return pytest.importorskip("capstone", reason="capstone is not installed")


def opened(library: str) -> ElfImage:
    path = LIBRARIES / library
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    return ElfImage.open(str(path))


def placed(directory: Path, body: str, registers: tuple[str, ...], *, more: str = "") -> tuple[int, Placement]:
    """The distance of the place from the function's start, for a function of this assembly."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    text = f".globl f\n.type f, @function\nf:\n{body}\n.size f, .-f\n{more}"
    (directory / "a.s").write_text(text)
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", "a.so", "a.s"], cwd=directory, check=True)
    with ElfImage.open(str(directory / "a.so")) as image:
        symbol = next(symbol for symbol in image.symbols() if symbol.name == b"f")
        found = emulated_offset(image, symbol.value, symbol.size, registers=registers)
        start = image.file_offset_of(symbol.value)
        assert start is not None
        return found.offset - start, found


@pytest.mark.parametrize("library", ["libc.so.6", "libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"])
def test_free_and_most_others_are_emulated_in_real_allocators(library: str) -> None:
    with opened(library) as image:
        found = find_allocator(image, library)
        assert found is not None
        for site in place(image, found).sites:
            if site.symbol == "free" and image.machine == 62:
                assert is_emulated(image.read(site.file_offset, 16)), f"{library}: {site}"
            assert site.vaddr <= (image.vaddr_of_offset(site.file_offset) or 0) or site.kind == "ret-instruction"


def test_entry_and_return_share_their_place() -> None:
    with opened("libjemalloc.so.2") as image:
        found = find_allocator(image, "libjemalloc.so.2")
        assert found is not None
        offsets = {site.kind: site.file_offset for site in place(image, found).sites if site.symbol == "malloc"}
        assert offsets["entry"] == offsets["return"]


@pytest.mark.parametrize(
    ("body", "registers", "expected"),
    [
        ("push %rbx\n pop %rbx\n ret", MALLOC, 0),
        ("endbr64\n push %r12\n pop %r12\n ret", MALLOC, 4),
        ("test %rdi, %rdi\n je 1f\n push %rbx\n pop %rbx\n1: ret", MALLOC, 3),
        ("test %rdi, %rdi\n je 1f\n push %rbx\n pop %rbx\n1: ret", FREE, 5),
        ("test %rdi, %rdi\n je 1f\n lea 8(%rdi), %rdi\n push %rbx\n pop %rbx\n1: ret", FREE, 3),
        ("test %rdi, %rdi\n jne 1f\n push %rbx\n pop %rbx\n1: ret", FREE, 3),
        ("cmp $4096, %rdi\n ja 1f\n mov %rdi, %rax\n1: ret", MALLOC, 7),
        ("sub $24, %rsp\n call g@PLT\n add $24, %rsp\n ret", FREE, 4),
    ],
)
def test_places(tmp_path: Path, body: str, registers: tuple[str, ...], expected: int) -> None:
    distance, found = placed(tmp_path, body, registers)
    assert (distance, found.emulated) == (expected, True)


@pytest.mark.parametrize(
    ("body", "registers"),
    [
        ("mov %rsi, %rdi\n push %rbx\n pop %rbx\n ret", FREE),
        ("add $7, %edi\n push %rbx\n pop %rbx\n ret", FREE),
        ("sub $24, %rsp\n push %rbx\n pop %rbx\n add $24, %rsp\n ret", MALLOC),
        ("mov %rdi, %rax\n 1: push %rbx\n pop %rbx\n dec %rax\n jnz 1b\n ret", FREE),
        ("mov %rdi, %rcx\n jrcxz 1f\n push %rbx\n pop %rbx\n 1: ret", FREE),
        ("mov %rdi, %rax\n ret\n push %rbx", FREE),
        ("mov %rdi, %rax\n call *%rax\n push %rbx", FREE),
        ("mov %rdi, %rax\n xchg %rdi, %rsi\n push %rbx\n ret", FREE),
        ("nopl 0(%rax)\n mov %rdi, %rax\n ret", FREE),
    ],
)
def test_otherwise_the_entry(tmp_path: Path, body: str, registers: tuple[str, ...]) -> None:
    distance, found = placed(tmp_path, body, registers)
    assert (distance, found.emulated) == (0, False)
    assert found.reason and found.instruction


def test_another_entry_behind_the_first_is_respected(tmp_path: Path) -> None:
    body = "mov %rdi, %rax\n.globl inner\n.type inner, @function\ninner: push %rbx\n pop %rbx\n ret\n.size inner, 3"
    distance, found = placed(tmp_path, body, FREE)
    assert (distance, found.emulated) == (0, False)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (b"\x55", True),
        (b"\x41\x57", True),
        (b"\x90", True),
        (b"\xe8\0\0\0\0", True),
        (b"\xe9\0\0\0\0", True),
        (b"\x74\x05", True),
        (b"\x0f\x87\0\0\0\0", True),
        (b"\xf3\x0f\x1e\xfa", False),
        (b"\x0f\x1f\x00", False),
        (b"\x48\x85\xff", False),
        (b"\xc3", False),
        (b"\xf2\xe9\0\0\0\0", False),
        (b"\x41\x90", False),
        (b"", False),
    ],
)
def test_what_the_kernel_emulates(code: bytes, expected: bool) -> None:
    assert is_emulated(code) is expected
