"""Geometry against worked examples, independent libraries and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from portal_extract.geometry import (
    box_origins,
    coefficients_per_image,
    deform,
    euler_to_matrix,
    matrix_to_euler,
    project,
    projection_matrices,
    round_half_away,
    visible,
)
from portal_extract.model import Deformation

angle = st.floats(-180, 180, allow_nan=False)


@given(angle, angle, angle)
def test_euler_matrix_is_the_transpose_of_the_intrinsic_rotation(rot, tilt, psi):
    expected = Rotation.from_euler("ZYZ", [rot, tilt, psi], degrees=True).as_matrix().T
    assert np.allclose(euler_to_matrix([rot, tilt, psi]), expected, atol=1e-12)


@given(angle, angle, angle)
def test_euler_angles_give_their_matrix_back(rot, tilt, psi):
    matrix = euler_to_matrix([rot, tilt, psi])
    assert np.allclose(euler_to_matrix(matrix_to_euler(matrix)), matrix, atol=1e-7)


def test_euler_angles_at_the_poles():
    for tilt in (0.0, 180.0):
        matrix = euler_to_matrix([30.0, tilt, 40.0])
        matrix[..., 0, 2] = matrix[..., 1, 2] = 0.0
        angles = matrix_to_euler(matrix)
        assert angles[0] == 0.0
        assert np.allclose(euler_to_matrix(angles), matrix, atol=1e-12)


def test_the_middle_of_the_tomogram_projects_to_the_middle_of_the_image():
    matrices = projection_matrices(
        10, [-20, 0, 35], 85, [0, 13, 0], [0, -26, 0], 1.3, (101, 64), (41, 60, 30)
    )
    centre = np.array([[20.0, 30.0, 15.0]])  # truncated halves
    found = project(matrices, centre)[0, :, :2]
    assert np.allclose(found, [[50, 32], [60, 12], [50, 32]])


def test_unknown_tomogram_size_truncates_towards_zero():
    matrices = projection_matrices(0, 0, 0, 0, 0, 1.0, (100, 100), (-999, -999, -999))
    assert np.allclose(matrices[0, :3, 3], [50 + 499, 50 + 499, 499])


def test_projection_by_hand():
    # tilt by 90 degrees about y takes z to x; then a turn by 90 degrees about z takes x to y
    matrices = projection_matrices(0, 90, 90, 0, 0, 1.0, (10, 10), (0, 0, 0))
    assert np.allclose(project(matrices, np.array([[1.0, 2.0, 3.0]]))[0, 0], [5 - 2, 5 + 3, -1], atol=1e-12)


def test_moving_points_use_the_matrix_of_their_tilt_image():
    rng = np.random.default_rng(1)
    matrices = projection_matrices(1, [0, 30], 80, 0, 0, 1.0, (100, 90), (50, 50, 20))
    points = rng.random((4, 2, 3)) * 50
    found = project(matrices, points)
    for n in range(4):
        for f in range(2):
            assert np.allclose(found[n, f], (matrices[f] @ [*points[n, f], 1.0])[:3])


@given(st.floats(-1e6, 1e6, allow_nan=False))
def test_round_half_away(value):
    expected = math.copysign(math.floor(abs(value) + 0.5), value)
    if abs(value) % 1 != 0.49999999999999994:  # where adding one half rounds up by itself
        assert round_half_away(np.array([value]))[0] == expected


def test_halves_go_away_from_zero():
    assert round_half_away(np.array([0.5, 1.5, 2.5, -0.5, -2.5, 0.49999999999999994])).tolist() == [
        1, 2, 3, -1, -3, 0,
    ]  # fmt: skip
    assert box_origins(np.array([[10.5, -0.5]]), 8).tolist() == [[7, -5]]


def test_visibility_is_strict():
    points = np.array([[5.0, 50.0], [5.001, 50.0], [94.999, 50.0], [95.0, 50.0], [50.0, 85.0]])
    assert visible(points, (100, 90), 5.0).tolist() == [False, True, True, False, False]


def _slow_shift(kind, grid, c, size, x, y):
    """One point, one dimension at a time, from the formulas."""
    (w, h), (gx, gy) = size, grid
    if kind == "linear":
        rx, ry = x - 0.5 * w, y - 0.5 * h
        return c[0] * rx, c[1] * rx + c[2] * ry
    if kind == "Fourier":
        omega = []
        for j in range(gy):
            if j < gy // 2:
                omega += [(i * math.pi / w, j * math.pi / h) for i in range(1 if j == 0 else 0, gx // 2 + 1)]
            else:
                omega += [(i * math.pi / w, (j - gy) * math.pi / h) for i in range(1, gx // 2 + 1)]
        n, out = len(omega), []
        for d in (0, 1):
            total = 0.0
            for i, (ox, oy) in enumerate(omega):
                re, im = c[2 * (d * n + i)], c[2 * (d * n + i) + 1]
                total += re * math.cos(ox * x + oy * y) + im * math.sin(ox * x + oy * y)
            out.append(total)
        return tuple(out)
    px = min(max(x / (w / (gx - 1)), 0), gx - 1 - 1e-10)
    py = min(max(y / (h / (gy - 1)), 0), gy - 1 - 1e-10)
    cx, cy = int(px), int(py)
    t, out = (px - cx, py - cy), []
    basis = [[1 - 3 * u**2 + 2 * u**3, 3 * u**2 - 2 * u**3, u - 2 * u**2 + u**3, -(u**2) + u**3] for u in t]
    node = np.asarray(c).reshape(2, gy, gx, 4)
    for d in (0, 1):
        q = node[d]
        m = np.zeros((4, 4))
        for i in (0, 1):
            for j in (0, 1):
                value, sx, sy, twist = q[cy + j, cx + i]
                m[i, j], m[i, 2 + j], m[2 + i, j], m[2 + i, 2 + j] = value, sy, sx, twist
        out.append(np.array(basis[0]) @ m @ np.array(basis[1]))
    return tuple(out)


@pytest.mark.parametrize("kind", ["linear", "spline", "Fourier"])
@pytest.mark.parametrize("grid", [(2, 2), (3, 4), (5, 3)])
def test_deformation_against_slow_formulas(kind, grid):
    rng = np.random.default_rng(7)
    size, n_frames = (130, 97), 3
    coefficients = rng.standard_normal((n_frames, coefficients_per_image(kind, grid)))
    points = rng.random((6, n_frames, 2)) * size * 1.4 - 20  # some outside of the image
    found = deform(Deformation(kind, grid, coefficients), size, points)
    for n in range(6):
        for f in range(n_frames):
            expected = _slow_shift(kind, grid, coefficients[f], size, *points[n, f])
            assert np.allclose(found[n, f] - points[n, f], expected, atol=1e-10)
