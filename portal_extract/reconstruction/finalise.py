"""Accumulated half sets to the maps that a reconstruction writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from portal_extract.reconstruction.accumulate import Accumulator, planes
from portal_extract.reconstruction.correction import (
    centre_phases,
    correct_ctf,
    correct_gridding,
    crop_volume,
    expand_weights,
    taper_sphere,
    to_fourier_space,
    to_real_space,
)
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.symmetry import symmetry_operators

Maps = NDArray[np.float32]


def finalise(
    halves: Sequence[Accumulator], options: ReconstructOptions, pixel_size_angst: float, workers: int = 1
) -> dict[str, Maps]:
    """All maps of a reconstruction at once, see :func:`finalised_maps`."""
    return dict(finalised_maps(halves, options, pixel_size_angst, workers))


def finalised_maps(
    halves: Sequence[Accumulator], options: ReconstructOptions, pixel_size_angst: float, workers: int = 1
) -> Iterator[tuple[str, Maps]]:
    """Symmetrise, merge and correct what was accumulated (RELION 5.0.1 behaviour).

    The accumulators are not changed, so that more slices can be added afterwards.

    Parameters
    ----------
    halves
        The accumulators of half set 1 and 2, or only one where there are no half sets.
    options
        Symmetry, SNR, crop size and taper.
    pixel_size_angst
        Pixel size of the maps, for the rise of a helix.
    workers
        Threads; the maps do not depend on them.

    Yields
    ------
    Name of a file without its ending, as RELION names it (``data_half1``, ``weight_half1``, ``half1``,
    ``half1_full`` when cropping, the same for ``half2`` and ``merged``), and its ``(n, n, n)`` float32 map.
    One map after the other, so that each can be written before the next is made. ``weight_merged`` is that
    of half set 1 where there are half sets: RELION 5.0.1 writes that, although ``merged`` is divided by the
    sum.
    """
    operators = None
    if options.has_symmetry:
        operators = symmetry_operators(
            options.symmetry,
            pixel_size_angst,
            options.helical_units,
            options.helical_rise_angst,
            options.helical_twist_deg,
        )
    merged: Accumulator | None = None
    first_weight: Maps | None = None
    for number, half in enumerate(halves, start=1):
        if operators is not None:
            half = symmetrise(half, *operators, workers)
        if len(halves) > 1:
            first_weight = expand_weights(half.weight) if first_weight is None else first_weight
            yield f"weight_half{number}", expand_weights(half.weight)
            yield from _corrected(f"half{number}", half, options, workers)
        merged = half if merged is None else _add(merged, half, in_place=operators is not None)
    if merged is not None:
        yield "weight_merged", expand_weights(merged.weight) if first_weight is None else first_weight
        yield from _corrected("merged", merged, options, workers)


def _add(one: Accumulator, other: Accumulator, in_place: bool) -> Accumulator:
    """Sum of two accumulators, in the first of them where it is ours to change."""
    return Accumulator(
        np.add(one.data, other.data, out=one.data if in_place else None),
        np.add(one.weight, other.weight, out=one.weight if in_place else None),
    )


def symmetrise(
    half: Accumulator, rotations: NDArray[np.float64], shifts_px: NDArray[np.float64], workers: int = 1
) -> Accumulator:
    """Average an accumulator over symmetry operators.

    Parameters
    ----------
    half
        Not changed.
    rotations, shifts_px
        ``(n, 3, 3)`` and ``(n, 3)`` operators without the identity, see
        :func:`portal_extract.reconstruction.symmetry.symmetry_operators`.
    workers
        Threads, each with planes of its own; the result does not depend on them.
    """
    from portal_extract.kernels.symmetrise import symmetrise_slab

    result = Accumulator(np.empty_like(half.data), np.empty_like(half.weight))

    def work(slab: tuple[int, int]) -> None:
        symmetrise_slab(half.data, half.weight, rotations, shifts_px, result.data, result.weight, *slab)

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, planes(half.box, 4 * workers)))
    return result


def _corrected(
    tag: str, half: Accumulator, options: ReconstructOptions, workers: int
) -> Iterator[tuple[str, Maps]]:
    volume = to_real_space(centre_phases(half.data), workers)
    correct_gridding(volume)
    yield f"data_{tag}", volume.astype(np.float32)
    transform = to_fourier_space(volume, workers)
    del volume  # large maps: at most two transforms and one map at a time
    volume = to_real_space(correct_ctf(transform, half.weight, options.snr), workers)
    del transform
    if options.is_cropped:
        yield f"{tag}_full", volume.astype(np.float32)
        volume = crop_volume(volume, options.output_size)
    yield tag, taper_sphere(volume, options.taper_px).astype(np.float32)
