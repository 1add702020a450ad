"""What tracing a certain process would come to: nothing is attached to it, it is only read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from tracer.errors import PrivilegeError
from tracer.heap.discovery import Discovery, FoundImage
from tracer.heap.explain import probe_places
from tracer.model.health import AllocatorPlan, Check, ModuleCoverage, Outcome, TargetHealth
from tracer.model.vma import Vma
from tracer.procfs.maps import read_maps
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError
from tracer.symbols.perfmap import PerfMap
from tracer.target import check_target
from tracer.units import human_bytes, percent, plural
from tracer.unwind.cache import TableCache
from tracer.unwind.coverage import module_coverage

_NAMESPACES = ("pid", "mnt", "user", "net", "cgroup")
_EM_NAMES = {3: "x86", 40: "ARM", 62: "x86-64", 183: "arm64", 243: "RISC-V"}
# Less than this share of the code with unwind rules: stacks through it end early more often than not.
_WELL_COVERED = 0.8
_GROUP = "process"
# What programs call all the time.
_HOT = frozenset({"malloc", "free", "calloc", "realloc"})


def examine(pid: int) -> TargetHealth:
    """Look at a process. Raises TargetError where there is none that could be traced."""
    info = check_target(pid)
    try:
        vmas = read_maps(pid)
    except PrivilegeError as error:
        unreadable = Check(_GROUP, "its memory", Outcome("untried", error.cause), "", error.fix or "", required=True)
        return TargetHealth(pid, info.command, (unreadable,))
    discovery = Discovery(pid)
    images = list(discovery.look(vmas))
    allocators = tuple(_plan(image) for image in images if image.allocator is not None and not image.is_go)
    modules = tuple(sorted(module_coverage(pid, vmas, TableCache.default()), key=lambda module: -module.code))
    checks = (
        _program(pid),
        _namespaces(pid),
        *_languages(images),
        _allocators(allocators, discovery.unreadable),
        *_cost(allocators),
        *_coverage(modules),
        *_generated_code(pid, vmas),
    )
    return TargetHealth(pid, info.command, checks, allocators, modules)


def _plan(image: FoundImage) -> AllocatorPlan:
    assert image.allocator is not None
    try:
        with ElfImage.open(image.map_file) as elf:
            places = probe_places(elf, image.allocator.sites)
    except (OSError, ElfError) as error:
        return AllocatorPlan(image.allocator.name, image.path, (), (f"cannot be read: {error}",))
    return AllocatorPlan(image.allocator.name, image.path, places, image.allocator.notes)


def _program(pid: int) -> Check:
    try:
        with open(f"/proc/{pid}/exe", "rb") as file:
            head = file.read(20)
    except OSError as error:
        outcome = Outcome("untried", f"its program cannot be read: {error.strerror}")
    else:
        outcome = architecture(head, is_static=_is_static(pid))
    loss = "only 64-bit x86-64 programs can be traced; memtrace ps takes any"
    return Check(_GROUP, "program", outcome, loss, required=True)


def _is_static(pid: int) -> bool:
    try:
        with ElfImage.open(f"/proc/{pid}/exe") as image:
            return image.is_static
    except (OSError, ElfError):
        return False


def architecture(head: bytes, *, is_static: bool) -> Outcome:
    """What the first 20 bytes of a program's file say (elf(5))."""
    if len(head) < 20 or head[:4] != b"\x7fELF":
        return Outcome("missing", "no ELF file")
    bits = 64 if head[4] == 2 else 32
    machine = int.from_bytes(head[18:20], "little" if head[5] == 1 else "big")
    linked = ", statically linked" if is_static else ""
    name = _EM_NAMES.get(machine, f"machine {machine}")
    return Outcome("ok" if (bits, machine) == (64, 62) else "missing", f"{bits}-bit {name}{linked}")


def _namespaces(pid: int) -> Check:
    """Of a container: no hindrance, as its files are opened through its mappings."""
    own = []
    for name in _NAMESPACES:
        try:
            if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:
                own.append(name)
        except OSError as error:
            return Check(_GROUP, "namespaces", Outcome("untried", error.strerror or str(error)))
    text = f"its own: {', '.join(own)}; files are opened through its mappings" if own else "the same as memtrace's"
    return Check(_GROUP, "namespaces", Outcome("ok", text))


def _languages(images: Sequence[FoundImage]) -> Iterator[Check]:
    for image in images:
        if image.is_go:
            loss = "return probes would crash it: its allocations are not traced; VMAs and page faults are"
            yield Check(_GROUP, "Go", Outcome("missing", f"{image.path} is a Go program"), loss)


def _allocators(plans: Sequence[AllocatorPlan], unreadable: Sequence[str]) -> Check:
    if plans:
        outcome = Outcome("ok", "; ".join(f"{plan.name} in {plan.path}" for plan in plans))
    elif unreadable:
        outcome = Outcome("untried", unreadable[0] + (f", and {len(unreadable) - 1} more" if unreadable[1:] else ""))
    else:
        outcome = Outcome("missing", "no malloc functions found: static without symbols, or an allocator of its own")
    loss = "VMAs and page faults are traced with their stacks, single allocations are not"
    return Check(_GROUP, "allocator", outcome, loss, "for a static program: keep its symbol table")


def _cost(plans: Sequence[AllocatorPlan]) -> Iterator[Check]:
    """What a hit costs; of a return's instruction, which is never emulated, nobody is warned."""
    places = [place for plan in plans for place in plan.places]
    if not places:
        return
    stepped = [place for place in places if not place.emulated]
    avoidable = sorted({place.function for place in stepped if "ret-instruction" not in place.kinds})
    text = f"{plural(len(places), 'breakpoint')}, {len(stepped)} of them single-stepped"
    names = f"{', '.join(avoidable[:6])}{' and others' if avoidable[6:] else ''}"
    loss = f"a call of {names} costs some 9 us instead of 0.7" if avoidable else ""
    hot = not _HOT.isdisjoint(avoidable)
    yield Check(_GROUP, "cost of probes", Outcome("missing" if hot else "ok", text), loss)


def _coverage(modules: Sequence[ModuleCoverage]) -> Iterator[Check]:
    code = sum(module.code for module in modules)
    if not code:
        return
    poor = [module for module in modules if module.covered < _WELL_COVERED * module.code]
    share = percent(sum(module.covered for module in modules), code)
    text = f"{share} of {human_bytes(code)} of code in {plural(len(modules), 'module')}"
    names = ", ".join(module.path.rpartition("/")[2] for module in poor[:4])
    loss = (
        f"stacks may end in {names}{' and others' if poor[4:] else ''}, unless it keeps frame pointers" if poor else ""
    )
    outcome = Outcome("missing" if poor else "ok", text)
    yield Check(_GROUP, "unwind tables", outcome, loss, "build it with unwind tables (-fasynchronous-unwind-tables)")


def _generated_code(pid: int, vmas: Sequence[Vma]) -> Iterator[Check]:
    code = [vma for vma in vmas if vma.is_executable and not vma.is_file and not vma.path.startswith(b"[")]
    if not code:
        return
    perf_map = PerfMap(pid)
    try:
        perf_map.refresh()
    finally:
        perf_map.close()
    size = human_bytes(sum(vma.size for vma in code))
    text = f"{plural(len(code), 'mapping')} of generated code ({size}), named by {perf_map.text or 'nothing'}"
    loss = "functions of the JIT compiler have no names"
    fix = "let it write /tmp/perf-PID.map (node --perf-basic-prof, java with an agent, python -X perf)"
    yield Check(_GROUP, "JIT", Outcome("ok" if perf_map.text else "missing", text), loss, fix)
