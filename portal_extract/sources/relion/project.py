"""Tables to a project: everything that RELION derives from them, and nothing of pixels."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np

from portal_extract.errors import PortalExtractError, ReadError, SourceError, join_problems
from portal_extract.model import Floats, ImageStack, Ints, Project, TiltSeries
from portal_extract.relion_io.tables import ProjectTables
from portal_extract.sources.relion.columns import Columns, Problems, names
from portal_extract.sources.relion.particles import (
    check_optics_agree,
    complete_names,
    complete_optics,
    read_optics_groups,
    read_particles,
    tilt_series_of,
    used_tilt_series,
)
from portal_extract.sources.relion.tilts import (
    GlobalColumns,
    ImageStackFactory,
    TomogramTables,
    build_tilt_series,
    read_global_columns,
)

#: image headers looked at concurrently
_HEADERS_IN_FLIGHT = 16

#: trajectories by particle name, or in table order where they have no names
Trajectories = Mapping[str, Floats] | tuple[Floats, ...]


@dataclass(frozen=True)
class TableNames:
    """How messages name the tables.

    Attributes
    ----------
    particles, tomograms, trajectories
        Name of the file (or of what stands for it).
    tilts
        File of each per-tilt table, by ``rlnTomoName``; the tomogram file where it is not told.
    """

    particles: str = "particles.star"
    tomograms: str = "tomograms.star"
    trajectories: str = "motion.star"
    tilts: Mapping[str, str] = field(default_factory=dict)

    def of_tilts(self, name: str) -> str:
        """File and block of a per-tilt table."""
        return f"{self.tilts.get(name, self.tomograms)}, data_{name}"


def build_project(
    tables: ProjectTables,
    image_stack_factory: ImageStackFactory,
    *,
    trajectories: Trajectories | None = None,
    table_names: TableNames | None = None,
) -> Project:
    """Build a project from its tables (RELION 5.0.1 behaviour).

    A missing optics table, missing particle names and optics group numbers are made, and are in the
    tables of the result.

    Parameters
    ----------
    tables
        As read, or as made from another source; ``tilts`` must have every tomogram.
    image_stack_factory
        Finds the images of a tilt series. Called from several threads, only for tilt series that have
        particles; the others get an image stack of size (0, 0) and NaN projections.
    trajectories
        Shifts ``(F, 3)`` in Angstrom of each particle.
    table_names
        How messages name the tables.

    Raises
    ------
    StarFileError
        Columns or rows are missing or wrong; all problems found are in the message.
    ReadError
        From ``image_stack_factory``.
    """
    called = table_names or TableNames()
    problems = Problems()
    tomograms = Columns(tables.tomograms, f"{called.tomograms}, data_global", problems)
    particles = Columns(tables.particles, f"{called.particles}, data_particles", problems)
    if not len(particles):
        problems.add(f"{particles.where}: there are no particles")
    known = read_global_columns(tomograms)
    tilt_series = tilt_series_of(particles, known)
    problems.raise_if_any()

    complete, optics_table = complete_optics(tables.particles, tables.optics, tables.tomograms, tilt_series)
    tables = replace(tables, particles=complete_names(complete), optics=optics_table)
    particles = replace(particles, table=tables.particles)
    optics = Columns(optics_table, f"{called.particles}, data_optics", problems)
    groups = read_optics_groups(optics)
    particle_set = read_particles(particles, tilt_series, len(groups))
    problems.raise_if_any()
    check_optics_agree(optics, known, particle_set.optics_group, tilt_series)

    series = _all_tilt_series(tables, known, tilt_series, image_stack_factory, called, problems)
    if trajectories is not None and not problems.found:
        images = [series[t].n_tilts for t in tilt_series.tolist()]
        found = _match_trajectories(trajectories, particle_set.names, images, called.trajectories, problems)
        particle_set = replace(particle_set, trajectories_angst=found)
    problems.raise_if_any()
    return Project(series, groups, particle_set, tables)


def _all_tilt_series(
    tables: ProjectTables,
    known: GlobalColumns,
    tilt_series: Ints,
    factory: ImageStackFactory,
    called: TableNames,
    problems: Problems,
) -> tuple[TiltSeries, ...]:
    absent = [name for name in known.names if name not in tables.tilts]
    if absent:
        problems.add(f"{called.tomograms}: no per-tilt table for {names(absent)}")
        problems.raise_if_any()
    used = used_tilt_series(tilt_series, len(known.names))
    wanted = [
        TomogramTables(
            name,
            tables.tomograms.row(t),
            tables.tilts[name],
            f"{called.tomograms}, data_global, row {t + 1} ({name})",
            called.of_tilts(name),
        )
        for t, name in enumerate(known.names)
        if used[t]
    ]
    stacks, unreadable = _find_images(wanted, factory, problems)
    tilts = [Columns(tables.tilts[name], called.of_tilts(name), problems) for name in known.names]
    built = [build_tilt_series(t, known, tilts[t], stacks.get(name)) for t, name in enumerate(known.names)]
    if problems.found:
        for error in unreadable:
            problems.add(str(error))
    else:
        _raise_together(unreadable)
    return tuple(built)


def _find_images(
    wanted: list[TomogramTables], factory: ImageStackFactory, problems: Problems
) -> tuple[dict[str, ImageStack], list[PortalExtractError]]:
    """Images of each tilt series, and the errors of those that cannot be read.

    What is wrong with the tables joins the problems. A tilt series without images gets empty ones, so that
    its table is looked at all the same before anything is raised.
    """

    def attempt(tomogram: TomogramTables) -> ImageStack | PortalExtractError:
        try:
            return factory(tomogram)
        except PortalExtractError as error:
            return error

    with ThreadPoolExecutor(_HEADERS_IN_FLIGHT) as pool:
        results = list(pool.map(attempt, wanted))
    found: dict[str, ImageStack] = {}
    unreadable: list[PortalExtractError] = []
    for tomogram, result in zip(wanted, results, strict=True):
        if isinstance(result, ImageStack):
            found[tomogram.name] = result
            continue
        n = len(tomogram.tilts)
        found[tomogram.name] = ImageStack(("",) * n, np.arange(n, dtype=np.int64), (0, 0))
        if isinstance(result, SourceError):
            problems.add(str(result))
        else:
            unreadable.append(result)
    return found, unreadable


def _raise_together(errors: list[PortalExtractError]) -> None:
    """Raise one error as it is; several reading errors as one that lists them."""
    if not errors:
        return
    kinds = {type(error) for error in errors}
    if len(errors) == 1 or not all(isinstance(error, ReadError) for error in errors):
        raise errors[0]
    kind = kinds.pop() if len(kinds) == 1 else ReadError
    try:
        together = kind(join_problems(tuple(dict.fromkeys(str(error) for error in errors))))
    except TypeError:  # a kind with arguments of its own
        raise errors[0] from None
    raise together


def _match_trajectories(
    trajectories: Trajectories,
    particle_names: tuple[str, ...],
    n_images: list[int],
    file: str,
    problems: Problems,
) -> tuple[Floats, ...]:
    """Trajectory of each particle, ``(F, 3)``; ``n_images`` is the F that each must have."""
    if isinstance(trajectories, Mapping):
        absent = [name for name in particle_names if name not in trajectories]
        if absent:
            problems.add(f"{file}: no trajectory for {len(absent)} particles: {names(absent)}")
            return ()
        found = tuple(trajectories[name] for name in particle_names)
    else:
        if len(trajectories) < len(particle_names):
            problems.add(f"{file}: {len(trajectories)} trajectories for {len(particle_names)} particles")
            return ()
        found = trajectories[: len(particle_names)]
    wrong = [i for i, shifts in enumerate(found) if len(shifts) != n_images[i]]
    for i in wrong[:5]:
        problems.add(
            f"{file}: {len(found[i])} rows for particle {particle_names[i]} (row {i + 1} of the particle "
            f"table), but its tilt series has {n_images[i]} images"
        )
    if len(wrong) > 5:
        problems.add(f"{file}: and {len(wrong) - 5} more trajectories of the wrong length")
    return found
