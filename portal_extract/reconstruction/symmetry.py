"""Symmetry operators: point groups, symmetry files, helices.

The operators of a group follow from its generators by RELION 5.0.1's recipe, product by product: for
icosahedral and tetrahedral groups the last bits of the matrices decide which of two Fourier samples is taken
on whole lines of the map, so that an equivalent list of operators gives visibly different voxels.
Matrices act on column vectors (x, y, z); the identity is never in a list.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import StarFileError, UnsupportedError

Floats = NDArray[np.float64]
Vector = tuple[float, float, float]

_TOLERANCE = 1e-6
_MIRROR = np.diag([1.0, 1.0, -1.0])


@dataclass(frozen=True)
class Rotation:
    """Rotations about an axis by multiples of 360 degrees / ``order``."""

    order: int
    axis: Vector


@dataclass(frozen=True)
class Mirror:
    """Reflection in the plane through the origin with this normal."""

    normal: Vector


@dataclass(frozen=True)
class Inversion:
    """Point reflection at the origin."""


Generator = Rotation | Mirror | Inversion

_X, _Y, _Z = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)

_ICOSAHEDRAL: dict[str, tuple[Generator, ...]] = {
    "I1": (
        Rotation(2, _X),
        Rotation(5, (0.85065080702670, 0.0, -0.5257311142635)),
        Rotation(3, (0.9341723640, 0.3568220765, 0.0)),
    ),
    "I2": (
        Rotation(2, _Z),
        Rotation(5, (0.525731114, 0.0, 0.850650807)),
        Rotation(3, (0.0, 0.356822076, 0.934172364)),
    ),
    "I3": (
        Rotation(2, (-0.5257311143, 0.0, 0.8506508070)),
        Rotation(5, _Z),
        Rotation(3, (-0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
    ),
    "I4": (
        Rotation(2, (0.5257311143, 0.0, 0.8506508070)),
        Rotation(5, (0.8944271932547096, 0.0, 0.4472135909903704)),
        Rotation(3, (0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
    ),
}

_ICOSAHEDRAL_MIRROR = {
    "I1": Mirror((0.0, 0.0, -1.0)),
    "I2": Mirror(_X),
    "I3": Mirror((0.850650807, 0.0, 0.525731114)),
    "I4": Mirror((0.850650807, 0.0, -0.525731114)),
}

_TETRAHEDRAL = (Rotation(3, _Z), Rotation(2, (0.0, 0.816496, 0.577350)))
_OCTAHEDRAL = (Rotation(3, (0.5773502, 0.5773502, 0.5773502)), Rotation(4, _Z))

_FIXED: dict[str, tuple[Generator, ...]] = {
    "CI": (Inversion(),),
    "CS": (Mirror(_Z),),
    "T": _TETRAHEDRAL,
    "TD": (*_TETRAHEDRAL, Mirror((1.4142136, 2.4494897, 0.0))),
    "TH": (Rotation(3, _Z), Rotation(2, (0.0, -0.816496, -0.577350)), Inversion()),
    "O": _OCTAHEDRAL,
    "OH": (*_OCTAHEDRAL, Mirror((0.0, 1.0, 1.0))),
    "I": _ICOSAHEDRAL["I2"],
    "IH": (*_ICOSAHEDRAL["I2"], _ICOSAHEDRAL_MIRROR["I2"]),
    **_ICOSAHEDRAL,
    **{f"{name}H": (*group, _ICOSAHEDRAL_MIRROR[name]) for name, group in _ICOSAHEDRAL.items()},
}

# RELION inverts the alignment matrix of a mirror numerically. Of all groups only that of Oh is left with
# noise that decides between samples, so that its generator is given here as RELION has it.
_OH_MIRROR = np.array(
    [
        [1.0, 0.0, 0.0],
        [0.0, -3.3306690738754696e-16, -0.99999999999999978],
        [0.0, -0.99999999999999967, -1.6653345369377348e-16],
    ]
)


def point_group_operators(group: str) -> Floats:
    """Operators of a point group, or of a symmetry file.

    Parameters
    ----------
    group
        Name, upper or lower case: ``C<n>``, ``Ci``, ``Cs``, ``C<n>v``, ``C<n>h``, ``S<n>``, ``D<n>``,
        ``D<n>v``, ``D<n>h``, ``T``, ``Td``, ``Th``, ``O``, ``Oh``, ``I``, ``I1`` ... ``I4`` and these with
        ``h``; or the path of a symmetry file, which takes precedence (RELION 5.0.1 behaviour).

    Returns
    -------
    ``(n, 3, 3)`` operators without the identity; none for C1.

    Raises
    ------
    UnsupportedError
        Neither a file nor a group that can be honoured.
    StarFileError
        A line of the symmetry file makes no sense.
    """
    path = Path(group)
    if path.is_file():
        return operators_from_generators(parse_symmetry_file(path.read_text(), str(path)))
    return operators_from_generators(group_generators(group))


def group_generators(group: str) -> tuple[Generator, ...]:
    """Look up the generators of a point group, with RELION 5.0.1's choice of axes.

    Raises
    ------
    UnsupportedError
        No such group, or one that RELION refuses itself (odd S, I5).
    """
    name = group.strip().upper()
    if name in _FIXED:
        return _FIXED[name]
    if name in ("I5", "I5H"):
        raise UnsupportedError([f"--sym {group}: RELION does not know this setting; use one of I1 to I4"])
    match = re.fullmatch(r"([CSD])([1-9]\d?)([VH]?)", name)
    if match is None or (match[1] == "S" and match[3]):
        raise UnsupportedError(
            [
                f"--sym {group}: no such point group or symmetry file; known are Cn, Ci, Cs, Cnv, Cnh, "
                "Sn (even n), Dn, Dnv, Dnh (n from 1 to 99), T, Td, Th, O, Oh, I, I1 to I4 and these with h"
            ]
        )
    family, order, plane = match[1], int(match[2]), match[3]
    if family == "S":
        if order % 2:
            raise UnsupportedError([f"--sym {group}: S groups need an even number"])
        return (Rotation(order // 2, _Z), Inversion())
    if family == "C":
        return (Rotation(order, _Z), *_plane(plane, _Y))
    return (Rotation(order, _Z), Rotation(2, _X), *_plane(plane, _X))


def _plane(letter: str, vertical: Vector) -> tuple[Generator, ...]:
    return {"": (), "V": (Mirror(vertical),), "H": (Mirror(_Z),)}[letter]


def parse_symmetry_file(text: str, name: str = "symmetry file") -> tuple[Generator, ...]:
    """Read generators in RELION's syntax, one in each line.

    Parameters
    ----------
    text
        Lines ``rot_axis n x y z``, ``mirror_plane x y z`` or ``inversion``; ``#`` and ``;`` start a comment.
    name
        For messages.

    Raises
    ------
    StarFileError
        A line that is none of these.
    """
    found: list[Generator] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = re.split("[#;]", line, maxsplit=1)[0].split()
        if not words:
            continue
        try:
            found.append(_parse_generator(words))
        except ValueError:
            raise StarFileError(
                f"{name}: line {number} ({line.strip()!r}) is none of 'rot_axis n x y z', "
                "'mirror_plane x y z' and 'inversion'"
            ) from None
    return tuple(found)


def _parse_generator(words: list[str]) -> Generator:
    kind, numbers = words[0], [float(word) for word in words[1:]]
    if kind == "inversion" and not numbers:
        return Inversion()
    axis = numbers[-3:]
    if len(axis) < 3 or not 0 < math.hypot(*axis) < math.inf:
        raise ValueError(words)
    vector = (axis[0], axis[1], axis[2])
    if kind == "rot_axis" and len(numbers) == 4 and int(words[1]) >= 1:
        return Rotation(int(words[1]), vector)
    if kind == "mirror_plane" and len(numbers) == 3:
        return Mirror(vector)
    raise ValueError(words)


def helical_operators(units: int, rise_px: float, twist_deg: float) -> tuple[Floats, Floats]:
    """Operators of a helix along z.

    Parameters
    ----------
    units
        Number of asymmetric units, the central one included.
    rise_px
        Rise per unit, in voxels of the map.
    twist_deg
        Twist per unit.

    Returns
    -------
    ``(n, 3, 3)`` rotations and ``(n, 3)`` shifts in voxels, ``n = units - 1``.
    """
    steps = [h for h in range(-(units // 2), units // 2 + units % 2) if h != 0]
    rotations = [_rotation_about_z(h * -twist_deg) for h in steps]
    shifts = [(0.0, 0.0, -h * rise_px) for h in steps]
    return np.array(rotations).reshape(-1, 3, 3), np.array(shifts).reshape(-1, 3)


def symmetry_operators(
    group: str,
    pixel_size_angst: float,
    helical_units: int = 1,
    helical_rise_angst: float = 0.0,
    helical_twist_deg: float = 0.0,
) -> tuple[Floats, Floats]:
    """All operators of a reconstruction: those of the point group, then those of the helix.

    The two are not multiplied with each other (RELION 5.0.1 behaviour).

    Parameters
    ----------
    group
        Point group or symmetry file, see :func:`point_group_operators`.
    pixel_size_angst
        Pixel size of the map.
    helical_units, helical_rise_angst, helical_twist_deg
        Helical symmetry; RELION reads rise and twist in single precision, and so they are rounded here.

    Returns
    -------
    ``(n, 3, 3)`` operators without the identity and ``(n, 3)`` shifts in voxels.
    """
    points = point_group_operators(group)
    rise, twist = float(np.float32(helical_rise_angst)), float(np.float32(helical_twist_deg))
    rotations, shifts = helical_operators(max(1, helical_units), rise / pixel_size_angst, twist)
    return np.concatenate([points, rotations]), np.concatenate([np.zeros((len(points), 3)), shifts])


def operators_from_generators(generators: tuple[Generator, ...]) -> Floats:
    """Close a set of generators to a group, in RELION 5.0.1's order and with its rounding.

    Returns
    -------
    ``(n, 3, 3)`` operators without the identity.
    """
    elements: list[Floats] = []
    # whether an element contains the inversion takes part in comparisons: RELION keeps a second matrix
    flags: list[bool] = []
    for generator in generators:
        for matrix in _matrices(generator):
            elements.append(matrix)
            flags.append(isinstance(generator, Inversion))
    n = 0
    while n < len(elements):
        for i, j in [(i, n) for i in range(n + 1)] + [(n, j) for j in range(n - 1, -1, -1)]:
            product, flag = _multiply(elements[i], elements[j]), flags[i] != flags[j]
            if _equal(product, np.eye(3)).all() and not flag:
                continue
            same = _equal(np.array(elements), product).all(axis=(1, 2)) & (np.array(flags) == flag)
            if not same.any():
                elements.append(np.where(np.abs(product) < _TOLERANCE, 0.0, product))
                flags.append(flag)
        n += 1
    return np.array(elements).reshape(-1, 3, 3)


def _matrices(generator: Generator) -> list[Floats]:
    if isinstance(generator, Inversion):
        return [-np.eye(3)]
    if isinstance(generator, Mirror):
        if generator == Mirror((0.0, 1.0, 1.0)):
            return [_OH_MIRROR]
        # RELION parses the axis of a mirror in single precision
        x, y, z = (float(np.float32(v)) for v in generator.normal)
        basis = np.ascontiguousarray(_align_with_z((x, y, z)).T)
        return [_multiply(_multiply(basis, _MIRROR), _invert(basis))]
    found, angle = [], 0.0
    align = _align_with_z(generator.axis)
    for _ in range(1, generator.order):
        angle += 360.0 / generator.order
        matrix = _multiply(_multiply(align.T, _rotation_about_z(angle)), align)
        found.append(np.where(np.abs(matrix) < _TOLERANCE, 0.0, matrix).T)
    return found


def _align_with_z(axis: Vector) -> Floats:
    """Rotation that moves an axis onto z."""
    length = math.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    x, y, z = (v / length for v in axis)
    p = math.sqrt(y * y + z * z)
    if p > _TOLERANCE:
        return np.array([[p, -x * y / p, -x * z / p], [0.0, z / p, -y / p], [x, y, z]])
    sign = 1.0 if x > 0 else -1.0
    return np.array([[0.0, 0.0, -sign], [0.0, 1.0, 0.0], [sign, 0.0, 0.0]])


def _rotation_about_z(angle_deg: float) -> Floats:
    angle = (angle_deg * math.pi) / 180.0
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _multiply(a: Floats, b: Floats) -> Floats:
    """Matrix product with sums in ascending order and no fused operations, unlike ``@``."""
    product: Floats = (a[:, 0:1] * b[0:1, :] + a[:, 1:2] * b[1:2, :]) + a[:, 2:3] * b[2:3, :]
    return product


def _invert(a: Floats) -> Floats:
    return np.asarray(np.linalg.inv(a), dtype=np.float64)


def _equal(a: Floats, b: Floats) -> NDArray[np.bool_]:
    close: NDArray[np.bool_] = np.abs(a - b) <= _TOLERANCE
    return close
