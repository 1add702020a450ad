"""Stack ids -> frames with names, kept as long as the session lasts."""

from __future__ import annotations

from collections.abc import Mapping

from tracer.model.live import LiveStack
from tracer.model.report import Frame
from tracer.probes.consumer import RawStack, read_stack
from tracer.probes.layout import MAX_DEPTH, StackStatus, Totals
from tracer.probes.program import Program
from tracer.report.frames import label
from tracer.symbols.resolver import Resolver

_REASONS = (
    (StackStatus.NO_TABLE, "the unwind table was not ready yet in"),
    (StackStatus.NO_ROW, "no unwind information in"),
    (StackStatus.UNSUPPORTED, "unwind information of an unknown kind in"),
    (StackStatus.NO_MAPPING, "a return address outside all code"),
    (StackStatus.READ_FAILED, "stack memory that could not be read"),
    (StackStatus.TRUNCATED, f"more than {MAX_DEPTH} frames"),
    (StackStatus.HIDDEN_RETURN, "another tracer's return probe"),
)
_OUTERMOST = frozenset({"main", "start_thread", "__libc_start_call_main"})
_STARTUP_FRAMES = 3
_LIVE_STACKS = 50
_LABEL_FRAMES = 3


class StackBook:
    """Reads the frames of a stack once and names them."""

    def __init__(self, program: Program, resolver: Resolver) -> None:
        self._program = program
        self._resolver = resolver
        self._raw: dict[int, RawStack] = {}

    def raw(self, stack: int) -> RawStack:
        """The addresses of a stack; empty where they are not known."""
        if stack not in self._raw:
            self._raw[stack] = read_stack(self._program, stack) or RawStack((), 0)
        return self._raw[stack]

    def frames(self, stack: int) -> tuple[Frame, ...]:
        """The frames, innermost first, with all that can be found out about them: not while tracing."""
        return self._frames(stack, lines=True)

    def quick_frames(self, stack: int) -> tuple[Frame, ...]:
        """The frames without source lines and what is inlined: quickly had, also while tracing."""
        return self._frames(stack, lines=False)

    def _frames(self, stack: int, *, lines: bool) -> tuple[Frame, ...]:
        # All but the first are return addresses.
        return tuple(
            frame
            for index, ip in enumerate(self.raw(stack).ips)
            for frame in self._resolver.resolve(ip, return_address=index > 0, lines=lines)
        )

    def function_at(self, ip: int) -> str | None:
        """The name of the function at a return address; None where it has none."""
        frames = self._resolver.resolve(ip, return_address=True, lines=False)
        return frames[-1].function if frames else None

    def remarks(self) -> list[str]:
        """What kept frames from having names or lines, in a sentence; nothing where nothing did."""
        problems = self._resolver.problems
        return [f"names of functions: {', '.join(f'{what} ({n})' for what, n in problems.items())}"] if problems else []

    def is_complete(self, stack: int) -> bool:
        """Whether the stack reaches to where its thread began: what calls main may lack unwind information (musl)."""
        if self.raw(stack).complete:
            return True
        return any(frame.function in _OUTERMOST for frame in self.frames(stack)[-_STARTUP_FRAMES:])

    def why_incomplete(self, stack: int) -> str | None:
        """Why the walk ended early, with the module in which it did; None for a complete stack."""
        if self.is_complete(stack):
            return None
        raw = self.raw(stack)
        if not raw.ips:
            return "no frame could be read"
        frames = self.frames(stack)
        module = (frames[-1].module or "").rpartition("/")[2] or "memory that no file backs"
        for status, words in _REASONS:
            if raw.status & status:
                return f"{words} {module}" if words.endswith(" in") else words
        return f"the walk ended in {module}"

    def ends_without_table(self) -> list[int]:
        """Where stacks that were read so far ended because a module's unwind table was not there yet."""
        return [raw.ips[-1] for raw in self._raw.values() if raw.ips and raw.status & StackStatus.NO_TABLE]

    def live_stacks(self, totals: Mapping[int, Totals], seconds: float) -> tuple[LiveStack, ...]:
        """The stacks that hold most, for the live view."""
        top = sorted(totals.items(), key=lambda item: -item[1].live_bytes)[:_LIVE_STACKS]
        return tuple(
            LiveStack(
                id=f"{stack:016x}",
                kind="malloc",
                label=self.label(stack),
                bytes=total.live_bytes,
                count=total.live_count,
                rate=total.live_bytes / seconds if seconds else 0.0,
            )
            for stack, total in top
            if total.live_count > 0
        )

    def label(self, stack: int) -> str:
        """The innermost frames in one line: who called the allocator, and who called that."""
        return label(self._frames(stack, lines=False), _LABEL_FRAMES, "...") or "(no frames)"
