"""The slow reference: 2D extraction stage of RELION 5.0.1, written plainly from its specification.

Pure numpy, one frame after the other, double precision for geometry and optics, float32 for pixels.
It shares no code with the package and serves as the yardstick of the fast path.

    project = load_project(folder, "particles.star", "tomograms.star", "motion.star")
    settings = Settings(box=64, crop=32, binning=2.0)
    frames = spectra(project, project.particles[0], settings)       # Fourier space, all frames
    images = real_space(frames, settings)                           # (F, b, b), particle at b/2
    stack = stack2d(project, project.particles[0], settings)        # what RELION writes
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import scipy.fft
import starfile


@dataclass(frozen=True)
class Settings:
    box: int
    crop: int = -1
    binning: float = 1.0
    ctf: bool = True
    circle_crop: bool = True
    circle_precrop: bool = False
    invert: bool = True
    apply_offsets: bool = True
    apply_orientations: bool = False
    whiten: bool = False
    grid_precorr: bool = False
    max_dose: float = -1.0
    min_frames: int = 1
    cutoff: float = 0.01
    reconstruct: bool = False  # the rules of relion_tomo_reconstruct_particle instead of relion_tomo_subtomo

    @property
    def out(self) -> int:
        return self.box if self.crop < 0 else self.crop

    @property
    def boundary(self) -> int:
        return (self.box - self.out) // 2

    @property
    def unbinned(self) -> int:
        return int(self.binning * self.box + 0.5)


@dataclass
class Tomogram:
    name: str
    images: np.ndarray
    pixel: float
    kv: float
    cs: float
    q0: float
    hand: float
    size: tuple[int, int, int]
    projections: np.ndarray
    tilts: Any
    slope: float = 1.0
    bfactor_per_dose: float = 0.0
    deformation: tuple[str, int, int] | None = None
    cache: dict[Any, np.ndarray] = field(default_factory=dict)

    @property
    def dose(self) -> np.ndarray:
        return self.tilts["rlnMicrographPreExposure"].to_numpy(float)


@dataclass
class Particle:
    name: str
    tomogram: Tomogram
    row: Any
    optics: Any
    first_optics: Any
    first_tomogram: Tomogram
    shifts: np.ndarray | None = None


@dataclass
class Project:
    tomograms: list[Tomogram]
    particles: list[Particle]  # in the order of RELION's output: by tomogram


@dataclass
class Frames:
    spectra: np.ndarray  # (F, b, b//2+1) complex64, zero where invisible
    weights: np.ndarray  # (F, b, b//2+1) float32
    visible: np.ndarray  # (F,) bool
    ranges: np.ndarray  # (F, b) int, dose cut-off
    projections: np.ndarray  # (F, 3, 3)
    a_sub: np.ndarray
    a_full: np.ndarray


# ------------------------------------------------------------------ reading


def vector(text: Any) -> np.ndarray:
    return np.array([float(v) for v in str(text).strip().strip("[]").split(",")])


def load_project(folder: Path, particles: str, tomograms: str, motion: str | None = None) -> Project:
    table = starfile.read(folder / tomograms, always_dict=True)["global"]
    tomos = [read_tomogram(folder, row) for _, row in table.iterrows()]
    blocks = starfile.read(folder / particles, always_dict=True)
    rows, optics = blocks["particles"], blocks.get("optics")
    trajectories = starfile.read(folder / motion, always_dict=True) if motion else None
    found = []
    for tomo, (_, tomo_row) in zip(tomos, table.iterrows(), strict=True):
        mine = rows[rows["rlnTomoName"].astype(str) == tomo.name]
        for number, (_, row) in enumerate(mine.iterrows(), start=1):
            name = (
                str(row["rlnTomoParticleName"]) if "rlnTomoParticleName" in row else f"{tomo.name}/{number}"
            )
            group = optics.iloc[int(row["rlnOpticsGroup"]) - 1] if optics is not None else tomo_row
            first = optics.iloc[0] if optics is not None else tomo_row
            shifts = None
            if trajectories is not None:
                shifts = trajectories[name][[f"rlnOrigin{a}Angst" for a in "XYZ"]].to_numpy(float)
            found.append(Particle(name, tomo, row, group, first, tomos[0], shifts))
    return Project(tomos, found)


def read_tomogram(folder: Path, row: Any) -> Tomogram:
    name = str(row["rlnTomoName"])
    tilts = starfile.read(folder / row["rlnTomoTiltSeriesStarFile"], always_dict=True)[name]
    files: dict[str, np.ndarray] = {}
    images = []
    for entry in tilts["rlnMicrographName"]:
        number, _, path = str(entry).rpartition("@")
        if path not in files:
            files[path] = mrcfile.read(folder / path).astype(np.float32)
        images.append(files[path][int(number) - 1] if number else files[path])
    stack = np.stack(images)
    pixel = float(row["rlnTomoTiltSeriesPixelSize"])
    size = tuple(int(row.get(f"rlnTomoSize{a}", -999)) for a in "XYZ")
    deformation = None
    if "rlnTomoDeformationGridSizeX" in row:
        deformation = (
            str(row["rlnTomoDeformationType"]),
            int(row["rlnTomoDeformationGridSizeX"]),
            int(row["rlnTomoDeformationGridSizeY"]),
        )
    return Tomogram(
        name, stack, pixel, float(row["rlnVoltage"]), float(row["rlnSphericalAberration"]),
        float(row["rlnAmplitudeContrast"]), float(row["rlnTomoHand"]), size,
        np.array([projection(t, pixel, stack.shape[2], stack.shape[1], size) for _, t in tilts.iterrows()]),
        tilts, float(row.get("rlnTomoDefocusSlope", 1.0)),
        float(row.get("rlnCtfBfactorPerElectronDose", 0.0)), deformation,
    )  # fmt: skip


# ----------------------------------------------------------------- geometry


def rotation(axis: str, degrees: float) -> np.ndarray:
    angle = degrees * (math.pi / 180)
    c, s = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def translation(x: float, y: float, z: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = x, y, z
    return matrix


def projection(tilt: Any, pixel: float, width: int, height: int, size: tuple[int, ...]) -> np.ndarray:
    if "rlnTomoProjX" in tilt:
        return np.array([vector(tilt[f"rlnTomoProj{a}"]) for a in "XYZW"])
    return (
        translation(tilt["rlnTomoXShiftAngst"] / pixel, tilt["rlnTomoYShiftAngst"] / pixel, 0)
        @ translation(width // 2, height // 2, 0)
        @ rotation("z", tilt["rlnTomoZRot"])
        @ rotation("y", tilt["rlnTomoYTilt"])
        @ rotation("x", tilt.get("rlnTomoXTilt", 0.0))
        @ translation(*(-int(n / 2) for n in size))
    )


def euler(row: Any, prefix: str) -> np.ndarray:
    if f"{prefix}Rot" not in row:
        return np.eye(3)
    phi, theta, psi = (float(row[prefix + a]) * math.pi / 180 for a in ("Rot", "Tilt", "Psi"))
    ca, sa, cb, sb, cg, sg = (f(v) for v in (phi, theta, psi) for f in (math.cos, math.sin))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def position(particle: Particle, apply_offsets: bool) -> np.ndarray:
    row, tomo = particle.row, particle.tomogram
    pixel = float(particle.optics["rlnTomoTiltSeriesPixelSize"])
    if "rlnCenteredCoordinateXAngst" in row:
        place = np.array([row[f"rlnCenteredCoordinate{a}Angst"] for a in "XYZ"], float) / pixel
        place = place + np.array(tomo.size) / 2.0
    else:
        place = np.array([row[f"rlnCoordinate{a}"] for a in "XYZ"], float)
    if apply_offsets:
        origin = np.array([row.get(f"rlnOrigin{a}Angst", 0.0) for a in "XYZ"], float)
        place = place - (euler(row, "rlnTomoSubtomogram") @ origin) / pixel
    return place


def deform(tomo: Tomogram, f: int, q: np.ndarray) -> np.ndarray:
    if tomo.deformation is None:
        return q
    kind, gx, gy = tomo.deformation
    coefficients = vector(tomo.tilts["rlnTomoDeformationCoefficients"].iloc[f])
    height, width = tomo.images.shape[1:]
    if kind == "linear":
        axx, axy, ayy = coefficients[:3]
        r = q - (0.5 * width, 0.5 * height)
        return q + np.array([axx * r[0], axy * r[0] + ayy * r[1]])
    if kind == "Fourier":
        waves = []
        for y in range(gy):
            first = 1 if y == 0 or y >= gy // 2 else 0
            k = y if y < gy // 2 else y - gy
            waves += [(x * math.pi / width, k * math.pi / height) for x in range(first, gx // 2 + 1)]
        phase = np.array(waves) @ q
        pairs = coefficients.reshape(2, len(waves), 2)
        return q + (pairs[:, :, 0] @ np.cos(phase) + pairs[:, :, 1] @ np.sin(phase))
    if kind != "spline":
        raise ValueError(kind)
    nodes = coefficients.reshape(2, gy, gx, 4)
    g = np.clip(q / (width / (gx - 1), height / (gy - 1)), 0, np.array([gx, gy]) - 1 - 1e-10)
    cx, cy = int(g[0]), int(g[1])
    hx, hy = (
        np.array([1 - 3 * t**2 + 2 * t**3, 3 * t**2 - 2 * t**3, t - 2 * t**2 + t**3, -(t**2) + t**3])
        for t in g - (cx, cy)
    )
    shift = []
    for grid in nodes:
        d = [[grid[cy + j, cx + i] for j in (0, 1)] for i in (0, 1)]
        value, along_x, along_y, twist = ([[d[i][j][n] for j in (0, 1)] for i in (0, 1)] for n in range(4))
        shift.append(
            hx @ np.block([[np.array(value), np.array(along_y)], [np.array(along_x), np.array(twist)]]) @ hy
        )
    return q + shift


def centres(particle: Particle, place: np.ndarray) -> np.ndarray:
    """Projected centre in every frame, unbinned px, with trajectory and deformation."""
    tomo, found = particle.tomogram, []
    for f, matrix in enumerate(tomo.projections):
        moved = place if particle.shifts is None else place + particle.shifts[f] / tomo.pixel
        found.append(deform(tomo, f, (matrix @ (*moved, 1.0))[:2]))
    return np.array(found)


def visibility(particle: Particle, q: np.ndarray, s: Settings) -> np.ndarray:
    tomo = particle.tomogram
    height, width = tomo.images.shape[1:]
    rho = s.box / 2.0 if s.reconstruct else s.binning * s.out / 2.0
    seen = (q > rho).all(axis=1) & (q[:, 0] < width - rho) & (q[:, 1] < height - rho)
    if s.max_dose > 0 and not s.reconstruct:
        seen &= ~(tomo.dose > s.max_dose)
    return seen


def is_kept(particle: Particle, s: Settings) -> bool:
    place = position(particle, s.apply_offsets or s.apply_orientations)
    return bool(visibility(particle, centres(particle, place), s).sum() >= s.min_frames)


# --------------------------------------------------------- images and weights


def frequencies(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Signed x (1, n//2+1) and y (n, 1) frequencies of the half plane; the Nyquist row is negative."""
    y = np.arange(n)
    return np.arange(n // 2 + 1.0)[None, :], np.where(y < n // 2, y, y - n).astype(float)[:, None]


def round_half_away(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def soft_mask(n: int, boundary: int, falloff: float) -> tuple[np.ndarray, np.ndarray]:
    m = n // 2
    radius = m - boundary
    r = np.hypot(*(np.mgrid[:n, :n].astype(float) - m))
    edge = 0.5 - 0.5 * np.cos(np.pi * (radius - r) / falloff)
    return np.where(r < radius - falloff, 1.0, np.where(r < radius, edge, 0.0)), r > radius


def circle_crop(image: np.ndarray, boundary: int, falloff: float = 5.0) -> np.ndarray:
    mask, outside = soft_mask(image.shape[0], boundary, falloff)
    mean = image[outside].mean(dtype=np.float64) if outside.any() else 0.0
    return (mask * (image - mean)).astype(np.float32)


def rfft2(image: np.ndarray) -> np.ndarray:
    return scipy.fft.rfft2(image) / np.float32(math.sqrt(image.size))


def cut(image: np.ndarray, q: np.ndarray, s: Settings) -> np.ndarray:
    """Fourier transform of one box, (b, b//2+1) complex64, particle centre at index 0."""
    n, b = s.unbinned, s.box
    corner = np.array([round_half_away(q[0]) - n // 2, round_half_away(q[1]) - n // 2])
    rows = np.clip(corner[1] + np.arange(n), 0, image.shape[0] - 1)
    columns = np.clip(corner[0] + np.arange(n), 0, image.shape[1] - 1)
    box = image[np.ix_(rows, columns)]
    precrop = s.circle_crop if s.reconstruct else s.circle_precrop
    if precrop:
        box = circle_crop(box, 0)
    spectrum = rfft2(np.roll(box, (-(n // 2), -(n // 2)), (0, 1)))
    if s.binning != 1.0:
        if n % 2:
            raise ValueError("odd unbinned boxes are undefined in RELION")
        y = np.arange(b)
        spectrum = spectrum[np.where(y < b // 2, y, y - b + n), : b // 2 + 1] / np.float32(s.binning)
    t = (q - corner) / s.binning - b // 2
    x, k = frequencies(b)
    phase = (2 * np.pi * t[0] / b) * x + (2 * np.pi * t[1] / b) * k
    return spectrum * (np.cos(phase) + 1j * np.sin(phase)).astype(np.complex64)


def ctf_image(particle: Particle, f: int, place: np.ndarray, s: Settings) -> np.ndarray:
    tomo = particle.tomogram
    tilt = tomo.tilts.iloc[f]
    x, k = (v / (s.box * tomo.pixel * s.binning) for v in frequencies(s.box))
    u2 = x**2 + k**2
    depth = tomo.projections[f] @ (*place, 1.0) - tomo.projections[f] @ (*(np.array(tomo.size) / 2.0), 1.0)
    dz = tomo.hand * tomo.pixel * tomo.slope * depth[2]
    volts = tomo.kv * 1e3
    wavelength = 12.2643247 / math.sqrt(volts * (1 + volts * 0.978466e-6))
    alpha = float(tilt["rlnDefocusAngle"]) * math.pi / 180
    q = np.array([[math.cos(alpha), math.sin(alpha)], [-math.sin(alpha), math.cos(alpha)]])
    a = q.T @ np.diag([-(tilt["rlnDefocusU"] + dz), -(tilt["rlnDefocusV"] + dz)]) @ q
    gamma = (
        math.pi * wavelength * (a[0, 0] * x**2 + 2 * a[0, 1] * x * k + a[1, 1] * k**2)
        + math.pi / 2 * tomo.cs * 1e7 * wavelength**3 * u2**2
        - float(tilt.get("rlnPhaseShift", 0.0)) * math.pi / 180
        - math.atan(tomo.q0 / math.sqrt(1 - tomo.q0**2))
        + aberration(particle, "rlnEvenZernike", s)
    )
    ctf = -np.sin(gamma) * np.exp(-float(tilt.get("rlnCtfBfactor", 0.0)) / 4 * u2)
    ctf = ctf * float(tilt.get("rlnCtfScalefactor", 1.0))
    return np.where(np.abs(ctf) < 1e-8, np.where(ctf >= 0, 1e-8, -1e-8), ctf).astype(np.float32)


def aberration(particle: Particle, label: str, s: Settings) -> np.ndarray | float:
    """Phase in radians of the symmetric (even) or antisymmetric (odd) aberrations."""
    if label not in particle.optics:
        return 0.0
    pixel = float(particle.first_optics["rlnTomoTiltSeriesPixelSize"])
    if s.reconstruct:
        pixel = particle.first_tomogram.pixel
    x, k = (v / (pixel * s.binning * s.box) for v in frequencies(s.box))
    rho, phi = np.sqrt(x**2 + k**2), np.arctan2(k, x)
    total = np.zeros(rho.shape)
    for i, c in enumerate(vector(particle.optics[label])):
        if label == "rlnEvenZernike":
            level = math.isqrt(i)
            n, m = 2 * level, 2 * (i - level**2 - level)
        else:
            level = int((math.sqrt(1 + 4 * i) - 1) / 2)
            n, m = 2 * level + 1, 2 * (i - level**2 - level) - (2 * level + 1)
        total += c * zernike(n, m, rho, phi)
    return total


def zernike(n: int, m: int, rho: np.ndarray, phi: np.ndarray) -> np.ndarray:
    a, fact = abs(m), math.factorial
    radial = sum(
        (-1) ** k
        * fact(n - k)
        / (fact(k) * fact((n + a) // 2 - k) * fact((n - a) // 2 - k))
        * rho ** (n - 2 * k)
        for k in range((n - a) // 2 + 1)
    )
    return radial * (np.cos(a * phi) if m >= 0 else np.sin(a * phi))


def dose_images(tomo: Tomogram, s: Settings) -> np.ndarray:
    """(F, b, b//2+1) float32."""
    x, k = (v / (s.box * tomo.pixel * s.binning) for v in frequencies(s.box))
    u2, dose = x**2 + k**2, tomo.dose[:, None, None]
    if tomo.bfactor_per_dose > 0:
        return np.exp(-tomo.bfactor_per_dose * dose / 4 * u2).astype(np.float32)
    with np.errstate(divide="ignore"):
        return np.exp(-0.5 * dose / (0.245 * np.sqrt(u2) ** -1.665 + 2.81)).astype(np.float32)


def dose_ranges(weights: np.ndarray, cutoff: float) -> np.ndarray:
    """(F, b): one more than the last column whose dose weight exceeds the cut-off, per row."""
    b = weights.shape[1]
    k = frequencies(b)[1][:, 0]
    largest = np.minimum(np.sqrt(b * b // 4 - k**2), b // 2)
    x = np.arange(b // 2 + 1)
    inside = (weights.astype(float) > cutoff) & (x[None, None, :] <= largest[None, :, None])
    return np.where(inside, x + 1, 0).max(axis=2)


def radial_average(power: np.ndarray, n: int) -> np.ndarray:
    x, k = frequencies(n)
    r = np.sqrt(x**2 + k**2)
    base = r.astype(int)
    share = r - base
    total, count = np.zeros(n + 2), np.zeros(n + 2)
    for index, weight in ((base, 1 - share), (base + 1, share)):
        np.add.at(total, index, weight * power)
        np.add.at(count, index, weight)
    total, count = total[: n // 2 + 1], count[: n // 2 + 1]
    return np.divide(total, count, out=np.zeros_like(total), where=count > 0)


def whitening_images(tomo: Tomogram, s: Settings) -> np.ndarray:
    """(F, b, b//2+1) float32."""
    n, b = s.unbinned, s.box
    step = int(n / 2.0)
    height, width = tomo.images.shape[1:]
    y, x = np.arange(b)[:, None], np.arange(b // 2 + 1)[None, :]
    radius = s.binning * np.sqrt(x**2 + np.where(y < b / 2.0, y, y - b) ** 2)
    base = radius.astype(int)
    result = []
    for image in tomo.images:
        tiles = [
            image[j * step : j * step + n, i * step : i * step + n]
            for j in range((height - n) // step + 1)
            for i in range((width - n) // step + 1)
        ]
        power = np.mean(
            [np.abs(np.fft.rfft2(tile.astype(float), norm="ortho")) ** 2 for tile in tiles], axis=0
        )
        average = radial_average(power, n)
        v = np.zeros(average.shape, np.float32)
        v[average > 0] = 1 / np.sqrt(average[average > 0])
        low, high = np.minimum(base, len(v) - 1), np.minimum(base + 1, len(v) - 1)
        value = (1 - (radius - base)) * v[low] + (radius - base) * v[high]
        result.append(np.where(base + 1 >= len(v), v[-1], value).astype(np.float32))
    return np.array(result)


# ---------------------------------------------------------------- the stages


def spectra(project: Project, particle: Particle, s: Settings) -> Frames:
    """Fourier-space stage of either program, up to whitening."""
    tomo = particle.tomogram
    if ("dose", s) not in tomo.cache:
        tomo.cache["dose", s] = dose_images(tomo, s)
        tomo.cache["ranges", s] = dose_ranges(tomo.cache["dose", s], s.cutoff)
        tomo.cache["whiten", s] = whitening_images(tomo, s) if s.whiten else np.ones(1)
    dose, ranges, noise = (tomo.cache[key, s] for key in ("dose", "ranges", "whiten"))
    place = position(particle, s.apply_offsets or s.apply_orientations or s.reconstruct)
    q = centres(particle, place)
    visible = visibility(particle, q, s)
    shape = len(q), s.box, s.box // 2 + 1
    out, weights = np.zeros(shape, np.complex64), np.ones(shape, np.float32)
    psi = aberration(particle, "rlnOddZernike", s)
    odd = (np.cos(psi) - 1j * np.sin(psi)).astype(np.complex64)
    sign = np.float32(-1 if s.invert or s.reconstruct else 1)
    for f in np.flatnonzero(visible):
        out[f] = cut(tomo.images[f], q[f], s)
        if s.ctf:
            factor = sign * ctf_image(particle, f, place, s) * dose[f]
            if s.reconstruct:
                factor[np.arange(shape[2])[None, :] >= ranges[f][:, None]] = 0
            out[f] *= factor
            weights[f] = factor**2
        else:
            out[f] *= sign
        out[f] *= odd
        if s.whiten:
            out[f] *= noise[f]
            weights[f] *= noise[f]
    a_sub = euler(particle.row, "rlnTomoSubtomogram")
    a_full = a_sub @ euler(particle.row, "rlnAngle")
    return Frames(out, weights, visible, ranges, tomo.projections[:, :3, :3], a_sub, a_full)


def real_space(frames: Frames, s: Settings) -> np.ndarray:
    """(F, b, b) float32 images with the particle at (b/2, b/2), masked; invisible ones are zero."""
    b = s.box
    checker = (-1.0) ** (np.arange(b)[:, None] + np.arange(b // 2 + 1)[None, :])
    images = np.zeros((len(frames.spectra), b, b), np.float32)
    for f in np.flatnonzero(frames.visible):
        image = scipy.fft.irfft2(frames.spectra[f] * checker.astype(np.float32), (b, b), norm="forward")
        image = image / np.float32(math.sqrt(b * b))
        if s.circle_crop:
            image = circle_crop(image, s.boundary)
        if s.grid_precorr:
            radius = b // 2 - s.boundary
            r = np.hypot(*(np.mgrid[:b, :b].astype(float) - b // 2))
            inner = np.clip(r, 1e-9, radius - 0.5)
            gain = np.where(r < 1, 1, np.where(r < radius - 1, inner / np.sin(np.pi * inner / radius), 0))
            image = (image * gain).astype(np.float32)
        images[f] = image
    return images


def stack2d(project: Project, particle: Particle, s: Settings) -> np.ndarray:
    """(visible frames, crop, crop) float32: RELION's 2D stack of one particle."""
    frames = spectra(project, particle, s)
    frames.spectra /= np.float32(s.binning)
    inner = slice(s.boundary, s.box - s.boundary)
    return real_space(frames, s)[frames.visible, inner, inner]


def masked_spectra(frames: Frames, s: Settings) -> np.ndarray:
    """Spectra that enter a 3D volume: through real space and back if there is a mask to apply."""
    if not (s.circle_crop or s.grid_precorr):
        return frames.spectra
    half = s.box // 2
    return np.array([rfft2(np.roll(image, (-half, -half), (0, 1))) for image in real_space(frames, s)])
