"""The extraction job: from a project to a folder that RELION takes as its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from portal_extract.errors import BadResultError, UnsupportedError
from portal_extract.extraction.spectra import make_tables
from portal_extract.extraction.stacks import StackConsumer
from portal_extract.extraction.summary import ExtractionSummary, SeriesSurvey, peak_memory_bytes
from portal_extract.extraction.survey import refuse_hopeless, stack_bytes, survey_project
from portal_extract.extraction.views import Views, find_views
from portal_extract.extraction.whiten import whitening_tables
from portal_extract.images.boxes import PatchBatch
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import Bools, Floats, Ints, Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.extraction_star import ExtractedParticles, write_extraction_tables
from portal_extract.relion_io.paths import output_prefix, stack_paths
from portal_extract.running.engine import ViewConsumer, run_streams
from portal_extract.running.events import BytesRead, Event, Observer, StageFinished, StageStarted, ignore
from portal_extract.running.folder import claim_output, write_report

_BATCH_BYTES = 2 << 20


@dataclass(frozen=True)
class SeriesOutcome:
    """What came of one tilt series.

    Attributes
    ----------
    kept
        ``(K,)`` indices of the particles whose stack is on disk.
    seen, coordinates_angst
        ``(K, F)`` and ``(K, 3)``, as in :class:`~portal_extract.extraction.views.Views`.
    skipped
        Indices of the others, by reason.
    """

    kept: Ints
    seen: Bools
    coordinates_angst: Floats
    skipped: Mapping[str, Ints]


class Tally:
    """Counts what is read, and passes every event on."""

    def __init__(self, observer: Observer) -> None:
        self._observer, self._lock = observer, threading.Lock()
        self.bytes_read = self.n_requests = 0

    def __call__(self, event: Event) -> None:
        """Observe."""
        if isinstance(event, BytesRead):
            with self._lock:
                self.bytes_read += event.n_bytes
                self.n_requests += event.n_requests
        self._observer(event)


def extract(
    project: Project,
    options: ExtractOptions,
    output_dir: str | Path,
    run: RunOptions | None = None,
    observer: Observer = ignore,
    *,
    assumptions: Mapping[str, Any] | None = None,
) -> ExtractionSummary:
    """Extract the particles of a project.

    Parameters
    ----------
    project
        From :func:`portal_extract.open_relion_project` or :func:`portal_extract.resolve_portal`.
    options
        What to extract.
    output_dir
        Where; RELION's layout.
    run
        How to run it.
    observer
        Told of progress.
    assumptions
        Values to be named in the report.

    Returns
    -------
    Counts, bytes, time.

    Raises
    ------
    UnsupportedError
        Options that cannot be honoured; before anything is read.
    IneligibleError
        No particle is left; nothing is written.
    OutputError
        The folder holds another run, or there is no room.
    ReadError
        Pixels could not be had.
    """
    started, run, output_dir = time.monotonic(), run or RunOptions(), Path(output_dir)
    options.check()
    if options.mode != "stack2d":
        raise UnsupportedError(["--output-mode volume3d: 3D pseudo-subtomograms are not implemented yet"])
    prefix = output_prefix(output_dir, run.paths)
    names = stack_paths(project, "_stack2d.mrcs")
    survey = survey_project(project, options)
    refuse_hopeless(survey, stack_bytes(survey, options), output_dir)
    tally = Tally(observer)
    with claim_output(output_dir, overwrite=run.overwrite):
        outcomes = _extract_stacks(project, options, output_dir, names, run, survey, tally)
        kept = np.concatenate([outcome.kept for outcome in outcomes])
        if not len(kept):
            raise BadResultError(
                f"{output_dir}: every stack was constant or not finite; check the tilt images"
            )
        extracted = ExtractedParticles(
            indices=kept,
            visible=tuple(row for outcome in outcomes for row in outcome.seen),
            image_names=tuple(names[i] for i in kept),
            weight_names=None,
            coordinates_angst=np.concatenate([outcome.coordinates_angst for outcome in outcomes]),
        )
        write_extraction_tables(output_dir, project, options, extracted, out_prefix=prefix)
        summary = _summarise(project, options, output_dir, outcomes, tally, started, assumptions or {})
        write_report(output_dir, summary.to_dict(), options)
    return summary


def _extract_stacks(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    names: Sequence[str],
    run: RunOptions,
    survey: Sequence[SeriesSurvey],
    observer: Observer,
) -> list[SeriesOutcome]:
    """Stream every tilt series that has particles through the engine."""
    workers = run.workers or os.cpu_count() or 1
    outcomes: dict[int, SeriesOutcome] = {}

    def open_series(index: int) -> tuple[Iterator[PatchBatch], ViewConsumer]:
        views = find_views(project, index, options)
        waiting, reading = memory_shares(views, options, run, workers)
        consumer = _SeriesConsumer(project, views, options, output_dir, names, waiting, reading, observer)
        consumer.deliver_to(outcomes, index)
        return stream_patches(views.series.image_stack, views.boxes, reading, observer), consumer

    observer(StageStarted("extract", sum(s.n_views for s in survey), "views"))
    used = [t for t, particles in enumerate(project.particles_of) if len(particles)]
    run_streams((partial(open_series, t) for t in used), workers)
    observer(StageFinished("extract"))
    return [outcomes[t] for t in used]


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


class _SeriesConsumer(StackConsumer):
    """A :class:`StackConsumer` that prepares its own tables and delivers an outcome."""

    def __init__(
        self,
        project: Project,
        views: Views,
        options: ExtractOptions,
        output_dir: Path,
        names: Sequence[str],
        waiting_bytes: int,
        reading: ReadOptions,
        observer: Observer,
    ) -> None:
        whitening = whitening_tables(views, options, reading, observer) if options.whiten else None
        tables = make_tables(
            views,
            options,
            project.optics_groups,
            project.particles.optics_group,
            options.binning * project.optics_groups[0].pixel_size_angst,
            whitening,
        )
        paths = [output_dir / names[i] for i in views.kept]
        super().__init__(views, tables, options, paths, waiting_bytes, observer)

    def deliver_to(self, outcomes: dict[int, SeriesOutcome], index: int) -> None:
        """Say where the outcome goes."""
        self._outcomes, self._index = outcomes, index

    def finish(self) -> None:
        """Deliver what was written."""
        good = np.array([k not in self.bad for k in range(len(self._views.kept))], dtype=bool)
        skipped = dict(self._views.skipped)
        for reason in sorted(set(self.bad.values())):
            skipped[reason] = self._views.kept[sorted(k for k, r in self.bad.items() if r == reason)]
        self._outcomes[self._index] = SeriesOutcome(
            self._views.kept[good], self._views.seen[good], self._views.coordinates_angst[good], skipped
        )


def _summarise(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    outcomes: Sequence[SeriesOutcome],
    tally: Tally,
    started: float,
    assumptions: Mapping[str, Any],
) -> ExtractionSummary:
    skipped: dict[str, int] = {}
    by_series: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for reason, indices in outcome.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + len(indices)
            series = project.tilt_series[project.particles.tilt_series[indices[0]]].name
            by_series.setdefault(series, {})[reason] = len(indices)
    n_views = sum(int(outcome.seen.sum()) for outcome in outcomes)
    n_kept = sum(len(outcome.kept) for outcome in outcomes)
    side = options.box_size - 2 * options.boundary
    return ExtractionSummary(
        output_dir=output_dir,
        n_particles=len(project.particles),
        n_extracted=n_kept,
        n_views=n_views,
        skipped=skipped,
        skipped_by_series=by_series,
        bytes_read=tally.bytes_read,
        n_requests=tally.n_requests,
        bytes_written=n_views * side * side * (2 if options.float16 else 4) + 1024 * n_kept,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
        assumptions=assumptions,
    )
