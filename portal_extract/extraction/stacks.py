"""2D stacks: masks and crops images, collects those of a particle, and writes its file when it is whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.masks import CircleMask, circle_mask, gridding_weights
from portal_extract.extraction.spectra import SpectrumTables, to_images, transform
from portal_extract.extraction.stack_files import StackFiles, images_that_wait
from portal_extract.extraction.views import Views
from portal_extract.model import Floats, Ints
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.mrc import Statistics, header_bytes
from portal_extract.running.events import Observer, StageAdvanced

_NO_MASK = CircleMask(np.empty((0, 0)), np.empty((0, 2), np.int64), 0)


class StackConsumer:
    """Makes the 2D stacks of one unit from its patches.

    A few images of each particle wait in memory to be written together; the others are in their places in the
    particle's unfinished file already. So memory stays bounded in whatever order patches come.

    Parameters
    ----------
    views, tables, options
        Of the unit.
    paths
        ``K`` files to be written, one for each kept particle.
    memory_bytes
        Bound for images that wait; where it is too small for two of each particle, none waits.
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
        self._observer = observer
        self._mask, self._gridding = masks_of(options)
        self._side = options.output_size
        # views are in order of particle and tilt image, so those of a particle are neighbours
        lengths = views.stack_lengths
        self._first_view = np.concatenate([[0], np.cumsum(lengths)])
        self._sums = np.zeros((len(views), 4))
        longest = int(lengths.max(initial=1))
        waiting = images_that_wait(len(lengths), longest, stored_image_bytes(options), memory_bytes)
        self._files = self._open(paths, lengths, waiting)
        self.bad: dict[int, str] = {}
        """Particles (of the unit) whose stack is no good, with the reason."""

    def consume(self, which: Ints, patches: NDArray[np.float32]) -> None:
        """Turn patches into images and write the stacks that are complete."""
        spectra = transform(patches, which, self._views, self._tables, self._options, factor=self._factor)
        images = self._corrected(to_images(spectra, normalise=False))
        # in order of views, those of a particle lie together, as they do in its file
        order = np.argsort(which)
        views, places = which[order], np.empty_like(order)
        places[order] = np.arange(len(order))
        cropped, sums = np.empty((len(order), self._side, self._side), np.float32), np.empty((len(order), 4))
        self._crop(images, cropped, places, sums)
        self._sums[views] = sums
        self._put(views, cropped)
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
            from portal_extract.kernels.mask import mask_in_place

            mask_in_place(images, self._mask.weights, self._mask.spans, self._mask.n_background)
        return (images * self._gridding).astype(np.float32)

    def _crop(self, images: NDArray[np.float32], out: NDArray[np.float32], slots: Ints, sums: Floats) -> None:
        from portal_extract.kernels.mask import mask_and_crop

        mask = self._mask if self._mask is not None and self._gridding is None else _NO_MASK
        boundary = self._options.boundary
        mask_and_crop(images, mask.weights, mask.spans, mask.n_background, boundary, out, slots, sums)

    def _put(self, views: Ints, images: NDArray[np.float32]) -> None:
        """Hand the images of views, which are in order, to the files of their particles."""
        particles, starts = np.unique(self._views.particle[views], return_index=True)
        stops = [*starts[1:].tolist(), len(views)]
        for particle, start, stop in zip(particles.tolist(), starts.tolist(), stops, strict=True):
            if self._files.put(particle, self._views.slot[views[start:stop]], images[start:stop]):
                self._complete(particle)

    def _complete(self, particle: int) -> None:
        sums = self._sums[self._first_view[particle] : self._first_view[particle + 1]]
        problem = check_images(sums)
        if problem:
            self.bad[int(self._views.kept[particle])] = problem
            self._files.discard(particle)
        else:
            self._files.complete(particle, self._header(sums, len(sums)))

    def _header(self, sums: Floats, n_images: int) -> bytes:
        """Header of a stack, with the statistics of some of its images."""
        shape = (n_images, self._side, self._side)
        pixel = self._views.series.pixel_size_angst * self._options.binning
        mode = 12 if self._options.float16 else 2
        return header_bytes(shape, mode, pixel, combine_sums(sums, shape), "stack")

    def _open(self, paths: Sequence[Path], lengths: Ints, images_waiting: int) -> StackFiles:
        shape, float16 = (self._side, self._side), self._options.float16
        return StackFiles(paths, lengths, shape, float16=float16, images_waiting=images_waiting)


def stored_image_bytes(options: ExtractOptions) -> int:
    """Size of an image in a stack."""
    return options.output_size**2 * (2 if options.float16 else 4)


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
