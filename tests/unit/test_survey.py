"""Reading all processes: every process is shown or counted, whatever is in its names and whoever owns it."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bpf.harness import Target, wait_for
from tests.targets.build import MissingCompiler, command
from tests.unit.procs import DENIED, GONE, KERNEL_THREAD, ZOMBIE, FakeMapping, FakeProc, process, rollup, smaps, status
from tracer.errors import UsageError
from tracer.model.usage import ProcessUsage, Sizes, Survey
from tracer.model.vma import Vma, VmaUsage
from tracer.procfs.rollup import parse_rollup, sizes_of_rollup
from tracer.procfs.source import LiveSource
from tracer.procs.cgroup import memory_cgroup
from tracer.procs.classes import classified, live_memory
from tracer.procs.selection import Selection, own_wrappers, pattern
from tracer.procs.survey import ANONYMOUS, Needs, Surveyor

KIB = 1024


def look(files: dict[int, dict[str, bytes | Exception]], needs: Needs | None = None, **selection: object) -> Survey:
    return Surveyor(FakeProc(files), Selection(**selection), needs or Needs()).look()  # type: ignore[arg-type]


def only(survey: Survey) -> ProcessUsage:
    (found,) = survey.processes
    return found


def test_the_sizes_are_those_of_the_rollup() -> None:
    memory = rollup(500, 300, (40, 200), swap=64, swap_pss=32, hugetlb=(2048, 4096))
    found = only(look({7: process(7, memory=memory, vm_size=9000, uid=33, threads=3)}))
    assert found.sizes == Sizes(
        uss=240 * KIB,
        pss=300 * KIB,
        rss=500 * KIB,
        vss=9000 * KIB,
        swap=64 * KIB,
        swap_pss=32 * KIB,
        hugetlb=6144 * KIB,
    )
    assert (found.pid, found.user, found.uid, found.threads) == (7, "www-data", 33, 3)
    assert (found.name, found.command, found.refusal, found.maps) == ("server", "/usr/bin/server", None, None)


def test_what_an_old_kernel_does_not_tell_is_not_known() -> None:
    old = b"400000-500000 ---p 00000000 00:00 0    [rollup]\nRss:   100 kB\nPss:    50 kB\nPrivate_Clean:  10 kB\n"
    fields = parse_rollup(old)
    assert fields is not None
    sizes = sizes_of_rollup(fields, 1)
    assert (sizes.uss, sizes.pss, sizes.swap_pss, sizes.hugetlb) == (10 * KIB, 50 * KIB, None, None)


def test_an_unknown_field_of_a_rollup_is_kept() -> None:
    fields = parse_rollup(rollup() + b"Pss_Moon:             12 kB\n")
    assert fields is not None and fields[b"Pss_Moon"] == 12 * KIB


@pytest.mark.parametrize("data", [b"", b"\n", b"400000-500000 ---p 00000000 00:00 0 [rollup]\n", b"Rss: x kB\n"])
def test_a_rollup_without_memory(data: bytes) -> None:
    assert parse_rollup(data) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_no_error(data: bytes) -> None:
    parse_rollup(data)
    memory_cgroup(data)


def test_only_cheap_files_are_read() -> None:
    source = FakeProc({7: process(7)})
    Surveyor(source, Selection(), Needs()).look()
    assert source.reads == ["status", "cmdline", "smaps_rollup"]


def test_a_kernel_without_rollup() -> None:
    files = process(7, mappings=(FakeMapping(rss=32, pss=20, private_dirty=8), FakeMapping(b"/x", rss=8, pss=4)))
    found = only(look({7: files | {"smaps_rollup": GONE}}))
    assert (found.sizes.pss, found.sizes.uss, found.maps) == (24 * KIB, 16 * KIB, 2)
    assert found.sizes.swap_pss is None


class TestWhoHasNoMemory:
    def test_is_counted(self) -> None:
        survey = look({2: KERNEL_THREAD, 7: process(7), 9: ZOMBIE})
        assert [found.pid for found in survey.processes] == [7]
        assert (survey.kernel_threads, survey.zombies, survey.ended) == (1, 1, 0)

    def test_kernel_threads_of_older_kernels_are_told_by_their_flags(self) -> None:
        files: dict[str, bytes | Exception] = {
            "status": status(b"kthreadd", 2, vm_size=None, kthread=None),
            "stat": b"2 (k (x) thread) S 0 0 0 0 -1 2097216 0 0",
        }
        assert look({2: files}).kernel_threads == 1
        assert look({2: files | {"stat": b"2 (x) Z 0 0 0 0 -1 4 0 0"}}).zombies == 1

    def test_an_exited_leader_is_told_by_another_thread(self) -> None:
        leader = status(b"main", 7, vm_size=None, state="Z (zombie)", threads=3)
        files: dict[str, bytes | Exception] = {
            "status": leader,
            "cmdline": b"",
            "smaps_rollup": GONE,
            "task/7/status": leader,
            "task/8/status": GONE,
            "task/9/status": status(b"worker", 9, tgid=7, vm_size=400, threads=3),
            "task/9/smaps_rollup": rollup(90, 80, (0, 70)),
        }
        found = only(look({7: files}))
        assert (found.pid, found.name, found.sizes.pss, found.command) == (7, "main", 80 * KIB, "[main]")

    @pytest.mark.parametrize("file", ["status", "smaps_rollup", "smaps"])
    def test_one_that_ends_meanwhile_is_counted(self, file: str) -> None:
        files = process(7) | {"smaps": GONE}
        survey = look({6: process(6), 7: files | {"smaps_rollup": GONE, file: GONE}})
        assert [found.pid for found in survey.processes] == [6] and survey.ended == 1

    def test_one_that_gave_up_its_memory_meanwhile(self) -> None:
        assert look({7: process(7) | {"smaps_rollup": GONE, "smaps": b""}}).ended == 1


class TestUnreadable:
    def test_shows_what_everybody_may_see(self) -> None:
        survey = look({7: process(7, denied=True, vm_size=800, swap=12, hugetlb=2048), 8: process(8)})
        found = survey.processes[0]
        assert found.sizes == Sizes(rss=160 * KIB, vss=800 * KIB, swap=12 * KIB, hugetlb=2048 * KIB)
        assert found.refusal == DENIED.cause and survey.unreadable == (found,)

    def test_a_process_of_which_nothing_may_be_seen_is_listed_all_the_same(self) -> None:
        survey = look({7: {"status": DENIED}})
        assert only(survey).sizes == Sizes() and survey.unreadable

    def test_is_not_in_views_of_its_mappings(self) -> None:
        survey = look({7: process(7, denied=True)}, Needs(parts="mapping"))
        assert survey.unreadable and only(survey).parts == ()

    def test_that_a_filter_cannot_judge_is_counted(self) -> None:
        hidden: dict[str, bytes | Exception] = {"status": DENIED}
        for files in (process(7, denied=True), hidden):
            survey = look({7: files}, mapping=re.compile("x"))
            assert survey.processes == () and [found.pid for found in survey.unreadable] == [7]

    def test_a_hidden_command_line_leaves_the_name(self) -> None:
        assert only(look({7: process(7) | {"cmdline": DENIED}})).command == "[server]"


class TestNamesOfMappings:
    """What makes smem lose a process, or the whole report."""

    NAMES = (
        b"/tmp/caf\xe9.so",
        b"/x/ends 12 kB",
        b"/with blank",
        b"/with other blank",
        b"/memfd:zoo (deleted)",
        b"/dev/zero (deleted)",
        rb"/new\012line",
        b"/Rss: 5 kB",
        b"/" + b"long" * 1000,
        b"/VmFlags: rd",
        b"[heap]",
        b"",
    )

    def test_are_kept_whole_and_apart(self) -> None:
        mappings = tuple(FakeMapping(name, rss=8, pss=4 + i, private_dirty=4) for i, name in enumerate(self.NAMES))
        found = only(look({7: process(7, mappings=mappings)}, Needs(parts="mapping")))
        labels = [name.decode("utf-8", "surrogateescape") or ANONYMOUS for name in self.NAMES]
        assert [(part.label, part.count, part.sizes.pss) for part in found.parts] == [
            (label, 1, (4 + i) * KIB) for i, label in enumerate(labels)
        ]
        assert found.sizes.pss == sum(4 + i for i in range(len(labels))) * KIB and found.maps == len(labels)

    def test_of_equal_names_are_summed(self) -> None:
        found = only(look({7: process(7, mappings=(FakeMapping(b"/x"), FakeMapping(), FakeMapping(b"/x")))}, MAPPING))
        assert [(part.label, part.count) for part in found.parts] == [("/x", 2), (ANONYMOUS, 1)]

    def test_select_mappings_and_processes(self) -> None:
        files = {
            7: process(7, mappings=(FakeMapping(b"/lib/libc.so.6", pss=20, rss=30), FakeMapping(pss=9))),
            8: process(8, mappings=(FakeMapping(b"[heap]"),)),
        }
        found = only(look(files, mapping=re.compile(r"libc\.so")))
        assert (found.pid, found.sizes.pss, found.sizes.rss, found.maps) == (7, 20 * KIB, 30 * KIB, 1)
        assert found.sizes.vss == 64 * KIB


MAPPING = Needs(parts="mapping")


SELECTED = {
    5: process(5, b"redis-server", b"/usr/bin/redis-server *:6379", uid=33),
    6: process(6, b"sh", b"sh -c run-redis", uid=0),
    7: process(7, b"python3", b"python3 /srv/app.py", uid=1000),
}


class TestSelection:
    @pytest.mark.parametrize(
        ("selection", "pids"),
        [
            ({}, [5, 6, 7]),
            ({"pids": frozenset({7, 99})}, [7]),
            ({"process": re.compile("redis")}, [5, 6]),
            ({"process": re.compile("^redis")}, [5]),
            ({"process": re.compile(r"app\.py$")}, [7]),
            ({"user": re.compile("^www")}, [5]),
            ({"user": re.compile("root|ann"), "process": re.compile("redis")}, [6]),
            ({"itself": frozenset({5})}, [6, 7]),
            ({"wrappers": frozenset({6})}, [5, 6, 7]),
            ({"wrappers": frozenset({6}), "process": re.compile("redis")}, [5]),
            ({"wrappers": frozenset({6}), "process": re.compile("redis"), "pids": frozenset({6})}, [6]),
            ({"process": re.compile("no such")}, []),
        ],
    )
    def test_selects(self, selection: dict[str, object], pids: list[int]) -> None:
        assert [found.pid for found in look(SELECTED, None, **selection).processes] == pids

    def test_memtrace_itself_is_left_out_and_that_is_told(self) -> None:
        assert look(SELECTED, itself=frozenset({5})).itself
        assert not look(SELECTED, itself=frozenset({5}), pids=frozenset({6})).itself

    def test_who_does_not_match_is_not_read(self) -> None:
        source = FakeProc(SELECTED)
        Surveyor(source, Selection(user=re.compile("nobody")), Needs()).look()
        assert set(source.reads) == {"status"}

    def test_patterns_find_bytes_that_are_no_utf8(self) -> None:
        files = {7: process(7, command=b"run caf\xe9")}
        assert look(files, process=re.compile("caf\udce9$")).processes

    @pytest.mark.parametrize("text", ["(", "[a", "*", "(?P<x>a)(?P<x>b)", "a{99999999999}"])
    def test_what_is_no_pattern_is_a_usage_error(self, text: str) -> None:
        with pytest.raises(UsageError, match="--process") as error:
            pattern(text, "--process")
        assert error.value.exit_code == 2


class TestWrappers:
    """Commands that run memtrace have its pattern in their command lines, and are not what it looks for."""

    ARGUMENTS = ("ps", "-P", "redis server")

    def source(self, *commands: bytes) -> FakeProc:
        """A chain of processes, the first one being init, the last one memtrace."""
        files: dict[int, dict[str, bytes | Exception]] = {}
        for pid, line in enumerate(commands, 1):
            files[pid] = {"status": status(b"x", pid, ppid=pid - 1), "cmdline": line + b"\0"}
        return FakeProc(files)

    @pytest.mark.parametrize(
        "wrapper",
        [
            b"sudo\0memtrace\0ps\0-P\0redis server",
            b"timeout\x005\0memtrace\0ps\0-P\0redis server",
            b"sh\0-c\0memtrace ps -P 'redis server' | less",
            b"watch\0memtrace ps -P redis\\ server; memtrace ps -P 'redis server'",
        ],
    )
    def test_are_found(self, wrapper: bytes) -> None:
        source = self.source(b"init", wrapper, b"/usr/bin/python3\0/usr/bin/memtrace\0ps\0-P\0redis server")
        assert own_wrappers(source, self.ARGUMENTS, pid=3) == {2}

    def test_chain(self) -> None:
        sudo = b"sudo\0memtrace\0ps\0-P\0redis server"
        source = self.source(b"init", b"bash", sudo, sudo, b"memtrace\0ps\0-P\0redis server")
        assert own_wrappers(source, self.ARGUMENTS, pid=5) == {3, 4}

    @pytest.mark.parametrize("other", [b"bash", b"redis server", b"vi\0redis server", b"sudo\0ps\0-P", b""])
    def test_others_are_not(self, other: bytes) -> None:
        source = self.source(b"init", other, b"memtrace\0ps\0-P\0redis server")
        assert own_wrappers(source, self.ARGUMENTS, pid=3) == frozenset()

    def test_a_parent_that_is_gone_or_a_loop_ends_the_chain(self) -> None:
        source = FakeProc({3: {"status": status(b"x", 3, ppid=2)}, 2: {"status": status(b"x", 2, ppid=3)}})
        assert own_wrappers(source, self.ARGUMENTS, pid=3) == frozenset()
        assert own_wrappers(FakeProc(), self.ARGUMENTS, pid=3) == frozenset()
        assert own_wrappers(FakeProc(), (), pid=3) == frozenset()


class TestDetails:
    @pytest.mark.parametrize(
        ("name", "exe", "command", "program"),
        [
            (b"redis-server", b"/usr/bin/redis-check-rdb", b"redis-server", "redis-server"),
            (b"a-name-of-15-by", b"/opt/a-name-of-15-bytes (deleted)", b"x", "a-name-of-15-bytes"),
            (b"a-name-of-15-by", b"/usr/bin/python3", b"python3 /srv/a-name-of-15-bytes.py", "a-name-of-15-bytes.py"),
            (b"a-name-of-15-by", b"/usr/bin/python3", b"python3 other", "a-name-of-15-by"),
        ],
    )
    def test_program(self, name: bytes, exe: bytes, command: bytes, program: str) -> None:
        files = process(7, name, command) | {"exe": exe}
        assert only(look({7: files}, Needs(program=True))).program == program

    def test_program_of_an_unreadable_process_is_its_name(self) -> None:
        found = only(look({7: process(7, b"a-name-of-15-by", denied=True, command=b"x")}, Needs(program=True)))
        assert found.program == "a-name-of-15-by"

    def test_maps_cgroup_and_start(self) -> None:
        files = process(7, mappings=(FakeMapping(),) * 3, cgroup=b"0::/system.slice/x.service\n", start=77)
        found = only(look({7: files}, Needs(maps=True, cgroup=True, start=True)))
        assert (found.maps, found.cgroup, found.start) == (3, "/system.slice/x.service", 77)

    @pytest.mark.parametrize(
        ("data", "path"),
        [
            (b"0::/a.slice/b\n", "/a.slice/b"),
            (b"9:name=systemd:/x\n4:memory:/docker/ab:c\n0::/y\n", "/docker/ab:c"),
            (b"4:cpu,memory:/both\n", "/both"),
            (b"4:cpu:/only\n", ""),
            (b"0::/caf\xe9\n", "/caf\udce9"),
            (b"", ""),
            (b"nonsense\n0:\n", ""),
        ],
    )
    def test_memory_cgroup(self, data: bytes, path: str) -> None:
        assert memory_cgroup(data) == path

    def test_classes(self) -> None:
        heap, text = FakeMapping(b"[heap]", pss=9), FakeMapping(b"/bin/x", perms="r-xp", pss=3)
        found = only(look({7: process(7, mappings=(text, heap, text))}, Needs(parts="class")))
        assert {part.label: (part.count, part.sizes.pss) for part in found.parts} == {
            "text": (2, 6 * KIB),
            "heap": (1, 9 * KIB),
        }

    def test_every_mapping_has_a_class(self) -> None:
        usages = [VmaUsage(Vma(i << 12, i + 1 << 12, "rw-p", 0, "00:00", 0, b""), 0) for i in range(1, 5)]
        assert [usage for _, usage in classified(usages)] == usages


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A process that does nothing, and shares its file's pages with no other: a static program with some heap."""
    try:
        argv = command("leak_malloc_static", tmp_path_factory.mktemp("target"))
    except MissingCompiler as error:
        pytest.skip(str(error))
    with Target(argv) as target:
        target.go()
        wait_for(target.is_waiting, "it waits")
        yield target.pid


class TestLive:
    def test_equals_the_kernels_own_sums_to_the_kib(self, quiet: int) -> None:
        found = only(Surveyor(LiveSource(), Selection(pids=frozenset({quiet})), Needs(maps=True)).look())
        fields = parse_rollup(Path(f"/proc/{quiet}/smaps_rollup").read_bytes())
        assert fields is not None
        sizes = found.sizes
        assert (sizes.rss, sizes.pss, sizes.swap) == (fields[b"Rss"], fields[b"Pss"], fields[b"Swap"])
        assert sizes.uss == fields[b"Private_Clean"] + fields[b"Private_Dirty"]
        assert found.maps == Path(f"/proc/{quiet}/maps").read_bytes().count(b"\n")

    @pytest.mark.skipif(shutil.which("smem") is None, reason="smem is not installed")
    def test_equals_smem_where_that_is_right(self, quiet: int) -> None:
        """Not in PSS, of which smem loses a part of a KiB for each mapping, and with vsyscall in VSS."""
        listed = subprocess.run(
            ["smem", "-H", "-c", "pid swap uss rss pss vss maps"], capture_output=True, text=True, check=True
        ).stdout
        rows = {int(row[0]): row[1:] for line in listed.splitlines() if (row := [int(word) for word in line.split()])}
        swap, uss, rss, pss, vss, maps = rows[quiet]
        found = only(Surveyor(LiveSource(), Selection(pids=frozenset({quiet})), Needs(maps=True)).look())
        sizes = found.sizes
        assert (sizes.swap, sizes.uss, sizes.rss, found.maps) == (swap * KIB, uss * KIB, rss * KIB, maps)
        assert sizes.pss is not None and 0 <= sizes.pss - pss * KIB <= maps * KIB
        assert sizes.vss is not None and vss * KIB - sizes.vss in (0, 4 * KIB)

    @pytest.mark.skipif(shutil.which("smem") is None, reason="smem is not installed")
    def test_by_mapping_equals_smem(self, quiet: int) -> None:
        found = only(Surveyor(LiveSource(), Selection(pids=frozenset({quiet})), MAPPING).look())
        heap = next(part for part in found.parts if part.label == "[heap]")
        columns = ["-c", "pid rss pss uss", "-M", r"^\[heap\]$"]
        listed = subprocess.run(["smem", "-H", *columns], capture_output=True, text=True, check=True).stdout
        rows = {row[0]: row[1:] for line in listed.splitlines() if (row := [int(word) for word in line.split()])}
        assert [heap.sizes.rss, heap.sizes.pss, heap.sizes.uss] == [size * KIB for size in rows[quiet]]

    def test_names_that_break_smem(self) -> None:
        """A process that maps a file with a name of no known encoding, and one whose name looks like a value."""
        with tempfile.TemporaryDirectory() as directory:
            names = [os.fsencode(directory) + b"/" + name for name in (b"caf\xe9", b"ends 12 kB", b"a\nb")]
            maps = []
            for name in names:
                with open(name, "wb+") as file:
                    file.truncate(mmap.PAGESIZE)
                    maps.append(mmap.mmap(file.fileno(), mmap.PAGESIZE))
            try:
                for mapped in maps:
                    mapped[0] = 1
                found = only(Surveyor(LiveSource(), Selection(pids=frozenset({os.getpid()})), MAPPING).look())
            finally:
                for mapped in maps:
                    mapped.close()
        parts = {part.label: part.sizes.rss for part in found.parts}
        for name in names:
            label = name.replace(b"\n", rb"\012").decode("utf-8", "surrogateescape")
            assert parts[label] == mmap.PAGESIZE

    def test_the_parts_of_a_live_process_add_up(self, quiet: int) -> None:
        selection = Selection(pids=frozenset({quiet}))
        classes = only(Surveyor(LiveSource(), selection, Needs(parts="class"), live_memory).look())
        mappings = only(Surveyor(LiveSource(), selection, MAPPING).look())
        for found in (classes, mappings):
            assert sum(part.sizes.rss or 0 for part in found.parts) == found.sizes.rss
        assert classes.sizes == mappings.sizes

    def test_a_smaps_of_our_own_is_as_the_kernel_writes_it(self) -> None:
        """What the other tests stand on: the same lines as in a real file."""
        ours = smaps(FakeMapping(b"/x")).splitlines()
        real = Path("/proc/self/smaps").read_bytes().splitlines()
        assert {line.split(b":")[0] for line in ours[1:]} <= {line.split(b":")[0] for line in real}
        assert len(ours[1]) == len(real[1]), "digits stand where the kernel puts them"
