"""A process whose memory moves on command, each command by UNIT bytes of one kind. It speaks the protocol of target.h.

h  grow the heap (malloc by brk)        m  map and touch private anonymous memory
u  unmap what `m` mapped last           a  give it back by MADV_FREE, still mapped
s  map and touch shared memory          f  map a file and read it
x  exec itself                          q  quit
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import tempfile

UNIT = 4 << 20
KEPT: list[object] = []
MAPPED: list[mmap.mmap] = []


def send(answer: dict[str, object]) -> None:
    os.write(1, json.dumps(answer).encode() + b"\n")


def map_and_touch(flags: int) -> None:
    area = mmap.mmap(-1, UNIT, flags | mmap.MAP_ANONYMOUS)
    for offset in range(0, UNIT, mmap.PAGESIZE):
        area[offset] = 1
    MAPPED.append(area)


def map_file() -> None:
    with tempfile.TemporaryFile(buffering=0) as file:
        for _ in range(0, UNIT, 4096):
            file.write(b"x" * 4096)
        os.fsync(file.fileno())  # a page of a file that is not on the disk yet counts as dirty
        area = mmap.mmap(file.fileno(), UNIT, mmap.MAP_PRIVATE, mmap.PROT_READ)
    KEPT.append((area, sum(area[offset] for offset in range(0, UNIT, mmap.PAGESIZE))))


def obey(command: bytes) -> None:
    if command == b"h":
        KEPT.append([bytearray(4000) for _ in range(UNIT // 4016)])
    elif command == b"m":
        map_and_touch(mmap.MAP_PRIVATE)
    elif command == b"s":
        map_and_touch(mmap.MAP_SHARED)
    elif command == b"u":
        MAPPED.pop().close()
    elif command == b"a":
        MAPPED[-1].madvise(8)  # MADV_FREE
    elif command == b"f":
        map_file()
    elif command == b"x":
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: what is resident is what was touched
    send({"ready": True, "pid": os.getpid()})
    while (command := os.read(0, 1)) not in (b"", b"q"):
        if command not in (b"\n", b" "):
            obey(command)
            send({"done": command.decode()})


if __name__ == "__main__":
    main()
