"""The steps from inserted slices to pseudo-subtomograms, one by one."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from portal_extract.extraction.volumes import (
    RECIPROCAL,
    Insertion,
    Pose,
    VolumeSum,
    apply_cone,
    cone_weights,
    data_volume,
    divided_volume,
    normalised_volumes,
    particle_volumes,
    slice_axes,
)
from portal_extract.options import ExtractOptions, VolumeOptions

N = 8


def random_particle(n: int = 4):
    rng = np.random.default_rng(n)
    shape = n, N, N // 2 + 1
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    weights = rng.uniform(0.1, 1, shape).astype(np.float32)
    ranges = np.full((n, N), N // 2, np.int64)
    return spectra, weights, Rotation.random(n, rng=n).as_matrix(), ranges


def pose(seed: int = 1) -> Pose:
    sub, part = Rotation.random(2, rng=seed).as_matrix()
    return Pose(sub, sub @ part)


def options_with(**volume) -> ExtractOptions:
    return ExtractOptions(box_size=N, mode="volume3d", volume=VolumeOptions(**volume))


def run(options: ExtractOptions):
    spectra, weights, projections, ranges = random_particle()
    return particle_volumes(spectra, weights, projections, pose(), ranges, options)


def test_default_outputs():
    found, weight = run(options_with())
    assert list(found) == ["data", "weights"]
    assert found["data"].shape == (N, N, N)
    assert found["weights"].shape == (2 * N, N, N // 2 + 1)
    assert_array_equal(found["weights"][:N], weight)
    assert found["weights"].dtype == found["data"].dtype == np.float32


def test_all_outputs():
    found, _ = run(
        options_with(
            write_ctf=True,
            write_multiplicity=True,
            write_normalised=True,
            write_divided=True,
            write_combined=False,
        )
    )
    assert sorted(found) == ["CTF2", "CTF2_nrm", "data", "data_nrm", "div", "multi"]
    assert RECIPROCAL & set(found) == {"CTF2", "multi", "CTF2_nrm"}
    assert all(
        v.shape == (N, N, N) and v.dtype == np.float32 and np.isfinite(v).all() for v in found.values()
    )
    # the particle is at N // 2, and so is frequency 0, which holds most samples
    assert np.unravel_index(found["multi"].argmax(), (N, N, N)) == (N // 2,) * 3


def test_frame_follows_the_orientations():
    spectra, weights, projections, ranges = random_particle()
    both = pose()
    turned = particle_volumes(
        spectra, weights, projections, both, ranges, ExtractOptions(box_size=N, apply_orientations=True)
    )[0]
    as_frame = particle_volumes(
        spectra, weights, projections, Pose(both.full, both.full), ranges, ExtractOptions(box_size=N)
    )[0]
    assert_array_equal(turned["data"], as_frame["data"])
    assert not np.array_equal(turned["data"], run(ExtractOptions(box_size=N))[0]["data"])


def test_slice_axes_are_rows_of_the_product():
    projections, frame = Rotation.random(3, rng=1).as_matrix(), pose().full
    rows, columns, area = slice_axes(projections, frame, 0.5)
    for f in range(3):
        product = projections[f] @ frame * 0.5
        assert_allclose(rows[f], product[0])
        assert_allclose(columns[f], product[1])
    assert_allclose(area, 0.25)


@pytest.mark.parametrize(
    ("box", "binning", "factor"), [(N, 1.0, 1.0), (2 * N, 1.0, 2.0), (N, 4.0, 0.5), (2 * N, 4.0, 1.0)]
)
def test_scale_of_the_data(box, binning, factor):
    volume = data_volume(np.ones((N, N, N // 2 + 1), np.complex64), box, binning)
    assert volume[N // 2, N // 2, N // 2] == pytest.approx(factor * N**1.5, rel=1e-6)


def test_cone_equals_the_formula():
    turn = pose().full
    found = cone_weights(N, turn, 30.0, 3.0)
    slope = np.sin(np.radians(15.0))
    for z, y, x in np.ndindex(found.shape):
        p = turn @ [x, *(v if v < N // 2 else v - N for v in (y, z))]
        t = np.hypot(p[0], p[1]) / (abs(p[2]) * slope + 3.0)
        assert found[z, y, x] == pytest.approx(1 - np.exp(-(t**2) / 2))


def test_cone_removes_its_axis():
    volume = np.random.default_rng(1).normal(size=(N, N, N)).astype(np.float32)
    ones = np.ones((N, N, N // 2 + 1), np.float32)
    data, sums = apply_cone(
        volume, Insertion(ones.astype(np.complex64), ones, ones), cone_weights(N, np.eye(3), 10, 2)
    )
    along_z = np.fft.fftn(data)[:, 0, 0]
    assert_allclose(along_z, 0, atol=1e-4)
    assert_array_equal(sums.weight[:, 0, 0], 0)
    assert sums.multiplicity[0, 0, N // 2] > 0.5


def test_normalised_volumes_are_zero_where_nothing_was_inserted():
    rng = np.random.default_rng(2)
    volume = rng.normal(size=(N, N, N)).astype(np.float32)
    weight = rng.uniform(size=(N, N, N // 2 + 1)).astype(np.float32)
    multiplicity = np.where(weight > 0.5, 2.0, 0.0).astype(np.float32)
    data, ratio = normalised_volumes(volume, Insertion(np.zeros(0, np.complex64), weight, multiplicity))
    assert_allclose(ratio, np.where(weight > 0.5, weight / 2, 0))
    assert np.isfinite(data).all()
    everywhere = Insertion(np.zeros(0, np.complex64), weight, np.full_like(weight, 2.0))
    assert_allclose(normalised_volumes(volume, everywhere)[0], volume / 2, atol=1e-6)


def test_wiener_filter_of_unit_weight_halves_the_map():
    volume = np.random.default_rng(3).normal(size=(N, N, N)).astype(np.float32)
    ones = np.ones((N, N, N // 2 + 1), np.float32)
    found = divided_volume(volume, ones, VolumeOptions(snr=1.0), taper=False)
    assert_allclose(found, volume / 2, atol=1e-6)
    assert found.dtype == np.float32


def test_sum_adds_and_divides():
    total = VolumeSum(N)
    found = [run(options_with())]
    for n in (1, 2):
        spectra, weights, projections, ranges = random_particle(n)
        found.append(particle_volumes(spectra, weights, projections, pose(n), ranges, options_with()))
    for one, weight in found:
        total.add(one["data"], weight)
    sums = total.volumes(VolumeOptions(snr=2.0))
    assert sorted(sums) == ["sum_data", "sum_div", "sum_weight"]
    assert_allclose(sums["sum_data"], sum(one["data"].astype(float) for one, _ in found), atol=1e-5)
    weight = sum(w for _, w in found)
    assert_allclose(
        sums["sum_div"], divided_volume(sums["sum_data"], weight, VolumeOptions(snr=2.0), taper=False)
    )
