"""Cache directories that nobody else can write to: what is read from them is then only what this user put there.

A file is used only if it and the directory belong to this user and nobody else may write to them; anything else is
ignored and made anew. Files are replaced by rename, so that concurrent runs see whole files; the size is bounded.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter
from pathlib import Path

DEFAULT_DIRECTORY = Path("/var/cache/memtrace")
VARIABLE = "MEMTRACE_CACHE_DIR"
MAX_FILE = 128 << 20
MAX_ENTRIES = 4096
STALE_SECONDS = 3600.0


def default_directory() -> Path:
    """The directory that $MEMTRACE_CACHE_DIR names, else /var/cache/memtrace."""
    return Path(os.environ.get(VARIABLE) or DEFAULT_DIRECTORY)


def is_ours(status: os.stat_result) -> bool:
    """Whether a file or directory belongs to this user and nobody else may write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def open_cache_directory(path: Path, *, create: bool) -> int:
    """A descriptor of the directory. Raises OSError where it is missing or not safe to use."""
    if create:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700, parents=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not is_ours(os.fstat(fd)):
        os.close(fd)
        raise PermissionError(errno.EPERM, "others may write to it", str(path))
    return fd


class CachedFiles:
    """The files of one kind (``suffix``) in a directory.

    No method raises OSError: ``problems`` counts what went wrong, by what it was.
    """

    def __init__(self, directory: Path, suffix: str, limit: int) -> None:
        self.problems: Counter[str] = Counter()
        self._directory = directory
        self._suffix = suffix
        self._limit = limit

    def load(self, name: str) -> bytes | None:
        """What was stored under this name; None where there is nothing that can be trusted."""
        try:
            directory = open_cache_directory(self._directory, create=False)
        except OSError as error:
            self._note_refusal(error)
            return None
        try:
            data = self._read(directory, name + self._suffix)
            if data is not None:
                with contextlib.suppress(OSError):
                    os.utime(name + self._suffix, dir_fd=directory, follow_symlinks=False)  # the eldest go first
            return data
        finally:
            os.close(directory)

    def store(self, name: str, data: bytes) -> None:
        """Keep data under this name, and drop the least recently used files beyond the limit."""
        if len(data) > min(MAX_FILE, self._limit):
            self.problems["file too large"] += 1
            return
        try:
            directory = open_cache_directory(self._directory, create=True)
        except OSError as error:
            self._note_refusal(error)
            return
        try:
            self._write(directory, name + self._suffix, data)
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
                    if entry.name.startswith(".") and self._suffix in entry.name:
                        if now - status.st_mtime > STALE_SECONDS:
                            os.unlink(entry.name, dir_fd=directory)
                    elif entry.name.endswith(self._suffix):
                        kept.append((status.st_mtime, status.st_size, entry.name))
        kept.sort(reverse=True)
        total = 0
        for index, (_, size, name) in enumerate(kept):
            total += size
            if total > self._limit or index >= MAX_ENTRIES:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=directory)
