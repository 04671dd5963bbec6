"""Bytes, requests, wall time and memory of streamed extraction: the tables of docs/streaming.md.

Extracts from the big tilt series (41 images of 3838 x 3710, kept if BENCHMARK_FOLDER names a folder), served
by the embedded object server in a process of its own. Whole processes, started as a user would. Takes about
15 minutes on two cores; wall times mean something on an idle machine only.

    python benchmarks/streaming.py [--write] [--only bytes|time|memory] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from throttled_server import ThrottledServer
from touched import Touched, touched_blocks, touched_rows
from whole_process import Program

from portal_extract.demo.big_series import BUCKET, BigSeries, make_big_series
from portal_extract.demo.plan import NEW_CHUNKS, OLD_CHUNKS
from portal_extract.extraction.views import Views, find_views
from portal_extract.options import ExtractOptions
from portal_extract.sources.relion import ProjectFiles, read_project

PAGE = Path(__file__).resolve().parents[1] / "docs" / "streaming.md"
BEGIN, END = "<!-- made by benchmarks/streaming.py: {} -->", "<!-- end -->"
BOX = 128
COUNTS = (1, 5, 20, 100, 300)
DOSE_PART = 0.4
LATENCY_S = 0.02
#: particles at each bandwidth in MB/s: fewer where a run would take minutes
TIMED = {25: 20, 100: 300, 400: 300}
MEMORIES_MIB = (768, 2048)
MB = 1e6
MIB = 1 << 20
LAYOUTS = {"256 × 256 × 256": OLD_CHUNKS, "1 × 1024 × 1024": NEW_CHUNKS, "MRC": None}


@dataclass(frozen=True)
class Input:
    """Tables for one way of storing the images, and some of the particles.

    Attributes
    ----------
    layout
        Key of :data:`LAYOUTS`.
    n_particles
        Particles in the table.
    arguments
        Options that name the tables and the box.
    max_dose
        Limit, e/A^2, or None.
    """

    layout: str
    n_particles: int
    arguments: tuple[str, ...]
    max_dose: float | None


class Bench:
    """The inputs, the server, and a folder for results.

    Parameters
    ----------
    series
        The big tilt series.
    scratch
        Folder for what is made here.
    server
        Serves :func:`served_folder`.
    """

    def __init__(self, series: BigSeries, scratch: Path, server: ThrottledServer) -> None:
        self.series, self.scratch, self.server = series, scratch, server

    def input(self, layout: str, n_particles: int, *, remote: bool, limited: bool = False) -> Input:
        """Write the tables of a run."""
        particles = self.scratch / f"particles_{n_particles}.star"
        particles.write_text(first_particles(self.series.particles_star.read_text(), n_particles))
        max_dose = DOSE_PART * self.highest_dose if limited else None
        arguments = [
            *("--particles-starfile", str(particles), "--box-size", str(BOX)),
            *("--tomograms-starfile", str(self._tomograms(layout, remote))),
            *(("--max-dose", f"{max_dose:g}") if max_dose else ()),
            *(("--s3-endpoint-url", self.server.url) if remote else ()),
        ]
        return Input(layout, n_particles, tuple(arguments), max_dose)

    def _tomograms(self, layout: str, remote: bool) -> Path:
        chunks = LAYOUTS[layout]
        if chunks is not None or not remote:
            return self.series.tomograms_star(chunks, remote)
        # the tables of an OME-Zarr in the store, with the MRC file in its place
        known = self.series.tomograms_star(NEW_CHUNKS, True)
        tilts = self.series.folder / "tilt_series" / known.name.removeprefix("tomograms_")
        mine, table = self.scratch / "tilts_mrc.star", self.scratch / "tomograms_mrc.star"
        name = self.series.zarr(NEW_CHUNKS).name
        mine.write_text(
            tilts.read_text().replace(f"s3://{BUCKET}/{name}", f"s3://mrc/{self.series.mrc.name}")
        )
        table.write_text(known.read_text().replace(str(tilts), str(mine)))
        return table

    @cached_property
    def highest_dose(self) -> float:
        """Dose before the last image, e/A^2."""
        return float(self.views(self.series.particles_star, None).series.dose_e_per_a2.max())

    def views(self, particles: Path, max_dose: float | None) -> Views:
        """Find what has to be cut."""
        files = ProjectFiles(particles=str(particles), tomograms=str(self.series.tomograms_star()))
        return find_views(read_project(files), 0, ExtractOptions(BOX, max_dose_e_per_a2=max_dose))

    def touched(self, given: Input) -> Touched:
        """Count what the boxes of a run touch."""
        views = self.views(self.scratch / f"particles_{given.n_particles}.star", given.max_dose)
        boxes, chunks = views.boxes, LAYOUTS[given.layout]
        if chunks is None:
            series = views.series
            return touched_rows(series.image_stack.size_px, series.n_tilts, boxes.tilt, boxes.origin_px, BOX)
        return touched_blocks(self.series.zarr(chunks) / "0", boxes.tilt, boxes.origin_px, BOX)

    def extract(self, given: Input, *more: str, rounds: int = 1) -> Program:
        """Run the program; its folder holds the last results."""
        program = Program(["local", *given.arguments, *more], self.scratch / "out")
        for _ in range(rounds):
            program.clean()
            program()
        return program

    def plan(self, given: Input, *more: str) -> dict[str, Any]:
        """Let the program say what it would do."""
        command = [sys.executable, "-m", "portal_extract", "plan", "local", *given.arguments, *more, "--json"]
        found: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return found


def first_particles(star: str, n_particles: int) -> str:
    """Keep the first rows of the last table of a STAR file; they are in random order."""
    lines = star.rstrip().split("\n")
    first = max(i for i, line in enumerate(lines) if line.startswith("_")) + 1
    return "\n".join(lines[: first + n_particles]) + "\n"


def bytes_table(bench: Bench) -> Iterator[str]:
    """Fetch without a limit, and compare with what the boxes touch."""
    columns = ("requests", "planned", "fetched", "planned")
    columns += ("/ blocks touched", "/ chunks touched", "/ download")
    yield "| images | dose | particles | views | " + " | ".join(columns) + " |"
    yield "|---|---|" + "--:|" * (2 + len(columns))
    for layout in LAYOUTS:
        for limited in (False, True):
            for n_particles in COUNTS:
                given = bench.input(layout, n_particles, remote=True, limited=limited)
                touched, plan = bench.touched(given), bench.plan(given)["reading"]
                bench.server.set_line()
                views = bench.extract(given).report["views"]
                served = bench.server.served()
                assert served.n_repeated == 0
                of = (touched.block_bytes, touched.chunk_bytes, touched.total_bytes)
                ratios = [served.n_bytes / whole for whole in of]
                dose = f"{DOSE_PART:.0%}" if limited else "all"
                sizes = [f"{n_bytes / MB:.1f} MB" for n_bytes in (served.n_bytes, plan["fetched_bytes"])]
                numbers = (n_particles, views, served.n_requests, plan["requests"], *sizes)
                shown = [*map(str, numbers), *(f"{ratio:.3f}" for ratio in ratios)]
                yield f"| {layout} | {dose} | " + " | ".join(shown) + " |"


def time_table(bench: Bench, rounds: int) -> Iterator[str]:
    """Fetch over a slow line, and compare with the line alone and with computing alone."""
    yield "| images | particles | line | bytes / bandwidth | compute | wall | wall / bound |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for layout in LAYOUTS:
        local_s = {}
        for bandwidth, n_particles in TIMED.items():
            if n_particles not in local_s:
                program = bench.extract(bench.input(layout, n_particles, remote=False), rounds=rounds)
                local_s[n_particles] = min(program.taken.wall_s)
            given = bench.input(layout, n_particles, remote=True)
            bench.server.set_line(LATENCY_S, bandwidth * MB)
            program = bench.extract(given, rounds=rounds)
            line_s = bench.server.served().n_bytes / rounds / (bandwidth * MB)
            wall_s, compute_s = min(program.taken.wall_s), local_s[n_particles]
            yield (
                f"| {layout} | {n_particles} | {bandwidth} MB/s | {line_s:.1f} s | {compute_s:.1f} s "
                f"| {wall_s:.1f} s | {wall_s / max(line_s, compute_s):.2f} |"
            )


def memory_table(bench: Bench) -> Iterator[str]:
    """Compare peaks with what was predicted."""
    yield "| images | from | `--memory` | predicted | program itself | peak |"
    yield "|---|---|--:|--:|--:|--:|"
    bench.server.set_line()
    one = bench.input("MRC", 1, remote=False)
    base = bench.extract(one).report["peak_memory_bytes"] - bench.plan(one)["memory_bytes"]
    for layout in LAYOUTS:
        for remote in (False, True):
            for memory in MEMORIES_MIB:
                given = bench.input(layout, max(COUNTS), remote=remote)
                bound = ("--memory", f"{memory}MiB")
                predicted = bench.plan(given, *bound)["memory_bytes"]
                peak = bench.extract(given, *bound).report["peak_memory_bytes"]
                numbers = (memory, predicted / MIB, base / MIB, peak / MIB)
                shown = " | ".join(f"{number:.0f} MiB" for number in numbers)
                yield f"| {layout} | {'store' if remote else 'disk'} | {shown} |"


def served_folder(series: BigSeries, scratch: Path) -> Path:
    """Make a folder of buckets with all files of the series."""
    root = scratch / "buckets"
    root.mkdir()
    (root / BUCKET).symlink_to(series.s3_root / BUCKET)
    (root / "mrc").symlink_to(series.mrc.parent)
    return root


def put_into_page(name: str, lines: Sequence[str]) -> None:
    """Replace a table of the page."""
    page, begin = PAGE.read_text(encoding="utf-8"), BEGIN.format(name)
    before, after = page.split(begin)
    PAGE.write_text(f"{before}{begin}\n\n" + "\n".join(lines) + f"\n\n{END}" + after.split(END, 1)[1])


def main() -> None:
    """Measure, and print the tables or put them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/streaming.md")
    parser.add_argument("--only", choices=["bytes", "time", "memory"], help="make this table alone")
    parser.add_argument("--rounds", type=int, default=3, help="runs for each wall time; the best counts")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        kept = os.environ.get("BENCHMARK_FOLDER")
        series = make_big_series(Path(kept) if kept else scratch / "big")
        with ThrottledServer(served_folder(series, scratch)) as server:
            bench = Bench(series, scratch, server)
            tables = {
                "bytes": lambda: bytes_table(bench),
                "time": lambda: time_table(bench, chosen.rounds),
                "memory": lambda: memory_table(bench),
            }
            for name, make in tables.items():
                if chosen.only not in (None, name):
                    continue
                lines = []
                for line in make():
                    print(line, flush=True)
                    lines.append(line)
                if chosen.write:
                    put_into_page(name, lines)


if __name__ == "__main__":
    main()
