"""Partial sums on disk: what a process has summed up so far, and of which particles."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from portal_extract.errors import OutputError
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.running.units import UnitResult

PREFIX = ".sum-"
_HEADER_UNIT = 4096
_MAGIC = "portal-extract sums 1"


@dataclass(frozen=True)
class Sums:
    """Partial sums.

    Attributes
    ----------
    stamp
        Identifies the run: options and inputs.
    halves
        An accumulator for each half set.
    results
        What is in them.
    """

    stamp: str
    halves: Sequence[Accumulator]
    results: tuple[UnitResult, ...]


@dataclass(frozen=True)
class SumsFile:
    """A file of partial sums, of which only the header was read.

    Attributes
    ----------
    path
        The file.
    stamp, results
        As in :class:`Sums`.
    box, n_halves
        Size of the accumulators.
    offset
        Bytes before them.
    """

    path: Path
    stamp: str
    results: tuple[UnitResult, ...]
    box: int
    n_halves: int
    offset: int

    @property
    def particles(self) -> tuple[int, ...]:
        """Indices of the particles that are in the sums."""
        return tuple(i for result in self.results for i in result.particles)

    def add_to(self, halves: Sequence[Accumulator]) -> None:
        """Add the sums to others, plane by plane.

        Raises
        ------
        OutputError
            The file cannot be read.
        """
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                for half in halves:
                    for array in (half.data, half.weight):
                        for plane in array:
                            read = np.fromfile(file, array.dtype, plane.size)
                            plane += read.reshape(plane.shape)
        except (OSError, ValueError) as error:
            raise OutputError(f"{self.path} cannot be read: {error}; --overwrite starts anew") from error


def write_sums(path: str | os.PathLike[str], sums: Sums) -> None:
    """Write partial sums; the file appears whole or not at all.

    Raises
    ------
    OutputError
        The disk refuses.
    """
    header = {
        "magic": _MAGIC,
        "stamp": sums.stamp,
        "box": sums.halves[0].box,
        "n_halves": len(sums.halves),
        "results": [result.to_dict() for result in sums.results],
    }
    line = json.dumps(header).encode() + b"\n"
    arrays = [array for half in sums.halves for array in (half.data.view(np.float64), half.weight)]
    write_atomically(
        path, line.ljust(-(-len(line) // _HEADER_UNIT) * _HEADER_UNIT), *(a.data for a in arrays)
    )


def find_sums(folder: Path, stamp: str) -> list[SumsFile]:
    """Find the partial sums of a run, in the order of their first particle.

    Files of other runs, and those that a crash of the machine cut short, do not count.
    """
    found = [sums for path in folder.glob(f"{PREFIX}*") if (sums := _read_header(path)) is not None]
    return sorted(
        (s for s in found if s.stamp == stamp), key=lambda sums: (sums.particles[0], sums.path.name)
    )


def _read_header(path: Path) -> SumsFile | None:
    try:
        with open(path, "rb") as file:
            line = file.readline()
            header: dict[str, Any] = json.loads(line)
            box, n_halves = int(header["box"]), int(header["n_halves"])
            offset = -(-len(line) // _HEADER_UNIT) * _HEADER_UNIT
            whole = offset + n_halves * 24 * box * box * (box // 2 + 1)
            if header["magic"] != _MAGIC or os.fstat(file.fileno()).st_size != whole:
                return None
        results = tuple(UnitResult.from_dict(result) for result in header["results"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return SumsFile(path, str(header["stamp"]), results, box, n_halves, offset) if results else None
