"""Debug files from servers: what is right is used and kept, what lies, dawdles or never ends is named."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tracer.symbols.debuginfod import Debuginfod
from tracer.symbols.debugstore import DebugStore
from tracer.symbols.elf import ElfImage

Answer = Callable[[http.server.BaseHTTPRequestHandler], object]


def quiet(line: str) -> None:
    pass


class Server:
    """A server on loopback that answers every request with ``answer``, and keeps the paths that were asked for."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.answer: Answer = lambda request: request.send_error(404)
        self.closing = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.paths.append(self.path)
                server.answer(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are the rule here
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture(scope="module")
def debug_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    directory = tmp_path_factory.mktemp("debug")
    (directory / "a.c").write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", "-g", "-Wl,--build-id=sha1", "-o", "a", "a.c"], cwd=directory, check=True)
    return directory / "a"


@pytest.fixture
def build_id(debug_file: Path) -> str:
    with ElfImage.open(str(debug_file)) as image:
        assert image.build_id is not None
        return image.build_id


def sending(data: bytes, *, length: int | None = None, status: int = 200) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(data) if length is None else length))
        request.end_headers()
        request.wfile.write(data)

    return answer


def client(server: Server, directory: Path, said: list[str] | None = None, **limits: float) -> Debuginfod:
    say = said.append if said is not None else quiet
    found = Debuginfod([server.url], DebugStore(directory / "cache"), say, timeout=2.0, budget=5.0)
    for name, value in limits.items():
        setattr(found, f"_{name}", value)
    return found


def test_a_file_is_fetched_and_kept(server: Server, debug_file: Path, build_id: str, tmp_path: Path) -> None:
    server.answer = sending(debug_file.read_bytes())
    said: list[str] = []
    first = client(server, tmp_path, said)
    with_file = first.fetch(build_id, "a")
    assert with_file is not None and with_file.build_id == build_id
    with_file.close()
    assert server.paths == [f"/buildid/{build_id}/debuginfo"]
    assert server.url in said[0] and "of debug information of a" in said[1]
    assert not first.problems
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name == f"{build_id}.debug" and kept.stat().st_mode & 0o777 == 0o600
    again = client(server, tmp_path).fetch(build_id, "a")
    assert again is not None and len(server.paths) == 1
    again.close()


def test_unknown_files_are_asked_for_once_in_a_session(server: Server, build_id: str, tmp_path: Path) -> None:
    session = client(server, tmp_path)
    assert session.fetch(build_id, "a") is None and session.fetch(build_id, "a") is None
    assert len(server.paths) == 1 and not session.problems
    assert not list((tmp_path / "cache").iterdir())
    assert client(server, tmp_path).fetch(build_id, "a") is None
    assert len(server.paths) == 2


@pytest.mark.parametrize(
    "name", [None, "", "ab", "../../etc/passwd", "ABCDEF0123456789", "0" * 200, "12345678/../x", "1234567g"]
)
def test_only_build_ids_go_into_the_address(server: Server, name: str | None, tmp_path: Path) -> None:
    assert client(server, tmp_path).fetch(name, "a") is None
    assert server.paths == []


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    while True:
        request.wfile.write(b"\x7fELF" + bytes(1 << 16))


def redirecting(target: str) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(302)
        request.send_header("Location", target)
        request.end_headers()

    return answer


LIES: dict[str, tuple[Callable[[bytes], Answer], str]] = {
    "another file": (sending, "wrong build ID"),
    "a page": (lambda data: sending(b"<html>Please log in</html>"), "not an ELF file"),
    "nothing": (lambda data: sending(b""), "not an ELF file"),
    "half of it": (lambda data: sending(data[: len(data) // 2], length=len(data)), "truncated"),
    "half of it, as if whole": (lambda data: sending(data[: len(data) // 2]), "truncated"),
    "a header alone": (lambda data: sending(data[:64]), "truncated or lying ELF file"),
    "a length beyond the limit": (lambda data: sending(data, length=1 << 40), "larger than allowed"),
    "no end": (lambda data: endless, "larger than allowed"),
    "an error": (lambda data: sending(b"", status=500), "HTTP status 500"),
    "a file of ours": (lambda data: redirecting("file:///etc/passwd"), "HTTP status 302"),
    "a loop": (lambda data: redirecting("/again"), "HTTP status 302"),
    "no HTTP": (
        lambda data: lambda request: request.wfile.write(b"\x00\xff" * 99 + b"\r\n\r\n"),
        "broken answer",
    ),
    "endless headers": (
        lambda data: lambda request: request.wfile.write(b"HTTP/1.0 200 OK\r\n" + b"A: b\r\n" * 9999),
        "broken answer",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_named(lie: str, server: Server, debug_file: Path, build_id: str, tmp_path: Path) -> None:
    data = debug_file.read_bytes()
    make, problem = LIES[lie]
    if lie == "another file":
        at = data.index(bytes.fromhex(build_id))
        server.answer = sending(data[:at] + b"\0" + data[at + 1 :])
    else:
        server.answer = make(data)
    session = client(server, tmp_path, max_file=1 << 22)
    assert session.fetch(build_id, "a") is None
    assert list(session.problems) == [problem]
    assert not list((tmp_path / "cache").iterdir())


def slow_headers(server: Server) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        while not server.closing.wait(0.1):
            request.wfile.write(b"H")

    return answer


def slow_body(server: Server) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        request.wfile.write(b"\x7fELF")
        while not server.closing.wait(0.1):
            request.wfile.write(b"x")

    return answer


def silent(server: Server) -> Answer:
    return lambda request: server.closing.wait(30)


@pytest.mark.parametrize("make", [slow_headers, slow_body, silent])
def test_dawdling_servers_are_given_up(
    make: Callable[[Server], Answer], server: Server, build_id: str, tmp_path: Path
) -> None:
    server.answer = make(server)
    session = client(server, tmp_path, left=0.7)
    start = time.monotonic()
    assert session.fetch(build_id, "a") is None
    assert session.fetch("ab" * 20, "b") is None
    assert time.monotonic() - start < 15  # Hours, where only each read has a limit.
    assert session.problems["too slow"] == 1 and len(server.paths) == 1
    assert not list((tmp_path / "cache").iterdir())


def test_a_server_that_is_not_there(build_id: str, tmp_path: Path) -> None:
    session = Debuginfod(["http://127.0.0.1:1"], DebugStore(tmp_path / "cache"), quiet)
    assert session.fetch(build_id, "a") is None and session.fetch("ab" * 20, "b") is None
    assert session.problems == {"cannot connect": 1}


def test_the_next_server_is_asked(server: Server, debug_file: Path, build_id: str, tmp_path: Path) -> None:
    server.answer = sending(debug_file.read_bytes())
    session = Debuginfod(["http://127.0.0.1:1", server.url + "/"], DebugStore(tmp_path / "cache"), quiet)
    found = session.fetch(build_id, "a")
    assert found is not None and server.paths == [f"/buildid/{build_id}/debuginfo"]
    found.close()


def test_a_directory_that_others_may_write_to_is_not_used(
    server: Server, debug_file: Path, build_id: str, tmp_path: Path
) -> None:
    server.answer = sending(debug_file.read_bytes())
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    session = client(server, tmp_path)
    assert session.fetch(build_id, "a") is None
    assert set(session.problems) == {
        "cache not usable: others may write to it",
        "cannot write the cache: others may write to it",
    }
    assert not server.paths


def test_what_lies_in_the_cache_is_checked(debug_file: Path, build_id: str, tmp_path: Path) -> None:
    store = DebugStore(tmp_path / "cache")
    kept = tmp_path / "cache" / f"{build_id}.debug"
    kept.parent.mkdir(mode=0o700)
    assert store.load(build_id) is None and not store.problems
    for data in (debug_file.read_bytes()[:-100], b"", b"junk", b"\x7fELF" + bytes(600)):
        kept.write_bytes(data)
        kept.chmod(0o600)
        assert store.load(build_id) is None
    assert store.problems == {"damaged file in the cache": 4}
    shutil.copy(debug_file, kept)
    kept.chmod(0o666)
    assert store.load(build_id) is None
    kept.unlink()
    kept.symlink_to(debug_file)
    assert store.load(build_id) is None
    assert store.problems["file in the cache not trusted"] == 1
    assert sum(store.problems.values()) == 6


def test_the_cache_is_bounded(debug_file: Path, build_id: str, tmp_path: Path) -> None:
    store = DebugStore(tmp_path / "cache", limit=3 * debug_file.stat().st_size // 2)
    with store.writer(build_id) as writer:
        writer.write(debug_file.read_bytes())
        writer.commit().close()
    old = tmp_path / "cache" / f"{'ab' * 20}.debug"
    shutil.copy(debug_file, old)
    stale = tmp_path / "cache" / f".{build_id}.1.2.debug"
    stale.write_bytes(b"x")
    for path in (old, stale):
        os.utime(path, (1, 1))
    (tmp_path / "cache" / "other").write_bytes(b"somebody's")
    with store.writer(build_id) as writer:
        writer.write(b"never committed")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [f"{build_id}.debug", "other"]


def test_the_user_says_which_servers() -> None:
    assert Debuginfod.from_environment({}, quiet) is None
    assert Debuginfod.from_environment({"DEBUGINFOD_URLS": "ftp://x file:///etc"}, quiet) is None
    assert Debuginfod.from_environment({"DEBUGINFOD_URLS": " http://a  https://b "}, quiet) is not None
