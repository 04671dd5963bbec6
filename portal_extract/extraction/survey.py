"""Before a pixel is read: what will be extracted, what not and why, and whether there is room for it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from portal_extract.errors import IneligibleError, OutputError
from portal_extract.extraction.summary import SeriesSurvey
from portal_extract.extraction.views import OUTSIDE, Views, find_views, image_positions, positions_px
from portal_extract.model import Project
from portal_extract.options import ExtractOptions

_HEADER_BYTES = 1024


def survey_project(project: Project, options: ExtractOptions) -> list[SeriesSurvey]:
    """Apply the rules of visibility to every tilt series that has particles."""
    return [
        survey_series(project, t, find_views(project, t, options), options)
        for t, particles in enumerate(project.particles_of)
        if len(particles)
    ]


def survey_series(project: Project, series_index: int, views: Views, options: ExtractOptions) -> SeriesSurvey:
    """Sum up the views of one tilt series."""
    particles = project.particles_of[series_index]
    n_outside = len(views.skipped.get(OUTSIDE, ()))
    diagnosis = None
    if not len(views.kept) or 2 * n_outside > len(particles):
        diagnosis = _diagnose(project, series_index, options)
    return SeriesSurvey(
        name=project.tilt_series[series_index].name,
        n_particles=len(particles),
        n_kept=len(views.kept),
        n_views=len(views),
        skipped=views.skipped,
        diagnosis=diagnosis,
    )


def _diagnose(project: Project, series_index: int, options: ExtractOptions) -> str:
    """Tell where the particles fall, so that a wrong unit or centre shows itself."""
    series, particles = project.tilt_series[series_index], project.particles_of[series_index]
    points = positions_px(project, particles, options.offsets_applied)
    centres = image_positions(project, series_index, particles, points).reshape(-1, 2)
    (x0, y0), (x1, y1) = centres.min(axis=0), centres.max(axis=0)
    width, height = series.image_stack.size_px
    margin = options.binning * options.output_size / 2.0
    return (
        f"{series.name}: particles project to x {x0:.0f}..{x1:.0f}, y {y0:.0f}..{y1:.0f} pixels; the images "
        f"are {width} x {height} and a particle must stay {margin:g} pixels from their edges: check the unit "
        "of the coordinates, the pixel size and the size of the tomogram"
    )


def outside_warnings(survey: Sequence[SeriesSurvey], limit: int = 5) -> list[str]:
    """Warn of tilt series of which more than half of the particles are outside of every tilt image.

    Parameters
    ----------
    survey
        Of all tilt series.
    limit
        Tilt series that are named; the others are counted.
    """
    found = []
    for one in survey:
        n_outside = len(one.skipped.get(OUTSIDE, ()))
        if 2 * n_outside > one.n_particles:
            told = f"{n_outside} of {one.n_particles} particles are {OUTSIDE}"
            found.append(f"{told}. {one.diagnosis}")
    more = [f"the same of {len(found) - limit} more tilt series"] if len(found) > limit else []
    return found[:limit] + more


def result_bytes(survey: Sequence[SeriesSurvey], options: ExtractOptions) -> int:
    """Size of the files that will be written for the particles."""
    return written_bytes(options, sum(s.n_kept for s in survey), sum(s.n_views for s in survey))


def written_bytes(options: ExtractOptions, n_particles: int, n_views: int) -> int:
    """Size of the stacks or volumes of particles with so many views in all."""
    item = 2 if options.float16 else 4
    if options.mode == "stack2d":
        side = options.box_size - 2 * options.boundary
        return n_views * side * side * item + n_particles * _HEADER_BYTES
    wanted, side = options.volume, options.output_size
    if not wanted.write_particles:
        return 0
    half = side * side * (side // 2 + 1)
    full = (
        1 + wanted.write_ctf + wanted.write_multiplicity + 2 * wanted.write_normalised + wanted.write_divided
    )
    voxels = full * side**3 + 2 * half * wanted.write_combined
    return n_particles * (voxels * item + (full + wanted.write_combined) * _HEADER_BYTES)


def count_reasons(survey: Sequence[SeriesSurvey]) -> dict[str, int]:
    """Count the particles left out, by reason."""
    reasons: dict[str, int] = {}
    for one in survey:
        for reason, indices in one.skipped.items():
            reasons[reason] = reasons.get(reason, 0) + len(indices)
    return reasons


def refuse_hopeless(survey: Sequence[SeriesSurvey], needed_bytes: int, output_dir: Path) -> None:
    """Raise if nothing is left to extract, or if the disk has no room for it.

    Raises
    ------
    IneligibleError
        No particle is left; the message tells where they project to.
    OutputError
        Not enough free space.
    """
    if not sum(s.n_kept for s in survey):
        reasons = count_reasons(survey)
        told = "; ".join(f"{n} {reason}" for reason, n in reasons.items()) or "the particle table is empty"
        places = [s.diagnosis for s in survey if s.diagnosis][:3]
        raise IneligibleError(". ".join([f"No particle is left to extract: {told}", *places]))
    refuse_full(needed_bytes, output_dir)


def refuse_full(needed_bytes: int, output_dir: Path) -> None:
    """Raise if the disk has no room for results.

    Raises
    ------
    OutputError
        Not enough free space.
    """
    folder = next(p for p in [output_dir.absolute(), *output_dir.absolute().parents] if p.exists())
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OutputError(
            f"{output_dir}: the results need {needed_bytes / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; "
            "choose another --output-dir, a larger --bin, a smaller --crop-size or --float16"
        )
