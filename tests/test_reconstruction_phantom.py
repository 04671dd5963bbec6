"""A known object comes back the way it was: with the right convention, and with no other.

The object is a handful of Gaussian blobs, whose projections are known exactly in Fourier space. Nothing of
RELION's output is used here: this is physics.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from portal_extract.extraction.volumes import Pose, data_volume, insert_particle, normalised_volumes
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices
from portal_extract.reconstruction.correction import signed_frequencies
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.fsc import correlate_shells
from portal_extract.reconstruction.options import ReconstructOptions

N = 24
BLOBS = np.array([[4.0, 1.0, -2.0], [-3.0, 4.0, 0.5], [0.0, -5.0, 3.0], [1.0, 2.0, 5.0]])
MASSES = np.array([1.0, 0.7, 1.3, 0.5])
SIGMA = 1.3


def blob_transform(points: np.ndarray) -> np.ndarray:
    """Transform of the object at frequencies ``(..., 3)`` in cycles per box, object centred at 0."""
    phase = -2j * np.pi * points @ BLOBS.T / N
    envelope = np.exp(-2 * (np.pi * SIGMA / N) ** 2 * (points**2).sum(axis=-1))
    return (np.exp(phase) @ MASSES) * envelope


def phantom() -> np.ndarray:
    """The object in real space, ``(z, y, x)``, centre at voxel N // 2."""
    grid = np.stack(np.meshgrid(*[np.arange(N) - N // 2] * 3, indexing="ij")[::-1], axis=-1)
    distances = ((grid[..., None, :] - BLOBS) ** 2).sum(axis=-1)
    return (np.exp(-distances / (2 * SIGMA**2)) @ MASSES).astype(np.float32)


def project(matrices: np.ndarray) -> np.ndarray:
    """Half transforms of projections; a matrix maps object to image coordinates."""
    k = signed_frequencies(N)
    plane = np.stack(np.broadcast_arrays(np.arange(N // 2 + 1.0), k[:, None], 0.0), axis=-1)
    return np.array([blob_transform(plane @ m) for m in matrices]).astype(np.complex64)


def tilts(n: int, largest: float) -> np.ndarray:
    angles = np.linspace(-largest, largest, n)
    rotations = Rotation.from_euler("y", angles[:, None], degrees=True)
    return (Rotation.from_euler("z", 85, degrees=True) * rotations).as_matrix()


def reconstruct(change=None, n_particles: int = 25) -> np.ndarray:
    """Reconstruct from tilt series of randomly oriented objects; ``change`` spoils the convention."""
    accumulator = Accumulator.empty(N)
    projections = tilts(13, 60)
    for pose in Rotation.random(n_particles, rng=1).as_matrix():
        spectra = project(projections @ pose)
        used = (projections, pose) if change is None else change(projections, pose)
        slices = Slices(
            spectra,
            np.ones((1, 1, 1), np.float32),
            insertion_matrices(*used),
            np.full(len(spectra), N // 2, np.int64),
        )
        insert(accumulator, slices)
    options = ReconstructOptions(box_size=N, ctf=False, taper_px=2)
    return finalise([accumulator], options, 1.0)["merged"]


def agreement(volume: np.ndarray) -> float:
    """Mean correlation of shells 1 to 8 with the object."""
    one, other = (np.fft.rfftn(np.fft.ifftshift(v)) for v in (volume, phantom()))
    return float(correlate_shells(one, other)[1:9].mean())


def test_object_comes_back():
    assert agreement(reconstruct()) > 0.97


FLIP = np.diag([1.0, 1.0, -1.0])
SPOILED = {
    "transposed pose": lambda p, a: (p, a.T),
    "swapped axes": lambda p, a: (p[:, [1, 0, 2]], a),
    "hand flipped": lambda p, a: (FLIP @ p @ FLIP, a),
    "transposed projection": lambda p, a: (p.transpose(0, 2, 1), a),
    "wrong order": lambda p, a: (a @ p, np.eye(3)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_any_other_convention_fails(name):
    assert agreement(reconstruct(SPOILED[name], n_particles=8)) < 0.6


def test_pseudo_subtomogram_holds_the_object_in_its_frame():
    projections, pose = tilts(61, 85), Rotation.random(2, rng=3).as_matrix()
    orientation = Pose(pose[0], pose[0] @ pose[1])
    ranges = np.broadcast_to(np.int64(N // 2), (len(projections), N)).copy()
    ones = np.ones((1, 1, 1), np.float32)
    spectra = project(projections @ orientation.full)
    found = {}
    for name, frame in (("own", orientation.full), ("other", orientation.full.T)):
        sums = insert_particle(spectra, ones, projections, frame, ranges, N)
        found[name] = agreement(normalised_volumes(data_volume(sums.data, N, 1.0), sums)[0])
    assert found["own"] > 0.95
    assert found["other"] < 0.6
