"""RELION's tables of what the portal has; the model is then built from them, digits and all.

Particles carry two columns that RELION keeps and does not use: ``portalAnnotationId`` and
``portalObjectName`` (blanks as underscores).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from portal_extract.model import Floats, Ints
from portal_extract.relion_io.labels import ANGLE_LABELS, CENTRED_LABELS
from portal_extract.relion_io.numbers import format_double, format_measured
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables
from portal_extract.sources.portal.rows import AnnotationRow
from portal_extract.sources.portal.sections import PortalTiltSeries
from portal_extract.sources.portal.settings import PortalAssumptions

TUBE_LABEL = "rlnHelicalTubeID"
TRACK_LABEL = "rlnHelicalTrackLengthAngst"
ANNOTATION_LABEL = "portalAnnotationId"
OBJECT_LABEL = "portalObjectName"

Columns = dict[str, list[str]]


@dataclass(frozen=True)
class AnnotatedPicks:
    """Particles of one annotation in one tilt series, in file order.

    Attributes
    ----------
    series
        Where they are.
    annotation
        What they are.
    coordinates_angst
        ``(N, 3)`` centred.
    angles_deg
        ``(N, 3)`` rot, tilt, psi.
    tubes, track_lengths_angst
        ``(N,)`` filament and distance along it, or None.
    """

    series: PortalTiltSeries
    annotation: AnnotationRow
    coordinates_angst: Floats
    angles_deg: Floats
    tubes: Ints | None = None
    track_lengths_angst: Floats | None = None

    def __len__(self) -> int:
        return len(self.coordinates_angst)


def build_tables(picks: Sequence[AnnotatedPicks], assumptions: PortalAssumptions) -> ProjectTables:
    """Tables of a project.

    Tilt series are in order of their names' first particle; the particles of a tilt series are numbered
    through in the order of ``picks``.

    Parameters
    ----------
    picks
        Particles, those of one tilt series next to each other; none empty.
    assumptions
        Handedness and amplitude contrast.
    """
    series = list({one.series.name: one.series for one in picks}.values())
    groups = list(dict.fromkeys(one.optics_group for one in series))
    first = {one.optics_group: one for one in reversed(series)}
    optics = {
        "rlnOpticsGroup": [str(number) for number in range(1, len(groups) + 1)],
        "rlnOpticsGroupName": groups,
        "rlnSphericalAberration": [_spherical_aberration(first[group]) for group in groups],
        "rlnVoltage": [_voltage(first[group]) for group in groups],
        "rlnAmplitudeContrast": [format_double(assumptions.amplitude_contrast)] * len(groups),
        "rlnTomoTiltSeriesPixelSize": [format_double(first[group].pixel_size_angst) for group in groups],
    }
    return ProjectTables(
        particles=StringTable.of(_particle_columns(picks, groups)),
        optics=StringTable.of(optics),
        general={"rlnTomoSubTomosAre2DStacks": "0"},
        tomograms=StringTable.of(_tomogram_columns(series, assumptions)),
        tilts={one.name: StringTable.of(tilt_columns(one)) for one in series},
    )


def _voltage(series: PortalTiltSeries) -> str:
    return format_double(series.series.acceleration_voltage / 1000)


def _spherical_aberration(series: PortalTiltSeries) -> str:
    return format_double(series.series.spherical_aberration_constant)


def _tomogram_columns(series: Sequence[PortalTiltSeries], assumptions: PortalAssumptions) -> Columns:
    n = len(series)
    sizes = [one.tomogram_size_px for one in series]
    pixel_sizes = [format_double(one.pixel_size_angst) for one in series]
    return {
        "rlnTomoName": [one.name for one in series],
        "rlnVoltage": [_voltage(one) for one in series],
        "rlnSphericalAberration": [_spherical_aberration(one) for one in series],
        "rlnAmplitudeContrast": [format_double(assumptions.amplitude_contrast)] * n,
        "rlnMicrographOriginalPixelSize": pixel_sizes,
        "rlnTomoHand": [format_double(assumptions.handedness)] * n,
        "rlnOpticsGroupName": [one.optics_group for one in series],
        "rlnTomoTiltSeriesPixelSize": pixel_sizes,
        **{f"rlnTomoSize{axis}": [str(size[i]) for size in sizes] for i, axis in enumerate("XYZ")},
    }


def tilt_columns(series: PortalTiltSeries) -> Columns:
    """Per-tilt table of a tilt series, in the order of its sections.

    ``rlnMicrographName`` names the section in the MRC file of the portal (in the OME-Zarr where there is
    none), ``tomoTiltSeriesURI`` the OME-Zarr that is read.

    Parameters
    ----------
    series
        The tilt series.
    """
    images, row = series.images, series.series
    stack = row.s3_mrc_file or row.s3_omezarr_dir or ""
    numbers: Mapping[str, list[float]] = {
        "rlnTomoNominalStageTiltAngle": [one.nominal_tilt_deg for one in images],
        "rlnTomoXTilt": [one.x_tilt_deg for one in images],
        "rlnTomoYTilt": [one.y_tilt_deg for one in images],
        "rlnTomoZRot": [one.z_rot_deg for one in images],
        "rlnTomoXShiftAngst": [one.x_shift_angst for one in images],
        "rlnTomoYShiftAngst": [one.y_shift_angst for one in images],
        "rlnMicrographPreExposure": [one.dose_e_per_a2 for one in images],
        "rlnDefocusU": [one.defocus_u_angst or 0.0 for one in images],
        "rlnDefocusV": [one.defocus_v_angst or 0.0 for one in images],
        "rlnDefocusAngle": [one.defocus_angle_deg for one in images],
        "rlnPhaseShift": [one.phase_shift_deg for one in images],
        "rlnCtfMaxResolution": [one.ctf_max_resolution_angst for one in images],
    }
    return {
        "rlnMicrographName": [f"{one.z_index + 1:06d}@{stack}" for one in images],
        **{label: format_measured(values) for label, values in numbers.items()},
        "tomoTiltSeriesURI": [row.s3_omezarr_dir or ""] * len(images),
    }


def _particle_columns(picks: Sequence[AnnotatedPicks], groups: Sequence[str]) -> Columns:
    counts: dict[str, int] = {}
    columns: Columns = {"rlnTomoName": [], "rlnTomoParticleName": [], "rlnOpticsGroup": []}
    for one in picks:
        name, n = one.series.name, len(one)
        start = counts.get(name, 0)
        counts[name] = start + n
        columns["rlnTomoName"] += [name] * n
        columns["rlnTomoParticleName"] += [f"{name}/{number}" for number in range(start + 1, start + n + 1)]
        columns["rlnOpticsGroup"] += [str(groups.index(one.series.optics_group) + 1)] * n
    for labels, values in (
        (CENTRED_LABELS, np.concatenate([one.coordinates_angst for one in picks])),
        (ANGLE_LABELS, np.concatenate([one.angles_deg for one in picks])),
    ):
        columns |= {label: format_measured(values[:, i]) for i, label in enumerate(labels)}
    if any(one.tubes is not None for one in picks):
        columns |= _filament_columns(picks)
    columns[ANNOTATION_LABEL] = [str(one.annotation.id) for one in picks for _ in range(len(one))]
    columns[OBJECT_LABEL] = [
        re.sub(r"\s+", "_", one.annotation.object_name.strip()) for one in picks for _ in range(len(one))
    ]
    return columns


def _filament_columns(picks: Sequence[AnnotatedPicks]) -> Columns:
    """Filaments, numbered through within each tilt series; 0 for particles that are in none."""
    tubes: list[str] = []
    lengths: list[str] = []
    highest: dict[str, int] = {}
    for one in picks:
        if one.tubes is None or one.track_lengths_angst is None:
            tubes += ["0"] * len(one)
            lengths += [format_double(0.0)] * len(one)
            continue
        before = highest.get(one.series.name, 0)
        _, ranks = np.unique(one.tubes, return_inverse=True)
        tubes += [str(before + int(rank) + 1) for rank in ranks]
        lengths += format_measured(one.track_lengths_angst)
        highest[one.series.name] = before + int(ranks.max(initial=-1)) + 1
    return {TUBE_LABEL: tubes, TRACK_LABEL: lengths}
