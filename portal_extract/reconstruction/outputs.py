"""Files of a reconstruction: maps, STAR files, and the report with its curves and pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import mrcfile
import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import BadResultError, ImageFormatError, UsageError
from portal_extract.model import Project
from portal_extract.reconstruction.fsc import (
    GOLD_STANDARD,
    HALF,
    ShellCorrelation,
    fsc_general,
    fsc_table,
    shell_correlation,
)
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.report import write_fsc_plot, write_halves, write_views
from portal_extract.reconstruction.summary import Resolution
from portal_extract.relion_io.image_headers import with_image_headers
from portal_extract.relion_io.mrc import HEADER_BYTES, read_header, write_mrc
from portal_extract.relion_io.numbers import format_double
from portal_extract.relion_io.project_star import (
    OPTIMISATION_SET_FILE,
    PARTICLES_FILE,
    STACKS_FLAG,
    TOMOGRAMS_FILE,
    write_optimisation_set,
    write_particles,
    write_tomogram_tables,
)
from portal_extract.relion_io.star import write_star
from portal_extract.relion_io.string_table import StringTable

Maps = NDArray[np.float32]

REPORT = "report"
_HALVES = ("half1", "half2")


def map_names(options: ReconstructOptions, n_halves: int) -> tuple[str, ...]:
    """Names of the maps without their ending, in the order of finalisation (RELION's names)."""
    tags = (*_HALVES, "merged") if n_halves > 1 else ("merged",)
    kinds = ("weight_{}", "data_{}", *(("{}_full",) if options.is_cropped else ()), "{}")
    return tuple(kind.format(tag) for tag in tags for kind in kinds)


def every_name() -> tuple[str, ...]:
    """Names of all files and folders that some reconstruction writes."""
    tags = (*_HALVES, "merged")
    maps = [
        kind.format(tag) for tag in tags for kind in ("{}.mrc", "{}_full.mrc", "data_{}.mrc", "weight_{}.mrc")
    ]
    return (*maps, OPTIMISATION_SET_FILE, PARTICLES_FILE, TOMOGRAMS_FILE, "tilt_series", REPORT)


def write_maps(folder: Path, maps: Iterable[tuple[str, Maps]], pixel_size_angst: float) -> Iterator[str]:
    """Write maps one by one; yields the name of each when it is there.

    The header of every map, weights too, carries the pixel size of the map (RELION 5.0.1 behaviour).

    Raises
    ------
    BadResultError
        Values that are not finite.
    OutputError
        The disk refuses.
    """
    for name, volume in maps:
        if not np.isfinite(volume).all():
            raise BadResultError(
                f"{folder / name}.mrc would have values that are not finite: check the tilt images and the "
                "tables"
            )
        write_mrc(folder / f"{name}.mrc", volume, pixel_size_angst, kind="volume")
        yield name


def written_bytes(options: ReconstructOptions, n_halves: int) -> int:
    """Size of the maps."""
    sizes = dict.fromkeys(map_names(options, n_halves), options.box_size)
    sizes.update({name: options.output_size for name in (*_HALVES, "merged") if name in sizes})
    return sum(4 * size**3 + HEADER_BYTES for size in sizes.values())


def write_tables(folder: Path, project: Project, prefix: str, n_halves: int) -> None:
    """Write ``particles.star`` and ``optimisation_set.star``, and the tomograms if they come from no file.

    Parameters
    ----------
    folder
        The output folder.
    project
        What was averaged; with tables, else nothing is written.
    prefix
        How STAR files name the output folder.
    n_halves
        With 2 the optimisation set names the half maps as references.
    """
    tables = project.tables
    if tables is None:
        return
    tomograms_file = tables.tomograms_file
    if tomograms_file is None:
        write_tomogram_tables(folder, with_image_headers(folder, project, prefix), prefix)
        tomograms_file = prefix + TOMOGRAMS_FILE
    general = {STACKS_FLAG: "0", **tables.general}
    write_particles(folder / PARTICLES_FILE, general, tables.optics, tables.particles)
    files = {
        "Particles": prefix + PARTICLES_FILE,
        "Tomograms": tomograms_file,
        "Trajectories": tables.trajectories_file,
        "Manifolds": tables.manifolds_file,
    }
    if n_halves > 1:
        files |= {f"ReferenceMap{n}": f"{prefix}{name}.mrc" for n, name in enumerate(_HALVES, start=1)}
    write_optimisation_set(folder / OPTIMISATION_SET_FILE, files)


def read_mask(path: str, size: int) -> Maps:
    """Read a mask for the FSC.

    Parameters
    ----------
    path
        MRC file with values from 0 to 1.
    size
        Side of the maps.

    Raises
    ------
    ImageFormatError
        No MRC file.
    UsageError
        Another size, or other values.
    """
    shape = read_header(path).shape
    if shape != (size, size, size):
        raise UsageError(
            f"--mask {path} has {shape[2]} x {shape[1]} x {shape[0]} voxels, the maps have {size} in each "
            "direction; give a mask of the size of the maps"
        )
    mask = _read(Path(path))
    if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1 and mask.max() > 0):
        raise UsageError(f"--mask {path}: values must be from 0 to 1, and not all 0")
    return mask


def write_map_report(
    folder: Path, pixel_size_angst: float, mask: Maps | None, mask_name: str, workers: int = 1
) -> Resolution | None:
    """Compare the half maps on disk and draw the maps.

    Parameters
    ----------
    folder
        The output folder; files go to ``report/`` in it.
    pixel_size_angst
        Of the maps.
    mask
        For the FSC; None for a soft sphere.
    mask_name
        What the mask is called.
    workers
        Threads.

    Returns
    -------
    The resolution; None if there are no half maps.
    """
    resolution = None
    halves = [folder / f"{name}.mrc" for name in _HALVES]
    if all(path.is_file() for path in halves):
        volumes = [_read(path) for path in halves]
        curves = shell_correlation(volumes[0], volumes[1], pixel_size_angst, mask, workers=workers)
        write_fsc_star(
            folder / REPORT / "fsc.star", curves, {"rlnMaskName": mask_name} if mask is not None else {}
        )
        write_fsc_plot(folder / REPORT / "fsc.png", curves, f"half1.mrc and half2.mrc, mask: {mask_name}")
        write_halves(folder / REPORT / "halves.png", volumes, pixel_size_angst, "half1.mrc and half2.mrc")
        resolution = Resolution(
            curves.resolution_at(GOLD_STANDARD),
            curves.resolution_at(HALF),
            curves.resolution_at(GOLD_STANDARD, curves.unmasked),
            mask_name,
        )
    merged = _read(folder / "merged.mrc")
    size = f"{len(merged)} voxels of {pixel_size_angst:g} Å"
    write_views(folder / REPORT / "merged.png", merged, pixel_size_angst, f"merged.mrc: {size}")
    return resolution


def write_fsc_star(path: Path, curves: ShellCorrelation, names: Mapping[str, str]) -> None:
    """Write the curves as the blocks ``general`` and ``fsc`` of a RELION ``postprocess.star``.

    Parameters
    ----------
    path
        The file; its folder is made.
    curves
        What to write.
    names
        More entries for the block ``general``.
    """
    general = {
        label: format_double(value) for label, value in fsc_general(curves).items() if np.isfinite(value)
    }
    columns = {
        label: [format_double(v) for v in values.tolist()] for label, values in fsc_table(curves).items()
    }
    columns["rlnSpectralIndex"] = [str(shell) for shell in range(len(curves.unmasked))]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_star(path, [("general", {**general, **names}), ("fsc", StringTable.of(columns))])


def _read(path: Path) -> Maps:
    try:
        with mrcfile.open(path, permissive=True) as file:
            volume: Maps = np.asarray(file.data, dtype=np.float32)
    except (OSError, ValueError) as error:
        raise ImageFormatError(f"{path} cannot be read: {error}") from error
    return volume
