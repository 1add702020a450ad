r"""/proc/PID/maps: the address space of a process as a tuple of VMAs.

The file is bytes, not text: a name may hold any byte but a newline, which the kernel writes as ``\012``
(fs/proc/task_mmu.c, show_vma_header_prefix and seq_path; proc(5)). A name may be 4 KiB long, contain blanks, and
end in `` (deleted)``.
"""

from __future__ import annotations

from collections.abc import Iterable

from tracer.model.vma import Vma
from tracer.procfs.files import read_of_any_thread


def parse_maps(data: bytes) -> tuple[Vma, ...]:
    """The VMAs of a maps file, in its order. Lines that are cut off are left out."""
    parse = HeaderParser()
    return tuple(vma for line in data.split(b"\n") if (vma := parse(line)) is not None)


def read_maps(pid: int) -> tuple[Vma, ...]:
    """The VMAs of a process; none for a kernel thread or a zombie.

    Where the group leader has exited but other threads run, theirs are read (task/TID/maps). The file is handed
    out a page at a time, so the VMAs of a running process may be torn: see ``overlapping``.

    Raises TargetError where the process does not exist or has ended, PrivilegeError where the caller may not look.
    """
    return parse_maps(read_of_any_thread(pid, "maps"))


def overlapping(vmas: Iterable[Vma]) -> bool:
    """True where the VMAs overlap or go backwards: the mappings changed while the file was read.

    proc(5) promises that this cannot be; kernel 6.18 did it in 25 of 96 reads under mprotect churn, because the
    position is set back to the start of a VMA that has been merged between two reads.
    """
    previous_end = 0
    for vma in vmas:
        if vma.start < previous_end:
            return True
        previous_end = vma.end
    return False


class HeaderParser:
    """Parses the line that maps has for each VMA, and with which each block of smaps begins.

    One object per file: few texts of permissions and devices recur many times, and are kept as one object each.
    """

    __slots__ = ("_texts",)

    def __init__(self) -> None:
        self._texts: dict[bytes, str] = {}

    def __call__(self, line: bytes) -> Vma | None:
        """The VMA of ``START-END PERMS OFFSET MAJOR:MINOR INODE [PATH]`` or None for another kind of line."""
        # The sixth part is the whole rest of the line: names contain blanks.
        parts = line.split(None, 5)
        if len(parts) < 5:
            return None
        start, dash, end = parts[0].partition(b"-")
        # An smaps field never has a dash in its first word, which ends in a colon; a cut-off line fails in int().
        if not dash:
            return None
        try:
            return Vma(
                int(start, 16),
                int(end, 16),
                self._texts.get(parts[1]) or self._text(parts[1]),
                int(parts[2], 16),
                self._texts.get(parts[3]) or self._text(parts[3]),
                int(parts[4]),
                parts[5] if len(parts) == 6 else b"",
            )
        except ValueError:
            return None

    def _text(self, word: bytes) -> str:
        text = self._texts[word] = word.decode("ascii", "backslashreplace")
        return text
