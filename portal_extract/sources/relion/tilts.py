"""Tilt series out of the global table and the per-tilt tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from portal_extract.geometry import coefficients_per_image, projection_matrices
from portal_extract.model import Bools, Deformation, DeformationKind, Floats, ImageStack, TiltSeries
from portal_extract.relion_io.numbers import parse_vector
from portal_extract.relion_io.string_table import StringTable
from portal_extract.sources.relion.columns import Columns, Problems, rows

UNKNOWN_SIZE = (-999, -999, -999)
MATRIX_LABELS = ("rlnTomoProjX", "rlnTomoProjY", "rlnTomoProjZ", "rlnTomoProjW")
ANGLE_LABELS = ("rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst")
GRID_LABELS = ("rlnTomoDeformationGridSizeX", "rlnTomoDeformationGridSizeY")
SIZE_LABELS = ("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ")
_KINDS: dict[str, DeformationKind] = {"linear": "linear", "spline": "spline", "Fourier": "Fourier"}


@dataclass(frozen=True)
class TomogramTables:
    """What the tables say of one tilt series, for whoever finds its images.

    Attributes
    ----------
    name
        ``rlnTomoName``.
    row
        Its row of the global table.
    tilts
        Its per-tilt table.
    where, tilts_where
        File and block of both, for messages.
    """

    name: str
    row: Mapping[str, str]
    tilts: StringTable
    where: str
    tilts_where: str


#: finds the images of a tilt series: opens headers at most
ImageStackFactory = Callable[[TomogramTables], ImageStack]


@dataclass(frozen=True)
class GlobalColumns:
    """Columns of the global table, parsed: one value for each tilt series."""

    names: list[str]
    voltage_kv: Floats
    spherical_aberration_mm: Floats
    amplitude_contrast: Floats
    handedness: Floats
    pixel_size_angst: Floats
    defocus_slope: Floats
    bfactor_per_dose: Floats
    sizes_px: list[tuple[int, int, int]]
    deformations: list[tuple[str, tuple[int, int]] | None]


def read_global_columns(columns: Columns) -> GlobalColumns:
    """Parse the global table, collecting problems.

    Parameters
    ----------
    columns
        ``data_global``.
    """
    n = len(columns)
    found = columns.strings("rlnTomoName")
    first = {name: t for t, name in reversed(list(enumerate(found)))}
    twice = np.flatnonzero([first[name] != t for t, name in enumerate(found)])
    if "rlnTomoName" in columns and len(twice):
        columns.problems.add(
            f"{columns.where}: rlnTomoName occurs twice in {rows(twice, [found[i] for i in twice[:5]])}"
        )
    sizes = [UNKNOWN_SIZE] * n
    if columns.has_all_or_none(*SIZE_LABELS):
        x, y, z = (columns.integers(label).tolist() for label in SIZE_LABELS)
        sizes = list(zip(x, y, z, strict=True))
    deformations: list[tuple[str, tuple[int, int]] | None] = [None] * n
    if columns.has_all_or_none(*GRID_LABELS):
        kinds = columns.strings("rlnTomoDeformationType")
        gx, gy = (columns.integers(label).tolist() for label in GRID_LABELS)
        deformations = [(kind, (x, y)) for kind, x, y in zip(kinds, gx, gy, strict=True)]
    pixel_size = columns.numbers("rlnTomoTiltSeriesPixelSize")
    contrast = columns.numbers("rlnAmplitudeContrast")
    voltage = columns.numbers("rlnVoltage")
    _note_rows(columns, "rlnTomoTiltSeriesPixelSize must be positive", pixel_size <= 0)
    _note_rows(columns, "rlnVoltage must be positive", voltage <= 0)
    _note_rows(columns, "rlnAmplitudeContrast must be from 0 to 1", (contrast < 0) | (contrast > 1))
    return GlobalColumns(
        names=found,
        voltage_kv=voltage,
        spherical_aberration_mm=columns.numbers("rlnSphericalAberration"),
        amplitude_contrast=contrast,
        handedness=columns.numbers("rlnTomoHand"),
        pixel_size_angst=pixel_size,
        defocus_slope=columns.numbers("rlnTomoDefocusSlope", 1.0),
        bfactor_per_dose=columns.numbers("rlnCtfBfactorPerElectronDose", 0.0),
        sizes_px=sizes,
        deformations=deformations,
    )


def _note_rows(columns: Columns, complaint: str, bad: Bools) -> None:
    if bad.any():
        columns.problems.add(f"{columns.where}: {complaint} in {rows(np.flatnonzero(bad))}")


def build_tilt_series(
    index: int, known: GlobalColumns, tilts: Columns, image_stack: ImageStack | None
) -> TiltSeries:
    """Build one tilt series, collecting problems: values that are wrong are NaN or missing in it.

    Parameters
    ----------
    index
        Its row of the global table.
    known
        The global table, parsed.
    tilts
        Its per-tilt table.
    image_stack
        Its images; None where no particle needs them: then nothing is opened, the image size is (0, 0),
        the projections are NaN, and there are no problems.
    """
    if image_stack is None:
        # what is wrong with a tilt series that nobody uses must not stop those who use others
        tilts = replace(tilts, problems=Problems())
    elif not len(tilts):
        tilts.problems.add(f"{tilts.where}: the table has no rows")
    pixel_size, size = float(known.pixel_size_angst[index]), known.sizes_px[index]
    projections = _projections(tilts, image_stack, pixel_size, size)
    deformation = _deformation(tilts, known.deformations[index])
    optics = {
        "defocus_u_angst": tilts.numbers("rlnDefocusU"),
        "defocus_v_angst": tilts.numbers("rlnDefocusV"),
        "defocus_angle_deg": tilts.numbers("rlnDefocusAngle"),
        "phase_shift_deg": tilts.numbers("rlnPhaseShift", 0.0),
        "ctf_scale": tilts.numbers("rlnCtfScalefactor", 1.0),
        "ctf_bfactor_a2": tilts.numbers("rlnCtfBfactor", 0.0),
        "dose_e_per_a2": tilts.numbers("rlnMicrographPreExposure"),
    }
    nowhere = ImageStack(("",) * len(tilts), np.arange(len(tilts), dtype=np.int64), (0, 0))
    return TiltSeries(
        name=known.names[index],
        image_stack=image_stack or nowhere,
        pixel_size_angst=pixel_size,
        voltage_kv=float(known.voltage_kv[index]),
        spherical_aberration_mm=float(known.spherical_aberration_mm[index]),
        amplitude_contrast=float(known.amplitude_contrast[index]),
        handedness=float(known.handedness[index]),
        tomogram_size_px=size,
        projections=projections,
        defocus_slope=float(known.defocus_slope[index]),
        bfactor_per_dose=float(known.bfactor_per_dose[index]),
        deformation=deformation,
        **optics,
    )


def _projections(
    tilts: Columns, image_stack: ImageStack | None, pixel_size: float, size: tuple[int, int, int]
) -> Floats:
    if tilts.has(*MATRIX_LABELS):
        return _stored_matrices(tilts)
    if not tilts.has(*ANGLE_LABELS):
        missing = [label for label in ANGLE_LABELS if label not in tilts]
        tilts.problems.add(
            f"{tilts.where}: no alignment: neither {', '.join(ANGLE_LABELS)} ({', '.join(missing)} missing) "
            f"nor {', '.join(MATRIX_LABELS)}"
        )
        return np.zeros((len(tilts), 4, 4))
    x_tilt = tilts.numbers("rlnTomoXTilt", 0.0)
    y_tilt, z_rot, x_shift, y_shift = (tilts.numbers(label) for label in ANGLE_LABELS)
    image_size = image_stack.size_px if image_stack is not None else (0, 0)
    matrices = projection_matrices(x_tilt, y_tilt, z_rot, x_shift, y_shift, pixel_size, image_size, size)
    return matrices if image_stack is not None else np.full_like(matrices, np.nan)


def _stored_matrices(tilts: Columns) -> Floats:
    matrices = np.zeros((len(tilts), 4, 4))
    for i, label in enumerate(MATRIX_LABELS):
        for f, vector in enumerate(tilts.vectors(label)):
            if vector is None:
                continue
            if len(vector) != 4:
                tilts.problems.add(
                    f"{tilts.where}: {label} has {len(vector)} numbers instead of 4 in row {f + 1}"
                )
                break
            matrices[f, i] = vector
    return matrices


def _deformation(tilts: Columns, declared: tuple[str, tuple[int, int]] | None) -> Deformation | None:
    if declared is None:
        return None
    name, grid = declared
    kind = _KINDS.get(name)
    if kind is None:
        tilts.problems.add(
            f"{tilts.where}: the global table gives rlnTomoDeformationType {name!r}; "
            f"known are {', '.join(_KINDS)}"
        )
        return None
    least = 2 if kind == "spline" else 1
    if min(grid) < least and kind != "linear":
        tilts.problems.add(
            f"{tilts.where}: the global table gives a {kind} deformation grid of {grid[0]} x {grid[1]} "
            f"points; at least {least} x {least} are needed"
        )
        return None
    if "rlnTomoDeformationCoefficients" not in tilts:
        tilts.problems.add(
            f"{tilts.where}: column rlnTomoDeformationCoefficients missing, although the global table "
            f"switches {kind} deformations on"
        )
        return None
    needed = coefficients_per_image(kind, grid)
    found = [parse_vector(value) for value in tilts.strings("rlnTomoDeformationCoefficients")]
    for f, vector in enumerate(found):
        if vector is None or len(vector) != needed:
            count = "no vector" if vector is None else f"{len(vector)} numbers"
            tilts.problems.add(
                f"{tilts.where}: rlnTomoDeformationCoefficients has {count} in row {f + 1}; a {kind} "
                f"deformation of {grid[0]} x {grid[1]} points needs {needed}"
            )
            return None
    return Deformation(kind, grid, np.array([vector for vector in found if vector is not None]))
