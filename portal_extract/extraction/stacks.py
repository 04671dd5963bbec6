"""2D stacks: masks and crops images, collects those of a particle, and writes its file when it is whole."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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


@dataclass
class _Pending:
    """What is there of a particle's stack so far."""

    missing: int
    parts: list[tuple[Ints, NDArray[np.generic]]] = field(default_factory=list)
    spilled: bool = False


class StackConsumer:
    """Makes the 2D stacks of one tilt series from its patches.

    Images are held until the last one of their particle is there; beyond ``memory_bytes`` they go straight to
    their place in the particle's unfinished file, so memory stays bounded in whatever order patches come.

    Parameters
    ----------
    views, tables, options
        Of the tilt series.
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
        self._memory_bytes = memory_bytes
        self._mask, self._gridding = masks_of(options)
        self._sums = np.zeros((len(views), 4))
        self._first_view = np.concatenate([[0], np.cumsum(views.stack_lengths)])
        self._pending = [_Pending(int(n)) for n in views.stack_lengths]
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._made_folders: set[Path] = set()
        self._token = uuid.uuid4().hex[:12]
        self.bad: dict[int, str] = {}
        """Particles (of the project) whose stack is no good, with the reason."""

    def consume(self, which: Ints, patches: NDArray[np.float32]) -> None:
        """Turn patches into images and write the stacks that are complete."""
        images, sums = self._images(which, patches)
        # views are in order of particle and tilt, so a view's number is its particle's first plus its slot
        self._sums[which] = sums
        particle = self._views.particle[which]
        order = np.argsort(particle, kind="stable")
        groups = np.split(order, np.flatnonzero(np.diff(particle[order])) + 1)
        for group in groups:
            contiguous = group[-1] - group[0] == len(group) - 1
            rows = images[group[0] : group[-1] + 1] if contiguous else images[group]
            self._add(int(particle[group[0]]), self._views.slot[which[group]], rows)
        self._observer(StageAdvanced("extract", len(which)))

    def finish(self) -> None:
        """Do nothing: every stack was written when its last image came."""

    def _images(self, which: Ints, patches: NDArray[np.float32]) -> tuple[NDArray[np.generic], Floats]:
        options = self._options
        spectra = transform(
            patches,
            which,
            self._views,
            self._tables,
            options,
            factor=1.0 / options.binning / options.box_size,
        )
        images = to_images(spectra, normalise=False)
        crop = options.box_size - 2 * options.boundary
        out = np.empty((len(which), crop, crop), np.float32)
        sums = np.empty((len(which), 4))
        if self._gridding is not None:
            if self._mask is not None:
                mask_in_place(images, self._mask.weights, self._mask.spans, self._mask.n_background)
            images = (images * self._gridding).astype(np.float32)
        mask = self._mask if self._gridding is None else None
        mask_and_crop(
            images,
            np.empty((0, 0)) if mask is None else mask.weights,
            np.empty((0, 2), np.int64) if mask is None else mask.spans,
            0 if mask is None else mask.n_background,
            options.boundary,
            out,
            np.arange(len(which)),
            sums,
        )
        return (to_half(out) if options.float16 else out), sums

    def _add(self, particle: int, slots: Ints, images: NDArray[np.generic]) -> None:
        pending = self._pending[particle]
        with self._lock:
            spill = pending.spilled or self._held_bytes + images.nbytes > self._memory_bytes
            parts = [(slots, images)]
            if spill:
                parts = [*pending.parts, *parts]
                self._held_bytes -= sum(images_.nbytes for _, images_ in pending.parts)
                pending.parts, pending.spilled = [], True
            else:
                pending.parts += parts
                self._held_bytes += images.nbytes
        if spill:
            self._spill(particle, parts)
        with self._lock:
            pending.missing -= len(slots)
            complete = pending.missing == 0
        if complete:
            self._complete(particle, pending)

    def _complete(self, particle: int, pending: _Pending) -> None:
        first, last = self._first_view[particle], self._first_view[particle + 1]
        shape = (int(last - first), *self._image_shape)
        statistics = _combine(self._sums[first:last], shape)
        problem = _check(self._sums[first:last])
        temporary = self._temporary(particle)
        if problem:
            with self._lock:
                self.bad[int(self._views.kept[particle])] = problem
                self._held_bytes -= sum(images.nbytes for _, images in pending.parts)
            pending.parts = []
            temporary.unlink(missing_ok=True)
            return
        pixel = self._views.series.pixel_size_angst * self._options.binning
        header = header_bytes(shape, 12 if self._options.float16 else 2, pixel, statistics, "stack")
        if pending.spilled:
            with open(temporary, "r+b") as file:
                file.write(header)
            os.replace(temporary, self._paths[particle])
        else:
            self._write(self._paths[particle], header, pending)

    def _write(self, path: Path, header: bytes, pending: _Pending) -> None:
        self._make_folder(path.parent)
        rows = {
            int(slot): image
            for slots, images in pending.parts
            for slot, image in zip(slots, images, strict=True)
        }
        write_atomically(path, header, *(rows[slot].data for slot in range(len(rows))))
        with self._lock:
            self._held_bytes -= sum(images.nbytes for _, images in pending.parts)
        pending.parts = []

    def _spill(self, particle: int, parts: list[tuple[Ints, NDArray[np.generic]]]) -> None:
        temporary = self._temporary(particle)
        self._make_folder(temporary.parent)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            for slots, images in parts:
                for slot, image in zip(slots, images, strict=True):
                    _write_at(descriptor, image, HEADER_BYTES + int(slot) * image.nbytes)
        finally:
            os.close(descriptor)

    def _temporary(self, particle: int) -> Path:
        path = self._paths[particle]
        # one name per consumer: a unit that a cluster runs twice must not write to one file
        return path.with_name(f".{path.name}.{self._token}.part")

    def _make_folder(self, folder: Path) -> None:
        if folder not in self._made_folders:
            folder.mkdir(parents=True, exist_ok=True)
            self._made_folders.add(folder)

    @property
    def _image_shape(self) -> tuple[int, int]:
        side = self._options.box_size - 2 * self._options.boundary
        return side, side


def masks_of(options: ExtractOptions) -> tuple[CircleMask | None, Floats | None]:
    """Make the circular mask and the gridding correction that the options ask for."""
    mask = circle_mask(options.box_size, options.boundary) if options.circle_crop else None
    gridding = gridding_weights(options.box_size, options.boundary) if options.grid_precorrection else None
    return mask, gridding


def _combine(sums: Floats, shape: tuple[int, int, int]) -> Statistics:
    """Header statistics of a stack from those of its images."""
    n = shape[0] * shape[1] * shape[2]
    mean, square = float(sums[:, 2].sum()) / n, float(sums[:, 3].sum()) / n
    return Statistics(
        float(sums[:, 0].min()), float(sums[:, 1].max()), mean, float(np.sqrt(abs(square - mean * mean)))
    )


def _check(sums: Floats) -> str | None:
    """Say what is wrong with a stack, or None."""
    if not np.isfinite(sums).all():
        return "stack with values that are not finite"
    if sums[:, 0].min() == sums[:, 1].max():
        return "constant stack"
    return None


def _write_at(descriptor: int, image: NDArray[np.generic], offset: int) -> None:
    rest = np.ascontiguousarray(image).data.cast("B")
    while rest:
        n = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[n:], offset + n
