"""Page faults on neighbouring pages share a stack only as long as it is the same one, and no byte of them is lost."""

from __future__ import annotations

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Memtrace, totals_by_function

pytestmark = pytest.mark.bpf

PAGE = 4096
# A stack serves at most about so many pages before it is looked at again (twice FAULT_SPAN in bpf/rss.bpf.c).
SPAN = 64


@pytest.mark.parametrize(("turn_a", "turn_b"), [(1, 1), (3, 5), (40, 1)])
def test_callers_that_take_turns_are_told_apart(start_target: StartTarget, turn_a: int, turn_b: int) -> None:
    target = start_target("fault_runs", 1200, turn_a, turn_b)
    tracing = Memtrace(target.pid)
    truth = target.go()["stacks"]
    report = tracing.stop().required_report()
    found = totals_by_function(report, list(truth), "fault")
    pages = {name: (found[name]["bytes"] - truth[name]["bytes"]) // PAGE for name in truth}
    assert sum(pages.values()) == 0, "every page has one of the two stacks"
    # In the worst case the looks are a sample of 1 in 32 pages: four standard deviations, and one span at the change.
    assert abs(pages["caller_b"]) <= SPAN + 4 * (32 * truth["caller_b"]["bytes"] / PAGE) ** 0.5, pages
    assert report["unexplained"] == 0
