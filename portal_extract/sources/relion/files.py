"""STAR files of a project to its tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from portal_extract.errors import StarFileError, UsageError
from portal_extract.model import Floats, Project
from portal_extract.relion_io.labels import ORIGIN_LABELS
from portal_extract.relion_io.numbers import parse_numbers
from portal_extract.relion_io.star import StarBlock, StarFile, read_star
from portal_extract.relion_io.string_table import StringTable
from portal_extract.relion_io.tables import ProjectTables
from portal_extract.sources.relion.columns import Problems, names
from portal_extract.sources.relion.images import FileImages
from portal_extract.sources.relion.project import TableNames, Trajectories, build_project
from portal_extract.sources.relion.tilts import ImageStackFactory

if TYPE_CHECKING:
    from portal_extract.images.reader import Reader


@dataclass(frozen=True)
class ProjectFiles:
    """Files of a RELION project, as the user gives them.

    Attributes
    ----------
    particles, tomograms, trajectories
        STAR files; each takes precedence over the optimisation set.
    optimisation_set
        STAR file that names the others.
    tiltseries_relative_dir
        Folder that the paths in the tomogram and per-tilt tables are relative to; None for the current
        directory (RELION's project directory).
    storage
        Options for remote stores of images, e.g. ``{"endpoint_url": ...}`` for S3.
    requests_in_flight
        Concurrent requests to remote stores, for the headers of images, where no reader is given that bounds
        them.
    """

    particles: str | None = None
    tomograms: str | None = None
    trajectories: str | None = None
    optimisation_set: str | None = None
    tiltseries_relative_dir: str | None = None
    storage: Mapping[str, Any] = field(default_factory=dict)
    requests_in_flight: int = 32


def read_project(
    files: ProjectFiles,
    images: ImageStackFactory | None = None,
    reader: Reader | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Project:
    """Read a RELION 5 (or 4) project: all tables, and the headers of the images that particles need.

    Tilt series without particles keep their place; their images are not looked at, so they have size (0, 0)
    and NaN projections.

    Parameters
    ----------
    files
        Where things are. Paths in STAR files are relative to the current directory, not to the file.
    images
        Finds the images of a tilt series; None for the files that the tables name.
    reader
        Looks at remote images, and keeps the connections and what was found for the work to come; None for
        one that is closed in the end.
    meanwhile
        Called while the answers of a remote store are on their way; perhaps several times, in other threads.

    Raises
    ------
    UsageError
        Neither the options nor the optimisation set name particles and tomograms.
    StarFileError
        A file, block, column or row is missing or wrong; the message has all that was found.
    ImageFormatError, ReadError
        An image file is missing, truncated or of an unknown kind.
    """
    chosen, manifolds = resolve_optimisation_set(files)
    if chosen.particles is None or chosen.tomograms is None:
        raise UsageError(
            "no particles or no tomograms: give a particle and a tomogram STAR file, or an optimisation set "
            "with both"
        )
    particle_file = read_star(chosen.particles)
    tomograms, tilts, tilt_files = read_tomograms(chosen.tomograms, chosen.tiltseries_relative_dir)
    tables = ProjectTables(
        particles=particle_file.block("particles").table(),
        optics=_optional_table(particle_file, "optics"),
        general=_read_general(particle_file),
        tomograms=tomograms,
        tilts=tilts,
        tomograms_file=chosen.tomograms,
        trajectories_file=chosen.trajectories,
        manifolds_file=manifolds,
    )
    trajectories = None
    if chosen.trajectories is not None:
        trajectories = read_trajectories(chosen.trajectories, len(tables.particles))
    called = TableNames(chosen.particles, chosen.tomograms, chosen.trajectories or "", tilt_files)
    if images is not None:
        return build_project(tables, images, trajectories=trajectories, table_names=called)
    from portal_extract.images.options import ReadOptions
    from portal_extract.images.reader import open_reader

    with ExitStack() as stack:
        if reader is None:
            reading = ReadOptions(requests_in_flight=chosen.requests_in_flight)
            reader = stack.enter_context(open_reader(reading))
        named = FileImages(reader, chosen.tiltseries_relative_dir, chosen.storage, meanwhile)
        return build_project(tables, named, trajectories=trajectories, table_names=called)


def resolve_optimisation_set(files: ProjectFiles) -> tuple[ProjectFiles, str | None]:
    """Fill in from the optimisation set what is not given, and return its manifolds file too.

    Raises
    ------
    StarFileError
        The optimisation set cannot be read.
    """
    if files.optimisation_set is None:
        return files, None
    star = read_star(files.optimisation_set)
    block = next(iter(star.blocks.values()))
    values = block.values()

    def named(kind: str) -> str | None:
        return values.get(f"rlnTomo{kind}File") or None

    chosen = replace(
        files,
        particles=files.particles or named("Particles"),
        tomograms=files.tomograms or named("Tomograms"),
        trajectories=files.trajectories or named("Trajectories"),
    )
    if chosen.particles is None or chosen.tomograms is None:
        missing = [
            f"rlnTomo{kind}File"
            for kind, path in (("Particles", chosen.particles), ("Tomograms", chosen.tomograms))
            if path is None
        ]
        raise StarFileError(f"{block.where}: {' and '.join(missing)} missing or empty")
    return chosen, named("Manifolds")


def read_tomograms(
    path: str, relative_dir: str | None
) -> tuple[StringTable, dict[str, StringTable], dict[str, str]]:
    """Read the global table and all per-tilt tables.

    Without the column ``rlnTomoTiltSeriesStarFile`` (RELION 4) the per-tilt tables are in the same file.

    Parameters
    ----------
    path
        ``tomograms.star``.
    relative_dir
        Folder that the paths in it are relative to; None for the current directory.

    Returns
    -------
    The global table, the per-tilt tables by tomogram name, and the file of each.

    Raises
    ------
    StarFileError
        All missing files and blocks.
    """
    star = read_star(path)
    block = star.block("global")
    tomograms, problems = block.table(), Problems()
    tilts: dict[str, StringTable] = {}
    files: dict[str, str] = {}
    if "rlnTomoName" not in tomograms:
        raise StarFileError(f"{block.where}: column rlnTomoName missing")
    named = tomograms["rlnTomoName"]
    listed = [path] * len(named)
    separate = "rlnTomoTiltSeriesStarFile" in tomograms
    if separate:
        listed = [_join(relative_dir, file) for file in tomograms["rlnTomoTiltSeriesStarFile"]]
    read: dict[str, StarFile] = {path: star}
    for row, (name, file) in enumerate(zip(named, listed, strict=True), start=1):
        try:
            if file not in read:
                read[file] = read_star(file)
            tilts[name], files[name] = read[file].block(name).table(), file
        except StarFileError as error:
            problems.add(f"{error} (needed by {block.where}, row {row}{_advice(separate, path, file)})")
    problems.raise_if_any()
    return tomograms, tilts, files


def _join(folder: str | None, path: str) -> str:
    return os.path.join(folder, path) if folder else path


def _advice(separate: bool, tomograms: str, file: str) -> str:
    """Say what to do about a per-tilt table that is not there."""
    if not separate:
        return "; without rlnTomoTiltSeriesStarFile the per-tilt tables must be in the same file (RELION 4)"
    if Path(file).exists() or os.path.isabs(file):
        return ""
    for folder in Path(os.path.abspath(tomograms)).parents:
        if (folder / file).exists():
            return f"; {folder / file} exists: give {folder} as the folder that tilt series are relative to"
    return "; paths are relative to the current directory unless another folder is given"


def _optional_table(star: StarFile, name: str) -> StringTable:
    return star.blocks[name].table() if name in star.blocks else StringTable.of({})


def _read_general(star: StarFile) -> dict[str, str]:
    if "general" not in star.blocks:
        return {}
    block = star.blocks["general"]
    values = block.values()
    if "rlnTomoSubTomosAre2DStacks" not in values:
        raise StarFileError(f"{block.where}: rlnTomoSubTomosAre2DStacks missing")
    return values


def read_trajectories(path: str, n_particles: int) -> Trajectories:
    """Read the trajectories of a motion file.

    Parameters
    ----------
    path
        ``motion.star``.
    n_particles
        Number of particles that must have one.

    Returns
    -------
    Shifts ``(F, 3)`` in Angstrom by particle name; in file order if the first particle block is named ``0``
    (RELION 5.0.1 behaviour).

    Raises
    ------
    StarFileError
        A block or column is missing, a shift is no number, or there are fewer trajectories than particles.
    """
    star = read_star(path)
    general = star.block("general").values()
    declared = parse_numbers([general.get("rlnParticleNumber", "")])[0]
    problems = Problems()
    if not declared >= n_particles:
        given = general.get("rlnParticleNumber", "missing")
        problems.add(
            f"{path}, data_general: rlnParticleNumber is {given}, but there are {n_particles} particles: "
            "the file belongs to another particle set"
        )
    found = {name: _shifts(block, problems) for name, block in star.blocks.items() if name != "general"}
    problems.raise_if_any()
    return tuple(found.values()) if next(iter(found), None) == "0" else found


def _shifts(block: StarBlock, problems: Problems) -> Floats:
    missing = [label for label in ORIGIN_LABELS if label not in block.columns]
    if missing:
        problems.add(f"{block.where}: column {names(missing)} missing")
        return np.zeros((0, 3))
    shifts = np.stack([parse_numbers(block.columns[label]) for label in ORIGIN_LABELS], axis=1)
    bad = np.flatnonzero(~np.isfinite(shifts).all(axis=1))
    if len(bad):
        problems.add(f"{block.where}: a shift is no finite number in row {bad[0] + 1}")
    return shifts
