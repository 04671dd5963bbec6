"""Selections of files to particles: files read and parsed, coordinates and angles in RELION's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from portal_extract.errors import PortalExtractError, ReadError, SourceError
from portal_extract.model import Bools
from portal_extract.relion_io.numbers import format_measured
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.picks import (
    Picks,
    centred_angst,
    n_outside,
    parse_picks,
    relion_angles_deg,
    track_lengths_angst,
)
from portal_extract.sources.portal.rows import AnnotationRow
from portal_extract.sources.portal.sections import PortalTiltSeries
from portal_extract.sources.portal.select import Selection
from portal_extract.sources.portal.tables import AnnotatedPicks


@dataclass(frozen=True)
class PickFile:
    """What became of a file of picks.

    Attributes
    ----------
    picks
        Its particles; None if there is a problem.
    problem
        Why it cannot be used.
    warnings
        What should be known.
    """

    picks: AnnotatedPicks | None
    problem: str = ""
    warnings: tuple[str, ...] = ()


def read_pick_file(
    selection: Selection, series: PortalTiltSeries, body: bytes | ReadError, filters: PortalFilters
) -> PickFile:
    """Make particles of a file.

    Parameters
    ----------
    selection
        The file, with its shape.
    series
        The tilt series it belongs to.
    body
        Contents, or why there are none.
    filters
        Whether orientations are wanted.
    """
    if selection.file is None or selection.shape is None:
        return PickFile(None, "the portal has no file of picks")
    if isinstance(body, PortalExtractError):
        return PickFile(None, f"its file of picks cannot be read: {body}")
    shape = selection.shape.shape_type or ""
    try:
        picks = parse_picks(body, shape, selection.file.s3_path)
    except SourceError as error:
        return PickFile(None, str(error))
    warnings = []
    size = series.tomogram.size_voxel
    outside = n_outside(picks.voxels, size)
    if not len(picks):
        warnings.append("the file of picks is empty")
    if outside:
        warnings.append(
            f"{outside} picks lie outside of the tomogram's {size} voxels: check the voxel spacing"
        )
    if picks.instances is not None:
        warnings.append(
            "filaments: rlnHelicalTubeID is made of instance_id, and the track lengths of the distances; "
            "there are no orientations"
        )
    return PickFile(_annotate(picks, selection.annotation, series, filters), warnings=tuple(warnings))


def _annotate(
    picks: Picks, annotation: AnnotationRow, series: PortalTiltSeries, filters: PortalFilters
) -> AnnotatedPicks:
    tomogram = series.tomogram
    coordinates = centred_angst(picks.voxels, tomogram.size_voxel, tomogram.voxel_spacing)
    angles = np.zeros((len(picks), 3))
    if picks.rotations is not None and not filters.no_orientations:
        angles = relion_angles_deg(picks.rotations)
    tracks = None if picks.instances is None else track_lengths_angst(coordinates, picks.instances)
    return AnnotatedPicks(series, annotation, coordinates, angles, picks.instances, tracks)


def without_duplicates(picks: Sequence[AnnotatedPicks]) -> tuple[list[AnnotatedPicks], dict[int, int]]:
    """Leave out picks that an earlier annotation of the same object has at the very same place.

    Picks that occur twice in one file stay: that is how the portal gives them.

    Parameters
    ----------
    picks
        Particles by annotation.

    Returns
    -------
    The particles left, and the number left out by annotation id.
    """
    seen: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    kept, dropped = [], {}
    for one in picks:
        places = [
            tuple(place)
            for place in zip(*(format_measured(one.coordinates_angst[:, i]) for i in range(3)), strict=True)
        ]
        before = seen.setdefault((one.series.name, one.annotation.object_name), set())
        new = np.array([place not in before for place in places], dtype=bool)
        before.update(places)
        if not new.all():
            dropped[one.annotation.id] = int(np.count_nonzero(~new))
        kept.append(_take(one, new))
    return kept, dropped


def _take(picks: AnnotatedPicks, which: Bools) -> AnnotatedPicks:
    if which.all():
        return picks
    return replace(
        picks,
        coordinates_angst=picks.coordinates_angst[which],
        angles_deg=picks.angles_deg[which],
        tubes=None if picks.tubes is None else picks.tubes[which],
        track_lengths_angst=None if picks.track_lengths_angst is None else picks.track_lengths_angst[which],
    )


def same_object_warnings(selections: Sequence[Selection], usable: Mapping[int, object]) -> tuple[str, ...]:
    """Warn of runs in which several annotations of one object are extracted together.

    Parameters
    ----------
    selections
        All files.
    usable
        Those extracted, by file id.
    """
    found: dict[tuple[int, str], list[int]] = {}
    for one in selections:
        if one.file is not None and one.file.id in usable:
            found.setdefault((one.run.id, one.annotation.object_name), []).append(one.annotation.id)
    return tuple(
        f"run {run}: {len(ids)} annotations of {name!r} ({', '.join(map(str, ids))}) are extracted together "
        "and may hold the same particles; choose by --annotation-ids or --deposition-ids"
        for (run, name), ids in found.items()
        if len(ids) > 1
    )
