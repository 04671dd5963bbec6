"""Whitening: the inverse of the noise amplitude of each tilt image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portal_extract.model import Floats


def noise_amplitude_inverse(image: NDArray[np.float32], side_px: int) -> NDArray[np.float32]:
    """Radially averaged inverse amplitude of the tiles of one tilt image.

    Parameters
    ----------
    image
        ``(height, width)`` tilt image.
    side_px
        Side of the tiles, which overlap by half: the unbinned box.

    Returns
    -------
    ``(side // 2 + 1,)`` float32, 0 where there is no power (RELION 5.0.1 behaviour).
    """
    from scipy import fft

    step = side_px // 2
    height, width = image.shape
    power = np.zeros((side_px, side_px // 2 + 1))
    count = 0
    for j in range((height - side_px) // step + 1):
        strip = image[j * step : j * step + side_px].astype(np.float64)
        for i in range((width - side_px) // step + 1):
            spectrum = fft.rfft2(strip[:, i * step : i * step + side_px], norm="ortho")
            power += spectrum.real**2 + spectrum.imag**2
            count += 1
    average = radial_average(power / max(count, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(average > 0, 1.0 / np.sqrt(average), 0.0).astype(np.float32)


def radial_average(power: Floats) -> Floats:
    """Radial average over a half-complex plane with linear splitting between neighbouring bins.

    Parameters
    ----------
    power
        ``(s, s // 2 + 1)``; each half-plane sample counts once.

    Returns
    -------
    ``(s // 2 + 1,)`` averages by radius in pixels, 0 where nothing fell.
    """
    size, half = power.shape
    rows = np.arange(size)
    k = np.where(rows < size // 2, rows, rows - size)
    radius = np.sqrt(np.arange(half) ** 2 + k[:, None] ** 2)
    low = radius.astype(np.int64)
    fraction = radius - low
    total, weight = np.zeros(half + 1), np.zeros(half + 1)
    for index, share in ((low, 1.0 - fraction), (low + 1, fraction)):
        inside = index < half
        np.add.at(total, index[inside], (share * power)[inside])
        np.add.at(weight, index[inside], share[inside])
    return np.where(weight > 0, total / np.where(weight > 0, weight, 1.0), 0.0)[:half]


def whitening_image(inverse_amplitude: NDArray[np.float32], size: int, binning: float) -> NDArray[np.float32]:
    """Whitening weights over the transform of a binned box.

    The spectrum is read at ``binning`` times the radius, as RELION 5.0.1 does, although the same index
    means the same frequency in both boxes.

    Parameters
    ----------
    inverse_amplitude
        Of :func:`noise_amplitude_inverse`.
    size
        Side of the binned box.
    binning
        Binning factor.

    Returns
    -------
    ``(size, size // 2 + 1)`` float32.
    """
    rows = np.arange(size, dtype=np.float64)
    k = np.where(rows < size / 2.0, rows, rows - size)
    radius = binning * np.sqrt(np.arange(size // 2 + 1) ** 2 + k[:, None] ** 2)
    low = np.minimum(radius.astype(np.int64), len(inverse_amplitude) - 1)
    high = np.minimum(low + 1, len(inverse_amplitude) - 1)
    fraction = radius - radius.astype(np.int64)
    values = (1.0 - fraction) * inverse_amplitude[low] + fraction * inverse_amplitude[high]
    beyond = radius.astype(np.int64) + 1 >= len(inverse_amplitude)
    values = np.where(beyond, inverse_amplitude[-1], values)
    weights: NDArray[np.float32] = values.astype(np.float32)
    return weights
