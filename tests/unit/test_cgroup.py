"""Limits of memory cgroups, version 1 and 2, from made-up directories; and one real cgroup where one can be made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.watches import KIB, MIB
from tracer.model.watch import MemoryLimit
from tracer.procfs.cgroup import cgroup_limits, host_limit, read_limits

MEMINFO = b"MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    9000000 kB\nHugePages_Total: 0\n"


def v2(path: Path, *, maximum: str = "max", high: str = "max", current: int = 0, stat: str = "") -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(maximum + "\n")
    (path / "memory.high").write_text(high + "\n")
    (path / "memory.current").write_text(f"{current}\n")
    (path / "memory.stat").write_text(stat)


def mount(point: Path, root: str = "/", kind: str = "cgroup2", options: str = "rw") -> bytes:
    escaped = str(point).replace(" ", "\\040")
    return f"31 23 0:28 {root} {escaped} rw,nosuid shared:9 - {kind} cgroup {options}\n".encode()


class TestVersion2:
    def test_every_level_counts(self, tmp_path: Path) -> None:
        v2(tmp_path / "web", maximum=str(500 * MIB), current=300 * MIB)
        v2(tmp_path / "web" / "a", high=str(200 * MIB), current=120 * MIB, stat="anon 1\nfile 9\nactive_file 0\n")
        limits = cgroup_limits(b"0::/web/a\n", mount(tmp_path))
        assert limits == [
            MemoryLimit("memory.high of cgroup /web/a", 200 * MIB, 80 * MIB),
            MemoryLimit("memory.max of cgroup /web", 500 * MIB, 200 * MIB),
        ]

    def test_what_can_be_reclaimed_is_room(self, tmp_path: Path) -> None:
        stat = f"inactive_file {40 * MIB}\nactive_file {20 * MIB}\nslab_reclaimable {MIB}\nshmem {9 * MIB}\n"
        v2(tmp_path / "a", maximum=str(100 * MIB), current=90 * MIB, stat=stat)
        (limit,) = cgroup_limits(b"0::/a\n", mount(tmp_path))
        assert limit.room == (100 - 90 + 61) * MIB

    def test_room_is_never_below_zero(self, tmp_path: Path) -> None:
        v2(tmp_path / "a", high=str(MIB), current=3 * MIB)
        assert cgroup_limits(b"0::/a\n", mount(tmp_path))[0].room == 0

    def test_a_mount_of_a_part(self, tmp_path: Path) -> None:
        v2(tmp_path / "b", maximum="4096", current=0)
        assert cgroup_limits(b"0::/docker/x/b\n", mount(tmp_path, "/docker/x"))[0].name == "memory.max of cgroup /b"

    @pytest.mark.parametrize("path", [b"/../other", b"/docker/xy", b"/docker/x (deleted)", b"/"])
    def test_a_cgroup_that_cannot_be_seen(self, tmp_path: Path, path: bytes) -> None:
        assert cgroup_limits(b"0::" + path + b"\n", mount(tmp_path, "/docker/x")) == []

    def test_paths_with_blanks_and_bytes(self, tmp_path: Path) -> None:
        point = tmp_path / "a mount"
        name = b"sl\xe9ice:x"
        v2(Path(os.fsdecode(os.fsencode(point) + b"/" + name)), maximum="8192")
        (limit,) = cgroup_limits(b"0::/" + name + b"\n", mount(point))
        assert limit.name == "memory.max of cgroup /sl\\xe9ice:x"


class TestVersion1:
    @pytest.fixture
    def point(self, tmp_path: Path) -> Path:
        directory = tmp_path / "batch"
        directory.mkdir()
        (directory / "memory.limit_in_bytes").write_text(f"{64 * MIB}\n")
        (directory / "memory.usage_in_bytes").write_text(f"{50 * MIB}\n")
        (directory / "memory.stat").write_text(f"cache 9\ntotal_inactive_file {4 * MIB}\ntotal_active_file {MIB}\n")
        (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (tmp_path / "memory.usage_in_bytes").write_text("0\n")
        (tmp_path / "memory.stat").write_text("")
        return tmp_path

    def test_its_own_names_and_no_limit_that_is_none(self, point: Path) -> None:
        mounts = mount(point / "nowhere", kind="cgroup", options="rw,cpu") + mount(
            point, kind="cgroup", options="rw,memory"
        )
        cgroup = b"5:cpu:/\n4:memory:/batch\n1:name=systemd:/a:b\n0::/\n"
        assert cgroup_limits(cgroup, mounts) == [
            MemoryLimit("memory.limit_in_bytes of cgroup /batch", 64 * MIB, (64 - 50 + 5) * MIB)
        ]

    def test_version_2_beside_it_has_no_say(self, point: Path, tmp_path: Path) -> None:
        v2(tmp_path / "unified", maximum="4096")
        mounts = mount(tmp_path / "unified") + mount(point, kind="cgroup", options="rw,memory")
        assert [limit.size for limit in cgroup_limits(b"4:memory:/batch\n0::/\n", mounts)] == [64 * MIB]


@pytest.mark.parametrize("cgroup", [b"", b"x", b"0::", b"::\n", b"4:memory\n"])
@pytest.mark.parametrize("mounts", [b"", b"x\n", b"1 2 3 4 5 - \n", b"- cgroup2 a b\n"])
def test_nonsense_is_no_limit(cgroup: bytes, mounts: bytes) -> None:
    assert cgroup_limits(cgroup, mounts) == []


def test_the_host() -> None:
    assert host_limit(MEMINFO) == MemoryLimit("the host's available memory", 24000000 * KIB, 9000000 * KIB)
    with pytest.raises(KeyError):
        host_limit(b"MemTotal: 1 kB\n")


def test_this_process_has_at_least_the_host_to_run_into() -> None:
    limits = read_limits(os.getpid())
    assert "the host's available memory" in [limit.name for limit in limits]
    assert limits == sorted(limits, key=lambda limit: limit.room)


@pytest.fixture
def own_cgroup() -> Iterator[Path]:
    """A memory cgroup of version 1 or 2, made for this test."""
    for parent in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        directory = parent / f"memtrace-test-{os.getpid()}"
        try:
            directory.mkdir()
        except OSError:
            continue
        if (directory / "cgroup.procs").exists() and (directory / "memory.stat").exists():
            yield directory
            directory.rmdir()
            return
        directory.rmdir()
    pytest.skip("no memory cgroup can be made here")


def test_a_real_limit(own_cgroup: Path) -> None:
    version_1 = own_cgroup / "memory.limit_in_bytes"
    file = version_1 if version_1.exists() else own_cgroup / "memory.max"
    file.write_text(str(256 * MIB))
    with subprocess.Popen(["sleep", "1000"]) as child:
        try:
            (own_cgroup / "cgroup.procs").write_text(str(child.pid))
            limits = [limit for limit in read_limits(child.pid) if own_cgroup.name in limit.name]
            assert [limit.size for limit in limits] == [256 * MIB]
            assert 0 < limits[0].room <= 256 * MIB
        finally:
            child.kill()
