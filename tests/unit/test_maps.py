"""maps: bytes in, VMAs out, whatever the names look like."""

from __future__ import annotations

import os

import pytest

from tracer.errors import PrivilegeError, TargetError
from tracer.model.vma import Vma
from tracer.procfs import files
from tracer.procfs.maps import overlapping, parse_maps, read_maps

LINE = b"7f0000000000-7f0000002000 r-xp 00001000 fe:00 42                         "


def vma(start: int, end: int) -> Vma:
    return Vma(start, end, "rw-p", 0, "00:00", 0, b"")


def test_a_line_becomes_a_vma() -> None:
    assert parse_maps(LINE + b"/usr/bin/x\n") == (
        Vma(0x7F0000000000, 0x7F0000002000, "r-xp", 0x1000, "fe:00", 42, b"/usr/bin/x"),
    )


@pytest.mark.parametrize(
    "name",
    [
        b"/a b",
        b"/ends 12 kB",
        b"/Rss: 5 kB",
        b"/line\\012break",
        b"/latin-\xe9\xff",
        b"/gone (deleted)",
        b"/trailing ",
        b"/vertical\x0btab",
        b"/" + b"x" * 4095,
        b"[heap]",
        b"[anon: glibc: malloc arena]",
    ],
)
def test_names_are_kept_byte_for_byte(name: bytes) -> None:
    assert [row.path for row in parse_maps(LINE + name + b"\n" + LINE + b"/next\n")] == [name, b"/next"]


@pytest.mark.parametrize("end", [b"", b" "])  # kernels up to 5.10 end a nameless line in a blank
def test_anonymous_memory_has_no_name(end: bytes) -> None:
    (row,) = parse_maps(b"10000-20000 rw-p 00000000 00:00 0" + end + b"\n")
    assert (row.path, row.inode, row.size) == (b"", 0, 0x10000)


def test_addresses_of_the_kernel_half() -> None:
    (row,) = parse_maps(b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n")
    assert (row.start, row.path) == (0xFFFFFFFFFF600000, b"[vsyscall]")


@pytest.mark.parametrize("rest", [b"", b"7f00000", b"7f0000000000-", b"7f0000000000-7f0000002000 r-"])
def test_a_cut_off_line_is_left_out(rest: bytes) -> None:
    assert len(parse_maps(LINE + b"/x\n" + rest)) == 1


def test_a_missing_newline_at_the_end() -> None:
    assert parse_maps(LINE + b"/x")[0].path == b"/x"


def test_overlap_and_order() -> None:
    assert not overlapping([vma(0, 10), vma(10, 20), vma(30, 40)])
    assert overlapping([vma(0, 10), vma(9, 20)])
    assert overlapping([vma(30, 40), vma(0, 10)])


def test_own_maps() -> None:
    vmas = read_maps(os.getpid())
    assert b"[stack]" in {row.path for row in vmas}
    assert not overlapping(vmas)


def test_no_such_process() -> None:
    with pytest.raises(TargetError, match="process 4194305 does not exist"):
        read_maps(4194305)  # above the kernel's PID_MAX_LIMIT


@pytest.mark.parametrize(
    ("error", "expected"),
    [(ProcessLookupError, TargetError), (FileNotFoundError, TargetError), (PermissionError, PrivilegeError)],
)
def test_what_the_kernel_refuses_has_a_cause(error: type[OSError], expected: type[Exception]) -> None:
    with pytest.raises(expected), files.target_errors(1, "/proc/1/maps"):
        raise error


def test_the_fix_for_missing_rights_is_named() -> None:
    with pytest.raises(PrivilegeError) as caught, files.target_errors(1, "/proc/1/maps"):
        raise PermissionError
    assert caught.value.fix and "sudo" in caught.value.fix
