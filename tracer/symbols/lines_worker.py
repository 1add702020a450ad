"""Source lines by the ``symbolic`` library, in a process of its own, which tracer.symbols.lines starts.

DWARF of unknown files is read by native code here. Whatever it does, it can take only the memory and the CPU time that
this process may have, and it has no rights: what it needs it gets as open descriptors.

Requests and answers are JSON lines on the socket that is standard input. ``{"open": N}`` comes with a descriptor and is
answered ``{}`` or ``{"error": "..."}``; ``{"file": N, "address": A}``, with A relative to the image's lowest address,
is answered ``{"found": [[name, path, line], ...]}``, innermost first.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import resource
import socket
import sys
from importlib import import_module
from typing import Any

MAX_TEXT = 4096
MAX_INLINED = 64
_NOBODY = 65534
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Serve requests until the other side closes the socket."""
    library_path, memory, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.path.append(library_path)
    debuginfo = import_module("symbolic.debuginfo")

    _give_up_rights(memory, seconds)
    channel = socket.socket(fileno=0)
    files: dict[int, Any] = {}
    pending = b""
    descriptors: list[int] = []
    while True:
        data, received, _, _ = socket.recv_fds(channel, 1 << 16, 16)
        if not data:
            return
        descriptors += received
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            answer = _answer(json.loads(line), files, descriptors, debuginfo)
            channel.sendall(json.dumps(answer).encode() + b"\n")


def _give_up_rights(memory: int, seconds: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _answer(request: dict[str, int], files: dict[int, Any], descriptors: list[int], debuginfo: Any) -> dict[str, Any]:
    try:
        if "open" in request:
            files[request["open"]] = _symcache(descriptors.pop(0), debuginfo)
            return {}
        return {"found": _lookup(files[request["file"]][0], request["address"])}
    except (MemoryError, OSError):
        raise  # the limit of memory: a process that has met it is not to be trusted with the next file
    except Exception as error:  # symbolic raises classes of its own, which share no base with another library's
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def _symcache(fd: int, debuginfo: Any) -> tuple[Any, ...]:
    """The symcache, and what must live as long as it does."""
    lowlevel, utils = import_module("symbolic._lowlevel"), import_module("symbolic.utils")

    try:
        mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
    finally:
        os.close(fd)
    buffer = lowlevel.ffi.from_buffer(mapped)
    # As Archive.from_bytes, which takes only bytes: a copy of the whole file.
    archive = debuginfo.Archive._from_objptr(
        utils.rustcall(lowlevel.lib.symbolic_archive_from_bytes, buffer, len(buffer))
    )
    image = next(iter(archive.iter_objects()))
    return image.make_symcache(), image, archive, buffer, mapped


def _lookup(symcache: Any, address: int) -> list[tuple[str, str, int]]:
    found = symcache.lookup(address)
    if len(found) > MAX_INLINED:
        found = [*found[: MAX_INLINED - 1], found[-1]]
    return [(at.symbol[:MAX_TEXT], (at.full_path or "")[:MAX_TEXT], at.line) for at in found]


if __name__ == "__main__":
    main()
