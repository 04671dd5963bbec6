"""What must hold of a tilt series, an alignment and a tomogram before they are used together."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field

import numpy as np

from portal_extract.model import Floats
from portal_extract.sources.portal.rows import AlignmentRow, TiltSeriesRow, TomogramRow
from portal_extract.sources.portal.settings import PortalAssumptions


@dataclass
class Findings:
    """Problems and warnings met on the way, one sentence each."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check_series(series: TiltSeriesRow, assumptions: PortalAssumptions, found: Findings) -> None:
    """Note what hinders the use of a tilt series."""
    if not series.s3_omezarr_dir:
        found.problems.append(f"tilt series {series.id} has no OME-Zarr images on the portal")
    if series.is_aligned and not assumptions.allow_aligned:
        found.problems.append(
            f"tilt series {series.id} is stored already aligned, so its alignment must not be applied again"
        )
    for what, value in (
        ("pixel spacing", assumptions.pixel_size_angst or series.pixel_spacing),
        ("acceleration voltage", series.acceleration_voltage),
    ):
        if not (math.isfinite(value) and value > 0):
            found.problems.append(f"tilt series {series.id} has a {what} of {value:g}")
    if not math.isfinite(series.spherical_aberration_constant):
        found.problems.append(f"tilt series {series.id} has no number as spherical aberration")


def check_alignment(alignment: AlignmentRow, tomogram: TomogramRow, found: Findings) -> None:
    """Note what hinders the use of an alignment, or looks odd beside its tomogram."""
    text = alignment.affine_transformation_matrix
    if text is not None and text.strip():
        matrix = parse_affine(text)
        if matrix is None:
            found.problems.append(
                f"the affine matrix of alignment {alignment.id} is no 4 x 4 matrix: {text[:80]!r}"
            )
        elif not np.allclose(matrix, np.eye(4), rtol=0, atol=1e-6):
            found.problems.append(
                f"the tomograms of alignment {alignment.id} are flipped, turned or moved against their tilt "
                f"series (affine matrix {_matrix_text(matrix)}), which cannot be undone with certainty"
            )
    for axis in "xyz":
        offset = getattr(alignment, f"volume_{axis}_offset")
        if offset:
            found.problems.append(
                f"alignment {alignment.id} has a volume offset of {offset:g} A in {axis}, whose meaning is "
                "not settled"
            )
        dimension = getattr(alignment, f"volume_{axis}_dimension")
        size = getattr(tomogram, f"size_{axis}") * tomogram.voxel_spacing
        if dimension and abs(dimension - size) > 0.02 * size:
            found.warnings.append(
                f"alignment {alignment.id} says that its volume is {dimension:g} A in {axis}, but tomogram "
                f"{tomogram.id} has {size:g} A; the tomogram's is used"
            )
    for name in ("tilt_offset", "x_rotation_offset"):
        if getattr(alignment, name):
            found.warnings.append(
                f"alignment {alignment.id} has a {name} of {getattr(alignment, name):g} degrees; it is not "
                "added, because the angles of the sections contain it"
            )


def check_tomogram(tomogram: TomogramRow, found: Findings) -> None:
    """Note what hinders taking picks out of a tomogram's box of voxels."""
    if any(tomogram.offset_voxel):
        found.problems.append(
            f"tomogram {tomogram.id} is cropped (offset {tomogram.offset_voxel} voxels), so the place of its "
            "picks in the tilt series is not certain"
        )
    if not (math.isfinite(tomogram.voxel_spacing) and tomogram.voxel_spacing > 0):
        found.problems.append(f"tomogram {tomogram.id} has a voxel spacing of {tomogram.voxel_spacing:g}")
    elif min(tomogram.size_voxel) < 1:
        found.problems.append(f"tomogram {tomogram.id} has a size of {tomogram.size_voxel} voxels")


def parse_affine(text: str) -> Floats | None:
    """Read a 4 x 4 matrix in the portal's spellings: JSON ``[[..]]`` and PostgreSQL ``{{..}}``.

    Parameters
    ----------
    text
        The matrix; None is returned if it is none.
    """
    try:
        matrix = np.array(json.loads(text.replace("{", "[").replace("}", "]")), dtype=np.float64)
    except (ValueError, TypeError):
        return None
    return matrix if matrix.shape == (4, 4) and bool(np.isfinite(matrix).all()) else None


def _matrix_text(matrix: Floats) -> str:
    return "[" + ", ".join("[" + ", ".join(f"{v:g}" for v in row) + "]" for row in matrix) + "]"
