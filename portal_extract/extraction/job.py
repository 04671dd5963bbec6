"""The extraction job: from a project to a folder that RELION takes as its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.errors import BadResultError, UnsupportedError
from portal_extract.extraction.summary import ExtractionSummary, peak_memory_bytes
from portal_extract.extraction.survey import refuse_hopeless, stack_bytes, survey_project
from portal_extract.extraction.tasks import make_stack_tasks
from portal_extract.extraction.views import find_views
from portal_extract.model import Bools, Floats, Ints, Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.extraction_star import ExtractedParticles, write_extraction_tables
from portal_extract.relion_io.paths import output_prefix, stack_paths
from portal_extract.running.events import Note, Observer, StageAdvanced, StageFinished, StageStarted, ignore
from portal_extract.running.folder import hold_output, write_report
from portal_extract.running.identity import project_identity
from portal_extract.running.journal import Journal
from portal_extract.running.schedulers import run_on_dask, run_on_threads
from portal_extract.running.units import UnitResult

if TYPE_CHECKING:
    from distributed import Client

RESULTS = (
    "Subtomograms",
    "particles.star",
    "optimisation_set.star",
    "motion.star",
    "tomograms.star",
    "tilt_series",
    "report",
)

Unit = tuple[int, Ints]
"""Index of a tilt series, and the particles (of the project) that belong to the unit."""


@dataclass(frozen=True)
class SeriesOutcome:
    """What came of the particles of one unit.

    Attributes
    ----------
    kept
        ``(K,)`` indices of the particles whose result is on disk.
    seen, coordinates_angst
        ``(K, F)`` and ``(K, 3)``, as in :class:`~portal_extract.extraction.views.Views`.
    skipped
        Indices of the others, by reason.
    """

    kept: Ints
    seen: Bools
    coordinates_angst: Floats
    skipped: Mapping[str, Ints]


def extract(
    project: Project,
    options: ExtractOptions,
    output_dir: str | Path,
    run: RunOptions | None = None,
    observer: Observer = ignore,
    *,
    client: Client | None = None,
    assumptions: Mapping[str, Any] | None = None,
) -> ExtractionSummary:
    """Extract the particles of a project; a folder that holds part of the same run is completed.

    Parameters
    ----------
    project
        From :func:`portal_extract.read_project` or :func:`portal_extract.resolve_portal`.
    options
        What to extract.
    output_dir
        Where; RELION's layout.
    run
        How to run it.
    observer
        Told of progress.
    client
        Of a dask cluster; None for threads of this process.
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
    units: list[Unit] = [(t, p) for t, p in enumerate(project.particles_of) if len(p)]
    with hold_output(output_dir, RESULTS, overwrite=run.overwrite):
        journal = Journal(output_dir)
        finished = journal.begin(project_identity(project, options))
        observer(StageStarted("extract", sum(s.n_views for s in survey), "views"))
        results = _run_units(
            project, options, output_dir, names, units, run, observer, client, journal, finished
        )
        observer(StageFinished("extract"))
        outcomes = [_outcome(project, options, unit, results[number]) for number, unit in enumerate(units)]
        _write_tables(project, options, output_dir, prefix, names, outcomes)
        summary = _summarise(project, options, output_dir, outcomes, results, started, assumptions or {})
        write_report(output_dir, {"options": dataclasses.asdict(options), **summary.to_dict()})
    return summary


def _run_units(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    names: Sequence[str],
    units: Sequence[Unit],
    run: RunOptions,
    observer: Observer,
    client: Client | None,
    journal: Journal,
    finished: Mapping[int, UnitResult],
) -> dict[int, UnitResult]:
    """Run the units that are not finished; give the results of all."""
    results: dict[int, UnitResult] = {}
    for number, result in finished.items():
        outcome = _outcome(project, options, units[number], result)
        if all((output_dir / names[i]).is_file() for i in outcome.kept):
            results[number] = result
            observer(StageAdvanced("extract", result.n_views))
        else:
            journal.forget(number)
    if results:
        observer(Note(f"{output_dir}: {len(results)} of {len(units)} units are there from an earlier run"))

    def done(result: UnitResult) -> None:
        journal.record(result)
        results[result.number] = result

    tasks = [
        task
        for task in make_stack_tasks(project, units, options, output_dir, names)
        if task.number not in results
    ]
    if client is None:
        run_on_threads(tasks, run, observer, done)
    else:
        run_on_dask(tasks, run, observer, done, client)
    return results


def _outcome(project: Project, options: ExtractOptions, unit: Unit, result: UnitResult) -> SeriesOutcome:
    """Tell which particles of a unit are on disk; geometry says the rest again."""
    series_index, particles = unit
    views = find_views(project.part(series_index, particles), 0, options)
    bad = np.zeros(len(particles), dtype=bool)
    bad[list(result.bad)] = True
    good = ~bad[views.kept]
    skipped = {reason: particles[local] for reason, local in views.skipped.items()}
    for reason in sorted(set(result.bad.values())):
        skipped[reason] = particles[[i for i, r in sorted(result.bad.items()) if r == reason]]
    return SeriesOutcome(
        particles[views.kept[good]], views.seen[good], views.coordinates_angst[good], skipped
    )


def _write_tables(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    prefix: str,
    names: Sequence[str],
    outcomes: Sequence[SeriesOutcome],
) -> None:
    kept = np.concatenate([outcome.kept for outcome in outcomes])
    if not len(kept):
        raise BadResultError(f"{output_dir}: every stack was constant or not finite; check the tilt images")
    extracted = ExtractedParticles(
        indices=kept,
        visible=tuple(row for outcome in outcomes for row in outcome.seen),
        image_names=tuple(names[i] for i in kept),
        weight_names=None,
        coordinates_angst=np.concatenate([outcome.coordinates_angst for outcome in outcomes]),
    )
    write_extraction_tables(output_dir, project, options, extracted, out_prefix=prefix)


def _summarise(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    outcomes: Sequence[SeriesOutcome],
    results: Mapping[int, UnitResult],
    started: float,
    assumptions: Mapping[str, Any],
) -> ExtractionSummary:
    skipped: dict[str, int] = {}
    by_series: dict[str, dict[str, int]] = {}
    for outcome in outcomes:
        for reason, indices in outcome.skipped.items():
            skipped[reason] = skipped.get(reason, 0) + len(indices)
            series = project.tilt_series[project.particles.tilt_series[indices[0]]].name
            here = by_series.setdefault(series, {})
            here[reason] = here.get(reason, 0) + len(indices)
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
        bytes_read=sum(r.bytes_read for r in results.values()),
        n_requests=sum(r.n_requests for r in results.values()),
        bytes_written=n_views * side * side * (2 if options.float16 else 4) + 1024 * n_kept,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
        assumptions=assumptions,
    )
