"""3D pseudo-subtomograms: collects the transforms of a particle, inserts them, and writes its volumes."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.spectra import SpectrumTables, to_images, transform
from portal_extract.extraction.stacks import masks_of
from portal_extract.extraction.views import Views
from portal_extract.extraction.volumes import RECIPROCAL, Maps, Pose, VolumeSum, particle_volumes
from portal_extract.model import Floats, Ints
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.mrc import write_mrc
from portal_extract.running.events import Observer, StageAdvanced


@dataclass
class _Waiting:
    """Transforms of a particle that are there."""

    spectra: NDArray[np.complex64]
    weights: NDArray[np.float32]
    missing: int


class VolumeConsumer:
    """Makes the 3D pseudo-subtomograms of one unit from its patches.

    A particle's transforms are held until the last one is there; the unit is cut so that they fit.

    Parameters
    ----------
    views, tables, options
        Of the unit.
    ranges
        ``(F, b)`` first column of each row that the dose cuts off.
    poses
        ``(K, 3, 3)`` subtomogram frame and ``(K, 3, 3)`` full orientation of each kept particle.
    stems
        ``K`` paths without suffix, one for each kept particle.
    sum_path
        Where the sum over the unit goes (numpy archive), or None.
    workers
        Threads for the sum, whose order is fixed.
    observer
        Told of the number of views done.
    """

    def __init__(
        self,
        views: Views,
        tables: SpectrumTables,
        options: ExtractOptions,
        ranges: Ints,
        poses: tuple[Floats, Floats],
        stems: Sequence[Path],
        sum_path: Path | None,
        workers: int,
        observer: Observer,
    ) -> None:
        self._views, self._tables, self._options = views, tables, options
        self._ranges, self._poses, self._stems = ranges, poses, stems
        self._sum_path, self._workers, self._observer = sum_path, workers, observer
        self._mask, self._gridding = masks_of(options)
        self._waiting: dict[int, _Waiting] = {}
        self._lock = threading.Lock()
        self.bad: dict[int, str] = {}
        """Particles (of the project) whose volumes are no good, with the reason."""

    def consume(self, which: Ints, patches: NDArray[np.float32]) -> None:
        """Transform patches; insert the particles that are complete."""
        spectra, weights = self._spectra(which, patches)
        particle = self._views.particle[which]
        complete = []
        with self._lock:
            for local in np.unique(particle):
                mine = particle == local
                waiting = self._wait_for(int(local))
                slots = self._views.slot[which[mine]]
                waiting.spectra[slots] = spectra[mine]
                if weights is not None:
                    waiting.weights[slots] = weights[mine]
                waiting.missing -= len(slots)
                if not waiting.missing and self._sum_path is None:
                    complete.append((int(local), self._waiting.pop(int(local))))
        for local, waiting in complete:
            self._make(local, waiting)
        self._observer(StageAdvanced("extract", len(which)))

    def finish(self) -> None:
        """Sum over the particles, in table order, if asked."""
        if self._sum_path is None:
            return
        total = VolumeSum(self._options.output_size)
        with ThreadPoolExecutor(self._workers) as pool:
            order = sorted(self._waiting)
            for start in range(0, len(order), 2 * self._workers):
                some = order[start : start + 2 * self._workers]
                made = pool.map(lambda k: self._make(k, self._waiting.pop(k)), some)
                for volumes in made:
                    if volumes is not None:
                        total.add(*volumes)
        # a name of its own: a cluster may do a unit twice at the same time
        temporary = self._sum_path.with_name(f".{self._sum_path.name}.{uuid.uuid4().hex[:12]}.part")
        with open(temporary, "wb") as file:
            np.savez(file, data=total.data, weight=total.weight)
        temporary.replace(self._sum_path)

    def _spectra(
        self, which: Ints, patches: NDArray[np.float32]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32] | None]:
        """Make transforms with the particle at pixel 0, and their weights (None for 1 everywhere)."""
        options, tables = self._options, self._tables
        size = options.box_size
        transfer = None
        if options.ctf:
            transfer = np.empty((len(which), size, size // 2 + 1), np.float32)
        spectra = transform(patches, which, self._views, tables, options, transfer_out=transfer)
        weights = None if transfer is None else transfer * transfer
        if tables.whitening is not None:
            whitening = tables.whitening[self._views.tilt[which]]
            weights = whitening if weights is None else weights * whitening
        if self._mask is not None or self._gridding is not None:
            images = to_images(spectra)
            if self._mask is not None:
                from portal_extract.kernels.mask import mask_in_place

                mask_in_place(images, self._mask.weights, self._mask.spans, self._mask.n_background)
            if self._gridding is not None:
                images = (images * self._gridding).astype(np.float32)
            spectra = forward(images)
        spectra *= checkerboard(size)
        return spectra, weights

    def _wait_for(self, local: int) -> _Waiting:
        if local not in self._waiting:
            size = self._options.box_size
            n = int(self._views.seen[local].sum())
            shape = (n, size, size // 2 + 1)
            weighted = self._options.ctf or self._tables.whitening is not None
            weights = np.empty(shape, np.float32) if weighted else np.ones((1, 1, 1), np.float32)
            self._waiting[local] = _Waiting(np.empty(shape, np.complex64), weights, n)
        return self._waiting[local]

    def _make(self, local: int, waiting: _Waiting) -> tuple[Maps, Maps] | None:
        """Insert a particle and write its volumes; give what the sum needs."""
        options, views = self._options, self._views
        tilts = np.flatnonzero(views.seen[local])
        volumes, weight = particle_volumes(
            waiting.spectra,
            waiting.weights,
            np.ascontiguousarray(views.series.projections[tilts, :3, :3]),
            Pose(self._poses[0][local], self._poses[1][local]),
            self._ranges[tilts],
            options,
        )
        problem = _check(volumes["data"])
        if problem is not None:
            with self._lock:
                self.bad[int(views.kept[local])] = problem
            return None
        if options.volume.write_particles:
            self._write(local, volumes)
        return volumes["data"], weight

    def _write(self, local: int, volumes: Mapping[str, Maps]) -> None:
        stem = self._stems[local]
        stem.parent.mkdir(parents=True, exist_ok=True)
        pixel = self._views.series.pixel_size_angst * self._options.binning
        # the data volume comes last: where it is, the others are too
        for name in sorted(volumes, key=lambda n: n == "data"):
            spacing = 1.0 / pixel if name in RECIPROCAL else pixel
            path = stem.with_name(f"{stem.name}_{name}.mrc")
            write_mrc(path, volumes[name], spacing, kind="volume", float16=self._options.float16)


def forward(images: NDArray[np.float32]) -> NDArray[np.complex64]:
    """Orthonormal half-complex transform of ``(n, b, b)`` images."""
    from scipy import fft

    return fft.rfft2(images, norm="ortho", workers=1)


def checkerboard(size: int) -> NDArray[np.float32]:
    """Signs ``(size, size // 2 + 1)`` that move the origin from pixel ``size / 2`` to pixel 0."""
    y, x = np.arange(size)[:, None], np.arange(size // 2 + 1)
    return (1.0 - 2.0 * ((x + y) % 2)).astype(np.float32)


def _check(data: Maps) -> str | None:
    """Say what is wrong with a volume, or None."""
    if not np.isfinite(data).all():
        return "volume with values that are not finite"
    if data.min() == data.max():
        return "constant volume"
    return None
