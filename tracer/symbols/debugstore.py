"""Downloaded debug files on disk, by build ID.

As for unwind tables (tracer.unwind.cache): a file is used only if it and its directory belong to this user and nobody
else may write to them; it gets its name when it is whole; the directory's size is bounded. The build ID inside must be
the one in the name.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tracer.cachedir import default_directory, is_ours, open_cache_directory
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError

SUFFIX = ".debug"
DEFAULT_LIMIT = 2 << 30
STALE_SECONDS = 3600.0


class DebugStore:
    """A directory of debug files; made when first written to. ``problems`` counts what kept it from being used."""

    def __init__(self, directory: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self.problems: Counter[str] = Counter()
        self._directory = directory
        self._limit = limit

    @classmethod
    def default(cls, named: str | None) -> DebugStore:
        """In the directory that ``named`` says, else beside the unwind tables."""
        if named:
            return cls(Path(named) / "memtrace")
        return cls(default_directory() / "debuginfod")

    def load(self, build_id: str) -> ElfImage | None:
        """The kept debug file of this build ID (hexadecimal), None where there is none that can be trusted."""
        try:
            directory = open_cache_directory(self._directory, create=False)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self.problems[f"cache not usable: {error.strerror}"] += 1
            return None
        try:
            return self._read(directory, build_id + SUFFIX, build_id)
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def writer(self, build_id: str) -> Iterator[Writer]:
        """A file to write; it is kept if committed. Raises OSError."""
        directory = open_cache_directory(self._directory, create=True)
        try:
            with contextlib.suppress(OSError):
                self._trim(directory)
            writer = Writer(directory, build_id)
            try:
                yield writer
            finally:
                writer.close()
        finally:
            os.close(directory)

    def _read(self, directory: int, name: str, build_id: str) -> ElfImage | None:
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            self.problems[f"cache not readable: {error.strerror}"] += 1
            return None
        if not is_ours(os.fstat(fd)):
            os.close(fd)
            self.problems["file in the cache not trusted"] += 1
            return None
        try:
            image = checked(fd, build_id)
        except ElfError:
            self.problems["damaged file in the cache"] += 1
            return None
        with contextlib.suppress(OSError):
            os.utime(name, dir_fd=directory, follow_symlinks=False)  # the eldest go first
        return image

    def _trim(self, directory: int) -> None:
        kept = []
        now = time.time()
        with os.scandir(directory) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if not entry.name.endswith(SUFFIX) or not stat.S_ISREG(status.st_mode):
                        continue
                    if entry.name.startswith("."):
                        if now - status.st_mtime > STALE_SECONDS:
                            os.unlink(entry.name, dir_fd=directory)
                    else:
                        kept.append((status.st_mtime, status.st_size, entry.name))
        total = 0
        for _, size, name in sorted(kept, reverse=True):
            total += size
            if total > self._limit:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)


class Writer:
    """A file that has no name yet for those who look for it."""

    def __init__(self, directory: int, build_id: str) -> None:
        self._directory = directory
        self._build_id = build_id
        self._temporary: str | None = f".{build_id}.{os.getpid()}.{time.monotonic_ns():x}{SUFFIX}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o600, dir_fd=directory)

    def write(self, data: bytes) -> None:
        """Append; raises OSError."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def commit(self) -> ElfImage:
        """Give the file its name and return it; ElfError where it is not the debug file that was asked for."""
        image = checked(os.dup(self._fd), self._build_id)
        try:
            assert self._temporary is not None
            os.replace(
                self._temporary,
                self._build_id + SUFFIX,
                src_dir_fd=self._directory,
                dst_dir_fd=self._directory,
            )
        except OSError:
            image.close()
            raise
        self._temporary = None
        return image

    def close(self) -> None:
        """Remove the file unless it was committed."""
        os.close(self._fd)
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._temporary, dir_fd=self._directory)


def checked(fd: int, build_id: str) -> ElfImage:
    """The image that ``fd`` holds, if its build ID is this one and it is whole; ElfError otherwise. Takes the fd."""
    image = ElfImage.from_fd(fd)
    try:
        if image.build_id != build_id:
            raise ElfError("wrong build ID")
        if not image.is_whole:
            raise ElfError("truncated")
    except ElfError:
        image.close()
        raise
    return image
