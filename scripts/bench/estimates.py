"""Whether estimates hold what they promise: 200 sampled runs of a known mix, in the kernel, against the truth.

Usage (as root, after scripts/setup --dev):  .venv/bin/python -m scripts.bench.estimates [--runs N] [--sample-bytes N]

memtrace's BPF programs trace a child of this process that allocates a known mix of sizes in rounds; after each round
the live blocks are read and the child frees them. Coverage is how often the 95 % interval holds the truth.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tests.bpf.harness import Target
from tests.targets.build import command
from tracer.heap.discovery import Discovery
from tracer.model.blocks import Blocks
from tracer.model.sampling import scale_of
from tracer.probes import consumer
from tracer.probes.holder import ProbeHolder
from tracer.probes.layout import Settings
from tracer.probes.malloc import MallocProbes
from tracer.probes.program import Limits, Program
from tracer.procfs.maps import read_maps
from tracer.unwind.access import plan_sizes


@dataclass(frozen=True)
class Round:
    """One round: what was live, the estimate and half of its 95 % interval, in bytes; likewise the blocks."""

    truth: int
    estimate: int
    error: int
    blocks: int
    estimated_blocks: int

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        return abs(self.estimate - self.truth) <= self.error


class Sampler:
    """Our allocation probes on one process, without the rest of memtrace."""

    def __init__(self, pid: int, sample_bytes: int) -> None:
        vmas = read_maps(pid)
        self._holder = ProbeHolder()
        self._program = Program(pid, Limits(), plan_sizes(pid, vmas))
        self._probes = MallocProbes(self._program, self._holder, pid)
        for image in Discovery(pid).look(vmas):
            self._probes.attach(image)
        scale = scale_of(sample_bytes)
        self._program.set_settings(Settings(enabled=1, sample_bytes=sample_bytes, sample_scale=scale))

    def live(self) -> Blocks:
        """The sampled blocks that are live now."""
        return consumer.read_live(self._program, 0)

    def close(self) -> None:
        """Detach."""
        self._probes.close()
        self._holder.close()
        self._program.close()


def measure(target: Target, sample_bytes: int, runs: int) -> list[Round]:
    """Rounds of the target ``mix``: `g` allocates and tells what is live, `f` frees it."""
    sampler = Sampler(target.pid, sample_bytes)
    rounds = []
    try:
        for _ in range(runs):
            truth = target.command("g")
            blocks = sampler.live()
            everything = range(len(blocks))
            rounds.append(
                Round(
                    truth["bytes"],
                    sum(blocks.bytes_by_stack(everything).values()),
                    blocks.error(everything),
                    truth["count"],
                    sum(blocks.count_by_stack().values()),
                )
            )
            target.command("f")
            assert not len(sampler.live()), "each free must find its block"
    finally:
        sampler.close()
    return rounds


def summary(rounds: list[Round]) -> dict[str, float]:
    """Coverage, mean error and spread, as shares."""
    errors = [each.estimate / each.truth - 1 for each in rounds]
    counts = [each.estimated_blocks / each.blocks - 1 for each in rounds]
    return {
        "runs": len(rounds),
        "coverage": sum(each.holds for each in rounds) / len(rounds),
        "mean_error": statistics.mean(errors),
        "standard_error_of_mean": statistics.stdev(errors) / math.sqrt(len(errors)),
        "spread": statistics.stdev(errors),
        "mean_half_interval": statistics.mean(each.error / each.truth for each in rounds),
        "mean_error_of_blocks": statistics.mean(counts),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--sample-bytes", type=int, default=16 << 10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if os.geteuid():
        parser.error("needs root")
    with tempfile.TemporaryDirectory() as directory, Target(command("mix", Path(directory))) as target:
        result = summary(measure(target, options.sample_bytes, options.runs))
    if options.json:
        print(json.dumps(result))
        return
    print(f"{result['runs']:.0f} runs, sampled every {options.sample_bytes} bytes")
    print(f"the 95 % interval holds the truth in {100 * result['coverage']:.1f} % of the runs")
    standard_error = 100 * result["standard_error_of_mean"]
    print(f"mean error {100 * result['mean_error']:+.2f} % (standard error {standard_error:.2f} %)")
    print(f"mean error of the number of blocks {100 * result['mean_error_of_blocks']:+.2f} %")
    print(f"spread {100 * result['spread']:.2f} %, mean half interval {100 * result['mean_half_interval']:.2f} %")


if __name__ == "__main__":
    main()
