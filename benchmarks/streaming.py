"""Bytes, requests, wall time and memory of streamed extraction: the tables of docs/streaming.md.

Extracts from the big tilt series (41 images of 3838 x 3710, kept if BENCHMARK_FOLDER names a folder), served
by the embedded object server in a process of its own. Whole processes, started as a user would. Takes about
half an hour on two cores; wall times mean something on an idle machine only.

    python benchmarks/streaming.py [--write] [--only bytes|costs|time|series|memory] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from throttled_server import Served, ThrottledServer
from touched import Touched, touched_blocks, touched_rows
from whole_process import Program

from portal_extract.demo.big_series import BUCKET, NAME, BigSeries, make_big_series
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
LINES_MB_PER_S = (25, 100, 400)
TIMED_COUNTS = (5, 20, 100, 300)
#: a longer run is not repeated
REPEATED_S = 20.0
COSTS_KIB = (0, 16, 64, 256, 1024)
GAPS_KIB = (0, 4, 16, 64, 256)
N_SERIES = 10
TABLES = ("bytes", "costs", "time", "series", "memory")
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


@dataclass(frozen=True)
class Timed:
    """A run over a slow line.

    Attributes
    ----------
    wall_s, start_s
        Time that it took, and until it made its first request.
    served
        What it was given.
    """

    wall_s: float
    start_s: float
    served: Served


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

    def time(
        self, given: Input, bandwidth: float, rounds: int, *more: str, latency_s: float = LATENCY_S
    ) -> Timed:
        """Run the program over a line with some bandwidth in MB/s; the fastest of some rounds."""
        found = []
        for _ in range(rounds):
            self.server.set_line(latency_s, bandwidth * MB)
            began_s = time.monotonic()
            program = self.extract(given, *more)
            served = self.server.served()
            found.append(Timed(program.taken.wall_s[-1], served.first_s - began_s, served))
        return min(found, key=lambda one: one.wall_s)

    def several(self, n_series: int, n_each: int) -> Input:
        """Write the tables of several tilt series, which share the same images."""
        folder = self.scratch / f"several_{n_series}_{n_each}"
        folder.mkdir()
        known = self.series.tomograms_star(OLD_CHUNKS, True)
        tilts = self.series.folder / "tilt_series" / known.name.removeprefix("tomograms_")
        *head, row = known.read_text().rstrip().split("\n")
        tomograms = []
        for number in range(n_series):
            mine = folder / f"tilts_{number}.star"
            mine.write_text(tilts.read_text().replace(f"data_{NAME}", f"data_{NAME}{number}"))
            tomograms.append(row.replace(f" {NAME} ", f" {NAME}{number} ", 1).replace(str(tilts), str(mine)))
        lines = first_particles(self.series.particles_star.read_text(), n_series * n_each).split("\n")
        rows = [n for n, line in enumerate(lines) if line.strip().startswith(NAME)]
        for number, n in enumerate(rows):
            lines[n] = lines[n].replace(NAME, f"{NAME}{number // n_each}")
        (folder / "tomograms.star").write_text("\n".join([*head, *tomograms]) + "\n")
        (folder / "particles.star").write_text("\n".join(lines) + "\n")
        arguments = (
            *("--particles-starfile", str(folder / "particles.star"), "--box-size", str(BOX)),
            *("--tomograms-starfile", str(folder / "tomograms.star")),
            *("--s3-endpoint-url", self.server.url),
        )
        return Input("256 × 256 × 256", n_series * n_each, arguments, None)

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


def costs_table(bench: Bench, rounds: int) -> Iterator[str]:
    """Vary the cost of a request and the gap between ranges, over a line of middling speed."""
    yield "| images | setting | requests | fetched | wall |"
    yield "|---|---|--:|--:|--:|"
    settings = [("--request-cost", kib) for kib in COSTS_KIB] + [("--gap", kib) for kib in GAPS_KIB]
    for layout in ("256 × 256 × 256", "1 × 1024 × 1024"):
        given = bench.input(layout, 20, remote=True)
        for name, kib in settings:
            timed = bench.time(given, 100, rounds, name, f"{kib}KiB")
            numbers = f"{timed.served.n_requests} | {timed.served.n_bytes / MB:.1f} MB | {timed.wall_s:.2f} s"
            yield f"| {layout} | `{name} {kib}KiB` | {numbers} |"


def time_table(bench: Bench, rounds: int) -> Iterator[str]:
    """Fetch over a slow line, and compare with the line alone and with computing alone."""
    columns = ("minimal bytes / bandwidth", "compute", "start", "wall", "wall / bound", "without the start")
    yield "| images | particles | line | " + " | ".join(columns) + " |"
    yield "|---|--:|--:|" + "--:|" * len(columns)
    for layout in LAYOUTS:
        for n_particles in TIMED_COUNTS:
            program = bench.extract(bench.input(layout, n_particles, remote=False), rounds=rounds)
            compute_s = min(program.taken.wall_s)
            given = bench.input(layout, n_particles, remote=True)
            minimal = bench.touched(given).block_bytes
            for bandwidth in LINES_MB_PER_S:
                line_s = minimal / (bandwidth * MB)
                timed = bench.time(given, bandwidth, 1 if line_s > REPEATED_S else rounds)
                seconds = (line_s, compute_s, timed.start_s, timed.wall_s)
                bound_s = max(line_s, compute_s)
                ratios = (timed.wall_s / bound_s, (timed.wall_s - timed.start_s) / bound_s)
                shown = [*(f"{one:.1f} s" for one in seconds), *(f"{ratio:.2f}" for ratio in ratios)]
                yield f"| {layout} | {n_particles} | {bandwidth} MB/s | " + " | ".join(shown) + " |"


def series_table(bench: Bench, rounds: int) -> Iterator[str]:
    """Fetch from several tilt series, one after the other: the line should never be idle between them."""
    yield "| tilt series | particles of each | line | latency | bytes / bandwidth | wall | ratio |"
    yield "|--:|--:|--:|--:|--:|--:|--:|"
    for n_each in (5, 20):
        given = bench.several(N_SERIES, n_each)
        for latency_s in (LATENCY_S, 4 * LATENCY_S):
            timed = bench.time(given, 100, rounds, latency_s=latency_s)
            line_s = timed.served.n_bytes / (100 * MB)
            yield (
                f"| {N_SERIES} | {n_each} | 100 MB/s | {1000 * latency_s:.0f} ms | {line_s:.1f} s "
                f"| {timed.wall_s:.1f} s | {timed.wall_s / line_s:.2f} |"
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
    parser.add_argument("--only", choices=TABLES, help="make this table alone")
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
                "costs": lambda: costs_table(bench, chosen.rounds),
                "time": lambda: time_table(bench, chosen.rounds),
                "series": lambda: series_table(bench, chosen.rounds),
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
