"""Names and lines in a real report, and debug information from a real debuginfod server."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.harness import Json, Memtrace, Target
from tracer.symbols.elf import ElfImage

REPOSITORY = Path(__file__).resolve().parents[2]
LIBC = Path("/lib/x86_64-linux-gnu/libc.so.6")
DEBUG_FILES = Path("/usr/lib/debug/.build-id")

# Runs where there is no network but loopback. Names an address inside libc of which only debug information knows,
# first with what lies on this machine (debug files excepted), then with what the server has.
IN_NAMESPACE = """
import json, os, subprocess, sys, time, urllib.error, urllib.request
from pathlib import Path
from tracer.procfs.maps import read_maps
from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.debugstore import DebugStore
from tracer.symbols.lines import LineReader
from tracer.symbols.resolver import Resolver

build_id, vaddr, served, cache = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
server = subprocess.Popen(
    ["debuginfod", "-d", str(cache / "index"), "-p", "8002", "-F", served],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={"PATH": os.defpath, "HOME": str(cache)},
)
url = "http://127.0.0.1:8002"
try:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{url}/buildid/{build_id}/debuginfo", timeout=5).close()
            break
        except OSError:
            time.sleep(0.1)
    maps = read_maps(os.getpid())
    base = min(vma.start for vma in maps if vma.path.endswith(b"/libc.so.6"))
    said = []
    answers = []
    for servers in ({}, {"DEBUGINFOD_URLS": url, "DEBUGINFOD_CACHE_PATH": str(cache)}):
        client = Debuginfod.from_environment(servers, said.append)
        resolver = Resolver(
            os.getpid(), debug_root=str(cache / "none"), debuginfod=client, lines=LineReader.available()
        )
        resolver.update(maps)
        before = resolver.resolve(base + vaddr, lines=False)
        frames = resolver.resolve(base + vaddr)
        answers.append({
            "before": [frame.function for frame in before],
            "functions": [frame.function for frame in frames],
            "files": [frame.file for frame in frames],
            "problems": resolver.problems,
        })
        resolver.close()
    print(json.dumps({"answers": answers, "said": said}))
finally:
    server.kill()
    server.wait()
"""


def test_a_debuginfod_server_names_what_no_file_here_does(tmp_path: Path) -> None:
    missing = [name for name in ("debuginfod", "unshare", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    with ElfImage.open(str(LIBC)) as libc:
        build_id, named = libc.build_id or "", {symbol.value for symbol in libc.symbols()}
    path = DEBUG_FILES / build_id[:2] / f"{build_id[2:]}.debug"
    if not path.exists():
        pytest.skip("the debug information of this libc is not installed (Debian: libc6-dbg)")
    with ElfImage.open(str(path)) as debug:
        inner = next(s for s in debug.symbols() if s.name == b"_int_malloc" and s.size and s.value not in named)
    served = tmp_path / "served" / path.parent.name
    served.mkdir(parents=True)
    shutil.copy(path, served)
    arguments = [build_id, str(inner.value + inner.size // 2), str(served.parent), str(tmp_path)]
    done = subprocess.run(
        ["unshare", "-n", sys.executable, "-c", IN_NAMESPACE, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    without, with_server = result["answers"]
    assert without["functions"] == [None] and with_server["before"] == [None]
    assert with_server["functions"][-1] == "_int_malloc"
    assert not with_server["problems"]
    if importlib.util.find_spec("symbolic") is not None:
        assert (with_server["files"][-1] or "").endswith("malloc.c")
    assert any("of debug information of libc.so.6" in line for line in result["said"])
    assert [file.name for file in (tmp_path / "memtrace").iterdir()] == [f"{build_id}.debug"]


def frames_of(report: Json, function: str) -> list[Json]:
    """The frames of the stack that holds most of those in which this function is."""
    for stack in report["stacks"]:
        if any(frame["function"] and frame["function"].startswith(function) for frame in stack["frames"]):
            frames: list[Json] = stack["frames"]
            return frames
    raise AssertionError(f"no stack has {function}")


@pytest.mark.skipif(
    importlib.util.find_spec("symbolic") is None, reason="symbolic is not installed (the extra 'lines')"
)
def test_a_report_has_lines(start_target: Callable[..., Target]) -> None:
    target = start_target("leak_malloc")
    with Memtrace(target.pid, "--json") as memtrace:
        target.go()
        report = memtrace.stop().required_report()
    frames = frames_of(report, "leak")
    assert frames[0]["function"] == "malloc"
    sources = {(Path(frame["file"]).name, frame["inlined"]) for frame in frames if frame["file"]}
    assert ("leak_malloc.c", False) in sources
    assert all(frame["line"] for frame in frames if frame["file"])
