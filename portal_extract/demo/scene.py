"""The truth about a simulated run: geometry of its tilts, optics, dose, and the poses of its particles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from portal_extract.demo.phantom import phantom
from portal_extract.demo.plan import DemoOptions, RunPlan, SpeciesPlan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

VOLTAGE_KV = 300.0
SPHERICAL_ABERRATION_MM = 2.7
AMPLITUDE_CONTRAST = 0.07
HANDEDNESS = -1.0


@dataclass(frozen=True)
class Particles:
    """True poses of the particles of one kind.

    Attributes
    ----------
    plan
        What was planned.
    centres_angst
        ``(N, 3)`` x, y, z relative to the centre of the tomogram.
    rotations
        ``(N, 3, 3)`` from the particle to the tomogram: RELION's Euler matrix, and the portal's
        ``xyz_rotation_matrix``.
    """

    plan: SpeciesPlan
    centres_angst: Floats
    rotations: Floats

    @property
    def object_name(self) -> str:
        """Name on the portal."""
        return self.plan.object_name


@dataclass(frozen=True)
class Scene:
    """One run as it was simulated; lengths: F sections of the stack, T tilts acquired.

    Attributes
    ----------
    plan
        What was planned.
    raw_tilt_deg
        ``(F,)`` nominal tilt angles, ascending.
    acquisition
        ``(F,)`` position of each section in the order of acquisition, among all T tilts.
    acquired_tilt_deg
        ``(T,)`` nominal angles in the order of acquisition.
    dose_e_per_a2
        ``(F,)`` accumulated dose before each section.
    exposure_e_per_a2
        Dose of each exposure.
    aligned
        ``(F,)`` False for dark sections.
    tilt_deg, x_tilt_deg, axis_deg
        ``(F,)`` true rotations about y, x and z.
    shift_px
        ``(F, 2)`` true shifts x, y in the image.
    defocus_u_angst, defocus_v_angst, defocus_angle_deg, phase_shift_deg
        ``(F,)`` true CTF.
    tomogram_angst
        Size x, y, z of the tomogram.
    species
        The particles.
    """

    plan: RunPlan
    raw_tilt_deg: Floats
    acquisition: Ints
    acquired_tilt_deg: Floats
    dose_e_per_a2: Floats
    exposure_e_per_a2: float
    aligned: Bools
    tilt_deg: Floats
    x_tilt_deg: Floats
    axis_deg: Floats
    shift_px: Floats
    defocus_u_angst: Floats
    defocus_v_angst: Floats
    defocus_angle_deg: Floats
    phase_shift_deg: Floats
    tomogram_angst: tuple[float, float, float]
    species: tuple[Particles, ...]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.plan.name

    @property
    def n_tilts(self) -> int:
        """Number of sections."""
        return len(self.raw_tilt_deg)

    def rotations(self) -> Floats:
        """``(F, 3, 3)`` from the tomogram to the image: rotations about x, then y, then z.

        RELION 5.0.1 behaviour; the third axis is the depth along the beam.
        """
        angles = np.stack([self.x_tilt_deg, self.tilt_deg, self.axis_deg], axis=1)
        return Rotation.from_euler("xyz", angles, degrees=True).as_matrix()

    def project(self, centres_angst: Floats) -> tuple[Floats, Floats]:
        """Positions in all tilt images.

        Parameters
        ----------
        centres_angst
            ``(N, 3)`` relative to the centre of the tomogram.

        Returns
        -------
        positions_px, depth_angst
            ``(F, N, 2)`` x, y with the origin at the centre of pixel (0, 0), and ``(F, N)`` depth
            relative to the centre of the tomogram.
        """
        turned = np.einsum("fij,nj->fni", self.rotations(), centres_angst)
        middle = np.array(self.plan.image_size_px) // 2
        positions = turned[:, :, :2] / self.plan.pixel_size_angst + middle + self.shift_px[:, None, :]
        return positions, turned[:, :, 2]

    def tomogram_size(self, voxel_binning: int) -> tuple[int, int, int]:
        """Size x, y, z in voxels at a voxel spacing of so many tilt-series pixels."""
        spacing = self.voxel_spacing_angst(voxel_binning)
        x, y, z = (round(length / spacing) for length in self.tomogram_angst)
        return x, y, z

    def voxel_spacing_angst(self, voxel_binning: int) -> float:
        """Voxel spacing as the portal states it: three decimals."""
        return round(self.plan.pixel_size_angst * voxel_binning, 3)


def make_scene(plan: RunPlan, options: DemoOptions, index: int) -> Scene:
    """Draw the truth about a run.

    Parameters
    ----------
    plan
        The run.
    options
        Seed and dose.
    index
        Number of the run, for a random stream of its own.
    """
    rng = np.random.default_rng([options.seed, index])
    n_tilts, exposure = plan.n_tilts, options.exposure_e_per_a2
    acquired = dose_symmetric_deg(n_tilts + len(plan.rejected), plan.tilt_step_deg)
    kept = np.setdiff1d(np.arange(len(acquired)), plan.rejected)
    order = kept[np.argsort(acquired[kept])]
    defocus = plan.defocus_angst + rng.normal(0, 250, n_tilts) + rng.uniform(-6, 6) * acquired[order]
    width, height = (size * plan.pixel_size_angst for size in plan.image_size_px)
    turned = abs(np.sin(np.deg2rad(plan.tilt_axis_deg))) > 0.7
    tomogram = (height, width) if turned else (width, height)
    tomogram_angst = (tomogram[0], tomogram[1], 1.3 * plan.thickness_angst)
    return Scene(
        plan=plan,
        raw_tilt_deg=acquired[order],
        acquisition=order,
        acquired_tilt_deg=acquired,
        dose_e_per_a2=order * exposure,
        exposure_e_per_a2=exposure,
        aligned=~np.isin(np.arange(n_tilts), plan.dark_sections),
        tilt_deg=acquired[order] + plan.pretilt_deg + rng.normal(0, 0.15, n_tilts),
        x_tilt_deg=np.full(n_tilts, plan.x_tilt_deg),
        axis_deg=plan.tilt_axis_deg + rng.normal(0, 0.2, n_tilts),
        shift_px=rng.normal(0, 4, (n_tilts, 2)),
        defocus_u_angst=defocus + 300,
        defocus_v_angst=defocus - 300,
        defocus_angle_deg=32 + rng.normal(0, 2, n_tilts),
        phase_shift_deg=np.full(n_tilts, plan.phase_shift_deg)
        + (0.4 * order if plan.phase_shift_deg else 0.0),
        tomogram_angst=tomogram_angst,
        species=_place(plan, tomogram_angst, rng),
    )


def dose_symmetric_deg(count: int, step_deg: float) -> Floats:
    """Tilt angles of a dose-symmetric scheme in the order of acquisition: 0, +1, -1, -2, +2, +3 ... steps."""
    steps = (np.arange(count) + 1) // 2
    signs = np.where(np.isin(np.arange(count) % 4, (1, 0)), 1.0, -1.0)
    return np.asarray(steps * signs * step_deg, dtype=np.float64)


def _place(
    plan: RunPlan, tomogram_angst: tuple[float, float, float], rng: np.random.Generator
) -> tuple[Particles, ...]:
    """Put particles into the ice so that none touches another."""
    placed = np.empty((0, 3))
    radii = np.empty(0)
    species = []
    for kind in plan.species:
        radius = phantom(kind.object_name).radius_angst
        room = np.array(tomogram_angst) / 2
        room[2] = plan.thickness_angst / 2
        room -= np.array([0.5, 0.5, 1.0]) * radius
        centres: list[Floats] = []
        for _ in range(200 * kind.count):
            if len(centres) == kind.count:
                break
            candidate = rng.uniform(-room, room)
            distance = np.linalg.norm(placed - candidate, axis=1)
            if np.all(distance > 0.85 * (radii + radius)):
                centres.append(candidate)
                placed = np.vstack([placed, candidate])
                radii = np.append(radii, radius)
        rotations = Rotation.random(len(centres), random_state=rng).as_matrix()
        species.append(Particles(kind, np.array(centres).reshape(-1, 3), rotations))
    return tuple(species)
