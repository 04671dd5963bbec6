"""From accumulated transforms to maps: gridding, CTF correction, cropping, soft sphere.

Half transforms are ``(n, n, n//2+1)`` with frequency 0 at index 0; maps are ``(n, n, n)`` in z, y, x order
with the particle at voxel ``n // 2``. Transforms are divided by the root of the number of voxels both ways.
Everything keeps the precision of its input, as RELION 5.0.1 does: double for reconstructions, single for
pseudo-subtomograms.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Real = TypeVar("Real", NDArray[np.float32], NDArray[np.float64])
Array = NDArray[Any]

HEURISTIC_FRACTION = 0.001
_SMALLEST_SINC2 = 0.01


def to_real_space(transform: Array, workers: int = 1) -> Array:
    """Real map of a half transform.

    Parameters
    ----------
    transform
        ``(n, n, n//2+1)`` complex64 or complex128.
    workers
        Threads; the result does not depend on them.

    Returns
    -------
    ``(n, n, n)`` float32 or float64.
    """
    import scipy.fft

    n = transform.shape[0]
    volume: Array = scipy.fft.irfftn(transform, (n, n, n), axes=(0, 1, 2), norm="forward", workers=workers)
    volume /= volume.dtype.type(np.sqrt(float(n) ** 3))
    return volume


def to_fourier_space(volume: Array, workers: int = 1) -> Array:
    """Half transform of a real map, the inverse of :func:`to_real_space`."""
    import scipy.fft

    transform: Array = scipy.fft.rfftn(volume, axes=(0, 1, 2), workers=workers)
    transform /= volume.dtype.type(np.sqrt(float(volume.shape[0]) ** 3))
    return transform


def centre_phases(transform: Array) -> Array:
    """Half transform with the particle moved from voxel 0 to voxel ``n // 2``; the input is not changed."""
    moved: Array = transform.copy()
    for axis in range(3):
        odd: list[slice] = [slice(None)] * 3
        odd[axis] = slice(1, None, 2)
        moved[tuple(odd)] *= -1
    return moved


def signed_frequencies(n: int) -> NDArray[np.float64]:
    """``(n,)`` frequency of each index; the Nyquist frequency is negative."""
    k = np.arange(n)
    return np.where(k < n // 2, k, k - n).astype(np.float64)


def correct_gridding(volume: NDArray[np.float64]) -> None:
    """Divide a map by the squared sinc of the interpolation, in place (RELION 5.0.1 behaviour).

    Parameters
    ----------
    volume
        ``(n, n, n)`` map.
    """
    n = volume.shape[0]
    square = (np.arange(n, dtype=np.float64) - n // 2) ** 2
    for z in range(n):
        q = np.sqrt(square[None, :] + square[:, None] + square[z]) / n
        arc = np.where(q > 0, np.pi * q, 1.0)
        window = np.where(q > 0, (np.sin(arc) / arc) ** 2, 1.0)
        volume[z] /= np.where((window < _SMALLEST_SINC2) | (q > 1), _SMALLEST_SINC2, window)


def radial_average(weight: Array) -> NDArray[np.float64]:
    """Average over shells of a half transform, each sample split between the two nearest shells.

    Parameters
    ----------
    weight
        ``(n, n, n//2+1)`` real; every stored voxel counts once.

    Returns
    -------
    ``(n//2+1,)`` mean of each shell, 0 where a shell is empty.
    """
    from portal_extract.kernels.radial import shell_sums

    shells = weight.shape[2]
    total, count = np.zeros(shells), np.zeros(shells)
    shell_sums(weight, total, count)
    return np.divide(total, count, out=np.zeros(shells), where=count > 0)


def correct_ctf(transform: Array, weight: Array, snr: float) -> Array:
    """Divide a half transform by its weights.

    Parameters
    ----------
    transform
        ``(n, n, n//2+1)`` complex half transform of a map, changed in place and returned.
    weight
        ``(n, n, n//2+1)`` real: accumulated squared modulation.
    snr
        With a positive value a Wiener filter, ``weight + 1/snr``; otherwise weights below a thousandth of the
        mean of their shell are replaced by that, and everything from the shell ``n/2`` on is set to 0.
    """
    from portal_extract.kernels.radial import divide_above

    if snr > 0:
        transform /= weight + weight.dtype.type(1.0 / snr)
    else:
        divide_above(transform, weight, radial_average(weight), HEURISTIC_FRACTION)
    return transform


def crop_volume(volume: Real, size: int) -> Real:
    """Central part of a map; a copy."""
    edge = (volume.shape[0] - size) // 2
    inner = slice(edge, volume.shape[0] - edge)
    return volume[inner, inner, inner].copy()


def taper_sphere(volume: Array, taper_px: float, centre: bool = True) -> Array:
    """Soft sphere around the centre, outside of it 0.

    Parameters
    ----------
    volume
        ``(s, s, s)`` map, changed in place and returned.
    taper_px
        Width of the cosine edge inside of the radius ``s / 2``.
    centre
        Subtract the mean inside, weighted by the mask.
    """
    from portal_extract.kernels.radial import soft_sphere_in_place

    soft_sphere_in_place(volume, float(taper_px), centre)
    return volume


def expand_weights(weight: Array) -> NDArray[np.float32]:
    """Full, centred volume of a real half transform.

    Parameters
    ----------
    weight
        ``(n, n, n//2+1)`` real.

    Returns
    -------
    ``(n, n, n)`` float32 with frequency 0 at voxel ``n // 2``. The plane of the Nyquist frequency in x holds
    the Friedel mates (RELION 5.0.1 behaviour).
    """
    n, half = weight.shape[0], weight.shape[0] // 2
    full = np.empty((n, n, n), np.float32)
    full[:, :, : half + 1] = weight
    mates = (-np.arange(n)) % n
    # The mates of the Nyquist plane fall into that plane itself and overwrite it in the order of z and y, so
    # that a voxel keeps its own value only if its mate was visited first.
    full[:, :, half + 1 :] = weight[mates][:, mates][:, :, half - 1 : 0 : -1]
    plane = weight[:, :, half]
    z, y = np.indices((n, n))
    own_is_last = z * n + y >= mates[z] * n + mates[y]
    full[:, :, half] = np.where(own_is_last, plane, plane[mates][:, mates])
    return np.roll(full, (n // 2, n // 2, n // 2), (0, 1, 2))
