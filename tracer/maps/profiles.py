"""Lists of columns that a user has saved under a name, as ``pmap -C`` has its rc files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tracer.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_MAX_BYTES = 16 << 10


def parse_columns(text: str) -> list[str]:
    """The names in ``rss,pss,path``, or of the saved list ``@NAME``. Raises UsageError where there are none."""
    if text.startswith("@"):
        text = _load(text[1:])
    names = [name.strip() for name in re.split(r"[,\s]+", text) if name.strip()]
    if not names:
        raise UsageError("no column is named", "for example: --columns address,rss,pss,path")
    return names


def save_columns(name: str, columns: list[str], *, force: bool) -> Path:
    """Keep a list of columns as ``@NAME``; returns the file. Raises UsageError."""
    path = _path(name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w" if force else "x", encoding="utf-8") as file:
            file.write(",".join(columns) + "\n")
    except FileExistsError:
        raise UsageError(f"{path} exists", "choose another name, or replace it with --force") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    return path


def _load(name: str) -> str:
    path = _path(name)
    try:
        with open(path, encoding="utf-8", errors="backslashreplace") as file:
            lines = file.read(_MAX_BYTES).splitlines()
    except OSError as error:
        raise UsageError(
            f"no columns are saved as {name!r}: {path}: {error.strerror}", f"save some: --save-columns {name}"
        ) from None
    return ",".join(line.partition("#")[0] for line in lines)


def _path(name: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for columns", "use letters, digits, dots and dashes")
    configured = os.environ.get("XDG_CONFIG_HOME")
    base = Path(configured) if configured else Path.home() / ".config"
    return base / "memtrace" / f"maps-{name}.columns"
