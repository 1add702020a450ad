"""Delivers profiles from a thread of its own: whoever offers one never waits.

What cannot be delivered is tried again, at growing distances. What waits is bounded: beyond that the oldest goes, and
is counted.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from tracer.model.report import Report
from tracer.push.endpoint import Endpoint
from tracer.push.pyroscope import Outcome, Upload, encode, send
from tracer.units import plural

_MANY_FAILURES = 30
_LEAST_TIMEOUT = 0.1


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in seconds, sizes in bytes: how long one attempt may take, when to try again, what may wait."""

    timeout: float = 10.0
    first_pause: float = 0.5
    longest_pause: float = 60.0
    profiles: int = 32
    bytes: int = 32 << 20
    reports: int = 2


_Offer = tuple[Report, float, float]
_DEFAULTS = Limits()


class Pusher:
    """Delivers what is offered, in order. ``say`` is told when delivery begins to fail, and when it works again."""

    def __init__(self, endpoint: Endpoint, say: Callable[[str], None], limits: Limits = _DEFAULTS) -> None:
        self._endpoint = endpoint
        self._say = say
        self._limits = limits
        self._changed = threading.Condition()
        self._offered: deque[_Offer] = deque()
        self._waiting: deque[Upload] = deque()
        self._delivered = self._dropped = 0
        self._failures = 0
        self._retry_at = 0.0
        self._close_by: float | None = None
        self._problem: str | None = None
        self._is_failing = False
        self._thread = threading.Thread(target=self._run, name="push", daemon=True)

    def start(self) -> None:
        """Begin to deliver; the thread does not keep the process alive."""
        self._thread.start()

    def offer(self, report: Report, start: float, end: float) -> None:
        """Push the report's stacks as the profile of a time (seconds since the epoch). Returns at once."""
        with self._changed:
            self._offered.append((report, start, end))
            if len(self._offered) > self._limits.reports:
                self._offered.popleft()
                self._dropped += 1
            self._changed.notify()

    def close(self, seconds: float) -> None:
        """Deliver what waits, for so long at most or until Ctrl-C; what is left then is dropped."""
        with self._changed:
            self._close_by = time.monotonic() + seconds
            self._changed.notify()
        with suppress(KeyboardInterrupt):  # who will not wait shall have the report all the same
            self._thread.join(seconds)
        with self._changed:
            left = len(self._offered) + len(self._waiting)
            if left:
                self._problem = self._problem or "there was no time left"
            self._dropped += left
            self._offered.clear()
            self._waiting.clear()

    @property
    def delivered(self) -> int:
        """How many profiles the endpoint has taken."""
        return self._delivered

    @property
    def dropped(self) -> int:
        """How many profiles were given up."""
        return self._dropped

    def note(self) -> str | None:
        """What was not delivered, and why, for the report's notes; None where all was."""
        with self._changed:
            if not self._dropped:
                return None
            total = plural(self._delivered + self._dropped, "profile")
            problem = f": {self._problem}" if self._problem else ""
            return f"push: {self._dropped} of {total} could not be delivered to {self._endpoint.shown}{problem}"

    def _run(self) -> None:
        try:
            self._work()
        except Exception as error:  # the outermost edge of this thread: a trace must not suffer from it
            self._problem = f"memtrace failed: {type(error).__name__}: {error}"
            self._say(f"push: {self._problem}")

    def _work(self) -> None:
        while (task := self._next_task()) is not None:
            if isinstance(task, Upload):
                self._take_note(send(self._endpoint, task, self._timeout()))
            else:
                self._keep(encode(*task))

    def _next_task(self) -> _Offer | Upload | None:
        """What to do next: encode first, so that no report is held for long. None once there is nothing left to do."""
        with self._changed:
            while True:
                if self._offered:
                    return self._offered.popleft()
                now = time.monotonic()
                if self._waiting and self._retry_at <= now:
                    return self._waiting[0]
                if self._close_by is not None and (not self._waiting or self._retry_at >= self._close_by):
                    return None
                self._changed.wait(self._retry_at - now if self._waiting else None)

    def _keep(self, upload: Upload) -> None:
        with self._changed:
            self._waiting.append(upload)
            size = sum(len(each.body) for each in self._waiting)
            while len(self._waiting) > self._limits.profiles or size > self._limits.bytes:
                size -= len(self._waiting.popleft().body)
                self._dropped += 1

    def _take_note(self, outcome: Outcome) -> None:
        with self._changed:
            if not outcome.again and self._waiting:  # delivered, or refused for good
                self._waiting.popleft()
                self._delivered += outcome.problem is None
                self._dropped += outcome.problem is not None
            self._retry_at = time.monotonic() + (self._pause(outcome) if outcome.again else 0.0)
            self._failures = self._failures + 1 if outcome.again else 0
            self._problem = outcome.problem or self._problem
            has_changed = self._is_failing != (outcome.problem is not None)
            self._is_failing = outcome.problem is not None
        if has_changed:
            state = f": {outcome.problem}" if outcome.problem else " takes profiles again"
            self._say(f"push: {self._endpoint.shown}{state}{'; trying again' if outcome.again else ''}")

    def _timeout(self) -> float:
        if self._close_by is None:
            return self._limits.timeout
        return max(_LEAST_TIMEOUT, min(self._limits.timeout, self._close_by - time.monotonic()))

    def _pause(self, outcome: Outcome) -> float:
        """Seconds until the next attempt: doubling, and at random, so that many memtraces do not come back at once."""
        doubled = self._limits.first_pause * 2 ** min(self._failures, _MANY_FAILURES)
        longest = min(self._limits.longest_pause, doubled)
        return max(min(outcome.seconds, self._limits.longest_pause), random.uniform(longest / 2, longest))
