"""The fused Fourier kernel of extraction: crop, sub-pixel shift, CTF, dose weight and sign in one pass."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# sin(pi r) = r (c0 + c1 r2 + ...) on [-1/2, 1/2], fitted at Chebyshev nodes; error below 3e-11
_S0, _S1, _S2, _S3, _S4, _S5 = (
    3.141592653536293,
    -5.167712764624626,
    2.550163318948933,
    -0.5992521978408233,
    0.08205040187494996,
    -0.007028386502454903,
)
_FLOOR = np.float32(1e-8)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _transfer_row(  # type: ignore[no-untyped-def]
    row, k, phase, envelope, scale, offset, use_offset, weight
):
    """Fill ``row`` (float32) with CTF times weight along x at row frequency ``k``."""
    xx, xyk = phase[0], phase[1] * k
    rest = phase[2] * k * k + phase[4]
    r4, k2 = phase[3], k * k
    for x in range(len(row)):
        xf = np.float64(x)
        r2 = xf * xf + k2
        u = (xx * xf + xyk) * xf + rest + r4 * r2 * r2
        if use_offset:
            u += offset[x] * (1.0 / np.pi)
        turns = np.floor(u + 0.5)
        parity = turns - 2.0 * np.floor(turns * 0.5)
        r = np.float32(u - turns)
        s = r * r
        sine = r * (
            np.float32(_S0)
            + s
            * (
                np.float32(_S1)
                + s * (np.float32(_S2) + s * (np.float32(_S3) + s * (np.float32(_S4) + s * np.float32(_S5))))
            )
        )
        # -sin(pi u) = sine * (2 parity - 1)
        row[x] = sine * np.float32((2.0 * parity - 1.0) * scale)
    if envelope != 0.0:
        for x in range(len(row)):
            row[x] *= np.float32(np.exp(-envelope * (x * x + k2)))
    for x in range(len(row)):
        value = row[x]
        floored = _FLOOR if value >= np.float32(0.0) else -_FLOOR
        row[x] = (floored if np.abs(value) < _FLOOR else value) * weight[x]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "arcp"})
def _shift_row(target, source, shift, row_re, row_im, factor, transfer, use_transfer):  # type: ignore[no-untyped-def]
    """Write source * shift * row phase * factor (* transfer) to target; all complex as float32 pairs."""
    for x in range(len(target)):
        c = factor * transfer[x] if use_transfer else factor
        re = shift[x, 0] * row_re - shift[x, 1] * row_im
        im = shift[x, 0] * row_im + shift[x, 1] * row_re
        a, b = source[x, 0] * c, source[x, 1] * c
        target[x, 0] = a * re - b * im
        target[x, 1] = a * im + b * re


@njit(cache=True, nogil=True, error_model="numpy")
def _modulate(  # type: ignore[no-untyped-def]
    spectra, out, transfer_out, shift_px, phase, envelope, scale, tilt, weights, group, offsets, factor, ctf
):
    n, size, half = out.shape[0], out.shape[1], out.shape[2]
    height = spectra.shape[1]
    keep = transfer_out.shape[0] > 0
    use_offset = offsets.shape[0] > 0
    columns = np.empty((half, 2), np.float32)
    row = np.empty(half, np.float32)
    no_offset = np.empty(0, np.float64)
    for v in range(n):
        step_x = 2.0 * np.pi * shift_px[v, 0] / size
        step_y = 2.0 * np.pi * shift_px[v, 1] / size
        for x in range(half):
            columns[x, 0] = np.cos(step_x * x)
            columns[x, 1] = np.sin(step_x * x)
        for y in range(size):
            k = y if y < size // 2 else y - size
            source = y if y < size // 2 else y - size + height
            if ctf:
                offset = offsets[group[v], y] if use_offset else no_offset
                target = transfer_out[v, y] if keep else row
                _transfer_row(
                    target, np.float64(k), phase[v], envelope[v], scale[v], offset, use_offset,
                    weights[tilt[v], y],
                )  # fmt: skip
            else:
                target = row
            _shift_row(
                out[v, y], spectra[v, source], columns, np.float32(np.cos(step_y * k)),
                np.float32(np.sin(step_y * k)), factor, target, ctf,
            )  # fmt: skip


def modulate(
    spectra: NDArray[np.complex64],
    out: NDArray[np.complex64],
    *,
    shift_px: NDArray[np.float64],
    factor: float,
    ctf_phase: NDArray[np.float64] | None = None,
    ctf_envelope: NDArray[np.float64] | None = None,
    ctf_scale: NDArray[np.float64] | None = None,
    tilt: NDArray[np.int64] | None = None,
    weights: NDArray[np.float32] | None = None,
    group: NDArray[np.int64] | None = None,
    phase_offsets: NDArray[np.float64] | None = None,
    transfer_out: NDArray[np.float32] | None = None,
) -> None:
    """Crop transforms in Fourier space, shift them, and multiply by CTF and weights, for many views.

    Parameters
    ----------
    spectra
        ``(n, s0, >= b // 2 + 1)`` transforms of the unbinned boxes (pixel 0 as origin), their columns
        possibly cut off already.
    out
        ``(n, b, b // 2 + 1)`` result: ``spectra * exp(2 pi i (x tx + k ty) / b) * factor [* ctf * weight]``.
        With even s0 and b the particle's centre, at pixel s0 / 2 of the box, comes to pixel b / 2.
    shift_px
        ``(n, 2)`` residual shift x, y in binned pixels.
    factor
        Product of all normalisations and of the sign.
    ctf_phase, ctf_envelope, ctf_scale
        As in :class:`portal_extract.optics.ctf.CtfCoefficients`; without them CTF and weights are left out.
    tilt
        ``(n,)`` row of ``weights`` for each view.
    weights
        ``(F, b, b // 2 + 1)`` dose weights.
    group, phase_offsets
        ``(n,)`` and ``(G, b, b // 2 + 1)``: symmetric aberrations in radians.
    transfer_out
        ``(n, b, b // 2 + 1)`` receives CTF times weight, if wanted.
    """
    n, size, half = out.shape
    with_ctf = ctf_phase is not None
    pairs = spectra.view(np.float32).reshape(*spectra.shape, 2)
    _modulate(
        pairs,
        out.view(np.float32).reshape(n, size, half, 2),
        np.empty((0, 0, 0), np.float32) if transfer_out is None else transfer_out,
        shift_px,
        np.empty((0, 5)) if ctf_phase is None else ctf_phase,
        np.empty(0) if ctf_envelope is None else ctf_envelope,
        np.empty(0) if ctf_scale is None else ctf_scale,
        np.empty(0, np.int64) if tilt is None else tilt,
        np.empty((0, 0, 0), np.float32) if weights is None else weights,
        np.empty(0, np.int64) if group is None else group,
        np.empty((0, 0, 0)) if phase_offsets is None else phase_offsets,
        np.float32(factor),
        with_ctf,
    )
