"""Which file of picks counts for an annotation, and which alignment and tomogram it belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.query import POINT_SHAPES, Catalogue
from portal_extract.sources.portal.rows import (
    AlignmentRow,
    AnnotationRow,
    FileRow,
    RunRow,
    ShapeRow,
    TomogramRow,
)

_WITHOUT_ORIENTATIONS = ("Point", "InstanceSegmentation", "OrientedPoint")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a file is not extracted.

    Attributes
    ----------
    reason
        One sentence without the run's name.
    candidates, option
        What may be chosen and the option that chooses; none if nothing helps.
    """

    reason: str
    candidates: tuple[str, ...] = ()
    option: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Where coordinates of picks live: an alignment, and tomograms that agree on the box of voxels.

    Attributes
    ----------
    alignment
        Alignment of the picks.
    tomogram
        One of the tomograms (all have the same size and voxel spacing).
    """

    alignment: AlignmentRow
    tomogram: TomogramRow


@dataclass(frozen=True, slots=True)
class Selection:
    """A file of an annotation, or the annotation alone if it has none.

    Attributes
    ----------
    run, annotation
        What it belongs to; the run is a stand-in without name if the portal does not know it.
    shape, file
        None if there are no points.
    place
        Where its coordinates live, unless there is a problem.
    problem
        What hinders extraction.
    """

    run: RunRow
    annotation: AnnotationRow
    shape: ShapeRow | None = None
    file: FileRow | None = None
    place: Place | None = None
    problem: Problem | None = None


def select_files(catalogue: Catalogue, filters: PortalFilters) -> list[Selection]:
    """Choose the files of all annotations, by run and annotation.

    Of an annotation with several shapes the first of OrientedPoint, InstanceSegmentation, Point is taken
    (without orientations: Point first), because the files hold the same picks.

    Parameters
    ----------
    catalogue
        What the portal has.
    filters
        The request; its tilt series, alignments and tomograms restrict and decide.
    """
    found: list[Selection] = []
    for annotation in catalogue.annotations.values():
        if annotation.run_id is None or annotation.run_id not in catalogue.runs:
            run = RunRow(annotation.run_id or 0, 0, "unknown")
            found.append(Selection(run, annotation, problem=Problem("belongs to no run that the portal has")))
            continue
        found += _select(catalogue, filters, catalogue.runs[annotation.run_id], annotation)
    found.sort(key=lambda one: (one.run.id, one.annotation.id, one.file.id if one.file else 0))
    return found


def _select(
    catalogue: Catalogue, filters: PortalFilters, run: RunRow, annotation: AnnotationRow
) -> list[Selection]:
    shapes = catalogue.shapes.get(annotation.id, ())
    order = _WITHOUT_ORIENTATIONS if filters.no_orientations else POINT_SHAPES
    usable = [shape for kind in order for shape in shapes if shape.shape_type == kind]
    usable = [shape for shape in usable if catalogue.files.get(shape.id)]
    if not usable:
        return [Selection(run, annotation, problem=_no_points(shapes))]
    shape, wanted = usable[0], list[FileRow]()
    for candidate in usable:
        wanted = [file for file in catalogue.files[candidate.id] if _is_wanted(catalogue, filters, file)]
        if wanted:
            shape = candidate
            break
    if not wanted:
        files = [file for one in usable for file in catalogue.files[one.id]]
        reason = (
            f"its picks belong to {_belongings(catalogue, files)}, which the request leaves out "
            f"({_restrictions(filters)})"
        )
        return [Selection(run, annotation, shape, files[0], problem=Problem(reason))]
    distinct = {(file.alignment_id, file.tomogram_voxel_spacing_id): file for file in reversed(wanted)}
    if len(distinct) > 1:
        return [Selection(run, annotation, shape, wanted[0], problem=_several_files(catalogue, distinct))]
    place = _find_place(catalogue, filters, run, wanted[0])
    if isinstance(place, Problem):
        return [Selection(run, annotation, shape, wanted[0], problem=place)]
    return [Selection(run, annotation, shape, wanted[0], place)]


def _several_files(catalogue: Catalogue, files: Mapping[tuple[int | None, int | None], FileRow]) -> Problem:
    """Files of one shape in several alignments or voxel spacings: the same picks more than once."""
    ordered = sorted(files.values(), key=lambda file: file.id)
    reason = f"the same picks are given in {len(files)} tomograms, and would be extracted several times"
    alignments = {file.alignment_id for file in ordered}
    if len(alignments) == len(files) and None not in alignments:
        known = [row for row in catalogue.alignments.values() if row.id in alignments]
        described = [_alignment_candidate(catalogue, row) for row in known]
        return Problem(reason, tuple(described), "--alignment-ids")
    tomograms = [
        row
        for file in ordered
        for row in catalogue.tomograms.get(file.alignment_id or 0, ())
        if row.tomogram_voxel_spacing_id == file.tomogram_voxel_spacing_id
    ]
    return Problem(reason, tuple(_tomogram_candidate(row) for row in tomograms), "--tomogram-ids")


def _no_points(shapes: Sequence[ShapeRow]) -> Problem:
    kinds = sorted({shape.shape_type or "unknown" for shape in shapes})
    if not kinds:
        return Problem("has no picks: the portal has no files for it")
    if any(kind in POINT_SHAPES for kind in kinds):
        return Problem("has no picks: the portal has no ndjson file of its points")
    readable = {"SegmentationMask": "segmentation mask", "InstanceSegmentationMask": "instance mask"}
    masks = " and ".join(f"a {readable.get(kind, kind)}" for kind in kinds)
    return Problem(f"has no picks: the portal has only {masks}, no points")


def _is_wanted(catalogue: Catalogue, filters: PortalFilters, file: FileRow) -> bool:
    """Whether a file belongs to the tilt series, alignments and tomograms asked for; open ones may."""
    alignment = catalogue.alignments.get(file.alignment_id or 0)
    if filters.alignment_ids and alignment and alignment.id not in filters.alignment_ids:
        return False
    if filters.tilt_series_ids and alignment and alignment.tiltseries_id not in filters.tilt_series_ids:
        return False
    chosen = catalogue.chosen_tomograms
    return chosen is None or any(
        (file.alignment_id is None or tomogram.alignment_id == file.alignment_id)
        and file.tomogram_voxel_spacing_id in (None, tomogram.tomogram_voxel_spacing_id)
        for tomogram in chosen.values()
    )


def _restrictions(filters: PortalFilters) -> str:
    chosen = PortalFilters(
        tilt_series_ids=filters.tilt_series_ids,
        alignment_ids=filters.alignment_ids,
        tomogram_ids=filters.tomogram_ids,
        tomogram_names=filters.tomogram_names,
    )
    return chosen.describe()


def _belongings(catalogue: Catalogue, files: Iterable[FileRow]) -> str:
    said = []
    for file in files:
        alignment = catalogue.alignments.get(file.alignment_id or 0)
        series = f" of tilt series {alignment.tiltseries_id}" if alignment and alignment.tiltseries_id else ""
        said.append(
            f"alignment {file.alignment_id}{series} in voxel spacing {file.tomogram_voxel_spacing_id}"
        )
    return " and ".join(dict.fromkeys(said))


def _find_place(catalogue: Catalogue, filters: PortalFilters, run: RunRow, file: FileRow) -> Place | Problem:
    alignment = _find_alignment(catalogue, filters, run, file)
    if isinstance(alignment, Problem):
        return alignment
    spacing = file.tomogram_voxel_spacing_id
    tomograms = [
        row
        for row in catalogue.tomograms.get(alignment.id, ())
        if spacing is None or row.tomogram_voxel_spacing_id == spacing
    ]
    chosen = catalogue.chosen_tomograms
    if chosen is not None:
        tomograms = [row for row in tomograms if row.id in chosen]
    if not tomograms:
        return Problem(
            f"no tomogram of alignment {alignment.id} in voxel spacing {spacing} gives the size of the "
            "volume that the picks are in"
        )
    kinds = {
        (row.size_voxel, row.offset_voxel, round(row.voxel_spacing, 3), row.tomogram_voxel_spacing_id)
        for row in tomograms
    }
    if len(kinds) > 1:
        what = "sizes" if spacing is not None else "voxel spacings or sizes"
        reason = f"tomograms of several {what} share alignment {alignment.id}"
        return Problem(reason, tuple(_tomogram_candidate(row) for row in tomograms), "--tomogram-ids")
    return Place(alignment, tomograms[0])


def _find_alignment(
    catalogue: Catalogue, filters: PortalFilters, run: RunRow, file: FileRow
) -> AlignmentRow | Problem:
    if file.alignment_id is not None:
        known = catalogue.alignments.get(file.alignment_id)
        return known or Problem(f"its alignment {file.alignment_id} is not on the portal")
    candidates = catalogue.alignments_of(run.id)
    if not candidates:
        return Problem("the file of picks has no alignment id, and the run has no alignment")
    chosen = catalogue.chosen_tomograms
    left = [
        row
        for row in candidates
        if (not filters.alignment_ids or row.id in filters.alignment_ids)
        and (not filters.tilt_series_ids or row.tiltseries_id in filters.tilt_series_ids)
        and (chosen is None or any(tomogram.alignment_id == row.id for tomogram in chosen.values()))
    ]
    is_choice = bool(filters.alignment_ids) or chosen is not None
    if is_choice and len(left) == 1:
        return left[0]
    left = left or candidates
    count = "one alignment" if len(left) == 1 else f"{len(left)} alignments"
    reason = f"the file of picks has no alignment id, and the run has {count}"
    described = tuple(_alignment_candidate(catalogue, row) for row in left)
    return Problem(reason, described, "--alignment-ids")


def _alignment_candidate(catalogue: Catalogue, row: AlignmentRow) -> str:
    method = row.alignment_method or "undefined method"
    sections = len(catalogue.aligned_sections.get(row.id, ()))
    return (
        f"{row.id} (deposition {row.deposition_id}, {method}, tilt series {row.tiltseries_id}, "
        f"{sections} sections)"
    )


def _tomogram_candidate(row: TomogramRow) -> str:
    size = " x ".join(map(str, row.size_voxel))
    return f"{row.id} ({size} voxels of {row.voxel_spacing:g} A, {row.processing})"
