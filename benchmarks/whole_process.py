"""Run the program as a user would, and ask the system what it took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Taken:
    """What the runs of a command took, one entry for each run."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)


class Program:
    """``portal-extract`` with arguments, started in a process of its own each time."""

    def __init__(self, arguments: list[str], output_dir: Path) -> None:
        self.command = [sys.executable, "-m", "portal_extract", *arguments, "-o", str(output_dir), "--quiet"]
        self.output_dir = output_dir
        self.taken = Taken()
        self.report: dict[str, Any] = {}

    def clean(self) -> None:
        """Remove what the run before has written; not timed."""
        shutil.rmtree(self.output_dir, ignore_errors=True)

    def __call__(self) -> None:
        """Run it once."""
        started_s = time.perf_counter()
        with subprocess.Popen(self.command) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        self.taken.wall_s.append(time.perf_counter() - started_s)
        self.taken.cpu_s.append(usage.ru_utime + usage.ru_stime)
        self.report = json.loads((self.output_dir / "report" / "report.json").read_text())
        self.taken.peak_bytes.append(self.report["peak_memory_bytes"])


def run(benchmark, arguments: list[str], output_dir: Path, n_particles: int, rounds: int = 5) -> None:
    """Benchmark a command: one warm-up, then some rounds; adds particles/s, CPU time and memory."""
    program = Program(arguments, output_dir)
    benchmark.pedantic(program, setup=program.clean, rounds=rounds, warmup_rounds=1)
    benchmark.extra_info["particles_per_s"] = round(n_particles / benchmark.stats.stats.median, 1)
    benchmark.extra_info["cpu_s"] = round(sorted(program.taken.cpu_s[1:])[rounds // 2], 2)
    benchmark.extra_info["peak_gib"] = round(max(program.taken.peak_bytes) / 2**30, 2)
    print(
        f"\n{benchmark.name}: median {benchmark.stats.stats.median:.2f} s "
        f"({benchmark.stats.stats.min:.2f}-{benchmark.stats.stats.max:.2f}), {benchmark.extra_info}"
    )
    program.clean()
