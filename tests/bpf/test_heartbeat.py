"""The target is never stopped, whatever memtrace does: its threads stay runnable and none of its waits is cut short.

How long it is held up without being stopped, scripts/bench/heartbeat.py measures; that depends on the machine.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import Memtrace, Target, wait_for
from tests.bpf.watching import STOPPED, StateWatch, was_stopped

pytestmark = pytest.mark.bpf

# Any stop of a process, by ptrace, signal or freezer, ends its epoll_wait with EINTR (signal(7)): each is counted.
WAITER = """
import ctypes, errno, json, os, select, sys
libc = ctypes.CDLL(None, use_errno=True)
poll, event = select.epoll(), ctypes.create_string_buffer(12)
poll.register(0, select.EPOLLIN)
interrupted = 0
print(json.dumps({"ready": True, "pid": os.getpid()}), flush=True)
while True:
    if libc.epoll_wait(poll.fileno(), event, 1, -1) < 0:
        assert ctypes.get_errno() == errno.EINTR
        interrupted += 1
        continue
    command = os.read(0, 1)
    if command in (b"", b"q"):
        break
    if command == b"i":
        print(json.dumps({"interrupted": interrupted}), flush=True)
"""


@pytest.mark.parametrize("pace", ["sleep", "busy"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_the_target_is_in_no_stopped_state_from_attach_to_detach(
    start_target: StartTarget, pace: str, end: signal.Signals
) -> None:
    target = start_target("heartbeat", pace)

    with StateWatch(target.pid) as watch:
        with Memtrace(target.pid, "-i", "0.1") as memtrace:
            seen = watch.samples
            wait_for(lambda: watch.samples > seen + 50, "samples while tracing")
            memtrace.stop(end)
        seen = watch.samples
        wait_for(lambda: watch.samples > seen + 10, "samples after it")

    assert not watch.states & STOPPED
    assert watch.tracers == set()
    assert not was_stopped(target.pid)
    target.command("b")
    wait_for(lambda: target.command("e")["beats"] > 0, "the heart beats on")


def test_no_wait_of_the_target_is_interrupted() -> None:
    with Target([sys.executable, "-c", WAITER]) as target:
        for end in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with Memtrace(target.pid) as memtrace:
                memtrace.stop(end)
        assert target.command("i") == {"interrupted": 0}

        # That the target would have told:
        wait_for(lambda: target.state() == "S", "waits")
        os.kill(target.pid, signal.SIGSTOP)
        wait_for(lambda: target.state() == "T", "stopped")
        os.kill(target.pid, signal.SIGCONT)
        assert was_stopped(target.pid)
        assert target.command("i") == {"interrupted": 1}
