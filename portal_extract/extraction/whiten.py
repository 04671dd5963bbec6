"""Whitening weights of a tilt series, from whole tilt images."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from portal_extract.extraction.views import Views
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_tilt_images
from portal_extract.model import ImageStack
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
    observer(StageStarted("whiten", len(used), "tilt images"))
    for tilt, image in stream_tilt_images(stack, used, whole_images(stack, reading), observer):
        inverse = noise_amplitude_inverse(image, options.unbinned_box)
        tables[tilt] = whitening_image(inverse, size, options.binning)
        observer(StageAdvanced("whiten", 1))
    observer(StageFinished("whiten"))
    return tables


def whole_images(stack: ImageStack, reading: ReadOptions) -> ReadOptions:
    """Leave room for the image that is looked at beside what the reader holds."""
    width, height = stack.size_px
    left = max(reading.memory_bytes - 4 * width * height, reading.memory_bytes // 2)
    return replace(reading, memory_bytes=left, batch_views=1)
