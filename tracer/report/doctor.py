"""What ``memtrace doctor`` found, as text and as JSON (``memtrace-doctor/1``)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from tracer.model.health import AllocatorPlan, Check, ModuleCoverage, ProbePlace, TargetHealth
from tracer.report.ps_data import text as valid
from tracer.report.safe import Column, Page
from tracer.symbols.demangle import demangle
from tracer.units import percent, plural, short_bytes

SCHEMA = "memtrace-doctor/1"
Line = tuple[str, str]

_WORDS = {"ok": "ok", "missing": "MISSING", "untried": "untried"}
_STYLES = {"ok": "", "missing": "bad", "untried": "dim"}
_NAME_WIDTH = 25
_MODULES = 12


def doctor_lines(checks: Sequence[Check], target: TargetHealth | None, page: Page) -> Iterator[Line]:
    """The verdict, every check under its group, and the process's probes and modules."""
    yield from verdict_lines(checks, target, page)
    yield from _groups(checks, page)
    if target is not None:
        yield "", ""
        yield page.shorten(f"process {target.pid}  {page.clean(target.command)}", page.width), "head"
        for check in target.checks:
            yield from _check(check, page)
        for plan in target.allocators:
            yield from _allocator(plan, page)
        yield from _modules(target.modules, page)


def verdict_lines(checks: Sequence[Check], target: TargetHealth | None, page: Page) -> Iterator[Line]:
    """Whether tracing would work, in a sentence."""
    preventing = [check for check in (*checks, *(target.checks if target else ())) if check.prevents]
    where = f"process {target.pid}" if target is not None else "here"
    if preventing:
        names = ", ".join(check.name for check in preventing)
        text, style = f"memtrace cannot trace {where}: {names}", "bad"
    else:
        lacking = sum(not check.ok for check in (*checks, *(target.checks if target else ())))
        rest = f"; {plural(lacking, 'thing')} would make it better" if lacking else ""
        text, style = f"memtrace can trace {where}{rest}", "good"
    yield from ((line, style) for line in page.wrap(page.clean(text)))


def _groups(checks: Sequence[Check], page: Page) -> Iterator[Line]:
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            yield "", ""
            yield group, "head"
        yield from _check(check, page)


def _check(check: Check, page: Page) -> Iterator[Line]:
    """``  ok       NAME    detail``; what is not there with its loss and its fix beneath."""
    head = f"  {_WORDS[check.outcome.state]:<8} {check.name:<{_NAME_WIDTH}} "
    detail = page.clean(check.outcome.detail)
    style = _STYLES[check.outcome.state]
    if detail:
        yield from ((line, style) for line in page.wrap(detail, head, " " * 13 if page.width < 72 else None))
    else:
        yield head.rstrip(), style
    if check.ok:
        return
    for label, words in (("without it: ", check.loss), ("to get it: ", check.fix)):
        if words:
            yield from ((line, "") for line in page.wrap(page.clean(words), " " * 13 + label, " " * 15))


def _allocator(plan: AllocatorPlan, page: Page) -> Iterator[Line]:
    yield "", ""
    yield page.shorten(f"{page.clean(plan.name)} in {page.clean(plan.path)}", page.width, "both"), "head"
    columns = (
        Column("FUNCTION", keep="start", least=12),
        Column("PROBE"),
        Column("OFFSET", right=True),
        Column("INSTRUCTION", keep="start", least=10),
        Column("HOW"),
    )
    rows = [_place_cells(place, page) for place in _merged(plan.places)]
    lines = page.align(columns, rows)
    yield lines[0], "head"
    yield from ((line, "") for line in lines[1:])
    for note in plan.notes:
        yield from ((line, "dim") for line in page.wrap(page.clean(note), "  - "))
    for reason in sorted({place.reason for place in plan.places if place.reason}):
        names = sorted({_name(place) for place in plan.places if place.reason == reason})
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
        yield from ((line, "dim") for line in page.wrap(page.clean(f"stepped: {listed}: {reason}"), "  - "))


def _merged(places: Sequence[ProbePlace]) -> Iterator[tuple[ProbePlace, int]]:
    """The places; those on a function's ``ret`` instructions as one, with their number."""
    returns: dict[str, list[ProbePlace]] = {}
    for place in places:
        if place.kinds == ("ret-instruction",):
            returns.setdefault(place.function, []).append(place)
    for place in places:
        if place.kinds != ("ret-instruction",):
            yield place, 1
            if found := returns.pop(place.function, []):
                yield found[0], len(found)
    yield from ((found[0], len(found)) for found in returns.values())


def _place_cells(counted: tuple[ProbePlace, int], page: Page) -> tuple[str, ...]:
    place, count = counted
    kinds = "+".join(place.kinds).replace("ret-instruction", "ret") + (f" x{count}" if count > 1 else "")
    moved = f"{place.distance:+d}" if place.distance and place.kinds != ("ret-instruction",) else ""
    how = "emulated" if place.emulated else "stepped"
    return (
        page.clean(_name(place)),
        kinds,
        f"{place.offset - (place.distance if moved else 0):#x}{moved}",
        page.clean(place.instruction),
        how,
    )


def _name(place: ProbePlace) -> str:
    return demangle(place.function.encode())


def _modules(modules: Sequence[ModuleCoverage], page: Page) -> Iterator[Line]:
    """How much of each can be unwound: the largest, and all of which nothing can."""
    if not modules:
        return
    yield "", ""
    poor = [module for module in modules if module.problem]
    good = [module for module in modules if not module.problem][: max(_MODULES - len(poor), 4)]
    rows = [(percent(m.covered, m.code), short_bytes(m.code), page.clean(m.path)) for m in good]
    rows += [("none", short_bytes(m.code), page.clean(f"{m.path} ({m.problem})")) for m in poor]
    columns = (Column("UNWOUND", right=True), Column("CODE", right=True), Column("MODULE", keep="end", least=16))
    lines = page.align(columns, rows)
    yield lines[0], "head"
    yield from ((line, "") for line in lines[1:])
    if len(modules) > len(rows):
        yield f"... {len(modules) - len(rows)} smaller modules", "dim"


def write_doctor_json(checks: Sequence[Check], target: TargetHealth | None, can_trace: bool, file: TextIO) -> None:
    """Write all of it as one line."""
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "can_trace": can_trace,
        "checks": [_check_json(check) for check in checks],
        "process": None if target is None else _target_json(target),
    }
    file.write(json.dumps(document, allow_nan=False) + "\n")


def _check_json(check: Check) -> dict[str, Any]:
    return {
        "group": check.group,
        "name": check.name,
        "state": check.outcome.state,
        "detail": valid(check.outcome.detail),
        "required": check.required,
        "loss": valid(check.loss) or None,
        "fix": valid(check.fix) or None,
    }


def _target_json(target: TargetHealth) -> dict[str, Any]:
    return {
        "pid": target.pid,
        "command": valid(target.command),
        "checks": [_check_json(check) for check in target.checks],
        "allocators": [
            {
                "name": valid(plan.name),
                "path": valid(plan.path),
                "notes": [valid(note) for note in plan.notes],
                "probes": [_place_json(place) for place in plan.places],
            }
            for plan in target.allocators
        ],
        "modules": [
            {
                "path": valid(module.path),
                "code": module.code,
                "covered": module.covered,
                "problem": valid(module.problem) or None,
                "reasons": dict(module.reasons),
            }
            for module in target.modules
        ],
    }


def _place_json(place: ProbePlace) -> dict[str, Any]:
    return {
        "function": valid(place.function),
        "kinds": list(place.kinds),
        "offset": place.offset,
        "distance": place.distance,
        "instruction": place.instruction,
        "emulated": place.emulated,
        "reason": valid(place.reason) or None,
    }
