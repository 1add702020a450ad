"""What the C compiler makes of bpf/memtrace.h against what tracer/probes/layout.py states for Python.

Nothing is listed here by hand: structs, enums and limits are found by name on both sides.
"""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Container
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import pytest

from tracer.bpf_source import bpf_directory
from tracer.probes import layout, tracepoints
from tracer.probes.layout import parse_counters

BPF = bpf_directory()
HEADER = (BPF / "memtrace.h").read_text(encoding="utf-8")
TYPES = """
#include <stddef.h>
#include <stdio.h>
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64;
typedef signed char s8; typedef short s16; typedef int s32; typedef long long s64;
"""


@dataclass(frozen=True)
class Field:
    name: str
    offset: int
    size: int
    count: int
    signed: bool


@dataclass(frozen=True)
class CLayout:
    """Structs (size and fields), enums and constants, as the C compiler has them."""

    sizes: dict[str, int]
    fields: dict[str, list[Field]]
    enums: dict[str, dict[str, int]]
    constants: dict[str, int]


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def structs_in(text: str) -> dict[str, list[str]]:
    """The names of the fields of each struct with plain fields; declarators may be listed with commas."""
    found: dict[str, list[str]] = {}
    for name, body in re.findall(r"^struct (\w+) \{\n(.*?)^\};", without_comments(text), re.DOTALL | re.MULTILINE):
        found[name] = []
        for kind, names in re.findall(r"^\s*(?:struct )?(\w+) ([^;]+);", body, re.MULTILINE):
            for field in (part.strip().partition("[")[0] for part in names.split(",")):
                # A struct within another stands for its fields.
                found[name] += [f"{field}.{inner}" for inner in found.get(kind, ())] or [field]
    return found


def enums_in(text: str) -> dict[str, list[str]]:
    bodies = re.findall(r"^enum (\w+) \{(.*?)\}", without_comments(text), re.DOTALL | re.MULTILINE)
    return {name: re.findall(r"(\w+)(?:\s*=[^,]*)?(?:,|\s*$)", body) for name, body in bodies}


def source_of(name: str) -> str:
    """The definition of a struct that stands in one of the BPF sources and not in the header."""
    for path in sorted(BPF.glob("*.bpf.c")):
        found = re.search(rf"^struct {name} \{{.*?^\}};", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        if found:
            return found.group()
    raise AssertionError(f"no struct {name} in {BPF}")


def measure(directory: Path, source: str) -> CLayout:
    """Compile a program that prints the layout of everything in ``source``."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    structs, enums = structs_in(source), enums_in(source)
    constants = re.findall(r"^#define (\w+) \d+\b", source, re.MULTILINE)
    lines = [TYPES, source, "int main(void) {"]
    for name, fields in structs.items():
        lines.append(f'printf("size {name} %zu\\n", sizeof(struct {name}));')
        for field in fields:
            member = f"((struct {name} *)0)->{field}"
            element = f"__typeof__(__builtin_choose_expr(sizeof({member}) > 8, *(u64 *)0, {member}))"
            lines.append(
                f'printf("field {name} {field} %zu %zu %zu %d\\n", offsetof(struct {name}, {field}),'
                f" sizeof({element}), sizeof({member}) / sizeof({element}), ({element})-1 < 0);"
            )
    for name, members in enums.items():
        lines += [f'printf("enum {name} {member} %d\\n", {member});' for member in members]
    lines += [f'printf("constant {name} %lld\\n", (long long){name});' for name in dict.fromkeys(constants)]
    (directory / "layout.c").write_text("\n".join([*lines, "return 0; }\n"]))
    subprocess.run(["gcc", "-w", "-o", "layout", "layout.c"], cwd=directory, check=True)
    output = subprocess.run([directory / "layout"], capture_output=True, text=True, check=True).stdout
    measured = CLayout({}, {}, {}, {})
    for line in output.splitlines():
        kind, name, *rest = line.split()
        if kind == "size":
            measured.sizes[name] = int(rest[0])
        elif kind == "field":
            offset, size, count, signed = map(int, rest[1:])
            measured.fields.setdefault(name, []).append(Field(rest[0], offset, size, count, bool(signed)))
        elif kind == "enum":
            measured.enums.setdefault(name, {})[rest[0]] = int(rest[1])
        else:
            measured.constants[name] = int(rest[0])
    return measured


def python_fields(form: str) -> list[tuple[int, int, bool]]:
    """Offset, size and signedness of each item of a little-endian struct format."""
    assert form.startswith("<"), "explicit byte order, so that Python adds no padding of its own"
    items: list[tuple[int, int, bool]] = []
    offset = 0
    for count, code in re.findall(r"(\d*)(\w)", form[1:]):
        for _ in range(int(count or 1)):
            size = struct.calcsize("<" + code)
            if code != "x":
                items.append((offset, size, code.islower()))
            offset += size
    return items


def python_structs() -> dict[str, struct.Struct]:
    return {name.lower(): value for name, value in vars(layout).items() if isinstance(value, struct.Struct)}


def snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def python_tuples() -> dict[str, tuple[str, ...]]:
    """The names of the fields of each NamedTuple that stands for a struct, by the struct's name."""
    return {
        snake(name): value._fields
        for name, value in vars(layout).items()
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields") and name != "Counter"
    }


def python_enums() -> dict[str, type[IntEnum]]:
    found = {snake(name): value for name, value in vars(layout).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, IntEnum) and value is not IntEnum}


def python_limits() -> dict[str, int]:
    return {name: value for name, value in vars(layout).items() if name.isupper() and isinstance(value, int)}


HEADER_STRUCTS = structs_in(HEADER)


@pytest.fixture(scope="module")
def c(tmp_path_factory: pytest.TempPathFactory) -> CLayout:
    return measure(tmp_path_factory.mktemp("layout"), HEADER)


@pytest.fixture(scope="module")
def c_all(tmp_path_factory: pytest.TempPathFactory) -> CLayout:
    """The header together with the structs that Python reads but only one BPF source defines."""
    others = [name for name in python_structs() if not name.endswith("_head") and not struct_name(name, HEADER_STRUCTS)]
    return measure(tmp_path_factory.mktemp("layout"), HEADER + "".join(source_of(name) + "\n" for name in others))


def struct_name(name: str, known: Container[str]) -> str | None:
    """The C name of a layout: TOTALS_VALUE is ``struct totals``, all others have their own name."""
    for candidate in (name, name.removesuffix("_value")):
        if candidate in known:
            return candidate
    return None


@pytest.mark.parametrize("name", [name for name in python_structs() if not name.endswith("_head")])
def test_structs(c_all: CLayout, name: str) -> None:
    stated = python_structs()[name]
    found = struct_name(name, c_all.sizes)
    assert found is not None
    assert stated.size == c_all.sizes[found]
    assert python_fields(stated.format) == [(field.offset, field.size, field.signed) for field in c_all.fields[found]]


@pytest.mark.parametrize("name", python_tuples())
def test_names_of_fields(c: CLayout, name: str) -> None:
    assert list(python_tuples()[name]) == [field.name for field in c.fields[name]]


def test_every_shared_struct_is_stated_for_python(c: CLayout) -> None:
    stated = {struct_name(name, HEADER_STRUCTS) for name in python_structs()}
    assert set(c.sizes) - stated == {"stack_value"}, "of which Python states the head"


def test_stack(c: CLayout) -> None:
    *head, ips = c.fields["stack_value"]
    assert python_fields(layout.STACK_HEAD.format) == [(field.offset, field.size, field.signed) for field in head]
    assert (ips.offset, ips.size, ips.count) == (layout.STACK_HEAD.size, 8, layout.MAX_DEPTH)
    assert c.sizes["stack_value"] == layout.STACK_SIZE


@pytest.mark.parametrize("name", python_enums())
def test_enums(c: CLayout, name: str) -> None:
    members = c.enums[name]
    (prefix,) = {member.partition("_")[0] for member in members}
    assert {f"{prefix}_{member.name}": member.value for member in python_enums()[name]} == members


def test_every_enum_is_compared(c: CLayout) -> None:
    assert set(c.enums) == {*python_enums(), "counter"}


def test_status_bits_are_bits(c: CLayout) -> None:
    values = list(c.enums["stack_status"].values())
    assert all(value.bit_count() == 1 for value in values) and len(set(values)) == len(values)


def test_limits(c: CLayout) -> None:
    computed = {"STACK_SIZE": c.sizes["stack_value"]}
    assert python_limits() == {name: (c.constants | computed)[name] for name in python_limits()}


def test_members_of_rss() -> None:
    source = (BPF / "rss.bpf.c").read_text(encoding="utf-8")
    (count,) = re.findall(r"^#define RSS_MEMBERS (\d+)", source, re.MULTILINE)
    assert len(layout.RSS_MEMBERS) == int(count)
    # The header repeats the kernel's numbers, in whose order Python lists the names.
    numbers = {name.lower(): int(number) for name, number in re.findall(r"MM_(\w+?) (\d)", HEADER)}
    kernel_names = {"file": "filepages", "anon": "anonpages", "swap": "swapents", "shmem": "shmempages"}
    assert [numbers[kernel_names[name]] for name in layout.RSS_MEMBERS] == list(range(int(count)))


def test_fields_of_rss_stat(tmp_path: Path) -> None:
    measured = measure(tmp_path, source_of("rss_stat_args"))
    fields = {field.name: (field.offset, field.size) for field in measured.fields["rss_stat_args"]}
    assert {name: fields[name] for name in tracepoints._RSS_STAT_FIELDS} == tracepoints._RSS_STAT_FIELDS
    assert set(fields) - set(tracepoints._RSS_STAT_FIELDS) == {"common", "hole"}


def test_counters_have_the_order_of_the_enum(c: CLayout) -> None:
    counters = parse_counters(HEADER)
    stated = {f"COUNT_{counter.name.upper()}": index for index, counter in enumerate(counters)}
    assert stated | {"COUNTERS": len(counters)} == c.enums["counter"]


def test_counters_tell_losses_from_events() -> None:
    marked = {line.split(",")[0].strip() for line in HEADER.splitlines() if "LOSS:" in line}
    counters = parse_counters(HEADER)
    assert {f"COUNT_{counter.name.upper()}" for counter in counters if counter.is_loss} == marked
    assert marked and len(marked) < len(counters)
    assert all(counter.meaning and "LOSS" not in counter.meaning for counter in counters)


def test_a_counter_is_its_name_kind_and_meaning() -> None:
    header = (
        "enum counter {\n\tCOUNT_A_B,  /* things seen */\n\tCOUNT_C, /* LOSS: things missed, (a, b) */\n\tCOUNTERS\n};"
    )
    assert parse_counters(header) == (("a_b", False, "things seen"), ("c", True, "things missed, (a, b)"))


def test_a_header_without_counters() -> None:
    with pytest.raises(ValueError, match="enum counter"):
        parse_counters("enum other { COUNT_A, /* a */\n\tCOUNTERS\n};")
