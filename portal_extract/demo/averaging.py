"""A quick 3D average of extracted particles: a look at the result, not a reconstruction job."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portal_extract.demo.extracted import Extracted, Floats, Images, numbers
from portal_extract.geometry import euler_to_matrix, project, projection_matrices
from portal_extract.model import ImageStack, TiltSeries
from portal_extract.optics.ctf import ctf_coefficients, ctf_image
from portal_extract.optics.dose import dose_weights
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.relion_io.star import read_star
from portal_extract.relion_io.string_table import StringTable


@dataclass(frozen=True)
class Average:
    """A quick average of particles.

    Attributes
    ----------
    volume
        ``(c, c, c)`` in z, y, x order, the particle bright.
    pixel_size_angst
        Of the volume.
    n_particles, n_images
        What went into it.
    """

    volume: Images
    pixel_size_angst: float
    n_particles: int
    n_images: int


def average_particles(extracted: Extracted, max_particles: int = 150) -> Average | None:
    """Average particles in 3D with the angles of their table.

    Made from the extracted images alone: they are multiplied by CTF and dose weights already, so that only
    the division by the squares of both is left.

    Parameters
    ----------
    extracted
        The particles.
    max_particles
        How many to use, from the first on.

    Returns
    -------
    Average or None
        None if the geometry is not in the folder (extraction of a local project), or there is no particle.
    """
    count = min(len(extracted), max_particles)
    series = _all_series(extracted)
    if series is None or count == 0:
        return None
    poses = _poses(extracted.particles)
    points = np.stack([numbers(extracted.particles, f"rlnCenteredCoordinate{a}Angst") for a in "XYZ"], axis=1)
    pixel_size = float(extracted.pixel_sizes_angst.max())
    accumulator = Accumulator.empty(extracted.stack(0).shape[-1])
    n_images = 0
    for index in range(count):
        tilted = series[extracted.particles["rlnTomoName"][index]]
        stack, tilts = extracted.stack(index), extracted.tilts(index)
        pixel = float(extracted.pixel_sizes_angst[index])
        rotations = tilted.projections[tilts, :3, :3]
        slices = Slices(
            spectra=_spectra(stack),
            weights=_squared_weights(tilted, tilts, points[index], stack.shape[-1], pixel)
            if extracted.premultiplied
            else np.ones((1, 1, 1), dtype=np.float32),
            matrices=insertion_matrices(rotations, poses[index], pixel_size / pixel),
            max_freq=np.full(len(stack), accumulator.box // 2, dtype=np.int64),
        )
        insert(accumulator, slices)
        n_images += len(stack)
    options = ReconstructOptions(box_size=accumulator.box)
    volume = finalise([accumulator], options, pixel_size)["merged"]
    return Average(volume, pixel_size, count, n_images)


def _poses(particles: StringTable) -> Floats:
    """``(N, 3, 3)`` rotations from the particle to the tomogram."""
    names = ("Rot", "Tilt", "Psi")
    frame = np.stack([numbers(particles, f"rlnTomoSubtomogram{name}") for name in names], axis=1)
    pose = np.stack([numbers(particles, f"rlnAngle{name}") for name in names], axis=1)
    return np.asarray(euler_to_matrix(frame) @ euler_to_matrix(pose))


def _spectra(stack: Images) -> NDArray[np.complex64]:
    centred = np.fft.ifftshift(stack, axes=(1, 2))
    return np.fft.rfft2(centred, norm="ortho").astype(np.complex64)


def _squared_weights(
    series: TiltSeries, tilts: NDArray[np.int64], centre_angst: Floats, size: int, pixel_size_angst: float
) -> NDArray[np.float32]:
    """Square CTF times dose weight of views: ``(views, size, size // 2 + 1)``."""
    point = centre_angst / series.pixel_size_angst + series.centre_px
    depth = (project(series.projections, np.stack([point, series.centre_px]))[..., 2]).T
    coefficients = ctf_coefficients(series, tilts, depth[tilts, 0] - depth[tilts, 1], size, pixel_size_angst)
    ctf = np.stack([ctf_image(coefficients, view, size) for view in range(len(tilts))])
    dose = dose_weights(series.dose_e_per_a2[tilts], series.bfactor_per_dose, size, pixel_size_angst)
    return np.asarray((ctf * dose) ** 2, dtype=np.float32)


def _all_series(extracted: Extracted) -> dict[str, TiltSeries] | None:
    """Tilt series of the particles by name; None if the folder lacks a table."""
    path = extracted.folder / "tomograms.star"
    if not path.is_file():
        return None
    tomograms = read_star(path).block("global").table()
    found = {}
    for row, name in enumerate(tomograms["rlnTomoName"]):
        if name not in set(extracted.particles["rlnTomoName"]):
            continue
        table = extracted.tilt_table(name)
        if table is None:
            return None
        found[name] = _series(name, tomograms.take([row]), table)
    return found


def _series(name: str, tomogram: StringTable, tilts: StringTable) -> TiltSeries:
    def value(label: str, default: float = 0.0) -> float:
        return float(numbers(tomogram, label, default)[0])

    count, pixel = len(tilts), value("rlnTomoTiltSeriesPixelSize")
    x, y, z = (int(value(f"rlnTomoSize{axis}", -999)) for axis in "XYZ")
    x_tilt, y_tilt, z_rot = (numbers(tilts, f"rlnTomo{label}") for label in ("XTilt", "YTilt", "ZRot"))
    return TiltSeries(
        name=name,
        image_stack=ImageStack(uris=(), sections=np.arange(count), size_px=(0, 0)),
        pixel_size_angst=pixel,
        voltage_kv=value("rlnVoltage"),
        spherical_aberration_mm=value("rlnSphericalAberration"),
        amplitude_contrast=value("rlnAmplitudeContrast"),
        handedness=value("rlnTomoHand"),
        tomogram_size_px=(x, y, z),
        # only rotations and depths are used: shifts and image sizes do not matter
        projections=projection_matrices(x_tilt, y_tilt, z_rot, 0.0, 0.0, pixel, (0, 0), (x, y, z)),
        defocus_u_angst=numbers(tilts, "rlnDefocusU"),
        defocus_v_angst=numbers(tilts, "rlnDefocusV"),
        defocus_angle_deg=numbers(tilts, "rlnDefocusAngle"),
        phase_shift_deg=numbers(tilts, "rlnPhaseShift"),
        ctf_scale=numbers(tilts, "rlnCtfScalefactor", 1.0),
        ctf_bfactor_a2=numbers(tilts, "rlnCtfBfactor"),
        dose_e_per_a2=numbers(tilts, "rlnMicrographPreExposure"),
        defocus_slope=value("rlnTomoDefocusSlope", 1.0),
        bfactor_per_dose=value("rlnCtfBfactorPerElectronDose"),
    )
