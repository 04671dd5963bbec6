"""The reconstruction job: from a project to half maps, in one pass over the tilt images."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal_extract.extraction.summary import peak_memory_bytes, series_failures
from portal_extract.model import Project
from portal_extract.options import RunOptions
from portal_extract.reconstruction.finalise import finalised_maps
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.outputs import (
    every_name,
    map_names,
    read_mask,
    write_map_report,
    write_maps,
    write_tables,
    written_bytes,
)
from portal_extract.reconstruction.parts import with_half_sets
from portal_extract.reconstruction.report import prepare
from portal_extract.reconstruction.stacks import find_stacks, options_for_stacks
from portal_extract.reconstruction.summary import ReconstructSummary, Resolution, left_out_sentences
from portal_extract.reconstruction.summing import Summing
from portal_extract.reconstruction.survey import (
    Survey,
    check_memory,
    reconstruction_identity,
    survey_reconstruction,
)
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.relion_io.paths import output_prefix
from portal_extract.running.events import Note, Observer, StageAdvanced, StageFinished, StageStarted, ignore
from portal_extract.running.folder import hold_output, write_report
from portal_extract.running.guard import Guard
from portal_extract.running.identity import digest
from portal_extract.running.journal import FOLDER as JOURNAL
from portal_extract.running.journal import Journal
from portal_extract.running.schedulers import Place, find_place, n_workers
from portal_extract.running.units import UnitFailure, UnitResult

if TYPE_CHECKING:
    from distributed import Client

    from portal_extract.images.reader import Reader

CHECKPOINT_SECONDS = 30.0
_MARKER = "maps.json"
_NO_HALF_SETS = (
    "the particles are not divided into half sets (rlnRandomSubset): only the merged map is made, without "
    "FSC; --make-subsets divides them"
)


def reconstruct(
    project: Project,
    options: ReconstructOptions,
    output_dir: str | Path,
    run: RunOptions | None = None,
    observer: Observer = ignore,
    *,
    from_stacks: bool = False,
    replace_subsets: bool = False,
    mask: str | None = None,
    client: Client | None = None,
    reader: Reader | None = None,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    assumptions: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> ReconstructSummary:
    """Average the particles of a project; a folder that holds part of the same run is completed.

    Parameters
    ----------
    project
        From :func:`portal_extract.read_project` or :func:`portal_extract.resolve_portal`.
    options
        What to reconstruct.
    output_dir
        Where; RELION's names.
    run
        How to run it.
    observer
        Told of progress.
    from_stacks
        Take the images that an extraction wrote instead of tilt images; the project may have been read with
        :func:`portal_extract.reconstruction.stacks.no_images`.
    replace_subsets
        Draw half sets although there are some.
    mask
        MRC file, for the FSC; None for a soft sphere.
    client
        Of a dask cluster; None for threads of this process.
    reader
        Connections of this process that are open already, such as those that the project was read with.
    checkpoint_seconds
        Sums are put on disk after a tilt series if so much time has passed since the last time; 0 for after
        each one.
    assumptions, extra
        Values that the source does not have, and anything else to be put into the report.

    Returns
    -------
    Counts, resolution, time.

    Raises
    ------
    UnsupportedError, UsageError
        Options that cannot be honoured; before anything is read.
    MemoryBudgetError
        The memory is too small; before anything is read.
    IneligibleError
        There is no image of any particle, or none in a half set; nothing is written.
    OutputError
        The folder holds another run, or there is no room.
    ReadError
        Pixels could not be had, and ``run.on_error`` is ``stop``.
    ClusterError
        The dask cluster is lost.
    """
    started, run, output_dir = time.monotonic(), run or RunOptions(), Path(output_dir)
    stacks = find_stacks(project) if from_stacks else None
    if stacks is not None:
        options = options_for_stacks(options, stacks)
    options.check()
    project = with_half_sets(project, options, replace_subsets)
    mask_map = None if mask is None else read_mask(mask, options.output_size)
    survey = survey_reconstruction(project, options, run, stacks)
    prefix = output_prefix(output_dir, run.paths)
    place = find_place(run, client, observer, reader)
    check_memory(project, options, survey.n_halves, place.run)
    with hold_output(output_dir, every_name(), overwrite=run.overwrite):
        identity = reconstruction_identity(project, options, stacks)
        journal = Journal(output_dir)
        journal.begin(identity)
        guard = Guard(str(output_dir.absolute()), journal.token)
        job = _Job(options, output_dir, place, observer, survey, guard, digest(json.dumps(identity)))
        results, failures = job.maps(checkpoint_seconds)
        write_tables(output_dir, project, prefix, survey.n_halves)
        resolution = write_map_report(
            output_dir, survey.map_pixel_angst, mask_map, mask or "soft sphere", n_workers(place.run)
        )
        names = project.particles.names
        summary = dataclasses.replace(
            _summarise(job, results, failures, resolution),
            left_out={names[i]: text for result in results for i, text in result.bad.items()},
            seconds=time.monotonic() - started,
            assumptions=assumptions or {},
        )
        write_report(
            output_dir, {"options": dataclasses.asdict(options), **summary.to_dict(), **(extra or {})}
        )
    for sentence in left_out_sentences(summary):
        observer(Note(sentence, "warning"))
    return summary


@dataclass(frozen=True)
class _Job:
    """What making the maps needs."""

    options: ReconstructOptions
    output_dir: Path
    place: Place
    observer: Observer
    survey: Survey
    guard: Guard
    stamp: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the maps."""
        return map_names(self.options, self.survey.n_halves)

    def maps(self, checkpoint_seconds: float) -> tuple[list[UnitResult], list[UnitFailure]]:
        """Make the maps unless they are there; give what is in them, and what failed."""
        finished = self._finished()
        if finished is not None:
            self.observer(Note(f"{self.output_dir}: the maps are finished; --overwrite makes them anew"))
            return finished, []
        return self._make(checkpoint_seconds)

    def _finished(self) -> list[UnitResult] | None:
        path = self.output_dir / JOURNAL / _MARKER
        if not path.is_file() or not all((self.output_dir / f"{name}.mrc").is_file() for name in self.names):
            return None
        return [UnitResult.from_dict(result) for result in json.loads(path.read_text())]

    def _make(self, checkpoint_seconds: float) -> tuple[list[UnitResult], list[UnitFailure]]:
        """Sum up, finalise, write."""
        survey, observer = self.survey, self.observer
        if survey.n_halves == 1:
            observer(Note(_NO_HALF_SETS, "warning"))
        summing = Summing(
            survey.parts,
            self.options,
            survey.n_halves,
            survey.map_pixel_angst,
            self.output_dir / JOURNAL,
            self.stamp,
            checkpoint_seconds,
        )
        prepare()
        observer(StageStarted("extract", int(survey.n_views.sum()), "views"))
        summed = summing.run(self.place, self.guard, observer)
        observer(StageFinished("extract"))
        if summed.failures and not summed.results:
            raise summed.failures[0].error
        observer(StageStarted("finalise", len(self.names), "maps"))
        maps = finalised_maps(summed.halves, self.options, survey.map_pixel_angst, n_workers(self.place.run))
        for _ in write_maps(self.output_dir, maps, survey.map_pixel_angst):
            observer(StageAdvanced("finalise", 1))
        observer(StageFinished("finalise"))
        if summed.failures:
            # another run tries again what failed, and adds it
            summing.keep(summed)
        else:
            text = json.dumps([result.to_dict() for result in summed.results])
            write_atomically(self.output_dir / JOURNAL / _MARKER, text.encode())
            summing.discard()
        return summed.results, summed.failures


def _summarise(
    job: _Job, results: Sequence[UnitResult], failures: Sequence[UnitFailure], resolution: Resolution | None
) -> ReconstructSummary:
    survey = job.survey
    return ReconstructSummary(
        output_dir=job.output_dir,
        n_particles=len(survey.half),
        half_sets=survey.half_sets(results),
        maps=job.names,
        pixel_size_angst=survey.map_pixel_angst,
        visible_frames=job.options.visible_frames,
        skipped=survey.skipped,
        failures=series_failures(failures),
        resolution=resolution,
        bytes_read=sum(result.bytes_read for result in results),
        n_requests=sum(result.n_requests for result in results),
        bytes_written=written_bytes(job.options, survey.n_halves),
        predicted_memory_bytes=survey.budget.predicted_bytes,
        peak_memory_bytes=peak_memory_bytes(),
    )
