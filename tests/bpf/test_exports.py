"""One trace of a real process in every form at once, pushed and measured meanwhile; readers of each form read it."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bpf.harness import Json, Memtrace, Target, run_memtrace, wait_for
from tests.bpf.leak_rate import measure_leak_rate
from tests.bpf.runs import wait_until_quiet
from tests.targets.build import command
from tests.tools import need_tool
from tests.unit.endpoint import Request, fake_server
from tests.unit.profile_proto import Profile

FILES = (
    "r.json",
    "r.pb.gz",
    "r.folded",
    "r.alloc_space.folded",
    "r.csv",
    "r.vmas.csv",
    "r.classes.csv",
    "r.ledger.csv",
)
PHASES = 3


@dataclass(frozen=True, slots=True)
class Exports:
    """What one trace left behind: a directory of files, the pushed forms, the metrics at the end of each phase."""

    directory: Path
    stdout: str
    stderr: str
    truth: Json
    pushed: tuple[Request, ...]
    metrics: tuple[str, ...]

    @property
    def report(self) -> Json:
        report: Json = json.loads((self.directory / "r.json").read_text())
        return report

    @property
    def profile(self) -> Profile:
        return Profile((self.directory / "r.pb.gz").read_bytes())

    def rows(self, name: str) -> list[dict[str, str]]:
        with (self.directory / name).open(newline="") as file:
            return list(csv.DictReader(file, strict=True))


class Exporting(Memtrace):
    """A memtrace whose report goes where its options say, and not to the harness as JSON."""

    def __init__(self, pid: int, *options: str) -> None:
        # The harness adds --json; the last format given would be refused beside several files.
        super().__init__(pid, *options, "-o", "-")


@pytest.fixture(scope="module")
def exports(targets_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    directory = tmp_path_factory.mktemp("exports")
    metrics_file = directory / "memtrace.prom"
    metrics = []
    outputs = [word for name in FILES for word in ("-o", str(directory / name))]
    with fake_server(statuses=[503]) as server, Target(command("leak_malloc", targets_dir)) as target:
        where = server.url.replace("//", "//user:secret@")
        options = ("--push", where, "--push-interval", "1", "--metrics", str(metrics_file), "--interval", "0.2")
        with Exporting(target.pid, *outputs, *options) as memtrace:
            for _ in range(PHASES):
                truth = target.go()
                live = sum(tally["bytes"] for tally in truth["stacks"].values())
                wait_for(partial(_metrics_say, metrics_file, live), "the phase in the metrics")
                metrics.append(metrics_file.read_text())
                server.wait_for(len(metrics) + 1)
            wait_until_quiet(target)
            finished = memtrace.stop()
        target.quit()
    assert finished.code == 0, finished.stderr
    assert not metrics_file.exists(), "what it says is true no longer"
    yield Exports(directory, finished.stdout, finished.stderr, truth, tuple(server.requests), tuple(metrics))


def _metrics_say(file: Path, live: int) -> bool:
    families = text_string_to_metric_families(file.read_text())
    return any(each.name == "memtrace_live_bytes" and each.value == live for of in families for each in of.samples)


def test_every_file_is_there_and_nothing_else(exports: Exports) -> None:
    assert sorted(os.listdir(exports.directory)) == sorted(FILES)
    assert json.loads(exports.stdout)["stacks"] == exports.report["stacks"]
    assert all(f"wrote {exports.directory / name} " in exports.stderr for name in FILES)


def test_the_profile_holds_what_the_report_does(exports: Exports) -> None:
    report, profile = exports.report, exports.profile
    assert profile.total("inuse_space") == sum(stack["bytes"] for stack in report["stacks"])
    assert profile.total("inuse_objects") == sum(stack["count"] for stack in report["stacks"])
    assert profile.total("rss_growth") == report["rss"]["growth"] == sum(row["bytes"] for row in report["ledger"])
    by_kind: Counter[str] = Counter()
    for _, values, labels in profile.samples():
        by_kind[labels["kind"]] += values[1]
    assert by_kind["malloc"] == sum(tally["bytes"] for tally in exports.truth["stacks"].values())


def test_addresses_lie_in_the_mappings_of_the_process(exports: Exports) -> None:
    profile = exports.profile
    placed = [each for each in profile.raw.location if each.mapping_id]
    assert placed
    for location in placed:
        mapping = profile.mappings[location.mapping_id]
        assert mapping.memory_start <= location.address < mapping.memory_limit
    executable = profile.raw.mapping[0]
    assert profile.strings[executable.filename].endswith("/leak_malloc")
    assert len(profile.strings[executable.build_id]) == 40 and executable.has_functions


def test_folded_stacks_sum_to_the_same(exports: Exports) -> None:
    for name, metric in (("r.folded", "inuse_space"), ("r.alloc_space.folded", "alloc_space")):
        lines = (exports.directory / name).read_text().splitlines()
        assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == exports.profile.total(metric)
    assert any(";leak" in line and line.split(" ")[0].endswith("malloc") for line in lines)


def test_tables_hold_the_same(exports: Exports) -> None:
    report = exports.report
    assert [int(row["bytes"]) for row in exports.rows("r.csv")] == [stack["bytes"] for stack in report["stacks"]]
    assert len(exports.rows("r.vmas.csv")) == len(report["vmas"])
    assert sum(int(row["growth"]) for row in exports.rows("r.classes.csv")) == sum(
        row["growth"] for row in report["classes"]
    )
    assert sum(int(row["bytes"]) for row in exports.rows("r.ledger.csv")) == report["rss"]["growth"]


@pytest.mark.parametrize("arguments", [("-top",), ("-traces",), ("-top", "-sample_index=rss_growth"), ("-raw",)])
def test_go_pprof_reads_it(exports: Exports, arguments: tuple[str, ...]) -> None:
    done = _pprof(*arguments, str(exports.directory / "r.pb.gz"))
    assert "leak" in done.stdout and done.stderr == ""


def test_go_pprof_charges_the_allocators_callers(exports: Exports) -> None:
    rows = [line.split() for line in _pprof("-top", "-unit=b", str(exports.directory / "r.pb.gz")).stdout.splitlines()]
    flat = {row[-1]: row[0] for row in rows if len(row) == 6 and row[0].endswith("B")}
    leak = next(name for name in exports.truth["stacks"] if exports.truth["stacks"][name]["bytes"])
    assert flat[leak] == f"{exports.truth['stacks'][leak]['bytes']}B"
    assert "malloc" not in flat


def test_go_pprof_compares_it_with_itself(exports: Exports) -> None:
    file = str(exports.directory / "r.pb.gz")
    assert "Total samples = 0" in _pprof("-top", f"-base={file}", file).stdout


def _pprof(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = need_tool("pprof")
    return subprocess.run(
        [tool, *arguments], capture_output=True, text=True, timeout=60, check=True, env={"HOME": "/nonexistent"}
    )


def test_pushed_profiles(exports: Exports) -> None:
    """The first was refused and came again; what was allocated counts once over all of them, what is held each time."""
    assert len(exports.pushed) >= PHASES + 1
    assert exports.pushed[0].query == exports.pushed[1].query
    delivered = exports.pushed[1:]
    times = [(int(request.query["from"]), int(request.query["until"])) for request in delivered]
    assert times == sorted(times) and all(start < end for start, end in times)
    profiles = [Profile(request.form["profile"]) for request in delivered]
    tallies = exports.truth["stacks"].values()
    assert sum(each.total("alloc_space") for each in profiles) == sum(tally["allocated_bytes"] for tally in tallies)
    assert sum(each.total("alloc_objects") for each in profiles) == sum(tally["allocated_count"] for tally in tallies)
    assert profiles[-1].total("inuse_space") == sum(tally["bytes"] for tally in tallies)
    assert "secret" not in exports.stderr and "503" in exports.stderr and "takes profiles again" in exports.stderr


def test_metrics_follow_the_process(exports: Exports) -> None:
    found: dict[str, list[Any]] = {}
    for text in exports.metrics:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append(sample)
    live = [sample.value for sample in found["memtrace_live_bytes"]]
    assert live == sorted(live) and live[-1] == sum(tally["bytes"] for tally in exports.truth["stacks"].values())
    assert all(sample.value == 0 for sample in found["memtrace_losses_total"])
    assert found["memtrace_probe_hits_total"][-1].value > 0
    assert "heap" in {sample.labels["class"] for sample in found["memtrace_class_rss_bytes"] if sample.value}
    assert any(sample.labels["site"].startswith("leak") for sample in found["memtrace_stack_live_bytes"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--format", "svg"), "no format 'svg'"),
        (("--push", "ftp://user:secret@host"), "begins with http"),
        (("--metrics", "/etc/passwd"), "neither an address nor a file"),
        (("--metrics", "missing/x.prom"), "cannot be written"),
    ],
)
def test_what_cannot_be_is_one_clear_line(
    start_target: Callable[..., Target], options: tuple[str, ...], words: str
) -> None:
    target = start_target("leak_malloc")
    done = run_memtrace(str(target.pid), *options)
    assert done.code == 2 and words in done.stderr and done.stdout == ""
    assert len(done.stderr.splitlines()) == 2 and "secret" not in done.stderr


def test_a_server_that_is_down_neither_stops_nor_holds_up_a_trace(start_target: Callable[..., Target]) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid, "--push", "http://127.0.0.1:1", "--push-interval", "1") as memtrace:
        target.go()
        finished = memtrace.stop(signal.SIGTERM)
    report = finished.required_report()
    assert any("push: 1 of 1 profile could not be delivered" in note for note in report["notes"])
    assert sum(stack["bytes"] for stack in report["stacks"]) > 0


def test_a_port_that_is_taken(start_target: Callable[..., Target]) -> None:
    target = start_target("leak_malloc")
    with fake_server() as server:
        done = run_memtrace(str(target.pid), "--metrics", server.url.rpartition("/")[2])
    assert done.code == 2 and "Address already in use" in done.stderr


@pytest.mark.slow
def test_prometheus_finds_the_rate_of_a_leak(start_target: Callable[..., Target], tmp_path: Path) -> None:
    rate = measure_leak_rate(start_target, need_tool("prometheus"), tmp_path, scrapes=12)
    assert rate.planted > 1 << 20
    assert abs(rate.error) < 0.05, rate
