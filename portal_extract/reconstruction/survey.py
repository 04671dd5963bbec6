"""What will be averaged, before a pixel is read; and what decides the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portal_extract.errors import IneligibleError
from portal_extract.model import Ints, Project
from portal_extract.options import RunOptions
from portal_extract.reconstruction.budget import Budget, plan_memory
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import (
    Part,
    count_halves,
    half_of,
    make_parts,
    part_views,
    stored_frames,
)
from portal_extract.reconstruction.stacks import ExtractedStacks, check_stacks
from portal_extract.reconstruction.summary import HalfSet
from portal_extract.running.identity import digest, project_identity
from portal_extract.running.schedulers import n_workers
from portal_extract.running.units import UnitResult


@dataclass(frozen=True)
class Survey:
    """What will be averaged.

    Attributes
    ----------
    parts
        One for each tilt series that has particles.
    n_halves
        Number of half sets; 1 if the particles are not divided.
    half
        ``(N,)`` half set of each particle, from 0.
    n_views
        ``(N,)`` images of each particle that count.
    map_pixel_angst
        Pixel size of the maps.
    budget
        Division of the memory.
    """

    parts: tuple[Part, ...]
    n_halves: int
    half: Ints
    n_views: Ints
    map_pixel_angst: float
    budget: Budget

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of particles that have no image, by reason."""
        n = int(np.count_nonzero(self.n_views == 0))
        return {"outside of every tilt image that counts": n} if n else {}

    def half_sets(self, results: Sequence[UnitResult] | None = None) -> tuple[HalfSet, ...]:
        """Count what goes into each half set; or what went in, according to results."""
        there = np.ones(len(self.half), dtype=bool)
        if results is not None:
            there[:] = False
            for result in results:
                there[list(result.particles)] = True
        used = np.where(there, self.n_views, 0)
        return tuple(
            HalfSet(int(np.count_nonzero(used[self.half == h])), int(used[self.half == h].sum()))
            for h in range(self.n_halves)
        )


def survey_reconstruction(
    project: Project, options: ReconstructOptions, run: RunOptions, stacks: ExtractedStacks | None = None
) -> Survey:
    """Find what will be averaged, and whether there is memory for it.

    Parameters
    ----------
    project
        With its half sets.
    options, run
        Of the job.
    stacks
        Images that were extracted before; None for tilt images.

    Raises
    ------
    IneligibleError
        No image at all, or none in a half set.
    ImageFormatError
        Stacks that are missing.
    MemoryBudgetError
        Not enough memory.
    """
    n_halves = count_halves(project.particles)
    budget = check_memory(project, options, n_halves, run)
    stored = stored_frames(project) if stacks is not None or options.visible_frames == "stored" else None
    if stacks is not None and stored is not None:
        check_stacks(stacks.images, np.array([flags.sum() for flags in stored]), stacks.box_size)
    units = [(index, members) for index, members in enumerate(project.particles_of) if len(members)]
    parts = make_parts(project, units, stored, None if stacks is None else stacks.images)
    n_views = np.zeros(len(project.particles), dtype=np.int64)
    for part in parts:
        n_views[list(part.particles)] = part_views(part, options).stack_lengths
    survey = Survey(
        parts=tuple(parts),
        n_halves=n_halves,
        half=half_of(project.particles, n_halves),
        n_views=n_views,
        map_pixel_angst=options.binning * project.tilt_series[0].pixel_size_angst,
        budget=budget,
    )
    refuse_hopeless(survey, options)
    return survey


def check_memory(project: Project, options: ReconstructOptions, n_halves: int, run: RunOptions) -> Budget:
    """Divide the memory of a process, as it will be for the largest tilt series.

    Raises
    ------
    MemoryBudgetError
        Not enough memory.
    """
    n_tilts = max(series.n_tilts for series in project.tilt_series)
    return plan_memory(options, n_halves, n_tilts, run, n_workers(run))


def refuse_hopeless(survey: Survey, options: ReconstructOptions) -> None:
    """Raise if a map would be empty.

    Raises
    ------
    IneligibleError
        No image, or none of a half set.
    """
    half_sets = survey.half_sets()
    if all(half.n_views for half in half_sets):
        return
    which = "no particle of one half set is" if any(h.n_views for h in half_sets) else "no particle is"
    raise IneligibleError(
        f"{which} in any tilt image that counts: a particle must stay {options.visibility_radius_px:g} "
        "pixels from the edges (half of --box-size); check coordinates, --max-dose and --visible-frames"
    )


def reconstruction_identity(
    project: Project, options: ReconstructOptions, stacks: ExtractedStacks | None
) -> dict[str, dict[str, Any]]:
    """Identify options and inputs: what decides the maps."""
    identity = project_identity(project, options)
    symmetry = Path(options.symmetry)
    if symmetry.is_file():
        identity["inputs"]["symmetry file"] = digest(symmetry.read_text())
    if stacks is not None:
        files = [(path, *_status(path)) for path in stacks.images.paths]
        identity["inputs"]["stacks"] = digest([files, stacks.images.premultiplied])
    return identity


def _status(path: str) -> tuple[int, int]:
    """Size and time of a file."""
    try:
        status = Path(path).stat()
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns
