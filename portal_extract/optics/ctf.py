"""Contrast transfer function: coefficients per view, and a plain reference of the image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from portal_extract.model import Floats, TiltSeries

CTF_FLOOR = 1e-8


def electron_wavelength_angst(voltage_kv: float) -> float:
    """Relativistic wavelength in Angstrom (RELION 5.0.1's constants)."""
    volts = voltage_kv * 1e3
    return 12.2643247 / float(np.sqrt(volts * (1.0 + volts * 0.978466e-6)))


@dataclass(frozen=True)
class CtfCoefficients:
    """The phase of the CTF as a polynomial in index frequencies, for many views.

    With x and k the signed frequency indices of an image of ``size`` pixels,
    ``ctf = -sin(pi u) exp(-b r2) scale``, ``r2 = x**2 + k**2``,
    ``u = xx x**2 + xy x k + yy k**2 + r4 r2**2 + constant``.

    Attributes
    ----------
    phase
        ``(V, 5)`` xx, xy, yy, r4 and constant, in half turns (phase / pi).
    envelope
        ``(V,)`` b; 0 without B-factor.
    scale
        ``(V,)``.
    """

    phase: Floats
    envelope: Floats
    scale: Floats


def ctf_coefficients(
    series: TiltSeries, tilt: np.ndarray, depth_px: Floats, size: int, pixel_size_angst: float
) -> CtfCoefficients:
    """CTF of views at a depth, for transforms of a given size (RELION 5.0.1 behaviour).

    Parameters
    ----------
    series
        Gives voltage, spherical aberration, amplitude contrast, handedness and defocus of each tilt image.
    tilt
        ``(V,)`` index of the tilt image of each view.
    depth_px
        ``(V,)`` depth of the particle below the tomogram centre along the beam, unbinned pixels.
    size
        Side of the (binned) box.
    pixel_size_angst
        Binned pixel size.

    Returns
    -------
    Coefficients, double precision.
    """
    wavelength = electron_wavelength_angst(series.voltage_kv)
    q0 = series.amplitude_contrast
    offset = series.handedness * series.pixel_size_angst * series.defocus_slope * depth_px
    u, v = series.defocus_u_angst[tilt] + offset, series.defocus_v_angst[tilt] + offset
    angle = series.defocus_angle_deg[tilt] * np.pi / 180.0
    c, s = np.cos(angle), np.sin(angle)
    k1 = np.pi * wavelength
    k2 = np.pi / 2.0 * series.spherical_aberration_mm * 1e7 * wavelength**3
    k3 = np.arctan(q0 / np.sqrt(1.0 - q0 * q0))
    k5 = series.phase_shift_deg[tilt] * np.pi / 180.0
    step = 1.0 / (size * pixel_size_angst)
    phase = np.stack(
        [
            -k1 * step**2 * (u * c * c + v * s * s),
            -k1 * step**2 * 2.0 * (u - v) * s * c,
            -k1 * step**2 * (u * s * s + v * c * c),
            np.full_like(u, k2 * step**4),
            -k5 - k3,
        ],
        axis=-1,
    )
    return CtfCoefficients(
        phase / np.pi, series.ctf_bfactor_a2[tilt] / 4.0 * step**2, series.ctf_scale[tilt].astype(np.float64)
    )


def frequency_indices(size: int) -> tuple[Floats, Floats]:
    """Signed frequency indices of a half-complex transform: ``(size // 2 + 1,)`` x and ``(size,)`` k(y).

    The Nyquist column is positive, the Nyquist row negative (RELION 5.0.1 behaviour).
    """
    rows = np.arange(size, dtype=np.float64)
    return np.arange(size // 2 + 1, dtype=np.float64), np.where(rows < size // 2, rows, rows - size)


def ctf_image(
    coefficients: CtfCoefficients, view: int, size: int, phase_offset: Floats | None = None
) -> Floats:
    """CTF of one view, drawn plainly; the reference for the fused kernel, and for plots.

    Parameters
    ----------
    coefficients
        Of many views.
    view
        Which one.
    size
        Side of the box.
    phase_offset
        ``(size, size // 2 + 1)`` symmetric aberration in radians.

    Returns
    -------
    ``(size, size // 2 + 1)`` values, double; magnitudes below 1e-8 are raised to it.
    """
    x, k = frequency_indices(size)
    k = k[:, None]
    xx, xy, yy, r4, constant = coefficients.phase[view]
    r2 = x**2 + k**2
    gamma = np.pi * (xx * x**2 + xy * x * k + yy * k**2 + r4 * r2**2 + constant)
    if phase_offset is not None:
        gamma = gamma + phase_offset
    ctf = -np.sin(gamma) * np.exp(-coefficients.envelope[view] * r2) * coefficients.scale[view]
    return np.where(np.abs(ctf) < CTF_FLOOR, np.where(ctf >= 0, CTF_FLOOR, -CTF_FLOOR), ctf)
