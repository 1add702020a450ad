"""Pushed profiles, at a server of our own. No Pyroscope is at hand: what is sent is what its API states."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.endpoint import fake_server
from tests.unit.profile_proto import Profile
from tests.unit.reports import STORE, sample_report, sample_state
from tracer.errors import UsageError
from tracer.model.report import Report
from tracer.push.endpoint import Endpoint, hidden, parse_endpoint
from tracer.push.outlets import Destinations, Outlets
from tracer.push.pusher import Limits, Pusher
from tracer.push.pyroscope import interval_of

QUICK = Limits(timeout=5.0, first_pause=0.001, longest_pause=0.01)


def endpoint(url: str, **environ: str) -> Endpoint:
    return parse_endpoint(url, environ, "/usr/sbin/samba --foreground", 25568)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "not in time"
        pause.wait(0.002)


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_what_is_sent() -> None:
    said: list[str] = []
    with fake_server() as server:
        pusher = Pusher(endpoint(server.url), said.append, QUICK)
        pusher.start()
        pusher.offer(sample_report(), 1_700_000_000.2, 1_700_000_015.9)
        server.wait_for(1)
        pusher.close(10)
    (request,) = server.requests
    assert request.path == "/ingest"
    assert request.query.pop("name").startswith("samba{host=")
    # With format=pprof the server would take the body for a bare profile.
    assert request.query == {"from": "1700000000", "until": "1700000015", "spyName": "memtrace"}
    assert request.form.keys() == {"profile", "sample_type_config"}
    profile = Profile(request.form["profile"])
    config = json.loads(request.form["sample_type_config"])
    assert profile.types == ["inuse_objects", "inuse_space", "alloc_objects", "alloc_space"] == list(config)
    assert config["inuse_space"] == {
        "units": "bytes",
        "aggregation": "average",
        "display-name": "inuse_space",
        "sampled": False,
    }
    assert config["alloc_objects"]["aggregation"] == "sum" and config["alloc_objects"]["units"] == "objects"
    assert profile.total("inuse_space") == sum(stack.bytes for stack in sample_report().stacks)
    assert (pusher.delivered, pusher.note(), said) == (1, None, [])


def test_errors_of_the_server_are_tried_again() -> None:
    said: list[str] = []
    with fake_server(statuses=[500, 503, 429]) as server:
        pusher = Pusher(endpoint(server.url), said.append, QUICK)
        pusher.start()
        pusher.offer(sample_report(), 0, 15)
        pusher.offer(sample_report(), 15, 30)
        server.wait_for(5)
        pusher.close(10)
    assert [request.query["from"] for request in server.requests] == ["0", "0", "0", "0", "15"], "in order"
    assert (pusher.delivered, pusher.dropped, pusher.note()) == (2, 0, None)
    assert said == [
        f"push: {server.url}/ingest: HTTP status 500 (go \\x1b[31maway); trying again",
        f"push: {server.url}/ingest takes profiles again",
    ]


@pytest.mark.parametrize("status", [400, 401, 422, 307])
def test_a_refusal_is_final(status: int) -> None:
    said: list[str] = []
    with fake_server(statuses=[status], headers={"Location": "http://127.0.0.1:1/elsewhere"}) as server:
        pusher = Pusher(endpoint(server.url), said.append, QUICK)
        pusher.start()
        pusher.offer(sample_report(), 0, 15)
        until(lambda: pusher.dropped == 1)
        pusher.close(10)
    assert len(server.requests) == 1 and len(said) == 1
    assert pusher.note() == (
        f"push: 1 of 1 profile could not be delivered to {server.url}/ingest: HTTP status {status} (go \\x1b[31maway)"
    )


def test_no_server_at_all() -> None:
    """Who offers never waits, what waits is bounded, and the end is not held up."""
    said: list[str] = []
    pusher = Pusher(endpoint(f"http://127.0.0.1:{closed_port()}"), said.append, replace(QUICK, profiles=3))
    pusher.start()
    for number in range(10):
        pusher.offer(sample_report(), number, number + 1)
        until(lambda: not pusher._offered)
    assert len(pusher._waiting) <= 3 and pusher.dropped == 7
    pusher.close(0.2)
    assert not pusher._thread.is_alive() and pusher.dropped == 10
    assert len(said) == 1 and said[0].endswith(": connection refused; trying again")
    assert "10 of 10 profiles" in str(pusher.note()) and "connection refused" in str(pusher.note())


def test_the_oldest_goes_first() -> None:
    with fake_server(statuses=[503] * 1000) as server:
        pusher = Pusher(endpoint(server.url), lambda line: None, replace(QUICK, profiles=2))
        pusher.start()
        for number in range(5):
            pusher.offer(sample_report(), number, number + 1)
            until(lambda: not pusher._offered)
        until(lambda: pusher.dropped == 3)
        server.statuses.clear()
        pusher.close(10)
    assert [request.query["from"] for request in server.requests][-2:] == ["3", "4"]
    assert (pusher.delivered, pusher.dropped) == (2, 3)


def test_what_waits_is_bounded_in_bytes() -> None:
    pusher = Pusher(endpoint(f"http://127.0.0.1:{closed_port()}"), lambda line: None, replace(QUICK, bytes=1))
    pusher.start()
    pusher.offer(sample_report(), 0, 1)
    until(lambda: pusher.dropped == 1)
    pusher.close(0.2)
    assert pusher.dropped == 1


def test_a_server_that_never_answers_delays_the_end_by_no_more_than_the_deadline() -> None:
    with fake_server(silent=True) as server:
        pusher = Pusher(endpoint(server.url), lambda line: None, replace(QUICK, timeout=600.0))
        pusher.start()
        pusher.offer(sample_report(), 0, 1)
        server.wait_for(1)
        pusher.close(0.1)
        assert pusher._thread.is_alive(), "it is left behind in its attempt"
        assert pusher.dropped == 1 and "there was no time left" in str(pusher.note())
        pusher.offer(sample_report(), 1, 2)  # too late, and harmless


def test_a_silent_server_is_given_up_and_tried_again() -> None:
    said: list[str] = []
    with fake_server(silent=True) as server:
        pusher = Pusher(endpoint(server.url), said.append, replace(QUICK, timeout=0.05))
        pusher.start()
        pusher.offer(sample_report(), 0, 1)
        server.wait_for(2)
        pusher.close(0.1)
    assert said[0].endswith("no answer in time; trying again")


def test_what_is_left_is_delivered_at_the_end() -> None:
    with fake_server() as server:
        pusher = Pusher(endpoint(server.url), lambda line: None, QUICK)
        pusher.offer(sample_report(), 0, 1)
        pusher.start()
        pusher.close(10)
    assert pusher.delivered == 1 and len(server.requests) == 1


def test_a_failure_of_ours_costs_the_trace_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("tracer.push.pusher.encode", lambda *_: 1 / 0)
    pusher = Pusher(endpoint("http://localhost"), said.append, QUICK)
    pusher.start()
    pusher.offer(sample_report(), 0, 1)
    pusher.close(10)
    assert said == ["push: memtrace failed: ZeroDivisionError: division by zero"]


def test_who_will_not_wait_for_the_last_profile_has_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def impatience(timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    with fake_server(silent=True) as server:
        pusher = Pusher(endpoint(server.url), lambda line: None, QUICK)
        pusher.start()
        pusher.offer(sample_report(), 0, 1)
        monkeypatch.setattr(pusher._thread, "join", impatience)
        pusher.close(60)
    assert pusher.dropped == 1


def test_pauses_grow_and_are_bounded() -> None:
    from tracer.push.pyroscope import Outcome

    pusher = Pusher(endpoint("http://localhost"), lambda line: None, Limits(first_pause=1.0, longest_pause=60.0))
    for failures, (least, most) in enumerate([(0.5, 1), (1, 2), (2, 4), (4, 8), (8, 16), (16, 32), (30, 60), (30, 60)]):
        pusher._failures = failures
        assert least <= pusher._pause(Outcome("x", again=True)) <= most
    assert pusher._pause(Outcome("x", again=True, seconds=50.0)) >= 50
    assert pusher._pause(Outcome("x", again=True, seconds=1e9)) <= 60


def test_what_was_allocated_counts_once() -> None:
    earlier = sample_report(stacks=(STORE,))
    later = sample_report(
        stacks=(replace(STORE, allocated_bytes=STORE.allocated_bytes + 640, allocated_count=STORE.allocated_count + 2),)
    )
    (stack,) = interval_of(earlier, later).stacks
    assert (stack.allocated_bytes, stack.allocated_count, stack.bytes) == (640, 2, STORE.bytes)
    assert interval_of(None, later) == later
    after_exec = replace(later, started=later.started.replace(year=2027))
    assert interval_of(earlier, after_exec) == after_exec


# Where to push to


@pytest.mark.parametrize(
    ("url", "ingest"),
    [
        ("http://localhost:4040", "http://localhost:4040/ingest"),
        ("https://host/", "https://host/ingest"),
        ("https://host/pyroscope/", "https://host/pyroscope/ingest"),
        ("http://host/ingest", "http://host/ingest"),
        ("http://[::1]:4040", "http://[::1]:4040/ingest"),
    ],
)
def test_urls(url: str, ingest: str) -> None:
    assert endpoint(url).url == ingest == endpoint(url).shown


@pytest.mark.parametrize(
    "url",
    [
        "localhost:4040",
        "ftp://host",
        "file:///etc/passwd",
        "http://",
        "http://user:secret@",
        "http://a b",
        "http://h:99999",
        "http://h?x=1",
        "http://h?name=a{",
        "http://h?name=" + "x" * 600,
        "http://[::1",
        "",
        "http://ho\u00dft",
        "http://h\r\nX: y",
    ],
)
def test_what_is_no_url_to_push_to(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        endpoint(url)
    assert "secret" not in str(refused.value) and "secret" not in str(refused.value.fix)


def test_credentials_are_sent_and_never_shown() -> None:
    said: list[str] = []
    with fake_server(statuses=[401]) as server:
        where = endpoint(server.url.replace("//", "//user:s%40cret@"), MEMTRACE_PUSH_TENANT="team-a")
        pusher = Pusher(where, said.append, QUICK)
        pusher.start()
        pusher.offer(sample_report(), 0, 1)
        until(lambda: pusher.dropped == 1)
        pusher.close(10)
    headers = server.requests[0].headers
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"user:s@cret").decode()
    assert headers["X-Scope-OrgID"] == "team-a"
    shown = " ".join([*said, str(pusher.note()), repr(where), where.ingest_url(0, 1)])
    assert "cret" not in shown and "user" not in shown


def test_a_token_from_the_environment() -> None:
    assert endpoint("http://h", MEMTRACE_PUSH_TOKEN="abc").headers == {"Authorization": "Bearer abc"}
    with pytest.raises(UsageError, match="MEMTRACE_PUSH_TOKEN"):
        endpoint("http://h", MEMTRACE_PUSH_TOKEN="a\r\nX-Evil: 1")


def test_an_argument_is_shown_without_its_credentials() -> None:
    shown = [hidden(text) for text in ("--push", "http://u:p@host/x", "--push=https://token@h", "a@b")]
    assert shown == ["--push", "http://***@host/x", "--push=https://***@h", "a@b"]


@given(st.text())
def test_any_command_gives_a_name_that_is_bounded_and_valid(command: str) -> None:
    import re

    name = parse_endpoint("http://h", {}, command, 7).name
    assert re.fullmatch(r"[A-Za-z0-9_.-]{1,64}\{host=[A-Za-z0-9_.-]{1,64},pid=7\}", name)


def test_a_name_of_ones_own() -> None:
    assert endpoint("http://h/?name=shop%7Benv%3Dprod%7D").name == "shop{env=prod}"
    assert endpoint("http://h/?name=shop{env=prod}").url == "http://h/ingest"


# As a session uses it


def test_profiles_at_intervals_and_at_the_end() -> None:
    now = 1_700_000_000.0
    made: list[float] = []

    def interim() -> Report:
        made.append(now)
        return sample_report(stacks=(replace(STORE, allocated_count=100 * len(made)),))

    with fake_server() as server:
        outlets = Outlets(
            Destinations(endpoint(server.url), interval=10.0), lambda line: None, QUICK, clock=lambda: now
        )
        with outlets:
            for _ in range(25):
                now += 1
                outlets.on_tick(sample_state(), interim, False)
                server.wait_for(len(made))
            outlets.on_tick(sample_state(), interim, True)
    assert [(int(r.query["from"]) - 1_700_000_000, int(r.query["until"]) - 1_700_000_000) for r in server.requests] == [
        (0, 10),
        (10, 20),
        (20, 25),
    ]
    assert [Profile(r.form["profile"]).total("alloc_objects") for r in server.requests] == [100, 100, 100]
    assert len(made) == 3, "no report is made for nothing"
    assert outlets.noted(sample_report()) == sample_report()


def test_what_was_not_delivered_is_noted() -> None:
    outlets = Outlets(
        Destinations(endpoint(f"http://127.0.0.1:{closed_port()}")), lambda line: None, replace(QUICK, profiles=1)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tracer.push.outlets.FLUSH_SECONDS", 0.1)
        with outlets:
            outlets.on_tick(sample_state(), sample_report, True)
    assert "push: 1 of 1 profile could not be delivered" in outlets.noted(sample_report()).notes[-1]
