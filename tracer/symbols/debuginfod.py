"""Debug files from debuginfod servers, by build ID: only where the user names servers in $DEBUGINFOD_URLS.

What a server sends is believed only if it is an ELF file with the build ID that was asked for, and whole. Time, size
and what is kept on disk are bounded. Protocol: debuginfod(8), "WEBAPI". Variables: debuginfod-client-config(7).
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from tracer.symbols.debugstore import DebugStore
from tracer.symbols.elf import ElfImage
from tracer.symbols.elftypes import ElfError
from tracer.units import human_bytes

if TYPE_CHECKING:
    from tracer.symbols.download import Transfer

URLS = "DEBUGINFOD_URLS"
CACHE_PATH = "DEBUGINFOD_CACHE_PATH"
MAX_FILE = 512 << 20
MAX_URLS = 16
CONNECT_SECONDS = 10.0
SESSION_SECONDS = 90.0

_PROGRESS_SECONDS = 2.0
_BUILD_ID = re.compile(r"[0-9a-f]{8,128}")


class Debuginfod:
    """A session's requests: each build ID is asked for once. ``problems`` counts what went wrong, by what it was.

    ``say`` receives lines of progress. All requests together take at most ``budget`` seconds, a connection or a read
    at most ``timeout``.
    """

    def __init__(
        self,
        urls: list[str],
        store: DebugStore,
        say: Callable[[str], None],
        *,
        max_file: int = MAX_FILE,
        timeout: float = CONNECT_SECONDS,
        budget: float = SESSION_SECONDS,
    ) -> None:
        self.problems: Counter[str] = Counter()
        self._urls = urls
        self._store = store
        self._say = say
        self._max_file = max_file
        self._timeout = timeout
        self._left = budget
        self._unknown: set[str] = set()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], say: Callable[[str], None]) -> Debuginfod | None:
        """The servers of $DEBUGINFOD_URLS, None where it names none; files go to $DEBUGINFOD_CACHE_PATH or ours."""
        urls = [url for url in environment.get(URLS, "").split() if url.startswith(("http://", "https://"))]
        if not urls:
            return None
        return cls(urls[:MAX_URLS], DebugStore.default(environment.get(CACHE_PATH)), say)

    def fetch(self, build_id: str | None, name: str) -> ElfImage | None:
        """The debug file of this build ID, from the cache or a server; ``name`` says in progress lines whose it is."""
        if build_id is None or not _BUILD_ID.fullmatch(build_id) or build_id in self._unknown:
            return None
        found = self._store.load(build_id)
        if found is None:
            found = self._ask_all(build_id, name)
        if found is None:
            self._unknown.add(build_id)
        self.problems.update(self._store.problems)
        self._store.problems.clear()
        return found

    def _ask_all(self, build_id: str, name: str) -> ElfImage | None:
        for url in list(self._urls):
            if self._left <= 0:
                self.problems["the time for all requests was over"] += 1
                return None
            found = self._ask(url, build_id, name)
            if found is not None:
                return found
        return None

    def _ask(self, url: str, build_id: str, name: str) -> ElfImage | None:
        # urllib takes 50 ms to import, which a session that asks nothing does not pay.
        from tracer.symbols.download import NOT_FOUND, Transfer

        self._say(f"asking {url} for the debug information of {name} ({build_id})")
        transfer = Transfer(f"{url.rstrip('/')}/buildid/{build_id}/debuginfo", self._max_file, self._timeout)
        began = time.monotonic()
        try:
            with self._store.writer(build_id) as writer:
                try:
                    transfer.start(writer)
                    self._follow(transfer, began + self._left, name)
                finally:
                    transfer.stop()
                if transfer.problem is None:
                    found = writer.commit()
                    self._say(f"got {human_bytes(transfer.received)} of debug information of {name}")
                    return found
        except OSError as error:
            transfer.problem = f"cannot write the cache: {error.strerror or error}"
        except ElfError as error:
            transfer.problem = str(error)
        finally:
            self._left -= time.monotonic() - began
        if transfer.problem != NOT_FOUND:
            self.problems[transfer.problem] += 1
            self._say(f"no debug information of {name} from {url}: {transfer.problem}")
        if transfer.unreachable:
            self._urls.remove(url)
        return None

    def _follow(self, transfer: Transfer, deadline: float, name: str) -> None:
        while not transfer.done.wait(max(0.0, min(_PROGRESS_SECONDS, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return
            if transfer.received:
                self._say(f"{human_bytes(transfer.received)} of debug information of {name} so far")
