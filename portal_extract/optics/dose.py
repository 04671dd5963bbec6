"""Weights for radiation damage."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portal_extract.model import Floats, Ints
from portal_extract.optics.ctf import frequency_indices


def dose_weights(
    dose_e_per_a2: Floats, bfactor_per_dose: float, size: int, pixel_size_angst: float
) -> NDArray[np.float32]:
    """Dose weight of every tilt image over the half-complex transform.

    The exposure filter of Grant & Grigorieff (eLife 2015, e06980) for all voltages, or an exponential where
    ``bfactor_per_dose`` is positive (RELION 5.0.1 behaviour).

    Parameters
    ----------
    dose_e_per_a2
        ``(F,)`` accumulated dose before each image.
    bfactor_per_dose
        ``rlnCtfBfactorPerElectronDose``.
    size
        Side of the (binned) box.
    pixel_size_angst
        Binned pixel size.

    Returns
    -------
    ``(F, size, size // 2 + 1)`` float32.
    """
    x, k = frequency_indices(size)
    step = 1.0 / (size * pixel_size_angst)
    dose = np.asarray(dose_e_per_a2, dtype=np.float64)[:, None, None]
    if bfactor_per_dose > 0:
        r2 = (x * step) ** 2 + (k[:, None] * step) ** 2
        return np.exp(-bfactor_per_dose * dose / 4.0 * r2).astype(np.float32)
    frequency = np.sqrt(x**2 + k[:, None] ** 2) * step
    with np.errstate(divide="ignore"):
        critical = 0.245 * frequency**-1.665 + 2.81
    return np.exp(-0.5 * dose / critical).astype(np.float32)


def dose_ranges(weights: NDArray[np.float32], cutoff_fraction: float) -> Ints:
    """First column of each row that is left out because its dose weight is too small.

    Parameters
    ----------
    weights
        ``(F, size, size // 2 + 1)`` dose weights.
    cutoff_fraction
        Weights must be larger than this.

    Returns
    -------
    ``(F, size)`` one more than the last column within the circle of radius size / 2 whose weight exceeds the
    cut-off, 0 if there is none (RELION 5.0.1 behaviour).
    """
    n_frames, size, half = weights.shape
    x, k = frequency_indices(size)
    inside = x <= np.minimum(np.sqrt(np.maximum(size * size // 4 - k**2, 0.0)), size / 2)[:, None]
    kept = (weights.astype(np.float64) > cutoff_fraction) & inside
    last = half - np.argmax(kept[..., ::-1], axis=-1)
    return np.where(kept.any(axis=-1), last, 0).astype(np.int64).reshape(n_frames, size)
