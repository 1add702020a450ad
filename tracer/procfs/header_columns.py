"""The lines of maps, with which the blocks of smaps begin, as columns: tens of thousands at once."""

from __future__ import annotations

import binascii
import sys
from array import array
from itertools import islice

from tracer.model.coded import Coded, Numbers
from tracer.procfs.vma_table import Attributes

# A line with addresses of twelve digits, as all of user space has but the lowest and [vsyscall].
_DIGITS, _RANGE = 12, 25
_NO_RANGE = b"0" * _DIGITS + b"-" + b"0" * _DIGITS


class HeaderColumns:
    """Collects lines ``START-END PERMS OFFSET MAJOR:MINOR INODE [PATH]``; what is said of names in ``maps`` holds."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.ends: list[int] = []
        self._ids: list[int] = []
        self._rests: Numbers[bytes] = Numbers()
        self._attributes: list[Attributes] = []

    def add(self, lines: list[bytes]) -> None:
        """Take these lines. Raises ValueError, and takes none, where one has another form."""
        starts, ends, rests = _addresses(lines)
        numbers, known = self._rests, len(self._rests)
        ids = [numbers[rest] for rest in rests]
        try:
            new = islice(reversed(numbers), len(numbers) - known)
            self._attributes += [_parse_attributes(rest) for rest in new][::-1]
        except ValueError:
            while len(numbers) > known:
                numbers.popitem()
            raise
        self.starts += starts
        self.ends += ends
        self._ids += ids

    def drop_last(self) -> None:
        """Forget the last line."""
        del self.starts[-1], self.ends[-1], self._ids[-1]

    def attributes(self) -> Coded[Attributes]:
        """What follows the addresses, for each line."""
        return Coded(self._ids, self._attributes)


def _addresses(lines: list[bytes]) -> tuple[list[int], list[int], list[bytes]]:
    """Addresses, and what follows them; from the digits of all lines at once. Raises ValueError."""
    ranges = [line[:_RANGE] for line in lines]
    rests = [line[_RANGE:] for line in lines]
    # The characters at 12 and 25 show whether a line has addresses of the usual length.
    odd = [row for row, line in enumerate(lines) if line[_DIGITS : _RANGE + 1 : _RANGE - _DIGITS] != b"- "]
    for row in odd:
        ranges[row], (_, _, rests[row]) = _NO_RANGE, lines[row].partition(b" ")
    digits = b"0000".join([b"", *ranges]).replace(b"-", b"0000")
    numbers = array("Q", binascii.unhexlify(digits))
    if len(numbers) != 2 * len(lines):
        raise ValueError("a dash amid digits")
    if sys.byteorder == "little":
        numbers.byteswap()
    starts, ends = numbers[0::2].tolist(), numbers[1::2].tolist()
    for row in odd:
        start, dash, end = lines[row].partition(b" ")[0].partition(b"-")
        if not dash or len(start) > 16 or len(end) > 16:
            raise ValueError("no range of addresses")
        starts[row], ends[row] = int(start, 16), int(end, 16)
    return starts, ends, rests


def _parse_attributes(rest: bytes) -> Attributes:
    words = rest.split(None, 4)
    if len(words) < 4 or len(words[1]) > 16 or len(words[3]) > 20:
        raise ValueError("words are missing")
    perms, offset, device, inode, *path = words
    return Attributes(_text(perms), int(offset, 16), _text(device), int(inode), path[0] if path else b"")


def _text(word: bytes) -> str:
    return word.decode("ascii", "backslashreplace")
