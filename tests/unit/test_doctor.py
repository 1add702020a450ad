"""What doctor says of machines and processes: made-up ones against golden text, this one without any rights."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.cli import main as main_module
from tracer.doctor import machine, rights, target
from tracer.doctor.machine import can_trace, machine_checks
from tracer.doctor.rights import rights_checks
from tracer.doctor.target import architecture, examine
from tracer.errors import KernelError, PrivilegeError
from tracer.heap.allocators import AllocatorImage, AllocShape, ProbeSite, find_allocator
from tracer.heap.discovery import FoundImage
from tracer.heap.explain import probe_places
from tracer.heap.placement import is_emulated, place
from tracer.model.health import AllocatorPlan, Check, ModuleCoverage, Outcome, ProbePlace, State, TargetHealth, tried
from tracer.model.vma import Vma
from tracer.procfs import features
from tracer.report.doctor import doctor_lines, verdict_lines, write_doctor_json
from tracer.report.safe import Page, cells
from tracer.symbols.elf import ElfImage
from tracer.unwind.coverage import covered_bytes, module_coverage
from tracer.unwind.image import Segment
from tracer.unwind.rules import RULE_END, RULE_NONE, Cfa, Reason, encode, unsupported
from tracer.unwind.tables import ImageTable

GOLDEN = Path(__file__).parent / "golden"
ROOT = Path(__file__).resolve().parents[2]
LIBC = Path("/usr/lib/x86_64-linux-gnu/libc.so.6")
HOSTILE = "\x1b[2J\r\nevil \u202e \udcff"


def check(name: str, state: State = "ok", detail: str = "", *, group: str = "tracing", required: bool = False) -> Check:
    return Check(group, name, Outcome(state, detail), "something is lost", "apt install it", required)


CHECKS = (
    check("kernel", detail="6.18.0 x86_64", group="machine", required=True),
    check("CAP_SYS_ADMIN", group="rights", required=True),
    check("bcc", detail="0.26.0 in /usr/lib/python3/dist-packages/bcc", required=True),
    Check(
        "tracing",
        "uprobe session",
        Outcome("missing", "Invalid argument"),
        "uprobe-multi is not trusted, and every call costs a return probe",
        "a newer kernel: 6.13",
    ),
    check("kmem:rss_stat", "untried", "needs the rights above"),
)
PLACES = (
    ProbePlace("malloc", ("entry", "return"), 0x98937, 7, "push r12", True),
    ProbePlace("reallocarray", ("entry", "return"), 0x9A7E0, 0, "mov rax, rsi", False, "nothing comes early enough"),
    ProbePlace("_Znwm", ("entry",), 0xADE37, 7, "ja 0xade99", True),
    ProbePlace("_Znwm", ("ret-instruction",), 0xADDDA, -86, "ret", False, "a return cannot be emulated"),
    ProbePlace("_Znwm", ("ret-instruction",), 0xADEDA, 60, "ret", False, "a return cannot be emulated"),
)
TARGET = TargetHealth(
    4711,
    "/usr/bin/redis-server *:6379",
    (
        check("program", detail="64-bit x86-64", group="process", required=True),
        check("allocator", detail="jemalloc in /usr/lib/x86_64-linux-gnu/libjemalloc.so.2", group="process"),
    ),
    (AllocatorPlan("jemalloc", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", PLACES, ("free is chosen at run time",)),),
    (
        ModuleCoverage("/usr/bin/redis-server", 1_142_461, 1_142_211),
        ModuleCoverage("/usr/lib/x86_64-linux-gnu/libcrypto.so.3", 2_606_761, 2_351_109, reasons=Counter({"x": 2})),
        ModuleCoverage("/opt/odd.so", 9000, 0, "no .eh_frame"),
    ),
)


def render(checks: tuple[Check, ...] = CHECKS, about: TargetHealth | None = None, width: int = 80) -> str:
    lines = doctor_lines(checks, about, Page(width, ascii_only=width == 60))
    return "".join(f"{text}\n" for text, _ in lines)


def assert_golden(text: str, name: str) -> None:
    path = GOLDEN / name
    if os.environ.get("MEMTRACE_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_golden(width: int) -> None:
    text = render(about=TARGET, width=width)
    assert max(map(cells, text.splitlines())) <= width
    assert_golden(text, f"doctor_{width}.txt")


def test_hostile_text_does_nothing() -> None:
    plan = AllocatorPlan(HOSTILE, HOSTILE, (replace(PLACES[0], function="m\x1b[2J", instruction=HOSTILE),), (HOSTILE,))
    evil = replace(TARGET, command=HOSTILE, allocators=(plan,), modules=(ModuleCoverage(HOSTILE, 9, 1, HOSTILE),))
    text = render((check("x", "missing", HOSTILE),), evil)
    assert all(line.isprintable() for line in text.splitlines())
    out = io.StringIO()
    write_doctor_json(CHECKS, evil, True, out)
    assert json.loads(out.getvalue().encode())["process"]["allocators"][0]["probes"]


class TestVerdict:
    def first(self, *checks: Check, about: TargetHealth | None = None) -> tuple[str, str]:
        return next(verdict_lines(checks, about, Page(200)))

    def test_all_is_well(self) -> None:
        assert self.first(check("a")) == ("memtrace can trace here", "good")

    def test_what_is_missing_and_does_no_harm(self) -> None:
        assert self.first(check("a", "missing")) == ("memtrace can trace here; 1 thing would make it better", "good")

    @pytest.mark.parametrize("state", ["missing", "untried"])
    def test_what_prevents_is_named(self, state: State) -> None:
        bad = check("bcc", state, required=True)
        assert self.first(bad) == ("memtrace cannot trace here: bcc", "bad") and not can_trace([bad])

    def test_of_a_process(self) -> None:
        poor = replace(TARGET, checks=(check("program", "missing", required=True),))
        assert self.first(check("a"), about=poor) == ("memtrace cannot trace process 4711: program", "bad")
        assert not poor.is_traceable and TARGET.is_traceable


def test_json() -> None:
    out = io.StringIO()
    write_doctor_json(CHECKS, TARGET, True, out)
    document = json.loads(out.getvalue())
    assert (document["schema"], document["can_trace"]) == ("memtrace-doctor/1", True)
    assert [one["state"] for one in document["checks"]] == ["ok", "ok", "ok", "missing", "untried"]
    place = document["process"]["allocators"][0]["probes"][0]
    assert (place["function"], place["distance"], place["emulated"]) == ("malloc", 7, True)
    assert document["process"]["modules"][2] == {
        "path": "/opt/odd.so", "code": 9000, "covered": 0, "problem": "no .eh_frame", "reasons": {},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("error", "detail"),
    [(OSError(22, "Invalid argument"), "Invalid argument"), (KernelError("it refuses"), "it refuses")],
)
def test_what_fails_is_missing_with_its_reason(error: Exception, detail: str) -> None:
    def attempt() -> str:
        raise error

    assert tried(attempt) == Outcome("missing", detail)
    assert tried(lambda: "detail") == Outcome("ok", "detail")


class TestRights:
    """A /proc and /sys of our own."""

    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        for path, text in {
            "proc/self/status": "Name:\tx\nCapEff:\t000001ffffffffff\n",
            "proc/sys/kernel/perf_event_paranoid": "2\n",
            "proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
            "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
        }.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(text)
        (tmp_path / "proc/self/ns").mkdir()
        for name in ("user", "pid"):
            os.symlink(f"/proc/self/ns/{name}", tmp_path / "proc/self/ns" / name)
        return tmp_path

    def states(self, root: Path) -> dict[str, State]:
        return {found.name: found.outcome.state for found in rights_checks(root)}

    def test_capabilities(self, root: Path) -> None:
        assert self.states(root)["CAP_SYS_ADMIN"] == self.states(root)["CAP_SYS_PTRACE"] == "ok"
        (root / "proc/self/status").write_text("CapEff:\t0000000000200000\n")
        assert (self.states(root)["CAP_SYS_ADMIN"], self.states(root)["CAP_SYS_PTRACE"]) == ("ok", "missing")
        (root / "proc/self/status").write_text("CapEff:\t0000000000000000\n")
        assert not can_trace(list(rights_checks(root)))

    @pytest.mark.parametrize(
        ("text", "state"),
        [
            ("[none] integrity confidentiality", "ok"),
            ("none [integrity] confidentiality", "ok"),
            ("none integrity [confidentiality]", "missing"),
        ],
    )
    def test_lockdown(self, root: Path, text: str, state: State) -> None:
        (root / "sys/kernel/security/lockdown").write_text(text + "\n")
        assert self.states(root)["kernel lockdown"] == state

    def test_what_is_not_there_forbids_nothing(self, root: Path) -> None:
        (root / "sys/kernel/security/lockdown").unlink()
        (root / "proc/sys/kernel/perf_event_paranoid").unlink()
        assert self.states(root)["kernel lockdown"] == self.states(root)["perf_event_paranoid"] == "ok"

    def test_namespaces_of_a_container(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(rights, "_INITIAL_PID", os.stat("/proc/self/ns/pid").st_ino)
        monkeypatch.setattr(rights, "_INITIAL_USER", 1)
        states = self.states(root)
        assert (states["initial pid namespace"], states["initial user namespace"]) == ("ok", "missing")

    def test_another_machine(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tracer.doctor.rights.platform.machine", lambda: "riscv64")
        assert self.states(root)["kernel"] == "missing"


class TestMachine:
    def test_without_rights_bpf_is_not_tried(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lacking = check("CAP_SYS_ADMIN", "missing", group="rights", required=True)
        monkeypatch.setattr(machine, "rights_checks", lambda: iter([lacking]))
        checks = {found.name: found for found in machine_checks()}
        assert checks["BPF programs"].outcome == Outcome("untried", "needs the rights above")
        assert checks["smaps_rollup"].outcome.state != "untried" and not can_trace([*checks.values()])

    def test_every_check_says_what_is_lost_and_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "rights_checks", lambda: iter([check("x", "missing", required=True)]))
        for found in machine_checks():
            assert found.loss and found.fix, found.name

    def test_a_missing_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "rights_checks", lambda: iter([check("x", "missing", required=True)]))
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        checks = {found.name: found for found in machine_checks()}
        assert checks["capstone"].outcome.state == "missing" and sys.executable in checks["capstone"].outcome.detail

    def test_readers_of_this_machine_are_tried_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(pid: int, name: str) -> bytes:
            raise PrivilegeError("no permission")

        monkeypatch.setattr(features, "read_file", fail)
        found = features.proc_features()
        assert found[features.ROLLUP] == Outcome("missing", "no permission")
        assert found[features.MEMORY].state == "ok"


class TestProcess:
    @pytest.mark.parametrize(
        ("head", "expected"),
        [
            (b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\0", Outcome("ok", "64-bit x86-64")),
            (b"\x7fELF\x01\x01" + bytes(12) + b"\x03\0", Outcome("missing", "32-bit x86")),
            (b"\x7fELF\x01\x01" + bytes(12) + b"\x3e\0", Outcome("missing", "32-bit x86-64")),
            (b"\x7fELF\x02\x01" + bytes(12) + b"\xb7\0", Outcome("missing", "64-bit arm64")),
            (b"\x7fELF\x02\x02" + bytes(12) + b"\x99\x99", Outcome("missing", "64-bit machine 39321")),
            (b"#!/bin/sh", Outcome("missing", "no ELF file")),
            (b"", Outcome("missing", "no ELF file")),
        ],
    )
    def test_its_program(self, head: bytes, expected: Outcome) -> None:
        assert architecture(head, is_static=False) == expected

    def test_a_static_program(self) -> None:
        head = b"\x7fELF\x02\x01" + bytes(12) + b"\x3e\0"
        assert architecture(head, is_static=True).detail == "64-bit x86-64, statically linked"

    @pytest.fixture
    def found(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., dict[str, Check]]]:
        """The checks of this test's process, with other images than it has."""

        def checks(*images: FoundImage, unreadable: tuple[str, ...] = ()) -> dict[str, Check]:
            def look(self: Any, _vmas: object) -> Iterator[FoundImage]:
                self.unreadable += unreadable
                return iter(images)

            monkeypatch.setattr("tracer.doctor.target.Discovery.look", look)
            monkeypatch.setattr(target, "check_target", lambda pid: target_info(pid))
            return {one.name: one for one in examine(os.getpid()).checks}

        yield checks

    def test_go(self, found: Callable[..., dict[str, Check]]) -> None:
        checks = found(FoundImage("/srv/app", "/x", AllocatorImage("malloc", ()), is_go=True, is_static=True))
        assert "would crash it" in checks["Go"].loss and checks["allocator"].outcome.state == "missing"

    def test_no_allocator(self, found: Callable[..., dict[str, Check]]) -> None:
        checks = found()
        assert checks["allocator"].outcome.state == "missing" and "page faults" in checks["allocator"].loss
        assert "cost of probes" not in checks and checks["program"].ok

    def test_what_cannot_be_read(self, found: Callable[..., dict[str, Check]]) -> None:
        checks = found(unreadable=("/a cannot be read", "/b cannot be read"))
        assert checks["allocator"].outcome == Outcome("untried", "/a cannot be read, and 1 more")

    def test_stepped_malloc_is_a_warning(self, found: Callable[..., dict[str, Check]]) -> None:
        plan = AllocatorPlan("a", "/a", (replace(PLACES[0], emulated=False, reason="why"),), ())
        (cost,) = target._cost([plan])
        assert cost.outcome.state == "missing" and "malloc" in cost.loss
        (cost,) = target._cost([AllocatorPlan("a", "/a", PLACES, ())])
        assert cost.outcome == Outcome("ok", "5 breakpoints, 3 of them single-stepped")

    def test_a_process_that_may_not_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(pid: int) -> tuple[Vma, ...]:
            raise PrivilegeError("no permission to read it", "use sudo")

        monkeypatch.setattr(target, "check_target", lambda pid: target_info(pid))
        monkeypatch.setattr(target, "read_maps", refuse)
        health = examine(os.getpid())
        assert not health.is_traceable and health.checks[0].outcome.detail == "no permission to read it"

    def test_poorly_covered_modules_are_named(self) -> None:
        (poor,) = target._coverage(TARGET.modules)
        assert poor.outcome.state == "missing" and "odd.so" in poor.loss and "libcrypto" not in poor.loss
        (good,) = target._coverage(TARGET.modules[:2])
        assert good.ok and target._coverage([]) is not None and list(target._coverage([])) == []

    def test_generated_code(self) -> None:
        code = Vma(0x1000, 0x3000, "rwxp", 0, "00:00", 0, b"")
        (jit,) = target._generated_code(os.getpid(), [code, replace(code, path=b"[vdso]")])
        assert jit.outcome.state == "missing" and "1 mapping of generated code (8.0 KiB)" in jit.outcome.detail
        assert list(target._generated_code(os.getpid(), [])) == []


def target_info(pid: int) -> Any:
    from tracer.target import TargetInfo

    return TargetInfo(pid, "command", 1)


class TestPlaces:
    def test_of_the_c_library_are_where_probes_would_go(self) -> None:
        pytest.importorskip("capstone")
        if not LIBC.exists():
            pytest.skip("no libc here")
        with ElfImage.open(str(LIBC)) as image:
            allocator = find_allocator(image, str(LIBC))
            assert allocator is not None
            sites = place(image, allocator).sites
            places = probe_places(image, sites)
            assert {one.offset for one in places} == {site.file_offset for site in sites}
            for one in places:
                assert one.emulated == is_emulated(image.read(one.offset, 15)) and one.instruction
                assert one.emulated or one.reason
                assert image.file_offset_of(next(s.vaddr for s in sites if s.symbol == one.function)) == (
                    one.offset - one.distance
                )
            malloc = next(one for one in places if one.function == "malloc")
            assert set(malloc.kinds) == {"entry", "return"} and malloc.emulated

    def test_an_offset_outside_of_the_file(self) -> None:
        if not LIBC.exists():
            pytest.skip("no libc here")
        with ElfImage.open(str(LIBC)) as image:
            site = ProbeSite(AllocShape.MALLOC, "malloc", image.size + 9, 1 << 60, 16, "entry")
            (found,) = probe_places(image, [site])
        assert not found.emulated and found.reason


class TestCoverage:
    WALKED = encode(Cfa.RSP, 1)

    def table(self, *rows: tuple[int, int]) -> ImageTable:
        from array import array

        return ImageTable(array("Q", [a << 32 | r for a, r in rows]), array("Q"), 0, (Segment(0, 0, 100),))

    def test_counts_what_has_a_rule(self) -> None:
        assert covered_bytes(self.table((0, self.WALKED), (40, RULE_NONE), (60, RULE_END), (70, RULE_NONE))) == 50
        assert covered_bytes(self.table((0, unsupported(Reason.CFA_OFFSET)), (40, self.WALKED), (50, RULE_NONE))) == 10
        assert covered_bytes(self.table()) == 0

    @given(st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=20))
    def test_equals_a_count_byte_by_byte(self, spans: list[tuple[int, bool]]) -> None:
        rows, at, covered = [], 0, 0
        for length, walked in spans:
            rows.append((at, self.WALKED if walked else RULE_NONE))
            at += length
            covered += length * walked
        assert covered_bytes(self.table(*rows, (at, RULE_NONE))) == covered

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to open files through mappings")
    def test_of_this_process(self) -> None:
        from tracer.procfs.maps import read_maps

        modules = {module.path: module for module in module_coverage(os.getpid(), read_maps(os.getpid()), None)}
        libc = next(module for path, module in modules.items() if "libc.so" in path)
        assert 0.95 * libc.code < libc.covered <= libc.code and not libc.problem


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


class TestCommand:
    @pytest.fixture
    def run(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
        monkeypatch.setattr(machine, "machine_checks", lambda: iter(CHECKS))

        def typed(*arguments: str) -> Result:
            monkeypatch.setattr(sys, "argv", ["memtrace", "doctor", *arguments])
            with pytest.raises(SystemExit) as end:
                main_module.main()
            out, err = capsys.readouterr()
            assert isinstance(end.value.code, int)
            return Result(end.value.code, out, err)

        return typed

    def test_exit_codes(self, run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
        assert run() == Result(0, render(), "")
        monkeypatch.setattr(machine, "machine_checks", lambda: iter([check("bcc", "missing", required=True)]))
        assert run().code == 1 and "cannot trace here: bcc" in run().out

    def test_json(self, run: Callable[..., Result]) -> None:
        assert json.loads(run("--json").out)["can_trace"] is True

    def test_no_such_process(self, run: Callable[..., Result]) -> None:
        result = run(str(1 << 22))
        assert (result.code, result.out) == (1, "") and "there is no process" in result.err

    @pytest.mark.parametrize("arguments", [("x",), ("1", "2"), ("--bogus",), ("-5",)])
    def test_usage(self, run: Callable[..., Result], arguments: tuple[str, ...]) -> None:
        result = run(*arguments)
        assert (result.code, result.out) == (2, "") and len(result.err.splitlines()) == 2

    @pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
    def test_without_root_it_says_what_could_not_be_tried(self) -> None:
        code = (
            "import os, sys; from tracer.cli.main import main; os.setgroups([]); os.setgid(65534); os.setuid(65534); "
            f"sys.argv = ['memtrace', 'doctor', '--json', '{os.getpid()}']; main()"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        document = json.loads(done.stdout)
        states = {one["name"]: one["state"] for one in document["checks"]}
        assert (done.returncode, done.stderr, document["can_trace"]) == (1, "", False)
        assert states["CAP_SYS_ADMIN"] == "missing" and states["uprobe-multi"] == "untried"
        assert states["smaps_rollup"] == "ok" and states["bcc"] != "untried"
        assert document["process"]["checks"][0]["state"] == "untried"
