"""The STAR files that an extraction leaves behind (RELION 5.0.1 behaviour)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from portal_extract.geometry import euler_to_matrix, matrix_to_euler
from portal_extract.model import Bools, Floats, Ints, Project
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.image_headers import with_image_headers
from portal_extract.relion_io.labels import (
    ANGLE_LABELS,
    CENTRED_LABELS,
    ORIGIN_LABELS,
    PIXEL_LABELS,
    SUBTOMOGRAM_LABELS,
)
from portal_extract.relion_io.numbers import format_double, format_doubles, format_flags, parse_numbers
from portal_extract.relion_io.project_star import (
    OPTIMISATION_SET_FILE,
    PARTICLES_FILE,
    STACKS_FLAG,
    TOMOGRAMS_FILE,
    make_folder,
    write_optimisation_set,
    write_particles,
    write_tomogram_tables,
)
from portal_extract.relion_io.star import write_star
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables

TRAJECTORIES_FILE = "motion.star"


@dataclass(frozen=True)
class ExtractedParticles:
    """The particles that an extraction kept, in output order: by tilt series, then in table order.

    Attributes
    ----------
    indices
        ``(K,)`` into the particles of the project.
    visible
        For each particle ``(F,)``: which tilt images see it.
    image_names
        Paths of the stacks (or data volumes) below the output folder.
    weight_names
        Paths of the weight volumes below the output folder; None for 2D stacks.
    coordinates_angst
        ``(K, 3)`` centred coordinates with the origins applied; not used where they are not applied.
    """

    indices: Ints
    visible: tuple[Bools, ...]
    image_names: tuple[str, ...]
    weight_names: tuple[str, ...] | None
    coordinates_angst: Floats


def write_extraction_tables(
    out_dir: Path,
    project: Project,
    options: ExtractOptions,
    extracted: ExtractedParticles,
    *,
    out_prefix: str,
) -> tuple[str, ...]:
    """Write ``particles.star``, ``optimisation_set.star`` and what belongs to them.

    ``motion.star`` is written if there are trajectories and a particle was left out, ``tomograms.star`` and
    ``tilt_series/`` if the project does not come from such files. The optimisation set is written last:
    where it is, everything is.

    Parameters
    ----------
    out_dir
        The output folder; made where it is missing.
    project
        What was extracted from; with its tables.
    options
        How it was extracted.
    extracted
        What was kept.
    out_prefix
        How STAR files name the output folder (:func:`portal_extract.relion_io.paths.output_prefix`).

    Returns
    -------
    Sentences that the user should see.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    tables: ProjectTables = project.tables
    make_folder(out_dir)
    tomograms_file = tables.tomograms_file
    if tomograms_file is None:
        write_tomogram_tables(out_dir, with_image_headers(out_dir, project, out_prefix), out_prefix)
        tomograms_file = out_prefix + TOMOGRAMS_FILE
    trajectories_file = tables.trajectories_file
    trajectories = project.particles.trajectories_angst
    if trajectories is not None and len(extracted.indices) < len(project.particles):
        kept = [(project.particles.names[i], trajectories[i]) for i in extracted.indices.tolist()]
        write_trajectories(out_dir / TRAJECTORIES_FILE, kept)
        trajectories_file = out_prefix + TRAJECTORIES_FILE
    particles = particle_table(project, options, extracted, out_prefix)
    general = {**tables.general, STACKS_FLAG: "1" if options.mode == "stack2d" else "0"}
    write_particles(out_dir / PARTICLES_FILE, general, optics_table(tables.optics, options), particles)
    write_optimisation_set(
        out_dir / OPTIMISATION_SET_FILE,
        {
            "Particles": out_prefix + PARTICLES_FILE,
            "Tomograms": tomograms_file,
            "Trajectories": trajectories_file,
            "Manifolds": tables.manifolds_file,
        },
    )
    if len(particles) and CENTRED_LABELS[0] not in particles:
        return (
            "particles.star has no coordinates: as RELION does, pixel coordinates are dropped, and where the "
            "offsets are not applied no others take their place",
        )
    return ()


def optics_table(optics: StringTable, options: ExtractOptions) -> StringTable:
    """Optics table of the extracted particles: the input's, with what describes the images."""
    volumes = options.mode == "volume3d"
    pixel_sizes = parse_numbers(optics["rlnTomoTiltSeriesPixelSize"])
    n = len(optics)
    table = optics
    for label, values in {
        # RELION flags volumes as premultiplied even without CTF
        "rlnCtfDataAreCtfPremultiplied": ["1" if options.ctf or volumes else "0"] * n,
        "rlnImageDimensionality": ["3" if volumes else "2"] * n,
        "rlnTomoSubtomogramBinning": [format_double(options.binning)] * n,
        "rlnImagePixelSize": format_doubles(options.binning * pixel_sizes),
        "rlnImageSize": [str(options.output_size)] * n,
    }.items():
        table = table.with_column(label, values)
    return table


def particle_table(
    project: Project, options: ExtractOptions, extracted: ExtractedParticles, out_prefix: str
) -> StringTable:
    """Table of the kept particles: input columns in their places, new ones in RELION's order."""
    tables: ProjectTables = project.tables
    stacks = options.mode == "stack2d"
    dropped = [*PIXEL_LABELS, *(["rlnCtfImage"] if stacks else [])]
    table = tables.particles.take(extracted.indices.tolist()).without(dropped)
    if stacks:
        table = table.with_column(
            "rlnTomoVisibleFrames", [format_flags(flags) for flags in extracted.visible]
        )
    table = table.with_column("rlnImageName", [out_prefix + name for name in extracted.image_names])
    if extracted.weight_names is not None:
        table = table.with_column("rlnCtfImage", [out_prefix + name for name in extracted.weight_names])
    if options.offsets_applied:
        table = _with_numbers(table, ORIGIN_LABELS, np.zeros((len(table), 3)))
        table = _with_numbers(table, CENTRED_LABELS, extracted.coordinates_angst)
    if options.apply_orientations:
        chosen = project.particles.subtomogram_angles_deg[extracted.indices]
        turned = euler_to_matrix(chosen) @ euler_to_matrix(project.particles.angles_deg[extracted.indices])
        table = _with_numbers(table, SUBTOMOGRAM_LABELS, matrix_to_euler(turned))
        table = _with_numbers(table, ANGLE_LABELS, np.zeros((len(table), 3)))
    return table


def _with_numbers(table: StringTable, labels: Sequence[str], values: Floats) -> StringTable:
    for label, column in zip(labels, values.T, strict=True):
        table = table.with_column(label, format_doubles(column))
    return table


def write_trajectories(path: Path, trajectories: Sequence[tuple[str, Floats]]) -> None:
    """Write a motion file: the name and the shifts ``(F, 3)`` in Angstrom of each particle."""
    blocks: list[tuple[str, dict[str, str] | StringTable]] = [
        ("general", {"rlnParticleNumber": str(len(trajectories))})
    ]
    for name, shifts in trajectories:
        columns = dict(zip(ORIGIN_LABELS, (format_doubles(column) for column in shifts.T), strict=True))
        blocks.append((name, StringTable.of(columns)))
    write_star(path, blocks)
