"""Accumulation of slices in 3D transforms: one volume per half set, whatever the number of threads."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Accumulator:
    """Sums of one half set.

    Attributes
    ----------
    data
        ``(b, b, b//2+1)`` complex128 sum of slices, frequency 0 at index 0.
    weight
        ``(b, b, b//2+1)`` float64 sum of their weights.
    """

    data: NDArray[np.complex128]
    weight: Floats

    @property
    def box(self) -> int:
        """Side of the transform."""
        return int(self.data.shape[0])

    @staticmethod
    def empty(box: int) -> Accumulator:
        """All sums zero."""
        shape = box, box, box // 2 + 1
        return Accumulator(np.zeros(shape, np.complex128), np.zeros(shape, np.float64))


@dataclass(frozen=True)
class Slices:
    """Some tilt images of some particles of one half set, ready for insertion.

    Attributes
    ----------
    spectra
        ``(V, b, b//2+1)`` complex64 modulated half transforms with the particle at the origin.
    weights
        ``(V, b, b//2+1)`` float32 squared modulation, or ``(1, 1, 1)`` for a constant.
    matrices
        ``(V, 3, 3)`` from :func:`insertion_matrices`.
    max_freq
        ``(V,)`` int64 radius in voxels beyond which nothing is inserted: the first row of the dose ranges.
    """

    spectra: NDArray[np.complex64]
    weights: NDArray[np.float32]
    matrices: Floats
    max_freq: NDArray[np.int64]


def insertion_matrices(projections: Floats, poses: Floats, pixel_ratio: float = 1.0) -> Floats:
    """Matrices from voxel frequencies of the map to frequencies of each slice.

    Parameters
    ----------
    projections
        ``(..., 3, 3)`` rotation parts of the projection matrices.
    poses
        ``(..., 3, 3)`` rotations of the particles, map to tomogram (A_sub A_part).
    pixel_ratio
        Pixel size of the map over that of the binned tilt images.

    Returns
    -------
    ``(..., 3, 3)`` transposed inverse of ``pixel_ratio * projection * pose``. Products are summed in
    ascending order without fused operations: exact zeros of right-angle tilts must stay exact.
    """
    a, b = np.broadcast_arrays(np.asarray(projections, np.float64), np.asarray(poses, np.float64))
    terms = [a[..., :, k, None] * b[..., None, k, :] for k in range(3)]
    t = pixel_ratio * ((terms[0] + terms[1]) + terms[2])
    cofactors = np.empty_like(t)
    for i in range(3):
        for j in range(3):
            i1, i2, j1, j2 = (i + 1) % 3, (i + 2) % 3, (j + 1) % 3, (j + 2) % 3
            cofactors[..., i, j] = t[..., i1, j1] * t[..., i2, j2] - t[..., i1, j2] * t[..., i2, j1]
    determinant = (t[..., 0, :] * cofactors[..., 0, :]).sum(axis=-1)
    inverse_transposed: Floats = cofactors / determinant[..., None, None]
    return inverse_transposed


def planes(box: int, parts: int) -> list[tuple[int, int]]:
    """Cut the planes of a transform into about equal slabs ``(z_start, z_stop)``.

    Planes of low frequency hold more of every slice than the others, so that more slabs than threads are
    needed for an even load.
    """
    edges = np.linspace(0, box, min(max(parts, 1), box) + 1).astype(int)
    return [(int(start), int(stop)) for start, stop in pairwise(edges)]


def insert(accumulator: Accumulator, slices: Slices, pool: Executor | None = None, parts: int = 1) -> None:
    """Add slices to an accumulator.

    Each thread fills planes of its own in the order of the slices. Sums are therefore the same bits for any
    number of threads and slabs, and for any way of cutting the same sequence of slices into batches.

    Parameters
    ----------
    accumulator
        Changed in place.
    slices
        All of the half set of the accumulator.
    pool
        Threads to use; None for the calling one.
    parts
        Number of slabs; about four for each thread.
    """
    if len(slices.spectra) == 0:
        return
    slabs = planes(accumulator.box, parts)
    if pool is None:
        for slab in slabs:
            insert_slab(accumulator, slices, slab)
    else:
        list(pool.map(lambda slab: insert_slab(accumulator, slices, slab), slabs))


def insert_slab(accumulator: Accumulator, slices: Slices, slab: tuple[int, int]) -> None:
    """Add slices to some planes of an accumulator; several threads may do so with planes of their own."""
    from portal_extract.kernels.gather import insert_slices

    if len(slices.spectra):
        insert_slices(
            accumulator.data,
            accumulator.weight,
            slices.spectra,
            slices.weights,
            slices.matrices,
            slices.max_freq,
            *slab,
        )


def memory_bytes(box: int, n_halves: int, symmetry: bool, crop_size: int | None = None) -> int:
    """Peak memory of accumulators and finalisation, without slices, in bytes.

    Parameters
    ----------
    box
        Box size in binned pixels.
    n_halves
        Number of half sets: 1 or 2.
    symmetry
        Whether the transforms are symmetrised.
    crop_size
        Side of cropped maps, or None.
    """
    half_voxels, voxels = box * box * (box // 2 + 1), box**3
    sums = 24 * half_voxels
    others = (n_halves if symmetry else 0) + (1 if n_halves > 1 and not symmetry else 0)
    # two transforms and a map in double, and single-precision copies: one with the caller, one kept, one made
    correction = 2 * 16 * half_voxels + 8 * voxels + 3 * 4 * voxels
    cropped = 8 * crop_size**3 if crop_size else 0
    return (n_halves + others) * sums + correction + cropped
