"""Gridding and CTF correction, cropping, taper and expansion against plain loops."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from portal_extract.reconstruction.accumulate import Accumulator, memory_bytes
from portal_extract.reconstruction.correction import (
    centre_phases,
    correct_ctf,
    correct_gridding,
    crop_volume,
    expand_weights,
    radial_average,
    taper_sphere,
    to_fourier_space,
    to_real_space,
)
from portal_extract.reconstruction.finalise import finalise, finalised_maps
from portal_extract.reconstruction.options import ReconstructOptions

N = 8


def half_volume(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.1, 1.0, (N, N, N // 2 + 1))


def signed(v: int) -> int:
    return v if v < N // 2 else v - N


def slow_expand(v):
    full = np.zeros((N, N, N))
    for z, y, x in np.ndindex(v.shape):
        full[z, y, x] = v[z, y, x]
        if x > 0:
            full[(N - z) % N, (N - y) % N, N - x] = v[z, y, x]
    index = (np.arange(N) + N - N // 2) % N
    return full[np.ix_(index, index, index)].astype(np.float32)


def test_expansion_equals_the_plain_loop():
    assert_array_equal(expand_weights(half_volume()), slow_expand(half_volume()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_transforms_are_inverse_and_keep_energy(dtype):
    volume = np.random.default_rng(1).normal(size=(N, N, N)).astype(dtype)
    transform = to_fourier_space(volume)
    assert transform.dtype == np.result_type(dtype, np.complex64)
    back = to_real_space(transform)
    assert back.dtype == dtype
    assert_allclose(back, volume, atol=1e-5)
    full = np.fft.fftn(volume, norm="ortho")
    assert_allclose(transform, full[:, :, : N // 2 + 1], atol=1e-5)


def test_phases_move_the_particle_to_the_middle():
    transform = np.ones((N, N, N // 2 + 1), complex)
    volume = to_real_space(centre_phases(transform))
    expected = np.zeros((N, N, N))
    expected[N // 2, N // 2, N // 2] = N**1.5
    assert_allclose(volume, expected, atol=1e-12)
    assert (transform == 1).all()


def test_gridding_equals_the_formula():
    volume = np.ones((N, N, N))
    correct_gridding(volume)
    for z, y, x in np.ndindex(volume.shape):
        q = math.dist((x, y, z), (N // 2,) * 3) / N
        s = (math.sin(math.pi * q) / (math.pi * q)) ** 2 if q > 0 else 1.0
        assert volume[z, y, x] == pytest.approx(1 / 0.01 if s < 0.01 or q > 1 else 1 / s)


def slow_radial_average(v):
    total, count = np.zeros((2, N // 2 + 1))
    for z, y, x in np.ndindex(v.shape):
        r = math.hypot(x, signed(y), signed(z))
        for shell, part in ((int(r), 1 - (r - int(r))), (int(r) + 1, r - int(r))):
            if shell < N // 2 + 1:
                total[shell] += part * v[z, y, x]
                count[shell] += part
    return total / count


def test_radial_average_equals_the_plain_loop():
    assert_allclose(radial_average(half_volume()), slow_radial_average(half_volume()))


def test_heuristic_equals_the_plain_loop():
    weight = half_volume(2)
    weight[1, 2, 3] = 1e-9  # below a thousandth of its shell
    weight[0, 1, :] = 0.0
    found = correct_ctf(np.ones(weight.shape, complex), weight, -1.0)
    average = slow_radial_average(weight)
    for z, y, x in np.ndindex(weight.shape):
        r = math.hypot(x, signed(y), signed(z))
        if int(r) + 1 >= N // 2 + 1:
            assert found[z, y, x] == 0
        else:
            part = r - int(r)
            smallest = 0.001 * (part * average[int(r) + 1] + (1 - part) * average[int(r)])
            assert found[z, y, x] == pytest.approx(1 / max(weight[z, y, x], smallest))


def test_heuristic_without_any_weight_leaves_the_signal():
    found = correct_ctf(np.ones((N, N, N // 2 + 1), complex), np.zeros((N, N, N // 2 + 1)), 0.0)
    assert found[0, 0, 1] == 1
    assert np.isfinite(found).all()


def test_wiener_divides_the_corners_too():
    weight = half_volume(3)
    found = correct_ctf(np.ones(weight.shape, complex), weight, 0.5)
    assert_allclose(found, 1 / (weight + 2.0))


@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("taper", [3.0, 0.0, 100.0])
def test_taper_equals_the_plain_loop(centre, taper):
    volume = np.random.default_rng(4).normal(size=(N, N, N)) + 2
    m = N / 2.0
    mask = np.zeros_like(volume)
    for z, y, x in np.ndindex(volume.shape):
        r = math.dist((x, y, z), (m, m, m))
        if r < m - taper:
            mask[z, y, x] = 1
        elif r < m:
            mask[z, y, x] = 0.5 - 0.5 * math.cos(math.pi * (m - r) / taper)
    mean = (mask * volume).sum() / mask.sum() if centre else 0.0
    assert_allclose(taper_sphere(volume.copy(), taper, centre), mask * (volume - mean), atol=1e-12)


def test_crop_keeps_the_middle():
    volume = np.arange(N**3, dtype=np.float64).reshape(N, N, N)
    cropped = crop_volume(volume, 4)
    assert cropped.shape == (4, 4, 4)
    assert cropped[2, 2, 2] == volume[4, 4, 4]
    assert cropped.base is None


# ------------------------------------------------------------------ outputs


def random_accumulator(seed: int) -> Accumulator:
    rng = np.random.default_rng(seed)
    data = rng.normal(size=(N, N, N // 2 + 1)) + 1j * rng.normal(size=(N, N, N // 2 + 1))
    return Accumulator(data, half_volume(seed))


def test_names_with_half_sets_and_crop():
    options = ReconstructOptions(box_size=N, crop_size=4)
    names = [name for name, _ in finalised_maps([random_accumulator(1), random_accumulator(2)], options, 1.0)]
    expected = [
        f"{prefix}{tag}" for tag in ("half1", "half2", "merged") for prefix in ("weight_", "data_", "")
    ]
    assert sorted(names) == sorted(expected + [f"{tag}_full" for tag in ("half1", "half2", "merged")])


def test_names_without_half_sets():
    maps = finalise([random_accumulator(1)], ReconstructOptions(box_size=N), 1.0)
    assert sorted(maps) == ["data_merged", "merged", "weight_merged"]
    assert {m.dtype for m in maps.values()} == {np.dtype(np.float32)}


def test_merged_uses_both_halves_but_shows_the_weights_of_one():
    """RELION 5.0.1 writes the weights of half 1 as weight_merged.mrc."""
    one, two = random_accumulator(1), random_accumulator(2)
    options = ReconstructOptions(box_size=N, taper_px=2)
    maps = finalise([one, two], options, 1.0)
    alone = finalise([Accumulator(one.data + two.data, one.weight + two.weight)], options, 1.0)
    assert_array_equal(maps["merged"], alone["merged"])
    assert_array_equal(maps["weight_merged"], maps["weight_half1"])
    assert not np.array_equal(maps["weight_merged"], alone["weight_merged"])


def test_finalising_changes_neither_accumulator_nor_with_threads():
    halves = [random_accumulator(1), random_accumulator(2)]
    options = ReconstructOptions(box_size=N, symmetry="D2")
    first = finalise(halves, options, 1.0)
    again = finalise(halves, options, 1.0, workers=3)
    for name, volume in first.items():
        assert_array_equal(volume, again[name])
    assert_array_equal(halves[0].data, random_accumulator(1).data)


@pytest.mark.parametrize("n_halves", [1, 2])
@pytest.mark.parametrize("symmetry", ["C1", "C2"])
@pytest.mark.parametrize("crop", [None, 32])
def test_memory_is_predicted(n_halves, symmetry, crop):
    """The prediction is an upper bound, and not a lazy one."""
    options = ReconstructOptions(box_size=48, crop_size=crop, symmetry=symmetry)
    small = ReconstructOptions(box_size=8, symmetry=symmetry)
    finalise([Accumulator.empty(8)] * n_halves, small, 1.0)  # compiles
    tracemalloc.start()
    try:
        for name, _ in finalised_maps([Accumulator.empty(48) for _ in range(n_halves)], options, 1.0):
            assert name
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    predicted = memory_bytes(48, n_halves, symmetry != "C1", crop)
    assert peak <= predicted <= 1.7 * peak
