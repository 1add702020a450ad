"""Which of a process's mappings are looked at for allocators, and what becomes of those that cannot be read."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tracer.heap import discovery
from tracer.heap.discovery import Discovery, FoundImage
from tracer.model.vma import Vma
from tracer.symbols.elf import ElfImage

PID = 4711
LIBC = Path("/usr/lib/x86_64-linux-gnu/libc.so.6")
Files = dict[str, Path | OSError]


class Opener:
    """Stands for ElfImage: opens the files that the mappings' links in /proc stand for."""

    def __init__(self) -> None:
        self.files: Files = {}
        self.opened: list[str] = []

    def open(self, path: str) -> ElfImage:
        self.opened.append(path)
        file = self.files[path]
        if isinstance(file, OSError):
            raise file
        return ElfImage.open(str(file))


@pytest.fixture
def opener(monkeypatch: pytest.MonkeyPatch) -> Opener:
    opener = Opener()
    monkeypatch.setattr(discovery, "ElfImage", opener)
    return opener


Mapping = Callable[..., Vma]


@pytest.fixture
def mapping(opener: Opener) -> Mapping:
    """Makes the VMA of a file and lets its link in map_files lead there."""

    def make(file: Path | OSError, start: int = 0x7F0000001000, **fields: object) -> Vma:
        known = {"perms": "r-xp", "offset": 0, "device": "fe:00", "inode": 7, "path": b"/lib/x.so"}
        row = Vma(start, start + 0x2000, **{**known, **fields})  # type: ignore[arg-type]
        opener.files[f"/proc/{PID}/map_files/{row.start:x}-{row.end:x}"] = file
        return row

    return make


def libc() -> Path:
    if not LIBC.exists():
        pytest.skip(f"{LIBC} is not installed")
    return LIBC


def look(*vmas: Vma) -> list[FoundImage]:
    return list(Discovery(PID).look(vmas))


def test_an_allocator_is_found_through_its_mapping(mapping: Mapping) -> None:
    (found,) = look(mapping(libc(), path=b"/gone/libc.so.6 (deleted)"))
    assert found.path == "/gone/libc.so.6 (deleted)"
    assert found.map_file == f"/proc/{PID}/map_files/7f0000001000-7f0000003000"
    assert found.allocator is not None and found.allocator.name == "glibc malloc"
    assert {"malloc", "free"} <= {site.symbol for site in found.allocator.sites}
    assert not found.is_go and not found.is_static


def test_probes_are_placed(mapping: Mapping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "place", lambda image, allocator: f"{allocator.name}, placed")
    (found,) = look(mapping(libc()))
    assert str(found.allocator) == "glibc malloc, placed"


def test_a_file_without_an_allocator_is_an_image_too(mapping: Mapping) -> None:
    """The resolver and the notes of the session need it."""
    (found,) = look(mapping(Path("/bin/cat").resolve(), path=b"/bin/cat"))
    assert (found.path, found.allocator, found.is_static) == ("/bin/cat", None, False)


def test_a_static_program(mapping: Mapping, tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    (tmp_path / "a.c").write_text("int main(void) { return 0; }")
    built = subprocess.run(["gcc", "-static", "-o", "a", "a.c"], cwd=tmp_path, capture_output=True)
    if built.returncode:
        pytest.skip("no static C library is installed")
    (found,) = look(mapping(tmp_path / "a"))
    assert found.is_static


@pytest.mark.parametrize(
    "fields", [{"perms": "r--p"}, {"perms": "rw-p"}, {"inode": 0, "path": b""}, {"inode": 0, "path": b"[vdso]"}]
)
def test_what_is_no_executable_file_is_not_opened(mapping: Mapping, opener: Opener, fields: dict[str, object]) -> None:
    assert look(mapping(libc(), **fields)) == []
    assert opener.opened == []


def test_each_file_is_looked_at_once(mapping: Mapping, opener: Opener) -> None:
    known = Discovery(PID)
    cat = Path("/bin/cat").resolve()
    first, again = mapping(cat, 0x10000), mapping(cat, 0x20000)
    other_inode, other_device = mapping(cat, 0x30000, inode=8), mapping(cat, 0x40000, device="fe:01")
    assert len(list(known.look([first, again]))) == 1
    assert len(list(known.look([first, again, other_inode, other_device]))) == 2
    assert len(opener.opened) == 3


def test_what_is_no_elf_file_is_passed_over(mapping: Mapping, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"generated code")
    known = Discovery(PID)
    assert list(known.look([mapping(tmp_path / "cache")])) == []
    assert known.unreadable == [], "nothing that the user should hear of"


def test_a_file_that_cannot_be_read_is_said(mapping: Mapping) -> None:
    known = Discovery(PID)
    refused = mapping(PermissionError(1, "Operation not permitted"), 0x10000, path=b"/opt/\xff\n.so", inode=1)
    found = list(known.look([refused, mapping(Path("/bin/cat").resolve(), 0x20000, inode=2)]))
    assert len(found) == 1, "the others are looked at all the same"
    assert known.unreadable == ["/opt/\\xff\n.so cannot be read: Operation not permitted"]
