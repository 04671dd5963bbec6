"""2D stacks: masks and crops images, collects those of a particle, and writes its file when it is whole."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import OutputError
from portal_extract.extraction.spectra import SpectrumTables, to_images, transform
from portal_extract.extraction.views import Views
from portal_extract.kernels.mask import (
    CircleMask,
    circle_mask,
    gridding_weights,
    mask_and_crop,
    mask_in_place,
)
from portal_extract.model import Floats, Ints
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.atomic import write_atomically
from portal_extract.relion_io.half import to_half
from portal_extract.relion_io.mrc import HEADER_BYTES, Statistics, header_bytes
from portal_extract.running.events import Observer, StageAdvanced

_NO_MASK = CircleMask(np.empty((0, 0)), np.empty((0, 2), np.int64), 0)


class StackConsumer:
    """Makes the 2D stacks of one unit from its patches.

    Images wait in memory for the others of their particle; where ``memory_bytes`` is too small for all images
    of the unit, each goes at once to its place in the particle's unfinished file. So memory stays bounded in
    whatever order patches come.

    Parameters
    ----------
    views, tables, options
        Of the unit.
    paths
        ``K`` files to be written, one for each kept particle.
    memory_bytes
        Bound for images that wait.
    observer
        Told of the number of views done.
    """

    def __init__(
        self,
        views: Views,
        tables: SpectrumTables,
        options: ExtractOptions,
        paths: Sequence[Path],
        memory_bytes: int,
        observer: Observer,
    ) -> None:
        self._views, self._tables, self._options = views, tables, options
        self._paths, self._observer = paths, observer
        self._mask, self._gridding = masks_of(options)
        side = options.box_size - 2 * options.boundary
        # views are in order of particle and tilt image, so those of a particle are neighbours
        self._first_view = np.concatenate([[0], np.cumsum(views.stack_lengths)])
        self._missing = views.stack_lengths
        self._sums = np.zeros((len(views), 4))
        fits = len(views) * side * side * 4 <= memory_bytes
        self._images = np.empty((len(views) if fits else 0, side, side), np.float32)
        self._in_memory = fits
        self._lock = threading.Lock()
        self._made_folders: set[Path] = set()
        self._token = uuid.uuid4().hex[:12]
        self.bad: dict[int, str] = {}
        """Particles (of the unit) whose stack is no good, with the reason."""

    def consume(self, which: Ints, patches: NDArray[np.float32]) -> None:
        """Turn patches into images and write the stacks that are complete."""
        spectra = transform(patches, which, self._views, self._tables, self._options, factor=self._factor)
        images = self._corrected(to_images(spectra, normalise=False))
        if self._in_memory:
            self._crop(images, self._images, which, self._sums)
        else:
            cropped = np.empty((len(which), *self._images.shape[1:]), np.float32)
            sums = np.empty((len(which), 4))
            self._crop(images, cropped, np.arange(len(which)), sums)
            self._sums[which] = sums
            self._put_on_disk(which, cropped)
        for particle in self._completed(which):
            self._complete(particle)
        self._observer(StageAdvanced("extract", len(which)))

    def finish(self) -> None:
        """Do nothing: every stack was written when its last image came."""

    @property
    def _factor(self) -> float:
        """Normalise the inverse transform; RELION 5.0.1 divides stacks by the binning once more."""
        return 1.0 / self._options.binning / self._options.box_size

    def _corrected(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Apply the gridding correction, which comes after the mask; the mask alone waits for the crop."""
        if self._gridding is None:
            return images
        if self._mask is not None:
            mask_in_place(images, self._mask.weights, self._mask.spans, self._mask.n_background)
        return (images * self._gridding).astype(np.float32)

    def _crop(self, images: NDArray[np.float32], out: NDArray[np.float32], slots: Ints, sums: Floats) -> None:
        mask = self._mask if self._mask is not None and self._gridding is None else _NO_MASK
        boundary = self._options.boundary
        mask_and_crop(images, mask.weights, mask.spans, mask.n_background, boundary, out, slots, sums)

    def _completed(self, which: Ints) -> list[int]:
        """Count the images that are there; list the particles that have all of theirs now."""
        particles, counts = np.unique(self._views.particle[which], return_counts=True)
        with self._lock:
            self._missing[particles] -= counts
            return [int(p) for p in particles[self._missing[particles] == 0]]

    def _complete(self, particle: int) -> None:
        first, last = self._first_view[particle], self._first_view[particle + 1]
        sums = self._sums[first:last]
        problem = check_images(sums)
        if problem:
            with self._lock:
                self.bad[int(self._views.kept[particle])] = problem
            self._temporary(particle).unlink(missing_ok=True)
            return
        path, shape = self._paths[particle], (int(last - first), *self._images.shape[1:])
        pixel = self._views.series.pixel_size_angst * self._options.binning
        mode = 12 if self._options.float16 else 2
        header = header_bytes(shape, mode, pixel, combine_sums(sums, shape), "stack")
        if self._in_memory:
            self._make_folder(path.parent)
            write_atomically(path, header, self._stored(self._images[first:last]).data)
        else:
            with open(self._temporary(particle), "r+b") as file:
                file.write(header)
            os.replace(self._temporary(particle), path)

    def _put_on_disk(self, which: Ints, images: NDArray[np.float32]) -> None:
        """Write images to their places in the unfinished files of their particles."""
        stored = self._stored(images)
        order = np.argsort(self._views.particle[which], kind="stable")
        particles = self._views.particle[which[order]]
        for group in np.split(order, np.flatnonzero(np.diff(particles)) + 1):
            temporary = self._temporary(int(self._views.particle[which[group[0]]]))
            self._make_folder(temporary.parent)
            try:
                descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666)
                try:
                    for i in group:
                        offset = HEADER_BYTES + int(self._views.slot[which[i]]) * stored[i].nbytes
                        write_at(descriptor, stored[i].data.cast("B"), offset)
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise OutputError(f"{temporary} cannot be written: {error.strerror}") from error

    def _stored(self, images: NDArray[np.float32]) -> NDArray[np.generic]:
        return to_half(images) if self._options.float16 else images

    def _temporary(self, particle: int) -> Path:
        path = self._paths[particle]
        # one name per consumer: a unit that a cluster runs twice must not write to one file
        return path.with_name(f".{path.name}.{self._token}.part")

    def _make_folder(self, folder: Path) -> None:
        if folder not in self._made_folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(f"{folder} cannot be made: {error.strerror}") from error
            self._made_folders.add(folder)


def masks_of(options: ExtractOptions) -> tuple[CircleMask | None, Floats | None]:
    """Make the circular mask and the gridding correction that the options ask for."""
    mask = circle_mask(options.box_size, options.boundary) if options.circle_crop else None
    gridding = gridding_weights(options.box_size, options.boundary) if options.grid_precorrection else None
    return mask, gridding


def combine_sums(sums: Floats, shape: tuple[int, int, int]) -> Statistics:
    """Header statistics of a stack from those of its images."""
    n = shape[0] * shape[1] * shape[2]
    mean, square = float(sums[:, 2].sum()) / n, float(sums[:, 3].sum()) / n
    return Statistics(
        float(sums[:, 0].min()), float(sums[:, 1].max()), mean, float(np.sqrt(abs(square - mean * mean)))
    )


def check_images(sums: Floats) -> str | None:
    """Say what is wrong with a stack, or None."""
    if not np.isfinite(sums).all():
        return "stack with values that are not finite"
    if sums[:, 0].min() == sums[:, 1].max():
        return "constant stack"
    return None


def write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of some bytes at a place in a file."""
    while data:
        n = os.pwrite(descriptor, data, offset)
        data, offset = data[n:], offset + n
