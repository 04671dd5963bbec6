"""The tables of a project as STAR files that RELION and this package read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from portal_extract.errors import OutputError
from portal_extract.relion_io.paths import check_tomogram_names
from portal_extract.relion_io.star import write_star
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables

PARTICLES_FILE = "particles.star"
TOMOGRAMS_FILE = "tomograms.star"
OPTIMISATION_SET_FILE = "optimisation_set.star"
TILT_SERIES_FOLDER = "tilt_series"
STACKS_FLAG = "rlnTomoSubTomosAre2DStacks"


def write_tomogram_tables(out_dir: Path, tables: ProjectTables, prefix: str) -> None:
    """Write ``tomograms.star`` and ``tilt_series/NAME.star``.

    Parameters
    ----------
    out_dir
        The output folder; made where it is missing.
    tables
        The tables; ``rlnTomoTiltSeriesStarFile`` is set anew.
    prefix
        How STAR files name the output folder (:func:`portal_extract.relion_io.paths.output_prefix`).

    Raises
    ------
    UnsupportedError
        A tomogram name cannot be a path.
    OutputError
        The disk refuses.
    """
    names = tables.tomograms["rlnTomoName"]
    check_tomogram_names(names)
    for name in names:
        path = out_dir / TILT_SERIES_FOLDER / f"{name}.star"
        make_folder(path.parent)
        write_star(path, [(name, tables.tilts[name])])
    files = [f"{prefix}{TILT_SERIES_FOLDER}/{name}.star" for name in names]
    tomograms = tables.tomograms.with_column("rlnTomoTiltSeriesStarFile", files)
    write_star(out_dir / TOMOGRAMS_FILE, [("global", tomograms)])


def write_project_tables(out_dir: Path, tables: ProjectTables, prefix: str) -> None:
    """Write a whole project: tomograms, tilt series, particles and the optimisation set.

    What is written describes particles that are yet to be extracted.

    Parameters
    ----------
    out_dir, tables, prefix
        As for :func:`write_tomogram_tables`; the particle table must have its completed columns.

    Raises
    ------
    UnsupportedError, OutputError
        As for :func:`write_tomogram_tables`.
    """
    make_folder(out_dir)
    write_tomogram_tables(out_dir, tables, prefix)
    general = {STACKS_FLAG: "0", **tables.general}
    write_particles(out_dir / PARTICLES_FILE, general, tables.optics, tables.particles)
    paths = {"Particles": prefix + PARTICLES_FILE, "Tomograms": prefix + TOMOGRAMS_FILE}
    write_optimisation_set(out_dir / OPTIMISATION_SET_FILE, paths)


def write_particles(
    path: Path, general: Mapping[str, str], optics: StringTable, particles: StringTable
) -> None:
    """Write a particle file with its three blocks."""
    write_star(path, [("general", general), ("optics", optics), ("particles", particles)])


def write_optimisation_set(path: Path, files: Mapping[str, str | None]) -> None:
    """Write an optimisation set.

    Parameters
    ----------
    path
        The file.
    files
        Paths of ``Particles``, ``Tomograms``, ``Trajectories``, ``Manifolds``; empty ones are left out.
    """
    write_star(path, [("", {f"rlnTomo{kind}File": file for kind, file in files.items() if file})])


def make_folder(path: Path) -> None:
    """Make a folder and those above it.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error.strerror or error}") from error
