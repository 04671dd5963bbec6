"""Which tilt image sees which particle, and where: the views of a tilt series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from portal_extract.geometry import box_origins, deform, euler_to_matrix, project, visible
from portal_extract.images.boxes import Boxes
from portal_extract.model import Bools, Floats, Ints, Project, TiltSeries
from portal_extract.options import ExtractOptions

OUTSIDE = "outside of every tilt image"


@dataclass(frozen=True)
class Views:
    """All views of the particles of one tilt series: a view is one particle in one tilt image.

    Attributes
    ----------
    series
        The tilt series.
    kept
        ``(K,)`` indices into the project's particles of those that are extracted, in table order.
    seen
        ``(K, F)`` which tilt images are used of each.
    coordinates_angst
        ``(K, 3)`` centred coordinates after offsets.
    skipped
        Indices of particles that are left out, by reason.
    particle, tilt, slot
        ``(V,)`` for each view: index into ``kept``, tilt image, and position in the particle's stack.
    boxes
        What has to be cut from the tilt images.
    shift_px
        ``(V, 2)`` position of the particle relative to the middle of its box, in binned pixels.
    depth_px
        ``(V,)`` depth of the particle relative to the tomogram centre, in unbinned pixels; of the static
        position, without trajectory and deformation.
    """

    series: TiltSeries
    kept: Ints
    seen: Bools
    coordinates_angst: Floats
    skipped: Mapping[str, Ints]
    particle: Ints
    tilt: Ints
    slot: Ints
    boxes: Boxes
    shift_px: Floats
    depth_px: Floats

    def __len__(self) -> int:
        return len(self.particle)

    @property
    def stack_lengths(self) -> Ints:
        """``(K,)`` number of images of each particle."""
        lengths: Ints = self.seen.sum(axis=1).astype(np.int64)
        return lengths


@dataclass(frozen=True)
class Visibility:
    """When a view counts.

    Attributes
    ----------
    radius_px
        The particle's square of this half-width must lie within the image, in unbinned pixels.
    max_dose_e_per_a2
        Tilt images with more accumulated dose are left out; None for no limit.
    min_frames
        Particles seen by fewer tilt images are left out.
    """

    radius_px: float
    max_dose_e_per_a2: float | None = None
    min_frames: int = 1


def positions_px(project_: Project, particles: Ints, apply_offsets: bool) -> Floats:
    """Positions of particles in tomogram space (RELION 5.0.1 behaviour).

    Parameters
    ----------
    project_
        The project.
    particles
        ``(n,)`` indices of particles of any tilt series.
    apply_offsets
        Whether the refined origins, turned by the subtomogram angles, are subtracted.

    Returns
    -------
    ``(n, 3)`` unbinned pixels.
    """
    table = project_.particles
    pixel = _pixel_sizes(project_, particles)
    series, which = np.unique(table.tilt_series[particles], return_inverse=True)
    centre = np.array([project_.tilt_series[t].centre_px for t in series]).reshape(-1, 3)[which]
    points = table.coordinates_angst[particles] / pixel + centre
    if table.coordinates_px is not None:
        points = np.where(np.isnan(points), table.coordinates_px[particles], points)
    if apply_offsets:
        frame = euler_to_matrix(table.subtomogram_angles_deg[particles])
        points = points - np.einsum("nij,nj->ni", frame, table.origins_angst[particles]) / pixel
    positions: Floats = points
    return positions


def image_positions(project_: Project, series_index: int, particles: Ints, points_px: Floats) -> Floats:
    """Project particles into every tilt image, with trajectories and deformation.

    Returns
    -------
    ``(n, F, 2)`` centres in unbinned pixels of the tilt images.
    """
    series = project_.tilt_series[series_index]
    moving = points_px
    if project_.particles.trajectories_angst is not None and len(particles):
        shifts = np.stack([project_.particles.trajectories_angst[i] for i in particles])
        moving = points_px[:, None, :] + shifts / series.pixel_size_angst
    centres = project(series.projections, moving)[..., :2]
    if series.deformation is not None:
        centres = deform(series.deformation, series.image_stack.size_px, centres)
    return centres


def find_views(
    project_: Project,
    series_index: int,
    options: ExtractOptions,
    visibility: Visibility | None = None,
) -> Views:
    """Find all views of a tilt series.

    Parameters
    ----------
    project_
        The project.
    series_index
        Which tilt series.
    options
        Box, binning, offsets and, without ``visibility``, what counts as seen.
    visibility
        Another rule for what counts as seen; the default is that of extraction.

    Returns
    -------
    The views, in order of particle and tilt image.
    """
    series = project_.tilt_series[series_index]
    rule = visibility or Visibility(
        options.binning * options.output_size / 2.0, options.max_dose_e_per_a2, options.min_frames
    )
    particles = project_.particles_of[series_index]
    points = positions_px(project_, particles, options.offsets_applied)
    centres = image_positions(project_, series_index, particles, points)
    inside = visible(centres, series.image_stack.size_px, rule.radius_px)
    seen = inside
    if rule.max_dose_e_per_a2 is not None:
        seen = inside & (series.dose_e_per_a2 <= rule.max_dose_e_per_a2)
    keep = seen.sum(axis=1) >= rule.min_frames
    kept, which = particles[keep], np.flatnonzero(keep)
    local, tilt = np.nonzero(seen[keep])
    slot = (np.cumsum(seen[keep], axis=1) - 1)[local, tilt]
    centre = centres[which[local], tilt]
    depth = _depth(series, points[which])
    return Views(
        series=series,
        kept=kept,
        seen=seen[keep],
        coordinates_angst=_centred(project_, kept, points[which], series),
        skipped=_reasons(particles, inside, seen, rule),
        particle=local.astype(np.int64),
        tilt=tilt.astype(np.int64),
        slot=slot.astype(np.int64),
        boxes=Boxes(tilt.astype(np.int64), box_origins(centre, options.unbinned_box), options.unbinned_box),
        shift_px=residual_shift(centre, options),
        depth_px=depth[local, tilt],
    )


def residual_shift(centres_px: Floats, options: ExtractOptions) -> Floats:
    """Position of each centre relative to the middle of its box, in binned pixels.

    Where the unbinned box is not exactly ``binning * box_size`` a constant shift remains, as in RELION 5.0.1.
    """
    origins = box_origins(centres_px, options.unbinned_box)
    shift: Floats = (centres_px - origins) / options.binning - options.box_size // 2
    return shift


def _depth(series: TiltSeries, points_px: Floats) -> Floats:
    """``(n, F)`` depth relative to the tomogram centre, unbinned pixels."""
    rows = series.projections[:, 2, :3]
    depth: Floats = (points_px - series.centre_px) @ rows.T
    return depth


def _centred(project_: Project, particles: Ints, points_px: Floats, series: TiltSeries) -> Floats:
    centred: Floats = (points_px - series.centre_px) * _pixel_sizes(project_, particles)
    return centred


def _pixel_sizes(project_: Project, particles: Ints) -> Floats:
    """``(n, 1)`` pixel size of the optics group of each particle; looks only at groups that occur."""
    groups, which = np.unique(project_.particles.optics_group[particles], return_inverse=True)
    sizes: Floats = np.array([project_.optics_groups[g].pixel_size_angst for g in groups])[which][:, None]
    return sizes


def _reasons(particles: Ints, inside: Bools, seen: Bools, rule: Visibility) -> dict[str, Ints]:
    """Particles left out, by the first rule that they fail."""
    n_inside, n_seen = inside.sum(axis=1), seen.sum(axis=1)
    out = n_seen < rule.min_frames
    nowhere = out & (n_inside == 0)
    dose = out & ~nowhere & (n_inside >= rule.min_frames)
    few = out & ~nowhere & ~dose
    texts = {
        OUTSIDE: nowhere,
        f"seen by fewer than {rule.min_frames} tilt images": few,
        f"seen by fewer than {rule.min_frames} tilt images within the dose limit": dose,
    }
    return {text: particles[mask] for text, mask in texts.items() if mask.any()}
