"""From filters to a project: the whole way, with a report of what is extracted and what is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.errors import AccessDeniedError, ImageFormatError, NotFoundError, PortalExtractError
from portal_extract.model import ImageStack, Project
from portal_extract.options import ExtractOptions
from portal_extract.running.events import Note, Observer, StageFinished, StageStarted, ignore
from portal_extract.sources.portal import api
from portal_extract.sources.portal.eligibility import EligibilityReport, EligibilityRow, Status
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.objects import read_objects
from portal_extract.sources.portal.particles import (
    PickFile,
    read_pick_file,
    same_object_warnings,
    without_duplicates,
)
from portal_extract.sources.portal.query import Catalogue, fetch_catalogue
from portal_extract.sources.portal.refusals import raise_if_nothing, unmatched_names, unmatched_runs
from portal_extract.sources.portal.sections import PortalTiltSeries, join_tilt_series
from portal_extract.sources.portal.select import Place, Selection, select_files
from portal_extract.sources.portal.settings import (
    DEFAULT_PORTAL_URL,
    PortalAssumptions,
    PortalConnection,
)
from portal_extract.sources.portal.tables import AnnotatedPicks, build_tables
from portal_extract.sources.relion import TomogramTables, build_project

if TYPE_CHECKING:
    from portal_extract.images.layout import ArrayLayout

Joined = PortalTiltSeries | tuple[str, ...]


@dataclass(frozen=True)
class PortalResolution:
    """What a request came to.

    Attributes
    ----------
    project
        Tilt series, optics groups and particles, built from RELION's tables.
    report
        What is extracted, what is not and why, and what was assumed.
    filters, assumptions, connection
        The request.
    """

    project: Project
    report: EligibilityReport
    filters: PortalFilters
    assumptions: PortalAssumptions
    connection: PortalConnection

    @property
    def lacks_ctf(self) -> bool:
        """Whether defocus 0 stands for a CTF that the portal does not have."""
        return self.assumptions.on_missing_ctf == "no-ctf"

    def check_options(self, options: ExtractOptions) -> None:
        """Refuse to multiply by a CTF that is not there.

        Raises
        ------
        UsageError
            CTF multiplication is on, and missing CTFs were let through.
        """
        self.assumptions.check_ctf(options.ctf)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "request": self.filters.to_dict(),
            "portal_url": self.connection.portal_url or DEFAULT_PORTAL_URL,
            "assumptions": self.assumptions.to_dict(),
            "eligibility": self.report.to_dict(),
        }


def resolve_portal(
    filters: PortalFilters,
    assumptions: PortalAssumptions | None = None,
    connection: PortalConnection | None = None,
    observer: Observer = ignore,
) -> PortalResolution:
    """Resolve a request on the portal into a project, without reading a pixel.

    The project is built from the very tables that are written, so a project read back from the files is the
    same. Runs and annotations that cannot be extracted are in the report; the others go on.

    Parameters
    ----------
    filters
        What is asked.
    assumptions
        What the portal does not say.
    connection
        Where the portal is; the real one by default.
    observer
        Told of progress and warnings.

    Raises
    ------
    UsageError
        The request or the assumptions make no sense.
    NotFoundError
        An id or a name does not exist, or nothing meets the request.
    IneligibleError
        Something was found but nothing of it can be extracted; ``report`` says why.
    PortalError, ReadError
        The portal did not answer.
    """
    assumptions, connection = assumptions or PortalAssumptions(), connection or PortalConnection()
    filters.check()
    assumptions.check()
    observer(StageStarted(api.STAGE, None, "requests"))
    try:
        catalogue = fetch_catalogue(api.PortalApi(connection, observer), filters)
    finally:
        observer(StageFinished(api.STAGE))
    selections = select_files(catalogue, filters)
    joined = _join_all(catalogue, selections, assumptions, connection)
    files = _read_files(selections, joined, filters, connection, observer)
    usable = {i: file.picks for i, file in files.items() if file.picks is not None}
    kept, dropped = without_duplicates(list(usable.values()))
    usable = dict(zip(usable, kept, strict=True))
    report = EligibilityReport(
        rows=tuple(_report_row(one, joined.get(_key(one)), files, usable, dropped) for one in selections),
        unmatched_runs=unmatched_runs(catalogue, filters),
        assumptions=assumptions.sentences(),
        warnings=unmatched_names(catalogue, filters) + same_object_warnings(selections, usable),
    )
    for warning in report.warnings:
        observer(Note(warning, "warning"))
    raise_if_nothing(report, catalogue, filters)
    project = _build(list(usable.values()), assumptions, connection)
    return PortalResolution(project, report, filters, assumptions, connection)


def _key(selection: Selection) -> tuple[int, int] | None:
    """Alignment and tomogram that stand for the tilt series of a file."""
    return (selection.place.alignment.id, selection.place.tomogram.id) if selection.place else None


def _join_all(
    catalogue: Catalogue,
    selections: Sequence[Selection],
    assumptions: PortalAssumptions,
    connection: PortalConnection,
) -> dict[tuple[int, int] | None, Joined]:
    """Join every tilt series once; sizes that the portal does not tell are read from the images."""
    places = {_key(one): (one.run, one.place) for one in selections if one.place is not None}
    joined = {
        key: join_tilt_series(catalogue, run, place, assumptions) for key, (run, place) in places.items()
    }
    unknown = {
        key: one
        for key, one in joined.items()
        if isinstance(one, PortalTiltSeries)
        and None in (one.series.size_x, one.series.size_y, one.series.size_z)
    }
    if unknown:
        joined |= _with_sizes(unknown, connection)
    return joined


def _with_sizes(
    unknown: Mapping[tuple[int, int] | None, PortalTiltSeries], connection: PortalConnection
) -> dict[tuple[int, int] | None, Joined]:
    """Look at the stored arrays of tilt series."""
    from portal_extract.images.layout import look_at
    from portal_extract.images.options import ReadOptions
    from portal_extract.images.reader import open_reader

    uris = {key: one.series.s3_omezarr_dir or "" for key, one in unknown.items()}
    with open_reader(ReadOptions(requests_in_flight=connection.requests_in_flight)) as reader:
        found = look_at(list(uris.values()), connection.storage, reader)
    return {key: _with_size(one, uris[key], found[uris[key]]) for key, one in unknown.items()}


def _with_size(series: PortalTiltSeries, uri: str, found: ArrayLayout | PortalExtractError) -> Joined:
    """Take the image size and the number of sections from the stored array."""
    if isinstance(found, (NotFoundError, AccessDeniedError, ImageFormatError)):
        return (
            f"tilt series {series.series.id} has no size on the portal, and its images do not tell: {found}",
        )
    if isinstance(found, PortalExtractError):
        raise found
    sections, height, width = found.shape
    outside = [image.z_index for image in series.images if image.z_index >= sections]
    if outside:
        return (f"the portal has rows for z_index {outside[0]}, but {uri} has {sections} sections",)
    row = replace(series.series, size_x=width, size_y=height, size_z=sections)
    return replace(series, series=row)


def _read_files(
    selections: Sequence[Selection],
    joined: Mapping[tuple[int, int] | None, Joined],
    filters: PortalFilters,
    connection: PortalConnection,
    observer: Observer,
) -> dict[int, PickFile]:
    """Particles by file id, for every file whose tilt series is fine; tilt series stay together."""
    wanted: list[tuple[str, int, Selection, PortalTiltSeries]] = []
    for one in selections:
        series = joined.get(_key(one))
        if one.file is not None and isinstance(series, PortalTiltSeries):
            wanted.append((series.name, one.file.id, one, series))
    bodies = read_objects((one.file.s3_path for _, _, one, _ in wanted if one.file), connection, observer)
    order = {name: position for position, name in enumerate(dict.fromkeys(name for name, *_ in wanted))}
    wanted.sort(key=lambda entry: order[entry[0]])
    return {
        file_id: read_pick_file(one, series, bodies[one.file.s3_path], filters)
        for _, file_id, one, series in wanted
        if one.file is not None
    }


def _report_row(
    selection: Selection,
    joined: Joined | None,
    files: Mapping[int, PickFile],
    usable: Mapping[int, AnnotatedPicks],
    dropped: Mapping[int, int],
) -> EligibilityRow:
    file, place, problem = selection.file, selection.place, selection.problem
    row = EligibilityRow(
        status="ineligible",
        run_id=selection.run.id,
        run_name=selection.run.name,
        annotation_id=selection.annotation.id,
        object_name=selection.annotation.object_name,
        deposition_id=selection.annotation.deposition_id,
        file_id=file.id if file else None,
        shape_type=selection.shape.shape_type if selection.shape else None,
        alignment_id=place.alignment.id if place else file.alignment_id if file else None,
        tilt_series_id=place.alignment.tiltseries_id if place else None,
        voxel_spacing_id=_spacing_id(selection, place),
        voxel_spacing_angst=place.tomogram.voxel_spacing if place else None,
    )
    if problem is not None:
        status: Status = "ambiguous" if problem.option else "ineligible"
        return replace(
            row, status=status, reason=problem.reason, candidates=problem.candidates, option=problem.option
        )
    if isinstance(joined, tuple):
        return replace(row, reason="; ".join(joined))
    if joined is None or file is None:
        return replace(row, reason="the portal has no file of picks")
    row = replace(
        row,
        tomogram_name=joined.name,
        n_tilts=len(joined.images),
        pixel_size_angst=joined.pixel_size_angst,
        warnings=joined.warnings + files[file.id].warnings,
    )
    if file.id not in usable:
        return replace(row, reason=files[file.id].problem)
    if n := dropped.get(selection.annotation.id):
        left_out = f"{n} picks left out: another annotation of {row.object_name!r} has them at the same place"
        row = replace(row, warnings=(*row.warnings, left_out))
    return replace(row, status="extract", n_picks=len(usable[file.id]))


def _spacing_id(selection: Selection, place: Place | None) -> int | None:
    if place is not None:
        return place.tomogram.tomogram_voxel_spacing_id
    return selection.file.tomogram_voxel_spacing_id if selection.file else None


def _build(
    picks: Sequence[AnnotatedPicks], assumptions: PortalAssumptions, connection: PortalConnection
) -> Project:
    filled = [one for one in picks if len(one)]
    tables = build_tables(filled, assumptions)
    by_name = {one.series.name: one.series for one in filled}

    def find_images(tomogram: TomogramTables) -> ImageStack:
        series = by_name[tomogram.name]
        sections = np.array([image.z_index for image in series.images], dtype=np.int64)
        size = int(series.series.size_x or 0), int(series.series.size_y or 0)
        uris = tuple(tomogram.tilts["tomoTiltSeriesURI"])
        return ImageStack(uris, sections, size, connection.storage)

    return build_project(tables, find_images)
