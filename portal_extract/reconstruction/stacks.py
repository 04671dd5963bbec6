"""Images that were extracted before, as a source of views."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import ImageFormatError, StarFileError, UnsupportedError, UsageError
from portal_extract.extraction.views import Views
from portal_extract.images.boxes import PatchBatch
from portal_extract.model import ImageStack, Ints, Project
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import StackImages
from portal_extract.relion_io.mrc import read_header
from portal_extract.relion_io.numbers import parse_numbers
from portal_extract.running.events import BytesRead, Observer
from portal_extract.sources.relion.tilts import TomogramTables

_IMAGE, _SIZE, _BINNING = "rlnImageName", "rlnImageSize", "rlnTomoSubtomogramBinning"
_PREMULTIPLIED, _DIMENSIONS = "rlnCtfDataAreCtfPremultiplied", "rlnImageDimensionality"
_NAMED = 5
_FILES_IN_FLIGHT = 16


def no_images(tomogram: TomogramTables) -> ImageStack:
    """Stand for the images of a tilt series that nobody will read; its geometry is all that counts."""
    n = len(tomogram.tilts)
    return ImageStack(("",) * n, np.arange(n, dtype=np.int64), (0, 0))


@dataclass(frozen=True)
class ExtractedStacks:
    """What the particle table says of the images that it names.

    Attributes
    ----------
    images
        Of all particles.
    box_size
        Side of the images.
    binning
        With which they were extracted.
    """

    images: StackImages
    box_size: int
    binning: float


def find_stacks(project: Project) -> ExtractedStacks:
    """Find the images of extracted particles: 2D stacks, premultiplied or not.

    Parameters
    ----------
    project
        With the tables of an extraction; read with :func:`no_images`.

    Raises
    ------
    StarFileError
        The tables are not those of 2D stacks.
    UnsupportedError
        Images of several sizes or binnings.
    ImageFormatError
        A stack is missing, or has another size or number of images than the tables say; before any is read.
    """
    tables = project.tables
    if tables is None:
        raise StarFileError(
            "the project has no tables: --from-stacks needs the particles.star of an extraction"
        )
    for table, name, labels in (
        (tables.particles, "data_particles", (_IMAGE,)),
        (tables.optics, "data_optics", (_SIZE, _BINNING, _PREMULTIPLIED, _DIMENSIONS)),
    ):
        missing = [label for label in labels if label not in table]
        if missing:
            raise StarFileError(
                f"{name} has no {', '.join(missing)}: --from-stacks needs the particles.star of an "
                "extraction as 2D stacks"
            )
    used = np.unique(project.particles.optics_group)
    optics = {
        label: parse_numbers(tables.optics[label]) for label in (_SIZE, _BINNING, _PREMULTIPLIED, _DIMENSIONS)
    }
    if (optics[_DIMENSIONS][used] != 2).any():
        raise StarFileError("data_optics: the particles are 3D volumes; --from-stacks takes 2D stacks")
    for label in (_SIZE, _BINNING):
        if len(np.unique(optics[label][used])) > 1:
            raise UnsupportedError(
                [f"data_optics: {label} differs between optics groups; reconstruct each group by itself"]
            )
    premultiplied = optics[_PREMULTIPLIED][project.particles.optics_group] != 0
    # absolute, because the workers of a cluster may be at home elsewhere
    paths = tuple(os.path.abspath(path) for path in tables.particles[_IMAGE])
    images = StackImages(paths, premultiplied)
    return ExtractedStacks(images, int(optics[_SIZE][used[0]]), float(optics[_BINNING][used[0]]))


def check_stacks(stacks: StackImages, lengths: Ints, box_size: int) -> None:
    """Look at the header of every stack.

    Parameters
    ----------
    stacks
        Paths of all particles.
    lengths
        ``(N,)`` number of images that each must have.
    box_size
        Their side.

    Raises
    ------
    ImageFormatError
        All stacks that are missing or other than the tables say.
    """

    def look(path: str, length: int) -> str | None:
        try:
            shape = read_header(path).shape
        except ImageFormatError as error:
            return str(error)
        if shape == (length, box_size, box_size):
            return None
        found = f"{path} has {shape[0]} images of {shape[2]} x {shape[1]}"
        return f"{found} where the tables say {length} of {box_size}"

    wanted = [(p, n) for p, n in zip(stacks.paths, lengths.tolist(), strict=True) if n]
    with ThreadPoolExecutor(_FILES_IN_FLIGHT) as pool:
        problems = [problem for problem in pool.map(lambda one: look(*one), wanted) if problem]
    if problems:
        more = f"; and {len(problems) - _NAMED} more stacks" if len(problems) > _NAMED else ""
        raise ImageFormatError("; ".join(problems[:_NAMED]) + more)


def options_for_stacks(options: ReconstructOptions, stacks: ExtractedStacks) -> ReconstructOptions:
    """Fit the options to the images.

    Parameters
    ----------
    options
        With a ``box_size`` of 0 where the user gave none.
    stacks
        What is there.

    Raises
    ------
    UsageError
        What the images cannot give any more.
    """
    problems = []
    if options.box_size not in (0, stacks.box_size):
        problems.append(
            f"--box-size {options.box_size}: the stacks have images of {stacks.box_size}; leave it out, and "
            "use --crop-size for smaller maps"
        )
    if options.binning not in (1.0, stacks.binning):
        problems.append(
            f"--bin {options.binning:g}: the stacks were extracted with {stacks.binning:g}; leave it out"
        )
    if options.whiten:
        problems.append("--whiten needs tilt images: extract with --whiten, or leave --from-stacks out")
    if not options.ctf and stacks.images.premultiplied.any():
        problems.append("--no-ctf: the stacks are multiplied by the CTF already; extract with --no-ctf")
    if problems:
        raise UsageError("--from-stacks: " + "; ".join(problems))
    return replace(options, box_size=stacks.box_size, binning=stacks.binning, visible_frames="stored")


def stack_batches(
    stacks: StackImages, views: Views, batch_views: int, observer: Observer
) -> Iterator[PatchBatch]:
    """Images of the views, in their order; read by whoever cuts the batch.

    Parameters
    ----------
    stacks
        Of the particles of the views.
    views
        In order of particle and tilt.
    batch_views
        Most images in one batch.
    observer
        Told of bytes read.
    """
    for start in range(0, len(views), batch_views):
        which = np.arange(start, min(start + batch_views, len(views)), dtype=np.int64)
        yield PatchBatch(which, partial(_read, stacks, views, which, observer))


def _read(
    stacks: StackImages, views: Views, which: Ints, observer: Observer, out: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    side = views.boxes.side_px
    images = np.empty((len(which), side, side), np.float32) if out is None else out
    particle = views.particle[which]
    for local in np.unique(particle).tolist():
        mine = np.flatnonzero(particle == local)
        images[mine] = _read_images(Path(stacks.paths[local]), views.slot[which[mine]], side)
    observer(BytesRead(images.nbytes, 0))
    return images


def _read_images(path: Path, slots: Ints, side: int) -> NDArray[np.float32]:
    header = read_header(path)
    if header.shape[1:] != (side, side) or header.shape[0] <= int(slots.max()):
        raise ImageFormatError(f"{path} has changed since it was looked at; extract it again")
    stored = np.memmap(path, header.dtype, "r", header.data_offset, header.shape)
    return np.asarray(stored[slots], dtype=np.float32)
