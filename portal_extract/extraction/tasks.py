"""Units of extraction: how a job is cut into tasks, and what a task does where it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portal_extract.extraction.spectra import SpectrumTables, make_tables
from portal_extract.extraction.stacks import StackConsumer
from portal_extract.extraction.views import Views, find_views
from portal_extract.extraction.whiten import whitening_tables
from portal_extract.images.boxes import PatchBatch
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import Ints, Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.running.events import Observer

_BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class StackTask:
    """Extract 2D stacks of some particles of one tilt series.

    Attributes
    ----------
    number
        Of the unit.
    project
        Of one tilt series and these particles alone.
    paths
        File of each particle, below ``output_dir``.
    """

    number: int
    project: Project
    options: ExtractOptions
    output_dir: str
    paths: tuple[str, ...]

    @property
    def label(self) -> str:
        """Name of the tilt series."""
        return self.project.tilt_series[0].name

    def open(
        self, run: RunOptions, workers: int, observer: Observer
    ) -> tuple[Iterator[PatchBatch], StackConsumer]:
        """Open the stream of patches and the consumer that makes stacks of them."""
        views = find_views(self.project, 0, self.options)
        waiting, reading = memory_shares(views, self.options, run, workers)
        tables = extraction_tables(self.project, views, self.options, reading, observer)
        paths = [Path(self.output_dir) / self.paths[i] for i in views.kept]
        consumer = StackConsumer(views, tables, self.options, paths, waiting, observer)
        return stream_patches(views.series.image_stack, views.boxes, reading, observer), consumer


def extraction_tables(
    project: Project, views: Views, options: ExtractOptions, reading: ReadOptions, observer: Observer
) -> SpectrumTables:
    """Prepare what the transforms of a tilt series are multiplied by (RELION 5.0.1's extraction)."""
    whitening = whitening_tables(views, options, reading, observer) if options.whiten else None
    aberration_pixel = options.binning * project.optics_groups[0].pixel_size_angst
    groups = project.particles.optics_group
    return make_tables(views, options, project.optics_groups, groups, aberration_pixel, whitening)


def make_stack_tasks(
    project: Project,
    units: Sequence[tuple[int, Ints]],
    options: ExtractOptions,
    output_dir: Path,
    names: Sequence[str],
) -> list[StackTask]:
    """Make the tasks of units (tilt series, particles)."""
    return [
        StackTask(
            number,
            project.part(series_index, particles),
            options,
            str(output_dir.absolute()),
            tuple(names[i] for i in particles),
        )
        for number, (series_index, particles) in enumerate(units)
    ]


def memory_shares(
    views: Views, options: ExtractOptions, run: RunOptions, workers: int
) -> tuple[int, ReadOptions]:
    """Divide the memory between finished images that wait for their particle, and reading.

    Returns
    -------
    Bytes for images that wait, and the options of the reader.
    """
    patch = options.unbinned_box**2 * 4
    batch_views = int(np.clip(_BATCH_BYTES // patch, 4, 64))
    # a patch, its transforms and its image, for the batches in the threads' hands
    computing = workers * batch_views * (4 * patch + 8 * options.box_size**2 * 4)
    free = max(run.memory_bytes - computing, run.memory_bytes // 4)
    waiting = min(len(views) * options.output_size**2 * (2 if options.float16 else 4), free // 2)
    reading = ReadOptions(
        memory_bytes=free - waiting,
        batch_views=batch_views,
        requests_in_flight=run.requests_in_flight,
        decode_threads=workers,
    )
    return waiting, reading
