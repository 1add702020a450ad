"""``memtrace maps`` on real processes: what pmap does, and what it gets wrong."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tracer.cli import main as main_module
from tracer.maps.process import ProcessMaps
from tracer.maps.read import Needs, Target, Unreadable, estimate_seconds, find_target, read_process
from tracer.procfs import files
from tracer.procfs.files import read_file
from tracer.procfs.smaps_fields import parse_fields
from tracer.procfs.source import LiveSource
from tracer.procfs.status import is_kernel_thread

ROOT = Path(__file__).resolve().parents[2]
NO_PID = str(1 << 22)  # one more than the highest pid there can be (include/linux/threads.h)
NOBODY = 65534
NOBODYS: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become nobody")
needs_pmap = pytest.mark.skipif(shutil.which("pmap") is None, reason="pmap (procps) is not installed")


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process, into a pipe."""

    def command(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["memtrace", "maps", *map(str, arguments)])
        monkeypatch.delenv("COLUMNS", raising=False)
        with pytest.raises(SystemExit) as end:
            main_module.main()
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, out, err)

    return command


@contextlib.contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process that has said something, and lives until its stdin closes."""
    program = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline().strip() == "ready"
        try:
            yield process
        finally:
            process.kill()


IDLE = "import sys; print('ready', flush=True); sys.stdin.read()"


@pytest.fixture(scope="module")
def idle() -> Iterator[int]:
    with child(IDLE) as process:
        yield process.pid


def decoded(result: Result) -> dict[str, Any]:
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def of_one(result: Result) -> dict[str, Any]:
    (process,) = decoded(result)["processes"]
    assert isinstance(process, dict)
    return process


def undisturbed(idle: int, look: Callable[[], tuple[object, object]]) -> None:
    """Two looks are equal. What is shared with other processes moves as these come and go: then look again."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        before = read_file(idle, "smaps")
        one, other = look()
        if read_file(idle, "smaps") == before:
            assert one == other
            return
    pytest.skip("other processes come and go all the time")


def pmap(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["pmap", *map(str, arguments)], capture_output=True, text=True, check=False)


# pmap: the list of mappings; -x -d -X -XX; several pids; exit codes


@needs_pmap
def test_the_list_is_that_of_pmap(run: Run, idle: int) -> None:
    ours = [line.split() for line in run("-q", "-d", idle).out.splitlines()]
    theirs = [line.split() for line in pmap("-q", "-d", idle).stdout.splitlines()[1:]]
    assert [(int(row[0], 16), row[1], row[2][:4]) for row in ours] == [
        (int(row[0], 16), row[1], row[2][:3] + ("s" if row[2][3] == "s" else "p")) for row in theirs
    ]
    assert [int(row[3], 16) for row in ours] == [int(row[3], 16) for row in theirs]


@needs_pmap
def test_totals_are_those_of_pmap(run: Run, idle: int) -> None:
    (line,) = [line for line in pmap("-x", idle).stdout.splitlines() if line.startswith("total")]
    total = [word for word in run("-x", idle).out.splitlines() if word.split()[:1] == ["total"]]
    assert total[0].split()[1:4] == line.split()[2:5]


def test_totals_are_those_of_the_rollup(run: Run, idle: int) -> None:
    def look() -> tuple[object, object]:
        process = of_one(run("--json", idle))
        rollup = {name.lower(): size for name, size in parse_fields(read_file(idle, "smaps_rollup")).sizes.items()}
        assert process["torn"] is False and len(rollup) > 15
        both = process["totals"].keys() & rollup.keys()
        assert {"rss", "pss", "swap", "private_dirty"} <= both
        totals = {name: process["totals"][name] for name in both}
        return (totals, process["rollup"]), ({name: rollup[name] for name in both}, rollup)

    undisturbed(idle, look)


@pytest.mark.parametrize("field", ["rss", "size", "swap", "private_dirty", "anonymous", "uss"])
def test_the_rows_add_up(run: Run, idle: int, field: str) -> None:
    process = of_one(run("--json", idle))
    assert process["totals"][field] == sum(row[field] for row in process["vmas"])


def test_every_field_of_the_kernel_is_there(run: Run, idle: int) -> None:
    names = set(re.findall(rb"^(\w+):", read_file(idle, "smaps"), re.MULTILINE))
    assert {name.decode().lower() for name in names} <= set(of_one(run("--json", idle))["vmas"][0])
    titles = run("-XX", idle).out.splitlines()[1].split()
    assert {name.decode().lower() for name in names} <= set(titles)


def test_the_usual_view(run: Run, idle: int) -> None:
    result = run(idle)
    first, titles, *rows = result.out.splitlines()
    assert result.code == 0 and result.err == "" and first.startswith(f"{idle}: {sys.executable}")
    assert titles.split() == ["address", "perms", "size", "rss", "pss", "dirty", "swap", "class", "path"]
    assert any("[heap]" in row and " heap " in row for row in rows)
    assert any("[vdso]" in row for row in rows)


def test_several_processes_and_their_directories(run: Run, idle: int) -> None:
    own = os.getpid()
    result = run(f"/proc/{idle}", own, f"/proc/{own}/", "--json")
    assert [process["pid"] for process in decoded(result)["processes"]] == [idle, own]
    assert run(idle, own).out.count("\n\n") == 1


def test_some_do_not_exist(run: Run, idle: int) -> None:
    result = run("-x", NO_PID, idle)
    assert result.code == 42
    assert result.err == f"memtrace: process {NO_PID} does not exist or has ended\n"
    assert f"{idle}: " in result.out


def test_none_exists(run: Run) -> None:
    result = run(NO_PID, "999999999999")
    assert (result.code, result.out) == (42, "") and len(result.err.splitlines()) == 2
    assert [row["why"] for row in json.loads(run("--json", NO_PID).out)["unreadable"]] == ["gone"]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["-x", "-X", "1"], ["-d", "-c", "rss", "1"], ["--json", "--csv", "1"], [], ["abc"], ["0"], ["-A", "zz", "1"]),
        *(["--min-size", "1X", "1"], ["--path", "(", "1"], ["--perms", "q", "1"], ["--save-columns", "x", "1"]),
        *(["-c", "nonsense", "self"], ["-c", ",", "1"], ["-c", "@none", "1"], ["--capture", "x", "--from", "y"]),
        *(["--csv", "--by", "class", "1"], ["--capture", "x", "--quick"]),
        *(["-s", "nonsense", "self"], ["--save-columns", "a/b", "-c", "rss"]),
    ],
)
def test_usage(run: Run, arguments: list[str]) -> None:
    words = [str(os.getpid()) if word == "self" else word for word in arguments]
    result = run(*words)
    assert (result.code, result.out) == (2, ""), result
    assert result.err.startswith("memtrace: ") and len(result.err.splitlines()) <= 2


# Reasons


def test_a_zombie_is_named(run: Run) -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        result = run(process.pid)
    assert result.code == 1 and "is a zombie" in result.err and len(result.err.splitlines()) == 1


def kernel_thread() -> int:
    for pid in LiveSource().pids():
        with contextlib.suppress(Exception):
            if is_kernel_thread(pid):
                return pid
    pytest.skip("no thread of the kernel is to be seen (a container?)")


def test_a_thread_of_the_kernel_is_named(run: Run) -> None:
    result = run(kernel_thread())
    assert result.code == 1 and "is a thread of the kernel" in result.err


LEADER_EXITS = """
import ctypes, os, sys, threading
libc = ctypes.CDLL(None)
block = bytearray(8 << 20)
def stay():
    while open(f"/proc/{os.getpid()}/task/{os.getpid()}/stat").read().rsplit(")")[-1].split()[0] != "Z": pass
    os.write(1, b"ready\\n")
    sys.stdin.buffer.raw.read()
threading.Thread(target=stay).start()
libc.syscall(60, 0)  # exit: of this thread alone
"""


def test_a_leader_that_has_exited_while_threads_live(run: Run) -> None:
    with child(LEADER_EXITS) as process:
        result = run("--json", process.pid)
        found = of_one(result)
        assert found["totals"]["rss"] > 8 << 20
        assert "the first thread has exited" in found["notes"][0]
        assert any(row["class"] == "heap" for row in found["vmas"])


@pytest.fixture
def as_nobody() -> Callable[..., Result]:
    """Run the command in a child of this process that has given up its rights."""

    def command(*arguments: object) -> Result:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reading)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                out, err = io.StringIO(), io.StringIO()
                sys.argv = ["memtrace", "maps", *map(str, arguments)]
                code: object = None
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    try:
                        main_module.main()
                    except SystemExit as end:
                        code = end.code
                with open(writing, "w", encoding="utf-8") as file:
                    json.dump([code, out.getvalue(), err.getvalue()], file)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        with open(reading, encoding="utf-8") as file:
            answer = json.load(file)
        os.waitpid(pid, 0)
        return Result(*answer)

    return command


@needs_root
def test_without_permission_the_reason_is_said(as_nobody: Callable[..., Result], idle: int) -> None:
    result = as_nobody(idle)
    assert (result.code, result.out) == (1, "")
    assert f"process {idle}: no permission to read" in result.err and "sudo" in result.err
    assert len(result.err.splitlines()) == 1
    assert as_nobody(idle, NO_PID).code == 42
    (row,) = json.loads(as_nobody("--json", idle).out)["unreadable"]
    assert row["why"] == "permission"


@needs_root
def test_ones_own_processes_need_no_root(as_nobody: Callable[..., Result]) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **NOBODYS) as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        process.stdout.readline()
        found = of_one(as_nobody("--json", process.pid))
        process.kill()
    assert found["totals"]["pss"] == found["rollup"]["pss"] > 0
    assert {"heap", "stack"} <= {row["class"] for row in found["vmas"]}


# Names


NAMES = """
import mmap, os, sys
maps = []
for name in os.listdir(sys.argv[1].encode()):
    with open(os.path.join(sys.argv[1].encode(), name), "r+b") as file:
        maps.append(mmap.mmap(file.fileno(), 8192))
        maps[-1][0] = 1
print("ready", flush=True)
sys.stdin.read()
"""
STRANGE = [b"ends 12 kB", b"Rss: 5 kB", b"lat\xe9n\xff", b"line\nbreak", b"two  blanks ", b"[heap]", b"x (deleted)"]


def test_names_are_whole_whatever_they_hold(run: Run, tmp_path: Path) -> None:
    for name in STRANGE:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(bytes(8192))
    with child(NAMES, tmp_path) as process:
        found = of_one(run("--json", process.pid))
        text = run(process.pid)
    paths = {row["path"]: row for row in found["vmas"]}
    for name in STRANGE:
        shown = f"{tmp_path}/" + name.replace(b"\n", b"\\012").decode("utf-8", "backslashreplace")
        assert paths[shown]["size"] == 8192 and paths[shown]["rss"] >= 4096, shown
        assert shown.rstrip() in text.out
    assert found["totals"]["size"] == sum(row["size"] for row in found["vmas"])


DEEP = """
import mmap, os, sys
os.chdir(sys.argv[1])
for _ in range(17):
    os.mkdir("d" * 230)
    os.chdir("d" * 230)
with open("end", "w+b") as file:
    file.truncate(4096)
    kept = mmap.mmap(file.fileno(), 4096)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_path_of_four_kib(run: Run, tmp_path: Path) -> None:
    with child(DEEP, tmp_path) as process:
        found = of_one(run("--json", process.pid))
        table = run("-p", process.pid)
    (row,) = [row for row in found["vmas"] if row["path"].endswith("/end")]
    assert len(row["path"]) > 3900 and row["size"] == 4096
    assert row["path"] in table.out
    assert found["totals"]["size"] < 1 << 40


def test_a_thread_has_its_stack(run: Run) -> None:
    code = "import sys, threading; t = threading.Thread(target=sys.stdin.read); t.start(); print('ready', flush=True)"
    with child(code) as process:
        # The thread's stack pointer shows once it waits in the kernel.
        task = Path(f"/proc/{process.pid}/task")
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            (tid,) = [int(entry.name) for entry in task.iterdir() if int(entry.name) != process.pid]
            if (task / str(tid) / "syscall").read_text().startswith("0 "):
                break
        found = of_one(run("--json", process.pid))
        text = run(process.pid).out
    owners = [(row["class"], row["threads"]) for row in found["vmas"] if row["threads"]]
    if not owners and not any(row["class"] == "thread stack" for row in found["vmas"]):
        pytest.skip("this C library's stacks cannot be told without memory")
    ((name, threads),) = owners
    assert (name, threads[0]["tid"]) == ("thread stack", tid) and threads[0]["name"].startswith("python")
    assert f"[stack of {tid} python" in text


# Torn readings, many VMAs, costs


# Two threads: one cuts and joins VMAs, one moves a VMA to and fro across them, which a reader meets never or twice.
CHURN = """
import ctypes, mmap, random, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, COUNT = 4096, 3000
LOW, BASE, HIGH = 0x100000000000, 0x300000000000, 0x500000000000
PRIVATE_FIXED = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10
base = libc.mmap(BASE, COUNT * PAGE, 3, PRIVATE_FIXED, -1, 0)
libc.mmap(LOW, 16 * PAGE, 3, PRIVATE_FIXED, -1, 0)
libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
for page in range(0, COUNT, 2):
    libc.mprotect(base + page * PAGE, PAGE, 1)
def cut():
    while True:
        page, pages = random.randrange(COUNT - 8), random.randrange(1, 8)
        libc.mprotect(base + page * PAGE, pages * PAGE, random.choice((1, 3)))
def move():
    while True:
        libc.mremap(LOW, 16 * PAGE, 16 * PAGE, 3, HIGH)
        libc.mremap(HIGH, 16 * PAGE, 16 * PAGE, 3, LOW)
for target in (cut, move):
    threading.Thread(target=target, daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


def test_churn_is_no_error_and_is_said() -> None:
    with child(CHURN) as process:
        source, torn = LiveSource(), 0
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and not torn:
            target = find_target(source, process.pid)
            assert isinstance(target, Target)
            found = read_process(source, target, Needs())
            assert isinstance(found, ProcessMaps)
            torn += found.torn
            assert "[heap]" in {attributes.path.decode() for attributes in found.table.attributes.used()}
        assert torn


def test_churn_by_every_form(run: Run) -> None:
    with child(CHURN) as process:
        for arguments in (["--json"], ["--csv"], ["-XX"], ["--by", "class"], ["--quick"], ["-d"]):
            assert run(*arguments, process.pid).code == 0


def test_sixty_thousand_vmas(run: Run) -> None:
    if int(Path("/proc/sys/vm/max_map_count").read_text()) < 61_000:
        pytest.skip("vm.max_map_count allows fewer VMAs")
    with child((ROOT / "tests/targets/many_vmas.py").read_text(), 60_000) as process:
        table = run(process.pid)
        assert table.code == 0 and "60,0" in table.out.splitlines()[-4] + table.out.splitlines()[-3]
        assert "takes about 0." in table.err and "--quick" in table.err
        full, quick = (of_one(run(option, "--json", process.pid)) for option in ("--full", "--quick"))
        assert (full["source"], quick["source"]) == ("smaps", "pagemap")
        assert len(full["vmas"]) > 60_000
        for field in ("start", "end", "perms", "rss", "anonymous", "swap", "path"):
            assert [row[field] for row in full["vmas"]] == [row[field] for row in quick["vmas"]], field
        assert full["totals"]["rss"] == parse_fields(read_file(process.pid, "smaps_rollup")).sizes["Rss"]
        assert full["totals"]["rss"] == sum(row["rss"] for row in full["vmas"])


def test_what_costs_more_than_a_second_is_not_read_unasked(
    run: Run, idle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tracer.maps import read

    monkeypatch.setattr(read, "estimate_seconds", lambda source, target: 4.5)
    unasked, asked = run(idle), run("--full", idle)
    assert "takes about 4.5 s" in unasked.err and "page tables are read instead" in unasked.err
    assert "anonymous" in unasked.out.splitlines()[1] and "pss" not in unasked.out.splitlines()[1]
    assert "takes about 4.5 s" in asked.err and "pss" in asked.out.splitlines()[1]


def test_only_smaps_is_costly(run: Run, idle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def record(path: str, *arguments: Any, **options: Any) -> Any:
        opened.append(path)
        return open(path, *arguments, **options)

    monkeypatch.setattr(files, "open", record, raising=False)
    run("-d", idle)
    assert f"/proc/{idle}/maps" in opened
    assert not [path for path in opened if "smaps" in path or "pagemap" in path]
    target = find_target(LiveSource(), idle)
    assert isinstance(target, Target) and 0 < estimate_seconds(LiveSource(), target) < 0.1


# Options that need a process


def test_ranges_filters_sorting(run: Run, idle: int) -> None:
    rows = of_one(run("--json", idle))["vmas"]
    heap = next(row for row in rows if row["class"] == "heap")
    (found,) = of_one(run("--json", "-A", heap["start"], idle))["vmas"]
    assert found["start"] == heap["start"]
    high = f"{int(rows[4]['end'], 16) - 1:x}"
    assert len(of_one(run("--json", "-A", f"{rows[0]['start']},{high}", idle))["vmas"]) == 5
    by_rss = [row["rss"] for row in of_one(run("--json", "-s", "rss", "-n", "5", idle))["vmas"]]
    assert by_rss == sorted((row["rss"] for row in rows), reverse=True)[:5]
    assert {row["class"] for row in of_one(run("--json", "--class", "heap", idle))["vmas"]} == {"heap"}
    libc = run("-q", "--path", r"libc\.so", "--perms", "x", idle).out.splitlines()
    assert len(libc) == 1 and "r-xp" in libc[0]


def test_groups_add_up(run: Run, idle: int) -> None:
    for key in ("class", "library", "perms"):
        found = of_one(run("--json", "--by", key, idle))
        for field in ("rss", "size", "vmas"):
            assert sum(group[field] for group in found["groups"]) == found["totals"][field]
    assert "libc.so.6" in run("--by", "library", idle).out


def test_saved_columns(run: Run, idle: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run("-c", "rss,swappss,path", "--save-columns", "short").code == 0
    assert run("-c", "@short", idle).out.splitlines()[1].split() == ["rss", "swappss", "path"]
    assert run("-c", "rss", "--save-columns", "short").code == 2
    assert run("-c", "rss", "--save-columns", "short", "--force").code == 0
    assert run("-c", "@short", idle).out.splitlines()[1].split() == ["rss"]


def test_csv(run: Run, idle: int) -> None:
    rows = list(csv.DictReader(io.StringIO(run("--csv", idle).out)))
    assert {row["class"] for row in rows} >= {"heap", "stack"} and all(int(row["rss"]) % 1024 == 0 for row in rows)


def test_output_file(run: Run, idle: int, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert run("--json", "-o", path, idle) == Result(0, "", "")
    assert json.loads(path.read_text())["schema"] == "memtrace-maps/1"
    assert run("--json", "-o", path, idle).code == 2


def test_capture_and_replay_show_the_same(run: Run, idle: int, tmp_path: Path) -> None:
    path = tmp_path / "x.capture"

    def look() -> tuple[object, object]:
        made = run("--capture", path, "--force", idle)
        assert made.code == 0 and made.out == "" and "1 process captured in" in made.err
        choices: tuple[list[str], ...] = ([], ["-XX"], ["--by", "class"], ["--csv"], ["-d"], ["--json"])
        return [run(*choice, idle) for choice in choices], [run(*choice, "--from", path) for choice in choices]

    undisturbed(idle, look)
    assert run("--from", path, NO_PID).code == 42
    assert run("--capture", path, idle).code == 2
    assert run("--capture", tmp_path / "y", NO_PID).code == 42 and not (tmp_path / "y").exists()


@needs_root
def test_a_capture_needs_no_root_to_be_read(run: Run, as_nobody: Callable[..., Result], idle: int) -> None:
    path = Path(f"/dev/shm/memtrace-test-{os.getpid()}")
    try:
        assert run("--capture", path, idle).code == 0
        assert as_nobody("--from", path).code == 1  # its owner alone may read it
        path.chmod(0o644)
        assert of_one(as_nobody("--json", "--from", path))["pid"] == idle
    finally:
        path.unlink(missing_ok=True)


def test_a_broken_capture_is_one_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"PK\x03\x04 but not really")
    result = run("--from", path)
    assert (result.code, result.out) == (1, "") and len(result.err.splitlines()) == 1
    assert result.err.startswith(f"memtrace: {path} is damaged, or is no capture")


# The terminal


def installed(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": os.environ["PATH"], **environment}
    command = [sys.executable, "-m", "tracer", "maps", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=False)


@pytest.mark.parametrize(
    "environment",
    [{}, {"NO_COLOR": "1"}, {"TERM": "dumb"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
)
@pytest.mark.parametrize("width", ["60", "80", "200"])
def test_every_terminal(idle: int, environment: dict[str, str], width: str) -> None:
    done = installed(idle, COLUMNS=width, **environment)
    assert done.returncode == 0 and done.stderr == b"" and b"\x1b" not in done.stdout
    text = done.stdout.decode("ascii" if "LC_ALL" in environment else "utf-8")
    assert max(map(len, text.splitlines())) <= int(width)


def test_a_reader_that_goes_away_is_no_traceback(idle: int) -> None:
    command = [sys.executable, "-m", "tracer", "maps", "-XX", *([str(idle)] * 2), str(os.getpid())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


def test_why_not_is_data_too() -> None:
    found = find_target(LiveSource(), int(NO_PID))
    assert isinstance(found, Unreadable) and (found.why, found.pid) == ("gone", int(NO_PID))


def test_shared_memory_of_sysv(run: Run) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    libc.shmdt.argtypes = [ctypes.c_void_p]
    segment = libc.shmget(0, 8192, 0o1600)  # IPC_PRIVATE, IPC_CREAT
    if segment < 0:
        pytest.skip("no SysV shared memory here")
    address = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)  # IPC_RMID: goes with the last who has it
    try:
        out = run("-A", f"{address:x}", os.getpid()).out
    finally:
        libc.shmdt(address)
    assert f"[shmid=0x{segment:x}]" in out and "shared memory" in out
