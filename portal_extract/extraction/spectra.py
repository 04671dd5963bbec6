"""From patches to weighted transforms: what all outputs share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.masks import CircleMask, circle_mask
from portal_extract.extraction.views import Views
from portal_extract.model import Floats, Ints, OpticsGroup
from portal_extract.optics.aberrations import zernike_image
from portal_extract.optics.ctf import CtfCoefficients, ctf_coefficients
from portal_extract.optics.dose import dose_weights
from portal_extract.options import ExtractOptions


@dataclass(frozen=True)
class SpectrumTables:
    """What the transforms of one tilt series are multiplied by; read-only, shared by all threads.

    Attributes
    ----------
    dose
        ``(F, b, b // 2 + 1)`` float32 dose weights, None without CTF.
    ctf
        Coefficients of every view, None without CTF.
    group
        ``(V,)`` optics group of each view.
    even_phase
        ``(G, b, b // 2 + 1)`` symmetric aberrations in radians, or None.
    odd_factor
        ``(G, b, b // 2 + 1)`` complex64 correction of antisymmetric aberrations, or None.
    whitening
        ``(F, b, b // 2 + 1)`` float32, or None.
    precrop
        Mask of the unbinned box, or None.
    """

    dose: NDArray[np.float32] | None
    ctf: CtfCoefficients | None
    group: Ints
    even_phase: Floats | None
    odd_factor: NDArray[np.complex64] | None
    whitening: NDArray[np.float32] | None
    precrop: CircleMask | None


def make_tables(
    views: Views,
    options: ExtractOptions,
    optics_groups: tuple[OpticsGroup, ...],
    group_of_particle: Ints,
    aberration_pixel_angst: float,
    whitening: NDArray[np.float32] | None = None,
) -> SpectrumTables:
    """Prepare a tilt series.

    Parameters
    ----------
    views
        Its views.
    options
        Box, binning, CTF.
    optics_groups
        Of the project.
    group_of_particle
        ``(N,)`` optics group of every particle of the project.
    aberration_pixel_angst
        Binned pixel size at which aberrations of all groups are drawn: RELION 5.0.1 takes that of the first
        optics group in extraction and of the first tomogram in reconstruction.
    whitening
        ``(F, b, b // 2 + 1)`` weights, or None.
    """
    size, series = options.box_size, views.series
    pixel = series.pixel_size_angst * options.binning
    dose = ctf = even = odd = None
    if options.ctf:
        dose = dose_weights(series.dose_e_per_a2, series.bfactor_per_dose, size, pixel)
        ctf = ctf_coefficients(series, views.tilt, views.depth_px, size, pixel)
    if options.ctf and any(g.even_zernike is not None for g in optics_groups):
        even = _aberrations(optics_groups, "even", size, aberration_pixel_angst)
    if any(g.odd_zernike is not None for g in optics_groups):
        phase = _aberrations(optics_groups, "odd", size, aberration_pixel_angst)
        odd = np.exp(-1j * phase).astype(np.complex64)
    return SpectrumTables(
        dose=dose,
        ctf=ctf,
        group=group_of_particle[views.kept[views.particle]],
        even_phase=even,
        odd_factor=odd,
        whitening=whitening,
        precrop=circle_mask(options.unbinned_box, 0) if options.circle_precrop else None,
    )


def _aberrations(groups: tuple[OpticsGroup, ...], parity: str, size: int, pixel_angst: float) -> Floats:
    found = [g.even_zernike if parity == "even" else g.odd_zernike for g in groups]
    return np.stack(
        [zernike_image(np.zeros(0) if c is None else c, parity, size, pixel_angst) for c in found]
    )


def transform(
    patches: NDArray[np.float32],
    which: Ints,
    views: Views,
    tables: SpectrumTables,
    options: ExtractOptions,
    *,
    factor: float = 1.0,
    transfer_out: NDArray[np.float32] | None = None,
) -> NDArray[np.complex64]:
    """Transform patches and multiply them by everything that RELION multiplies them by.

    Parameters
    ----------
    patches
        ``(n, s0, s0)`` cut from the tilt images; changed in place by a precrop.
    which
        ``(n,)`` their views.
    views, tables, options
        Of the tilt series.
    factor
        An additional factor.
    transfer_out
        ``(n, b, b // 2 + 1)`` float32, receives CTF times dose weight, if wanted.

    Returns
    -------
    ``(n, b, b // 2 + 1)`` orthonormal transforms; the particle is at pixel ``b / 2`` of their inverse.
    """
    from portal_extract.kernels.modulate import modulate

    size, binning = options.box_size, options.binning
    half = size // 2 + 1
    if tables.precrop is not None:
        from portal_extract.kernels.mask import mask_in_place

        mask_in_place(patches, tables.precrop.weights, tables.precrop.spans, tables.precrop.n_background)
    spectra = _forward(patches, half)
    sign = -1.0 if options.invert_contrast else 1.0
    scale = sign * factor / options.unbinned_box / (binning if binning != 1.0 else 1.0)
    out = np.empty((len(patches), size, half), np.complex64)
    if tables.ctf is None:
        modulate(spectra, out, shift_px=views.shift_px[which], factor=scale)
    else:
        modulate(
            spectra,
            out,
            shift_px=views.shift_px[which],
            factor=scale,
            ctf_phase=tables.ctf.phase[which],
            ctf_envelope=tables.ctf.envelope[which],
            ctf_scale=tables.ctf.scale[which],
            tilt=views.tilt[which],
            weights=tables.dose,
            group=tables.group[which],
            phase_offsets=tables.even_phase,
            transfer_out=transfer_out,
        )
    if tables.odd_factor is not None:
        out *= tables.odd_factor[tables.group[which]]
    if tables.whitening is not None:
        out *= tables.whitening[views.tilt[which]]
    return out


def _forward(patches: NDArray[np.float32], half: int) -> NDArray[np.complex64]:
    """Unnormalised half-complex transform; columns that binning drops are not transformed along y."""
    from scipy import fft

    side = patches.shape[1]
    if half == side // 2 + 1:
        return fft.rfft2(patches, workers=1)
    rows = fft.rfft(patches, axis=2, workers=1)[:, :, :half]
    return fft.fft(rows, axis=1, workers=1)


def to_images(spectra: NDArray[np.complex64], normalise: bool = True) -> NDArray[np.float32]:
    """Inverse transform ``(n, b, b // 2 + 1)`` to ``(n, b, b)`` float32.

    With ``normalise`` the pair of transforms is orthonormal; without, the factor 1 / b is the caller's.
    """
    from scipy import fft

    size = spectra.shape[1]
    return fft.irfft2(
        spectra, s=(size, size), norm="ortho" if normalise else "forward", workers=1, overwrite_x=True
    )
