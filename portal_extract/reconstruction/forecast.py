"""What a reconstruction would do and cost, from geometry and metadata: no pixel is read, nothing written."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from portal_extract.model import Project
from portal_extract.options import RunOptions
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.outputs import map_names, written_bytes
from portal_extract.reconstruction.parts import Part, part_views, with_half_sets
from portal_extract.reconstruction.stacks import find_stacks, options_for_stacks
from portal_extract.reconstruction.summary import HalfSet
from portal_extract.reconstruction.survey import survey_reconstruction
from portal_extract.running.events import Observer, StageAdvanced, StageFinished, StageStarted, ignore

if TYPE_CHECKING:
    from portal_extract.planning.estimate import ReadPlan

_STAGE = "plan"
_SERIES_IN_FLIGHT = 8


@dataclass(frozen=True)
class ReconstructForecast:
    """What a reconstruction would do.

    Attributes
    ----------
    n_particles
        Particles in the project.
    half_sets
        What would go into each half set.
    skipped
        Number of particles that would be left out, by reason.
    maps
        Files that would be written.
    bytes_written
        Their size.
    memory_bytes
        Predicted working memory, the sums included; the program itself comes on top.
    batch_views
        Images transformed together.
    reading
        What would be read; None for stacks.
    """

    n_particles: int
    half_sets: tuple[HalfSet, ...]
    skipped: Mapping[str, int]
    maps: tuple[str, ...]
    bytes_written: int
    memory_bytes: int
    batch_views: int
    reading: ReadPlan | None

    @property
    def n_views(self) -> int:
        """Images that would be averaged."""
        return sum(half.n_views for half in self.half_sets)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        return {
            "particles": self.n_particles,
            "views": self.n_views,
            "half_sets": [{"particles": h.n_particles, "views": h.n_views} for h in self.half_sets],
            "skipped": dict(self.skipped),
            "maps": list(self.maps),
            "bytes_written": self.bytes_written,
            "memory_bytes": self.memory_bytes,
            "reading": None if self.reading is None else asdict(self.reading),
        }


def forecast_reconstruction(
    project: Project,
    options: ReconstructOptions,
    run: RunOptions | None = None,
    observer: Observer = ignore,
    *,
    from_stacks: bool = False,
    replace_subsets: bool = False,
) -> ReconstructForecast:
    """Say what a reconstruction would do, and refuse what it would refuse before it reads a pixel.

    Parameters
    ----------
    project, options, run, observer, from_stacks, replace_subsets
        As for :func:`portal_extract.reconstruction.job.reconstruct`.

    Raises
    ------
    PortalExtractError
        As reconstruction would.
    """
    run = run or RunOptions()
    stacks = find_stacks(project) if from_stacks else None
    if stacks is not None:
        options = options_for_stacks(options, stacks)
    options.check()
    project = with_half_sets(project, options, replace_subsets)
    survey = survey_reconstruction(project, options, run, stacks)
    reading = None
    if stacks is None:
        from portal_extract.images.inspection import plan_stream
        from portal_extract.planning.estimate import ReadPlan

        observer(StageStarted(_STAGE, len(survey.parts), "tilt series"))
        at_once = min(_SERIES_IN_FLIGHT, run.requests_in_flight)
        reading_of_one = replace(survey.budget.reading, requests_in_flight=run.requests_in_flight // at_once)

        def plan(part: Part) -> ReadPlan:
            views = part_views(part, options)
            found = plan_stream(views.series.image_stack, views.boxes, reading_of_one, observer)
            observer(StageAdvanced(_STAGE, 1))
            return found

        with ThreadPoolExecutor(at_once) as pool:
            reading = ReadPlan.together(list(pool.map(plan, survey.parts)))
        observer(StageFinished(_STAGE))
    return ReconstructForecast(
        n_particles=len(project.particles),
        half_sets=survey.half_sets(),
        skipped=survey.skipped,
        maps=tuple(f"{name}.mrc" for name in map_names(options, survey.n_halves)),
        bytes_written=written_bytes(options, survey.n_halves),
        memory_bytes=max(
            survey.budget.predicted_bytes, survey.budget.held_bytes + (reading.memory_bytes if reading else 0)
        ),
        batch_views=survey.budget.batch_views,
        reading=reading,
    )
