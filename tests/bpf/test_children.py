"""Children of the target: traced on request, each by itself, and the parent is none the worse for it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.bpf.harness import ROOT, Memtrace, memtrace_command, wait_for

pytestmark = pytest.mark.bpf

# Forks on a line of input; parent and child then grow by 40 KiB blocks until the end of input.
FORKING = """
import os, select, sys
print("ready", flush=True)
sys.stdin.readline()
child = os.fork()
if child:
    print(child, flush=True)
kept = []
while not select.select([0], [], [], 0.05)[0]:
    kept.append(bytearray(40_000 if child else 200_000))
if child:
    os.waitpid(child, 0)
"""


def test_a_child_has_a_report_of_its_own() -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as target:
        assert target.stdin is not None and target.stdout is not None
        target.stdout.readline()
        tracing = subprocess.Popen(
            [*memtrace_command(), str(target.pid), "--children", "--json", "-d", "7"],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracing.stderr is not None
        while "tracing process" not in tracing.stderr.readline():
            assert tracing.poll() is None
        target.stdin.write("go\n")
        target.stdin.flush()
        child = int(target.stdout.readline())
        out, err = tracing.communicate(timeout=60)
        target.stdin.close()
    parent, report = (json.loads(line) for line in out.splitlines())
    assert (parent["pid"], report["pid"]) == (target.pid, child), err
    assert parent["rss"]["growth"] > 0 and report["rss"]["growth"] > 1 << 20
    assert sum(row["bytes"] for row in report["ledger"]) == report["rss"]["growth"]
    assert any("1 traced by their own memtrace" in note for note in parent["notes"])
    assert f"child process {child}: traced, too" in err


def test_without_the_option_children_are_counted_only() -> None:
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as target:
        assert target.stdin is not None and target.stdout is not None
        target.stdout.readline()
        tracing = Memtrace(target.pid)
        target.stdin.write("go\n")
        target.stdin.flush()
        target.stdout.readline()
        children = Path(f"/proc/{target.pid}/task/{target.pid}/children")
        wait_for(lambda: bool(children.read_text().split()), "the child")
        report = tracing.stop().required_report()
        target.stdin.close()
    assert "1 child process made in the window: not traced" in report["notes"]
