"""The ret instructions through which operator new returns."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tracer.heap import returns
from tracer.heap.returns import ReturnSites, jump_target, return_sites
from tracer.symbols.elf import ElfImage

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")


@pytest.fixture(autouse=True)
def capstone() -> Any:
    return pytest.importorskip("capstone", reason="capstone is not installed")


def sites_of(image: ElfImage, name: bytes) -> ReturnSites:
    symbol = next(symbol for symbol in image.symbols() if symbol.name == name)
    return return_sites(image, symbol.value, symbol.size)


def assembled(directory: Path, source: str) -> ElfImage:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (directory / "a.s").write_text(source)
    subprocess.run(["gcc", "-shared", "-nostdlib", "-o", "a.so", "a.s"], cwd=directory, check=True)
    return ElfImage.open(str(directory / "a.so"))


def function(name: str, body: str) -> str:
    return f".globl {name}\n.type {name}, @function\n{name}:\n{body}\n.size {name}, .-{name}\n"


@pytest.mark.parametrize("library", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"])
@pytest.mark.parametrize(
    "name", [b"_Znwm", b"_Znam", b"_ZnwmRKSt9nothrow_t", b"_ZnwmSt11align_val_t", b"_ZnamSt11align_val_tRKSt9nothrow_t"]
)
def test_allocators_are_complete_and_sites_are_returns(library: str, name: bytes) -> None:
    path = LIBRARIES / library
    if not path.exists():
        pytest.skip(f"{path} is not installed")
    with ElfImage.open(str(path)) as image:
        found = sites_of(image, name)
        assert found.complete, found.reason
        assert found.offsets
        assert all(image.read(offset, 1) in (b"\xc3", b"\xc2", b"\xf3") for offset in found.offsets)


def test_tail_calls_and_cold_parts_are_followed(tmp_path: Path) -> None:
    source = (
        function("f", "test %rdi, %rdi\n je far\n cmp $9, %rdi\n ja g\n mov %rdi, %rax\n ret")
        + function("g", "push %rbx\n pop %rbx\n jmp h@PLT")
        + function("far", "xor %eax, %eax\n repz ret")
        + function("h", "lea 1(%rdi), %rax\n ret $0")
    )
    with assembled(tmp_path, source) as image:
        found = sites_of(image, b"f")
        assert found.complete
        assert len(found.offsets) == 3


@pytest.mark.parametrize(
    "body",
    ["jmp *%rax", "jmp *8(%rdi)", "jmp elsewhere@PLT", "jmp *elsewhere@GOTPCREL(%rip)", "cmp %rsi, %rdi\n .byte 6"],
)
def test_what_cannot_be_followed_is_said(tmp_path: Path, body: str) -> None:
    with assembled(tmp_path, function("f", f"test %rdi, %rdi\n je 1f\n ret\n1: {body}")) as image:
        found = sites_of(image, b"f")
        assert not found.complete and found.reason


def test_a_jump_table_stays_inside(tmp_path: Path) -> None:
    body = """
        cmp $1, %rdi
        ja 3f
        lea table(%rip), %rdx
        movslq (%rdx,%rdi,4), %rax
        add %rdx, %rax
        notrack jmp *%rax
    1:  mov $1, %eax
        ret
    2:  mov $2, %eax
        ret
    3:  ret
    .section .rodata
    table: .long 1b-table, 2b-table
    .text
    """
    with assembled(tmp_path, function("f", body)) as image:
        found = sites_of(image, b"f")
        assert found.complete and len(found.offsets) == 3


def test_a_branch_into_an_instruction_is_refused(tmp_path: Path) -> None:
    body = "je 1f+1\n1: mov $0xc3c3c3, %eax\n ret"
    with assembled(tmp_path, function("f", body)) as image:
        found = sites_of(image, b"f")
        assert not found.complete and not found.offsets


def test_long_chains_end(tmp_path: Path) -> None:
    chain = "".join(function(f"f{n}", f"test %rdi, %rdi\n jne f{n + 1}\n ret") for n in range(20))
    with assembled(tmp_path, chain + function("f20", "ret")) as image:
        assert not sites_of(image, b"f0").complete
        assert sites_of(image, b"f17").complete


def test_loops_of_jumps_end(tmp_path: Path) -> None:
    with assembled(tmp_path, function("f", "jmp g\n ret") + function("g", "jmp f\n ret")) as image:
        assert len(sites_of(image, b"f").offsets) == 2


def test_without_capstone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def absent(name: str) -> Any:
        raise ImportError(name)

    with assembled(tmp_path, function("f", "ret")) as image:
        monkeypatch.setattr(importlib, "import_module", absent)
        assert sites_of(image, b"f") == ReturnSites((), False, returns.NO_CAPSTONE)


def test_jumps_are_seen_through(tmp_path: Path) -> None:
    source = (
        function("direct", "jmp g@PLT")
        + function("slot", "endbr64\n bnd jmp *g@GOTPCREL(%rip)")
        + function("g", "ret")
        + function("away", "jmp elsewhere@PLT")
    )
    with assembled(tmp_path, source) as image:
        at = {symbol.name: symbol.value for symbol in image.symbols()}
        assert jump_target(image, at[b"direct"]) == at[b"g"]
        assert jump_target(image, at[b"slot"]) == at[b"g"]
        assert jump_target(image, at[b"g"]) is None
        assert jump_target(image, at[b"away"]) is None
