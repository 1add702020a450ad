"""Captures: what goes in comes out, on any machine; whatever else is in an archive is one clear line."""

from __future__ import annotations

import io
import json
import os
import random
import stat
import struct
import subprocess
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.proc_files import block, maps_line, status
from tracer.errors import MemtraceError, PrivilegeError, TargetError, UsageError
from tracer.maps.capturing import write_capture
from tracer.maps.process import ProcessMaps, totals
from tracer.maps.read import Needs, find_target, read_process
from tracer.maps.read import Target as ReadTarget
from tracer.maps.selection import groups
from tracer.maps.view import View
from tracer.procfs import capture_format as form
from tracer.procfs.capture import CaptureError, CaptureSource
from tracer.procfs.source import ProcSource
from tracer.report.maps_json import write_csv, write_json
from tracer.report.maps_text import Style, write_groups, write_maps

SMAPS = block(0x1000, 0x3000, path=b"/lib/x\xff", inode=3, Rss=8, Pss=4) + block(0x5000, 0x6000, path=b"[heap]", Rss=4)
MAPS = maps_line(0x1000, 0x3000, path=b"/lib/x\xff", inode=3) + maps_line(0x5000, 0x6000, path=b"[heap]")
MANIFEST: dict[str, Any] = {
    **{"format": "memtrace-capture", "version": 1, "memtrace": "0.1.0", "kernel": "6.18", "machine": "x86_64"},
    **{"host": "db1", "time": "2025-01-02T03:04:05+00:00", "page_size": 4096, "clock_ticks": 100, "cpus": 2},
    "users": {"0": "admin"},
    "processes": {"7": {"torn": False, "refused": {"exe": "permission", "limits": "gone"}}},
}
FILES: dict[str, bytes] = {
    "proc/7/status": status(size=12, rss=12),
    "proc/7/maps": MAPS,
    "proc/7/smaps": SMAPS,
    "proc/7/cmdline": b"server\0-x\0",
    "proc/7/comm": b"server\n",
    "proc/7/task/7/comm": b"server\n",
    "proc/7/task/12/comm": b"worker\n",
    "proc/7/classes.json": json.dumps(
        {"names": ["file", "heap"], "ids": [0, 1], "threads": {"5000": [[12, "worker"]]}}
    ).encode(),
    "system/meminfo": b"MemTotal: 100 kB\n",
}


def archive(manifest: object = MANIFEST, files: dict[str, bytes] = FILES, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as zipped:
        for name, data in files.items():
            zipped.writestr(name, data)
        if manifest is not None:
            zipped.writestr("manifest.json", manifest if isinstance(manifest, str) else json.dumps(manifest))
    return raw.getvalue()


@pytest.fixture
def keep(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(data: bytes) -> Path:
        path = tmp_path / "x.capture"
        path.write_bytes(data)
        return path

    return write


def shown(source: ProcSource, pid: int) -> ProcessMaps:
    target = find_target(source, pid)
    assert isinstance(target, ReadTarget), target
    process = read_process(source, target, Needs())
    assert isinstance(process, ProcessMaps), process
    return process


@pytest.fixture
def quiet() -> Iterator[int]:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_a_process_of_a_capture(keep: Callable[[bytes], Path]) -> None:
    with CaptureSource(keep(archive())) as source:
        process = shown(source, 7)
        assert (process.command, process.user, process.reader, process.torn) == ("server -x", "admin", "smaps", False)
        assert process.classes.expand() == ["file", "heap"]
        assert [(row.tid, row.name) for row in process.threads[0x5000]] == [(12, "worker")]
        assert totals(process).exact["Rss"] == 12 << 10
        assert source.threads(7) == [7, 12]
        assert source.read_system("meminfo").startswith(b"MemTotal")
        assert source.manifest.host == "db1"


def test_what_could_not_be_read_is_still_told_apart(keep: Callable[[bytes], Path]) -> None:
    with CaptureSource(keep(archive())) as source:
        with pytest.raises(PrivilegeError, match="exe could not be read when the capture was made"):
            source.read(7, "exe")
        with pytest.raises(TargetError, match="had ended"):
            source.read(7, "limits")
        with pytest.raises(TargetError, match="has no cgroup"):
            source.read(7, "cgroup")
        with pytest.raises(TargetError, match="process 8 is not in the capture"):
            source.read(8, "maps")
        with pytest.raises(FileNotFoundError):
            source.read_system("slabinfo")
        assert source.user_name(33) == "33"


def test_without_smaps_there_are_sizes_only(keep: Callable[[bytes], Path]) -> None:
    files = {name: data for name, data in FILES.items() if "smaps" not in name}
    with CaptureSource(keep(archive(files=files))) as source:
        process = shown(source, 7)
        assert (process.reader, totals(process).size) == ("maps", 0x3000)


def test_classes_that_do_not_fit_are_found_anew(keep: Callable[[bytes], Path]) -> None:
    files = {**FILES, "proc/7/classes.json": b'{"names": ["jit"], "ids": [0], "threads": {}}'}
    with CaptureSource(keep(archive(files=files))) as source:
        assert shown(source, 7).classes.expand() == ["file", "heap"]


def test_what_is_captured_is_what_was_there(quiet: int, tmp_path: Path) -> None:
    path = tmp_path / "x.capture"
    said: list[str] = []
    done = write_capture(path, [quiet, 1 << 22], force=False, full=False, tell=said.append)
    assert (done.processes, [row.why for row in done.refused]) == (1, ["gone"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and os.listdir(tmp_path) == [path.name]
    with CaptureSource(path) as source:
        assert source.pids() == [quiet]
        for name in ("maps", "cmdline", "comm", "smaps", "cgroup", "statm"):
            assert source.read(quiet, name) == Path(f"/proc/{quiet}/{name}").read_bytes(), name
        assert source.read(quiet, "exe") == os.readlink(f"/proc/{quiet}/exe").encode()
        assert source.read(quiet, f"task/{quiet}/comm") == b"cat\n"
        assert b"MemTotal" in source.read_system("meminfo")
        assert source.manifest.kernel == os.uname().release
        process = shown(source, quiet)
        assert "heap" in process.classes.used()
        assert totals(process).exact["Pss"] == (process.rollup or {})["Pss"]


def test_all_processes_but_this_one(quiet: int, tmp_path: Path) -> None:
    done = write_capture(tmp_path / "x", None, force=False, full=True, tell=lambda line: None)
    with CaptureSource(tmp_path / "x") as source:
        assert quiet in source.pids() and os.getpid() not in source.pids()
        assert len(source.pids()) == done.processes + done.without_memory + done.denied


def test_an_existing_file_is_replaced_only_by_force(quiet: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists"):
        write_capture(path, [quiet], force=False, full=False, tell=lambda line: None)
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["x"]
    write_capture(path, [quiet], force=True, full=False, tell=lambda line: None)
    with CaptureSource(path) as source:
        assert source.pids() == [quiet]


def test_nothing_is_left_where_nothing_can_be_captured(tmp_path: Path) -> None:
    done = write_capture(tmp_path / "x", [1 << 22], force=False, full=False, tell=lambda line: None)
    assert done.size == 0 and os.listdir(tmp_path) == []
    with pytest.raises(UsageError, match="cannot be written"):
        write_capture(tmp_path / "no" / "x", [os.getpid()], force=False, full=False, tell=lambda line: None)
    with pytest.raises(UsageError, match="is a directory"):
        write_capture(tmp_path, [os.getpid()], force=True, full=False, tell=lambda line: None)


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in MANIFEST.items() if name != key}


HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "damaged, or is no capture"),
    "foreign text": (b"#!/bin/sh\necho hello\n", "damaged, or is no capture"),
    "foreign zip": (archive(None, {"word/document.xml": b"<xml/>"}), "which no capture does"),
    "truncated": (archive()[:-30], "damaged, or is no capture"),
    "no manifest": (archive(None), "it has no manifest.json"),
    "no JSON": (archive("{"), "damaged, or is no capture"),
    "deep JSON": (archive("[" * 100_000), "damaged, or is no capture"),
    "a list": (archive([1]), "the manifest is no object"),
    "another format": (archive({**MANIFEST, "format": "tar"}), "no capture of memtrace"),
    "a later version": (
        archive({**MANIFEST, "version": 2}),
        "it has version 2 of the format, and this memtrace reads version 1",
    ),
    "a version of another kind": (archive({**MANIFEST, "version": True}), "has version True"),
    "an endless version": (archive({**MANIFEST, "version": "9" * 5000}), "has version 99999"),
    "no users": (archive(without("users")), "users is no object"),
    "users by name": (archive({**MANIFEST, "users": {"root": "root"}}), "a key is no number"),
    "no host": (archive(without("host")), "host holds what is no text"),
    "no processes": (archive(without("processes")), "processes is no object"),
    "processes of another kind": (archive({**MANIFEST, "processes": {"7": 3}}), "processes is no object"),
    "a page of no size": (archive({**MANIFEST, "page_size": 0}), "page_size is 0"),
    "a page of another kind": (archive({**MANIFEST, "page_size": "4k"}), "page_size holds what is no number"),
    "path trick": (archive(files={**FILES, "../../etc/passwd": b"x"}), "which no capture does"),
    "path trick in a process": (archive(files={**FILES, "proc/7/../../x": b"x"}), "which no capture does"),
    "absolute path": (archive(files={**FILES, "/etc/passwd": b"x"}), "which no capture does"),
    "control characters": (archive(files={**FILES, "proc/7/\x1b[2J": b"x"}), "which no capture does"),
    "another method": (archive(method=zipfile.ZIP_BZIP2), "packed in a way that captures are not"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_one_clear_line(name: str, keep: Callable[[bytes], Path]) -> None:
    data, expected = HOSTILE[name]
    path = keep(data)
    with pytest.raises(CaptureError) as caught:
        CaptureSource(path)
    assert expected in caught.value.cause and str(path) in caught.value.cause
    assert "\n" not in caught.value.cause and caught.value.exit_code == 1


def test_a_bomb_is_not_unpacked(keep: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "FREE_EXPANSION", 1 << 20)
    with pytest.raises(CaptureError, match="it would expand from"):
        CaptureSource(keep(archive(files={**FILES, "proc/7/smaps": bytes(8 << 20)})))


def test_a_file_of_absurd_size_is_not_read(keep: Callable[[bytes], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(form, "MAX_MEMBER", 1 << 10)
    with CaptureSource(keep(archive())) as source, pytest.raises(CaptureError, match=r"smaps has 1,\d+ bytes"):
        source.read(7, "smaps")


def test_a_size_that_is_a_lie(keep: Callable[[bytes], Path]) -> None:
    data = archive(method=zipfile.ZIP_STORED)
    size = len(FILES["proc/7/cmdline"])
    at = data.rindex(b"proc/7/cmdline") - 46
    lie = data[: at + 24] + struct.pack("<I", size + 40) + data[at + 28 :]
    with CaptureSource(keep(lie)) as source, pytest.raises(CaptureError):
        source.read(7, "cmdline")


def test_a_changed_file_shows(keep: Callable[[bytes], Path]) -> None:
    data = archive(method=zipfile.ZIP_STORED).replace(b"server\0-x", b"servex\0-x")
    with CaptureSource(keep(data)) as source, pytest.raises(CaptureError, match="damaged"):
        source.read(7, "cmdline")


def test_a_file_twice(keep: Callable[[bytes], Path]) -> None:
    raw = io.BytesIO(archive())
    with zipfile.ZipFile(raw, "a") as zipped, pytest.warns(UserWarning):
        zipped.writestr("proc/7/maps", b"other")
    with pytest.raises(CaptureError, match="it has a file twice"):
        CaptureSource(keep(raw.getvalue()))


@pytest.mark.parametrize(
    "classes",
    [
        *(
            b"{",
            b"[]",
            b"{}",
            b'{"names": 1, "ids": [], "threads": {}}',
            b'{"names": ["a"], "ids": [0, 1], "threads": {}}',
        ),
        *(b'{"names": ["a"], "ids": [-1], "threads": {}}', b'{"names": ["a"], "ids": [0.5], "threads": {}}'),
        *(b'{"names": [], "ids": [], "threads": {"x": []}}', b'{"names": [], "ids": [], "threads": {"5": [[1]]}}'),
    ],
)
def test_hostile_classes(classes: bytes, keep: Callable[[bytes], Path]) -> None:
    path = keep(archive(files={**FILES, "proc/7/classes.json": classes}))
    with CaptureSource(path) as source, pytest.raises(CaptureError):
        source.classes(7)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "directory"])
def test_what_is_no_file(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "x")
    with pytest.raises(CaptureError, match="no regular file"):
        CaptureSource(tmp_path / "x")
    with pytest.raises(CaptureError, match="cannot be read: No such file"):
        CaptureSource(tmp_path / "y")


def render(process: ProcessMaps) -> None:
    """Every form in which a process may be shown."""
    out, view = io.StringIO(), View(layout="all", flags=True)
    write_maps(process, view.columns_for(process), Style(80, explain_flags=True, device_totals=True), out)
    write_groups(process, "library", groups(process, "library"), View().columns_for(process), Style(60), out)
    assert all(line.isprintable() for line in out.getvalue().split("\n"))
    file = io.StringIO()
    write_json([(process, "class", groups(process, "class"))], (), file, flags=True)
    json.loads(file.getvalue())
    write_csv([process], None, out)


def use(path: Path) -> None:
    """Everything a view may do with a capture; a MemtraceError is its only way to fail."""
    try:
        with CaptureSource(path) as source:
            for pid in source.pids()[:20]:
                source.threads(pid)
                target = find_target(source, pid)
                if isinstance(target, ReadTarget):
                    process = read_process(source, target, Needs())
                    if isinstance(process, ProcessMaps):
                        render(process)
    except MemtraceError:
        pass


STORED, PACKED = archive(method=zipfile.ZIP_STORED), archive()


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.booleans(), st.integers(1, 6))
def test_no_mutation_of_an_archive_is_a_traceback(seed: int, packed: bool, changes: int) -> None:
    chance = random.Random(seed)
    data = bytearray(PACKED if packed else STORED)
    for _ in range(changes):
        at = chance.randrange(len(data))
        kind = chance.randrange(4)
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            data[at : at + 4] = chance.choice((b"\xff" * 4, bytes(4), b"\xfe\xff\xff\x7f"))
        elif kind == 2:
            del data[at : at + chance.randrange(1, 60)]
        else:
            data[at:at] = data[chance.randrange(len(data)) :][: chance.randrange(1, 60)]
        if not data:
            return
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x")
        path.write_bytes(data)
        use(path)


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(0, 2**66) | st.sampled_from([0, 1, 4096, 2**64 - 1])
lines = st.builds(
    lambda start, end, perms, path: (
        b"%x-%x %s %x 00:00 0 %s\nSize: %d kB\nRss: %d kB\nVmFlags: rd \x1b\n"
        % (start, end, perms, end, path, start, end)
    ),
    *(numbers, numbers, st.sampled_from([b"rw-p", b"---p", b"x", b"r-xs"]), st.binary(max_size=9)),
)
contents = st.binary(max_size=60) | st.sampled_from(list(FILES.values())) | st.lists(lines, max_size=4).map(b"".join)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(MANIFEST)), documents, st.dictionaries(st.sampled_from(sorted(FILES)), contents))
def test_no_document_is_a_traceback(key: str, value: object, files: dict[str, bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "x")
        path.write_bytes(archive({**MANIFEST, key: value}, {**FILES, **files}))
        use(path)
        path.write_bytes(archive(files={**FILES, **files}))
        use(path)
