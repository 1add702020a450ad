"""Do the books close on real servers? Each is traced under load, and its growth compared with /proc/PID/status.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.ledger [NAME...]

Servers that are not installed are left out, and said so. The load ends before the trace, so that the process has
settled: then the end of the report and /proc/PID/status must agree to the byte.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.harness import Memtrace, wait_for
from tracer.procfs.status import read_counters

QUIET = subprocess.DEVNULL


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: the process to trace, and its load, which returns when it is over."""

    pid: int
    load: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Result:
    name: str
    growth: int
    off: int
    ledger_off: int
    unexplained: int
    gross: int
    with_stack: int
    verdict: str
    notes: tuple[str, ...]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextmanager
def started(*command: str, port: int = 0, user: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=QUIET, stderr=QUIET, stdin=QUIET, user=user, group=user)
    try:
        if port:
            wait_for(lambda: answers(port), f"{command[0]} to listen")
        yield process
    finally:
        process.terminate()
        process.wait()


@contextmanager
def redis(_directory: Path) -> Iterator[Server]:
    port = free_port()
    with started("redis-server", "--port", str(port), "--save", "", "--appendonly", "no", port=port) as process:

        def load() -> None:
            bench = ["redis-benchmark", "-p", str(port), "-q", "-t", "set,lpush,hset", "-r", "200000", "-d", "200"]
            subprocess.run([*bench, "-n", "40000"], stdout=QUIET, stderr=QUIET, check=True)

        yield Server(process.pid, load)


@contextmanager
def postgres(directory: Path) -> Iterator[Server]:
    """A session that fills its caches and sorts in memory."""
    port, binaries = free_port(), sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    data = directory / "data"
    os.chown(directory, pwd.getpwnam("postgres").pw_uid, -1)
    directory.chmod(0o755)
    as_user = {"user": "postgres", "stdout": QUIET, "stderr": QUIET, "check": True}
    subprocess.run([binaries / "initdb", "-D", data], **as_user)
    options = ["-D", str(data), "-p", str(port), "-k", str(directory), "-c", "shared_buffers=64MB"]
    with started(str(binaries / "postgres"), *options, port=port, user="postgres"):
        connect = ["psql", "-h", str(directory), "-p", str(port), "-U", "postgres", "-qAt"]
        client = subprocess.Popen(connect, stdin=subprocess.PIPE, stdout=subprocess.PIPE, user="postgres", text=True)
        assert client.stdin is not None and client.stdout is not None

        def ask(question: str) -> str:
            assert client.stdin is not None and client.stdout is not None
            client.stdin.write(f"{question};\n")
            client.stdin.flush()
            return client.stdout.readline().strip()

        def load() -> None:
            ask(
                "set work_mem='99MB'; create table t as select i, md5(i::text) m from generate_series(1,2e5) i;select 1"
            )
            for _ in range(4):
                ask("select count(*) from (select m from t order by m) s")
                ask("select count(*) from (select array_agg(m) from t group by i % 100) s")

        try:
            yield Server(int(ask("select pg_backend_pid()")), load)
        finally:
            client.kill()
            client.wait()


@contextmanager
def nginx(directory: Path) -> Iterator[Server]:
    port = free_port()
    (directory / "page").write_bytes(b"x" * 300_000)
    directory.chmod(0o755)
    (directory / "conf").write_text(
        f"daemon off; worker_processes 1; pid {directory}/pid; error_log /dev/null; user nobody nogroup;\n"
        f"events {{ worker_connections 900; }}\n"
        f"http {{ access_log off; root {directory}; gzip on; gzip_types *; server {{ listen 127.0.0.1:{port}; }} }}\n"
    )
    with started("nginx", "-c", str(directory / "conf"), port=port) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        wait_for(lambda: bool(children.read_text().split()), "nginx's worker")

        def load() -> None:
            sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(300)]
            for each in sockets:
                each.sendall(b"GET /page HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
            time.sleep(2)  # answers pile up in the worker's buffers: nobody reads them
            held.extend(sockets)

        held: list[socket.socket] = []
        yield Server(int(children.read_text().split()[0]), load)
        for each in held:
            each.close()


@contextmanager
def java(directory: Path) -> Iterator[Server]:
    (directory / "Grow.java").write_text(JAVA)
    with interpreter(["java", "-Xmx512m"], str(directory / "Grow.java"))(directory) as server:
        yield server


def interpreter(command: list[str], program: str) -> Callable[[Path], contextlib.AbstractContextManager[Server]]:
    """A program that does its work when it reads a line."""

    @contextmanager
    def running(_directory: Path) -> Iterator[Server]:
        process = subprocess.Popen([*command, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()

        def load() -> None:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            process.stdout.readline()

        try:
            yield Server(process.pid, load)
        finally:
            process.kill()
            process.wait()

    return running


PYTHON = """
import json, sys, threading, time
print("ready", flush=True); sys.stdin.readline()
kept = []
for i in range(60):
    kept.append(json.loads(json.dumps({str(k): [k] * 20 for k in range(2000)})))
    kept.append(bytearray(200_000))
    if i % 3 == 0: kept.pop(0)
    time.sleep(0.03)
threads = [threading.Thread(target=time.sleep, args=(60,), daemon=True) for _ in range(8)]
[t.start() for t in threads]
print("done", flush=True); time.sleep(60)
"""
NODE = """
console.log("ready");
process.stdin.once("data", async () => {
  const kept = [];
  for (let i = 0; i < 60; i++) {
    kept.push(JSON.parse(JSON.stringify(Array.from({length: 20000}, (_, k) => ({k, s: "v" + k})))));
    kept.push(Buffer.alloc(300000, 1));
    await new Promise(done => setTimeout(done, 30));
  }
  console.log("done"); setTimeout(() => kept, 60000);
});
"""
JAVA = """
public class Grow {
    public static void main(String[] arguments) throws Exception {
        System.out.println("ready");
        System.in.read();
        var kept = new java.util.ArrayList<Object>();
        for (int i = 0; i < 60; i++) {
            kept.add(new byte[1 << 20]);
            kept.add(java.nio.ByteBuffer.allocateDirect(100_000));
            Thread.sleep(30);
        }
        System.out.println("done");
        Thread.sleep(60_000);
    }
}
"""

SERVERS: dict[str, tuple[str, Callable[[Path], contextlib.AbstractContextManager[Server]]]] = {
    "redis-server": ("redis-server", redis),
    "postgres": ("psql", postgres),
    "nginx": ("nginx", nginx),
    "python3": ("/usr/bin/python3", interpreter(["/usr/bin/python3", "-c"], PYTHON)),
    "node": ("node", interpreter(["node", "-e"], NODE)),
    "java": ("java", java),
}


def measure(
    name: str, begin: Callable[[Path], contextlib.AbstractContextManager[Server]], options: list[str]
) -> Result:
    with tempfile.TemporaryDirectory() as directory, begin(Path(directory)) as server:
        tracing = Memtrace(server.pid, *options)
        server.load()
        last = 0

        def settled() -> bool:
            nonlocal last
            time.sleep(0.5)
            before, last = last, read_counters(server.pid).rss
            return before == last

        wait_for(settled, f"{name} to settle")
        status = read_counters(server.pid).rss
        report = tracing.stop().required_report()
        ledger = report["ledger"]
        return Result(
            name,
            report["rss"]["growth"],
            report["rss"]["end"] - status,
            sum(row["bytes"] for row in ledger) - report["rss"]["growth"],
            sum(abs(row["bytes"]) for row in ledger if row["cause"] == "unexplained"),
            sum(row["bytes"] for row in ledger if row["bytes"] > 0),
            sum(row["bytes"] for row in ledger if row["stack"]),
            report["verdict"]["kind"],
            tuple(report["notes"]),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*SERVERS, []], metavar="NAME", help=", ".join(SERVERS))
    parser.add_argument("--notes", action="store_true", help="print the notes of each report, too")
    arguments, options = parser.parse_known_args()
    print("| server | growth | status - report | growth - ledger | unexplained | has a cause | verdict |")
    print("|---|---|---|---|---|---|---|")
    for name in arguments.names or SERVERS:
        command, begin = SERVERS[name]
        if shutil.which(command) is None:
            print(f"{name}: {command} is not installed", file=sys.stderr)
            continue
        found = measure(name, begin, options)
        caused = 1 - found.unexplained / found.gross if found.gross else 1.0
        print(
            f"| {name} | {found.growth / 1024:,.0f} KiB | {found.off} B | {found.ledger_off} B "
            f"| {found.unexplained / 1024:,.0f} KiB | {caused:.1%} | {found.verdict} |",
            flush=True,
        )
        if arguments.notes:
            print(*(f"  {note}\n" for note in found.notes), sep="", end="", flush=True)


if __name__ == "__main__":
    main()
