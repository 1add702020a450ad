"""Code addresses of one process -> frames, also after the process has ended or a library was unloaded.

``update`` takes hold of everything that will be needed (a descriptor for each mapped file, the vdso's bytes, the JIT's
perf map); files are parsed when the first address in them is looked up.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tracer.model.report import Frame
from tracer.model.vma import Vma
from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.demangle import demangle, printable
from tracer.symbols.lines import LineReader, Location
from tracer.symbols.module import Module, Sources
from tracer.symbols.perfmap import PerfMap
from tracer.symbols.table import DEBUG_ROOT

MAX_GONE = 4096
MAX_CACHED = 1 << 18
MAX_MODULES = 4096
MAX_VDSO = 256 << 10

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_OCTAL = re.compile(rb"\\([0-7]{3})")
_DELETED = b" (deleted)"

OpenMapping = Callable[[int, Vma], int]


def open_mapping(pid: int, vma: Vma) -> int:
    """A descriptor of the file that ``vma`` maps; OSError where it cannot be had.

    /proc/PID/map_files leads to the very file, be it deleted, replaced or in another mount namespace (proc(5)); it
    needs CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE. Without it the path is tried, in the target's root first; a file
    with another inode number is not the one that is mapped, and is refused.
    """
    try:
        return os.open(f"/proc/{pid}/map_files/{vma.start:x}-{vma.end:x}", _OPEN_FLAGS)
    except OSError:
        path = unescaped(vma.path)
        for candidate in (os.fsencode(f"/proc/{pid}/root") + path, path):
            fd = _open_same(candidate, vma)
            if fd is not None:
                return fd
        raise


def unescaped(path: bytes) -> bytes:
    """The file's path as it is on disk: the kernel's octal escapes (``\\012``) resolved, " (deleted)" cut off."""
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), path.removesuffix(_DELETED))


def _open_same(path: bytes, vma: Vma) -> int | None:
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (OSError, ValueError):
        return None
    status = os.fstat(fd)
    # On overlayfs and btrfs (devices with major number 0) maps and stat(2) may number the same file differently.
    if status.st_ino == vma.inode or os.major(status.st_dev) == 0:
        return fd
    os.close(fd)
    return None


@dataclass(frozen=True, slots=True)
class _Mapping:
    """An executable range and what is mapped there; ``module`` is None for anonymous memory (JIT code)."""

    start: int
    end: int
    offset: int
    module: Module | None


class Resolver:
    """Resolves code addresses of process ``pid``; close it to give its descriptors back.

    ``open_mapping`` returns a descriptor for a mapping; ``debug_root`` is where debug files lie (None: do not look);
    ``lines`` and ``debuginfod`` are what ``resolve`` may use besides, and are closed with the resolver.
    ``unopened`` counts the files that could not be opened: their frames have no function.
    """

    def __init__(
        self,
        pid: int,
        *,
        open_mapping: OpenMapping = open_mapping,
        debug_root: str | None = DEBUG_ROOT,
        lines: LineReader | None = None,
        debuginfod: Debuginfod | None = None,
    ) -> None:
        self._pid = pid
        self._open = open_mapping
        self._unread: Counter[str] = Counter()
        self._sources = Sources(debug_root, lines, debuginfod, self._unread)
        self._sources_of_memory = Sources(None, None, None, self._unread)
        self._modules: dict[tuple[str, int, bytes], Module] = {}
        self._current: dict[Vma, _Mapping] = {}
        self._starts: list[int] = []
        self._ordered: list[_Mapping] = []
        self._gone: list[_Mapping] = []
        self._cache: dict[tuple[int, bool], tuple[Frame, ...]] = {}
        self._perf_map = PerfMap(pid)
        self.unopened = 0

    def update(self, vmas: Sequence[Vma]) -> None:
        """Takes note of the process's mappings as they are now; those that are gone are remembered."""
        executable = [vma for vma in vmas if vma.is_executable]
        generated = any(not vma.is_file and not vma.path.startswith(b"[v") for vma in executable)
        if generated and self._perf_map.refresh():
            self._cache.clear()
        now = {vma: self._current.get(vma) or self._mapping(vma) for vma in executable}
        if now.keys() == self._current.keys():
            return
        left = [mapping for vma, mapping in self._current.items() if vma not in now and mapping.module is not None]
        self._gone = (self._gone + left)[-MAX_GONE:]
        self._current = now
        self._ordered = sorted(now.values(), key=lambda mapping: mapping.start)
        self._starts = [mapping.start for mapping in self._ordered]
        self._cache.clear()

    @property
    def problems(self) -> dict[str, int]:
        """What could not be used for names and lines, and how often."""
        damaged = sum(module.is_damaged for module in self._modules.values())
        found = {f"{what} among the mapped files": count for what, count in self._unread.items()}
        found |= {"mapped files that could not be opened": self.unopened, "files with damaged symbols": damaged}
        found |= {"perf maps not trusted": int(self._perf_map.is_refused)}
        for name, part in (("debuginfod", self._sources.debuginfod), ("lines", self._sources.lines)):
            if part is not None:
                found |= {f"{name}: {what}": count for what, count in part.problems.items()}
        return {what: count for what, count in found.items() if count}

    def resolve(self, address: int, *, return_address: bool = False, lines: bool = True) -> tuple[Frame, ...]:
        """The frames at a code address, innermost first: functions inlined there, then the physical function.

        A return address points behind its call, which may be the next line or even the next function: with
        ``return_address`` the instruction before it is resolved, and the frames' offsets are that instruction's.
        Without ``lines`` only what is quickly had is used, and the physical function alone is returned: for labels
        while tracing. With it, source lines are read and debuginfod is asked, if the resolver was given them.
        """
        key = (address - 1 if return_address else address, lines)
        frames = self._cache.get(key)
        if frames is None:
            if len(self._cache) >= MAX_CACHED:
                self._cache.clear()
            frames = self._cache[key] = self._frames(*key)
        return frames

    def close(self) -> None:
        """Gives all descriptors back; addresses that were resolved before stay resolvable."""
        if self._sources.lines is not None:
            self._sources.lines.close()
        for module in self._modules.values():
            module.close()
        self._perf_map.close()

    def _mapping(self, vma: Vma) -> _Mapping:
        return _Mapping(vma.start, vma.end, vma.offset if vma.is_file else 0, self._module(vma))

    def _module(self, vma: Vma) -> Module | None:
        if not vma.is_file and (not vma.path.startswith(b"[") or vma.path.startswith((b"[anon", b"[heap", b"[stack"))):
            return None
        key = (vma.device, vma.inode, vma.path)
        module = self._modules.get(key)
        if module is None:
            source = self._file(vma) if vma.is_file else self._vdso(vma) if vma.path == b"[vdso]" else None
            sources = self._sources if vma.is_file else self._sources_of_memory
            module = self._modules[key] = Module(vma.path, unescaped(vma.path), source, sources)
        return module

    def _file(self, vma: Vma) -> int | None:
        try:
            if len(self._modules) < MAX_MODULES:
                return self._open(self._pid, vma)
        except OSError:
            pass
        self.unopened += 1
        return None

    def _vdso(self, vma: Vma) -> bytes | None:
        """The vdso is in no file, but is an ELF image in the target's memory."""
        try:
            fd = os.open(f"/proc/{self._pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return os.pread(fd, min(vma.size, MAX_VDSO), vma.start)
        except (OSError, OverflowError):
            return None
        finally:
            os.close(fd)

    def _frames(self, address: int, thorough: bool) -> tuple[Frame, ...]:
        mapping = self._find(address)
        module = mapping.module if mapping is not None else None
        if mapping is None or module is None:
            return (self._generated(address),)
        if thorough:
            module.search()
        offset = address - mapping.start + mapping.offset
        place = module.locate(offset)
        if place is None:
            # No ELF file: .NET, for one, maps its generated code from a memfd.
            generated = self._generated(address)
            if generated.function:
                return (generated,)
            return (Frame(function=None, module=module.text, offset=offset, address=address),)
        frame = Frame(
            function=demangle(place.function[0]) if place.function else None,
            module=module.text,
            offset=place.vaddr,
            function_offset=place.function[1] if place.function else 0,
            build_id=place.build_id,
            address=address,
        )
        return _with_lines(frame, module.locations(place.vaddr)) if thorough else (frame,)

    def _generated(self, address: int) -> Frame:
        """Code that a JIT compiler generated, where it left a perf map; else an address that nothing is known of."""
        found = self._perf_map.lookup(address)
        if found is None:
            return Frame(function=None, module=None, offset=address, address=address)
        return Frame(
            function=demangle(found[0]),
            module=self._perf_map.text,
            offset=address,
            function_offset=found[1],
            address=address,
        )

    def _find(self, address: int) -> _Mapping | None:
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ordered[index].end:
            return self._ordered[index]
        return next((old for old in reversed(self._gone) if old.start <= address < old.end), None)


def _with_lines(frame: Frame, locations: Sequence[Location]) -> tuple[Frame, ...]:
    """The frame with its source line, after the functions that are inlined there."""
    # Without a source file the name is a guess from the nearest symbol, of which ours knows the size.
    if not locations or locations[-1].path is None:
        return (frame,)
    *inlined, outer = [
        replace(
            frame,
            function=demangle(at.name.encode()) or None,
            file=printable(at.path) if at.path is not None else None,
            line=at.line,
        )
        for at in locations
    ]
    # Where dwz moved the names to another file, inlined functions have none: their line says where they stand.
    named = [replace(inner, inlined=True, function_offset=0) for inner in inlined if inner.function]
    return (*named, replace(outer, function=frame.function or outer.function))
