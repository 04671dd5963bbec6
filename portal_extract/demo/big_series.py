"""One tilt series of realistic size as a RELION project, for benchmarks: noise, with particles in it.

The pixels are noise of mean 20 and standard deviation 4 (what the reference figures were measured on); the
particles are positions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from portal_extract.demo.images_out import Chunks, write_ome_zarr
from portal_extract.demo.once import make_once
from portal_extract.demo.plan import NEW_CHUNKS, OLD_CHUNKS, DemoOptions, RunPlan
from portal_extract.demo.scene import (
    AMPLITUDE_CONTRAST,
    HANDEDNESS,
    SPHERICAL_ABERRATION_MM,
    VOLTAGE_KV,
    Floats,
    Scene,
    make_scene,
)
from portal_extract.relion_io.numbers import format_double, format_doubles
from portal_extract.relion_io.star import write_star
from portal_extract.relion_io.string_table import StringTable

FORMAT_VERSION = 1
NAME = "big"
BUCKET = "benchmark"
THREADS = 2
MEAN, SIGMA = 20.0, 4.0


@dataclass(frozen=True)
class BigSeriesOptions:
    """Size of the tilt series.

    Attributes
    ----------
    image_size_px
        Width and height of the tilt images.
    n_tilts, tilt_step_deg
        Number of tilt images and the angle between them.
    pixel_size_angst
        Pixel size.
    n_particles, n_cut_off
        Number of particles, and how many of them are too close to the border of some tilt image.
    margin_px
        What is too close.
    chunks
        Chunk shapes of the OME-Zarr copies.
    seed
        Of all random numbers.
    """

    image_size_px: tuple[int, int] = (3838, 3710)
    n_tilts: int = 41
    tilt_step_deg: float = 3.0
    pixel_size_angst: float = 1.35
    n_particles: int = 300
    n_cut_off: int = 60
    margin_px: float = 200.0
    chunks: tuple[Chunks, ...] = (OLD_CHUNKS, NEW_CHUNKS)
    seed: int = 5


@dataclass(frozen=True)
class BigSeries:
    """The files of a big tilt series.

    Attributes
    ----------
    folder
        Holds all of them.
    options
        What it was made from.
    """

    folder: Path
    options: BigSeriesOptions

    @property
    def mrc(self) -> Path:
        """The MRC stack."""
        return self.folder / "tiltseries" / f"{NAME}.mrc"

    @property
    def s3_root(self) -> Path:
        """Folder for :class:`portal_extract.demo.object_server.ObjectServer`."""
        return self.folder / "s3"

    @property
    def particles_star(self) -> Path:
        """The particles."""
        return self.folder / "particles.star"

    def zarr(self, chunks: Chunks) -> Path:
        """Get the OME-Zarr with a chunk shape."""
        return self.s3_root / BUCKET / _zarr_name(chunks)

    def tomograms_star(self, chunks: Chunks | None = None, remote: bool = False) -> Path:
        """Get the tomograms table whose images are the MRC stack, or an OME-Zarr.

        Parameters
        ----------
        chunks
            Chunk shape of the OME-Zarr; None for the MRC stack.
        remote
            Whether the table names it as ``s3://`` rather than as a path.
        """
        return self.folder / f"tomograms_{_table_name(chunks, remote)}.star"


def make_big_series(folder: Path, options: BigSeriesOptions | None = None) -> BigSeries:
    """Make a big tilt series, unless it is there.

    Parameters
    ----------
    folder
        Folder to make. The tables name files by absolute paths, so it must not be moved.
    options
        Size; None for that of the reference figures.

    Raises
    ------
    OutputError
        The folder holds something that was not generated.
    """
    options = options or BigSeriesOptions()
    folder = folder.absolute()
    series = BigSeries(folder, options)
    contents = {"format": FORMAT_VERSION, "big_series": asdict(options), "folder": str(folder)}
    make_once(folder, contents, lambda made: _write(BigSeries(made, options), series))
    return series


def _write(made: BigSeries, final: BigSeries) -> None:
    options = made.options
    plan = RunPlan(
        NAME, options.image_size_px, options.pixel_size_angst, options.n_tilts, options.tilt_step_deg, ()
    )
    scene = make_scene(plan, DemoOptions(runs=(plan,), seed=options.seed), 0)
    made.mrc.parent.mkdir()
    _write_noise(made.mrc, options)
    with mrcfile.mmap(made.mrc) as stack:
        for chunks in options.chunks:
            write_ome_zarr(made.zarr(chunks), stack.data, chunks, options.pixel_size_angst, levels=1)
    (made.folder / "tilt_series").mkdir()
    images: list[tuple[Chunks | None, bool, str | None]] = [(None, False, None)]
    for chunks in options.chunks:
        images.append((chunks, False, str(final.zarr(chunks))))
        images.append((chunks, True, f"s3://{BUCKET}/{_zarr_name(chunks)}"))
    for which, remote, uri in images:
        _write_tables(made, final, scene, which, remote, uri)
    _write_particles(made.particles_star, scene, options)


def _write_noise(path: Path, options: BigSeriesOptions) -> None:
    width, height = options.image_size_px
    with mrcfile.new_mmap(path, (options.n_tilts, height, width), mrc_mode=2) as file:
        data: NDArray[np.float32] = file.data

        def fill(tilt: int) -> tuple[float, float]:
            rng = np.random.default_rng([options.seed, tilt])
            image = rng.standard_normal((height, width), dtype=np.float32)
            image *= SIGMA
            image += MEAN
            data[tilt] = image
            return float(image.min()), float(image.max())

        with ThreadPoolExecutor(THREADS) as pool:
            lows, highs = zip(*pool.map(fill, range(options.n_tilts)), strict=True)
        file.set_image_stack()
        file.voxel_size = options.pixel_size_angst
        # known without another pass over gigabytes
        file.header.dmin, file.header.dmax = min(lows), max(highs)
        file.header.dmean, file.header.rms = MEAN, SIGMA


def _write_tables(
    made: BigSeries, final: BigSeries, scene: Scene, chunks: Chunks | None, remote: bool, uri: str | None
) -> None:
    name = _table_name(chunks, remote)
    spacing = made.options.pixel_size_angst
    columns = {
        "rlnMicrographName": [f"{z + 1}@{final.mrc}" for z in range(scene.n_tilts)],
        "rlnTomoNominalStageTiltAngle": format_doubles(scene.raw_tilt_deg),
        "rlnTomoXTilt": format_doubles(scene.x_tilt_deg),
        "rlnTomoYTilt": format_doubles(scene.tilt_deg),
        "rlnTomoZRot": format_doubles(scene.axis_deg),
        "rlnTomoXShiftAngst": format_doubles(scene.shift_px[:, 0] * spacing),
        "rlnTomoYShiftAngst": format_doubles(scene.shift_px[:, 1] * spacing),
        "rlnMicrographPreExposure": format_doubles(scene.dose_e_per_a2),
        "rlnDefocusU": format_doubles(scene.defocus_u_angst),
        "rlnDefocusV": format_doubles(scene.defocus_v_angst),
        "rlnDefocusAngle": format_doubles(scene.defocus_angle_deg),
    }
    if uri is not None:
        columns["tomoTiltSeriesURI"] = [uri] * scene.n_tilts
    write_star(made.folder / "tilt_series" / f"{name}.star", [(NAME, StringTable.of(columns))])
    sizes = [str(2 * round(length / spacing / 2)) for length in scene.tomogram_angst]
    tomogram = {
        "rlnTomoName": NAME,
        **_optics(spacing),
        "rlnTomoHand": format_double(HANDEDNESS),
        "rlnOpticsGroupName": "opticsGroup1",
        "rlnTomoTiltSeriesStarFile": str(final.folder / "tilt_series" / f"{name}.star"),
        **dict(zip(("rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ"), sizes, strict=True)),
    }
    table = StringTable.of({label: [value] for label, value in tomogram.items()})
    write_star(made.tomograms_star(chunks, remote), [("global", table)])


def _write_particles(path: Path, scene: Scene, options: BigSeriesOptions) -> None:
    rng = np.random.default_rng([options.seed, 10**6])
    centres = _centres(scene, options, rng)
    angles = Rotation.random(len(centres), random_state=rng).as_euler("ZYZ", degrees=True)
    count = len(centres)
    columns: dict[str, list[str]] = {
        "rlnTomoName": [NAME] * count,
        "rlnTomoParticleName": [f"{NAME}/{n + 1}" for n in range(count)],
        "rlnOpticsGroup": ["1"] * count,
        "rlnRandomSubset": [str(n % 2 + 1) for n in range(count)],
    }
    for n, axis in enumerate("XYZ"):
        columns[f"rlnCenteredCoordinate{axis}Angst"] = format_doubles(centres[:, n])
    for n, angle in enumerate(("Rot", "Tilt", "Psi")):
        columns[f"rlnAngle{angle}"] = format_doubles(angles[:, n])
    optics = {
        "rlnOpticsGroup": "1",
        "rlnOpticsGroupName": "opticsGroup1",
        **_optics(options.pixel_size_angst),
    }
    blocks: list[tuple[str, Mapping[str, list[str]]]] = [
        ("optics", {label: [value] for label, value in optics.items()}),
        ("particles", columns),
    ]
    write_star(path, [(name, StringTable.of(table)) for name, table in blocks])


def _centres(scene: Scene, options: BigSeriesOptions, rng: np.random.Generator) -> Floats:
    """Positions seen by every tilt image, then some that are not; shuffled."""
    width, height = options.image_size_px
    room = np.array(scene.tomogram_angst) / 2 * (1, 1, 0.7)
    candidates = rng.uniform(-room, room, size=(400 * options.n_particles, 3))
    positions, _ = scene.project(candidates)
    limits = np.array([width, height]) - options.margin_px
    seen = np.all((positions > options.margin_px) & (positions < limits), axis=(0, 2))
    inside = candidates[seen][: options.n_particles - options.n_cut_off]
    outside = candidates[~seen][: options.n_cut_off]
    return np.asarray(rng.permutation(np.concatenate([inside, outside])), dtype=np.float64)


def _optics(pixel_size_angst: float) -> dict[str, str]:
    return {
        "rlnVoltage": format_double(VOLTAGE_KV),
        "rlnSphericalAberration": format_double(SPHERICAL_ABERRATION_MM),
        "rlnAmplitudeContrast": format_double(AMPLITUDE_CONTRAST),
        "rlnTomoTiltSeriesPixelSize": format_double(pixel_size_angst),
    }


def _zarr_name(chunks: Chunks) -> str:
    return f"{NAME}_{'x'.join(map(str, chunks))}.zarr"


def _table_name(chunks: Chunks | None, remote: bool) -> str:
    if chunks is None:
        return "mrc"
    return f"{'s3' if remote else 'zarr'}_{'x'.join(map(str, chunks))}"
