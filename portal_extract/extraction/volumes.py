"""3D pseudo-subtomograms: from the modulated spectra of one particle to the volumes that are written.

Pure functions on arrays; single precision throughout, as RELION 5.0.1 keeps it. The 2D stage before this is
that of stacks, including the circular mask; its spectra have the particle at pixel 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portal_extract.options import ExtractOptions, VolumeOptions
from portal_extract.reconstruction.correction import (
    centre_phases,
    correct_ctf,
    expand_weights,
    signed_frequencies,
    taper_sphere,
    to_fourier_space,
    to_real_space,
)

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]

#: Volumes whose MRC header carries the inverse of the pixel size (RELION 5.0.1 behaviour).
RECIPROCAL = frozenset({"weights", "CTF2", "multi", "CTF2_nrm"})


@dataclass(frozen=True)
class Pose:
    """Orientation of one particle.

    Attributes
    ----------
    subtomogram
        ``(3, 3)`` rotation of the subtomogram frame to the tomogram (``rlnTomoSubtomogram*``).
    full
        ``(3, 3)`` the same times the rotation of the particle within it (``rlnAngle*``).
    """

    subtomogram: Floats
    full: Floats


@dataclass(frozen=True)
class Insertion:
    """What one particle's slices add up to in 3D Fourier space.

    Attributes
    ----------
    data
        ``(c, c, c//2+1)`` complex64, the particle at voxel 0.
    weight
        ``(c, c, c//2+1)`` float32 sum of squared modulations.
    multiplicity
        ``(c, c, c//2+1)`` float32 number of samples at each voxel.
    """

    data: NDArray[np.complex64]
    weight: Maps
    multiplicity: Maps


def insert_particle(
    spectra: NDArray[np.complex64],
    weights: NDArray[np.float32],
    projections: Floats,
    frame: Floats,
    ranges: NDArray[np.int64],
    size: int,
) -> Insertion:
    """Insert the visible tilt images of one particle into a 3D transform.

    Parameters
    ----------
    spectra
        ``(V, b, b//2+1)`` modulated half transforms of the visible tilt images, in their order.
    weights
        ``(V, b, b//2+1)`` squared modulation, or ``(1, 1, 1)`` for a constant.
    projections
        ``(V, 3, 3)`` rotation parts of the projection matrices.
    frame
        ``(3, 3)`` rotation of the volume's frame to the tomogram.
    ranges
        ``(V, b)`` number of samples of each row that the dose leaves.
    size
        Side c of the volume, in binned pixels.
    """
    from portal_extract.kernels.scatter import scatter_slices

    rows, columns, scales = slice_axes(projections, frame, size / spectra.shape[1])
    sums = np.zeros((size, size, size // 2 + 1, 4), np.float32)
    scatter_slices(sums, spectra, weights, rows, columns, scales, ranges)
    data = np.ascontiguousarray(sums[..., :2]).view(np.complex64)[..., 0]
    return Insertion(data, np.ascontiguousarray(sums[..., 2]), np.ascontiguousarray(sums[..., 3]))


def slice_axes(projections: Floats, frame: Floats, crop_ratio: float) -> tuple[Floats, Floats, Floats]:
    """Axes of each slice in the 3D transform.

    Parameters
    ----------
    projections
        ``(V, 3, 3)`` rotation parts of the projection matrices.
    frame
        ``(3, 3)`` rotation of the volume's frame to the tomogram.
    crop_ratio
        Crop size over box size: the transform of a smaller volume has fewer samples over the same range.

    Returns
    -------
    ``(V, 3)`` x axes, ``(V, 3)`` y axes, both in voxels per sample, and ``(V,)`` their area.
    """
    axes = (projections @ frame) * crop_ratio
    rows, columns = np.ascontiguousarray(axes[:, 0]), np.ascontiguousarray(axes[:, 1])
    return rows, columns, np.sqrt((rows**2).sum(axis=1)) * np.sqrt((columns**2).sum(axis=1))


def data_volume(transform: NDArray[np.complex64], box: int, binning: float) -> Maps:
    """Real-space volume of an inserted transform.

    Parameters
    ----------
    transform
        ``(c, c, c//2+1)`` with the particle at voxel 0.
    box
        Box size of the 2D spectra.
    binning
        Binning of the extraction.

    Returns
    -------
    ``(c, c, c)`` with the particle at voxel ``c // 2``.
    """
    centred = centre_phases(transform)
    scale = np.float32(box) / (np.float32(transform.shape[0]) * np.sqrt(np.float32(binning)))
    # RELION leaves the factor out where it is nearly 1
    if abs(scale - 1.0) > 0.0001:
        centred *= scale
    volume: Maps = to_real_space(centred)
    return volume


def cone_weights(size: int, rotation: Floats, angle_deg: float, sigma0: float) -> Floats:
    """Weights that suppress a cone around the z axis of the tomogram in Fourier space.

    Parameters
    ----------
    size
        Side c of the volume.
    rotation
        ``(3, 3)`` rotation of the volume's coordinates to the tomogram.
    angle_deg
        Opening angle of the cone.
    sigma0
        Width at the origin, in voxels.

    Returns
    -------
    ``(c, c, c//2+1)`` weights, 0 on the axis.
    """
    k = signed_frequencies(size)
    points = np.stack(np.broadcast_arrays(np.arange(size // 2 + 1.0), k[:, None], k[:, None, None]), axis=-1)
    turned = points @ rotation.T
    slope = np.sin((angle_deg / 2) * np.pi / 180.0)
    t = np.hypot(turned[..., 0], turned[..., 1]) / (np.abs(turned[..., 2]) * slope + sigma0)
    weights: Floats = 1.0 - np.exp(-(t**2) / 2)
    return weights


def apply_cone(volume: Maps, sums: Insertion, cone: Floats) -> tuple[Maps, Insertion]:
    """Multiply a volume and its weights by a cone weight in Fourier space."""
    factor = cone.astype(np.float32)
    data: Maps = to_real_space(to_fourier_space(volume) * factor)
    return data, Insertion(sums.data, sums.weight * factor, sums.multiplicity * factor)


def divided_volume(volume: Maps, weight: Maps, options: VolumeOptions, taper: bool = True) -> Maps:
    """CTF-corrected volume.

    Parameters
    ----------
    volume
        ``(c, c, c)`` data volume.
    weight
        ``(c, c, c//2+1)`` its weights.
    options
        SNR (Wiener filter) or, where it is not positive, the heuristic; taper and centring.
    taper
        Whether to apply the soft sphere.
    """
    divided: Maps = to_real_space(correct_ctf(to_fourier_space(volume), weight, options.snr))
    return taper_sphere(divided, options.taper_px, options.centre) if taper else divided


def normalised_volumes(volume: Maps, sums: Insertion) -> tuple[Maps, Maps]:
    """Divide data volume and weights by the multiplicity; 0 where that is 0.

    Returns
    -------
    ``(c, c, c)`` data, and ``(c, c, c//2+1)`` weights.
    """
    hit = sums.multiplicity > 0
    transform = to_fourier_space(volume)
    data = np.divide(transform, sums.multiplicity, out=np.zeros_like(transform), where=hit)
    weight = np.divide(sums.weight, sums.multiplicity, out=np.zeros_like(sums.weight), where=hit)
    return to_real_space(data), weight


def particle_volumes(
    spectra: NDArray[np.complex64],
    weights: NDArray[np.float32],
    projections: Floats,
    pose: Pose,
    ranges: NDArray[np.int64],
    options: ExtractOptions,
) -> tuple[Mapping[str, Maps], Maps]:
    """All volumes of one particle that the options ask for.

    Parameters
    ----------
    spectra, weights, projections, ranges
        As for :func:`insert_particle`, of the visible tilt images only.
    pose
        Orientation of the particle. The frame of the volume is that of the subtomogram, or that of the
        particle with ``apply_orientations``; the cone is always turned by both (RELION 5.0.1 behaviour).
    options
        Sizes, binning and volume options.

    Returns
    -------
    Volumes by the name that follows the particle's (``data``, ``weights``, ``CTF2``, ``multi``, ``data_nrm``,
    ``CTF2_nrm``, ``div``), float32 in z, y, x order: ``weights`` is ``(2 c, c, c//2+1)`` (squared
    modulation, then multiplicity, not centred), the others ``(c, c, c)``. And the ``(c, c, c//2+1)``
    weights, for :class:`VolumeSum`.
    """
    wanted, size = options.volume, options.output_size
    frame = pose.full if options.apply_orientations else pose.subtomogram
    sums = insert_particle(spectra, weights, projections, frame, ranges, size)
    data = data_volume(sums.data, options.box_size, options.binning)
    if wanted.cone_weight:
        cone = cone_weights(size, pose.full, wanted.cone_angle_deg, wanted.cone_sigma0)
        data, sums = apply_cone(data, sums, cone)
    volumes = {"data": data}
    if wanted.write_combined:
        volumes["weights"] = np.concatenate([sums.weight, sums.multiplicity])
    if wanted.write_ctf:
        volumes["CTF2"] = expand_weights(sums.weight)
    if wanted.write_multiplicity:
        volumes["multi"] = expand_weights(sums.multiplicity)
    if wanted.write_normalised:
        volumes["data_nrm"], weight = normalised_volumes(data, sums)
        volumes["CTF2_nrm"] = expand_weights(weight)
    if wanted.write_divided:
        volumes["div"] = divided_volume(data, sums.weight, wanted)
    return volumes, sums.weight


class VolumeSum:
    """Sum over the volumes of all particles (``sum_data``, ``sum_weight``, ``sum_div``).

    Single precision, in the order in which particles are added; add them in table order for a result that
    does not depend on the number of threads.

    Parameters
    ----------
    size
        Side c of the volumes.
    """

    def __init__(self, size: int) -> None:
        self.data = np.zeros((size, size, size), np.float32)
        self.weight = np.zeros((size, size, size // 2 + 1), np.float32)

    def add(self, data: Maps, weight: Maps) -> None:
        """Add the data volume and the half-transform weights of one particle."""
        self.data += data
        self.weight += weight

    def volumes(self, options: VolumeOptions) -> Mapping[str, Maps]:
        """Return the three ``(c, c, c)`` sums by name; ``sum_div`` has no soft edge, as in RELION 5.0.1."""
        return {
            "sum_data": self.data,
            "sum_weight": expand_weights(self.weight),
            "sum_div": divided_volume(self.data, self.weight, options, taper=False),
        }
