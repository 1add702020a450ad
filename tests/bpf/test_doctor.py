"""Doctor on this kernel: what it says can be done is what tracing does, and it leaves nothing behind."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Json, Memtrace, run_memtrace
from tests.bpf.kernel import bpf_objects
from tracer.errors import KernelError
from tracer.probes import features, kernel
from tracer.probes.features import PERF_UPROBE, PROCESS_IDS, UPROBE_MULTI, UPROBE_SESSION, bpf_features

pytestmark = pytest.mark.bpf


def diagnosed(*arguments: str) -> Json:
    done = run_memtrace("doctor", "--json", *arguments)
    assert done.stderr == "" and done.report is not None, done.stderr
    assert done.code == (0 if done.report["can_trace"] else 1)
    return done.report


def states(checks: list[Json]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in checks}


def test_this_machine_can_trace_and_everything_was_tried() -> None:
    report = diagnosed()
    found = states(report["checks"])
    assert report["can_trace"] and report["schema"] == "memtrace-doctor/1"
    assert [name for name, state in found.items() if state == "untried"] == []
    for name in ("BPF programs", "ring buffer", PERF_UPROBE, PROCESS_IDS, "sys_enter", "sys_exit", "smaps_rollup"):
        assert found[name] == "ok", report["checks"]


def test_what_it_says_agrees_with_a_trace(start_target: StartTarget) -> None:
    found = states(diagnosed()["checks"])
    target = start_target("leak_malloc")
    with Memtrace(target.pid) as memtrace:
        target.go()
        report = memtrace.stop().required_report()
    assert report["stacks"] and report["probed"]
    assert any("rss_stat" in note for note in report["notes"]) == (found["kmem:rss_stat"] != "ok")


def test_every_feature_is_tried_by_itself_and_leaves_nothing() -> None:
    before = bpf_objects()
    outcomes = bpf_features()
    assert {UPROBE_MULTI, UPROBE_SESSION, PERF_UPROBE} <= outcomes.keys()
    assert all(outcome.state != "untried" for outcome in outcomes.values())
    assert outcomes["BPF programs"].state == "ok" and "compiled" in outcomes["BPF programs"].detail
    assert not any(b"[uprobes" in line and b"rw" in line for line in Path("/proc/self/maps").read_bytes().splitlines())
    assert bpf_objects() >= before


def test_a_uprobe_that_is_attached_but_never_runs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """One in another place than the function that is called."""
    place_of = features._place_of

    def elsewhere(address: int) -> tuple[str, int]:
        path, offset = place_of(address)
        return path, offset - (offset & 0xFFF)

    monkeypatch.setattr(features, "_place_of", elsewhere)
    outcomes = bpf_features()
    assert outcomes[PERF_UPROBE].state == "missing" and "saw 0 of 3 hits" in outcomes[PERF_UPROBE].detail
    assert outcomes[PROCESS_IDS].state == "missing"


def test_a_kernel_that_refuses_links(monkeypatch: pytest.MonkeyPatch) -> None:
    bpf = kernel.bpf

    def refusing(command: int, attributes: bytes) -> int:
        if command == kernel.BPF_LINK_CREATE:
            raise OSError(22, "Invalid argument")
        return bpf(command, attributes)

    monkeypatch.setattr(kernel, "bpf", refusing)
    outcomes = bpf_features()
    assert (outcomes[UPROBE_MULTI].state, outcomes[UPROBE_MULTI].detail) == ("missing", "Invalid argument")
    assert outcomes[UPROBE_SESSION].state == "missing" and outcomes[PERF_UPROBE].state == "ok"


def test_programs_that_cannot_be_loaded_leave_the_rest_untried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise KernelError("the verifier says no")

    monkeypatch.setattr(features, "Program", refuse)
    outcomes = bpf_features()
    assert outcomes["BPF programs"].detail == "the verifier says no"
    assert outcomes["sys_enter"].state == outcomes[UPROBE_MULTI].state == "untried"
    assert outcomes["ring buffer"].state == "ok"


class TestProcess:
    def test_its_places_are_those_that_a_trace_probes(self, start_target: StartTarget) -> None:
        target = start_target("leak_malloc")
        process = diagnosed(str(target.pid))["process"]
        (allocator,) = process["allocators"]
        places = {place["function"]: place for place in allocator["probes"]}
        assert allocator["name"] == "glibc malloc" and "libc.so" in allocator["path"]
        assert places["malloc"]["kinds"] == ["entry", "return"] and places["free"]["emulated"]
        assert all(place["instruction"] for place in places.values())
        with Memtrace(target.pid) as memtrace:
            probed = memtrace.stop().required_report()["probed"]
        assert probed[0].startswith(f"glibc malloc in {allocator['path']}")
        assert {module["path"]: module for module in process["modules"]}[allocator["path"]]["covered"] > 1 << 20

    def test_nothing_is_attached_to_it(self, start_target: StartTarget) -> None:
        """A uprobe would leave a page of the kernel's, and its text would no longer be the file's."""
        target = start_target("leak_malloc")
        maps = Path(f"/proc/{target.pid}/maps")
        before, dirty = maps.read_bytes(), _private_dirty_text(target.pid)
        assert diagnosed(str(target.pid))["can_trace"]
        assert maps.read_bytes() == before and _private_dirty_text(target.pid) == dirty
        assert target.state() == "S" and target.go()

    @pytest.mark.parametrize(
        ("name", "allocator", "program"),
        [
            ("leak_malloc_static", "ok", "64-bit x86-64, statically linked"),
            ("leak_malloc_stripped", "missing", "64-bit x86-64, statically linked"),
            ("leak_malloc_musl", "ok", "64-bit x86-64"),
        ],
    )
    def test_kinds_of_programs(self, start_target: StartTarget, name: str, allocator: str, program: str) -> None:
        checks = diagnosed(str(start_target(name).pid))["process"]["checks"]
        by_name = {check["name"]: check for check in checks}
        assert by_name["allocator"]["state"] == allocator and by_name["program"]["detail"] == program

    def test_text_and_exit_code(self, start_target: StartTarget) -> None:
        target = start_target("leak_malloc")
        done = run_memtrace("doctor", str(target.pid))
        assert done.code == 0 and done.stdout.startswith(f"memtrace can trace process {target.pid}")
        assert "\x1b" not in done.stdout and max(map(len, done.stdout.splitlines())) <= 80

    def test_a_kernel_thread_or_itself(self) -> None:
        if b"(kthreadd)" in Path("/proc/2/stat").read_bytes():
            assert "kernel thread" in run_memtrace("doctor", "2").stderr
        assert run_memtrace("doctor", str(os.getpid())).code == 0, "this test is a process like any other"
        assert json.loads(run_memtrace("doctor", "--json", str(os.getpid())).stdout)["process"]["pid"] == os.getpid()


def _private_dirty_text(pid: int) -> int:
    """KiB of the executable mappings that are no longer the file's."""
    dirty, executable = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            executable = "x" in words[1]
        elif words[0] == "Private_Dirty:" and executable:
            dirty += int(words[1])
    return dirty
