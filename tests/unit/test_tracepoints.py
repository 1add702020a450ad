"""Whether a kernel's rss_stat is the one that bpf/rss.bpf.c reads, and what is said where it is not."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tracer.errors import KernelError
from tracer.model.report import RssSource
from tracer.probes import kernel, tracepoints
from tracer.probes.program import Program
from tracer.probes.tracepoints import Tracepoints, attach_tracepoints, rss_stat_layout_matches

# events/kmem/rss_stat/format of Linux 6.18 on x86-64.
FORMAT = """\
name: rss_stat
ID: 646
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:unsigned int mm_id;	offset:8;	size:4;	signed:0;
	field:unsigned int curr;	offset:12;	size:4;	signed:0;
	field:int member;	offset:16;	size:4;	signed:1;
	field:long size;	offset:24;	size:8;	signed:1;

print fmt: "mm_id=%u curr=%d type=%s size=%ldB", REC->mm_id, REC->curr, __print_symbolic(REC->member, \
{ 0, "MM_FILEPAGES" }, { 1, "MM_ANONPAGES" }, { 2, "MM_SWAPENTS" }, { 3, "MM_SHMEMPAGES" }), REC->size
"""
MEMBER, SIZE = (
    "\tfield:int member;\toffset:16;\tsize:4;\tsigned:1;\n",
    "\tfield:long size;\toffset:24;\tsize:8;\tsigned:1;\n",
)


def test_the_layout_of_6_18() -> None:
    assert rss_stat_layout_matches(FORMAT)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "common_pid;	offset:4;	size:4;	signed:1;\n",
            "{};	offset:4;	size:4;	signed:1;\n",
            id="other header",
        ),
        pytest.param(SIZE, SIZE + "\tfield:int nid;\toffset:32;\tsize:4;\tsigned:1;\n", id="a field behind"),
        pytest.param("int member", "enum mm_counter member", id="another name of a type of that size"),
        pytest.param(MEMBER + SIZE, SIZE + MEMBER, id="another order of the lines"),
    ],
)
def test_what_does_not_matter(old: str, new: str) -> None:
    assert old in FORMAT
    assert rss_stat_layout_matches(FORMAT.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("offset:24", "offset:20", id="size stands elsewhere"),
        pytest.param("offset:24;	size:8", "offset:24;	size:4", id="size is shorter"),
        pytest.param("offset:8;", "offset:4;", id="mm_id stands elsewhere"),
        pytest.param("offset:12;", "offset:40;", id="curr stands elsewhere"),
        pytest.param("offset:12;	size:4", "offset:12;	size:1", id="curr is a bool"),
        pytest.param("offset:16;	size:4", "offset:16;	size:8", id="member is longer"),
        pytest.param("long size", "long pages", id="size is called otherwise"),
        pytest.param(MEMBER, "", id="no member"),
    ],
)
def test_what_does(old: str, new: str) -> None:
    assert old in FORMAT
    assert not rss_stat_layout_matches(FORMAT.replace(old, new))


@pytest.mark.parametrize("text", ["", "name: rss_stat", FORMAT[: FORMAT.index("field:long")]])
def test_what_is_no_format(text: str) -> None:
    assert not rss_stat_layout_matches(text)


class FakeProgram:
    """Loads anything but what is refused."""

    def __init__(self, refused: str = "", *, has_call_events: bool = False) -> None:
        self.refused = refused
        self.has_call_events = has_call_events

    def load(self, function: str, kind: str, attach_type: int = -1) -> int:
        if function == self.refused:
            raise KernelError(f"the kernel refused the BPF program {function}")
        return hash((function, kind)) & 0xFFFF

    def set_tail_call(self, array: str, program_fd: int) -> None:
        pass


class Kernel:
    """Attaches anything but what it lacks, and keeps the order."""

    def __init__(self, *lacks: str) -> None:
        self.lacks = lacks
        self.attached: list[str] = []

    def open(self, name: str) -> int:
        self.need(name)
        self.attached.append(name)
        return os.open(os.devnull, os.O_RDONLY)

    def need(self, name: str) -> None:
        if name in self.lacks:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


Attach = Callable[..., Tracepoints]


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch) -> Attach:
    def attach_to(
        machine: Kernel,
        described: str = FORMAT,
        refused: str = "",
        wanted: RssSource = "rss-stat",
        *,
        has_call_events: bool = False,
    ) -> Tracepoints:
        def event() -> tuple[str, int]:
            machine.need("tracefs")
            return described, 646

        monkeypatch.setattr(tracepoints, "rss_stat_event", event)

        monkeypatch.setattr(kernel, "open_tracefs", lambda: os.open("/", os.O_RDONLY))
        monkeypatch.setattr(
            tracepoints, "call_event_ids", lambda _tracefs, name: (f"sys_enter_{name}", f"sys_exit_{name}")
        )
        monkeypatch.setattr(kernel, "open_raw_tracepoint", lambda name, _fd: machine.open(name))
        monkeypatch.setattr(kernel, "open_tracepoint", lambda _fd, number: machine.open(f"event {number}"))
        program = FakeProgram(refused, has_call_events=has_call_events)
        return attach_tracepoints(cast(Program, program), wanted)

    return attach_to


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_all_are_attached_and_given_back(attach: Attach) -> None:
    before, machine = open_descriptors(), Kernel()
    attached = attach(machine)
    assert attached.rss_source == "rss-stat" and attached.missing == []
    assert {"sys_enter", "sys_exit", "sched_process_exec", "event 646", "page_fault_user"} <= set(machine.attached)
    assert machine.attached.index("sys_exit") < machine.attached.index("sys_enter")
    assert machine.attached.index("page_fault_user") < machine.attached.index("event 646")
    assert open_descriptors() - before == len(machine.attached)
    attached.close()
    attached.close()
    assert open_descriptors() == before


def test_where_single_system_calls_have_events_no_other_call_pays(attach: Attach) -> None:
    before, machine = open_descriptors(), Kernel()
    attached = attach(machine, has_call_events=True)
    assert not {"sys_enter", "sys_exit"} & set(machine.attached)
    for name in ("mmap", "munmap", "mremap", "brk", "madvise", "mprotect", "pkey_mprotect", "shmat", "shmdt"):
        entry, leave = (machine.attached.index(f"event sys_{side}_{name}") for side in ("enter", "exit"))
        assert leave < entry
    attached.close()
    attached.close()
    for thread in threading.enumerate():
        if thread.name == "detaching":
            thread.join()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("lacks", "words"),
    [("tracefs", "rss_stat cannot be used here (No such file"), ("event 646", "rss_stat cannot be used here (No such")],
)
def test_a_kernel_without_rss_stat_is_traced_all_the_same(attach: Attach, lacks: str, words: str) -> None:
    machine = Kernel(lacks)
    attached = attach(machine)
    assert attached.rss_source == "faults" and "sys_enter" in machine.attached
    (missing,) = attached.missing
    assert words in missing and "page faults stand in for it" in missing
    attached.close()


def test_an_unknown_layout_is_not_read(attach: Attach) -> None:
    machine = Kernel()
    attached = attach(machine, FORMAT.replace("offset:24", "offset:20"))
    assert attached.rss_source == "faults" and "event 646" not in machine.attached
    assert "its layout is unknown" in attached.missing[0]
    attached.close()


def test_faults_without_an_address(attach: Attach) -> None:
    attached = attach(Kernel("page_fault_user"))
    assert attached.rss_source == "rss-stat" and "page_fault_user is missing" in attached.missing[0]
    attached.close()


def test_fault_programs_that_the_kernel_refuses(attach: Attach) -> None:
    attached = attach(Kernel(), refused="on_page_fault")
    assert attached.rss_source == "none" and "on_page_fault" in attached.missing[0]
    attached.close()


def test_an_rss_program_that_the_kernel_refuses(attach: Attach) -> None:
    attached = attach(Kernel(), refused="on_rss_stat")
    assert attached.rss_source == "faults" and "on_rss_stat" in attached.missing[0]
    attached.close()


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("rss-stat", {"event 646", "page_fault_user"}), ("faults", {"page_fault_user"}), ("none", set())],
)
def test_the_source_of_rss_changes_can_be_chosen(attach: Attach, wanted: RssSource, expected: set[str]) -> None:
    machine = Kernel()
    attached = attach(machine, wanted=wanted)
    assert attached.rss_source == wanted and attached.missing == []
    assert {"event 646", "page_fault_user"} & set(machine.attached) == expected
    attached.close()


def test_without_the_system_calls_nothing_is_left_attached(attach: Attach) -> None:
    before = open_descriptors()
    machine = Kernel("sys_enter")
    with pytest.raises(KernelError, match="sys_enter cannot be attached"):
        attach(machine)
    assert open_descriptors() == before


def test_the_format_is_read_below_tracefs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "events/kmem/rss_stat"
    place.mkdir(parents=True)
    (place / "format").write_text(FORMAT)
    (place / "id").write_text("646\n")
    before = open_descriptors()
    monkeypatch.setattr(kernel, "open_tracefs", lambda: os.open(tmp_path, os.O_RDONLY))
    assert tracepoints.rss_stat_event() == (FORMAT, 646)
    (place / "id").unlink()
    with pytest.raises(FileNotFoundError):
        tracepoints.rss_stat_event()
    assert open_descriptors() == before
