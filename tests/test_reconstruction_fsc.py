"""Fourier shell correlation: known answers, the correction for the mask, and the tables."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from portal_extract.errors import UsageError
from portal_extract.reconstruction.fsc import (
    correlate_shells,
    draw_subsets,
    fsc_general,
    fsc_table,
    shell_correlation,
    soft_sphere,
)

N = 24


def noise(seed: int, size: int = N) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(size,) * 3).astype(np.float32)


def low_pass(volume: np.ndarray, shell: float) -> np.ndarray:
    k = np.fft.fftfreq(len(volume), 1 / len(volume))
    r = np.sqrt(k**2 + k[:, None] ** 2 + k[:, None, None] ** 2)
    return np.fft.ifftn(np.fft.fftn(volume) * (r < shell)).real.astype(np.float32)


def slow_correlation(one, other):
    """Each stored voxel once, shells rounded half up."""
    n = one.shape[0]
    a, b = np.fft.rfftn(one), np.fft.rfftn(other)
    sums = np.zeros((3, n // 2 + 1))
    for z, y, x in np.ndindex(a.shape):
        k = (x, *(v if v < n // 2 else v - n for v in (y, z)))
        shell = math.floor(math.hypot(*k) + 0.5)
        if shell <= n // 2:
            p, q = a[z, y, x], b[z, y, x]
            sums[:, shell] += (p * q.conjugate()).real, abs(p) ** 2, abs(q) ** 2
    curve = sums[0] / np.sqrt(sums[1] * sums[2])
    curve[0] = 1
    return curve


def test_shells_equal_the_plain_loop():
    one, other = noise(1, 8), noise(2, 8)
    found = correlate_shells(np.fft.rfftn(one), np.fft.rfftn(other))
    assert_allclose(found, slow_correlation(one, other), atol=1e-9)


def test_same_maps_correlate_fully():
    curves = shell_correlation(noise(1), noise(1), 2.0)
    assert_allclose(curves.unmasked, 1.0)
    assert_allclose(curves.corrected, 1.0)
    assert curves.resolution_at(0.143) == pytest.approx(4.0)  # Nyquist


def test_independent_noise_does_not_correlate():
    curves = shell_correlation(noise(1), noise(2), 2.0)
    assert np.abs(curves.unmasked[3:]).max() < 0.2
    assert math.isinf(curves.resolution_at(0.5)) or curves.resolution_at(0.5) > 2 * N / 3


def test_shared_signal_gives_its_resolution():
    """Maps share a signal up to shell 7 of 24, so that the resolution is the shell before the fall."""
    signal = 3 * low_pass(noise(3), 7.5)
    halves = [signal + noise(seed) for seed in (4, 5)]
    curves = shell_correlation(*halves, 2.0)
    # a small mask smears a sharp fall, and the two shells after it are not corrected (RELION's rule)
    assert 2.0 * N / 9 <= curves.resolution_at(0.143) <= 2.0 * N / 7
    assert curves.resolution_at(0.143, curves.unmasked) == pytest.approx(2.0 * N / 7)


def test_negated_map_is_anticorrelated():
    assert_allclose(shell_correlation(noise(1), -noise(1), 1.0).unmasked[1:], -1.0)


def test_correction_removes_what_a_tight_mask_correlates():
    """Independent noise in the same small mask correlates; the corrected curve does not."""
    mask = soft_sphere(N, radius_px=2.0, edge_px=1.0)
    signal = 40 * low_pass(noise(6), 3.5)
    curves = shell_correlation(signal + noise(7), signal + noise(8), 1.0, mask)
    tail = slice(curves.randomised_from + 2, None)
    assert np.mean(np.abs(curves.corrected[tail])) < 0.5
    assert curves.mask_fraction == pytest.approx(float(mask.mean()))
    assert_allclose(
        curves.corrected[: curves.randomised_from + 2], curves.masked[: curves.randomised_from + 2]
    )


def test_random_phases_follow_the_seed():
    first, again, other = (shell_correlation(noise(1), noise(2), 1.0, seed=s).randomised for s in (1, 1, 2))
    assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_soft_sphere_is_one_inside_and_zero_outside():
    mask = soft_sphere(N, radius_px=5, edge_px=3)
    assert mask[N // 2, N // 2, N // 2 + 5] == 1
    assert 0 < mask[N // 2, N // 2 + 6, N // 2] < 1
    assert mask[N // 2 + 8, N // 2, N // 2] == 0
    assert soft_sphere(64).max() == 1


@pytest.mark.parametrize(
    ("half2", "mask", "word"),
    [
        (np.zeros((N, N, N + 2), np.float32), None, "half map 2"),
        (noise(1), np.ones((4, 4, 4), np.float32), "the mask"),
        (np.full((N, N, N), np.nan, np.float32), None, "half map 2 has values"),
    ],
)
def test_unfit_maps_are_refused(half2, mask, word):
    with pytest.raises(UsageError, match=word):
        shell_correlation(noise(1), half2, 1.0, mask)


def test_a_map_that_is_no_cube_is_refused():
    flat = np.zeros((4, 4, 6), np.float32)
    with pytest.raises(UsageError, match="cube"):
        shell_correlation(flat, flat, 1.0)


def test_empty_maps_give_zero():
    zero = np.zeros((8, 8, 8), np.float32)
    curves = shell_correlation(zero, zero, 1.0)
    assert_array_equal(curves.unmasked[1:], 0)
    assert np.isfinite(curves.corrected).all()


def test_table_has_the_columns_of_postprocess():
    curves = shell_correlation(noise(1), noise(1), 2.0)
    table = fsc_table(curves)
    assert table["rlnSpectralIndex"].tolist() == list(range(N // 2 + 1))
    assert table["rlnAngstromResolution"][0] == 999
    assert_allclose(table["rlnAngstromResolution"][1:] * table["rlnResolution"][1:], 1)
    assert {len(column) for column in table.values()} == {N // 2 + 1}
    assert fsc_general(curves)["rlnFinalResolution"] == pytest.approx(4.0)


def test_subsets_are_balanced_and_follow_the_seed():
    subsets = draw_subsets(11, seed=3)
    assert np.bincount(subsets).tolist() == [0, 6, 5]
    assert_array_equal(subsets, draw_subsets(11, seed=3))
    assert not np.array_equal(subsets, draw_subsets(11, seed=4))
