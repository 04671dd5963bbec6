"""Rotations, projection of particles into tilt images, deformation, visibility, box origins.

Pure functions in double precision; spaces are those of :mod:`portal_extract.model`. All formulas are RELION
5.0.1 behaviour unless a docstring says otherwise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from portal_extract.model import Deformation, Floats

DEGREE = np.pi / 180.0
_GIMBAL_LIMIT = 2.2e-308


def euler_to_matrix(angles_deg: ArrayLike) -> Floats:
    """Rotation matrices of Euler angles (ZYZ, RELION's convention).

    The matrix maps coordinates of the particle to those of the tomogram; it is the transpose of the intrinsic
    ZYZ rotation of most libraries.

    Parameters
    ----------
    angles_deg
        ``(..., 3)`` rot, tilt, psi in degrees.

    Returns
    -------
    ``(..., 3, 3)`` matrices.
    """
    angles = np.asarray(angles_deg, dtype=np.float64) * np.pi / 180.0
    (ca, cb, cg), (sa, sb, sg) = np.moveaxis(np.cos(angles), -1, 0), np.moveaxis(np.sin(angles), -1, 0)
    rows = [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def matrix_to_euler(matrices: ArrayLike) -> Floats:
    """Euler angles of rotation matrices, the inverse of :func:`euler_to_matrix`.

    Parameters
    ----------
    matrices
        ``(..., 3, 3)`` rotations.

    Returns
    -------
    ``(..., 3)`` rot, tilt, psi in degrees; where the tilt is 0 or 180 degrees, rot is 0.
    """
    a = np.asarray(matrices, dtype=np.float64)
    sin2 = a[..., 0, 2] ** 2 + a[..., 1, 2] ** 2
    tilt = np.arctan2(np.sqrt(sin2), a[..., 2, 2])
    regular = sin2 > _GIMBAL_LIMIT
    rot = np.where(regular, np.arctan2(a[..., 2, 1], a[..., 2, 0]), 0.0)
    psi_flat = np.where(
        a[..., 2, 2] > 0,
        np.arctan2(-a[..., 1, 0], a[..., 0, 0]),
        np.arctan2(a[..., 1, 0], -a[..., 0, 0]),
    )
    psi = np.where(regular, np.arctan2(a[..., 1, 2], -a[..., 0, 2]), psi_flat)
    return np.stack([rot, tilt, psi], axis=-1) / DEGREE


def projection_matrices(
    x_tilt_deg: ArrayLike,
    y_tilt_deg: ArrayLike,
    z_rot_deg: ArrayLike,
    x_shift_angst: ArrayLike,
    y_shift_angst: ArrayLike,
    pixel_size_angst: float,
    image_size_px: tuple[int, int],
    tomogram_size_px: tuple[int, int, int],
) -> Floats:
    """Projection matrices of tilt images from angles and shifts (RELION 5 columns).

    Parameters
    ----------
    x_tilt_deg, y_tilt_deg, z_rot_deg
        ``(F,)`` angles ``rlnTomoXTilt``, ``rlnTomoYTilt``, ``rlnTomoZRot``, applied in this order.
    x_shift_angst, y_shift_angst
        ``(F,)`` shifts in the tilt image.
    pixel_size_angst
        Unbinned pixel size.
    image_size_px
        Width and height of the tilt images.
    tomogram_size_px
        Size x, y, z of the tomogram; its truncated half is the centre of rotation.

    Returns
    -------
    ``(F, 4, 4)`` tomogram space to image space, in unbinned pixels.
    """
    x_tilt, y_tilt, z_rot, x_shift, y_shift = np.broadcast_arrays(
        *(
            np.atleast_1d(np.asarray(v, dtype=np.float64))
            for v in (x_tilt_deg, y_tilt_deg, z_rot_deg, x_shift_angst, y_shift_angst)
        )
    )
    rotations = _rotation(z_rot, 2) @ _rotation(y_tilt, 1) @ _rotation(x_tilt, 0)
    # truncation towards zero: the sizes are -999 where the tomogram size is unknown
    centre = np.array([int(n / 2) for n in tomogram_size_px], dtype=np.float64)
    matrices = np.zeros((len(x_tilt), 4, 4))
    matrices[:, :3, :3] = rotations
    matrices[:, 3, 3] = 1.0
    matrices[:, :3, 3] = -(rotations @ centre)
    matrices[:, 0, 3] += image_size_px[0] // 2 + x_shift / pixel_size_angst
    matrices[:, 1, 3] += image_size_px[1] // 2 + y_shift / pixel_size_angst
    return matrices


def _rotation(angle_deg: Floats, axis: int) -> Floats:
    """``(F, 3, 3)`` right-handed active rotations about axis 0 (x), 1 (y) or 2 (z)."""
    c, s = np.cos(angle_deg * DEGREE), np.sin(angle_deg * DEGREE)
    matrices = np.zeros((len(angle_deg), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrices[:, axis, axis] = 1.0
    matrices[:, i, i] = matrices[:, j, j] = c
    matrices[:, i, j], matrices[:, j, i] = -s, s
    return matrices


def project(projections: Floats, points_px: Floats) -> Floats:
    """Project points of tomogram space into every tilt image.

    Parameters
    ----------
    projections
        ``(F, 4, 4)``.
    points_px
        ``(n, 3)``, or ``(n, F, 3)`` where the point moves from image to image.

    Returns
    -------
    ``(n, F, 3)`` x, y and depth in unbinned pixels.
    """
    points = points_px[:, None, :] if points_px.ndim == 2 else points_px
    moved: Floats = np.einsum(
        "fij,nfj->nfi", projections[:, :3, :3], np.broadcast_to(points, (len(points), len(projections), 3))
    )
    return moved + projections[None, :, :3, 3]


def deform(deformation: Deformation, image_size_px: tuple[int, int], points_px: Floats) -> Floats:
    """Apply the 2D deformation of each tilt image.

    Parameters
    ----------
    deformation
        Kind, grid and coefficients ``(F, K)``.
    image_size_px
        Width and height of the tilt images.
    points_px
        ``(n, F, 2)`` positions in the undeformed images.

    Returns
    -------
    ``(n, F, 2)`` positions in the images as recorded.
    """
    shift = {"linear": _linear_shift, "spline": _spline_shift, "Fourier": _fourier_shift}[deformation.kind]
    return points_px + shift(deformation, image_size_px, points_px)


def coefficients_per_image(kind: str, grid: tuple[int, int]) -> int:
    """Count the deformation coefficients that a tilt image must have."""
    if kind == "linear":
        return 3
    if kind == "spline":
        return 8 * grid[0] * grid[1]
    return 4 * len(_fourier_frequencies(grid))


def _linear_shift(deformation: Deformation, size: tuple[int, int], points: Floats) -> Floats:
    axx, axy, ayy = np.moveaxis(deformation.coefficients[:, :3], -1, 0)
    x, y = points[..., 0] - 0.5 * size[0], points[..., 1] - 0.5 * size[1]
    return np.stack([axx * x, axy * x + ayy * y], axis=-1)


def _fourier_frequencies(grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Frequencies (x, y) in RELION's order, the constant term left out."""
    gx, gy = grid
    found = []
    for y in range(gy):
        if y < gy // 2:
            found += [(x, y) for x in range(1 if y == 0 else 0, gx // 2 + 1)]
        else:
            found += [(x, y - gy) for x in range(1, gx // 2 + 1)]
    return found


def _fourier_shift(deformation: Deformation, size: tuple[int, int], points: Floats) -> Floats:
    frequencies = np.array(_fourier_frequencies(deformation.grid), dtype=np.float64).reshape(-1, 2)
    omega = frequencies * np.pi / np.array(size, dtype=np.float64)
    phase = points @ omega.T
    c = deformation.coefficients.reshape(len(deformation.coefficients), 2, len(omega), 2)
    return np.stack(
        [np.sum(c[:, d, :, 0] * np.cos(phase) + c[:, d, :, 1] * np.sin(phase), axis=-1) for d in (0, 1)],
        axis=-1,
    )


def _spline_shift(deformation: Deformation, size: tuple[int, int], points: Floats) -> Floats:
    gx, gy = deformation.grid
    limit = np.array([gx, gy], dtype=np.float64) - 1
    spacing = np.array(size, dtype=np.float64) / limit
    g = np.clip(points / spacing, 0.0, limit - 1e-10)
    cell = g.astype(np.int64)
    hx, hy = (_hermite(g[..., d] - cell[..., d]) for d in (0, 1))
    nodes = deformation.coefficients.reshape(-1, 2, gy, gx, 4)
    frame = np.arange(points.shape[1])
    shift = np.zeros_like(points)
    for d in (0, 1):
        for i in (0, 1):
            for j in (0, 1):
                node = nodes[frame, d, cell[..., 1] + j, cell[..., 0] + i]  # value, slope x, slope y, twist
                shift[..., d] += hx[i] * (node[..., 0] * hy[j] + node[..., 2] * hy[2 + j])
                shift[..., d] += hx[2 + i] * (node[..., 1] * hy[j] + node[..., 3] * hy[2 + j])
    return shift


def _hermite(t: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """Cubic Hermite basis: values at 0 and 1, slopes at 0 and 1."""
    t2, t3 = t * t, t * t * t
    return 1 - 3 * t2 + 2 * t3, 3 * t2 - 2 * t3, t - 2 * t2 + t3, t3 - t2


def visible(points_px: Floats, image_size_px: tuple[int, int], radius_px: float) -> NDArray[np.bool_]:
    """Whether a square of the given half-width lies inside of the image, strictly.

    Parameters
    ----------
    points_px
        ``(..., 2)`` centres in image space.
    image_size_px
        Width and height.
    radius_px
        Half-width in unbinned pixels.

    Returns
    -------
    ``(...)`` booleans.
    """
    limit = np.array(image_size_px, dtype=np.float64) - radius_px
    inside: NDArray[np.bool_] = np.all((points_px > radius_px) & (points_px < limit), axis=-1)
    return inside


def round_half_away(values: Floats) -> Floats:
    """Round to the nearest integer, halves away from zero (C ``round``).

    Adding one half before flooring is wrong just below a half, so the fraction is looked at.
    """
    whole = np.trunc(values)
    return whole + np.where(np.abs(values - whole) >= 0.5, np.sign(values), 0.0)


def box_origins(points_px: Floats, side_px: int) -> NDArray[np.int64]:
    """First pixel of the box around each point: pixel ``side // 2`` lies on the rounded point.

    Parameters
    ----------
    points_px
        ``(..., 2)`` centres x, y in image space.
    side_px
        Side of the box in unbinned pixels.

    Returns
    -------
    ``(..., 2)`` x and y of the first pixel.
    """
    return round_half_away(points_px).astype(np.int64) - side_px // 2
