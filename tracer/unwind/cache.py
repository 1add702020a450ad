"""Finished unwind tables on disk, by build ID.

A file (tracer.cachedir says which ones are trusted) is used if its checksum is right, and if it was made of the same
bytes: a file may carry another's build ID.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from tracer.cachedir import CachedFiles, default_directory

from .image import Segment
from .tables import ImageTable

SUFFIX = ".unwind"
DEFAULT_LIMIT = 256 << 20
# magic, format version, byte order mark, length of the JSON text, rows, pages, digest of the source, checksum
_HEADER = struct.Struct("<8sIIIQQ16s16s")
_MAGIC = b"MTUNWIND"
# To be raised with every change of the rules' coding, of the parser's verdicts or of this file's form.
VERSION = 1
_NATIVE = int.from_bytes(b"\1\2\3\4", sys.byteorder)


class TableCache:
    """A directory of tables. No method raises OSError: ``problems`` counts what went wrong, by what it was."""

    def __init__(self, directory: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self.hits = 0
        self._files = CachedFiles(directory, SUFFIX, limit)

    @classmethod
    def default(cls) -> TableCache:
        """The one in the directory for all that memtrace keeps."""
        return cls(default_directory())

    @property
    def problems(self) -> Counter[str]:
        """What could not be read or written, and how often."""
        return self._files.problems

    def load(self, build_id: str, digest: bytes) -> ImageTable | None:
        """The table that was made of these bytes, or None."""
        data = self._files.load(_name(build_id, digest))
        if data is None:
            return None
        table = _unpack(data, digest)
        if table is None:
            self.problems["damaged file"] += 1
            return None
        self.hits += 1
        return table

    def store(self, build_id: str, digest: bytes, table: ImageTable) -> None:
        """Keep a table, and drop the least recently used ones beyond the limit."""
        self._files.store(_name(build_id, digest), _pack(table, digest))


def _name(build_id: str, digest: bytes) -> str:
    """`build_id` is hexadecimal, at most 64 bytes of it; it comes from the image."""
    return f"{build_id or 'none'}-{digest.hex()}"


def _pack(table: ImageTable, digest: bytes) -> bytes:
    text = json.dumps(
        {
            "origin": table.origin,
            "segments": [[segment.address, segment.offset, segment.size] for segment in table.segments],
            "reasons": dict(table.reasons),
        }
    ).encode()
    body = text + table.rows.tobytes() + table.pages.tobytes()
    fields = (VERSION, _NATIVE, len(text), len(table.rows), len(table.pages), digest)
    return _HEADER.pack(_MAGIC, *fields, _checksum(_HEADER.pack(_MAGIC, *fields, bytes(16)), body)) + body


def _checksum(header: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(header + body, digest_size=16).digest()


def _unpack(data: bytes, digest: bytes) -> ImageTable | None:
    """The table in a file's bytes; None where they are of another version or source, cut off or damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, version, native, text_size, row_count, page_count, source, checksum = _HEADER.unpack_from(data)
    if (magic, version, native, source) != (_MAGIC, VERSION, _NATIVE, digest):
        return None
    if len(data) != _HEADER.size + text_size + 8 * (row_count + page_count) or not row_count or not page_count:
        return None
    fields = (version, native, text_size, row_count, page_count, source)
    body = data[_HEADER.size :]
    if _checksum(_HEADER.pack(_MAGIC, *fields, bytes(16)), body) != checksum:
        return None
    rows, pages = array("Q"), array("Q")
    rows.frombytes(body[text_size : text_size + 8 * row_count])
    pages.frombytes(body[text_size + 8 * row_count :])
    return _table(body[:text_size], rows, pages)


def _table(text: bytes, rows: array[int], pages: array[int]) -> ImageTable | None:
    try:
        facts: dict[str, Any] = json.loads(text)
        segments = tuple(Segment(*map(int, segment)) for segment in facts["segments"])
        return ImageTable(rows, pages, int(facts["origin"]), segments, Counter(facts["reasons"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
