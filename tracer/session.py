"""One tracing session: attach, follow, look at the end, detach, report. Owns the lifetimes of all of it.

The order matters: probes first, then the start snapshot, so that no event falls between the two; the end snapshot
before the probes go, and all maps are read after the kernel side has been told to stop.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

from tracer.assemble import Evidence, assemble
from tracer.attachment import Attachment
from tracer.budget import Budget
from tracer.calibration import TrapCosts
from tracer.errors import MemtraceError, TargetError
from tracer.heap.watch import HeapWatch
from tracer.interim import Findings, interim_report
from tracer.model.classes import dominant_classes
from tracer.model.events import Attached, Mapped, VmaEvent
from tracer.model.history import History, Point
from tracer.model.ledger import ALLOCATOR_CLASSES
from tracer.model.live import LiveState
from tracer.model.look import Look, Recorder, Window, mapped_stacks
from tracer.model.report import Overhead, OverheadStep, Report, Sampling
from tracer.model.resident import ResidentPages
from tracer.model.survival import KnownBlocks, probed_share, sort_out
from tracer.model.tracker import Tracker
from tracer.model.vma import Snapshot
from tracer.options import Options
from tracer.probes import consumer
from tracer.probes.holder import ProbeHolder
from tracer.probes.layout import Control, Event, EventKind, Totals
from tracer.probes.program import Program
from tracer.procfs.classify import classify_process
from tracer.procfs.maps import read_maps
from tracer.procfs.pagemap import Residency
from tracer.procfs.snapshot import SnapshotPlan, plan_snapshot, take_snapshot
from tracer.procfs.status import read_brk_start, read_command, read_counters, read_statm_rss
from tracer.procfs.sysvipc import with_length
from tracer.report.live import View
from tracer.stacks import StackBook
from tracer.target import ProcessHandle, TargetInfo
from tracer.throttle import Throttle
from tracer.units import human_bytes, human_seconds
from tracer.unwind.access import UnwindSizes

_POLL_MS = 100
# How often RSS is looked at, which costs microseconds.
_SAMPLE_SECONDS = 0.05
# Events that come closer upon each other than this (seconds) are taken together: the ring buffer holds 10,000.
_SHORTEST_WAIT = 0.01
# Above this many changes of RSS seen since the last drain, the kernel's table of sums is emptied before the tick.
_DRAIN_AT = 1 << 14
# Snapshots in between serve a target that dies: they may take this share of the time.
_SNAPSHOT_SHARE = 0.01
_MAX_SNAPSHOT_SECONDS = 0.1
_MAX_PAGEMAP_READ = 4 << 30

# Called with each state, what makes a report of the stacks so far (while it lasts), and whether it is the last call.
OnTick = Callable[[LiveState, Callable[[], Report], bool], None]


class Session:
    """Traces one process with a program compiled for it, which it closes.

    ``say`` receives lines for the user while it runs; ``stop_requested`` ends it, saying what did. ``traps`` tells what
    a trap costs here; ``on_tick`` is called at each interval and at the end, ``on_forks`` where children were made;
    ``recorder`` is told when the window begins, and what each interval brought.
    """

    def __init__(
        self,
        target: TargetInfo,
        options: Options,
        program: Program,
        holder: ProbeHolder,
        sizes: UnwindSizes,
        say: Callable[[str], None],
        stop_requested: Callable[[], str | None],
        traps: Callable[[], TrapCosts] = TrapCosts,
        on_tick: OnTick | None = None,
        on_forks: Callable[[], None] | None = None,
        recorder: Recorder | None = None,
    ) -> None:
        self._target = target
        self._options = options
        self._program = program
        self._say = say
        self._stop_requested = stop_requested
        self._on_tick = on_tick
        self._on_forks = on_forks
        self._forks = 0
        self._recorder = recorder
        self._heap = HeapWatch(target.pid)
        self._attachment = Attachment(program, holder, target.pid, sizes, say, options.rss_source)
        budget = Budget(options.max_overhead, options.sample_bytes)
        self._throttle = Throttle(program, self._attachment, target.pid, budget, traps)
        self._tracker = Tracker()
        self._history = History()
        self._code_changed = False
        self._resync_wanted = False
        self._exec_seen = False
        self._epoch = 0
        self._events_lost = 0
        self._drained_at = 0
        self._command = target.command

    def run(self, view: View) -> Report:
        """Trace until the duration is over, the user stops it or the target ends; everything is detached then."""
        with ExitStack() as stack:
            stack.callback(self._program.close)
            self._handle = ProcessHandle(self._target)
            stack.callback(self._handle.close)
            self._program.on_event(self._on_event)
            self._stacks = StackBook(self._program, self._attachment.resolver)
            stack.enter_context(self._attachment)
            try:
                self._begin()
                ended = self._follow(view)
            except TargetError:
                # It died between two looks; what was gathered until then is the report.
                if not self._handle.has_ended or not hasattr(self, "_start"):
                    raise
                ended = "the process ended"
            return self._finish(ended)

    def _begin(self) -> None:
        """Switch the kernel side on and take the start snapshot: the window begins here."""
        plan = plan_snapshot(self._target.pid, max_smaps_seconds=_MAX_SNAPSHOT_SECONDS)
        self._announce_cost(plan)
        start, end = self._brk_heap()
        self._rss_seed = read_counters(self._target.pid)
        consumer.seed_rss(self._program, self._rss_seed)
        self._program.seed_control(Control(brk=end, heap_start=start))
        self._throttle.start()
        self._window_start(plan)
        if not self._attachment.probed:
            self._attachment.note(
                "no malloc functions were found in this process (static without symbols, or its own allocator): "
                "VMAs and page faults are traced instead"
            )
        self._say(f"tracing process {self._target.pid} ({self._command}): {self._describe_probes()}")

    def _brk_heap(self) -> tuple[int, int]:
        """Start and end of the brk heap; where the process has none yet, both are where it would begin."""
        heap = [vma for vma in read_maps(self._target.pid) if vma.path == b"[heap]"]
        if heap:
            return heap[0].start, heap[-1].end
        start = read_brk_start(self._target.pid)
        return start, start

    def _window_start(self, plan: SnapshotPlan | None = None) -> None:
        self._start: Snapshot = take_snapshot(self._target.pid, plan=plan, max_smaps_seconds=_MAX_SNAPSHOT_SECONDS)
        self._heap.look_at_start(self._start.usages)
        self._start_classes = self._classes_of(self._start)
        self._latest = self._start
        self._latest_classes = self._start_classes
        self._look_cost = 0.0
        self._started = datetime.now(UTC).astimezone()
        self._started_ns = self._start.time_ns
        self._tracker.seed(usage.vma for usage in self._start.usages)
        self._counters_before = self._program.counters()
        self._totals: dict[int, Totals] = {}
        self._rss = self._start.counters
        self._history.clear()
        self._history.add(Point(0.0, self._start.counters.rss, {}))
        self._history.sample(0.0, self._start.counters.rss)
        self._drained_at = self._events_lost = 0
        self._begin_recording()

    def _announce_cost(self, plan: SnapshotPlan) -> None:
        if plan.source == "smaps" and plan.smaps_seconds > _MAX_SNAPSHOT_SECONDS:
            self._say(
                f"reading smaps of {plan.vma_count} VMAs and {human_bytes(plan.rss)} takes about "
                f"{human_seconds(plan.smaps_seconds)} at start and end, during which the process may wait in mmap"
            )

    def _describe_probes(self) -> str:
        allocators = ", ".join(self._attachment.probed) or "no allocator found, VMAs and page faults only"
        now, most = human_bytes(self._program.map_memory), human_bytes(self._program.map_memory_limit)
        return f"{allocators}; {now} of kernel memory, at most {most}; Ctrl-C ends it with the report"

    def _classes_of(self, snapshot: Snapshot) -> dict[int, str]:
        rows = [(usage.vma, usage.flags) for usage in snapshot.usages]
        classes = dominant_classes(rows, classify_process(self._target.pid, rows))
        if self._handle.has_ended:
            # Its files and its memory cannot be looked at any more, but what is still there is what it was.
            classes |= {start: name for start, name in self._start_classes.items() if start in classes}
        return classes

    def _on_event(self, event: Event) -> None:
        if event.kind == EventKind.EXEC:
            self._exec_seen = True
        elif event.kind == EventKind.ADVISE:
            self._tracker.advised[event.flags] += event.length
        else:
            self._resync_wanted |= consumer.needs_resync(event)
            change = self._placed(consumer.decode_event(event))
            if isinstance(change, Attached):
                change = with_length(self._target.pid, change)
                self._resync_wanted |= change.length is None
            # What happened before the start snapshot is part of it.
            if change is not None and hasattr(self, "_started_ns") and event.time_ns >= self._started_ns:
                self._tracker.apply(change)
            self._code_changed |= consumer.brings_code(event)

    def _placed(self, change: VmaEvent | None) -> VmaEvent | None:
        """Of a call that was not sampled, the kernel side does not know that an allocator made the mapping."""
        if not isinstance(change, Mapped) or change.in_allocator or not change.stack:
            return change
        by_brk = change.kind == "brk"
        if self._sampling().exact or not self._attachment.in_allocator(
            self._stacks.raw(change.stack).ips, by_brk=by_brk
        ):
            return change
        return replace(change, in_allocator=True)

    def _follow(self, view: View) -> str:
        """The main loop; returns in words what ended it."""
        next_tick = self._started_ns / 1e9 + self._options.interval
        next_sample = 0.0
        with view:
            while True:
                self._wait_for_events()
                self._throttle.look()
                # Before the end, too, or the report would be of a program that runs no more.
                if self._exec_seen and not self._handle.has_ended:
                    self._restart_after_exec()
                if reason := self._stop_requested():
                    return reason
                if view.poll():
                    return "the key q"
                if self._handle.has_ended:
                    return "the process ended"
                if self._code_changed:
                    self._code_changed = False
                    self._attachment.follow_code(late=True)
                now = time.monotonic()
                if now >= next_sample:
                    next_sample = now + _SAMPLE_SECONDS
                    self._history.sample(self._elapsed(), read_statm_rss(self._target.pid))
                if self._options.duration is not None and now - self._started_ns / 1e9 >= self._options.duration:
                    return "the duration was over"
                self._drain_if_full()
                if now >= next_tick and not self._throttle.in_window:
                    self._tick(view)
                    next_tick = max(next_tick + self._options.interval, time.monotonic())

    def _wait_for_events(self) -> None:
        """Until something has happened, or it is time to look; not more often than pays."""
        began = time.monotonic()
        self._program.poll(min(_POLL_MS, round(self._throttle.wait * 1000)))
        rest = _SHORTEST_WAIT - (time.monotonic() - began)
        if rest > 0:
            time.sleep(rest)
            self._program.consume()

    def _restart_after_exec(self) -> None:
        """The process runs another program now: everything known of the old one is void."""
        self._exec_seen = False
        elapsed = self._elapsed()
        self._epoch = self._program.control().epoch
        self._command = read_command(self._target.pid)
        consumer.forget_other_epochs(self._program, self._epoch)
        for _ in consumer.drain_rss(self._program):
            pass
        self._attachment.note(
            f"the process ran another program (exec) {human_seconds(elapsed)} into the window: {self._command}; "
            "the report covers the time since"
        )
        self._attachment.follow_exec()
        self._throttle.restart()
        self._window_start()
        self._say(f"tracing process {self._target.pid} ({self._command}): {self._describe_probes()}")

    def _elapsed(self) -> float:
        return (time.monotonic_ns() - self._started_ns) / 1e9

    def _counters(self) -> dict[str, int]:
        """What was counted in the window."""
        now = self._program.counters()
        return {name: value - self._counters_before[name] for name, value in now.items()}

    def _drain_if_full(self) -> None:
        counters = self._counters()
        if self._on_forks is not None and counters["forks"] != self._forks:
            self._forks = counters["forks"]
            self._on_forks()
        seen = counters["rss_events"]
        if seen - self._drained_at >= _DRAIN_AT:
            self._drained_at = seen
            self._drain()

    def _drain(self) -> None:
        """Place the changes of RSS, after the mappings in which they may lie."""
        self._program.consume()
        self._tracker.add_rss(consumer.drain_rss(self._program))

    def _tick(self, view: View) -> None:
        counters = self._counters()
        self._drained_at = counters["rss_events"]
        self._drain()
        if counters["events_lost"] != self._events_lost or self._resync_wanted:
            self._events_lost = counters["events_lost"]
            self._resync_wanted = False
            self._tracker.resync(read_maps(self._target.pid))
        self._totals = consumer.read_totals(self._program, self._epoch)
        self._rss = read_counters(self._target.pid)
        self._look_in_between()
        if counters["probe_hits"]:
            self._attachment.learn_trampoline()
        live = {stack: totals.live_bytes for stack, totals in self._totals.items()}
        self._history.add(Point(self._elapsed(), self._rss.rss, live))
        state = self._live_state(counters)
        view.update(state)
        if self._on_tick is not None:
            self._on_tick(state, self._interim, False)
        self._record(counters, self._elapsed())
        self._attachment.want_tables(self._stacks.ends_without_table())

    def _look_in_between(self) -> None:
        """Keep a recent snapshot for the case that the target dies; seldom enough not to be felt."""
        elapsed_ns = time.monotonic_ns() - self._latest.time_ns
        plan = plan_snapshot(self._target.pid, max_smaps_seconds=_MAX_SNAPSHOT_SECONDS)
        if max(plan.seconds, self._look_cost) <= _SNAPSHOT_SHARE * elapsed_ns / 1e9:
            began = time.monotonic()
            self._latest = take_snapshot(self._target.pid, plan=plan)
            if self._on_tick is not None or self._recorder is not None:
                self._latest_classes = self._classes_of(self._latest)
                self._look_cost = time.monotonic() - began

    def _begin_recording(self) -> None:
        self._recorded: Snapshot | None = None
        if self._recorder is not None:
            book = self._stacks
            window = Window(
                command=self._command,
                started=self._started,
                snapshot=self._start,
                classes=self._start_classes,
                frames_of=lambda stack: (book.quick_frames(stack), book.raw(stack).complete),
            )
            self._recorder.begin(window)

    def _record(self, counters: dict[str, int], seconds: float) -> None:
        """Hand what is known now to the recorder; stacks of mappings only with a new look at the VMAs, as they cost."""
        if self._recorder is None:
            return
        is_new, self._recorded = self._latest is not self._recorded, self._latest
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self._recorder.look(
            Look(
                seconds=seconds,
                rss=self._rss,
                allocations=self._totals,
                mapped=mapped_stacks(self._tracker, self._start_classes, ALLOCATOR_CLASSES) if is_new else None,
                snapshot=self._latest,
                snapshot_age=seconds - (self._latest.time_ns - self._started_ns) / 1e9,
                classes=self._latest_classes,
                counters=counters,
                losses=self._losses(counters),
                probed=tuple(self._attachment.probed),
                notes=tuple(self._attachment.notes),
                sampling=self._sampling(),
                rss_source=self._attachment.rss_source,
                self_cpu=usage.ru_utime + usage.ru_stime,
                self_rss=read_statm_rss(os.getpid()),
            )
        )

    def _live_state(self, counters: dict[str, int]) -> LiveState:
        return LiveState(
            pid=self._target.pid,
            command=self._command,
            seconds=self._elapsed(),
            rss_start=self._start.counters,
            rss=self._rss,
            rss_history=self._history.rss_values(),
            live_bytes=sum(totals.live_bytes for totals in self._totals.values()),
            live_count=sum(totals.live_count for totals in self._totals.values()),
            stacks=self._stacks.live_stacks(self._totals, self._elapsed()),
            losses=self._losses(counters),
            status="; ".join(self._attachment.notes[-1:]),
            rss_by_class=self._rss_by_class() if self._on_tick is not None else {},
            class_age=(time.monotonic_ns() - self._latest.time_ns) / 1e9,
            probe_hits=counters["probe_hits"],
        )

    def _rss_by_class(self) -> dict[str, int]:
        """Resident bytes of each class at the latest look."""
        sizes: Counter[str] = Counter()
        for usage in self._latest.usages:
            sizes[self._latest_classes.get(usage.vma.start, "anonymous")] += usage.rss
        return dict(sizes)

    def _interim(self) -> Report:
        """The stacks so far, as a report."""
        found = Findings(
            pid=self._target.pid,
            command=self._command,
            started=self._started,
            seconds=self._elapsed(),
            rss_start=self._start.counters,
            rss=self._rss,
            totals=self._totals,
            tracker=self._tracker,
            code=tuple(usage.vma for usage in self._latest.usages if usage.vma.is_executable),
            probed=tuple(self._attachment.probed),
            losses=self._losses(self._counters()),
            notes=tuple(self._attachment.notes),
        )
        return interim_report(found, self._stacks)

    def _losses(self, counters: dict[str, int]) -> dict[str, int]:
        losses = {counter.name: counters[counter.name] for counter in self._program.counter_names if counter.is_loss}
        losses["probes_failed"] = self._attachment.failed_probes
        return losses

    def _finish(self, ended: str) -> Report:
        """Stop the kernel side, look a last time, detach, and put the report together."""
        self._throttle.stop()
        end = self._end_snapshot()
        resident = self._resident_pages(end)
        if not self._handle.has_ended:
            self._heap.look_at_end(end.usages)
        self._program.consume()
        self._attachment.detach()
        self._tracker.add_rss(consumer.drain_rss(self._program))
        self._tracker.add_rss(consumer.unsummed_rss(self._program, self._epoch))
        counters = self._counters()
        self._totals = totals = consumer.read_totals(self._program, self._epoch)
        classes = self._classes_of(end)
        self._rss, self._latest, self._latest_classes = end.counters, end, classes
        if self._on_tick is not None:
            self._on_tick(self._live_state(counters), self._interim, True)
        seconds = (end.time_ns - self._started_ns) / 1e9
        live = {stack: total.live_bytes for stack, total in totals.items()}
        self._history.add(Point(seconds, end.counters.rss, live))
        self._record(counters, seconds)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        blocks = self._known_blocks(end.time_ns)
        evidence = Evidence(
            pid=self._target.pid,
            command=self._command,
            started=self._started,
            seconds=seconds,
            ended=ended,
            start=self._start,
            end=end,
            start_classes=self._start_classes,
            classes=classes,
            tracker=self._tracker,
            history=self._history,
            totals=totals,
            blocks=blocks.live,
            unverified=blocks.unverified,
            verified=blocks.verified,
            fault_stacks_sampled=self._throttle.fault_stacks_sampled,
            resident=resident,
            probed=tuple(self._attachment.probed),
            counters=counters,
            losses=self._losses(counters),
            sampling=self._sampling(),
            windows=tuple(self._throttle.windows),
            notes=[*self._attachment.notes, *self._attachment.failures],
            rss_source=self._attachment.rss_source,
            heap=self._heap,
            changes_complete=self._saw_all_changes(end, counters),
            overhead=Overhead(
                target_share=self._throttle.target_share,
                cpu_share=self._throttle.cpu_share,
                self_cpu=usage.ru_utime + usage.ru_stime,
                self_rss=read_counters(os.getpid()).rss,
                probe_hits=counters["probe_hits"] + counters["free_hits"],
                map_memory=self._program.map_memory,
                limit=self._options.max_overhead,
                steps=tuple(
                    OverheadStep(step.seconds, step.action, step.share) for step in self._throttle.budget.steps
                ),
                probed_share=probed_share(self._throttle.windows, self._started_ns, end.time_ns),
            ),
        )
        return assemble(evidence, self._stacks)

    def _saw_all_changes(self, end: Snapshot, counters: dict[str, int]) -> bool:
        """Whether the changes of RSS that were traced are those between the two snapshots: no more, no less."""
        return (
            self._attachment.rss_source == "rss-stat"
            and self._rss_seed == self._start.counters
            and consumer.last_rss(self._program) == end.counters
            and not counters["rss_unseeded"]
        )

    def _known_blocks(self, now: int) -> KnownBlocks:
        """The live blocks; where the malloc probes were off for a time, those that lived through it apart."""
        blocks = consumer.read_live(self._program, self._epoch)
        if not self._throttle.budget.ever_off:
            return KnownBlocks(blocks)
        return sort_out(blocks, self._throttle.windows, now, self._heap.live_at)

    def _sampling(self) -> Sampling:
        steps = self._throttle.budget.steps
        return Sampling(self._throttle.sample_bytes, self._options.sample_bytes == 1 and not steps)

    def _end_snapshot(self) -> Snapshot:
        """The last snapshot; of a target that has ended, the latest one with the RSS that the kernel told last."""
        try:
            snapshot = take_snapshot(self._target.pid, max_smaps_seconds=_MAX_SNAPSHOT_SECONDS)
        except MemtraceError:
            age = time.monotonic_ns() - self._latest.time_ns
            self._attachment.note(
                f"the process has ended: its VMAs are those of {human_seconds(age / 1e9)} before, its RSS the last "
                "that the kernel told"
            )
            last = (
                consumer.last_rss(self._program) if self._attachment.rss_source == "rss-stat" else self._latest.counters
            )
            return replace(self._latest, counters=last, time_ns=time.monotonic_ns())
        self._program.consume()
        self._check_model(snapshot)
        return snapshot

    def _resident_pages(self, end: Snapshot) -> ResidentPages:
        """Which anonymous pages are resident, read right after the snapshot so that the two agree."""
        looked_at = [
            (usage.vma.start, usage.vma.end)
            for usage in end.usages
            if usage.rss and not usage.vma.is_file and usage.vma.perms.startswith("rw")
        ]
        try:
            with Residency(self._target.pid) as residency:
                # Without the ioctl each GiB of address space costs 2 MiB of reading: leave out large reserves then.
                if not residency.has_scan:
                    looked_at = [(start, stop) for start, stop in looked_at if stop - start <= _MAX_PAGEMAP_READ]
                runs = [run for start, stop in looked_at for run in residency.resident_runs(start, stop)]
        except MemtraceError:
            return ResidentPages()
        return ResidentPages(runs, looked_at) if not self._handle.has_ended else ResidentPages()

    def _check_model(self, snapshot: Snapshot) -> None:
        # Main stacks grow, and our own uprobes map a page, without a system call.
        expected = sum(
            usage.vma.size - self._tracker.ranges.covered(usage.vma.start, usage.vma.end)
            for usage in snapshot.usages
            if usage.vma.path.startswith((b"[uprobes", b"[stack"))
        )
        off = self._tracker.resync([usage.vma for usage in snapshot.usages])
        # Where a call's effect could not be told, nothing was expected of the model.
        if not self._resync_wanted and (off.added_bytes > expected or off.removed_bytes):
            self._attachment.note(
                f"the model of the address space lacked {human_bytes(off.added_bytes - expected)} and had "
                f"{human_bytes(off.removed_bytes)} too many against /proc/PID/maps; it was corrected"
            )
        if snapshot.torn:
            self._attachment.note(
                "the process changed its mappings while they were read: figures of single VMAs may be off"
            )
