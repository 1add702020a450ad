"""How long a System V segment is: by the kernel's list, by maps, or not known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.harness import Target
from tests.targets.build import MissingCompiler, command
from tracer.model.events import Attached
from tracer.procfs.maps import read_maps
from tracer.procfs.sysvipc import attached_size, parse_segments, segment_size, with_length

LIST = b"""       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime
         0          0   600                131072     8     8      2     0     0     0     0 1792000000
1234567890      32770  1600                 28572     8     9      2  1000  1000     0     0 1792000000
short line
"""


@pytest.fixture(scope="module")
def random_vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    try:
        argv = command("random_vm", tmp_path_factory.mktemp("targets"))
    except MissingCompiler as error:
        pytest.skip(str(error))
    with Target(argv) as target:
        yield target


def test_the_list() -> None:
    assert parse_segments(LIST) == {0: 131072, 32770: 28572}
    assert parse_segments(b"") == {}


def test_segments_of_a_process(random_vm: Target) -> None:
    """The two ways agree, and the length is what is mapped: the target's segments are no whole pages."""
    vmas = [vma for vma in read_maps(random_vm.pid) if vma.path.startswith(b"/SYSV")]
    assert len({vma.inode for vma in vmas}) == 6 < len(vmas)
    for vma in vmas:
        size = segment_size(random_vm.pid, vma.inode)
        assert size is not None and (size + 4095) & -4096 == vma.size
        assert attached_size(random_vm.pid, vma.inode, vma.start) == vma.size
        event = Attached(1, vma.start, vma.inode, "rw-s", 2, False)
        assert with_length(random_vm.pid, event).length == vma.size


def test_a_segment_that_is_not_there(random_vm: Target) -> None:
    assert segment_size(random_vm.pid, 1 << 30) is None
    assert attached_size(random_vm.pid, 1 << 30, 4096) is None
    assert with_length(random_vm.pid, Attached(1, 4096, 1 << 30, "rw-s", 2, False)).length is None


def test_the_list_of_another_namespace_is_not_believed(monkeypatch: pytest.MonkeyPatch, random_vm: Target) -> None:
    segment = next(vma.inode for vma in read_maps(random_vm.pid) if vma.path.startswith(b"/SYSV"))
    assert segment_size(random_vm.pid, segment) is not None
    monkeypatch.setattr(os, "readlink", lambda path: str(Path(path)))
    assert segment_size(random_vm.pid, segment) is None


def test_a_process_that_has_ended() -> None:
    assert with_length(1 << 30, Attached(1, 4096, 5, "rw-s", 2, False)).length is None
