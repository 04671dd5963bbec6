"""What an extraction would do and cost, from geometry and metadata: no pixel is read, nothing written."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.extraction.summary import SeriesSurvey
from portal_extract.extraction.survey import (
    count_reasons,
    outside_warnings,
    refuse_hopeless,
    result_bytes,
    survey_series,
    written_bytes,
)
from portal_extract.extraction.tasks import (
    STACK_SUFFIX,
    VOLUME_SUFFIX,
    Unit,
    cut_units,
    memory_shares,
)
from portal_extract.extraction.views import Views, find_views
from portal_extract.extraction.whiten import whole_images
from portal_extract.images.boxes import Boxes
from portal_extract.model import Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.paths import stack_paths
from portal_extract.running.events import Note, Observer, StageAdvanced, StageFinished, StageStarted, ignore
from portal_extract.running.schedulers import n_workers

if TYPE_CHECKING:
    from portal_extract.images.inspection import StoredStack
    from portal_extract.planning.estimate import ReadPlan

STAGE = "plan"
_SERIES_IN_FLIGHT = 8


@dataclass(frozen=True)
class SeriesForecast:
    """What extraction from one tilt series would do.

    Attributes
    ----------
    survey
        Particles and views, and the particles left out by reason.
    bytes_written
        Size of the results.
    memory_bytes
        Predicted working memory: what the reader holds, what waits for the rest of its particle, and the
        batches in the threads' hands. The program itself comes on top.
    reading
        What is read; None where no particle is left.
    """

    survey: SeriesSurvey
    bytes_written: int
    memory_bytes: int
    reading: ReadPlan | None

    @property
    def n_particles(self) -> int:
        """Particles in the tilt series."""
        return self.survey.n_particles

    @property
    def n_extracted(self) -> int:
        """Particles that would be extracted."""
        return self.survey.n_kept

    @property
    def n_views(self) -> int:
        """Images that would be cut."""
        return self.survey.n_views

    def to_dict(self, bandwidth: float | None = None) -> dict[str, Any]:
        """Everything as plain values, for JSON; see :meth:`Forecast.to_dict`."""
        return {
            "name": self.survey.name,
            "particles": self.n_particles,
            "extracted": self.n_extracted,
            "views": self.n_views,
            "skipped": count_reasons([self.survey]),
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory_bytes,
            "reading": None if self.reading is None else asdict(self.reading),
            **_seconds(self.reading, bandwidth),
        }


@dataclass(frozen=True)
class Forecast:
    """What an extraction would do.

    Attributes
    ----------
    series
        For each tilt series that has particles, in the order of work.
    limit_bytes
        Memory allowed.
    """

    series: tuple[SeriesForecast, ...]
    limit_bytes: int

    @property
    def surveys(self) -> list[SeriesSurvey]:
        """What geometry says of each tilt series."""
        return [one.survey for one in self.series]

    @property
    def n_particles(self) -> int:
        """Particles asked for."""
        return sum(one.n_particles for one in self.series)

    @property
    def n_extracted(self) -> int:
        """Particles that would be extracted."""
        return sum(one.n_extracted for one in self.series)

    @property
    def n_views(self) -> int:
        """Images that would be cut."""
        return sum(one.n_views for one in self.series)

    @property
    def skipped(self) -> dict[str, int]:
        """Particles that would be left out, by reason."""
        return count_reasons(self.surveys)

    @property
    def bytes_written(self) -> int:
        """Size of the results."""
        return sum(one.bytes_written for one in self.series)

    @property
    def memory_bytes(self) -> int:
        """Predicted working memory.

        Tilt series are worked on in turn; the reader begins with the next one while the present one is
        finished, if there is room for both.
        """
        alone = [one.memory_bytes for one in self.series]
        both = [
            one.memory_bytes + following.reading.memory_bytes
            for one, following in pairwise(self.series)
            if following.reading is not None
        ]
        return max([*alone, *(together for together in both if together <= self.limit_bytes)], default=0)

    @property
    def reading(self) -> ReadPlan:
        """What is read in total."""
        from portal_extract.planning.estimate import ReadPlan

        return ReadPlan.together([one.reading for one in self.series if one.reading is not None])

    def to_dict(self, bandwidth: float | None = None) -> dict[str, Any]:
        """Everything as plain values, for JSON.

        Parameters
        ----------
        bandwidth
            Bytes per second; adds the time that fetching takes.
        """
        return {
            "particles": self.n_particles,
            "extracted": self.n_extracted,
            "views": self.n_views,
            "skipped": self.skipped,
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory_bytes,
            "reading": asdict(self.reading),
            **_seconds(self.reading, bandwidth),
            "tilt_series": [one.to_dict(bandwidth) for one in self.series],
        }


def _seconds(reading: ReadPlan | None, bandwidth: float | None) -> dict[str, float]:
    if reading is None or bandwidth is None:
        return {}
    return {"fetch_seconds": reading.seconds(bandwidth)}


def forecast(
    project: Project,
    options: ExtractOptions,
    run: RunOptions | None = None,
    output_dir: str | Path = ".",
    observer: Observer = ignore,
) -> Forecast:
    """Say what an extraction would do, and refuse what it would refuse before it reads a pixel.

    Metadata of the images is read, and the table of blocks of one chunk of each tilt series.

    Parameters
    ----------
    project, options, run
        As for :func:`portal_extract.extraction.job.extract`.
    output_dir
        Where the results would go; looked at for free space only.
    observer
        Told of progress and of the metadata read.

    Raises
    ------
    PortalExtractError
        As extraction would: options, names of particles, no particle left, memory, disk, missing images.
    """
    options.check()
    run = run or RunOptions()
    at_once = min(_SERIES_IN_FLIGHT, run.requests_in_flight)
    run = replace(run, workers=n_workers(run), requests_in_flight=run.requests_in_flight // at_once)
    stack_paths(project, STACK_SUFFIX if options.mode == "stack2d" else VOLUME_SUFFIX)
    found = {t: find_views(project, t, options) for t, p in enumerate(project.particles_of) if len(p)}
    surveys = {t: survey_series(project, t, views, options) for t, views in found.items()}
    refuse_hopeless(list(surveys.values()), result_bytes(list(surveys.values()), options), Path(output_dir))
    for sentence in outside_warnings(list(surveys.values())):
        observer(Note(sentence, "warning"))
    units = cut_units(project, [(t, project.particles_of[t]) for t in found], options, run)
    observer(StageStarted(STAGE, len(found), "tilt series"))

    def plan(t: int) -> SeriesForecast:
        mine = [unit for unit in units if unit[0] == t]
        memory, reading = _plan_series(project, found[t], mine, options, run, observer)
        observer(StageAdvanced(STAGE, 1))
        survey = surveys[t]
        return SeriesForecast(survey, written_bytes(options, survey.n_kept, survey.n_views), memory, reading)

    with ThreadPoolExecutor(at_once) as pool:
        series = tuple(pool.map(plan, found))
    observer(StageFinished(STAGE))
    return Forecast(series, run.memory_bytes)


def _plan_series(
    project: Project,
    views: Views,
    units: Sequence[Unit],
    options: ExtractOptions,
    run: RunOptions,
    observer: Observer,
) -> tuple[int, ReadPlan | None]:
    """Predict the memory for a tilt series, and what is read of it."""
    from portal_extract.images.inspection import inspect_stack
    from portal_extract.planning.estimate import ReadPlan

    if not len(views):
        return 0, None
    _, reading = memory_shares(views, options, run, n_workers(run))
    stored = inspect_stack(views.series.image_stack, views.boxes, reading, observer)
    memory, plans = 0, []
    for series_index, particles in units:
        mine = find_views(project.part(series_index, particles), 0, options)
        if not len(mine):
            continue
        plan, needed = _plan_unit(mine, stored, options, run)
        plans += plan
        memory = max(memory, needed)
    return memory, ReadPlan.together(plans)


def _plan_unit(
    views: Views, stored: StoredStack, options: ExtractOptions, run: RunOptions
) -> tuple[list[ReadPlan], int]:
    """Plan what a unit reads: whole tilt images first if their noise is measured, then the boxes."""
    from portal_extract.planning.estimate import plan_reading

    stack = views.series.image_stack
    _, reading = memory_shares(views, options, run, n_workers(run))
    boxes = plan_reading(stack, stored.layouts, views.boxes, reading, stored.sizes)
    besides = run.memory_bytes - reading.memory_bytes
    if not options.whiten:
        return [boxes], besides + boxes.memory_bytes
    used = np.unique(views.tilt)
    whole = Boxes(used, np.zeros((len(used), 2), dtype=np.int64), max(stack.size_px))
    images = plan_reading(stack, stored.layouts, whole, whole_images(stack, reading), stored.sizes)
    image_bytes = 4 * stack.size_px[0] * stack.size_px[1]
    needed = besides + max(images.memory_bytes + image_bytes, boxes.memory_bytes)
    return [replace(images, views=0), boxes], needed
