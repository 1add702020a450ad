"""Cache directories that nobody else can write to: what is read from them is then only what this user put there."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


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
