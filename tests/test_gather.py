"""The gather kernel against a plain loop over voxels, and its independence of slabs and threads."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from portal_extract.kernels.gather import insert_slices, trim_slices
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices, planes


def slow_bilinear(image, px, py):
    """Specification 10.3: value at a position of a half transform."""
    b, sh = image.shape
    conj = not px >= 0
    x, y = (-px, -py) if conj else (px, py)
    y += b if y < 0 else 0
    x0, y0 = int(x), int(y)
    fx, fy = x - x0, y - y0
    x0, y0 = min(x0, sh - 1), min(y0, b - 1)
    x1, y1 = (x0 + 1 if x0 + 1 < sh else sh - 2), (y0 + 1) % b
    if np.iscomplexobj(image):
        rows = [round_product(1 - fx, image[r, x0]) + round_product(fx, image[r, x1]) for r in (y0, y1)]
        value = round_product(1 - fy, rows[0]) + round_product(fy, rows[1])
        return value.conjugate() if conj else value
    low, high = (np.float32((1 - fx) * float(image[r, x0]) + fx * float(image[r, x1])) for r in (y0, y1))
    return np.float32((1 - fy) * float(low)) + np.float32(fy * float(high))


def round_product(weight, value):
    """The weight is double, the product single precision."""
    return np.complex64(complex(weight * float(value.real), weight * float(value.imag)))


def slow_insert(spectra, weights, matrices, max_freq):
    b = spectra.shape[1]
    data, weight = np.zeros((b, b, b // 2 + 1), complex), np.zeros((b, b, b // 2 + 1))
    for image, image_weight, g, radius in zip(spectra, weights, matrices, max_freq, strict=True):
        for z, y, x in np.ndindex(data.shape):
            ky, kz = (v if v < b // 2 else v - b for v in (y, z))
            left = int(radius) ** 2 - ky**2 - kz**2
            if left < 0 or x > int(math.sqrt(left)):
                continue
            px, py, pz = ((g[i, 0] * x + g[i, 1] * ky) + g[i, 2] * kz for i in range(3))
            if -1 < pz < 1 and abs(px) < b // 2 + 1 and abs(py) < b // 2 + 1:
                value = slow_bilinear(image, px, py)
                tent = 1 - abs(pz)
                data[z, y, x] += complex(tent * float(value.real), tent * float(value.imag))
                weight[z, y, x] += tent * float(slow_bilinear(image_weight, px, py))
    return data, weight


def random_slices(seed: int, box: int, matrices) -> Slices:
    rng = np.random.default_rng(seed)
    shape = len(matrices), box, box // 2 + 1
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    radii = rng.integers(0, box // 2 + 2, len(matrices))
    radii[0] = box // 2 + 1
    return Slices(spectra, rng.uniform(size=shape).astype(np.float32), np.ascontiguousarray(matrices), radii)


def check_against_loop(slices: Slices, box: int) -> None:
    found = Accumulator.empty(box)
    insert(found, slices)
    data, weight = slow_insert(slices.spectra, slices.weights, slices.matrices, slices.max_freq)
    assert_array_equal(found.weight, weight)
    assert_array_equal(found.data, data)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), box=st.sampled_from([8, 10]), ratio=st.sampled_from([1.0, 1.3, 0.7]))
def test_equals_the_plain_loop(seed, box, ratio):
    rotations = Rotation.random(2, rng=seed).as_matrix()
    check_against_loop(random_slices(seed, box, insertion_matrices(rotations, np.eye(3), ratio)), box)


AXES = [
    np.eye(3),
    np.eye(3)[[2, 1, 0]] * [[1], [1], [-1]],  # tilted by a right angle: the slice is the plane x = 0
    np.eye(3)[[1, 2, 0]],
    np.eye(3)[[0, 2, 1]] * [[1], [-1], [1]],
]


@pytest.mark.parametrize("matrix", AXES)
@pytest.mark.parametrize("noise", [0.0, 1e-17, -1e-17, 1e-14, -3e-15, 1e-7])
def test_equals_the_plain_loop_where_rounding_decides(matrix, noise):
    """Slices along an axis: coordinates are 0 or a rounding error, which picks the sample."""
    tilted = matrix + noise * np.array([[1.0, -2.0, 1.0], [3.0, 1.0, -1.0], [-1.0, 1.0, 2.0]])
    check_against_loop(random_slices(7, 8, tilted[None]), 8)


def test_diagonal_planes():
    rotations = Rotation.from_euler(
        "zyx", [[45, 0, 0], [45, 45, 0], [90, 45, 45], [0, -45, 90]], degrees=True
    )
    check_against_loop(random_slices(9, 8, rotations.as_matrix()), 8)


def test_tiny_negative_row_takes_the_last_one():
    """RELION wraps -1e-17 to exactly b and clamps: frequency -1 is returned instead of 0."""
    slices = random_slices(1, 8, np.eye(3)[None])
    nudged = np.eye(3)
    nudged[1, 0] = -1e-18
    found, exact = Accumulator.empty(8), Accumulator.empty(8)
    insert(exact, slices)
    insert(found, Slices(slices.spectra, slices.weights, nudged[None], slices.max_freq))
    assert_allclose(found.weight[0, 0, 1:4], slices.weights[0, 7, 1:4])
    assert_allclose(exact.weight[0, 0, 1:4], slices.weights[0, 0, 1:4])


def test_slabs_threads_and_batches_do_not_change_a_bit():
    slices = random_slices(4, 16, insertion_matrices(Rotation.random(9, rng=4).as_matrix(), np.eye(3)))
    whole = Accumulator.empty(16)
    insert(whole, slices)
    assert whole.weight.any()
    with ThreadPoolExecutor(3) as pool:
        for parts in (1, 3, 16, 40):
            threaded = Accumulator.empty(16)
            for batch in (slice(0, 4), slice(4, 5), slice(5, 9)):
                some = Slices(
                    *(getattr(slices, f)[batch] for f in ("spectra", "weights", "matrices", "max_freq"))
                )
                insert(threaded, some, pool, parts)
            assert_array_equal(threaded.data, whole.data)
            assert_array_equal(threaded.weight, whole.weight)


def test_only_the_slab_is_touched():
    slices = random_slices(2, 8, Rotation.random(3, rng=2).as_matrix())
    data, weight = np.full((8, 8, 5), 7 + 0j), np.full((8, 8, 5), 5.0)
    insert_slices(data, weight, slices.spectra, slices.weights, slices.matrices, slices.max_freq, 2, 5)
    outside = np.r_[0:2, 5:8]
    assert (data[outside] == 7).all()
    assert (weight[outside] == 5).all()
    assert (weight[2:5] != 5).any()


def test_constant_weight_is_that_of_ones():
    slices = random_slices(8, 8, Rotation.random(2, rng=8).as_matrix())
    found = []
    for weights in (np.ones((1, 1, 1), np.float32), np.ones_like(slices.weights)):
        found.append(Accumulator.empty(8))
        insert(found[-1], Slices(slices.spectra, weights, slices.matrices, slices.max_freq))
    assert_array_equal(found[0].data, found[1].data)
    assert_array_equal(found[0].weight, found[1].weight)


def test_no_slices_change_nothing():
    empty = Slices(
        np.zeros((0, 8, 5), np.complex64),
        np.ones((1, 1, 1), np.float32),
        np.zeros((0, 3, 3)),
        np.zeros(0, np.int64),
    )
    accumulator = Accumulator.empty(8)
    insert(accumulator, empty)
    assert not accumulator.weight.any()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.5, 2.0))
def test_insertion_matrix_is_the_transposed_inverse(seed, ratio):
    projection, pose = Rotation.random(2, rng=seed).as_matrix()
    found = insertion_matrices(projection, pose, ratio)
    assert_allclose(found, np.linalg.inv(ratio * projection @ pose).T, atol=1e-12)


@settings(deadline=None)
@given(st.integers(1, 64), st.integers(1, 100))
def test_planes_cover_everything_once(box, parts):
    covered = [z for start, stop in planes(box, parts) for z in range(start, stop)]
    assert covered == list(range(box))


@pytest.mark.parametrize("recentre", [True, False])
@pytest.mark.parametrize("constant", [True, False])
def test_trimming_cuts_rows_and_moves_the_particle(recentre, constant):
    rng = np.random.default_rng(6)
    image = np.zeros((2, 8, 8), np.float32)
    image[:, 4, 4] = 1.0
    spectra = np.fft.rfft2(image).astype(np.complex64)
    weights = np.ones((1, 1, 1) if constant else spectra.shape, np.float32)
    ranges = rng.integers(0, 7, (2, 8))
    kept = np.arange(5) < ranges[:, :, None]
    expected = np.where(kept, 1.0 if recentre else spectra, 0)
    trim_slices(spectra, weights, ranges, recentre)
    assert_allclose(spectra, expected, atol=1e-6)
    assert_array_equal(weights, 1.0 if constant else kept)


@pytest.mark.parametrize("constant", [False, True])
def test_voxels_collected_in_several_goes_are_the_same(constant):
    """One slab of this box has many times more voxels than are collected at a time, one plane has not."""
    box = 80
    slices = random_slices(4, box, Rotation.random(3, rng=4).as_matrix())
    if constant:
        slices = Slices(slices.spectra, np.full((1, 1, 1), 0.5, np.float32), slices.matrices, slices.max_freq)
    one, many = Accumulator.empty(box), Accumulator.empty(box)
    insert(one, slices, parts=1)
    insert(many, slices, parts=box)
    assert np.count_nonzero(one.weight) > 5000
    assert_array_equal(one.data, many.data)
    assert_array_equal(one.weight, many.weight)
