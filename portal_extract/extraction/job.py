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
from portal_extract.extraction.summary import ExtractionSummary, peak_memory_bytes
from portal_extract.extraction.sums import write_sums
from portal_extract.extraction.survey import refuse_hopeless, result_bytes, survey_project, written_bytes
from portal_extract.extraction.tasks import (
    STACK_SUFFIX,
    VOLUME_SUFFIX,
    WEIGHT_SUFFIX,
    Unit,
    cut_units,
    make_tasks,
    sum_path,
)
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
    "sum_data.mrc",
    "sum_weight.mrc",
    "sum_div.mrc",
)


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
        Pixels could not be had.
    """
    started, run, output_dir = time.monotonic(), run or RunOptions(), Path(output_dir)
    options.check()
    prefix = output_prefix(output_dir, run.paths)
    names = stack_paths(project, STACK_SUFFIX if options.mode == "stack2d" else VOLUME_SUFFIX)
    survey = survey_project(project, options)
    refuse_hopeless(survey, result_bytes(survey, options), output_dir)
    cut_units(project, remaining_particles(project, ()), options, run)
    with hold_output(output_dir, RESULTS, overwrite=run.overwrite):
        journal = Journal(output_dir)
        finished = journal.begin(project_identity(project, options))
        job = _Job(project, options, output_dir, names, run, observer, client, journal)
        observer(StageStarted("extract", sum(s.n_views for s in survey), "views"))
        results = job.run(finished)
        observer(StageFinished("extract"))
        bad = {particle: reason for result in results for particle, reason in result.bad.items()}
        outcomes = [
            _outcome(project, options, index, bad) for index, p in enumerate(project.particles_of) if len(p)
        ]
        for sentence in _write_tables(project, options, output_dir, prefix, names, outcomes):
            observer(Note(sentence, "warning"))
        if options.mode == "volume3d" and options.volume.write_sum:
            write_sums(project, options, output_dir, results)
        summary = _summarise(project, options, output_dir, outcomes, results, started, assumptions or {})
        write_report(
            output_dir, {"options": dataclasses.asdict(options), **summary.to_dict(), **(extra or {})}
        )
    return summary


@dataclass(frozen=True)
class _Job:
    """What running the units of a job needs."""

    project: Project
    options: ExtractOptions
    output_dir: Path
    names: Sequence[str]
    run_options: RunOptions
    observer: Observer
    client: Client | None
    journal: Journal

    def run(self, finished: Sequence[UnitResult]) -> list[UnitResult]:
        """Run what is not finished; give the results of everything."""
        results = [result for result in finished if self._is_there(result)]
        if results:
            n_done = sum(len(result.particles) for result in results)
            self.observer(Note(f"{self.output_dir}: {n_done} particles are done from an earlier run"))
            self.observer(StageAdvanced("extract", sum(result.n_views for result in results)))

        def done(result: UnitResult) -> None:
            self.journal.record(result)
            results.append(result)

        todo = remaining_particles(self.project, results)
        units = cut_units(self.project, todo, self.options, self.run_options, self._n_processes())
        tasks = make_tasks(self.project, units, self.options, self.output_dir, self.names)
        if self.client is None:
            run_on_threads(tasks, self.run_options, self.observer, done)
        else:
            run_on_dask(tasks, self.run_options, self.observer, done, self.client)
        return results

    def _n_processes(self) -> int:
        return 1 if self.client is None else len(self.client.scheduler_info(n_workers=-1)["workers"])

    def _is_there(self, result: UnitResult) -> bool:
        """Look for the files of a finished unit; if one is gone, the unit is done again."""
        particles = np.array(result.particles)
        series_index = int(self.project.particles.tilt_series[particles[0]])
        views = find_views(self.project.part(series_index, particles), 0, self.options)
        kept = [i for i in particles[views.kept] if i not in result.bad]
        files = [self.output_dir / self.names[i] for i in kept] if writes_particles(self.options) else []
        if self.options.mode == "volume3d" and self.options.volume.write_sum:
            files.append(sum_path(self.output_dir, result.particles))
        if all(file.is_file() for file in files):
            return True
        self.journal.forget(result)
        return False


def writes_particles(options: ExtractOptions) -> bool:
    """Tell whether there is a file for each particle."""
    return options.mode == "stack2d" or options.volume.write_particles


def remaining_particles(project: Project, finished: Sequence[UnitResult]) -> list[Unit]:
    """List the particles of each tilt series that no finished unit holds."""
    done = np.zeros(len(project.particles), dtype=bool)
    for result in finished:
        done[list(result.particles)] = True
    parts = [(index, p[~done[p]]) for index, p in enumerate(project.particles_of)]
    return [(index, p) for index, p in parts if len(p)]


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
    )
