"""Which functions are probed in which allocator, and in what no allocator is found."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from tracer.heap.allocators import AllocatorImage, AllocShape, find_allocator, shape_of
from tracer.symbols.elf import ElfImage

LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
USER = """
#include <stdlib.h>
int main(int c, char **v) { void *p = malloc(c); p = realloc(p, 9); free(p); p = calloc(c, 3); free(p); return 0; }
"""


def found_in(path: str | Path) -> AllocatorImage | None:
    if not Path(path).exists():
        pytest.skip(f"{path} is not installed")
    with ElfImage.open(str(path)) as image:
        return find_allocator(image, str(path))


def shapes(allocator: AllocatorImage) -> dict[str, AllocShape]:
    return {site.symbol: site.shape for site in allocator.sites}


def compiled(directory: Path, source: str, *command: str) -> Path:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    suffix = ".cpp" if command[0] == "g++" else ".c"
    (directory / f"a{suffix}").write_text(source)
    result = subprocess.run([*command, "-o", "a", f"a{suffix}"], cwd=directory, capture_output=True, text=True)
    if result.returncode:
        pytest.skip(f"cannot be built here: {result.stderr[:200]}")
    return directory / "a"


def test_glibc() -> None:
    allocator = found_in(LIBRARIES / "libc.so.6")
    assert allocator is not None and allocator.name == "glibc malloc"
    found = shapes(allocator)
    assert found["malloc"] is AllocShape.MALLOC
    assert found["calloc"] is AllocShape.CALLOC
    assert found["realloc"] is AllocShape.REALLOC
    assert found["free"] is AllocShape.FREE
    assert found["posix_memalign"] is AllocShape.POSIX_MEMALIGN
    assert not any(name.startswith("_") for name in found)


@pytest.mark.parametrize("library", ["libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"])
def test_allocator_libraries(library: str) -> None:
    allocator = found_in(LIBRARIES / library)
    assert allocator is not None and allocator.name in library
    found = shapes(allocator)
    assert {"malloc", "free", "_Znwm"} <= found.keys()
    assert found["_Znwm"] is AllocShape.NEW
    for site in allocator.sites:
        assert (site.kind == "return") <= (site.shape not in (AllocShape.NEW, AllocShape.FREE, AllocShape.DELETE))
    kinds = {site.kind for site in allocator.sites if site.symbol == "_Znwm"}
    assert kinds in ({"entry", "ret-instruction"}, set())


def test_every_address_is_probed_once_for_each_kind() -> None:
    for library in ("libc.so.6", "libjemalloc.so.2", "libtcmalloc_minimal.so.4", "libmimalloc.so.2"):
        if not (LIBRARIES / library).exists():
            continue
        allocator = found_in(LIBRARIES / library)
        assert allocator is not None
        names: dict[int, set[str]] = defaultdict(set)
        for site in allocator.sites:
            names[site.vaddr].add(site.symbol)
        assert all(len(each) == 1 for each in names.values())


def test_a_delete_that_only_jumps_to_free_is_left_to_free() -> None:
    allocator = found_in(LIBRARIES / "libjemalloc.so.2")
    assert allocator is not None
    assert "_ZdlPv" not in shapes(allocator) and "_Znam" not in shapes(allocator)
    assert "_ZdlPvm" in shapes(allocator)


@pytest.mark.parametrize(
    "path", ["/lib64/ld-linux-x86-64.so.2", str(LIBRARIES / "libstdc++.so.6"), "/usr/bin/redis-server", "/usr/bin/node"]
)
def test_no_allocator(path: str) -> None:
    assert found_in(path) is None


def test_the_loader_of_musl_is_its_libc() -> None:
    allocator = found_in("/lib/ld-musl-x86_64.so.1")
    assert allocator is not None and allocator.name == "musl malloc"
    assert {"malloc", "free", "calloc", "realloc"} <= shapes(allocator).keys()


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc"])
def test_static_programs(tmp_path: Path, compiler: str) -> None:
    allocator = found_in(compiled(tmp_path, USER, compiler, "-O1", "-static"))
    assert allocator is not None and allocator.name == "malloc in a"
    assert set(shapes(allocator).values()) >= {AllocShape.MALLOC, AllocShape.REALLOC, AllocShape.FREE}


def test_libstdcxx_in_a_static_program_is_not_probed(tmp_path: Path) -> None:
    source = "#include <string>\nint main(int c, char **v) { delete new std::string(v[0]); return 0; }"
    allocator = found_in(compiled(tmp_path, source, "g++", "-static"))
    assert allocator is not None
    assert not {AllocShape.NEW, AllocShape.DELETE} & set(shapes(allocator).values())


def test_an_ifunc_is_noted_and_not_probed(tmp_path: Path) -> None:
    source = """
    #include <stddef.h>
    static char pool[4096];
    void *malloc(size_t n) { return pool + n; }
    void free(void *p) { (void)p; }
    static void *mine(size_t n, size_t m) { return pool + n * m; }
    static void *(*choose(void))(size_t, size_t) { return mine; }
    void *calloc(size_t n, size_t m) __attribute__((ifunc("choose")));
    """
    allocator = found_in(compiled(tmp_path, source, "gcc", "-O1", "-shared", "-fPIC", "-ffreestanding"))
    assert allocator is not None and allocator.name == "malloc in a"
    assert "calloc" not in shapes(allocator)
    assert allocator.notes == ("calloc is not traced: it is chosen at run time (IFUNC)",)


def test_a_prefixed_jemalloc_in_a_program(tmp_path: Path) -> None:
    source = """
    #include <stddef.h>
    static char pool[4096];
    __attribute__((noinline)) void *_rjem_malloc(size_t n) { pool[n & 63] = 1; return pool + n; }
    __attribute__((noinline)) void *_rjem_mallocx(size_t n, int f) { pool[f & 63] = 2; return pool + n; }
    __attribute__((noinline)) void _rjem_sdallocx(void *p, size_t n, int f) { pool[n & 63] = f; }
    int main(int c, char **v) { _rjem_sdallocx(_rjem_malloc(c), c, 0); return _rjem_mallocx(c, 0) == 0; }
    """
    allocator = found_in(compiled(tmp_path, source, "gcc", "-O1"))
    assert allocator is not None and allocator.name == "jemalloc"
    assert shapes(allocator) == {
        "_rjem_malloc": AllocShape.MALLOC,
        "_rjem_mallocx": AllocShape.MALLOC,
        "_rjem_sdallocx": AllocShape.FREE,
    }


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("_Znwm", AllocShape.NEW),
        ("_ZnamRKSt9nothrow_t", AllocShape.NEW),
        ("_ZnwmSt11align_val_tRKSt9nothrow_t", AllocShape.NEW),
        ("_ZdlPv", AllocShape.DELETE),
        ("_ZdaPvmSt11align_val_t", AllocShape.DELETE),
        ("_ZnwmPv", None),
        ("_ZdlPvS_", None),
        ("_ZN3FoonwEm", None),
        ("mi_malloc_aligned", AllocShape.MALLOC),
        ("je_aligned_alloc", AllocShape.MEMALIGN),
        ("tc_newarray", AllocShape.NEW),
        ("freeaddrinfo", None),
    ],
)
def test_shapes(name: str, shape: AllocShape | None) -> None:
    assert shape_of(name) is shape
