"""What cannot be traced: one or two lines that say why and what to do, the right exit code, and nothing else."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bpf.conftest import StartTarget
from tests.bpf.harness import (
    DEADLINE,
    ROOT,
    Finished,
    Memtrace,
    memtrace_command,
    process_state,
    run_memtrace,
    wait_for,
)

pytestmark = pytest.mark.bpf

CANNOT_TRACE, USAGE = 1, 2
NO_PID = 2**22  # one above the largest pid that a kernel gives out (proc_sys_kernel(5), pid_max)

# Nothing compiled is at hand: an empty file system hides what is kept.
_WITHOUT_CACHE = "mkdir -p /var/cache/memtrace && mount -t tmpfs none /var/cache/memtrace && unset MEMTRACE_CACHE_DIR"
_BCC = "/usr/lib/python3/dist-packages/bcc"

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 38, 22, 2


GO_PROGRAM = r"""
#include <stdlib.h>
#include <unistd.h>
__asm__(".pushsection .note.go.buildid,\"a\",@note\n"
        ".long 4, 4, 4\n.asciz \"Go\\0\"\n.long 0\n"
        ".popsection");
int main(void)
{
    char command;
    free(malloc(9));
    write(1, "{\"ready\": true}\n", 16);
    return read(0, &command, 1) < 0;
}
"""


def assert_refused(done: Finished, code: int, *words: str) -> None:
    """One or two lines on stderr that hold the words, an exit code, no report and no traceback."""
    lines = done.stderr.splitlines()
    assert "Traceback" not in done.stderr
    assert 1 <= len(lines) <= 2, done.stderr
    assert lines[0].startswith("memtrace: ")
    assert not lines[0].startswith("memtrace: memtrace failed"), done.stderr  # that is for what nobody thought of
    assert all(line.startswith("  ") and line.strip() for line in lines[1:]), done.stderr
    assert not [word for word in words if word not in done.stderr], done.stderr
    assert (done.code, done.stdout) == (code, "")


def run_command(argv: list[str], prepare: Callable[[], None] | None = None) -> Finished:
    done = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=DEADLINE,
        check=False,
        preexec_fn=prepare,
    )
    return Finished(done.returncode, None, done.stdout, done.stderr)


def test_no_such_process() -> None:
    assert_refused(run_memtrace(str(NO_PID)), CANNOT_TRACE, f"no process {NO_PID}")


@pytest.mark.parametrize("pid", ["0", "-1", "-5", "abc", "12x", "1.5", "", " ", "0x10", "99999999999999", "9" * 40])
def test_what_is_no_process_id_is_a_usage_error(pid: str) -> None:
    assert_refused(run_memtrace("attach", "--", pid), USAGE, "memtrace attach --help")


@pytest.mark.parametrize("pid", ["0", "abc", "-5"])
def test_the_short_form_refuses_it_too(pid: str) -> None:
    assert_refused(run_memtrace(pid), USAGE)


@pytest.mark.parametrize(
    "options",
    [
        ("--bogus",),
        ("-d", "0"),
        ("-d", "-1"),
        ("-d", "soon"),
        ("-d", "nan"),
        ("-i", "0"),
        ("-n", "0"),
        ("-d",),
        ("1", "2"),
        ("-o", "/nonexistent/report"),
        ("-o", "/tmp"),
    ],
)
def test_an_option_that_cannot_be_is_a_usage_error(options: tuple[str, ...]) -> None:
    assert_refused(run_memtrace(str(os.getpid()), *options, deadline=10), USAGE)


def test_a_kernel_thread() -> None:
    kthreadd = Path("/proc/2/stat").read_bytes()
    if b"(kthreadd)" not in kthreadd:
        pytest.skip("kernel threads are not visible in this pid namespace")
    assert_refused(run_memtrace("2"), CANNOT_TRACE, "kthreadd", "kernel thread")


def test_a_zombie() -> None:
    child = subprocess.Popen(["true"])
    try:
        wait_for(lambda: process_state(child.pid) == "Z", "a zombie")
        assert_refused(run_memtrace(str(child.pid)), CANNOT_TRACE, "zombie")
    finally:
        child.wait()


def test_a_thread_that_is_no_process() -> None:
    # The thread is one of ours; the process to trace instead is named.
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        done = run_memtrace(str(thread.native_id))
    finally:
        end.set()
        thread.join()
    assert_refused(done, CANNOT_TRACE, f"thread of process {os.getpid()}", f"memtrace {os.getpid()}")


def test_a_process_whose_leader_has_ended_is_traced_through_its_other_threads() -> None:
    script = (
        "import ctypes, json, os, sys, threading\n"
        "def serve():\n"
        "    while sys.stdin.read(1) not in ('', 'q'): pass\n"
        "    os._exit(0)\n"
        "threading.Thread(target=serve).start()\n"
        "os.write(1, json.dumps({'ready': True}).encode() + b'\\n')\n"
        "ctypes.CDLL(None).syscall(60, 0)\n"
    )
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is that of x86_64")
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        wait_for(lambda: process_state(target.pid) == "Z", "the leader has ended")
        done = run_memtrace(str(target.pid), "-d", "0.2", "--json")
        target.kill()
    assert (done.code, "Traceback" in done.stderr) == (0, False), done.stderr


def test_itself() -> None:
    argv = ["sh", "-c", f'exec {shlex.join(memtrace_command())} "$$"']
    assert_refused(run_command(argv), CANNOT_TRACE, "itself")


def test_without_root_it_says_what_to_type(start_target: StartTarget, readable_command: list[str]) -> None:
    target = start_target("leak_malloc")
    arguments = [str(target.pid), "-d", "5", "--json", "-o", "/tmp/a report"]
    done = run_command([*_as_nobody(), *readable_command, *arguments])
    assert_refused(done, CANNOT_TRACE, f"sudo memtrace {shlex.join(arguments)}\n")


def test_root_without_the_capability_is_refused_in_the_same_way(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    argv = ["setpriv", "--bounding-set", "-sys_admin", *memtrace_command(), str(target.pid)]
    assert_refused(run_command(argv), CANNOT_TRACE, "CAP_SYS_ADMIN", f"sudo memtrace {target.pid}")


def test_root_of_a_user_namespace_only(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    inside = ["unshare", "--user", "--map-root-user"]
    if run_command([*inside, "true"]).code:
        pytest.skip("user namespaces are switched off here")
    done = run_command([*inside, *memtrace_command(), str(target.pid), "-d", "1"])
    assert_refused(done, CANNOT_TRACE, "permi")
    assert "..." not in done.stderr  # a command to type is whole


@pytest.mark.parametrize("call", ["bpf", "perf_event_open"])
def test_a_system_call_that_is_refused(start_target: StartTarget, call: str) -> None:
    # As container runtimes do it (seccomp). Without perf events there is no rss_stat, which is told, not fatal.
    target = start_target("leak_malloc")
    done = run_command([*memtrace_command(), str(target.pid), "-d", "0.2"], lambda: _refuse(_NUMBERS[call]))
    if call == "bpf":
        assert_refused(done, CANNOT_TRACE, "not permitted")
    else:
        assert (done.code, "Traceback" in done.stderr) == (0, False), done.stderr
        assert "rss_stat cannot be used here" in " ".join(done.stdout.split())


def test_without_bcc_it_names_the_package(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    done = _run_with(f"{_WITHOUT_CACHE} && mount --bind {tmp_path} {_BCC}", str(target.pid))
    assert_refused(done, CANNOT_TRACE, "bcc", "sudo apt install python3-bpfcc")


def test_once_compiled_it_does_without_bcc(start_target: StartTarget, tmp_path: Path) -> None:
    target = start_target("leak_malloc")
    assert run_memtrace(str(target.pid), "--duration", "0.2").code == 0
    done = _run_with(f"mount --bind {tmp_path} {_BCC}", str(target.pid), "--duration", "0.2")
    assert (done.code, "RSS grew" in done.stdout) == (0, True), done


def test_with_a_bcc_that_does_not_load_it_names_the_package(start_target: StartTarget) -> None:
    target = start_target("leak_malloc")
    library = _libbcc()
    done = _run_with(f"{_WITHOUT_CACHE} && mount --bind /dev/null {library}", str(target.pid))
    assert_refused(done, CANNOT_TRACE, "bcc", "python3-bpfcc")


def test_a_static_binary_without_symbols_is_traced_by_vmas_and_faults(start_target: StartTarget) -> None:
    target = start_target("leak_malloc_stripped", 2000, 400)
    with Memtrace(target.pid) as memtrace:
        target.go()
        done = memtrace.stop()
    report = done.required_report()
    assert "no allocator found, VMAs and page faults only" in done.stderr
    assert [note for note in report["notes"] if "no malloc functions were found" in note and "page faults" in note]
    assert {stack["kind"] for stack in report["stacks"]} <= {"mmap", "brk", "fault"}
    assert report["rss"]["growth"] > 0
    assert sum(entry["bytes"] for entry in report["ledger"]) == report["rss"]["growth"]


def test_a_go_program_is_not_given_return_probes(tmp_path: Path) -> None:
    """A program with Go's note, and a function named malloc as cgo programs have: none of it is probed."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    source, program = tmp_path / "go.c", tmp_path / "go"
    source.write_text(GO_PROGRAM)
    subprocess.run(["gcc", "-static", "-w", str(source), "-o", str(program)], check=True)
    with subprocess.Popen([str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as target:
        assert target.stdout is not None and target.stdout.readline()
        done = run_memtrace(str(target.pid), "-d", "0.2", "--json")
        target.communicate(b"q")
    report = done.required_report()
    assert target.returncode == 0
    assert [note for note in report["notes"] if "is a Go program" in note and "page faults are" in note]
    assert "glibc" not in done.stderr


_NUMBERS = {"x86_64": {"bpf": 321, "perf_event_open": 298}, "aarch64": {"bpf": 280, "perf_event_open": 241}}.get(
    os.uname().machine, {}
)


@pytest.fixture
def readable_command() -> list[str]:
    """The command under test, if a user without rights can read it; skips the test if not."""
    done = run_command([*_as_nobody(), *memtrace_command(), "--version"])
    if done.code:
        pytest.skip(f"nobody cannot run {shlex.join(memtrace_command())}: {done.stderr.strip()[-200:]}")
    return memtrace_command()


def _as_nobody() -> list[str]:
    return ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


def _run_with(preparation: str, *arguments: str) -> Finished:
    """Runs memtrace in a mount namespace of its own in which a command was run before."""
    script = f'{preparation} && exec {shlex.join(memtrace_command())} "$@"'
    return run_command(["unshare", "--mount", "sh", "-c", script, "sh", *arguments])


def _libbcc() -> Path:
    found = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    match = re.search(r"libbcc\.so\.0 .*=> (\S+)", found)
    if match is None:
        pytest.skip("libbcc.so.0 is not where ldconfig knows it")
    return Path(match[1]).resolve()


def _refuse(number: int) -> None:
    """From here on this process's calls of one number fail with EPERM (seccomp(2))."""
    program = b"".join(
        struct.pack("<HBBI", *instruction)
        for instruction in (
            (0x20, 0, 0, 0),  # the call's number
            (0x15, 0, 1, number),
            (0x06, 0, 0, 0x00050001),  # SECCOMP_RET_ERRNO, EPERM
            (0x06, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
        )
    )
    instructions = ctypes.create_string_buffer(program, len(program))
    filter_program = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", 4, ctypes.addressof(instructions)), 16)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_program, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")
