"""What is averaged: parts of a project, half sets, and the views that count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from portal_extract.errors import StarFileError, UnsupportedError, UsageError
from portal_extract.extraction.views import Views, Visibility, find_views, positions_px
from portal_extract.geometry import euler_to_matrix
from portal_extract.images.boxes import Boxes
from portal_extract.model import Bools, Floats, Ints, ParticleSet, Project
from portal_extract.options import ExtractOptions
from portal_extract.reconstruction.fsc import draw_subsets
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.relion_io.numbers import parse_vector

SUBSET_LABEL, FRAMES_LABEL = "rlnRandomSubset", "rlnTomoVisibleFrames"


@dataclass(frozen=True)
class StackImages:
    """Images that were extracted before.

    Attributes
    ----------
    paths
        Stack of each particle of the part.
    premultiplied
        Whether the images are multiplied by CTF and dose weights, for each particle.
    """

    paths: tuple[str, ...]
    premultiplied: Bools


@dataclass(frozen=True)
class Part:
    """Some particles of one tilt series.

    Attributes
    ----------
    particles
        Their indices in the whole project.
    project
        Of this tilt series and these particles alone.
    stored
        For each particle ``(F,)``: the tilt images that ``rlnTomoVisibleFrames`` names; None to use all.
    stacks
        Where the images are if not in the tilt series.
    """

    particles: tuple[int, ...]
    project: Project
    stored: tuple[Bools, ...] | None = None
    stacks: StackImages | None = None

    @property
    def name(self) -> str:
        """Name of the tilt series."""
        return self.project.tilt_series[0].name


def with_half_sets(project: Project, options: ReconstructOptions, replace_subsets: bool = False) -> Project:
    """Draw half sets where the options say so; check those that are there.

    Parameters
    ----------
    project
        The whole project.
    options
        Whether to draw, and the seed.
    replace_subsets
        Draw although the particle table has half sets.

    Returns
    -------
    The project; where half sets were drawn its particle table has them too.

    Raises
    ------
    UsageError
        Half sets are there and others are to be drawn.
    UnsupportedError
        Values of ``rlnRandomSubset`` other than 1 and 2.
    """
    particles = project.particles
    if options.make_subsets:
        if particles.random_subset is not None and not replace_subsets:
            raise UsageError(
                f"the particle table has half sets ({SUBSET_LABEL}): leave --make-subsets out to use them, "
                "or add --replace-subsets to draw others"
            )
        drawn = draw_subsets(len(particles), options.seed)
        tables = project.tables
        if tables is not None:
            column = tables.particles.with_column(SUBSET_LABEL, [str(half) for half in drawn.tolist()])
            tables = replace(tables, particles=column)
        return replace(project, particles=replace(particles, random_subset=drawn), tables=tables)
    if particles.random_subset is not None:
        bad = np.flatnonzero(~np.isin(particles.random_subset, (1, 2)))
        if len(bad):
            raise UnsupportedError(
                [
                    f"particle table, row {bad[0] + 1}: {SUBSET_LABEL} is "
                    f"{particles.random_subset[bad[0]]} ({len(bad)} such rows); half sets are 1 and 2, "
                    "--make-subsets --replace-subsets draws them"
                ]
            )
    return project


def count_halves(particles: ParticleSet) -> int:
    """Give the number of half sets: 2, or 1 if the particles are not divided."""
    subset = particles.random_subset
    return 2 if subset is not None and len(np.unique(subset)) == 2 else 1


def half_of(particles: ParticleSet, n_halves: int) -> Ints:
    """Half set of each particle, ``(N,)`` from 0."""
    if n_halves == 1 or particles.random_subset is None:
        return np.zeros(len(particles), dtype=np.int64)
    return np.asarray(particles.random_subset - 1, dtype=np.int64)


def stored_frames(project: Project) -> tuple[Bools, ...]:
    """Tilt images that the particle table names as visible, for each particle.

    Raises
    ------
    StarFileError
        The table has no ``rlnTomoVisibleFrames``, or one of another length than the tilt series.
    """
    table = None if project.tables is None else project.tables.particles
    if table is None or FRAMES_LABEL not in table:
        raise StarFileError(
            f"the particle table has no {FRAMES_LABEL}: use --visible-frames geometric, or the "
            "particles.star of an extraction as 2D stacks"
        )
    found = []
    for row, text in enumerate(table[FRAMES_LABEL]):
        flags = parse_vector(text)
        n_tilts = project.tilt_series[project.particles.tilt_series[row]].n_tilts
        if flags is None or len(flags) != n_tilts:
            n = "no list" if flags is None else f"a list of {len(flags)}"
            raise StarFileError(
                f"particle table, row {row + 1} ({project.particles.names[row]}): {FRAMES_LABEL} is {n}, and "
                f"the tilt series has {n_tilts} images; the tables do not belong together"
            )
        found.append(flags != 0)
    return tuple(found)


def make_parts(
    project: Project,
    units: Sequence[tuple[int, Ints]],
    stored: Sequence[Bools] | None,
    stacks: StackImages | None,
) -> list[Part]:
    """Make the parts of units: a tilt series and some of its particles each."""
    return [
        Part(
            particles=tuple(particles.tolist()),
            project=project.part(index, particles),
            stored=None if stored is None else tuple(stored[i] for i in particles),
            stacks=None
            if stacks is None
            else StackImages(tuple(stacks.paths[i] for i in particles), stacks.premultiplied[particles]),
        )
        for index, particles in units
    ]


def extraction_options(options: ReconstructOptions) -> ExtractOptions:
    """Options of the 2D stage that a reconstruction shares with extraction (RELION 5.0.1 behaviour).

    The unbinned box is masked, the binned one is not; contrast is inverted and origins are applied always.
    """
    return ExtractOptions(
        box_size=options.box_size,
        binning=options.binning,
        max_dose_e_per_a2=options.max_dose_e_per_a2,
        ctf=options.ctf,
        circle_crop=False,
        circle_precrop=options.circle_crop,
        whiten=options.whiten,
    )


def part_views(part: Part, options: ReconstructOptions) -> Views:
    """Find the views of a part that count.

    Every tilt image that sees a particle counts, however few they are; the distance to the border is half the
    box, not multiplied by the binning (RELION 5.0.1 behaviour).
    """
    if part.stacks is not None:
        return _stack_views(part, options)
    rule = Visibility(options.visibility_radius_px, options.max_dose_e_per_a2, min_frames=0)
    views = find_views(part.project, 0, extraction_options(options), rule)
    if part.stored is None or not len(views):
        return views
    allowed = np.array(part.stored)[views.kept]
    return restrict(views, allowed[views.particle, views.tilt])


def restrict(views: Views, wanted: Bools) -> Views:
    """Keep some views; particles that lose all of them stay, without any.

    Parameters
    ----------
    views
        All of them.
    wanted
        ``(V,)``.
    """
    particle, tilt = views.particle[wanted], views.tilt[wanted]
    seen = np.zeros_like(views.seen)
    seen[particle, tilt] = True
    return replace(
        views,
        seen=seen,
        particle=particle,
        tilt=tilt,
        slot=(np.cumsum(seen, axis=1) - 1)[particle, tilt].astype(np.int64),
        boxes=Boxes(tilt, views.boxes.origin_px[wanted], views.boxes.side_px),
        shift_px=views.shift_px[wanted],
        depth_px=views.depth_px[wanted],
    )


def _stack_views(part: Part, options: ReconstructOptions) -> Views:
    """Find the views of images that were extracted at the coordinates of the table, origins left out."""
    project, series = part.project, part.project.tilt_series[0]
    n = len(project.particles)
    seen = np.array(part.stored, dtype=bool).reshape(n, series.n_tilts)
    if options.max_dose_e_per_a2 is not None:
        seen &= series.dose_e_per_a2 <= options.max_dose_e_per_a2
    particle, tilt = np.nonzero(seen)
    every = np.arange(n, dtype=np.int64)
    points = positions_px(project, every, apply_offsets=True)
    moved = points - positions_px(project, every, apply_offsets=False)
    depth = (points - series.centre_px) @ series.projections[:, 2, :3].T
    shift = np.einsum("vij,vj->vi", series.projections[tilt, :2, :3], moved[particle]) / options.binning
    # the place of each image in its stack counts those that are left out, too
    slot = np.cumsum(np.array(part.stored, dtype=bool).reshape(seen.shape), axis=1) - 1
    return Views(
        series=series,
        kept=every,
        seen=seen,
        coordinates_angst=(points - series.centre_px) * series.pixel_size_angst,
        skipped={},
        particle=particle.astype(np.int64),
        tilt=tilt.astype(np.int64),
        slot=slot[particle, tilt].astype(np.int64),
        boxes=Boxes(tilt.astype(np.int64), np.zeros((len(tilt), 2), np.int64), options.box_size),
        shift_px=shift,
        depth_px=depth[particle, tilt],
    )


def full_poses(particles: ParticleSet) -> Floats:
    """``(N, 3, 3)`` rotations from the map to the tomogram: subtomogram frame times orientation."""
    frame = euler_to_matrix(particles.subtomogram_angles_deg)
    poses: Floats = frame @ euler_to_matrix(particles.angles_deg)
    return poses
