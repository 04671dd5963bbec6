"""One tilt series out of the portal's rows: alignment, CTF and dose joined by section, in RELION's units."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from portal_extract.sources.portal.checks import (
    Findings,
    check_alignment,
    check_series,
    check_tomogram,
)
from portal_extract.sources.portal.query import Catalogue
from portal_extract.sources.portal.rows import (
    AlignedSectionRow,
    AlignmentRow,
    FrameRow,
    RunRow,
    SectionRow,
    TiltSeriesRow,
    TomogramRow,
)
from portal_extract.sources.portal.select import Place
from portal_extract.sources.portal.settings import PortalAssumptions

_SHOWN = 8
_ORTHOGONAL = 0.01


@dataclass(frozen=True, slots=True)
class TiltImage:
    """One section that is used, in RELION's units.

    Attributes
    ----------
    z_index
        0-based section of the stored stack.
    nominal_tilt_deg
        Raw stage angle.
    x_tilt_deg, y_tilt_deg, z_rot_deg
        Refined angles, applied in this order.
    x_shift_angst, y_shift_angst
        Shifts in the image.
    dose_e_per_a2
        Accumulated dose before the image.
    defocus_u_angst, defocus_v_angst, defocus_angle_deg, phase_shift_deg
        CTF; None without CTF.
    ctf_max_resolution_angst
        0 where it is not known.
    """

    z_index: int
    nominal_tilt_deg: float
    x_tilt_deg: float
    y_tilt_deg: float
    z_rot_deg: float
    x_shift_angst: float
    y_shift_angst: float
    dose_e_per_a2: float
    defocus_u_angst: float | None
    defocus_v_angst: float | None
    defocus_angle_deg: float
    phase_shift_deg: float
    ctf_max_resolution_angst: float


@dataclass(frozen=True)
class PortalTiltSeries:
    """A tilt series with its alignment and the box of voxels that picks are in: RELION's tomogram.

    Attributes
    ----------
    name
        ``rlnTomoName``.
    run, series, alignment, tomogram
        Rows it comes from.
    pixel_size_angst
        Of the tilt images: the portal's, or the one assumed.
    images
        By section.
    warnings
        What was left out or looks odd.
    """

    name: str
    run: RunRow
    series: TiltSeriesRow
    alignment: AlignmentRow
    tomogram: TomogramRow
    pixel_size_angst: float
    images: tuple[TiltImage, ...]
    warnings: tuple[str, ...]

    @property
    def optics_group(self) -> str:
        """``rlnOpticsGroupName``: a group for each tilt series."""
        return f"run_{self.run.id}_tiltseries_{self.series.id}"

    @property
    def tomogram_size_px(self) -> tuple[int, int, int]:
        """Size of the tomogram in pixels of the tilt series, rounded and made even.

        RELION takes half the size as it is for coordinates and truncated for the rotation; an odd size would
        shift everything by half a pixel. With centred coordinates an even size cancels out.
        """
        scale = self.tomogram.voxel_spacing / self.pixel_size_angst
        x, y, z = (max(2, math.floor(size * scale + 0.5) // 2 * 2) for size in self.tomogram.size_voxel)
        return x, y, z


def join_tilt_series(
    catalogue: Catalogue, run: RunRow, place: Place, assumptions: PortalAssumptions
) -> PortalTiltSeries | tuple[str, ...]:
    """Join the rows of a tilt series by section.

    Parameters
    ----------
    catalogue
        What the portal has.
    run
        The run.
    place
        Alignment and tomogram of the picks.
    assumptions
        Pixel size, and what to do without CTF.

    Returns
    -------
    The tilt series, or every reason why it cannot be extracted.
    """
    alignment, tomogram = place.alignment, place.tomogram
    series = catalogue.tilt_series.get(alignment.tiltseries_id or 0)
    if series is None:
        return (f"alignment {alignment.id} has no tilt series on the portal",)
    found = Findings()
    pixel_size = assumptions.pixel_size_angst or series.pixel_spacing
    check_series(series, assumptions, found)
    check_alignment(alignment, tomogram, found)
    check_tomogram(tomogram, found)
    aligned = catalogue.aligned_sections.get(alignment.id, ())
    if alignment.id in catalogue.undeliverable:
        found.problems.append(
            f"the portal's API cannot deliver the sections of alignment {alignment.id}: they are damaged "
            "(in-plane rotations, as a rule)"
        )
    elif not aligned:
        found.problems.append(
            f"alignment {alignment.id} has no sections: the portal knows no angles and shifts for it"
        )
    if found.problems:
        return tuple(found.problems)
    sections = catalogue.sections.get(series.id, ())
    images = _join(series, pixel_size, aligned, sections, catalogue.frames, assumptions, found)
    if found.problems:
        return tuple(found.problems)
    name = f"run_{run.id}_tiltseries_{series.id}_alignment_{alignment.id}"
    name += f"_spacing_{tomogram.tomogram_voxel_spacing_id}"
    return PortalTiltSeries(name, run, series, alignment, tomogram, pixel_size, images, tuple(found.warnings))


def in_plane_angle_deg(rotation: object) -> float | None:
    """Angle of an in-plane rotation, from its first column.

    Parameters
    ----------
    rotation
        2 x 2 matrix as nested lists, or flat in row order (early data of the portal).

    Returns
    -------
    Degrees, or None if it is no finite rotation.
    """
    try:
        matrix = np.array(rotation, dtype=np.float64).reshape(2, 2)
    except (ValueError, TypeError):
        return None
    if not np.isfinite(matrix).all() or not matrix[:, 0].any():
        return None
    return math.degrees(math.atan2(matrix[1, 0], matrix[0, 0]))


def _is_sheared(rotation: object) -> bool:
    matrix = np.array(rotation, dtype=np.float64).reshape(2, 2)
    return not np.allclose(matrix @ matrix.T, np.eye(2), rtol=0, atol=_ORTHOGONAL)


def indices(values: Sequence[int]) -> str:
    """Sections for a message, the first few of many."""
    shown = ", ".join(map(str, values[:_SHOWN]))
    return f"{shown} and {len(values) - _SHOWN} more" if len(values) > _SHOWN else shown


def _join(
    series: TiltSeriesRow,
    pixel_size: float,
    aligned: Sequence[AlignedSectionRow],
    sections: Sequence[SectionRow],
    frames: Mapping[int, FrameRow],
    assumptions: PortalAssumptions,
    found: Findings,
) -> tuple[TiltImage, ...]:
    """Inner join by z_index; what is lost is a warning, what is wrong a problem."""
    by_z = {row.z_index: row for row in sections}
    if not sections:
        found.problems.append(f"tilt series {series.id} has no CTF and no dose on the portal")
        return ()
    _check_indices(series, aligned, sections, found)
    rows = sorted(aligned, key=lambda row: row.z_index)
    lost = [row.z_index for row in rows if row.z_index not in by_z]
    if lost:
        found.warnings.append(
            f"{len(lost)} of {len(rows)} aligned sections left out: the portal has no CTF and dose row for "
            f"z_index {indices(lost)} (sections of equal tilt angle share one)"
        )
    pairs = [(row, by_z[row.z_index]) for row in rows if row.z_index in by_z]
    without = [row.z_index for row, ctf in pairs if ctf.major_defocus is None]
    if without:
        pairs = _apply_missing_ctf(series, pairs, without, assumptions, found)
    if not pairs:
        if not found.problems:
            found.problems.append(f"no section of tilt series {series.id} has alignment, CTF and dose")
        return ()
    if any(_is_sheared(row.in_plane_rotation) for row, _ in pairs if _angle_of(row) is not None):
        found.warnings.append(
            "in-plane rotations contain magnification or shear, which RELION's angles cannot hold: only the "
            "rotation is used"
        )
    missing: defaultdict[str, list[int]] = defaultdict(list)
    images = [_tilt_image(row, ctf, frames.get(ctf.frame_id), pixel_size, missing) for row, ctf in pairs]
    for what, where in missing.items():
        found.problems.append(
            f"tilt series {series.id} has no {what} for {len(where)} of {len(pairs)} sections, z_index "
            f"{indices(where)}"
        )
    _check_order(pairs, frames, found)
    return tuple(image for image in images if image is not None)


def _angle_of(row: AlignedSectionRow) -> float | None:
    return in_plane_angle_deg(row.in_plane_rotation)


def _check_indices(
    series: TiltSeriesRow,
    aligned: Sequence[AlignedSectionRow],
    sections: Sequence[SectionRow],
    found: Findings,
) -> None:
    for what, values in (
        ("alignment", [row.z_index for row in aligned]),
        ("CTF and dose", [row.z_index for row in sections]),
    ):
        twice = sorted({z for z in values if values.count(z) > 1})
        if twice:
            found.problems.append(f"the portal has several {what} rows for z_index {indices(twice)}")
        outside = sorted(z for z in values if z < 0 or (series.size_z is not None and z >= series.size_z))
        if outside:
            found.problems.append(
                f"the portal has {what} rows for z_index {indices(outside)}, but tilt series {series.id} has "
                f"{series.size_z} sections"
            )


def _apply_missing_ctf(
    series: TiltSeriesRow,
    pairs: list[tuple[AlignedSectionRow, SectionRow]],
    without: Sequence[int],
    assumptions: PortalAssumptions,
    found: Findings,
) -> list[tuple[AlignedSectionRow, SectionRow]]:
    """Treat sections without CTF as asked; a null major defocus alone tells (the phase shift reads 0)."""
    if assumptions.on_missing_ctf == "no-ctf":
        found.warnings.append(
            f"no CTF for {len(without)} of {len(pairs)} sections: their defocus is written as 0"
        )
        return pairs
    if len(without) == len(pairs):
        found.problems.append(
            f"tilt series {series.id} has no CTF: all values are null on the portal (--on-missing-ctf no-ctf "
            "with --no-ctf extracts without)"
        )
        return []
    if assumptions.on_missing_ctf == "error":
        found.problems.append(
            f"tilt series {series.id} has no CTF for {len(without)} of {len(pairs)} sections, z_index "
            f"{indices(without)} (--on-missing-ctf skip leaves them out)"
        )
        return []
    found.warnings.append(
        f"{len(without)} of {len(pairs)} sections left out because they have no CTF, z_index "
        f"{indices(without)}"
    )
    return [pair for pair in pairs if pair[1].major_defocus is not None]


def _tilt_image(
    row: AlignedSectionRow,
    ctf: SectionRow,
    frame: FrameRow | None,
    pixel_size: float,
    missing: defaultdict[str, list[int]],
) -> TiltImage | None:
    """Convert one section to RELION's units; note what is missing or is no number."""
    has_ctf = ctf.major_defocus is not None
    values: dict[str, float | None] = {
        "tilt angle": row.tilt_angle,
        "rotation about x": row.volume_x_rotation if row.volume_x_rotation is not None else 0.0,
        "in-plane rotation": _angle_of(row),
        "x offset": row.x_offset,
        "y offset": row.y_offset,
        "raw angle": ctf.raw_angle,
        "dose": frame.accumulated_dose if frame else None,
        "major defocus": ctf.major_defocus if has_ctf else 0.0,
        "minor defocus": ctf.minor_defocus if has_ctf else 0.0,
        "astigmatic angle": ctf.astigmatic_angle if has_ctf else 0.0,
        "phase shift": ctf.phase_shift or 0.0,
        "resolution": ctf.max_resolution or 0.0,
    }
    bad = [name for name, value in values.items() if value is None or not math.isfinite(value)]
    for name in bad:
        missing[name].append(row.z_index)
    if bad:
        return None
    number = {name: float(value) for name, value in values.items() if value is not None}
    return TiltImage(
        z_index=row.z_index,
        nominal_tilt_deg=number["raw angle"],
        x_tilt_deg=number["rotation about x"],
        y_tilt_deg=number["tilt angle"],
        z_rot_deg=number["in-plane rotation"],
        x_shift_angst=number["x offset"] * pixel_size,
        y_shift_angst=number["y offset"] * pixel_size,
        dose_e_per_a2=number["dose"],
        defocus_u_angst=number["major defocus"] if has_ctf else None,
        defocus_v_angst=number["minor defocus"] if has_ctf else None,
        defocus_angle_deg=number["astigmatic angle"],
        phase_shift_deg=math.degrees(number["phase shift"]),
        ctf_max_resolution_angst=number["resolution"],
    )


def _check_order(
    pairs: Sequence[tuple[AlignedSectionRow, SectionRow]], frames: Mapping[int, FrameRow], found: Findings
) -> None:
    """Warn where order of acquisition and dose disagree: both come from the order of the mdoc file."""
    known = [
        (frame.acquisition_order, frame.accumulated_dose)
        for frame in (frames.get(ctf.frame_id) for _, ctf in pairs)
        if frame is not None and frame.acquisition_order is not None and frame.accumulated_dose is not None
    ]
    doses = [dose for _, dose in sorted(known)]
    if doses != sorted(doses):
        found.warnings.append(
            "the accumulated dose does not rise with the order of acquisition: do not trust --max-dose here"
        )
    if len(doses) > 1 and len(set(doses)) == 1:
        found.warnings.append(f"all sections have the same accumulated dose of {doses[0]:g} e/A^2")
