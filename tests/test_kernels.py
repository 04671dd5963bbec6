"""The fused kernels against slow references of a few lines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal_extract.extraction.masks import circle_mask, gridding_weights
from portal_extract.kernels.mask import mask_and_crop, mask_in_place
from portal_extract.kernels.modulate import modulate
from portal_extract.optics.ctf import CtfCoefficients, ctf_image


def _slow_modulate(spectra, size, shift, factor, coefficients, view, weight, offset):
    height, half = spectra.shape[0], size // 2 + 1
    out = np.zeros((size, half), complex)
    ctf = ctf_image(coefficients, view, size, offset) if coefficients is not None else np.ones((size, half))
    for y in range(size):
        k = y if y < size // 2 else y - size
        row = y if y < size // 2 else y - size + height
        for x in range(half):
            phase = 2 * math.pi * (shift[0] * x + shift[1] * k) / size
            out[y, x] = spectra[row, x] * np.exp(1j * phase) * factor * ctf[y, x] * weight[y, x]
    return out


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 12), st.integers(0, 9), st.booleans(), st.booleans(), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_modulate(half_size, extra, with_ctf, with_offset, seed):
    rng = np.random.default_rng(seed)
    size, height, n, n_frames = 2 * half_size, 2 * (half_size + extra), 3, 2
    half = size // 2 + 1
    spectra = (rng.standard_normal((n, height, half)) + 1j * rng.standard_normal((n, height, half))).astype(
        np.complex64
    )
    shift = rng.uniform(-1, 1, (n, 2))
    phase = rng.uniform(-1, 1, (n, 5)) * [0.5, 0.5, 0.5, 1e-3, 1.0]
    coefficients = CtfCoefficients(phase, np.array([0.0, 0.01, 0.1]), rng.uniform(0.5, 2, n))
    weights = rng.random((n_frames, size, half)).astype(np.float32)
    tilt, group = rng.integers(0, n_frames, n), rng.integers(0, 2, n)
    offsets = rng.uniform(-3, 3, (2, size, half))
    out, transfer = np.zeros((n, size, half), np.complex64), np.zeros((n, size, half), np.float32)
    ctf = {}
    if with_ctf:
        ctf = {
            "ctf_phase": phase,
            "ctf_envelope": coefficients.envelope,
            "ctf_scale": coefficients.scale,
            "tilt": tilt,
            "weights": weights,
            "group": group,
            "phase_offsets": offsets if with_offset else None,
            "transfer_out": transfer,
        }
    modulate(spectra, out, shift_px=shift, factor=-0.7, **ctf)
    for v in range(n):
        weight = weights[tilt[v]] if with_ctf else np.ones((size, half))
        offset = offsets[group[v]] if with_offset else None
        expected = _slow_modulate(
            spectra[v], size, shift[v], -0.7, coefficients if with_ctf else None, v, weight, offset
        )
        assert np.abs(out[v] - expected).max() < 5e-6
        if with_ctf:
            expected_transfer = ctf_image(coefficients, v, size, offset) * weight
            assert np.abs(transfer[v] - expected_transfer).max() < 2e-6


def test_ctf_zero_is_raised_with_its_sign():
    # sin(0) is exactly zero: RELION counts it as positive
    out, transfer = np.zeros((1, 4, 3), np.complex64), np.zeros((1, 4, 3), np.float32)
    modulate(
        np.ones((1, 4, 3), np.complex64),
        out,
        shift_px=np.zeros((1, 2)),
        factor=1.0,
        ctf_phase=np.zeros((1, 5)),
        ctf_envelope=np.zeros(1),
        ctf_scale=np.ones(1),
        tilt=np.zeros(1, np.int64),
        weights=np.ones((1, 4, 3), np.float32),
        transfer_out=transfer,
    )
    assert np.all(transfer == np.float32(1e-8))


def _slow_mask(image, boundary, falloff):
    n = len(image)
    middle, radius = n // 2, n // 2 - boundary
    r = np.hypot(np.arange(n) - middle, (np.arange(n) - middle)[:, None])
    outside = image[r > radius].astype(float)
    mean = outside.mean() if outside.size else 0.0
    edge = 0.5 - 0.5 * np.cos(np.pi * (radius - r) / falloff)
    mask = np.where(r < radius - falloff, 1, np.where(r < radius, edge, 0))
    return (mask * (image - mean)).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 20), st.integers(0, 8), st.integers(0, 2**32 - 1))
def test_mask_and_crop(half_size, boundary, seed):
    rng = np.random.default_rng(seed)
    size, boundary = 2 * half_size, min(boundary, half_size - 1)
    images = (rng.standard_normal((3, size, size)) + 20).astype(np.float32)
    mask = circle_mask(size, boundary)
    crop = size - 2 * boundary
    out, sums, slots = np.zeros((3, crop, crop), np.float32), np.zeros((3, 4)), np.array([2, 0, 1])
    mask_and_crop(images, mask.weights, mask.spans, mask.n_background, boundary, out, slots, sums)
    inner = slice(boundary, size - boundary)
    for v in range(3):
        expected = _slow_mask(images[v], boundary, 5.0)[inner, inner]
        found = out[slots[v]]
        assert np.allclose(found, expected, atol=1e-5)
        assert np.allclose(
            sums[slots[v]],
            [found.min(), found.max(), found.sum(dtype=float), (found.astype(float) ** 2).sum()],
        )
    whole = images.copy()
    mask_in_place(whole, mask.weights, mask.spans, mask.n_background)
    assert np.allclose(whole[1], _slow_mask(images[1], boundary, 5.0), atol=1e-5)


def test_crop_without_mask():
    images = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    out, sums = np.zeros((1, 2, 2), np.float32), np.zeros((1, 4))
    mask_and_crop(images, np.empty((0, 0)), np.empty((0, 2), np.int64), 0, 2, out, np.array([0]), sums)
    assert out[0].tolist() == [[14, 15], [20, 21]]
    assert sums[0].tolist() == [14, 21, 70, 14**2 + 15**2 + 20**2 + 21**2]


@pytest.mark.parametrize("boundary", [0, 3])
def test_gridding_weights_slowly(boundary):
    size, weights = 16, gridding_weights(16, boundary)
    radius = size // 2 - boundary
    for y in range(size):
        for x in range(size):
            r = math.hypot(x - 8, y - 8)
            expected = 1 if r < 1 else r / math.sin(math.pi * r / radius) if r < radius - 1 else 0
            assert weights[y, x] == pytest.approx(expected)
