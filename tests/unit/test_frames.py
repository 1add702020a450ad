"""Which frames people need to see, and names that fit on a line."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.reports import LIBC, frame
from tracer.model.report import Frame
from tracer.report.frames import culprit, frame_name, is_allocator, label, short_name, without_allocator

VECTOR = "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int&&)"
NEW = "operator new(unsigned long)"
JEMALLOC = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2"


def stack(*names: str | None, module: str = "/usr/bin/app") -> tuple[Frame, ...]:
    return tuple(frame(name, module) for name in names)


@pytest.mark.parametrize(
    ("names", "shown", "found"),
    [
        (("malloc", "xmalloc", "work", "main"), "xmalloc", "work"),
        (("__libc_malloc", NEW, VECTOR, "App::add(int)", "main"), NEW, "App::add(int)"),
        (("brk", "sbrk", "__glibc_morecore", "sysmalloc", "_int_malloc", "malloc", "zmalloc", "f"), "zmalloc", "f"),
        (
            ("je_malloc_default", "ztrymalloc_usable_internal", "zmalloc", "dictAdd"),
            "ztrymalloc_usable_internal",
            "dictAdd",
        ),
        (
            ("__rust_alloc", "alloc::alloc::alloc", "alloc::vec::Vec<u8>::push", "mine::go"),
            "alloc::vec::Vec<u8>::push",
            "mine::go",
        ),
        (("malloc", "strdup", "copy_name"), "strdup", "copy_name"),
        (("malloc", "_PyMem_RawMalloc", "PyObject_Malloc", "PyList_New"), "_PyMem_RawMalloc", "PyList_New"),
        (("malloc", "g_malloc0", "g_slice_alloc0", "app_node_new"), "g_malloc0", "app_node_new"),
        (
            ("malloc", "AllocSetAlloc", "MemoryContextAllocZero", "palloc0.part.3", "make_node"),
            "AllocSetAlloc",
            "make_node",
        ),
        (("mmap", "map_file"), "mmap", "map_file"),
        (("mmap", "sysmalloc", "malloc", "work"), "work", "work"),
        # Names of people's own functions that only look like a wrapper's.
        (("malloc", "leak_malloc", "main"), "leak_malloc", "leak_malloc"),
        (("malloc", "allocate_buffer", "main"), "allocate_buffer", "allocate_buffer"),
        (("calloc", "calloc_table", "main"), "calloc_table", "calloc_table"),
        (("malloc", "strdup_all", "main"), "strdup_all", "strdup_all"),
        (("malloc", "standard::go()", "main"), "standard::go()", "standard::go()"),
        # No frame is left that is anybody's own.
        (("malloc", "xmalloc"), "xmalloc", "xmalloc"),
        (("malloc",), "malloc", "malloc"),
        (("work",), "work", "work"),
    ],
)
def test_the_frame_to_look_at(names: tuple[str, ...], shown: str, found: str) -> None:
    frames = stack(*names)
    assert without_allocator(frames)[0].function == shown
    for looked_at in (frames, without_allocator(frames)):
        index = culprit(looked_at)
        assert index is not None and looked_at[index].function == found


def test_an_allocators_file_needs_no_names() -> None:
    inner = (frame(None, JEMALLOC), frame("malloc", JEMALLOC), frame(None, JEMALLOC, 0x77))
    frames = (*inner, frame(None, "/usr/bin/app", 0x10), frame("main", "/usr/bin/app"))
    assert all(map(is_allocator, inner))
    assert without_allocator(frames) == frames[3:]
    assert culprit(frames) == 3
    assert label(frames, 2) == "app+0x10 < main"


def test_nameless_frames_go_with_the_allocator_around_them_only() -> None:
    inside = (frame(None, LIBC), frame("malloc", LIBC), frame("main", "/usr/bin/app"))
    assert without_allocator(inside) == inside[2:]
    other = (frame(None, "/usr/lib/libother.so"), frame("malloc", LIBC), frame("main", "/usr/bin/app"))
    assert without_allocator(other) == other


def test_nameless_frames_of_the_c_library_are_nobodys_fault() -> None:
    frames = (frame("malloc", LIBC), frame(None, LIBC), frame(None, "/usr/bin/app", 0x20), frame("main"))
    assert culprit(frames) == 2


def test_a_later_call_of_malloc_is_not_folded() -> None:
    frames = stack("malloc", "hook", "malloc", "main")
    assert without_allocator(frames) == frames[1:]


def test_without_frames() -> None:
    assert culprit(()) is None
    assert without_allocator(()) == ()
    assert label((), 3) == ""


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("malloc", "malloc"),
        ("f.constprop.0", "f.constprop.0"),
        (NEW, "operator new"),
        ("operator new[](unsigned long, std::nothrow_t const&)", "operator new[]"),
        (VECTOR, "std::vector<~>::_M_realloc_insert<~>"),
        ("(anonymous namespace)::Foo<int>::bar(int) const", "(anonymous namespace)::Foo<~>::bar"),
        ("main::{lambda(int)#1}::operator()(int) const", "main::{lambda#1}::operator()"),
        ("std::ostream& operator<< <char>(std::ostream&, char const*)", "operator<< <~>"),
        ("bool operator< <int>(A<int> const&, A<int> const&)", "operator< <~>"),
        ("A::operator->() const", "A::operator->"),
        ("Foo::operator bool() const", "Foo::operator bool"),
        ("f[abi:cxx11](int)", "f[abi:cxx11]"),
        ("std::enable_if<(3>2), int>::type foo<3>(int)", "foo<~>"),
        ("unsigned long f<int>(int) [clone .cold]", "f<~> [clone .cold]"),
        ("decltype(auto) f<int>()", "f<~>"),
        ("std::function<void (int)>::operator()(int) const", "std::function<~>::operator()"),
        (
            "std::__cxx11::basic_string<char, std::char_traits<char>, std::allocator<char> >::_M_create(int&)",
            "std::string::_M_create",
        ),
        ("<a::Sq<7, 'x'> as a::Shape<u8>>::scaled::<a::main::{closure#1}>", "<a::Sq<~> as a::Shape<~>>::scaled::<~>"),
        ("<(A, B<C>) as T>::f", "<(A, B<~>) as T>::f"),
        ("a::many::<fn(u8) -> !>", "a::many::<~>"),
        # Not understood.
        ("a<b", "a<b"),
        ("f(", "f("),
        ("a<(b>)", "a<(b>)"),
    ],
)
def test_names_are_shortened(name: str, short: str) -> None:
    assert short_name(name, "~") == short


def test_generated_code_keeps_its_name() -> None:
    for name in ("LazyCompile:*f (app.js:1:2)", "py::f<lambda>:/app/x.py"):
        assert frame_name(frame(name, "/tmp/perf-7.map")) == name
        assert frame_name(frame(name, "/app/x.py", language="python")) == name


@given(st.text("ab:_<>(){}[]-, operatonew&*.~#01", max_size=80))
def test_any_text_has_a_short_name(name: str) -> None:
    assert len(short_name(name, "...")) <= len(name) + 3 * name.count("<")
    index = culprit(stack("malloc", name))
    assert index is not None


@pytest.mark.parametrize(
    "unit", ["<", "(", "a<", "f<(", "operator", "::", "_", "<>", "(a)", "x.part.0", " [clone a]", "->"]
)
def test_long_hostile_names_take_no_time(unit: str) -> None:
    start = time.monotonic()
    for end in ("", "x", ">", ")"):
        culprit(stack("malloc", unit * (8192 // len(unit)) + end))
    assert time.monotonic() - start < 5  # minutes where a pattern backtracks
