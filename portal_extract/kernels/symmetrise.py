"""Averaging of a 3D half transform over symmetry operators (numba)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, error_model="numpy")
def symmetrise_slab(
    data: NDArray[np.complex128],
    weight: NDArray[np.float64],
    rotations: NDArray[np.float64],
    shifts_px: NDArray[np.float64],
    new_data: NDArray[np.complex128],
    new_weight: NDArray[np.float64],
    z_start: int,
    z_stop: int,
) -> None:
    """Average planes of a half transform and of its weights over the identity and all operators.

    No fast-math here, for the same reason as in :mod:`portal_extract.kernels.gather`.

    Parameters
    ----------
    data, weight
        ``(b, b, b//2+1)`` accumulators, frequency 0 at index 0.
    rotations
        ``(n, 3, 3)`` operators without the identity.
    shifts_px
        ``(n, 3)`` shift that goes with each, in voxels.
    new_data, new_weight
        Receive the averages.
    z_start, z_stop
        Indices of the planes to compute.
    """
    box, half_width = data.shape[0], data.shape[2]
    n_operators = rotations.shape[0]
    for z in range(z_start, z_stop):
        kz = np.float64(z if z < box // 2 else z - box)
        new_data[z], new_weight[z] = data[z], weight[z]
        # one operator after the other over a whole plane: neighbours then read from the same place
        for i in range(n_operators):
            r, t = rotations[i], shifts_px[i]
            shifted = t[0] != 0.0 or t[1] != 0.0 or t[2] != 0.0
            for y in range(box):
                ky = np.float64(y if y < box // 2 else y - box)
                for x in range(half_width):
                    px = (r[0, 0] * x + r[0, 1] * ky) + r[0, 2] * kz
                    py = (r[1, 0] * x + r[1, 1] * ky) + r[1, 2] * kz
                    pz = (r[2, 0] * x + r[2, 1] * ky) + r[2, 2] * kz
                    real, imag, wgt = _trilinear(data, weight, px, py, pz)
                    value = complex(real, imag)
                    if shifted:
                        turns = x / (2.0 * (box // 2)) * t[0] + ky / box * t[1] + kz / box * t[2]
                        phase = 2.0 * np.pi * turns
                        value *= complex(np.cos(phase), np.sin(phase))
                    new_data[z, y, x] += value
                    new_weight[z, y, x] += wgt
        new_data[z] /= n_operators + 1.0
        new_weight[z] /= n_operators + 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def _trilinear(data, weight, px, py, pz):  # type: ignore[no-untyped-def]
    """Trilinear sample of a half transform and of its weights, with RELION 5.0.1's borders.

    Positions with x = 0 are taken from the mirrored side, unlike in the bilinear case.
    """
    box, half_width = data.shape[0], data.shape[2]
    mirrored = not px > 0.0
    if mirrored:
        px, py, pz = -px, -py, -pz
    if py < 0.0:
        py += box
    if pz < 0.0:
        pz += box
    x0, y0, z0 = int(px), int(py), int(pz)
    fx, fy, fz = px - x0, py - y0, pz - z0
    x0, y0, z0 = min(x0, half_width - 1), min(y0, box - 1), min(z0, box - 1)
    x1 = x0 + 1 if x0 + 1 < half_width else half_width - 2
    y1 = y0 + 1 if y0 + 1 < box else 0
    z1 = z0 + 1 if z0 + 1 < box else 0
    ex, ey, ez = 1.0 - fx, 1.0 - fy, 1.0 - fz
    a = _bilinear(data[z0, y0, x0], data[z0, y0, x1], data[z0, y1, x0], data[z0, y1, x1], ex, fx, ey, fy)
    b = _bilinear(data[z1, y0, x0], data[z1, y0, x1], data[z1, y1, x0], data[z1, y1, x1], ex, fx, ey, fy)
    real, imag = ez * a[0] + fz * b[0], ez * a[1] + fz * b[1]
    c = ey * (ex * weight[z0, y0, x0] + fx * weight[z0, y0, x1])
    c += fy * (ex * weight[z0, y1, x0] + fx * weight[z0, y1, x1])
    d = ey * (ex * weight[z1, y0, x0] + fx * weight[z1, y0, x1])
    d += fy * (ex * weight[z1, y1, x0] + fx * weight[z1, y1, x1])
    return real, -imag if mirrored else imag, ez * c + fz * d


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _bilinear(v00, v01, v10, v11, ex, fx, ey, fy):  # type: ignore[no-untyped-def]
    """Real and imaginary part of a bilinear sample; real times complex would cost twice as much."""
    real = ey * (ex * v00.real + fx * v01.real) + fy * (ex * v10.real + fx * v11.real)
    imag = ey * (ex * v00.imag + fx * v01.imag) + fy * (ex * v10.imag + fx * v11.imag)
    return real, imag
