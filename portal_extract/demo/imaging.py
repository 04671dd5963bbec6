"""Tilt images of a scene: projections, CTF, radiation damage, electrons.

The CTF is that of RELION 5.0.1 with the defocus of each particle's depth; damage weakens the high
frequencies with the dose before the exposure (Grant & Grigorieff 2015). Protein is darker than ice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from portal_extract.demo.phantom import Phantom, phantom, projection_transforms
from portal_extract.demo.plan import DemoOptions
from portal_extract.demo.scene import (
    AMPLITUDE_CONTRAST,
    HANDEDNESS,
    SPHERICAL_ABERRATION_MM,
    VOLTAGE_KV,
    Floats,
    Scene,
)

THREADS = 2
MEAN_FREE_PATH_ANGST = 3000.0


def tilt_images(scene: Scene, options: DemoOptions, index: int) -> NDArray[np.float32]:
    """Simulate the tilt series of a run.

    Parameters
    ----------
    scene
        The truth.
    options
        Seed, contrast, and whether there is noise.
    index
        Number of the run, for a random stream of its own.

    Returns
    -------
    numpy.ndarray
        ``(F, height, width)`` electrons per pixel.
    """
    width, height = scene.plan.image_size_px
    images = np.empty((scene.n_tilts, height, width), dtype=np.float32)

    def expose(tilt: int) -> None:
        rng = np.random.default_rng([options.seed, index, tilt])
        images[tilt] = _exposure(scene, options, tilt, rng)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(expose, range(scene.n_tilts)))
    return images


def protein_thickness(scene: Scene, tilt: int) -> NDArray[np.float32]:
    """Projected density of all particles in one tilt image, after CTF and radiation damage.

    Parameters
    ----------
    scene
        The truth.
    tilt
        Section.

    Returns
    -------
    numpy.ndarray
        ``(height, width)`` in Angstrom of density 1; the CTF makes parts of it negative.
    """
    width, height = scene.plan.image_size_px
    image = np.zeros((height, width), dtype=np.float32)
    rotation = scene.rotations()[tilt]
    for particles in scene.species:
        made = phantom(particles.object_name)
        size = _patch_size(scene, made)
        positions, depths = (of[tilt] for of in scene.project(particles.centres_angst))
        corners = np.floor(positions + 0.5).astype(np.int64) - size // 2
        transforms = projection_transforms(
            made, rotation @ particles.rotations, positions - corners, size, scene.plan.pixel_size_angst
        )
        transforms *= contrast_transfer(scene, tilt, depths, size) * damage(scene, tilt, size)
        patches = scipy.fft.irfft2(transforms, s=(size, size))
        for patch, (x, y) in zip(patches, corners, strict=True):
            _add_clipped(image, patch, int(x), int(y))
    return image


def contrast_transfer(scene: Scene, tilt: int, depths_angst: Floats, size: int) -> NDArray[np.float32]:
    """CTF at the depths of particles.

    Parameters
    ----------
    scene, tilt
        The section.
    depths_angst
        ``(N,)`` depth of each particle relative to the centre of the tomogram.
    size
        Side of the images in pixels.

    Returns
    -------
    numpy.ndarray
        ``(N, size, size // 2 + 1)``.
    """
    x, y = _frequencies(scene, size)
    squared = x**2 + y**2
    volts = VOLTAGE_KV * 1e3
    wavelength = 12.2643247 / np.sqrt(volts * (1 + volts * 0.978466e-6))
    angle = np.deg2rad(scene.defocus_angle_deg[tilt])
    along = (x * np.cos(angle) + y * np.sin(angle)) ** 2
    mean = np.pi * wavelength
    fixed = (
        -mean * (scene.defocus_u_angst[tilt] * along + scene.defocus_v_angst[tilt] * (squared - along))
        + np.pi / 2 * SPHERICAL_ABERRATION_MM * 1e7 * wavelength**3 * squared**2
        - np.deg2rad(scene.phase_shift_deg[tilt])
        - np.arctan(AMPLITUDE_CONTRAST / np.sqrt(1 - AMPLITUDE_CONTRAST**2))
    )
    phase = fixed - mean * HANDEDNESS * depths_angst[:, None, None] * squared
    ctf: NDArray[np.float32] = -np.sin(phase).astype(np.float32)
    return ctf


def damage(scene: Scene, tilt: int, size: int) -> NDArray[np.float32]:
    """Fraction of each frequency that survived the dose before a section: ``(size, size // 2 + 1)``."""
    x, y = _frequencies(scene, size)
    frequency = np.sqrt(x**2 + y**2)
    frequency[0, 0] = 1e-6
    critical = 0.245 * frequency**-1.665 + 2.81
    weight: NDArray[np.float32] = np.exp(-0.5 * scene.dose_e_per_a2[tilt] / critical).astype(np.float32)
    return weight


def _exposure(scene: Scene, options: DemoOptions, tilt: int, rng: np.random.Generator) -> NDArray[np.float32]:
    width, height = scene.plan.image_size_px
    path = scene.plan.thickness_angst / np.cos(np.deg2rad(scene.tilt_deg[tilt]))
    electrons = scene.exposure_e_per_a2 * scene.plan.pixel_size_angst**2
    mean = electrons * np.exp(-path / MEAN_FREE_PATH_ANGST) if scene.aligned[tilt] else 0.02 * electrons
    slope_x, slope_y = rng.uniform(-0.04, 0.04, 2)
    ice = 1 + slope_x * np.linspace(-1, 1, width) + slope_y * np.linspace(-1, 1, height)[:, None]
    seen = mean * (ice - options.contrast_per_angst * protein_thickness(scene, tilt))
    image: NDArray[np.float32] = np.maximum(seen, 0.0).astype(np.float32)
    if options.noise:
        # many electrons per pixel: counts are as good as normally distributed
        image += np.sqrt(image) * rng.standard_normal(image.shape, dtype=np.float32)
        if scene.plan.integer_counts:
            np.rint(image, out=image)
    return image


def _patch_size(scene: Scene, made: Phantom) -> int:
    """Side of a patch that holds a particle with the spread that the CTF gives it, in pixels."""
    spread = 0.02 * scene.plan.defocus_angst * 0.1
    side = 2 * (made.radius_angst + spread) / scene.plan.pixel_size_angst
    return int(scipy.fft.next_fast_len(int(np.ceil(side / 2)), real=True)) * 2


def _frequencies(scene: Scene, size: int) -> tuple[Floats, Floats]:
    spacing = scene.plan.pixel_size_angst
    return (
        np.asarray(np.fft.rfftfreq(size, spacing), dtype=np.float64)[None, :],
        np.asarray(np.fft.fftfreq(size, spacing), dtype=np.float64)[:, None],
    )


def _add_clipped(image: NDArray[np.float32], patch: NDArray[np.float32], x: int, y: int) -> None:
    height, width = image.shape
    x0, x1 = max(x, 0), min(x + patch.shape[1], width)
    y0, y1 = max(y, 0), min(y + patch.shape[0], height)
    if x0 < x1 and y0 < y1:
        image[y0:y1, x0:x1] += patch[y0 - y : y1 - y, x0 - x : x1 - x]
