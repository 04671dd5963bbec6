"""Whitening weights of a tilt series, from whole tilt images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.views import Views
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import read_tilt_images
from portal_extract.optics.whitening import noise_amplitude_inverse, whitening_image
from portal_extract.options import ExtractOptions
from portal_extract.running.events import Observer, StageAdvanced, StageFinished, StageStarted


def whitening_tables(
    views: Views, options: ExtractOptions, reading: ReadOptions, observer: Observer
) -> NDArray[np.float32]:
    """Measure the noise of every tilt image that some particle uses.

    Returns
    -------
    ``(F, b, b // 2 + 1)`` float32; zero for tilt images that nothing uses.
    """
    size, stack = options.box_size, views.series.image_stack
    tables = np.zeros((views.series.n_tilts, size, size // 2 + 1), np.float32)
    used = np.unique(views.tilt)
    image_bytes = stack.size_px[0] * stack.size_px[1] * 4
    at_once = max(1, min(len(used), reading.memory_bytes // 4 // image_bytes))
    observer(StageStarted("whiten", len(used), "tilt images"))
    for start in range(0, views.series.n_tilts, at_once):
        stop = min(start + at_once, views.series.n_tilts)
        wanted = used[(used >= start) & (used < stop)]
        if not len(wanted):
            continue
        images = read_tilt_images(stack, int(wanted[0]), int(wanted[-1]) + 1, reading, observer)
        for tilt in wanted:
            inverse = noise_amplitude_inverse(images[tilt - wanted[0]], options.unbinned_box)
            tables[tilt] = whitening_image(inverse, size, options.binning)
            observer(StageAdvanced("whiten", 1))
    observer(StageFinished("whiten"))
    return tables
