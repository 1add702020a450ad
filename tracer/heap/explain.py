"""Each place where an allocator would be probed: the instruction there, and what a hit of it costs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tracer.heap.allocators import ProbeSite
from tracer.heap.placement import REGISTERS, emulated_offset, is_emulated
from tracer.heap.returns import disassembler
from tracer.model.health import ProbePlace
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError

_LONGEST_INSTRUCTION = 15


def probe_places(image: ElfImage, sites: Iterable[ProbeSite]) -> tuple[ProbePlace, ...]:
    """The places of an allocator's (placed) sites, in the order of the file."""
    kinds: dict[int, tuple[ProbeSite, list[str]]] = {}
    for site in sites:
        _, known = kinds.setdefault(site.file_offset, (site, []))
        if site.kind not in known:
            known.append(site.kind)
    decoder, _ = disassembler(image)
    return tuple(_place(image, decoder, site, tuple(known)) for _, (site, known) in sorted(kinds.items()))


def _place(image: ElfImage, decoder: Any | None, site: ProbeSite, kinds: tuple[str, ...]) -> ProbePlace:
    start = image.file_offset_of(site.vaddr)
    try:
        code = image.read(site.file_offset, min(_LONGEST_INSTRUCTION, image.size - site.file_offset))
    except ElfError:
        code = b""
    emulated = is_emulated(code)
    return ProbePlace(
        function=site.symbol,
        kinds=kinds,
        offset=site.file_offset,
        distance=0 if start is None else site.file_offset - start,
        instruction=_text(decoder, code, image.vaddr_of_offset(site.file_offset) or 0),
        emulated=emulated,
        reason="" if emulated else _reason(image, site),
    )


def _text(decoder: Any | None, code: bytes, vaddr: int) -> str:
    found = next(decoder.disasm_lite(code, vaddr), None) if decoder is not None else None
    return f"{found[2]} {found[3]}".rstrip() if found else ""


def _reason(image: ElfImage, site: ProbeSite) -> str:
    if site.kind == "ret-instruction":
        return "a return cannot be emulated, and a return probe would end the target when an exception is thrown"
    try:
        return emulated_offset(image, site.vaddr, site.size, registers=REGISTERS[site.shape]).reason
    except ElfError as error:
        return str(error)
