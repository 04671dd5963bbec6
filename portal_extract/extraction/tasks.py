"""Units of extraction: how a job is cut into tasks, and what a task does where it runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portal_extract.errors import MemoryBudgetError
from portal_extract.extraction.pseudo import VolumeConsumer
from portal_extract.extraction.series_stacks import SeriesStackConsumer
from portal_extract.extraction.spectra import SpectrumTables, make_tables
from portal_extract.extraction.stack_files import images_that_wait
from portal_extract.extraction.stacks import StackConsumer, stored_image_bytes
from portal_extract.extraction.views import Views, find_views, positions_px
from portal_extract.extraction.whiten import whitening_tables
from portal_extract.geometry import euler_to_matrix
from portal_extract.images.options import ReadOptions
from portal_extract.images.reader import Reader
from portal_extract.images.stream import PatchStream, open_patches
from portal_extract.model import Floats, Ints, Project
from portal_extract.optics.dose import dose_ranges, dose_weights
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.paths import SUBTOMOGRAMS, check_tomogram_names, stack_paths
from portal_extract.running.events import Observer
from portal_extract.running.journal import FOLDER as JOURNAL
from portal_extract.running.schedulers import n_workers
from portal_extract.running.units import to_runs

STACK_SUFFIX, VOLUME_SUFFIX, WEIGHT_SUFFIX = "_stack2d.mrcs", "_data.mrc", "_weights.mrc"
_BATCH_BYTES = 2 << 20
_SUMMED_BYTES = 64 << 20

Unit = tuple[int, Ints]
"""Index of a tilt series, and the indices of some of its particles in the project."""


@dataclass(frozen=True)
class ExtractTask:
    """Extract some particles of one tilt series.

    Attributes
    ----------
    particles
        Their indices in the whole project.
    project
        Of one tilt series and these particles alone.
    options
        What to extract.
    output_dir
        Absolute path.
    paths
        Main file of each particle (stack, data volume, or the stack of all), below ``output_dir``.
    """

    particles: tuple[int, ...]
    project: Project
    options: ExtractOptions
    output_dir: str
    paths: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name of the tilt series."""
        return self.project.tilt_series[0].name

    @property
    def may_open_early(self) -> bool:
        """Whether opening reads no pixels: whitening needs the noise of whole images first."""
        return not self.options.whiten

    def open(
        self, run: RunOptions, workers: int, observer: Observer, reader: Reader
    ) -> tuple[PatchStream, StackConsumer | VolumeConsumer]:
        """Make the stream of patches and the consumer that takes them."""
        views = find_views(self.project, 0, self.options)
        waiting, reading = memory_shares(views, self.options, run, workers)
        tables = _tables(self.project, views, self.options, reading, observer)
        paths = [Path(self.output_dir) / self.paths[i] for i in views.kept]
        consumer: StackConsumer | VolumeConsumer
        if self.options.stack_layout == "tomogram":
            path = Path(self.output_dir) / self.paths[0]
            consumer = SeriesStackConsumer(views, tables, self.options, path, observer)
        elif self.options.mode == "stack2d":
            consumer = StackConsumer(views, tables, self.options, paths, waiting, observer)
        else:
            consumer = self._volume_consumer(views, tables, paths, workers, observer)
        stack = views.series.image_stack
        return open_patches(stack, views.boxes, reading, observer, reader), consumer

    def _volume_consumer(
        self, views: Views, tables: SpectrumTables, paths: Sequence[Path], workers: int, observer: Observer
    ) -> VolumeConsumer:
        options, series = self.options, views.series
        pixel = series.pixel_size_angst * options.binning
        # the dose cuts samples off even where it does not weigh them (RELION 5.0.1 behaviour)
        dose = dose_weights(series.dose_e_per_a2, series.bfactor_per_dose, options.box_size, pixel)
        frame = euler_to_matrix(self.project.particles.subtomogram_angles_deg[views.kept])
        full = frame @ euler_to_matrix(self.project.particles.angles_deg[views.kept])
        stems = [path.with_name(path.name.removesuffix(VOLUME_SUFFIX)) for path in paths]
        total = sum_path(Path(self.output_dir), self.particles) if options.volume.write_sum else None
        ranges = dose_ranges(dose, options.volume.cutoff_fraction)
        return VolumeConsumer(views, tables, options, ranges, (frame, full), stems, total, workers, observer)


def _tables(
    project: Project, views: Views, options: ExtractOptions, reading: ReadOptions, observer: Observer
) -> SpectrumTables:
    """Prepare what the transforms of a tilt series are multiplied by (RELION 5.0.1's extraction)."""
    whitening = whitening_tables(views, options, reading, observer) if options.whiten else None
    aberration_pixel = options.binning * project.optics_groups[0].pixel_size_angst
    groups = project.particles.optics_group
    return make_tables(views, options, project.optics_groups, groups, aberration_pixel, whitening)


def main_files(project: Project, options: ExtractOptions) -> tuple[str, ...]:
    """Name the main file of each particle, below the output folder: stack, data volume, or the stack of all.

    Raises
    ------
    UnsupportedError
        A name cannot be a path, or two particles would share a file.
    """
    names = stack_paths(project, STACK_SUFFIX if options.mode == "stack2d" else VOLUME_SUFFIX)
    if options.stack_layout == "particle":
        return names
    check_tomogram_names([series.name for series in project.tilt_series])
    stacks = [f"{SUBTOMOGRAMS}/{series.name}{STACK_SUFFIX}" for series in project.tilt_series]
    return tuple(stacks[t] for t in project.particles.tilt_series.tolist())


def make_tasks(
    project: Project,
    units: Sequence[Unit],
    options: ExtractOptions,
    output_dir: Path,
    names: Sequence[str],
) -> Iterator[ExtractTask]:
    """Make the tasks of units, one by one; ``names`` are the main files of all particles of the project."""
    for series_index, particles in units:
        yield ExtractTask(
            particles=tuple(particles.tolist()),
            project=project.part(series_index, particles),
            options=options,
            output_dir=str(output_dir.absolute()),
            paths=tuple(names[i] for i in particles),
        )


def sum_path(output_dir: Path, particles: Sequence[int]) -> Path:
    """Name the file that keeps the sum over a unit until the end of the job."""
    name = hashlib.sha256(repr(to_runs(particles)).encode()).hexdigest()[:12]
    return output_dir / JOURNAL / f".sum-{particles[0]:08d}-{name}.npz"


def memory_shares(
    views: Views, options: ExtractOptions, run: RunOptions, workers: int
) -> tuple[int, ReadOptions]:
    """Divide the memory between results that wait for others of their particle, and reading.

    Returns
    -------
    Bytes for what waits, and the options of the reader.
    """
    patch = options.unbinned_box**2 * 4
    batch_views = int(np.clip(_BATCH_BYTES // patch, 4, 64))
    # a patch, its transforms and its image, for the batches in the threads' hands
    computing = workers * batch_views * (4 * patch + 8 * options.box_size**2 * 4)
    free = max(run.memory_bytes - computing, run.memory_bytes // 4)
    if options.mode == "stack2d":
        waiting = _waiting_for_stacks(views, options, free // 8)
    else:
        waiting = min(len(views) * waiting_bytes(options), free // 2)
    return waiting, ReadOptions.of_run(run, free - waiting, batch_views, workers)


def _waiting_for_stacks(views: Views, options: ExtractOptions, at_most: int) -> int:
    """Memory for images that wait to be written together: none where each is written at once."""
    lengths = views.stack_lengths
    if not len(lengths) or options.stack_layout == "tomogram":
        return 0
    image = waiting_bytes(options)
    each = images_that_wait(len(lengths), int(lengths.max()), image, at_most)
    return 0 if each == 1 else len(lengths) * each * image


def waiting_bytes(options: ExtractOptions) -> int:
    """Memory that a finished view takes while it waits: for the next of its stack, or all of its volume."""
    if options.mode == "stack2d":
        return stored_image_bytes(options)
    return 12 * options.box_size * (options.box_size // 2 + 1)


def cut_units(
    project: Project, todo: Sequence[Unit], options: ExtractOptions, run: RunOptions, n_slots: int = 1
) -> list[Unit]:
    """Cut the particles of tilt series into units that fit the memory and occupy all processes.

    Images of stacks need not wait in memory, so only volumes need units that fit. A large tilt series is cut
    into strips along its tilt axis, because these share the fewest pixels. Units that leave a sum are cut by
    the number of their particles alone, so that the order of summation does not depend on where they run. A
    tilt series with one stack for all particles is one unit.

    Parameters
    ----------
    project
        The project.
    todo
        Tilt series and their particles that are to be done.
    options, run
        Give the size of what waits, and the memory.
    n_slots
        Units that run at the same time on a cluster, 1 without one.

    Returns
    -------
    Units; within each, particles are in table order.

    Raises
    ------
    MemoryBudgetError
        Not even one particle fits, or not those of one sum.
    """
    units: list[Unit] = []
    sums = options.mode == "volume3d" and options.volume.write_sum
    whole = n_slots == 1 or sums or options.stack_layout == "tomogram"
    most = 1 << 62 if whole else max(16, -(-sum(len(p) for _, p in todo) // (4 * n_slots)))
    for series_index, particles in todo:
        limit = most
        if options.mode == "volume3d":
            summed = max(1, _SUMMED_BYTES // _particle_bytes(project, series_index, options)) if sums else 1
            fitting = _particles_in_memory(project, series_index, options, run, min(summed, len(particles)))
            limit = summed if sums else min(limit, fitting)
        n_units = -(-len(particles) // limit)
        if n_units == 1:
            units.append((series_index, particles))
            continue
        order = particles[np.argsort(_along_axis(project, series_index, particles), kind="stable")]
        units += [(series_index, np.sort(part)) for part in np.array_split(order, n_units)]
    return units


def _particle_bytes(project: Project, series_index: int, options: ExtractOptions) -> int:
    return project.tilt_series[series_index].n_tilts * waiting_bytes(options)


def _particles_in_memory(
    project: Project, series_index: int, options: ExtractOptions, run: RunOptions, at_least: int
) -> int:
    size = options.output_size
    # accumulators, the volumes made of them, and double-precision temporaries, per thread
    volume = size**3 * 4 * 8
    particle = _particle_bytes(project, series_index, options)
    workers = n_workers(run)
    share = run.memory_bytes // 2 - workers * volume
    if share < particle * at_least:
        needed = 2 * (particle * at_least + workers * volume)
        what = "a volume" if at_least == 1 else f"a sum of {at_least} volumes"
        raise MemoryBudgetError(
            f"{project.tilt_series[series_index].name}: {what} of box {options.box_size} needs "
            f"{needed / 2**30:.2f} GiB with {workers} workers, --memory is "
            f"{run.memory_bytes / 2**30:.2f} GiB; raise --memory, "
            "or use fewer --workers, a smaller --box-size or a larger --bin"
        )
    return share // particle


def _along_axis(project: Project, series_index: int, particles: Ints) -> Floats:
    """Coordinate of particles along the tilt axis (y of the tomogram), in unbinned pixels."""
    points: Floats = positions_px(project, particles, apply_offsets=False)[:, 1]
    return points
