"""Names for frames that had none when they were recorded, from symbols that are there now.

A frame keeps the build ID of its file and the address in it, so that any file with the same build ID tells what it is:
the stripped file's debug file, or the file with its symbols. Source lines are not looked up again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tracer.model.report import Frame, Report
from tracer.symbols.demangle import demangle
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError
from tracer.symbols.table import SymbolTable


def renamed(report: Report, directory: Path) -> Report:
    """The report with names for those frames of which ``directory`` has symbols."""
    with ExitStack() as images:
        names = _Names(directory, images)
        stacks = tuple(
            replace(stack, frames=tuple(names.named(frame) for frame in stack.frames)) for stack in report.stacks
        )
        return replace(report, stacks=stacks)


class _Names:
    def __init__(self, directory: Path, images: ExitStack) -> None:
        self._directory = directory
        self._images = images
        self._tables: dict[str, SymbolTable | None] = {}
        self._frames: dict[Frame, Frame] = {}

    def named(self, frame: Frame) -> Frame:
        if frame.function is not None or not frame.build_id or frame.module is None:
            return frame
        if frame not in self._frames:
            self._frames[frame] = self._look_up(frame, frame.build_id, frame.module)
        return self._frames[frame]

    def _look_up(self, frame: Frame, build_id: str, module: str) -> Frame:
        if build_id not in self._tables:
            self._tables[build_id] = self._table_of(build_id, module)
        table = self._tables[build_id]
        found = table.lookup(frame.offset) if table is not None else None
        return frame if found is None else replace(frame, function=demangle(found[0]), function_offset=found[1])

    def _table_of(self, build_id: str, module: str) -> SymbolTable | None:
        for path in _candidates(self._directory, build_id, module):
            try:
                image = ElfImage.open(str(path))
            except (OSError, ValueError):
                continue
            self._images.callback(image.close)
            if image.build_id == build_id:
                try:
                    return SymbolTable.from_elf(image)
                except ElfError:
                    continue
        return None


def _candidates(directory: Path, build_id: str, module: str) -> Iterator[Path]:
    """Where the file may be: as under /usr/lib/debug, or by its name, with .debug behind it or not."""
    # From the recording, which may hold anything: no way out of the directory.
    if build_id.isalnum() and len(build_id) > 2:
        yield directory / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
    name = module.removesuffix(" (deleted)").rpartition("/")[2]
    if name not in ("", ".", ".."):
        yield directory / f"{name}.debug"
        yield directory / name
