"""The hot loops, compiled by numba, and how to have them loaded before they are needed."""

from __future__ import annotations


def load() -> None:
    """Load what every extraction computes with: compiled loops and the FFT.

    Takes 0.4 s, once in a process. Nothing imports these before it calls them, so that requests
    for pixels can be made first; whoever waits for the answers calls this meanwhile.
    """
    import numpy as np
    from scipy import fft

    from portal_extract.kernels.cut import cut_boxes
    from portal_extract.kernels.mask import mask_and_crop
    from portal_extract.kernels.modulate import modulate

    # a loop is loaded when it is first called with arguments of these types
    none, numbers = np.empty((0, 0, 0), np.float32), np.empty(0, np.int64)
    cut_boxes(none[0:0].reshape(0, 0), numbers, numbers.reshape(0, 4), (1, 1, 1, 1, 1, 1, 1, 1), none)
    fft.rfft2(np.zeros((1, 2, 2), np.float32), workers=1)
    spectra = np.zeros((1, 2, 2), np.complex64)
    modulate(spectra, np.empty_like(spectra), shift_px=np.zeros((1, 2)), factor=1.0)
    images = fft.irfft2(spectra, s=(2, 2), norm="forward", workers=1)
    spans, sums = np.zeros((2, 2), np.int64), np.empty((1, 4))
    mask_and_crop(images, np.ones((2, 2)), spans, 0, 0, np.empty_like(images), np.zeros(1, np.int64), sums)
