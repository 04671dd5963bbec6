"""Looks at the output of an extraction as RELION would: particles.star, and the stacks that it names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import StarFileError
from portal_extract.relion_io.numbers import parse_numbers, parse_vector
from portal_extract.relion_io.star import read_star
from portal_extract.relion_io.string_table import StringTable

Floats = NDArray[np.float64]
Images = NDArray[np.float32]
STACKS_FOLDER = "Subtomograms"


@dataclass(frozen=True)
class Extracted:
    """Particles that an extraction wrote as 2D stacks.

    Attributes
    ----------
    folder
        Output folder.
    particles
        ``data_particles`` as strings.
    pixel_sizes_angst
        ``(N,)`` of the images of each particle.
    premultiplied
        Whether the images are multiplied by CTF and dose weights.
    """

    folder: Path
    particles: StringTable
    pixel_sizes_angst: Floats
    premultiplied: bool

    def __len__(self) -> int:
        return len(self.particles)

    def stack(self, index: int) -> Images:
        """Read the ``(views, c, c)`` images of a particle, the particle bright."""
        name = Path(self.particles["rlnImageName"][index])
        # names are relative to where the extraction was started
        path = name if name.exists() else self.folder / STACKS_FOLDER / name.parts[-2] / name.name
        images: Images = np.asarray(mrcfile.read(path), dtype=np.float32)
        return images.reshape(-1, *images.shape[-2:])

    def tilts(self, index: int) -> NDArray[np.int64]:
        """Find the ``(views,)`` tilt images of a particle: rows of its tilt-series table."""
        text = self.particles["rlnTomoVisibleFrames"][index]
        flags = parse_vector(text)
        if flags is None:
            raise StarFileError(f"{self.folder / 'particles.star'}: {text!r} is no list of visible frames")
        return np.flatnonzero(flags)

    def tilt_table(self, tomogram: str) -> StringTable | None:
        """Table of a tilt series, or None if it is not in the folder (extraction of a local project)."""
        path = self.folder / "tilt_series" / f"{tomogram}.star"
        return read_star(path).block(tomogram).table() if path.is_file() else None

    def lowest_tilt_image(self, index: int) -> Images:
        """``(c, c)`` image of a particle at the lowest tilt that sees it (the middle one if unknown)."""
        stack = self.stack(index)
        table = self.tilt_table(self.particles["rlnTomoName"][index])
        if table is None:
            image: Images = stack[len(stack) // 2]
        else:
            angles = numbers(table, "rlnTomoYTilt")
            image = stack[np.argmin(np.abs(angles[self.tilts(index)]))]
        return image


def read_extracted(folder: Path) -> Extracted:
    """Read the particle table of an extraction.

    Parameters
    ----------
    folder
        Output folder.

    Raises
    ------
    StarFileError
        There is no particle table, or it names no 2D stacks.
    """
    path = folder / "particles.star"
    file = read_star(path)
    particles, optics = file.block("particles").table(), file.block("optics").table()
    for label in ("rlnImageName", "rlnTomoVisibleFrames", "rlnTomoName"):
        if label not in particles:
            raise StarFileError(f"{path}: data_particles has no {label}; give the output of a 2D extraction")
    # the optics group of a particle is a row number (RELION 5.0.1 behaviour)
    groups = numbers(particles, "rlnOpticsGroup").astype(np.int64) - 1
    premultiplied = bool(numbers(optics, "rlnCtfDataAreCtfPremultiplied").any())
    return Extracted(folder, particles, numbers(optics, "rlnImagePixelSize")[groups], premultiplied)


def numbers(table: StringTable, label: str, default: float = 0.0) -> Floats:
    """Numbers of a column; ``default`` where there is none."""
    if label not in table:
        return np.full(len(table), default)
    return parse_numbers(table[label])
