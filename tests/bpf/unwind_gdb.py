"""Runs inside gdb: writes the backtrace of the thread at each SIGUSR2 that the BPF program has sent.

UNWIND_OUT names the output, UNWIND_COUNT how many to write, UNWIND_SECONDS how long to wait for them. One line each:
thread, CLOCK_MONOTONIC ns, hash of the callee-saved registers, rsp, comma-separated pcs, names, why gdb stopped
("hidden": at a return probe's trampoline; such lines are not counted).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

import gdb  # type: ignore[import-untyped,import-not-found,unused-ignore]

SETTINGS = (
    "set pagination off",
    "set confirm off",
    "set backtrace past-main on",
    "set backtrace limit 400",
    "set print thread-events off",
    "handle all nostop noprint pass",
    "handle SIGUSR2 stop print nopass",
)
MASK = (1 << 64) - 1
SAVED = ("rbx", "r12", "r13", "r14", "r15")


def registers_hash(frame: Any) -> int:
    value = 0
    for name in SAVED:
        value = (value * 31 + int(frame.read_register(name))) & MASK
    return value


def backtrace(frame: Any) -> tuple[list[int], list[str], str]:
    """Physical frames only: gdb's inlined and tail-call frames have no place on the stack."""
    pcs, names, reason = [], [], "none"
    try:
        while frame is not None:
            if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
                pcs.append(int(frame.pc()))
                names.append((frame.name() or "?").replace(",", ";").replace(" ", "_"))
            older = frame.older()
            if older is None:
                reason = str(frame.unwind_stop_reason())
            frame = older
    except gdb.error as error:
        reason = str(error).replace(" ", "_")
    return pcs, names, reason


def trampoline() -> int:
    """Where return probes divert to, be they another tracer's; 0: nowhere."""
    maps = Path(f"/proc/{gdb.selected_inferior().pid}/maps").read_text(errors="replace")
    return next((int(line.split("-")[0], 16) for line in maps.splitlines() if line.endswith("[uprobes]")), 0)


def main() -> None:
    out_path = Path(os.environ["UNWIND_OUT"])
    deadline = time.monotonic() + float(os.environ["UNWIND_SECONDS"])
    left = int(os.environ["UNWIND_COUNT"])
    for setting in SETTINGS:
        gdb.execute(setting, to_string=True)
    signals: list[str] = []
    gdb.events.stop.connect(lambda event: signals.append(getattr(event, "stop_signal", "")))
    with out_path.open("w") as out:
        out_path.with_suffix(".ready").touch()
        while left > 0 and time.monotonic() < deadline:
            signals.clear()
            try:
                gdb.execute("continue", to_string=True)
            except gdb.error:
                break
            if not gdb.selected_inferior().pid:
                break
            if signals != ["SIGUSR2"]:
                continue
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            frame = gdb.newest_frame()
            thread, sp = gdb.selected_thread().ptid[1], int(frame.read_register("rsp")) & MASK
            saved = registers_hash(frame)
            pcs, names, reason = backtrace(frame)
            hiding = trampoline()  # 0: no return probe was hit yet
            if hiding and hiding in pcs:  # the rest of the stack is hidden from gdb
                reason = "hidden"
            else:
                left -= 1
            print(thread, now, saved, sp, ",".join(map(str, pcs)), ",".join(names), reason, file=out, flush=True)
    with contextlib.suppress(gdb.error):
        gdb.execute("detach")
    gdb.execute("quit")


main()
