"""Rows of the portal's tables, as plain frozen values.

The fields have the names of the portal client's attributes, so that one function converts all. Units are
those of the portal: :mod:`portal_extract.sources.portal.sections` and ``picks`` convert them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

RowType = TypeVar("RowType", bound="Row")


@dataclass(frozen=True, slots=True)
class Row:
    """A row with an id ("may change when the portal ingests the data again")."""

    id: int


@dataclass(frozen=True, slots=True)
class DepositionRow(Row):
    """A deposition; it has a title but no name."""

    title: str


@dataclass(frozen=True, slots=True)
class DatasetRow(Row):
    """A data set."""

    title: str
    organism_name: str | None


@dataclass(frozen=True, slots=True)
class RunRow(Row):
    """A run; the name is unique only within its data set."""

    dataset_id: int
    name: str


@dataclass(frozen=True, slots=True)
class IdentifiedObjectRow(Row):
    """An object known to be in a run, without picks."""

    run_id: int
    object_name: str
    object_id: str


@dataclass(frozen=True, slots=True)
class AnnotationRow(Row):
    """An annotation: object, author, method."""

    run_id: int | None
    deposition_id: int | None
    object_name: str
    object_id: str
    object_count: int | None
    ground_truth_status: bool | None
    method_type: str


@dataclass(frozen=True, slots=True)
class ShapeRow(Row):
    """One shape of an annotation."""

    annotation_id: int | None
    shape_type: str | None


@dataclass(frozen=True, slots=True)
class FileRow(Row):
    """One file of a shape; its alignment and voxel spacing are those of its coordinates."""

    alignment_id: int | None
    annotation_shape_id: int | None
    tomogram_voxel_spacing_id: int | None
    format: str
    s3_path: str


@dataclass(frozen=True, slots=True)
class AlignmentRow(Row):
    """An alignment; volume dimensions and offsets in Angstrom, ``tilt_offset`` in degrees."""

    run_id: int | None
    tiltseries_id: int | None
    deposition_id: int | None
    alignment_type: str | None
    alignment_method: str | None
    affine_transformation_matrix: str | None
    tilt_offset: float | None
    x_rotation_offset: float | None
    volume_x_offset: float | None
    volume_y_offset: float | None
    volume_z_offset: float | None
    volume_x_dimension: float | None
    volume_y_dimension: float | None
    volume_z_dimension: float | None


@dataclass(frozen=True, slots=True)
class AlignedSectionRow(Row):
    """Alignment of one section: angles in degrees, offsets in pixels of the tilt series."""

    alignment_id: int
    z_index: int
    tilt_angle: float | None
    volume_x_rotation: float | None
    in_plane_rotation: Any
    x_offset: float | None
    y_offset: float | None


@dataclass(frozen=True, slots=True)
class SectionRow(Row):
    """CTF and raw angle of one section: defocus in Angstrom, angles in degrees, phase shift in radians."""

    tiltseries_id: int
    frame_id: int
    z_index: int
    raw_angle: float
    major_defocus: float | None
    minor_defocus: float | None
    astigmatic_angle: float | None
    phase_shift: float | None
    max_resolution: float | None


@dataclass(frozen=True, slots=True)
class FrameRow(Row):
    """A movie or its place holder: accumulated dose before it, in electrons per square Angstrom."""

    run_id: int
    acquisition_order: int | None
    accumulated_dose: float | None


@dataclass(frozen=True, slots=True)
class TiltSeriesRow(Row):
    """A tilt series: voltage in volts, spherical aberration in mm, spacing in Angstrom per pixel."""

    run_id: int
    s3_omezarr_dir: str | None
    s3_mrc_file: str | None
    acceleration_voltage: int
    spherical_aberration_constant: float
    pixel_spacing: float
    is_aligned: bool
    size_x: int | None
    size_y: int | None
    size_z: int | None

    @property
    def size(self) -> tuple[int | None, int | None, int | None]:
        """Width, height and number of sections, where the portal tells them."""
        return self.size_x, self.size_y, self.size_z


@dataclass(frozen=True, slots=True)
class TomogramRow(Row):
    """A tomogram: sizes and offsets in voxels, spacing in Angstrom per voxel."""

    alignment_id: int | None
    run_id: int | None
    tomogram_voxel_spacing_id: int | None
    name: str | None
    size_x: int
    size_y: int
    size_z: int
    voxel_spacing: float
    offset_x: int
    offset_y: int
    offset_z: int
    processing: str

    @property
    def size_voxel(self) -> tuple[int, int, int]:
        """Size in x, y and z."""
        return self.size_x, self.size_y, self.size_z

    @property
    def offset_voxel(self) -> tuple[int, int, int]:
        """Position within the uncropped tomogram."""
        return self.offset_x, self.offset_y, self.offset_z


def from_models(row_type: type[RowType], models: Iterable[object]) -> list[RowType]:
    """Rows out of objects of the portal client."""
    names = [field.name for field in fields(row_type)]
    return [row_type(*(getattr(model, name) for name in names)) for model in models]
