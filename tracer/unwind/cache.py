"""Finished unwind tables on disk, by build ID.

A file is used only if it and the directory belong to this user and nobody else may write to them, if its checksum is
right, and if it was made of the same bytes (a file may carry another's build ID). Anything else is ignored and made
anew. Files are replaced by rename, so that concurrent runs see whole files; the directory's size is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import stat
import struct
import sys
import time
from array import array
from collections import Counter
from pathlib import Path
from typing import Any

from tracer.cachedir import is_ours, open_cache_directory

from .image import Segment
from .tables import ImageTable

DEFAULT_DIRECTORY = Path("/var/cache/memtrace")
VARIABLE = "MEMTRACE_CACHE_DIR"
SUFFIX = ".unwind"
DEFAULT_LIMIT = 256 << 20
MAX_FILE = 128 << 20
MAX_ENTRIES = 4096
STALE_SECONDS = 3600.0
# magic, format version, byte order mark, length of the JSON text, rows, pages, digest of the source, checksum
_HEADER = struct.Struct("<8sIIIQQ16s16s")
_MAGIC = b"MTUNWIND"
# To be raised with every change of the rules' coding, of the parser's verdicts or of this file's form.
VERSION = 1
_NATIVE = int.from_bytes(b"\1\2\3\4", sys.byteorder)


class TableCache:
    """A directory of tables. No method raises OSError: `problems` counts what went wrong, by what it was."""

    def __init__(self, directory: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self.problems: Counter[str] = Counter()
        self.hits = 0
        self._directory = directory
        self._limit = limit

    @classmethod
    def default(cls) -> TableCache:
        """The one that $MEMTRACE_CACHE_DIR names, else /var/cache/memtrace."""
        return cls(Path(os.environ.get(VARIABLE) or DEFAULT_DIRECTORY))

    def load(self, build_id: str, digest: bytes) -> ImageTable | None:
        """The table that was made of these bytes, or None."""
        try:
            directory = open_cache_directory(self._directory, create=False)
        except OSError as error:
            self._note_refusal(error)
            return None
        try:
            data = self._read(directory, _name(build_id, digest))
            if data is None:
                return None
            table = _unpack(data, digest)
            if table is None:
                self.problems["damaged file"] += 1
                return None
            with contextlib.suppress(OSError):
                os.utime(_name(build_id, digest), dir_fd=directory, follow_symlinks=False)  # the eldest go first
            self.hits += 1
            return table
        finally:
            os.close(directory)

    def store(self, build_id: str, digest: bytes, table: ImageTable) -> None:
        """Keep a table, and drop the least recently used ones beyond the limit."""
        data = _pack(table, digest)
        if len(data) > min(MAX_FILE, self._limit):
            self.problems["table too large"] += 1
            return
        try:
            directory = open_cache_directory(self._directory, create=True)
        except OSError as error:
            self._note_refusal(error)
            return
        try:
            self._write(directory, _name(build_id, digest), data)
            self._trim(directory)
        except OSError as error:
            self.problems[f"cannot write: {error.strerror}"] += 1
        finally:
            os.close(directory)

    def _note_refusal(self, error: OSError) -> None:
        if error.errno != errno.ENOENT:
            self.problems[f"directory not usable: {error.strerror}"] += 1

    def _read(self, directory: int, name: str) -> bytes | None:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems[f"cannot read: {error.strerror}"] += 1
            return None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not is_ours(status) or status.st_size > MAX_FILE:
                self.problems["file not trusted"] += 1
                return None
            with open(fd, "rb", closefd=False) as file:
                return file.read(MAX_FILE + 1)
        except OSError as error:
            self.problems[f"cannot read: {error.strerror}"] += 1
            return None
        finally:
            os.close(fd)

    def _write(self, directory: int, name: str, data: bytes) -> None:
        temporary = f".{name}.{os.getpid()}.{time.monotonic_ns():x}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            os.replace(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=directory)
            raise

    def _trim(self, directory: int) -> None:
        """Keep to the limit; remove what writers that were killed have left."""
        kept = []
        now = time.time()
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if entry.name.startswith(".") and SUFFIX in entry.name:
                        if now - status.st_mtime > STALE_SECONDS:
                            os.unlink(entry.name, dir_fd=directory)
                    elif entry.name.endswith(SUFFIX):
                        kept.append((status.st_mtime, status.st_size, entry.name))
        kept.sort(reverse=True)
        total = 0
        for index, (_, size, name) in enumerate(kept):
            total += size
            if total > self._limit or index >= MAX_ENTRIES:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)


def _name(build_id: str, digest: bytes) -> str:
    """`build_id` is hexadecimal, at most 64 bytes of it; it comes from the image."""
    return f"{build_id or 'none'}-{digest.hex()}{SUFFIX}"


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
