"""What of a job is done already, and what is left."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path

import numpy as np

from portal_extract.extraction.survey import written_bytes
from portal_extract.extraction.tasks import Unit, cut_units, sum_path
from portal_extract.extraction.views import find_views
from portal_extract.model import Project
from portal_extract.options import ExtractOptions
from portal_extract.running.journal import Journal
from portal_extract.running.schedulers import Place
from portal_extract.running.units import UnitResult

_THREADS = 8


def left_to_do(
    project: Project, options: ExtractOptions, place: Place, finished: Sequence[UnitResult] = ()
) -> list[Unit]:
    """Cut what no finished unit holds into units.

    Where units have sums of their own, the cut is that of the whole job, whatever is finished and wherever it
    runs: the sum over all units then is the same to the last bit.

    Raises
    ------
    MemoryBudgetError
        Not even one particle fits the memory.
    """
    if sums_units(options):
        whole = cut_units(project, remaining_particles(project, ()), options, place.run)
        done = {result.particles for result in finished}
        return [unit for unit in whole if tuple(unit[1].tolist()) not in done]
    todo = remaining_particles(project, finished)
    return cut_units(project, todo, options, place.run, place.n_slots)


def remaining_particles(project: Project, finished: Sequence[UnitResult]) -> list[Unit]:
    """List the particles of each tilt series that no finished unit holds."""
    done = np.zeros(len(project.particles), dtype=bool)
    for result in finished:
        done[list(result.particles)] = True
    parts = [(index, p[~done[p]]) for index, p in enumerate(project.particles_of)]
    return [(index, p) for index, p in parts if len(p)]


def still_there(
    project: Project,
    options: ExtractOptions,
    output_dir: Path,
    names: Sequence[str],
    finished: Sequence[UnitResult],
    journal: Journal,
) -> list[UnitResult]:
    """Keep the finished units whose files are all there, in full length; strike the others.

    Parameters
    ----------
    project, options, output_dir
        Of the job.
    names
        Main file of each particle, below ``output_dir``.
    finished
        What the journal holds.
    journal
        The others are struck from it.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        there = list(pool.map(lambda r: _is_there(project, options, output_dir, names, r), finished))
    for result in compress(finished, map(operator.not_, there)):
        journal.forget(result)
    return list(compress(finished, there))


def sums_units(options: ExtractOptions) -> bool:
    """Tell whether each unit leaves a sum over its particles."""
    return options.mode == "volume3d" and options.volume.write_sum


def writes_particles(options: ExtractOptions) -> bool:
    """Tell whether there is a file for each particle."""
    return options.mode == "stack2d" or options.volume.write_particles


def _is_there(
    project: Project, options: ExtractOptions, output_dir: Path, names: Sequence[str], result: UnitResult
) -> bool:
    if sums_units(options) and not sum_path(output_dir, result.particles).is_file():
        return False
    if not writes_particles(options):
        return True
    particles = np.array(result.particles)
    series_index = int(project.particles.tilt_series[particles[0]])
    views = find_views(project.part(series_index, particles), 0, options)
    if options.stack_layout == "tomogram":
        expected = {names[int(particles[0])]: len(views)} if len(views) else {}
        return all(_has_size(output_dir / n, written_bytes(options, 1, size)) for n, size in expected.items())
    for local, n_views in zip(views.kept.tolist(), views.stack_lengths.tolist(), strict=True):
        index = int(particles[local])
        if index in result.bad:
            continue
        if not _has_size(output_dir / names[index], main_file_bytes(options, n_views)):
            return False
    return True


def _has_size(path: Path, n_bytes: int) -> bool:
    try:
        return path.stat().st_size == n_bytes
    except OSError:
        return False


def main_file_bytes(options: ExtractOptions, n_views: int) -> int:
    """Size of the stack, or of the data volume, of a particle with so many views."""
    if options.mode == "stack2d":
        return written_bytes(options, 1, n_views)
    return 1024 + options.output_size**3 * (2 if options.float16 else 4)
