"""A process of our own that puts the breakpoints into the target and takes them out.

The kernel gives up removing a breakpoint when a fatal signal is pending for the thread that does it ("failed to
unregister, leaking uprobe"; kernel/events/uprobes.c, uprobe_write_opcode by get_user_pages): had memtrace itself been
killed by SIGKILL at that moment, or while attaching, breakpoints would have stayed in the target. So a child in a
session of its own does both. When memtrace goes, in whatever way, the child sees its socket closed and leaves in
order.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import defaultdict
from collections.abc import Sequence

from tracer.detached import leave_the_terminal
from tracer.probes import kernel

_NAME = b"mt-probes"
_MAX_MESSAGE = 1 << 16
_MAX_DESCRIPTORS = 64
_MOST_INHERITED = 1024
_TAKEN_OVER = 0  # the group of what is not to be waited for


class ProbeHolder:
    """Uprobes by request. To be made before the process has threads, as it forks."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._child = os.fork()
        if self._child == 0:
            self._socket.close()
            _serve(theirs)
        theirs.close()
        self._groups = 0

    def new_group(self) -> int:
        """A number for probes that are released together."""
        self._groups += 1
        return self._groups

    def attach(
        self,
        group: int,
        program_fd: int,
        path: str,
        offsets: Sequence[int],
        pid: int,
        *,
        on_return: bool = False,
        by_link: bool,
        cookies: Sequence[int] = (),
    ) -> None:
        """Attach a program to file offsets in one process; it stays until its group is released. Raises OSError.

        ``by_link``: by one uprobe-multi link (with ``cookies``, one for each offset, by a session link), else by a
        perf event (then there is one offset).
        """
        request = {
            "group": group,
            "path": path,
            "offsets": list(offsets),
            "pid": pid,
            "on_return": on_return,
            "by_link": by_link,
            "cookies": list(cookies),
        }
        socket.send_fds(self._socket, [json.dumps(request).encode()], [program_fd])
        self._answer()

    def release(self, group: int) -> None:
        """Detach what a group holds; returns when it is gone."""
        with contextlib.suppress(OSError):
            self._socket.send(json.dumps({"group": group}).encode())
            self._answer()

    def take_over(self, descriptors: list[int]) -> None:
        """Keep these open in this process's place, until ``close``; they are closed here and taken from the list."""
        while descriptors:
            some = descriptors[:_MAX_DESCRIPTORS]
            with contextlib.suppress(OSError):
                socket.send_fds(self._socket, [json.dumps({}).encode()], some)
                self._answer()
            kernel.close_all(some)
            del descriptors[:_MAX_DESCRIPTORS]

    def _answer(self) -> None:
        code = int(self._socket.recv(_MAX_MESSAGE) or b"32")  # EPIPE: the child is gone
        if code:
            raise OSError(code, os.strerror(code))

    def close(self) -> None:
        """Detach everything; returns when the probes are gone. Safe to call twice.

        What was taken over goes after that, in the background: it may be many tracepoints, for each of which the kernel
        waits some 50 ms.
        """
        if self._socket.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._socket.send(json.dumps({"group": 0}).encode())
                self._answer()
        self._socket.close()


def _serve(requests: socket.socket) -> None:
    """The child: attach and release until the socket is closed. Never returns."""
    try:
        leave_the_terminal(_NAME)
        # It may outlive memtrace by a moment: it must keep none of its files open, and no directory busy.
        os.chdir("/")
        os.closerange(3, requests.fileno())
        os.closerange(requests.fileno() + 1, _MOST_INHERITED)
        held: dict[int, list[int]] = defaultdict(list)
        while True:
            message, descriptors, _flags, _address = socket.recv_fds(requests, _MAX_MESSAGE, _MAX_DESCRIPTORS)
            if not message:
                break
            requests.send(str(_act(json.loads(message), descriptors, held)).encode())
        for group in sorted(held, reverse=True):  # what was taken over comes last
            kernel.close_all(held[group])
    finally:
        os._exit(0)


def _act(request: dict[str, object], descriptors: list[int], held: dict[int, list[int]]) -> int:
    """Do what is asked; returns 0 or an error number."""
    if not request:
        held[_TAKEN_OVER] += descriptors
        return 0
    number = int(str(request["group"]))
    if not descriptors:
        for each in [number] if number else held.keys() - {_TAKEN_OVER}:
            kernel.close_all(held[each])
        return 0
    group = held[number]
    try:
        group.append(_attach(descriptors[0], request))
    except OSError as error:
        return error.errno or 5  # EIO
    finally:
        os.close(descriptors[0])
    return 0


def _attach(program_fd: int, request: dict[str, object]) -> int:
    path, pid, on_return = str(request["path"]), int(str(request["pid"])), bool(request["on_return"])
    offsets, cookies = request["offsets"], request["cookies"]
    assert isinstance(offsets, list) and isinstance(cookies, list)
    if request["by_link"]:
        return kernel.link_uprobes(program_fd, path, offsets, pid, cookies)
    return kernel.open_perf_uprobe(program_fd, path, offsets[0], pid, on_return=on_return)
