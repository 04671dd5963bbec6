"""From the patches of a part to slices that can be inserted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.spectra import SpectrumTables, make_tables, transform
from portal_extract.extraction.views import Views
from portal_extract.extraction.whiten import whitening_tables
from portal_extract.images.options import ReadOptions
from portal_extract.model import Bools, Floats, Ints
from portal_extract.optics.dose import dose_ranges, dose_weights
from portal_extract.options import ExtractOptions
from portal_extract.reconstruction.accumulate import Slices, insertion_matrices
from portal_extract.reconstruction.inserter import Batch
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import Part, extraction_options, full_poses, half_of, part_views
from portal_extract.running.events import Observer

_ONE = np.ones((1, 1, 1), np.float32)


@dataclass(frozen=True)
class SliceMaker:
    """What turning patches of a part into slices needs; read-only, shared by all threads.

    Attributes
    ----------
    views, tables, options
        Of the part, for the 2D stage.
    ranges
        ``(F, b)`` first column of each row that the dose cuts off.
    poses
        ``(K, 3, 3)`` map to tomogram.
    half
        ``(K,)`` half set of each particle, from 0.
    n_halves
        Number of half sets.
    pixel_ratio
        Pixel size of the map over that of the binned tilt images.
    premultiplied
        ``(K,)`` for images of stacks: which are multiplied by CTF and dose weights; None for patches of tilt
        images.
    """

    views: Views
    tables: SpectrumTables
    options: ExtractOptions
    ranges: Ints
    poses: Floats
    half: Ints
    n_halves: int
    pixel_ratio: float
    premultiplied: Bools | None = None

    def make(self, which: Ints, patches: NDArray[np.float32]) -> tuple[Batch, Ints]:
        """Transform patches ``(n, side, side)`` of the views ``which``.

        Returns
        -------
        The slices of each half set, and the views that are left out because they are not finite.
        """
        from portal_extract.kernels.gather import trim_slices

        if self.premultiplied is None:
            spectra, weights = self._from_patches(which, patches)
        else:
            spectra, weights = self._from_images(which, patches, self.premultiplied)
        # a value that is not finite spoils the whole transform, its first element too
        good = np.isfinite(spectra[:, 0, 0])
        tilt = self.views.tilt[which]
        if self.options.ctf:
            ranges = self.ranges[tilt]
        else:
            ranges = np.full((len(which), self.options.box_size), spectra.shape[2], np.int64)
        trim_slices(spectra, weights, ranges, True)
        return self._divide(which, spectra, weights, good), which[~good]

    def _divide(
        self, which: Ints, spectra: NDArray[np.complex64], weights: NDArray[np.float32], good: Bools
    ) -> Batch:
        """Put the slices of each half set together."""
        particle, tilt = self.views.particle[which], self.views.tilt[which]
        matrices = insertion_matrices(
            self.views.series.projections[tilt, :3, :3], self.poses[particle], self.pixel_ratio
        )
        max_freq = self.ranges[tilt, 0]
        found = []
        for half in range(self.n_halves):
            mine = np.flatnonzero(good & (self.half[particle] == half))
            everything = len(mine) == len(which)
            found.append(
                Slices(
                    spectra if everything else spectra[mine],
                    weights if everything or not self.options.ctf else weights[mine],
                    matrices[mine],
                    max_freq[mine],
                )
            )
        return tuple(found)

    def _from_patches(
        self, which: Ints, patches: NDArray[np.float32]
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Make transforms with the particle at pixel ``b / 2``, and their weights."""
        transfer = self._room_for_weights(len(which))
        spectra = transform(
            patches,
            which,
            self.views,
            self.tables,
            self.options,
            transfer_out=transfer if self.options.ctf else None,
        )
        if not self.options.ctf:
            return spectra, _ONE
        np.multiply(transfer, transfer, out=transfer)
        if self.tables.whitening is not None:
            transfer *= self.tables.whitening[self.views.tilt[which]]
        return spectra, transfer

    def _from_images(
        self, which: Ints, images: NDArray[np.float32], premultiplied: Bools
    ) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
        """Transform images of stacks, which extraction has divided by the binning once more."""
        from portal_extract.kernels.modulate import modulate

        bare = replace(self.tables, ctf=None, dose=None, odd_factor=None)
        options = replace(self.options, binning=1.0, ctf=False, invert_contrast=False)
        plain = transform(images, which, self.views, bare, options, factor=self.options.binning)
        if self.tables.ctf is None or not self.options.ctf:
            return plain, _ONE
        transfer, multiplied = self._room_for_weights(len(which)), np.empty_like(plain)
        modulate(
            plain,
            multiplied,
            shift_px=np.zeros((len(which), 2)),
            factor=1.0,
            ctf_phase=self.tables.ctf.phase[which],
            ctf_envelope=self.tables.ctf.envelope[which],
            ctf_scale=self.tables.ctf.scale[which],
            tilt=self.views.tilt[which],
            weights=self.tables.dose,
            group=self.tables.group[which],
            phase_offsets=self.tables.even_phase,
            transfer_out=transfer,
        )
        done = premultiplied[self.views.particle[which]][:, None, None]
        np.multiply(transfer, transfer, out=transfer)
        return np.where(done, plain, multiplied), transfer

    def _room_for_weights(self, n: int) -> NDArray[np.float32]:
        size = self.options.box_size
        return np.empty((n, size, size // 2 + 1), np.float32)


def make_slice_maker(
    part: Part,
    options: ReconstructOptions,
    n_halves: int,
    map_pixel_angst: float,
    reading: ReadOptions,
    observer: Observer,
) -> SliceMaker:
    """Prepare a part.

    Parameters
    ----------
    part
        Some particles of one tilt series.
    options
        Of the reconstruction.
    n_halves
        Number of half sets of the whole project.
    map_pixel_angst
        Pixel size of the map: the binning times the pixel size of the first tilt series of the project.
    reading, observer
        For whitening, which reads whole tilt images.
    """
    views, two_d = part_views(part, options), extraction_options(options)
    series, particles = views.series, part.project.particles
    pixel = series.pixel_size_angst * options.binning
    whitening = whitening_tables(views, two_d, reading, observer) if options.whiten else None
    tables = make_tables(
        views, two_d, part.project.optics_groups, particles.optics_group, map_pixel_angst, whitening
    )
    # the dose limits the radius even where it does not weigh anything (RELION 5.0.1 behaviour)
    dose = tables.dose
    if dose is None:
        dose = dose_weights(series.dose_e_per_a2, series.bfactor_per_dose, options.box_size, pixel)
    if part.stacks is not None:
        tables = replace(tables, precrop=None)
    return SliceMaker(
        views=views,
        tables=tables,
        options=two_d,
        ranges=dose_ranges(dose, options.cutoff_fraction),
        poses=full_poses(particles)[views.kept],
        half=half_of(particles, n_halves)[views.kept],
        n_halves=n_halves,
        pixel_ratio=map_pixel_angst / pixel,
        premultiplied=None if part.stacks is None else part.stacks.premultiplied,
    )
