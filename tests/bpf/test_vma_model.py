"""The model of the address space against /proc/PID/maps, fed by memtrace's own events of real processes."""

from __future__ import annotations

from tests.bpf.conftest import StartTarget
from tests.bpf.vma_harness import FollowedVmas
from tracer.probes.layout import EventKind

SEEDS = 100
BATCHES = 30
OPERATIONS = 10
ROUNDS = 12


def test_any_system_calls(start_target: StartTarget) -> None:
    """After each batch the model is equal to maps, unless a call's effect could not be told: then it says so."""
    target = start_target("random_vm", 0, OPERATIONS)
    compared = resynced = 0
    with FollowedVmas(target.pid) as followed:
        for _ in range(SEEDS):
            target.command("n")
            followed.follow()
            for batch in range(BATCHES):
                seed = target.go()["seed"]
                followed.follow()
                if followed.wants_resync:
                    resynced += 1
                    followed.resync()
                else:
                    compared += 1
                differences = followed.differences()
                assert not differences, f"seed {seed}, batch {batch}: {differences[:6]}"
        assert followed.events_lost == 0
        wanted = {int(kind) for kind in EventKind} - {EventKind.EXEC}
        assert set(followed.kinds) == wanted, "each kind of event was seen"
    assert compared > resynced, f"{compared} compared, {resynced} resynced"


def test_threads_that_hand_addresses_on(start_target: StartTarget) -> None:
    """What is released is seen before another thread can have it: nothing is lost, and nothing left over."""
    target = start_target("handover", 2000)
    with FollowedVmas(target.pid, event_pages=4096) as followed:
        for _ in range(ROUNDS):
            round_ = target.go()["round"]
            followed.follow()
            assert followed.events_lost == 0
            assert not followed.wants_resync
            assert followed.differences() == [], f"round {round_}"
