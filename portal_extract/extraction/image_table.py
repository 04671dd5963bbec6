"""``images.star``: one row for each image, for programs that take single images.

RELION 5's tomography jobs want a file of its own for each particle. What is one stack for a tilt series is
described image by image instead, in the way of RELION's single-particle files (RELION 3.1 and later): image
``n`` of a stack is ``n@stack``, its angles are those of the particle as that tilt image sees it, and its
defocus is that at the particle's depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from portal_extract.errors import UnsupportedError
from portal_extract.extraction.views import Views, find_views
from portal_extract.geometry import euler_to_matrix, matrix_to_euler
from portal_extract.model import Floats, Ints, Project
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.extraction_star import optics_table
from portal_extract.relion_io.labels import (
    ANGLE_LABELS,
    CENTRED_LABELS,
    ORIGIN_LABELS,
    PIXEL_LABELS,
    SUBTOMOGRAM_LABELS,
)
from portal_extract.relion_io.numbers import format_doubles, parse_numbers
from portal_extract.relion_io.star import write_star_in_parts
from portal_extract.relion_io.string_table import StringTable

IMAGES_FILE = "images.star"
#: columns of particles that say nothing, or something else, of a single image
_NOT_OF_IMAGES = (
    *PIXEL_LABELS,
    *SUBTOMOGRAM_LABELS,
    ORIGIN_LABELS[2],
    "rlnAngleTiltPrior",
    "rlnAnglePsiPrior",
    "rlnAngleRotPrior",
    "rlnCtfImage",
    "rlnTomoVisibleFrames",
)
_OPTICS = {
    "rlnVoltage": "voltage_kv",
    "rlnSphericalAberration": "spherical_aberration_mm",
    "rlnAmplitudeContrast": "amplitude_contrast",
}


def write_image_table(
    out_dir: Path,
    project: Project,
    options: ExtractOptions,
    kept: Sequence[Ints],
    names: Sequence[str],
    out_prefix: str,
) -> None:
    """Write ``images.star``, tilt series after tilt series.

    Parameters
    ----------
    out_dir
        The output folder.
    project, options
        What was extracted, and how.
    kept
        For each tilt series, indices of the particles that are good.
    names
        For each particle, the stack of its tilt series below the output folder.
    out_prefix
        How STAR files name the output folder.

    Raises
    ------
    OutputError
        The disk refuses.
    """

    def parts() -> Iterator[StringTable]:
        for index, particles in enumerate(kept):
            if len(particles):
                views = find_views(project, index, options)
                yield image_rows(project, options, views, particles, out_prefix + names[particles[0]])

    optics = optics_table(project.tables.optics, options)
    write_star_in_parts(out_dir / IMAGES_FILE, [("optics", optics)], "particles", parts())


def check_image_table(project: Project) -> None:
    """Refuse tilt series whose optics are not those of the optics group that their images would name.

    Raises
    ------
    UnsupportedError
        Naming each of them.
    """
    optics, problems = project.tables.optics, []
    for label, attribute in _OPTICS.items():
        values = parse_numbers(optics[label]) if label in optics else None
        for series, particles in zip(project.tilt_series, project.particles_of, strict=True):
            for group in np.unique(project.particles.optics_group[particles]).tolist():
                of_group = None if values is None else float(values[group])
                of_series = float(getattr(series, attribute))
                if of_group is None or abs(of_group - of_series) > 1e-6 * max(1.0, abs(of_series)):
                    problems.append(
                        f"--stack-layout tomogram: {series.name} has {label} {of_series:g}, its optics group "
                        f"{group + 1} {'none' if of_group is None else f'{of_group:g}'}: a table of images "
                        "has one for both; give the tilt series an optics group of its own"
                    )
    if problems:
        raise UnsupportedError(problems)


def image_rows(
    project: Project, options: ExtractOptions, views: Views, good: Ints, stack: str
) -> StringTable:
    """Describe the images of one tilt series.

    Parameters
    ----------
    project, options
        What was extracted, and how.
    views
        Of the tilt series.
    good
        Indices of the particles whose images are good; the others are left out.
    stack
        How the STAR file names the stack.

    Returns
    -------
    A table of strings, one row for each image.
    """
    numbers = np.flatnonzero(np.isin(views.kept[views.particle], good))
    local, tilt = views.particle[numbers], views.tilt[numbers]
    indices = views.kept[local]
    series, particles = views.series, project.particles
    table = project.tables.particles.without(_NOT_OF_IMAGES).take(indices.tolist())
    columns = {label: table[label] for label in table.labels}
    columns["rlnMicrographName"] = [f"{series.name}_{f + 1:03d}" for f in tilt.tolist()]
    columns["rlnImageName"] = [f"{n + 1:06d}@{stack}" for n in numbers.tolist()]
    frames = euler_to_matrix(particles.subtomogram_angles_deg[indices])
    projections = series.projections[tilt, :3, :3]
    poses = projections @ frames @ euler_to_matrix(particles.angles_deg[indices])
    _put(columns, ANGLE_LABELS, matrix_to_euler(poses))
    origins = np.zeros((len(numbers), 3))
    if not options.offsets_applied:
        origins = np.einsum("nij,njk,nk->ni", projections, frames, particles.origins_angst[indices])
    _put(columns, ORIGIN_LABELS[:2], origins[:, :2])
    if options.offsets_applied:
        _put(columns, CENTRED_LABELS, views.coordinates_angst[local])
    # the defocus of the CTF that the images were, or were not, multiplied by (RELION 5.0.1 behaviour)
    depth = series.handedness * series.defocus_slope * series.pixel_size_angst * views.depth_px[numbers]
    of_tilts = {
        "rlnDefocusU": series.defocus_u_angst[tilt] + depth,
        "rlnDefocusV": series.defocus_v_angst[tilt] + depth,
        "rlnDefocusAngle": series.defocus_angle_deg[tilt],
        "rlnPhaseShift": series.phase_shift_deg[tilt],
        "rlnCtfBfactor": series.ctf_bfactor_a2[tilt],
        "rlnCtfScalefactor": series.ctf_scale[tilt],
        "rlnMicrographPreExposure": series.dose_e_per_a2[tilt],
    }
    _put(columns, tuple(of_tilts), np.stack(list(of_tilts.values()), axis=1))
    return StringTable.of(columns)


def _put(columns: dict[str, list[str]], labels: Sequence[str], values: Floats) -> None:
    for label, column in zip(labels, values.T, strict=True):
        columns[label] = format_doubles(column)
