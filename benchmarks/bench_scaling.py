"""What 1,000 tilt series of 300 particles cost: planning, handing out, and 1 or 2 workers.

    python benchmarks/bench_scaling.py planning
    python benchmarks/bench_scaling.py scheduling [--processes 2]
    python benchmarks/bench_scaling.py workers [--series 24] [--processes 1 2]
    python benchmarks/bench_scaling.py slots
    python benchmarks/bench_scaling.py latency

All tilt series are the same file of simulated images, under different names. Figures and what follows from
them are in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from portal_extract.extraction import job
from portal_extract.extraction.resume import left_to_do, still_there
from portal_extract.extraction.survey import survey_project
from portal_extract.extraction.tasks import STACK_SUFFIX, make_tasks
from portal_extract.model import ImageStack, OpticsGroup, ParticleSet, Project, TiltSeries
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.mrc import write_stack
from portal_extract.relion_io.paths import stack_paths
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables
from portal_extract.running.clients import SchedulerOptions, open_client
from portal_extract.running.events import ignore
from portal_extract.running.guard import Guard
from portal_extract.running.identity import project_identity
from portal_extract.running.journal import Journal
from portal_extract.running.schedulers import Place, find_place, run_units
from portal_extract.running.units import UnitResult

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
N_TILTS, SIDE, PIXEL = 41, 1024, 2.0
UNIT_SECONDS = 0.8


def tilt_series(number: int, images: str) -> TiltSeries:
    """One of many tilt series of the same images, tilted by -60 to 60 degrees about y."""
    angle = np.deg2rad(np.linspace(-60, 60, N_TILTS))
    projections = np.zeros((N_TILTS, 4, 4))
    projections[:, 0, 0] = projections[:, 2, 2] = np.cos(angle)
    projections[:, 0, 2], projections[:, 2, 0] = -np.sin(angle), np.sin(angle)
    projections[:, 1, 1] = projections[:, 3, 3] = 1.0
    centre = np.array([SIDE / 2, SIDE / 2, 100.0])
    shift = np.array([SIDE / 2, SIDE / 2, 0.0])
    projections[:, :3, 3] = shift - projections[:, :3, :3] @ centre
    flat = np.zeros(N_TILTS)
    return TiltSeries(
        name=f"TS_{number:05d}",
        image_stack=ImageStack((images,) * N_TILTS, np.arange(N_TILTS), (SIDE, SIDE)),
        pixel_size_angst=PIXEL,
        voltage_kv=300.0,
        spherical_aberration_mm=2.7,
        amplitude_contrast=0.07,
        handedness=-1.0,
        tomogram_size_px=(SIDE, SIDE, 200),
        projections=projections,
        defocus_u_angst=flat + 30000,
        defocus_v_angst=flat + 29000,
        defocus_angle_deg=flat + 40,
        phase_shift_deg=flat,
        ctf_scale=flat + 1,
        ctf_bfactor_a2=flat,
        dose_e_per_a2=np.arange(N_TILTS) * 3.0,
    )


def make_project(images: str, n_series: int, n_particles: int) -> Project:
    """Particles everywhere in the tomograms, with the tables that a STAR file would give."""
    random = np.random.default_rng(1)
    n = n_series * n_particles
    series = tuple(tilt_series(number, images) for number in range(n_series))
    which = np.repeat(np.arange(n_series), n_particles)
    names = tuple(f"{series[t].name}/{i % n_particles + 1}" for i, t in enumerate(which.tolist()))
    points = random.uniform((-900, -900, -150), (900, 900, 150), (n, 3))
    angles = random.uniform(0, 180, (n, 3))
    columns: dict[str, list[str]] = {
        "rlnTomoName": [series[t].name for t in which.tolist()],
        "rlnTomoParticleName": list(names),
        "rlnOpticsGroup": ["1"] * n,
    }
    for axis, values in zip("XYZ", points.T, strict=True):
        columns[f"rlnCenteredCoordinate{axis}Angst"] = np.char.mod("%.6f", values).tolist()
    for angle, values in zip(("Rot", "Tilt", "Psi"), angles.T, strict=True):
        columns[f"rlnAngle{angle}"] = np.char.mod("%.6f", values).tolist()
    optics = {"rlnOpticsGroup": ["1"], "rlnOpticsGroupName": ["g"], "rlnTomoTiltSeriesPixelSize": ["2.0"]}
    tables = ProjectTables(
        particles=StringTable.of(columns),
        optics=StringTable.of(optics),
        tomograms=StringTable.of({"rlnTomoName": [s.name for s in series]}),
        tilts={},
        tomograms_file="tomograms.star",
    )
    zeros = np.zeros((n, 3))
    particles = ParticleSet(names, which, np.zeros(n, np.int64), points, zeros, zeros, angles)
    return Project(series, (OpticsGroup("g", PIXEL),), particles, tables)


@contextmanager
def stopwatch(times: dict[str, float], name: str) -> Iterator[None]:
    """Add the time of a block to a table."""
    start = time.perf_counter()
    yield
    times[name] = times.get(name, 0.0) + time.perf_counter() - start


def planning(n_series: int, n_particles: int, options: ExtractOptions) -> dict[str, float]:
    """Everything that an extraction does but reading and computing, piece by piece."""
    times: dict[str, float] = {}

    def timed(name: str, work: Callable[[], T]) -> T:
        with stopwatch(times, name):
            return work()

    project = make_project("/images/one.mrcs", n_series, n_particles)
    place = Place(RunOptions(workers=1), n_slots=64)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        (out / ".journal").mkdir()
        names = timed("names of files", lambda: stack_paths(project, STACK_SUFFIX))
        timed("survey of all particles", lambda: survey_project(project, options))
        identity = timed("identity of options and inputs", lambda: project_identity(project, options))
        journal = Journal(out)
        timed("journal: begin", lambda: journal.begin(identity))
        units = timed("cut into units", lambda: left_to_do(project, options, place))
        tasks = list(make_tasks(project, units, options, out, names))
        sizes = timed("make and pickle tasks", lambda: [
            len(pickle.dumps(task)) for task in make_tasks(project, units, options, out, names)
        ])  # fmt: skip
        results = [UnitResult(task.label, task.particles, {}, 1, 1, 1) for task in tasks]
        timed("journal: record all units", lambda: [journal.record(result) for result in results])
        found = timed("journal: read again", lambda: journal.begin(identity))
        timed("resume: look for all files", lambda: still_there(project, options, out, names, found, journal))
        outcomes = timed("what is on disk", lambda: [
            job._outcome(project, options, index, {}) for index in range(n_series)
        ])  # fmt: skip
        timed("write particles.star", lambda: job._write_tables(project, options, out, "o/", names, outcomes))
        print(f"{len(units)} units, {sum(sizes) / len(sizes) / 1000:.0f} kB each when pickled")
    return times


@dataclass(frozen=True)
class Idle:
    """A task of full size that computes nothing, but may take its time."""

    task: object
    particles: tuple[int, ...]
    label: str
    seconds: float = 0.0

    def open(self, run: RunOptions, workers: int, observer: object) -> tuple[Iterator[object], Nothing]:
        """Give nothing to do."""
        time.sleep(self.seconds)
        return iter(()), Nothing()


class Nothing:
    """A consumer of nothing."""

    bad: dict[int, str] = {}  # noqa: RUF012

    def consume(self, which: object, patches: object) -> None:
        """Not called."""

    def finish(self) -> None:
        """Nothing to do."""


def scheduling(
    shape: tuple[int, int], options: ExtractOptions, processes: int, threads: int = 1, seconds: float = 0.0
) -> dict[str, float]:
    """Hand out units of full size that compute nothing, and record them."""
    times: dict[str, float] = {}
    project = make_project("/images/one.mrcs", *shape)
    names = stack_paths(project, STACK_SUFFIX)
    with (
        tempfile.TemporaryDirectory() as folder,
        open_client(SchedulerOptions("local", processes, threads)) as client,
    ):
        out = Path(folder)
        (out / ".journal").mkdir()
        journal = Journal(out)
        journal.begin({})
        place = find_place(RunOptions(workers=1), client, ignore)
        guard = Guard(str(out), journal.token)
        units = left_to_do(project, options, Place(place.run))
        made = make_tasks(project, units, options, out, names)
        tasks = (Idle(task, task.particles, task.label, seconds) for task in made)
        client.submit(import_everything).result()
        start_cpu = time.process_time()
        with stopwatch(times, f"{len(units)} units through {place.n_slots} slots"):
            assert run_units(tasks, place, guard, ignore, journal.record) == []
        print(f"CPU time of the program (client and scheduler): {time.process_time() - start_cpu:.2f} s")
    return times


def import_everything() -> None:
    """Import what a unit needs, so that it is not measured."""
    from portal_extract.extraction import tasks  # noqa: F401


def workers(
    n_series: int, n_particles: int, options: ExtractOptions, processes: int | None
) -> dict[str, float]:
    """Extract with so many worker processes of one thread, or on one thread of this process."""
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder, "one.mrcs")
        pixels = np.random.default_rng(2).normal(size=(N_TILTS, SIDE, SIDE)).astype(np.float32)
        write_stack(images, pixels, PIXEL)
        project, small = (make_project(str(images), *shape) for shape in ((n_series, n_particles), (8, 4)))
        run = RunOptions(workers=1)
        scheduler = SchedulerOptions() if processes is None else SchedulerOptions("local", processes, 1)
        with open_client(scheduler) as client:
            # compile and import before the clock starts
            job.extract(small, options, Path(folder, "warm"), run, client=client)
            before = cpu_seconds(client)
            name = "threads: 1" if processes is None else f"processes: {processes}"
            with stopwatch(times, name):
                summary = job.extract(project, options, Path(folder, "out"), run, client=client)
            program, in_workers = (b - a for a, b in zip(before, cpu_seconds(client), strict=True))
    print(
        f"{name}: {summary.n_views} images, {summary.n_views / times[name]:.0f} images/s; CPU time of the "
        f"program {program:.2f} s, of the workers {in_workers:.2f} s"
    )
    return times


def latency(n_particles: int, options: ExtractOptions, requests: int, seconds: float) -> dict[str, float]:
    """Extract from a store that takes its time for every answer."""
    import zarr

    from portal_extract.demo.object_server import ObjectServer

    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        shape, chunks = (N_TILTS, SIDE, SIDE), (1, 256, 256)
        store = Path(folder, "store/bucket/one.zarr/0")
        array = zarr.create_array(
            store, shape=shape, chunks=chunks, dtype="<f4", zarr_format=2, compressors=None
        )
        array[:] = np.random.default_rng(2).normal(size=shape).astype(np.float32)
        with ObjectServer(Path(folder, "store"), latency_s=seconds) as server:
            project = make_project("s3://bucket/one.zarr/0", 1, n_particles)
            stack = replace(project.tilt_series[0].image_stack, storage={"endpoint_url": server.url})
            series = replace(project.tilt_series[0], image_stack=stack)
            run = RunOptions(workers=1, requests_in_flight=requests)
            name = f"{requests} requests in flight"
            with stopwatch(times, name):
                summary = job.extract(
                    replace(project, tilt_series=(series,)), options, Path(folder, "out"), run
                )
    expected = summary.n_requests * seconds / requests
    print(f"{name}: {summary.n_requests} requests, expected {expected:.2f} s, found {times[name]:.2f} s")
    return times


def cpu_seconds(client: Client | None) -> tuple[float, float]:
    """CPU time of this process, and of the workers together."""
    return time.process_time(), 0.0 if client is None else sum(client.run(time.process_time).values())


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["planning", "scheduling", "workers", "slots", "latency"])
    parser.add_argument("--series", type=int, default=None)
    parser.add_argument("--particles", type=int, default=300)
    parser.add_argument("--box-size", type=int, default=64)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    chosen = parser.parse_args()
    options = ExtractOptions(box_size=chosen.box_size)
    times: dict[str, float] = {}
    if chosen.what == "planning":
        times = planning(chosen.series or 1000, chosen.particles, options)
    elif chosen.what == "scheduling":
        for processes in chosen.processes:
            times |= scheduling((chosen.series or 1000, chosen.particles), options, processes)
    elif chosen.what == "slots":
        for threads in (8, 16, 32, 64, 128):
            shape = (chosen.series or 20 * threads, chosen.particles)
            times |= scheduling(shape, options, 1, threads, UNIT_SECONDS)
    elif chosen.what == "latency":
        for requests in (1, 2, 4, 8, 16, 32):
            times |= latency(chosen.particles, options, requests, 0.05)
    else:
        times = workers(chosen.series or 24, chosen.particles, options, None)
        for processes in chosen.processes:
            times |= workers(chosen.series or 24, chosen.particles, options, processes)
    for name, seconds in times.items():
        print(f"{name:40s} {seconds:8.2f} s")
    print(f"{'total':40s} {sum(times.values()):8.2f} s")


if __name__ == "__main__":
    main()
