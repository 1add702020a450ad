"""/proc/PID/smaps: how much of each VMA is in memory, and whose it is.

Each VMA has a block: the line of maps, then ``Name: NUMBER kB`` lines, then ``VmFlags:`` (proc(5); fs/proc/task_mmu.c,
show_smap). Which fields there are depends on the kernel and the processor (``ProtectionKey``), so the parser learns
the layout from the first block: the fields after the header have the same length and the same places in every block,
unless a number has more than eight digits. A block that deviates is parsed line by line.
"""

from __future__ import annotations

from struct import Struct
from typing import cast

from tracer.model.vma import Vma, VmaUsage
from tracer.procfs.files import read_of_any_thread
from tracer.procfs.maps import HeaderParser

_KIB = 1024
_GIB = 1 << 30
_FLAGS = b"\nVmFlags:"
_DIGITS_TO_BLANKS = bytes.maketrans(b"0123456789", b" " * 10)
_KEPT_VALUES = 4096

# The fields of VmaUsage between ``vma`` and ``flags``, in its order.
_FIELDS = (
    b"Rss",
    b"Pss",
    b"Anonymous",
    b"Private_Clean",
    b"Private_Dirty",
    b"Shared_Clean",
    b"Shared_Dirty",
    b"Swap",
)

_Values = tuple[int, int, int, int, int, int, int, int]


def parse_smaps(data: bytes) -> tuple[VmaUsage, ...]:
    """The VMAs of an smaps file with their sizes in bytes; unknown fields and flags are tolerated.

    A last block that is cut off counts as far as it goes, if its first line and its Rss are there.
    """
    parser = _SmapsParser()
    usages: list[VmaUsage] = []
    pieces = data.split(_FLAGS)
    # A piece is the rest of the flags line of the block before it, then a block without its flags line.
    pieces[0] = b"\n" + pieces[0]
    pending: tuple[Vma, _Values] | None = None
    for piece in pieces:
        end_of_flags = piece.find(b"\n")
        if end_of_flags < 0:
            end_of_flags = len(piece)
        if pending is not None:
            usages.append(VmaUsage(pending[0], *pending[1], parser.flags(piece[:end_of_flags])))
        pending = parser.block(piece, end_of_flags + 1)
    if pending is not None:
        usages.append(VmaUsage(pending[0], *pending[1]))
    return tuple(usages)


def read_smaps(pid: int) -> tuple[VmaUsage, ...]:
    """The VMAs of a process with what of them is resident; none for a kernel thread or a zombie.

    Expensive for the target: see ``estimate_smaps_seconds``. Where the group leader has exited but other threads
    run, theirs are read. Raises TargetError where the process does not exist or has ended, PrivilegeError where the
    caller may not look.
    """
    return parse_smaps(read_of_any_thread(pid, "smaps"))


def estimate_smaps_seconds(vma_count: int, rss: int) -> float:
    """How long one read of smaps takes, and for how long it may block the target's mmap calls, in seconds.

    3.3 us per VMA and 30 ms per GiB of ``rss`` bytes. Measured on kernel 6.18: 10-43 ms per GiB of 4 KiB pages,
    depending on how scattered they are; huge pages cost 0.1 ms per GiB, so that this is an upper bound for them.
    """
    return vma_count * 3.3e-6 + rss / _GIB * 0.030


class _SmapsParser:
    """What is learnt from the blocks of one file."""

    def __init__(self) -> None:
        self._header = HeaderParser()
        self._flags: dict[bytes, tuple[str, ...]] = {}
        self._values: dict[bytes, _Values] = {}
        self._template = b""
        self._layout: Struct | None = None
        self._order: tuple[int, ...] = ()

    def flags(self, text: bytes) -> tuple[str, ...]:
        """The two-letter codes of a VmFlags line."""
        flags = self._flags.get(text)
        if flags is None:
            flags = self._flags[text] = tuple(text.decode("ascii", "backslashreplace").split())
        return flags

    def block(self, piece: bytes, start: int) -> tuple[Vma, _Values] | None:
        """The VMA and the sizes of the block that begins at ``start``; None where there is none."""
        end_of_header = piece.find(b"\n", start)
        if end_of_header < 0:
            return None
        vma = self._header(piece[start:end_of_header])
        if vma is None:
            return self._irregular(piece, start)
        body = piece[end_of_header + 1 :]
        # Neighbouring VMAs of a process with many are often alike to the last byte.
        values = self._values.get(body)
        if values is None:
            values = self._parse_body(body)
            if values is None:
                return None
            if len(self._values) < _KEPT_VALUES:
                self._values[body] = values
        return vma, values

    def _irregular(self, piece: bytes, start: int) -> tuple[Vma, _Values] | None:
        # A field that a future kernel prints after VmFlags: it stands before the next header.
        next_line = piece.find(b"\n", start) + 1
        return self.block(piece, next_line) if next_line else None

    def _parse_body(self, body: bytes) -> _Values | None:
        if self._layout is None:
            self._learn(body)
        # Equal but for digits also means of equal length, so a number that is too wide shows.
        if self._layout is not None and body.translate(_DIGITS_TO_BLANKS) == self._template:
            numbers = self._layout.unpack(body)
            return cast(_Values, tuple([int(numbers[i]) * _KIB for i in self._order]))
        return _parse_lines(body)

    def _learn(self, body: bytes) -> None:
        """Note where the digits of the fields stand, if the block has the form that all blocks should have."""
        places: list[tuple[int, int, int]] = []
        offset = 0
        for line in body.split(b"\n"):
            name, _, rest = line.partition(b":")
            if name in _FIELDS and rest.endswith(b" kB"):
                places.append((offset + len(name) + 1, len(rest) - 3, _FIELDS.index(name)))
            offset += len(line) + 1
        if len(places) != len(_FIELDS):
            return
        form, end = "=", 0
        for start, width, _ in places:
            form += f"{start - end}x{width}s"
            end = start + width
        self._layout = Struct(f"{form}{len(body) - end}x")
        self._template = body.translate(_DIGITS_TO_BLANKS)
        places_by_field = {field: index for index, (_, _, field) in enumerate(places)}
        self._order = tuple(places_by_field[field] for field in range(len(_FIELDS)))


def _parse_lines(body: bytes) -> _Values | None:
    """The sizes of a block in any form; a field that is missing is 0. None where there is no Rss."""
    sizes: dict[bytes, int] = {}
    for line in body.split(b"\n"):
        name, _, rest = line.partition(b":")
        number, _, unit = rest.strip().partition(b" ")
        if unit == b"kB" and number.isdigit():
            sizes[name] = int(number) * _KIB
    if b"Rss" not in sizes:
        return None
    return cast(_Values, tuple([sizes.get(name, 0) for name in _FIELDS]))
