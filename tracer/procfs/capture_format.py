"""The form of a capture: a zip archive of raw files of /proc, with a manifest. Writer and reader share this.

    manifest.json            what made it, where and when; see ``Manifest``
    system/NAME              /proc/NAME
    proc/PID/NAME            /proc/PID/NAME, also task/TID/NAME; ``exe`` holds what the link leads to
    proc/PID/classes.json    the classes of the VMAs in smaps (else maps), and whose stacks they are

A reader takes version 1 only. Within a version, files and keys may be added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

FORMAT: Final = "memtrace-capture"
VERSION: Final = 1

MANIFEST: Final = "manifest.json"
CLASSES: Final = "classes.json"
_WORD = r"[A-Za-z0-9_][A-Za-z0-9_.]{0,63}"
MEMBER: Final = re.compile(
    rf"manifest\.json|system(/{_WORD}){{1,4}}|proc/(?P<pid>[0-9]{{1,10}})/(?P<name>{_WORD}(/{_WORD}){{0,3}})"
)

# What a hostile archive may not go beyond. smaps has 700 bytes for each VMA, and compresses to a fiftieth or so.
MAX_MEMBERS: Final = 2_000_000
MAX_MEMBER: Final = 512 << 20
MAX_DOCUMENT: Final = 64 << 20
MAX_EXPANSION: Final = 400
FREE_EXPANSION: Final = 1 << 30

# Why a file is not in a capture.
NO_PERMISSION: Final = "permission"
GONE: Final = "gone"


class FormatError(ValueError):
    """A document of a capture is not what it should be; the text says in what."""


@dataclass(frozen=True, slots=True)
class CapturedProcess:
    """What a capture says of one process: ``refused`` has the reason for each file that could not be read."""

    torn: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Where a capture comes from. ``time`` is ISO 8601, ``page_size`` in bytes, ``clock_ticks`` per second."""

    memtrace: str
    kernel: str
    machine: str
    host: str
    time: str
    page_size: int
    clock_ticks: int
    cpus: int
    users: Mapping[int, str]
    processes: Mapping[int, CapturedProcess]


@dataclass(frozen=True, slots=True)
class CapturedClasses:
    """The class ``names[ids[row]]`` of each VMA; threads as (tid, name) by the start of the VMA."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    threads: Mapping[int, tuple[tuple[int, str], ...]]


def manifest_document(manifest: Manifest) -> dict[str, Any]:
    """The manifest as what ``json.dumps`` takes."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "memtrace": manifest.memtrace,
        "kernel": manifest.kernel,
        "machine": manifest.machine,
        "host": manifest.host,
        "time": manifest.time,
        "page_size": manifest.page_size,
        "clock_ticks": manifest.clock_ticks,
        "cpus": manifest.cpus,
        "users": {str(uid): name for uid, name in manifest.users.items()},
        "processes": {
            str(pid): {"torn": process.torn, "refused": dict(process.refused)}
            for pid, process in manifest.processes.items()
        },
    }


def parse_manifest(document: object) -> Manifest:
    """The manifest of a capture. Raises FormatError for anything else."""
    top = _mapping(document, "the manifest")
    if top.get("format") != FORMAT:
        raise FormatError("it is no capture of memtrace")
    version = top.get("version")
    if version != VERSION or isinstance(version, bool):
        raise FormatError(
            f"it has version {str(version)[:20]} of the format, and this memtrace reads version {VERSION}"
        )
    return Manifest(
        memtrace=_text(top, "memtrace"),
        kernel=_text(top, "kernel"),
        machine=_text(top, "machine"),
        host=_text(top, "host"),
        time=_text(top, "time"),
        page_size=_natural(top, "page_size"),
        clock_ticks=_natural(top, "clock_ticks"),
        cpus=_natural(top, "cpus"),
        users={_key(uid): _string(name, "users") for uid, name in _mapping(top.get("users"), "users").items()},
        processes={_key(pid): _process(row) for pid, row in _mapping(top.get("processes"), "processes").items()},
    )


def classes_document(classes: CapturedClasses) -> dict[str, Any]:
    """The classes as what ``json.dumps`` takes."""
    threads = {f"{start:x}": [list(thread) for thread in rows] for start, rows in classes.threads.items()}
    return {"names": classes.names, "ids": classes.ids, "threads": threads}


def parse_classes(document: object) -> CapturedClasses:
    """The classes of a process's VMAs. Raises FormatError for anything else."""
    top = _mapping(document, CLASSES)
    names = tuple(_string(name, "names") for name in _list(top.get("names"), "names"))
    ids = tuple(_integer(number, "ids") for number in _list(top.get("ids"), "ids"))
    if ids and not 0 <= min(ids) <= max(ids) < len(names):
        raise FormatError(f"{CLASSES} numbers a class that it does not name")
    threads = {
        _key(start, 16): tuple(_thread(thread) for thread in _list(rows, "threads"))
        for start, rows in _mapping(top.get("threads"), "threads").items()
    }
    return CapturedClasses(names, ids, threads)


def _thread(row: object) -> tuple[int, str]:
    words = _list(row, "threads")
    if len(words) != 2:
        raise FormatError("threads has a row of another length")
    return _integer(words[0], "threads"), _string(words[1], "threads")


def _process(row: object) -> CapturedProcess:
    fields = _mapping(row, "processes")
    refused = _mapping(fields.get("refused", {}), "refused")
    reasons = {_string(name, "refused"): _string(reason, "refused") for name, reason in refused.items()}
    return CapturedProcess(fields.get("torn") is True, reasons)


def _mapping(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{name} is no object")
    return value


def _list(value: object, name: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"{name} is no list")
    return value


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise FormatError(f"{name} holds what is no text")
    return value


def _integer(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError(f"{name} holds what is no number")
    return value


def _text(top: Mapping[str, object], name: str) -> str:
    return _string(top.get(name), name)


def _natural(top: Mapping[str, object], name: str) -> int:
    number = _integer(top.get(name), name)
    if not 0 < number < 1 << 32:
        raise FormatError(f"{name} is {str(number)[:20]}")
    return number


def _key(text: str, base: int = 10) -> int:
    if not text.isascii() or not text.isalnum() or len(text) > 16:
        raise FormatError("a key is no number")
    try:
        return int(text, base)
    except ValueError:
        raise FormatError("a key is no number") from None
