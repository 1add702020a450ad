"""Prometheus metrics of a running trace, read back by the official library's parser."""

from __future__ import annotations

import http.client
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from tests.unit.hostile import NAMES
from tests.unit.reports import MIB, sample_state
from tracer.errors import MissingDependencyError, UsageError
from tracer.model.live import LiveStack, LiveState
from tracer.push.exporter import Address, open_exporter, parse_place
from tracer.push.metrics import TOP_STACKS, LiveMetrics, registry_of

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, "no series twice"
            found[key] = sample.value
    return found


def samples(state: LiveState) -> Samples:
    metrics = LiveMetrics()
    metrics.update(state)
    return parsed(generate_latest(registry_of(metrics)).decode())


def value(found: Samples, name: str, **labels: str) -> float:
    (number,) = (
        number for (each, of), number in found.items() if each == name and labels.items() <= {**dict(of)}.items()
    )
    return number


def test_what_is_told_of_the_process() -> None:
    state = sample_state(rss_by_class={"heap": 7 * MIB, "thread stack": 4096}, class_age=1.5, probe_hits=12)
    found = samples(replace(state, losses={"live_full": 3}))
    assert value(found, "memtrace_rss_bytes", member="anon", pid="25568") == state.rss.anon
    assert value(found, "memtrace_rss_growth_bytes") == state.rss.rss - state.rss_start.rss
    assert value(found, "memtrace_swap_bytes") == 0
    assert value(found, "memtrace_class_rss_bytes", **{"class": "heap"}) == 7 * MIB
    assert value(found, "memtrace_class_age_seconds") == 1.5
    assert value(found, "memtrace_losses_total", loss="live_full") == 3
    assert value(found, "memtrace_probe_hits_total") == 12
    assert value(found, "memtrace_live_bytes") == state.live_bytes
    assert value(found, "memtrace_updated_timestamp_seconds") > 1.7e9
    assert value(found, "memtrace_process_cpu_seconds_total") > 0
    assert value(found, "memtrace_process_resident_memory_bytes") > MIB


def test_what_is_told_of_stacks() -> None:
    state = sample_state()
    found = samples(state)
    first = state.stacks[0]
    site = "store_attributes < ldb_msg_add < dsdb_replicated_objects_convert"
    assert value(found, "memtrace_stack_live_bytes", stack=first.id, kind="malloc", site=site) == first.bytes
    assert value(found, "memtrace_stack_live_blocks", stack=first.id) == first.count
    assert value(found, "memtrace_stack_rate_bytes_per_second", stack=first.id) == first.rate


def test_before_the_first_tick_there_is_nothing_of_the_process() -> None:
    found = parsed(generate_latest(registry_of(LiveMetrics())).decode())
    assert found and all(name.startswith("memtrace_process_") for name, _ in found)


def stacks(sizes: range) -> tuple[LiveStack, ...]:
    return tuple(LiveStack(f"{size:016x}", "malloc", f"f{size}", size, 1, 0.0) for size in sizes)


def test_series_are_bounded_and_stale_ones_go() -> None:
    metrics = LiveMetrics()
    registry = registry_of(metrics)

    def ids() -> set[str]:
        found = parsed(generate_latest(registry).decode())
        return {dict(of)["stack"] for name, of in found if name == "memtrace_stack_live_bytes"}

    metrics.update(sample_state(stacks=stacks(range(1, 500))))
    assert ids() == {f"{size:016x}" for size in range(500 - TOP_STACKS, 500)}
    metrics.update(sample_state(stacks=stacks(range(7, 9))))
    assert ids() == {f"{size:016x}" for size in range(7, 9)}


def test_hostile_names_are_inert_and_bounded() -> None:
    hostile = tuple(LiveStack(f"{i:016x}", "malloc", name, 10, 1, 0.0) for i, name in enumerate(NAMES))
    metrics = LiveMetrics()
    metrics.update(sample_state(stacks=hostile, command=NAMES[2], rss_by_class={NAMES[3]: 1}))
    text = generate_latest(registry_of(metrics)).decode()
    found = parsed(text)
    assert all(line.isprintable() and len(line) < 1000 for line in text.splitlines())
    assert sum(name == "memtrace_stack_live_bytes" for name, _ in found) == len(NAMES)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(MissingDependencyError, match="prometheus_client") as missing:
        open_exporter(Address("localhost", 0), lambda line: None)
    assert "python3-prometheus-client" in str(missing.value.fix)


# Where they go


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("9185", Address("localhost", 9185)),
        (":9185", Address("localhost", 9185)),
        ("0.0.0.0:9185", Address("0.0.0.0", 9185)),
        ("[::1]:9185", Address("::1", 9185)),
        ("host.example:1", Address("host.example", 1)),
        ("./memtrace.prom", Path("memtrace.prom")),
        ("/var/lib/x.prom", Path("/var/lib/x.prom")),
    ],
)
def test_places(text: str, place: Address | Path) -> None:
    assert parse_place(text) == place


@pytest.mark.parametrize("text", ["host:99999", "::1:9", "host", "/etc/passwd", "", "a b:9", "host:", "x.prom/"])
def test_what_is_no_place(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.prom").mkdir()
    with pytest.raises(UsageError, match="--metrics"):
        parse_place(text)


@contextmanager
def served(address: Address) -> Iterator[http.client.HTTPConnection]:
    exporter = open_exporter(address, lambda line: None)
    exporter.start()
    try:
        exporter.update(sample_state())
        connection = http.client.HTTPConnection(address.host, exporter.port, timeout=20)  # type: ignore[attr-defined]
        yield connection
        connection.close()
    finally:
        exporter.close()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_served(host: str) -> None:
    try:
        socket.getaddrinfo(host, 0, flags=socket.AI_ADDRCONFIG)
        with served(Address(host, 0)) as connection:
            connection.request("GET", "/metrics")
            answer = connection.getresponse()
            assert answer.status == 200 and "text/plain" in str(answer.getheader("Content-Type"))
            assert value(parsed(answer.read().decode()), "memtrace_live_bytes") == sample_state().live_bytes
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")


def test_a_client_that_goes_away_is_no_event(capfd: pytest.CaptureFixture[str]) -> None:
    with served(Address("127.0.0.1", 0)) as connection:
        for _ in range(3):
            with socket.create_connection((connection.host, connection.port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\n")
        connection.request("GET", "/")
        assert connection.getresponse().status == 200
    assert capfd.readouterr() == ("", "")


def test_an_address_that_is_taken() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        exporter = open_exporter(Address("127.0.0.1", other.getsockname()[1]), lambda line: None)
        with pytest.raises(UsageError, match="cannot be served: Address already in use"):
            exporter.start()
        exporter.close()


def test_a_file_is_complete_at_any_time_and_goes_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "memtrace.prom"
    exporter = open_exporter(path, lambda line: None)
    exporter.start()
    first = os.stat(path)
    exporter.update(sample_state())
    assert os.stat(path).st_ino != first.st_ino, "replaced, not written over"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644
    assert value(parsed(path.read_text()), "memtrace_live_bytes") == sample_state().live_bytes
    assert os.listdir(tmp_path) == ["memtrace.prom"]
    exporter.close()
    assert os.listdir(tmp_path) == []


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        open_exporter(tmp_path / "missing" / "a.prom", lambda line: None).start()


def test_a_disk_that_fills_up_is_said_once_and_costs_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    directory = tmp_path / "there"
    directory.mkdir()
    exporter = open_exporter(directory / "a.prom", said.append)
    exporter.start()
    (directory / "a.prom").unlink()
    directory.rmdir()
    for _ in range(3):
        exporter.update(sample_state())
    assert len(said) == 1 and "cannot be written: No such file" in said[0]
    directory.mkdir()
    exporter.update(sample_state())
    assert (directory / "a.prom").exists()
    exporter.close()
