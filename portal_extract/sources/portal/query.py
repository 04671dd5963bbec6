"""From filters to rows: everything of the portal that a resolution needs, in a bounded number of requests.

No relation of the client's objects is walked: each is a request of its own. Filters are sent to the portal
and then applied once more to what comes back, so that a filter that the portal read more widely cannot widen
the selection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from portal_extract.errors import NotFoundError
from portal_extract.sources.portal.api import In, PortalApi
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.rows import (
    AlignedSectionRow,
    AlignmentRow,
    AnnotationRow,
    FileRow,
    FrameRow,
    IdentifiedObjectRow,
    RunRow,
    SectionRow,
    ShapeRow,
    TiltSeriesRow,
    TomogramRow,
)
from portal_extract.sources.portal.scope import (
    Scope,
    by_id,
    find_scope,
    group,
    name_conditions,
    require_all,
)

POINT_SHAPES = ("OrientedPoint", "InstanceSegmentation", "Point")


@dataclass(frozen=True)
class Unmatched:
    """A run of the scope without a matching annotation, and what it has instead."""

    run: RunRow
    annotations: tuple[AnnotationRow, ...]
    identified: tuple[IdentifiedObjectRow, ...]


@dataclass(frozen=True)
class Catalogue:
    """Rows of the portal that a resolution needs.

    Attributes
    ----------
    runs, annotations, alignments, tilt_series, frames
        By id.
    shapes, files, aligned_sections, sections, tomograms
        By annotation, shape, alignment, tilt series and alignment.
    undeliverable
        Alignments whose rows the portal cannot put into an answer.
    chosen_tomograms
        As in :class:`Scope`.
    unmatched
        Runs without a matching annotation.
    """

    runs: Mapping[int, RunRow]
    annotations: Mapping[int, AnnotationRow]
    shapes: Mapping[int, Sequence[ShapeRow]]
    files: Mapping[int, Sequence[FileRow]]
    alignments: Mapping[int, AlignmentRow] = field(default_factory=dict)
    tilt_series: Mapping[int, TiltSeriesRow] = field(default_factory=dict)
    aligned_sections: Mapping[int, Sequence[AlignedSectionRow]] = field(default_factory=dict)
    sections: Mapping[int, Sequence[SectionRow]] = field(default_factory=dict)
    frames: Mapping[int, FrameRow] = field(default_factory=dict)
    tomograms: Mapping[int, Sequence[TomogramRow]] = field(default_factory=dict)
    undeliverable: frozenset[int] = frozenset()
    chosen_tomograms: Mapping[int, TomogramRow] | None = None
    unmatched: tuple[Unmatched, ...] = ()

    def alignments_of(self, run_id: int) -> list[AlignmentRow]:
        """Known alignments of a run, by id."""
        found = (row for row in self.alignments.values() if row.run_id == run_id)
        return sorted(found, key=lambda row: row.id)


def fetch_catalogue(api: PortalApi, filters: PortalFilters) -> Catalogue:
    """Find all rows that a request needs.

    Parameters
    ----------
    api
        The portal.
    filters
        The request.

    Raises
    ------
    NotFoundError
        An id or a name does not exist, or nothing meets all of the filters together.
    PortalError
        The API did not answer.
    """
    scope = find_scope(api, filters)
    annotations = _find_annotations(api, filters, scope)
    require_all("annotation", filters.annotation_ids, annotations)
    runs = scope.runs
    if runs is None:
        run_ids = {row.run_id for row in annotations.values() if row.run_id is not None}
        runs = by_id(api.find_by("Run", RunRow, "id", run_ids))
    matched = {row.run_id for row in annotations.values()}
    unmatched = _find_unmatched(api, [run for run in runs.values() if run.id not in matched])
    if not annotations and not unmatched:
        raise NotFoundError(f"nothing on the portal meets {filters.describe()}")
    shapes = api.find_by("AnnotationShape", ShapeRow, "annotation_id", annotations)
    points = [row.id for row in shapes if row.shape_type in POINT_SHAPES]
    files = _find_files(api, points)
    return _complete(
        api,
        Catalogue(
            runs=runs,
            annotations=annotations,
            shapes=group(shapes, lambda row: row.annotation_id),
            files=group(files, lambda row: row.annotation_shape_id),
            chosen_tomograms=scope.chosen_tomograms,
            unmatched=unmatched,
        ),
    )


def _find_annotations(api: PortalApi, filters: PortalFilters, scope: Scope) -> dict[int, AnnotationRow]:
    conditions = name_conditions(filters, "object_name", filters.annotation_names)
    for name, values in (
        ("run_id", scope.runs),
        ("deposition_id", scope.deposition_ids),
        ("id", filters.annotation_ids or None),
        ("object_id", filters.object_ids or None),
        ("ground_truth_status", [True] if filters.ground_truth else None),
        ("method_type", ["automated"] if filters.automated_only else None),
    ):
        if values is not None:
            conditions.append(In(name, list(values)))

    def is_wanted(row: AnnotationRow) -> bool:
        return (
            (scope.runs is None or row.run_id in scope.runs)
            and (scope.deposition_ids is None or row.deposition_id in scope.deposition_ids)
            and (not filters.annotation_ids or row.id in filters.annotation_ids)
            and (not filters.object_ids or row.object_id in filters.object_ids)
            and (not filters.ground_truth or row.ground_truth_status is True)
            and (not filters.automated_only or row.method_type == "automated")
            and filters.matches_name(row.object_name, filters.annotation_names)
        )

    return by_id(filter(is_wanted, api.find("Annotation", AnnotationRow, conditions)))


def _find_files(api: PortalApi, shape_ids: Sequence[int]) -> list[FileRow]:
    if not shape_ids:
        return []
    conditions = [In("annotation_shape_id", shape_ids), In("format", ["ndjson"])]
    return [row for row in api.find("AnnotationFile", FileRow, conditions) if row.format == "ndjson"]


def _find_unmatched(api: PortalApi, runs: Sequence[RunRow]) -> tuple[Unmatched, ...]:
    """Describe runs without a matching annotation by what they have."""
    if not runs:
        return ()
    run_ids = [run.id for run in runs]
    annotations = group(api.find_by("Annotation", AnnotationRow, "run_id", run_ids), lambda row: row.run_id)
    identified = group(
        api.find_by("IdentifiedObject", IdentifiedObjectRow, "run_id", run_ids), lambda row: row.run_id
    )
    return tuple(
        Unmatched(run, tuple(annotations.get(run.id, ())), tuple(identified.get(run.id, ()))) for run in runs
    )


def _runs_with_picks(found: Catalogue, *, loose: bool = False) -> set[int]:
    """Find the runs with files of picks; or only those with picks that name no alignment."""
    run_of_shape = {
        shape.id: found.annotations[annotation].run_id
        for annotation, shapes in found.shapes.items()
        for shape in shapes
    }
    runs = {
        run_of_shape[shape]
        for shape, rows in found.files.items()
        if not loose or any(row.alignment_id is None for row in rows)
    }
    return {run for run in runs if run is not None}


def _complete(api: PortalApi, found: Catalogue) -> Catalogue:
    """Add alignments, tilt series, sections, frames and tomograms of the files found."""
    named = {row.alignment_id for rows in found.files.values() for row in rows}
    alignments = by_id(api.find_by("Alignment", AlignmentRow, "id", (i for i in named if i is not None)))
    for row in api.find_by("Alignment", AlignmentRow, "run_id", _runs_with_picks(found, loose=True)):
        # all alignments of such a run are candidates
        alignments.setdefault(row.id, row)
    runs = _runs_with_picks(found) if alignments else set()
    series = {row.tiltseries_id for row in alignments.values() if row.tiltseries_id is not None}
    aligned = partial(
        api.find_isolating, "PerSectionAlignmentParameters", AlignedSectionRow, "alignment_id", alignments
    )
    with api.pool() as pool:
        aligned_sections = pool.submit(aligned)
        sections = pool.submit(api.find_by, "PerSectionParameters", SectionRow, "tiltseries_id", series)
        frames = pool.submit(api.find_by, "Frame", FrameRow, "run_id", runs)
        tilt_series = pool.submit(api.find_by, "TiltSeries", TiltSeriesRow, "id", series)
        tomograms = pool.submit(api.find_by, "Tomogram", TomogramRow, "alignment_id", alignments)
    rows, undeliverable = aligned_sections.result()
    return replace(
        found,
        alignments=alignments,
        tilt_series=by_id(tilt_series.result()),
        aligned_sections=group(rows, lambda row: row.alignment_id),
        sections=group(sections.result(), lambda row: row.tiltseries_id),
        frames=by_id(frames.result()),
        tomograms=group(tomograms.result(), lambda row: row.alignment_id),
        undeliverable=undeliverable,
    )
