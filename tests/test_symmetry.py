"""Point groups, symmetry files, helices, and the averaging over them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.spatial.transform import Rotation

from portal_extract.errors import StarFileError, UnsupportedError
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.reconstruction.finalise import symmetrise
from portal_extract.reconstruction.symmetry import (
    helical_operators,
    parse_symmetry_file,
    point_group_operators,
    symmetry_operators,
)

ORDERS = {
    "C1": 1, "c2": 2, "C7": 7, "C12": 12, "Ci": 2, "CS": 2, "C1v": 2, "C3v": 6, "c4h": 8, "S2": 2, "S6": 6,
    "D1": 2, "D2": 4, "d3": 6, "D7": 14, "D3v": 12, "D2h": 8, "D4h": 16, "T": 12, "Td": 24, "TH": 24, "O": 24,
    "Oh": 48, "I": 60, "I1": 60, "i2": 60, "I3": 60, "I4": 60, "Ih": 120, "I1h": 120, "I2h": 120, "I3H": 120,
    "I4h": 120,
}  # fmt: skip


@pytest.mark.parametrize("group", ORDERS)
def test_group_is_complete(group):
    """The right number of different orthogonal matrices, and every product is one of them."""
    elements = np.concatenate([np.eye(3)[None], point_group_operators(group)])
    assert len(elements) == ORDERS[group]
    assert_allclose(
        elements @ elements.transpose(0, 2, 1), np.broadcast_to(np.eye(3), elements.shape), atol=1e-5
    )
    products = (elements[:, None] @ elements[None]).reshape(-1, 9)
    distances = np.abs(products[:, None] - elements.reshape(-1, 9)[None]).max(axis=2)
    # icosahedral axes are given with 9 digits, so that products close within 1e-5
    assert (distances.min(axis=1) < 1e-5).all()
    assert ((distances < 1e-3).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    "group", ["", "C", "C0", "C100", "S3", "S2v", "X", "I5", "I5h", "I6", "Tdh", "D0", "C-1"]
)
def test_unknown_groups_are_refused(group, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsupportedError, match="--sym"):
        point_group_operators(group)


def test_axes():
    assert_allclose(point_group_operators("C2"), [np.diag([-1.0, -1.0, 1.0])], atol=1e-12)
    quarter = point_group_operators("C4")[0]
    assert_allclose(quarter, [[0, 1, 0], [-1, 0, 0], [0, 0, 1]], atol=1e-12)  # stored transposed
    assert_allclose(point_group_operators("Cs"), [np.diag([1.0, 1.0, -1.0])], atol=1e-12)
    assert_allclose(point_group_operators("C1v"), [np.diag([1.0, -1.0, 1.0])], atol=1e-12)
    assert_array_equal(point_group_operators("Ci"), [-np.eye(3)])


def test_oh_has_the_mirror_of_relion():
    mirrors = [m for m in point_group_operators("Oh") if m[1, 1] == -3.3306690738754696e-16]
    assert len(mirrors) == 1
    assert mirrors[0][1, 2] == -0.99999999999999978


def test_symmetry_file_wins_over_a_group(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C2").write_text("# a threefold\nrot_axis 3 0 0 1\n\nmirror_plane 0 0 1 ; horizontal\n")
    assert_array_equal(point_group_operators("C2"), point_group_operators("C3h"))
    (tmp_path / "C2").unlink()
    assert len(point_group_operators("C2")) == 1


@pytest.mark.parametrize(
    "line",
    [
        "rot_axis 3 0 0",
        "rot_axis x 0 0 1",
        "rot_axis 0 0 0 1",
        "mirror_plane 0 0 0",
        "mirror 0 0 1",
        "inversion 1",
    ],
)
def test_bad_symmetry_file_names_the_line(line):
    with pytest.raises(StarFileError, match=r"sym\.txt: line 2"):
        parse_symmetry_file(f"rot_axis 2 0 0 1\n{line}\n", "sym.txt")


@settings(deadline=None)
@given(units=st.integers(1, 9), rise=st.floats(-5, 5), twist=st.floats(-180, 180))
def test_helix_turns_and_rises_together(units, rise, twist):
    rotations, shifts = helical_operators(units, rise, twist)
    assert len(rotations) == len(shifts) == units - 1
    steps = [h for h in range(-(units // 2), (units + 1) // 2) if h]
    for h, rotation, shift in zip(steps, rotations, shifts, strict=True):
        assert_allclose(rotation, Rotation.from_euler("z", -h * twist, degrees=True).as_matrix(), atol=1e-9)
        assert_allclose(shift, (0, 0, -h * rise))


def test_point_group_and_helix_are_put_together():
    rotations, shifts = symmetry_operators("C2", 2.0, 3, helical_rise_angst=20.1, helical_twist_deg=-25.0)
    assert len(rotations) == 1 + 2
    assert_array_equal(shifts[0], 0)
    assert shifts[1, 2] == float(np.float32(20.1)) / 2.0


# ---------------------------------------------------------------- averaging


def slow_trilinear(volume, q):
    """Specification 10.4; the mirrored side is taken at x = 0."""
    b, sh = volume.shape[0], volume.shape[2]
    conj = not q[0] > 0
    x, y, z = (-v for v in q) if conj else q
    y, z = (v + b if v < 0 else v for v in (y, z))
    i = [int(v) for v in (x, y, z)]
    f = [v - n for v, n in zip((x, y, z), i, strict=True)]
    x0, y0, z0 = min(i[0], sh - 1), min(i[1], b - 1), min(i[2], b - 1)
    x1 = x0 + 1 if x0 + 1 < sh else sh - 2
    total = 0
    for zi, wz in ((z0, 1 - f[2]), ((z0 + 1) % b, f[2])):
        for yi, wy in ((y0, 1 - f[1]), ((y0 + 1) % b, f[1])):
            total += wz * wy * ((1 - f[0]) * volume[zi, yi, x0] + f[0] * volume[zi, yi, x1])
    return np.conj(total) if conj else total


def slow_symmetrise(half, rotations, shifts):
    b = half.box
    data, weight = half.data.copy(), half.weight.copy()
    for z, y, x in np.ndindex(data.shape):
        k = [x, *(v if v < b // 2 else v - b for v in (y, z))]
        for r, t in zip(rotations, shifts, strict=True):
            q = [(r[i, 0] * k[0] + r[i, 1] * k[1]) + r[i, 2] * k[2] for i in range(3)]
            phase = 2 * math.pi * sum(n / b * s for n, s in zip(k, t, strict=True))
            data[z, y, x] += slow_trilinear(half.data, q) * complex(math.cos(phase), math.sin(phase))
            weight[z, y, x] += slow_trilinear(half.weight, q)
    return data / (len(rotations) + 1), weight / (len(rotations) + 1)


def random_half(box: int) -> Accumulator:
    rng = np.random.default_rng(box)
    shape = box, box, box // 2 + 1
    return Accumulator(rng.normal(size=shape) + 1j * rng.normal(size=shape), rng.uniform(size=shape))


@pytest.mark.parametrize("group", ["C3", "D2", "O", "Oh", "I2"])
def test_averaging_equals_the_plain_loop(group):
    half = random_half(8)
    rotations, shifts = symmetry_operators(group, 1.0, 3, 1.3, 31.0)
    data, weight = slow_symmetrise(half, rotations, shifts)
    found = symmetrise(half, rotations, shifts, workers=2)
    assert_allclose(found.data, data, atol=1e-12)
    assert_allclose(found.weight, weight, atol=1e-12)


def test_averaging_does_not_depend_on_threads():
    half = random_half(10)
    rotations, shifts = symmetry_operators("D3", 1.0)
    one, four = (symmetrise(half, rotations, shifts, workers=n) for n in (1, 4))
    assert_array_equal(one.data, four.data)
    assert_array_equal(one.weight, four.weight)
    assert_array_equal(half.data, random_half(10).data)


def test_fourfold_average_is_fourfold():
    """An exact quarter turn maps voxels on voxels, so that the average is invariant."""
    half = random_half(12)
    found = symmetrise(half, *symmetry_operators("C4", 1.0)).weight
    inner = np.r_[-4:5]
    ky, kx = np.meshgrid(inner, np.arange(1, 5), indexing="ij")
    turned_x, turned_y = -ky, kx
    mirrored = turned_x < 0
    partner = found[0, np.where(mirrored, -turned_y, turned_y), np.abs(turned_x)]
    original = found[0, ky, kx]
    off_axis = ky != 0  # at x = 0 the half plane is stored twice, and not averaged with its mate
    assert_allclose(original[off_axis], partner[off_axis], rtol=1e-9)
