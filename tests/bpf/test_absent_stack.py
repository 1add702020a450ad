"""Stacks with pages that are not there: reading them raises a fault inside our own programs, which must not mix up."""

from __future__ import annotations

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Memtrace, totals_by_function

pytestmark = pytest.mark.bpf


def test_each_function_keeps_its_own_allocations(start_target: StartTarget) -> None:
    target = start_target("absent_stack")
    tracing = Memtrace(target.pid)
    truth = target.go()["stacks"]
    report = tracing.stop().required_report()
    found = totals_by_function(report, list(truth), "malloc")
    for function, expected in truth.items():
        assert (found[function]["bytes"], found[function]["count"]) == (expected["bytes"], expected["count"]), function
    assert not any(report["losses"].values())
