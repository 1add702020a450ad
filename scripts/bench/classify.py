"""How long classifying a process takes: by its VMAs, from 50 to 60,000, and by its memory.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.classify [PID...]

Without PIDs it starts processes of its own: one with 60,000 VMAs of a page or two each, of which every second may not
be accessed, one with as many chunks of malloc, and one with a GiB of Python objects.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from tracer.procfs.classify import classify_process
from tracer.procfs.smaps import read_smaps

RUNS = 5
# mprotect of every second page makes each a VMA; vm.max_map_count is 65,530 unless it was raised.
MANY_VMAS = """
import ctypes, mmap, sys
libc = ctypes.CDLL(None)
size, count = int(sys.argv[1]) * 4096, int(sys.argv[2])
memory = mmap.mmap(-1, 2 * count * size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
for index in range(count):
    memory[2 * index * size] = 1
    libc.mprotect(ctypes.c_void_p(base + (2 * index + 1) * size), ctypes.c_size_t(size), 0)
print("ready", flush=True)
sys.stdin.read()
"""
MANY_CHUNKS = """
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
for index in range(int(sys.argv[2])):
    libc.malloc(ctypes.c_size_t(int(sys.argv[1]) << 10))
print("ready", flush=True)
sys.stdin.read()
"""
OBJECTS = """
import sys
kept = [{"number": index} for index in range(int(sys.argv[1]))]
print("ready", flush=True)
sys.stdin.read()
"""


def measure(name: str, pid: int) -> None:
    rows = [(usage.vma, usage.flags) for usage in read_smaps(pid)]
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        ranges = classify_process(pid, rows)
        times.append(time.perf_counter() - started)
    print(f"{name:28} {len(rows):6} VMAs {len(ranges):6} ranges {1000 * min(times):8.1f} ms", flush=True)


def measure_script(name: str, source: str, *arguments: int) -> None:
    command = [sys.executable, "-c", source, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        measure(name, process.pid)
        process.communicate()


def main() -> None:
    for pid in map(int, sys.argv[1:]):
        measure(Path(f"/proc/{pid}/comm").read_text().strip(), pid)
    if len(sys.argv) == 1:
        measure_script("an interpreter", OBJECTS, 1)
        measure_script("60,000 VMAs of one page", MANY_VMAS, 1, 30000)
        measure_script("60,000 VMAs of two pages", MANY_VMAS, 2, 30000)
        measure_script("10,000 chunks of malloc", MANY_CHUNKS, 200, 10000)
        measure_script("a GiB of Python objects", OBJECTS, 5_000_000)


if __name__ == "__main__":
    main()
