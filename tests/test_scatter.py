"""The scatter kernel against a plain loop over samples and voxels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal
from scipy.spatial.transform import Rotation

from portal_extract.kernels.scatter import scatter_slices


def slow_scatter(spectra, weights, rows, columns, scales, ranges, size):
    """Specification 8.1, one voxel at a time."""
    b, half = spectra.shape[1], size // 2
    data = np.zeros((size, size, half + 1), np.complex64)
    weight, multiplicity = np.zeros((2, size, size, half + 1), np.float32)
    for f in range(len(spectra)):
        for y in range(b):
            k = y if y < b // 2 else y - b
            for x in range(0 if y < b // 2 else 1, ranges[f, y]):
                pos, val = x * rows[f] + k * columns[f], complex(spectra[f, y, x])
                if pos[0] < 0:
                    pos, val = -pos, val.conjugate()
                base = [math.floor(p) for p in pos]
                for n in range(8):
                    g = [base[0] + n % 2, base[1] + n // 2 % 2, base[2] + n // 4]
                    if g[0] > half or not (-half <= g[1] < half and -half <= g[2] < half):
                        continue
                    m = (
                        scales[f]
                        * (1 - abs(pos[0] - g[0]))
                        * (1 - abs(pos[1] - g[1]))
                        * (1 - abs(pos[2] - g[2]))
                    )
                    zi, yi = g[2] % size, g[1] % size
                    mate = ((size - zi) % size, (size - yi) % size, 0)
                    for index, v in [((zi, yi, g[0]), val), (mate, val.conjugate())][: 2 if g[0] == 0 else 1]:
                        data[index] += np.complex64(m * v)
                        weight[index] += np.float32(m * float(weights[f, y, x]))
                        multiplicity[index] = np.float32(float(multiplicity[index]) + m)
    return data, weight, multiplicity


def random_case(seed: int, box: int, size: int, n: int):
    rng = np.random.default_rng(seed)
    shape = n, box, box // 2 + 1
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    weights = rng.uniform(size=shape).astype(np.float32)
    axes = Rotation.random(n, rng=seed).as_matrix() * (size / box)
    k = np.minimum(np.arange(box), box - np.arange(box))
    ranges = np.sqrt(box * box // 4 - k**2).astype(np.int64) + 1
    ranges = np.maximum(ranges - rng.integers(0, 3, (n, 1)), 0)
    rows, columns = axes[:, 0].copy(), axes[:, 1].copy()
    return spectra, weights, rows, columns, np.full(n, (size / box) ** 2), ranges


def scatter(spectra, weights, rows, columns, scales, ranges, size):
    sums = np.zeros((size, size, size // 2 + 1, 4), np.float32)
    scatter_slices(sums, spectra, weights, rows, columns, scales, ranges)
    return sums[..., 0] + 1j * sums[..., 1], sums[..., 2], sums[..., 3]


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    box=st.sampled_from([8, 12]),
    crop=st.sampled_from([4, 6, 8]),
    n=st.integers(1, 3),
)
def test_equals_the_plain_loop(seed, box, crop, n):
    case = random_case(seed, box, crop, n)
    for found, expected in zip(scatter(*case, crop), slow_scatter(*case, crop), strict=True):
        assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "matrix", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), np.eye(3)[[2, 1, 0]], np.eye(3)[[1, 2, 0]]]
)
def test_equals_the_plain_loop_along_the_axes(matrix):
    """Samples fall on voxels, on the plane x = 0 and on its edges."""
    spectra, weights, _, _, scales, ranges = random_case(3, 8, 8, 1)
    case = spectra, weights, matrix[None, 0].copy(), matrix[None, 1].copy(), scales, ranges
    for found, expected in zip(scatter(*case, 8), slow_scatter(*case, 8), strict=True):
        assert_array_equal(found, expected)


def test_constant_weight_is_that_of_ones():
    spectra, weights, *rest = random_case(1, 12, 12, 2)
    constant = scatter(spectra, np.ones((1, 1, 1), np.float32), *rest, 12)
    ones = scatter(spectra, np.ones_like(weights), *rest, 12)
    for a, b in zip(constant, ones, strict=True):
        assert_array_equal(a, b)


def test_origin_is_counted_twice():
    spectra = np.ones((1, 8, 5), np.complex64)
    ranges = np.zeros((1, 8), np.int64)
    ranges[0, 0] = 1
    one = np.ones((1, 1, 1), np.float32)
    sums = scatter(spectra, one, np.eye(3)[:1], np.eye(3)[1:2], np.ones(1), ranges, 8)
    expected = np.zeros((8, 8, 5))
    expected[0, 0, 0] = 2
    for found in sums:
        assert_array_equal(found, expected)


def test_plane_of_zero_frequency_is_friedel_symmetric():
    data, _, _ = scatter(*random_case(5, 12, 12, 3), 12)
    mates = (-np.arange(12)) % 12
    inner = np.r_[0:6, 7:12]  # the Nyquist rows have no mate of their own
    plane, mirrored = data[:, :, 0], data[mates][:, mates][:, :, 0].conj()
    np.testing.assert_allclose(plane[np.ix_(inner, inner)], mirrored[np.ix_(inner, inner)], atol=1e-6)
