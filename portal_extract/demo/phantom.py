"""Phantoms: proteins as sums of isotropic 3D Gaussians, so that projections are exact.

The density of a phantom at r (Angstrom, relative to its centre) is the sum over its Gaussians of
``height * exp(-|r - centre|^2 / (2 sigma^2))``. A projection of such a Gaussian is a 2D Gaussian, and so is
its Fourier transform, which moreover is a product of a function of x and one of y: the transform of a
projection is one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import UsageError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Phantom:
    """A protein as Gaussians.

    Attributes
    ----------
    name
        Name of the object on the portal.
    object_id
        Its identifier in an ontology.
    centres_angst
        ``(K, 3)`` x, y, z relative to the centre of the particle.
    sigmas_angst
        ``(K,)`` standard deviations.
    heights
        ``(K,)`` densities at the centres.
    symmetry
        Point group in RELION's notation, with its axes where RELION has them.
    """

    name: str
    object_id: str
    centres_angst: Floats
    sigmas_angst: Floats
    heights: Floats
    symmetry: str = "C1"

    @property
    def radius_angst(self) -> float:
        """Radius that holds (nearly) all of the density."""
        reach = np.linalg.norm(self.centres_angst, axis=1) + 2.0 * self.sigmas_angst
        return float(reach.max())


def phantom(name: str) -> Phantom:
    """Make the phantom of an object.

    Parameters
    ----------
    name
        ``cytosolic ribosome``, ``ferritin complex`` or ``proteasome complex``.

    Raises
    ------
    UsageError
        There is no such phantom.
    """
    if name not in _PHANTOMS:
        raise UsageError(f"no phantom of {name!r}: there are {', '.join(sorted(_PHANTOMS))}")
    return _PHANTOMS[name]()


def phantom_volume(name: str, box: int, pixel_size_angst: float) -> NDArray[np.float32]:
    """Sample the density of a phantom on a grid.

    Parameters
    ----------
    name
        As for :func:`phantom`.
    box
        Side of the volume in voxels.
    pixel_size_angst
        Angstrom per voxel.

    Returns
    -------
    numpy.ndarray
        ``(box, box, box)`` in (z, y, x) order, with the centre of the particle at voxel ``box // 2``.
    """
    made = phantom(name)
    grid = (np.arange(box) - box // 2) * pixel_size_angst
    x, y, z = (
        np.exp(-((grid - made.centres_angst[:, axis, None]) ** 2) / (2 * made.sigmas_angst[:, None] ** 2))
        for axis in range(3)
    )
    planes = (made.heights[:, None, None] * y[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    volume: NDArray[np.float32] = (z.T @ planes).reshape(box, box, box).astype(np.float32)
    return volume


def projection_transforms(
    made: Phantom, rotations: Floats, centres_px: Floats, size: int, pixel_size_angst: float
) -> NDArray[np.complex64]:
    """Fourier transforms of projections along z of rotated phantoms.

    Parameters
    ----------
    made
        The phantom.
    rotations
        ``(N, 3, 3)`` rotations from the particle to the image (its third axis is the beam).
    centres_px
        ``(N, 2)`` x, y of the particles' centres in the image, origin at the centre of pixel (0, 0).
    size
        Side of the images in pixels.
    pixel_size_angst
        Angstrom per pixel.

    Returns
    -------
    numpy.ndarray
        ``(N, size, size // 2 + 1)``; ``irfft2`` gives the projected density in units of height times
        Angstrom, at the centres of the pixels.
    """
    turned = np.einsum("nij,kj->nki", rotations, made.centres_angst)
    sigma_px = made.sigmas_angst / pixel_size_angst
    # integral over the beam (Angstrom) and over the plane (pixels)
    amplitude = made.heights * (2 * np.pi) ** 1.5 * sigma_px**2 * made.sigmas_angst

    def waves(axis: int, frequencies: NDArray[np.floating[Any]]) -> NDArray[np.complex64]:
        position = turned[:, :, axis] / pixel_size_angst + centres_px[:, axis, None]
        cycles = position[:, :, None] * -frequencies
        # whole turns are taken off in double precision, sine and cosine are fast in single
        phase = ((cycles - np.rint(cycles)) * (2 * np.pi)).astype(np.float32)
        envelope = np.exp(-2 * (np.pi * sigma_px[:, None] * frequencies) ** 2).astype(np.float32)
        wave = np.empty(phase.shape, dtype=np.complex64)
        wave.real, wave.imag = np.cos(phase) * envelope, np.sin(phase) * envelope
        return wave

    x = waves(0, np.fft.rfftfreq(size)) * amplitude[:, None].astype(np.float32)
    y = waves(1, np.fft.fftfreq(size))
    transforms: NDArray[np.complex64] = np.matmul(y.transpose(0, 2, 1), x)
    return transforms


def _blobs(
    rng: np.random.Generator, count: int, semi_axes: tuple[float, float, float], centre: tuple[float, ...]
) -> Floats:
    """Draw points in an ellipsoid that keep their distance from each other."""
    points = rng.normal(size=(count * 12, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points *= rng.uniform(size=(len(points), 1)) ** (1 / 3)
    points *= semi_axes
    chosen = [points[0]]
    for point in points[1:]:
        if len(chosen) < count and np.min(np.linalg.norm(np.array(chosen) - point, axis=1)) > 11.0:
            chosen.append(point)
    return np.asarray(np.array(chosen) + np.array(centre), dtype=np.float64)


def _ribosome() -> Phantom:
    """Make two lobes of different size, a stalk and a dense core: no symmetry at all."""
    rng = np.random.default_rng(80)
    large = _blobs(rng, 150, (84.0, 76.0, 70.0), (-26.0, 0.0, 8.0))
    small = _blobs(rng, 70, (36.0, 80.0, 54.0), (76.0, 12.0, -10.0))
    stalk = np.array([[-76.0 - 9 * n, 56.0 + 8 * n, 14.0 + 5 * n] for n in range(5)])
    centres = np.concatenate([large, small, stalk])
    sigmas = np.concatenate([rng.uniform(5.0, 11.0, len(large) + len(small)), np.full(len(stalk), 7.0)])
    heights = np.concatenate(
        [rng.uniform(0.5, 1.3, len(large)), rng.uniform(0.4, 1.0, len(small)), np.full(len(stalk), 1.1)]
    )
    mass = heights * sigmas**3
    centres = centres - (centres * mass[:, None]).sum(0) / mass.sum()
    return Phantom("cytosolic ribosome", "GO:0022626", centres, sigmas, heights)


def _ferritin() -> Phantom:
    """Make a hollow shell of 24 subunits with octahedral symmetry."""
    subunit = np.array([[53.0, 16.0, 22.0], [48.0, 25.0, 8.0], [40.0, 33.0, 27.0]])
    rotations = _octahedral_group()
    centres = np.einsum("rij,kj->rki", rotations, subunit).reshape(-1, 3)
    sigmas = np.tile([6.5, 5.0, 5.5], len(rotations))
    heights = np.tile([1.2, 0.9, 1.0], len(rotations))
    return Phantom("ferritin complex", "GO:0070288", centres, sigmas, heights, "O")


def _proteasome() -> Phantom:
    """Make a barrel of four rings of seven subunits."""
    centres = []
    for turn in range(7):
        for z, radius, twist in (
            (56.0, 44.0, 0.0),
            (20.0, 50.0, 14.0),
            (-20.0, 50.0, -14.0),
            (-56.0, 44.0, 0.0),
        ):
            angle = np.deg2rad(360 / 7 * turn + twist)
            centres.append([radius * np.cos(angle), radius * np.sin(angle), z])
    count = len(centres)
    return Phantom(
        "proteasome complex", "GO:0000502", np.array(centres), np.full(count, 8.0), np.full(count, 1.2), "D7"
    )


def _octahedral_group() -> Floats:
    """Return the 24 rotations of a cube: permutations of the axes with signs, of determinant 1."""
    found = []
    for axes in permutations(range(3)):
        for signs in product((1.0, -1.0), repeat=3):
            rotation = np.zeros((3, 3))
            rotation[range(3), axes] = signs
            if np.linalg.det(rotation) > 0:
                found.append(rotation)
    return np.array(found)


_PHANTOMS: dict[str, Callable[[], Phantom]] = {
    "cytosolic ribosome": _ribosome,
    "ferritin complex": _ferritin,
    "proteasome complex": _proteasome,
}
