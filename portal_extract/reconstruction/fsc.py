"""Fourier shell correlation of two half maps, with and without mask, and the resolution it gives.

The conventions are those of RELION's post-processing: shells are one voxel wide around integer radii, every
stored voxel of the half transform counts once, and the correction for the mask compares with maps
whose phases were randomised beyond the shell where the unmasked correlation falls below 0.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import UsageError
from portal_extract.reconstruction.correction import signed_frequencies

Floats = NDArray[np.float64]
Maps = NDArray[np.float32]

GOLD_STANDARD = 0.143
HALF = 0.5
_RANDOMISE_BELOW = 0.8
#: What RELION writes for the resolution of shell 0.
_NO_RESOLUTION_ANGST = 999.0


@dataclass(frozen=True)
class ShellCorrelation:
    """FSC curves of two half maps; all of them ``(n//2+1,)``, one value per shell.

    Attributes
    ----------
    box
        Side n of the maps.
    pixel_size_angst
        Pixel size of the maps.
    unmasked
        Correlation of the maps as they are.
    masked
        After multiplication with the mask.
    randomised
        The same with phases randomised from :attr:`randomised_from` on: what the mask alone correlates.
    corrected
        ``masked`` freed of ``randomised``.
    randomised_from
        First shell with random phases.
    mask_fraction
        Mean of the mask.
    """

    box: int
    pixel_size_angst: float
    unmasked: Floats
    masked: Floats
    randomised: Floats
    corrected: Floats
    randomised_from: int
    mask_fraction: float

    @property
    def frequency_per_angst(self) -> Floats:
        """Spatial frequency of each shell in 1/A."""
        frequency: Floats = np.arange(len(self.unmasked)) / (self.box * self.pixel_size_angst)
        return frequency

    @property
    def resolution_angst(self) -> Floats:
        """Resolution of each shell in A; 999 for shell 0, as RELION writes it."""
        resolution = np.full(len(self.unmasked), _NO_RESOLUTION_ANGST)
        resolution[1:] = 1.0 / self.frequency_per_angst[1:]
        return resolution

    def resolution_at(self, threshold: float, curve: Floats | None = None) -> float:
        """Resolution in A of the last shell before a curve falls below a threshold.

        Parameters
        ----------
        threshold
            0.143 or 0.5, usually. One shell below it is enough: a dip at low resolution counts.
        curve
            One of the curves; :attr:`corrected` if None.

        Returns
        -------
        The resolution; infinite if the first shell is below the threshold already.
        """
        values = self.corrected if curve is None else curve
        below = np.flatnonzero(~(values[1:] >= threshold))
        last = int(below[0]) if len(below) else len(values) - 1
        return float(self.resolution_angst[last]) if last else float("inf")


def shell_correlation(
    half1: Maps,
    half2: Maps,
    pixel_size_angst: float,
    mask: Maps | None = None,
    seed: int = 0,
    workers: int = 1,
) -> ShellCorrelation:
    """Correlate two half maps.

    Parameters
    ----------
    half1, half2
        ``(n, n, n)`` maps.
    pixel_size_angst
        Their pixel size.
    mask
        ``(n, n, n)`` from 0 to 1; a soft sphere of :func:`soft_sphere` if None.
    seed
        For the random phases.
    workers
        Threads; the curves do not depend on them.

    Raises
    ------
    UsageError
        Maps and mask of different sizes, no cubes, or values that are not finite.
    """
    mask = soft_sphere(half1.shape[0]) if mask is None else mask
    _check(half1, half2, mask)
    transforms = [_forward(half.astype(np.float64), workers) for half in (half1, half2)]
    unmasked = correlate_shells(*transforms)
    below = np.flatnonzero(unmasked[1:] < _RANDOMISE_BELOW)
    first = int(below[0]) + 1 if len(below) else len(unmasked) - 1
    rng = np.random.default_rng(seed)
    scrambled = [_randomise_phases(transforms.pop(0), first, rng, workers) for _ in range(2)]
    for half in scrambled:
        half *= mask
    randomised = correlate_shells(*(_forward(half, workers) for half in scrambled))
    del scrambled
    masked = correlate_shells(
        *(_forward(np.multiply(half, mask, dtype=np.float64), workers) for half in (half1, half2))
    )
    return ShellCorrelation(
        half1.shape[0],
        pixel_size_angst,
        unmasked,
        masked,
        randomised,
        _correct_for_mask(masked, randomised, first),
        first,
        float(np.mean(mask, dtype=np.float64)),
    )


def correlate_shells(one: NDArray[np.complex128], other: NDArray[np.complex128]) -> Floats:
    """Correlation of two half transforms, shell by shell.

    Parameters
    ----------
    one, other
        ``(n, n, n//2+1)``, frequency 0 at index 0.

    Returns
    -------
    ``(n//2+1,)`` real correlations; 1 in shell 0, 0 where one of the transforms has no signal.
    """
    shells = one.shape[2]
    sums = np.zeros((3, shells + 1))
    for z, index in enumerate(_shell_planes(one.shape[0])):
        a, b = one[z].ravel(), other[z].ravel()
        for row, product in enumerate(
            (a.real * b.real + a.imag * b.imag, a.real**2 + a.imag**2, b.real**2 + b.imag**2)
        ):
            sums[row] += np.bincount(index.ravel(), product, shells + 1)
    norm = np.sqrt(sums[1] * sums[2])
    curve: Floats = np.divide(sums[0], norm, out=np.zeros_like(norm), where=norm > 0)[:shells]
    curve[0] = 1.0
    return curve


def soft_sphere(size: int, radius_px: float | None = None, edge_px: float | None = None) -> Maps:
    """Soft spherical mask around voxel ``size // 2``.

    Parameters
    ----------
    size
        Side of the map.
    radius_px
        Radius up to which the mask is 1; 0.3 of the side if None.
    edge_px
        Width of the cosine edge outside of it; a tenth of the side, at least 3, if None.
    """
    radius = 0.3 * size if radius_px is None else radius_px
    edge = max(3.0, 0.1 * size) if edge_px is None else max(edge_px, 1e-6)
    square = (np.arange(size) - size // 2) ** 2
    r = np.sqrt(square + square[:, None] + square[:, None, None])
    fall = np.clip((r - radius) / edge, 0.0, 1.0)
    mask: Maps = (0.5 + 0.5 * np.cos(np.pi * fall)).astype(np.float32)
    return mask


def fsc_table(curves: ShellCorrelation) -> Mapping[str, Floats]:
    """Columns of the ``data_fsc`` block of a RELION ``postprocess.star``, without leading ``_``."""
    return {
        "rlnSpectralIndex": np.arange(len(curves.unmasked), dtype=np.float64),
        "rlnResolution": curves.frequency_per_angst,
        "rlnAngstromResolution": curves.resolution_angst,
        "rlnFourierShellCorrelationCorrected": curves.corrected,
        "rlnFourierShellCorrelationUnmaskedMaps": curves.unmasked,
        "rlnFourierShellCorrelationMaskedMaps": curves.masked,
        "rlnCorrectedFourierShellCorrelationPhaseRandomizedMaskedMaps": curves.randomised,
    }


def fsc_general(curves: ShellCorrelation) -> Mapping[str, float]:
    """Entries of the ``data_general`` block of a RELION ``postprocess.star``, without leading ``_``."""
    return {
        "rlnFinalResolution": curves.resolution_at(GOLD_STANDARD),
        "rlnRandomiseFrom": float(curves.resolution_angst[curves.randomised_from]),
        "rlnParticleBoxFractionSolventMask": curves.mask_fraction,
    }


def draw_subsets(n_particles: int, seed: int) -> NDArray[np.int64]:
    """Half sets 1 and 2, drawn at random and of equal size (the first larger by one if the number is odd).

    Parameters
    ----------
    n_particles
        Number of particles.
    seed
        The same seed draws the same sets.

    Returns
    -------
    ``(n_particles,)`` of 1 and 2.
    """
    subsets = np.arange(n_particles, dtype=np.int64) % 2 + 1
    np.random.default_rng(seed).shuffle(subsets)
    return subsets


def _forward(volume: Floats, workers: int) -> NDArray[np.complex128]:
    import scipy.fft

    transform: NDArray[np.complex128] = scipy.fft.rfftn(volume, workers=workers, overwrite_x=True)
    return transform


def _shell_planes(size: int) -> Iterator[NDArray[np.int64]]:
    """Shell of each voxel of a half transform, plane by plane; beyond the last shell it is one more."""
    k = signed_frequencies(size)
    square = np.arange(size // 2 + 1.0) ** 2 + (k**2)[:, None]
    for kz in k:
        index = np.floor(np.sqrt(square + kz**2) + 0.5).astype(np.int64)
        yield np.minimum(index, size // 2 + 1)


def _randomise_phases(
    transform: NDArray[np.complex128], first_shell: int, rng: np.random.Generator, workers: int
) -> Floats:
    """Map whose transform keeps its amplitudes, but has random phases from a shell on."""
    import scipy.fft

    size = transform.shape[0]
    # phases of a real noise map: they have the symmetry that a real result needs
    noise = _forward(rng.standard_normal((size, size, size)), workers)
    for plane, phases, shell in zip(transform, noise, _shell_planes(size), strict=True):
        length = np.abs(phases)
        np.divide(phases, length, out=phases, where=length > 0)
        phases[length == 0] = 1.0
        phases *= np.abs(plane)
        np.copyto(phases, plane, where=shell < first_shell)
    result: Floats = scipy.fft.irfftn(
        noise, (size, size, size), axes=(0, 1, 2), workers=workers, overwrite_x=True
    )
    return result


def _correct_for_mask(masked: Floats, randomised: Floats, first: int) -> Floats:
    """Remove the correlation due to the mask; the two shells at the edge of the random phases stay."""
    gain = np.divide(masked - randomised, 1.0 - randomised, out=np.zeros_like(masked), where=randomised < 1.0)
    corrected = np.where(randomised > masked, 0.0, gain)
    corrected[: first + 2] = masked[: first + 2]
    return corrected


def _check(half1: Maps, half2: Maps, mask: Maps) -> None:
    if half1.ndim != 3 or len(set(half1.shape)) != 1 or half1.shape[0] % 2:
        raise UsageError(f"half map 1 has the shape {half1.shape}: the FSC needs a cube of even size")
    for name, volume in (("half map 2", half2), ("the mask", mask)):
        if volume.shape != half1.shape:
            raise UsageError(
                f"{name} has the shape {volume.shape}, half map 1 {half1.shape}: "
                "give volumes of the same size"
            )
    for name, volume in (("half map 1", half1), ("half map 2", half2), ("the mask", mask)):
        if not np.isfinite(volume).all():
            raise UsageError(f"{name} has values that are not finite: reconstruct it again")
