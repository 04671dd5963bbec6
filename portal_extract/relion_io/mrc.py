"""MRC files: headers as the format wants them, and files that appear whole or not at all.

Voxels are RELION's; the headers follow the MRC2014 standard where RELION 5.0.1 does not: image stacks
have space group 0 and ``mz`` 1, volumes space group 1 (RELION: 0 and ``nz`` everywhere). The voxel size
that readers derive is the same. Nothing depends on the time.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from portal_extract._version import __version__
from portal_extract.errors import ImageFormatError
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.relion_io.half import to_half

HEADER_BYTES = 1024
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
_MODE_OF_HALF = 12
#: words 1-23: nx ny nz mode, starts, mx my mz, cell, angles, axes, density statistics, space group
_START = "10i6f3i3f2i"
_IMOD_STAMP = 1146047817

MrcKind = Literal["stack", "volume"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """Density statistics of a header; ``rms`` is the population standard deviation."""

    minimum: float
    maximum: float
    mean: float
    rms: float


@dataclass(frozen=True, slots=True)
class MrcHeader:
    """What the header of an MRC file says.

    Attributes
    ----------
    shape
        Sections, rows, columns.
    dtype
        Type of a voxel, with its byte order.
    data_offset
        Bytes before the first voxel.
    voxel_size_angst
        Along x, y, z; 0 where the header does not tell.
    """

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    data_offset: int
    voxel_size_angst: tuple[float, float, float]

    @property
    def section_bytes(self) -> int:
        """Bytes of one section."""
        return self.shape[1] * self.shape[2] * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        """Bytes that the file must have at least."""
        return self.data_offset + self.shape[0] * self.section_bytes


def statistics(values: NDArray[np.float32]) -> Statistics:
    """Density statistics of an array, with sums in double precision."""
    flat = np.ascontiguousarray(values).reshape(-1)
    total = total2 = 0.0
    for start in range(0, len(flat), 1 << 15):
        block = flat[start : start + (1 << 15)].astype(np.float64)
        total += float(block.sum())
        total2 += float(np.dot(block, block))
    mean = total / len(flat)
    rms = abs(total2 / len(flat) - mean * mean) ** 0.5
    return Statistics(float(flat.min()), float(flat.max()), mean, rms)


def header_bytes(
    shape: tuple[int, int, int],
    mode: int,
    pixel_size_angst: float,
    stats: Statistics,
    kind: MrcKind,
) -> bytes:
    """Header of an MRC file without extended header.

    Parameters
    ----------
    shape
        Sections, rows, columns.
    mode
        2 (float32) or 12 (float16).
    pixel_size_angst
        Of columns and rows, and of the sections of a volume; images of a stack are 1 apart.
    stats
        Of the data, before any conversion to half precision (as RELION has them; the extremes are written
        as they are stored).
    kind
        Image stack or volume.

    Returns
    -------
    1024 bytes, little-endian.
    """
    nz, ny, nx = shape
    mz, depth, space_group = (1, 1.0, 0) if kind == "stack" else (nz, nz * pixel_size_angst, 1)
    cell = (nx * pixel_size_angst, ny * pixel_size_angst, depth)
    start = (nx, ny, nz, mode, 0, 0, 0, nx, ny, mz, *cell, 90.0, 90.0, 90.0, 1, 2, 3)
    low, high = stats.minimum, stats.maximum
    if mode == _MODE_OF_HALF:
        # the extremes must be values of the file; rounding keeps their order, so they round as voxels do
        low, high = to_half(np.array([low, high], dtype=np.float32)).astype(np.float64).tolist()
    density = (low, high, stats.mean, space_group, 0)
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<" + _START, header, 0, *start, *density)
    # words 25-27 are the extra space where the version of the format stands: year * 10 + revision
    struct.pack_into("<i", header, 108, 20140)
    struct.pack_into("<4s4sfi", header, 208, b"MAP ", b"\x44\x41\0\0", stats.rms, 1)
    struct.pack_into("80s", header, 224, f"portal-extract {__version__}".encode().ljust(80))
    return bytes(header)


def write_mrc(
    path: str | os.PathLike[str],
    data: NDArray[np.float32],
    pixel_size_angst: float,
    *,
    kind: MrcKind,
    float16: bool = False,
    stats: Statistics | None = None,
) -> None:
    """Write an MRC file; it appears whole or not at all.

    Parameters
    ----------
    path
        The file; its folder must exist.
    data
        ``(sections, rows, columns)`` float32.
    pixel_size_angst
        Angstrom per pixel.
    kind
        Image stack or volume.
    float16
        Write half precision (mode 12), encoded as RELION does.
    stats
        Statistics of ``data``, if they are known already.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    contiguous = np.ascontiguousarray(data, dtype="<f4")
    known = stats or statistics(contiguous)
    stored: NDArray[Any] = to_half(contiguous).astype("<f2", copy=False) if float16 else contiguous
    nz, ny, nx = contiguous.shape
    header = header_bytes((nz, ny, nx), _MODE_OF_HALF if float16 else 2, pixel_size_angst, known, kind)
    write_atomically(path, header, stored.data)


def write_stack(
    path: str | os.PathLike[str],
    images: NDArray[np.float32],
    pixel_size_angst: float,
    stats: Statistics | None = None,
    *,
    float16: bool = False,
) -> None:
    """Write an image stack ``(n, rows, columns)``; otherwise as :func:`write_mrc`."""
    write_mrc(path, images, pixel_size_angst, kind="stack", float16=float16, stats=stats)


def read_header(path: str | os.PathLike[str]) -> MrcHeader:
    """Read the header of an MRC file and check that the file holds what it says.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ImageFormatError
        Missing, unreadable, no MRC file, of a mode that is not supported, or truncated.
    """
    name = os.fspath(path)
    try:
        with Path(path).open("rb") as file:
            raw = file.read(HEADER_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise ImageFormatError(f"{name} does not exist: check the path") from None
    except OSError as error:
        raise ImageFormatError(f"{name} cannot be read: {error.strerror or error}") from None
    return parse_header(raw, name, size)


def parse_header(raw: bytes, name: str, file_bytes: int | None = None) -> MrcHeader:
    """Parse the header of an MRC file, in either byte order.

    Parameters
    ----------
    raw
        At least the first 1024 bytes.
    name
        Name of the file, for messages.
    file_bytes
        Size of the file, to be checked against the header; None if it is not known.

    Raises
    ------
    ImageFormatError
        No MRC file, of a mode that is not supported, or truncated.
    """
    if len(raw) < HEADER_BYTES:
        raise ImageFormatError(
            f"{name} is no MRC file: {len(raw)} bytes, fewer than a header has ({HEADER_BYTES})"
        )
    order = _byte_order(raw)
    nx, ny, nz, mode, _, _, _, mx, my, mz, *cell = struct.unpack_from(order + "10i3f", raw)
    axes = struct.unpack_from(order + "3i", raw, 64)
    (extended,) = struct.unpack_from(order + "i", raw, 92)
    if min(nx, ny, nz) < 1 or extended < 0:
        raise ImageFormatError(
            f"{name} is no MRC file: it claims {nz} sections of {ny} rows and {nx} columns"
        )
    if mode not in MODES:
        known = ", ".join(map(str, MODES))
        raise ImageFormatError(f"{name} has MRC mode {mode}, which is not supported (modes {known} are)")
    if axes not in ((1, 2, 3), (0, 0, 0)):
        raise ImageFormatError(f"{name} stores its axes in the order {axes}; only (1, 2, 3) is supported")
    voxel = [length / n if n > 0 else 0.0 for length, n in zip(cell, (mx, my, mz), strict=True)]
    dtype = np.dtype(MODES[mode]).newbyteorder(order)
    if mode == 0 and _is_unsigned(raw, order):
        dtype = np.dtype("u1")
    header = MrcHeader((nz, ny, nx), dtype, HEADER_BYTES + extended, (voxel[0], voxel[1], voxel[2]))
    if file_bytes is not None and file_bytes < header.file_bytes:
        raise ImageFormatError(
            f"{name} is truncated: {file_bytes} bytes, but {nz} sections of {ny} x {nx} of mode "
            f"{mode} need {header.file_bytes}; copy it again"
        )
    return header


def _byte_order(raw: bytes) -> Literal["<", ">"]:
    """Byte order by the axes, which are small numbers, or by the machine stamp where they are not set."""
    for order in ("<", ">"):
        if struct.unpack_from(order + "i", raw, 64)[0] in (1, 2, 3):
            return order
    return ">" if raw[212] == 0x11 else "<"


def _is_unsigned(raw: bytes, order: str) -> bool:
    """Whether 8-bit voxels are unsigned, as IMOD's stamp and flags tell (MRC2014: signed)."""
    stamp, flags = struct.unpack_from(order + "2i", raw, 152)
    return bool(stamp == _IMOD_STAMP and not flags & 1)
