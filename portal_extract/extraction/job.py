"""The extraction job: from a project to a folder that RELION takes as its own."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.errors import BadResultError
from portal_extract.extraction.image_table import IMAGES_FILE, check_image_table, write_image_table
from portal_extract.extraction.resume import left_to_do, still_there, sums_units
from portal_extract.extraction.summary import (
    ExtractionSummary,
    SeriesSurvey,
    peak_memory_bytes,
    series_failures,
)
from portal_extract.extraction.sums import write_sums
from portal_extract.extraction.survey import (
    outside_warnings,
    refuse_full,
    refuse_hopeless,
    result_bytes,
    survey_project,
    written_bytes,
)
from portal_extract.extraction.tasks import VOLUME_SUFFIX, WEIGHT_SUFFIX, main_files, make_tasks
from portal_extract.extraction.views import find_views
from portal_extract.model import Bools, Floats, Ints, Project
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.extraction_star import ExtractedParticles, write_extraction_tables
from portal_extract.relion_io.paths import output_prefix
from portal_extract.relion_io.project_star import OPTIMISATION_SET_FILE
from portal_extract.running.events import Note, Observer, StageAdvanced, StageFinished, StageStarted, ignore
from portal_extract.running.folder import has_journal, hold_output, write_report
from portal_extract.running.guard import Guard
from portal_extract.running.identity import project_identity
from portal_extract.running.journal import Journal
from portal_extract.running.schedulers import Place, find_place, run_units
from portal_extract.running.units import UnitFailure, UnitResult

if TYPE_CHECKING:
    from distributed import Client

    from portal_extract.images.reader import Reader

RESULTS = (
    "Subtomograms",
    "particles.star",
    "images.star",
    "optimisation_set.star",
    "motion.star",
    "tomograms.star",
    "tilt_series",
    "report",
    "sum_data.mrc",
    "sum_weight.mrc",
    "sum_div.mrc",
)
FAILED = "failed"
"""Reason of the particles whose unit failed."""


@dataclass(frozen=True)
class SeriesOutcome:
    """What came of the particles of one tilt series.

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
    reader: Reader | None = None,
    assumptions: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
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
    reader
        Connections of this process that are open already, such as those that the project was read with.
    assumptions, extra
        Values that the source does not have, and anything else to be put into the report.

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
        Pixels could not be had, and ``run.on_error`` is ``stop``.
    ClusterError
        The dask cluster is lost.
    """
    started, run, output_dir = time.monotonic(), run or RunOptions(), Path(output_dir)
    options.check()
    prefix = output_prefix(output_dir, run.paths)
    names = main_files(project, options)
    survey = _look_at_project(project, options, output_dir, observer)
    place = find_place(run, client, observer, reader)
    left_to_do(project, options, place)
    with hold_output(output_dir, RESULTS, overwrite=run.overwrite):
        journal = Journal(output_dir)
        finished = journal.begin(project_identity(project, options))
        job = _Job(
            project, options, output_dir, names, place, observer, journal, result_bytes(survey, options)
        )
        observer(StageStarted("extract", sum(s.n_views for s in survey), "views"))
        results, failures = job.run(finished)
        if failures and (run.on_error == "stop" or not results):
            write_report(output_dir, _stopped(options, results, failures))
            raise failures[0].error
        observer(StageFinished("extract"))
        outcomes = _outcomes(project, options, results, failures)
        for sentence in _write_tables(project, options, output_dir, prefix, names, outcomes):
            observer(Note(sentence, "warning"))
        if sums_units(options):
            write_sums(project, options, output_dir, results)
        summary = _summarise(project, options, output_dir, outcomes, results, started, assumptions or {})
        summary = dataclasses.replace(summary, failures=series_failures(failures))
        write_report(
            output_dir, {"options": dataclasses.asdict(options), **summary.to_dict(), **(extra or {})}
        )
    return summary


def _look_at_project(
    project: Project, options: ExtractOptions, output_dir: Path, observer: Observer
) -> Sequence[SeriesSurvey]:
    """Find what will be extracted; refuse what cannot be, and tell what the user should know."""
    if options.stack_layout == "tomogram":
        check_image_table(project)
    survey = survey_project(project, options)
    # where results are there already, only what is missing needs room; that is known when the folder is held
    refuse_hopeless(survey, 0 if has_journal(output_dir) else result_bytes(survey, options), output_dir)
    for sentence in outside_warnings(survey):
        observer(Note(sentence, "warning"))
    return survey


@dataclass(frozen=True)
class _Job:
    """What running the units of a job needs."""

    project: Project
    options: ExtractOptions
    output_dir: Path
    names: Sequence[str]
    place: Place
    observer: Observer
    journal: Journal
    needed_bytes: int

    def run(self, finished: Sequence[UnitResult]) -> tuple[list[UnitResult], list[UnitFailure]]:
        """Run what is not finished; give the results of everything, and what failed."""
        project, options = self.project, self.options
        results = still_there(project, options, self.output_dir, self.names, finished, self.journal)
        n_views = sum(result.n_views for result in results)
        n_done = sum(len(result.particles) for result in results)
        if results:
            self.observer(Note(f"{self.output_dir}: {n_done} particles are done from an earlier run"))
            self.observer(StageAdvanced("extract", n_views))

        refuse_full(self.needed_bytes - written_bytes(options, n_done, n_views), self.output_dir)

        def done(result: UnitResult) -> None:
            self.journal.record(result)
            results.append(result)

        units = left_to_do(project, options, self.place, results)
        tasks = make_tasks(project, units, options, self.output_dir, self.names)
        guard = Guard(str(self.output_dir.absolute()), self.journal.token)
        failures = run_units(tasks, self.place, guard, self.observer, done)
        return results, failures


def _stopped(
    options: ExtractOptions, results: Sequence[UnitResult], failures: Sequence[UnitFailure]
) -> dict[str, Any]:
    """Report of a run that was stopped by failures."""
    return {
        "options": dataclasses.asdict(options),
        "complete": False,
        "particles_done": sum(len(result.particles) for result in results),
        "failures": [failure.to_dict() for failure in series_failures(failures)],
    }


def _outcomes(
    project: Project,
    options: ExtractOptions,
    results: Sequence[UnitResult],
    failures: Sequence[UnitFailure],
) -> list[SeriesOutcome]:
    """Tell what came of the particles of every tilt series that has some."""
    bad = {particle: reason for result in results for particle, reason in result.bad.items()}
    bad.update({particle: FAILED for failure in failures for particle in failure.particles})
    return [_outcome(project, options, index, bad) for index, p in enumerate(project.particles_of) if len(p)]


def _outcome(
    project: Project, options: ExtractOptions, series_index: int, bad: Mapping[int, str]
) -> SeriesOutcome:
    """Tell which particles of a tilt series are on disk."""
    views = find_views(project, series_index, options)
    good = np.array([i not in bad for i in views.kept], dtype=bool)
    skipped = dict(views.skipped)
    for i in views.kept[~good]:
        skipped[bad[int(i)]] = np.append(skipped.get(bad[int(i)], np.empty(0, np.int64)), i)
    return SeriesOutcome(views.kept[good], views.seen[good], views.coordinates_angst[good], skipped)


def _write_tables(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    prefix: str,
    names: Sequence[str],
    outcomes: Sequence[SeriesOutcome],
) -> tuple[str, ...]:
    """Write the STAR files; give what the user should know of them."""
    kept = np.concatenate([outcome.kept for outcome in outcomes])
    if not len(kept):
        raise BadResultError(f"{output_dir}: every stack was constant or not finite; check the tilt images")
    if options.stack_layout == "tomogram":
        by_series = [np.empty(0, np.int64)] * len(project.tilt_series)
        for outcome in outcomes:
            if len(outcome.kept):
                by_series[project.particles.tilt_series[outcome.kept[0]]] = outcome.kept
        write_image_table(output_dir, project, options, by_series, names, prefix)
        return ()
    extracted = ExtractedParticles(
        indices=kept,
        visible=tuple(row for outcome in outcomes for row in outcome.seen),
        image_names=tuple(names[i] for i in kept),
        weight_names=None
        if options.mode == "stack2d"
        else tuple(names[i].removesuffix(VOLUME_SUFFIX) + WEIGHT_SUFFIX for i in kept),
        coordinates_angst=np.concatenate([outcome.coordinates_angst for outcome in outcomes]),
    )
    return write_extraction_tables(output_dir, project, options, extracted, out_prefix=prefix)


def _summarise(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    outcomes: Sequence[SeriesOutcome],
    results: Sequence[UnitResult],
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
    return ExtractionSummary(
        output_dir=output_dir,
        n_particles=len(project.particles),
        n_extracted=n_kept,
        n_views=n_views,
        skipped=skipped,
        skipped_by_series=by_series,
        bytes_read=sum(r.bytes_read for r in results),
        n_requests=sum(r.n_requests for r in results),
        bytes_written=written_bytes(options, n_kept, n_views),
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_memory_bytes(),
        assumptions=assumptions,
        table=OPTIMISATION_SET_FILE if options.stack_layout == "particle" else IMAGES_FILE,
    )
