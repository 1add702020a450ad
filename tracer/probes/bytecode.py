"""The BPF programs as instructions: compiled by bcc once, then kept on disk, so that later starts need no compiler.

They are the same for every process: what is traced, and how large the maps are, is settled when they are loaded.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tracer.bpf_source import bpf_directory
from tracer.cachedir import CachedFiles, default_directory
from tracer.errors import KernelError
from tracer.probes import kernel
from tracer.probes.bcc_import import import_bcc

# bcc rewrites map accesses in the main text only, so the files are joined, not included.
_SOURCES = (
    "memtrace.h",
    "unwind.h",
    "common.bpf.c",
    "unwind.bpf.c",
    "stack.bpf.c",
    "pending.bpf.c",
    "sample.bpf.c",
    "alloc.bpf.c",
    "vma.bpf.c",
    "rss.bpf.c",
    "process.bpf.c",
)
# What -D sizes maps alone: they are made in the sizes that a session wants.
_SIZES = ("LIVE", "STACKS", "THREADS", "RSS_KEYS", "CPUS")
_UNWIND_SIZES = ("ROWS", "PAGES", "MAPPINGS", "PROCESSES")

SUFFIX = ".bpf"
_CACHE_LIMIT = 16 << 20
# To be raised with every change of this file's form.
_VERSION = 1
_MAGIC = b"MTBPFOBJ"
_HEADER = struct.Struct("<8sI16s")  # magic, length of the JSON text, checksum of that and of all that follows
_INSTRUCTION = struct.Struct("<BBhi")
_LOAD_CONSTANT, _FROM_MAP = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, and the source register BPF_PSEUDO_MAP_FD


@dataclass(frozen=True, slots=True)
class MapShape:
    """As bpf(2) takes it; ``entries`` is what the source says, which for most maps is only a placeholder."""

    kind: int
    key_size: int
    value_size: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Bytecode:
    """All maps and programs by name. Instructions that load a map hold its number among ``maps``."""

    maps: dict[str, MapShape]
    programs: dict[str, bytes]

    def linked(self, name: str, map_fds: Mapping[str, int]) -> bytes:
        """A program's instructions for maps of these descriptors."""
        fds = [map_fds[each] for each in self.maps]
        return _with_maps(self.programs[name], lambda number: fds[number])


def load_bytecode(flags: Sequence[str]) -> Bytecode:
    """The programs, from the disk or compiled with ``flags``; then they are kept for the next time.

    Raises MissingDependencyError (no bcc, and nothing kept) or KernelError (why it does not compile).
    """
    directory = bpf_directory()
    source = _joined_source(directory)
    files = CachedFiles(default_directory(), SUFFIX, _CACHE_LIMIT)
    name = _key(source, flags)
    kept = files.load(name)
    bytecode = unpack(kept) if kept is not None else None
    if bytecode is None:
        bytecode = _compiled(directory, source, flags)
        files.store(name, pack(bytecode))
    return bytecode


def _key(source: str, flags: Sequence[str]) -> str:
    """Of all that the result depends on: bcc looks at the running kernel for what it may use."""
    kernel_build = Path("/proc/version").read_text(encoding="utf-8", errors="replace")
    text = json.dumps([_VERSION, source, list(flags), kernel_build, os.uname().machine])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _compiled(directory: Path, source: str, flags: Sequence[str]) -> Bytecode:
    bcc: Any = import_bcc()
    os.environ["BCC_KERNEL_SOURCE"] = str(directory / "stub")
    placeholders = [
        *(f"-DMAX_{name}=1" for name in _SIZES),
        *(f"-DUNWIND_{name}=1" for name in _UNWIND_SIZES),
        "-DEVENT_PAGES=1",
    ]
    with captured_stderr() as messages:
        try:
            compiled = bcc.BPF(text=source.encode(), cflags=[*flags, *placeholders])
        except Exception as error:  # bcc raises bare Exception
            raise KernelError(
                f"the kernel or bcc refused memtrace's BPF maps or programs: {first_reason(messages(), error)}",
                "it needs kernel 5.10 or newer with CONFIG_BPF_SYSCALL, and CAP_SYS_ADMIN in the initial namespace",
            ) from error
    try:
        return _extracted(compiled, bcc.lib)
    finally:
        compiled.cleanup()


def _extracted(compiled: Any, lib: Any) -> Bytecode:
    """What bcc has made, without its descriptors."""
    lib.bpf_num_tables.restype, lib.bpf_num_tables.argtypes = ctypes.c_size_t, [ctypes.c_void_p]
    lib.bpf_table_name.restype, lib.bpf_table_name.argtypes = ctypes.c_char_p, [ctypes.c_void_p, ctypes.c_size_t]
    names = [lib.bpf_table_name(compiled.module, index) for index in range(lib.bpf_num_tables(compiled.module))]
    fds = {name.decode(): int(lib.bpf_table_fd(compiled.module, name)) for name in names}
    numbers = {fd: number for number, fd in enumerate(fds.values())}
    functions = [
        lib.bpf_function_name(compiled.module, index) for index in range(lib.bpf_num_functions(compiled.module))
    ]
    return Bytecode(
        {name: MapShape(*kernel.map_shape(fd)) for name, fd in fds.items()},
        {name.decode(): _with_maps(compiled.dump_func(name), numbers.__getitem__) for name in functions},
    )


def _with_maps(instructions: bytes, changed: Callable[[int], int]) -> bytes:
    """The instructions with each map's descriptor or number changed."""
    result = bytearray(instructions)
    at = 0
    while at < len(result):
        code, registers, offset, value = _INSTRUCTION.unpack_from(result, at)
        if code == _LOAD_CONSTANT:
            if registers >> 4 == _FROM_MAP:
                _INSTRUCTION.pack_into(result, at, code, registers, offset, changed(value))
            at += _INSTRUCTION.size  # its second half is data
        at += _INSTRUCTION.size
    return bytes(result)


def pack(bytecode: Bytecode) -> bytes:
    """As a file's content."""
    facts = {
        "maps": {name: asdict(shape) for name, shape in bytecode.maps.items()},
        "programs": {name: len(code) for name, code in bytecode.programs.items()},
    }
    text = json.dumps(facts).encode()
    body = text + b"".join(bytecode.programs.values())
    return _HEADER.pack(_MAGIC, len(text), _checksum(len(text), body)) + body


def unpack(data: bytes) -> Bytecode | None:
    """The content of a file; None where it is of another form, cut off or damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, length, checksum = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != _MAGIC or _checksum(length, body) != checksum:
        return None
    try:
        facts: dict[str, dict[str, Any]] = json.loads(body[:length])
        maps = {name: MapShape(**shape) for name, shape in facts["maps"].items()}
        programs, at = {}, length
        for name, size in facts["programs"].items():
            programs[name] = body[at : at + size]
            at += size
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Bytecode(maps, programs) if at == len(body) else None


def _checksum(length: int, body: bytes) -> bytes:
    return hashlib.blake2b(length.to_bytes(4, "little") + body, digest_size=16).digest()


def _joined_source(directory: Path) -> str:
    parts = ["#include <linux/types.h>\n#include <asm/page.h>\n"]
    for name in _SOURCES:
        parts.append(f'#line 1 "{name}"\n')
        parts.append((directory / name).read_text(encoding="utf-8"))
    return "".join(parts)


@contextlib.contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Bcc's libraries write their reasons straight to file descriptor 2: keep them for one clear line."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)

        def messages() -> str:
            sink.seek(0)
            return sink.read().decode("utf-8", "replace")

        try:
            yield messages
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def first_reason(messages: str, error: Exception) -> str:
    """The line that says why: a compiler error, or the verifier's last word before its statistics."""
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    for line in lines:
        if "error:" in line or "not permitted" in line.lower():
            return line
    told = [line for line in lines if not line.startswith(("processed ", "bpf: Failed"))]
    return told[-1] if told else str(error)
