"""Files of picks to particles: centred coordinates, RELION's angles, filaments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portal_extract.errors import SourceError
from portal_extract.geometry import matrix_to_euler
from portal_extract.model import Bools, Floats, Ints

#: how far a rounded rotation matrix may be from a rotation, per entry of its square
_NOT_A_ROTATION = 0.05
#: sine of the tilt below which rot and psi cannot be told apart
_FLAT = 1e-6


@dataclass(frozen=True)
class Picks:
    """Picks of one file, in file order.

    Attributes
    ----------
    voxels
        ``(N, 3)`` x, y, z in voxels of the file's voxel spacing, from 0.
    rotations
        ``(N, 3, 3)`` reference to tomogram, or None.
    instances
        ``(N,)`` number of the object that each point belongs to, or None.
    """

    voxels: Floats
    rotations: Floats | None = None
    instances: Ints | None = None

    def __len__(self) -> int:
        return len(self.voxels)


def parse_picks(body: bytes, shape_type: str, uri: str) -> Picks:
    """Parse a file of one JSON object per line.

    Parameters
    ----------
    body
        Contents; may be empty, may lack the last line end.
    shape_type
        ``Point``, ``OrientedPoint`` or ``InstanceSegmentation``.
    uri
        Address, for messages.

    Raises
    ------
    SourceError
        A line is no pick of that kind, a number is not finite, or a matrix is no rotation; file and line
        are named.
    """
    locations: list[list[float]] = []
    matrices: list[Any] = []
    instances: list[int] = []
    for number, line in enumerate(body.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            location = record["location"]
            locations.append([float(location[axis]) for axis in "xyz"])
            if shape_type == "OrientedPoint":
                matrices.append(np.array(record["xyz_rotation_matrix"], dtype=np.float64).reshape(3, 3))
            elif shape_type == "InstanceSegmentation":
                instances.append(int(record["instance_id"]))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise SourceError(
                f"{uri}, line {number}: not a pick of kind {shape_type} ({_complaint(error)})"
            ) from None
        if not np.isfinite(locations[-1]).all():
            raise SourceError(f"{uri}, line {number}: a coordinate is no finite number")
    voxels = np.array(locations, dtype=np.float64).reshape(-1, 3)
    rotations = None
    if shape_type == "OrientedPoint":
        rotations = np.array(matrices, dtype=np.float64).reshape(-1, 3, 3)
        bad = np.flatnonzero(~are_rotations(rotations))
        if len(bad):
            raise SourceError(f"{uri}: the matrix of pick {bad[0] + 1} is no rotation ({len(bad)} in all)")
    return Picks(voxels, rotations, np.array(instances, dtype=np.int64) if instances else None)


def _complaint(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error).split(": line")[0]


def are_rotations(matrices: Floats) -> Bools:
    """Whether matrices are rotations up to rounding, without mirror.

    Parameters
    ----------
    matrices
        ``(N, 3, 3)``.

    Returns
    -------
    ``(N,)`` booleans.
    """
    finite: Bools = np.atleast_1d(np.isfinite(matrices).reshape(-1, 9).all(axis=1))
    safe = np.where(finite[:, None, None], matrices, 0.0)
    product = safe @ np.swapaxes(safe, 1, 2)
    close = np.abs(product - np.eye(3)).reshape(-1, 9).max(axis=1, initial=0.0) < _NOT_A_ROTATION
    rotations: Bools = finite & close & (np.linalg.det(safe) > 0)
    return rotations


def relion_angles_deg(rotations: Floats) -> Floats:
    """Euler angles of RELION from the portal's matrices, which are RELION's matrices.

    They are the intrinsic ZYZ angles of the transpose. The matrices are made orthogonal first (nearest
    rotation); where the tilt is 0 or 180 degrees, rot is 0.

    Parameters
    ----------
    rotations
        ``(N, 3, 3)`` reference to tomogram, in x, y, z order.

    Returns
    -------
    ``(N, 3)`` rot, tilt, psi in degrees.
    """
    if not len(rotations):
        return np.zeros((0, 3))
    u, _, vt = np.linalg.svd(rotations)
    matrices = u @ vt
    flat = np.hypot(matrices[:, 0, 2], matrices[:, 1, 2]) < _FLAT
    for first, second in ((0, 2), (1, 2), (2, 0), (2, 1)):
        # rounding noise here would make rot and psi arbitrary, each for itself
        matrices[flat, first, second] = 0.0
    return matrix_to_euler(matrices) + 0.0  # no negative zeros


def centred_angst(voxels: Floats, size_voxel: Sequence[int], voxel_spacing_angst: float) -> Floats:
    """Coordinates relative to the centre of the tomogram: ``(x - n/2) * spacing``.

    Parameters
    ----------
    voxels
        ``(N, 3)`` x, y, z from 0.
    size_voxel
        Size x, y, z of the tomogram; half of an odd size is not truncated.
    voxel_spacing_angst
        Angstrom per voxel.

    Returns
    -------
    ``(N, 3)`` Angstrom.
    """
    return (voxels - np.array(size_voxel, dtype=np.float64) / 2.0) * voxel_spacing_angst


def n_outside(voxels: Floats, size_voxel: Sequence[int]) -> int:
    """Count the picks outside of the tomogram's voxels."""
    limit = np.array(size_voxel, dtype=np.float64) - 1
    return int(np.count_nonzero(((voxels < 0) | (voxels > limit)).any(axis=1)))


def track_lengths_angst(coordinates_angst: Floats, instances: Ints) -> Floats:
    """Distance along each object from its first point, in file order.

    Parameters
    ----------
    coordinates_angst
        ``(N, 3)``.
    instances
        ``(N,)`` object of each point.

    Returns
    -------
    ``(N,)`` Angstrom.
    """
    lengths = np.zeros(len(instances))
    for instance in np.unique(instances):
        members = np.flatnonzero(instances == instance)
        steps = np.linalg.norm(np.diff(coordinates_angst[members], axis=0), axis=1)
        lengths[members] = np.concatenate([[0.0], np.cumsum(steps)])
    return lengths
