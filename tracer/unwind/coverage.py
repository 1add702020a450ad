"""How much of an image's code the kernel's unwinder can walk through."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from tracer.model.health import ModuleCoverage
from tracer.model.vma import Vma

from .access import open_mapping
from .image import UnwindTableError
from .rules import Cfa
from .tables import ImageTable, TableStore, table_of_file

_LOW = 0xFFFFFFFF
_NOT_WALKED = (Cfa.NONE, Cfa.UNSUP)


def module_coverage(pid: int, vmas: Iterable[Vma], store: TableStore | None) -> Iterator[ModuleCoverage]:
    """Each file that a process has mapped executable; tables that are made on the way are kept in ``store``."""
    seen = set()
    for vma in vmas:
        identity = (vma.device, vma.inode)
        if not vma.is_executable or not vma.is_file or identity in seen:
            continue
        seen.add(identity)
        path = vma.path.decode("utf-8", "surrogateescape")
        try:
            fd = open_mapping(pid, vma)
        except OSError as error:
            yield ModuleCoverage(path, vma.size, 0, f"cannot be opened: {error.strerror}")
            continue
        try:
            table = table_of_file(fd, store)
            code = sum(segment.size for segment in table.segments)
            yield ModuleCoverage(path, code, covered_bytes(table), reasons=Counter(table.reasons))
        except UnwindTableError as error:
            yield ModuleCoverage(path, vma.size, 0, str(error))
        finally:
            os.close(fd)


def covered_bytes(table: ImageTable) -> int:
    """Bytes of code with a rule that says how to get to the caller."""
    covered, since = 0, None
    for row in table.rows:
        address, walked = row >> 32, Cfa(row & _LOW & 15) not in _NOT_WALKED
        if since is not None:
            covered += address - since
        since = address if walked else None
    return covered
