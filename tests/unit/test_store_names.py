"""Frames that had no name when they were recorded get one from symbols of the same build."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.reports import frame, sample_report, stack
from tracer.model.report import Frame
from tracer.store.names import renamed
from tracer.symbols.elf import ElfImage

SOURCE = """
__attribute__((noinline)) int inner(int n) { return n * 3; }
int main(int argc, char **argv) { (void)argv; return inner(argc); }
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, int]:
    """A program with symbols, its build ID, and the address of its function ``inner``."""
    if shutil.which("gcc") is None or shutil.which("nm") is None:
        pytest.skip("needs gcc and nm")
    directory = tmp_path_factory.mktemp("built")
    (directory / "a.c").write_text(SOURCE)
    program = directory / "program"
    subprocess.run(["gcc", "-O1", "-g", "-Wl,--build-id", "-o", program, directory / "a.c"], check=True)
    symbols = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    address = next(int(line.split()[0], 16) for line in symbols.splitlines() if line.endswith(" inner"))
    image = ElfImage.open(str(program))
    build_id = image.build_id
    image.close()
    assert build_id
    return program, build_id, address


def named(of: Frame, directory: Path) -> Frame:
    report = renamed(sample_report(stacks=(stack("1" * 16, 4096, frames=(of, of)),)), directory)
    first, second = report.stacks[0].frames
    assert first == second
    return first


def nameless(built: tuple[Path, str, int]) -> Frame:
    return frame(None, "/somewhere/program", built[2] + 1, build_id=built[1])


def test_by_the_file_itself(built: tuple[Path, str, int]) -> None:
    assert named(nameless(built), built[0].parent) == replace(nameless(built), function="inner", function_offset=1)


def test_by_its_debug_file(built: tuple[Path, str, int], tmp_path: Path) -> None:
    place = tmp_path / ".build-id" / built[1][:2]
    place.mkdir(parents=True)
    subprocess.run(["objcopy", "--only-keep-debug", built[0], place / f"{built[1][2:]}.debug"], check=True)
    assert named(nameless(built), tmp_path).function == "inner"


def test_of_another_build_no_name_is_taken(built: tuple[Path, str, int]) -> None:
    other = replace(nameless(built), build_id="00" * 20)
    assert named(other, built[0].parent) == other


@pytest.mark.parametrize("module", ["/a/..", "", "/x/\x00y", "/a/" + "x" * 5000])
def test_a_hostile_name_leads_nowhere(built: tuple[Path, str, int], module: str) -> None:
    other = replace(nameless(built), module=module, build_id="../../../etc/passwd")
    assert named(other, built[0].parent) == other


def test_what_has_a_name_keeps_it(built: tuple[Path, str, int]) -> None:
    known = replace(nameless(built), function="known")
    assert named(known, built[0].parent) == known
