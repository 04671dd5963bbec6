"""Planning the reading of 300,000 boxes, from geometry alone: no image is read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from portal_extract.demo.plan import NEW_CHUNKS, OLD_CHUNKS
from portal_extract.extraction.views import find_views
from portal_extract.images.layout import ArrayLayout, ChunkCodec
from portal_extract.images.options import ReadOptions
from portal_extract.model import ImageStack
from portal_extract.options import ExtractOptions
from portal_extract.planning.estimate import plan_reading
from portal_extract.relion_io.mrc import Statistics, header_bytes
from portal_extract.sources.relion import ProjectFiles, read_project

N_PARTICLES, SHAPE, PIXEL_ANGST = 7500, (41, 3710, 3838), 1.35
LAYOUTS = {"zarr256": OLD_CHUNKS, "zarr1024": NEW_CHUNKS}


def write_tables(folder: Path) -> ProjectFiles:
    """Write a tilt series without pixels (a sparse file), and particles all over it."""
    images, tilts = folder / "images.mrc", folder / "tilts.star"
    with images.open("wb") as file:
        file.write(header_bytes(SHAPE, 2, PIXEL_ANGST, Statistics(0, 0, 0, 0), "stack"))
        file.truncate(1024 + 4 * int(np.prod(SHAPE)))
    columns = ["MicrographName", "TomoXTilt", "TomoYTilt", "TomoZRot", "TomoXShiftAngst", "TomoYShiftAngst"]
    columns += ["DefocusU", "DefocusV", "DefocusAngle", "MicrographPreExposure"]
    rows = [
        f"{n + 1}@{images} 0 {angle:g} 85 0 0 30000 29000 40 {3 * n}"
        for n, angle in enumerate(np.linspace(-60, 60, SHAPE[0]))
    ]
    tilts.write_text(table("TS", columns, rows))
    columns = ["TomoName", "TomoTiltSeriesStarFile", "TomoHand", "Voltage", "SphericalAberration"]
    columns += ["AmplitudeContrast", "TomoTiltSeriesPixelSize", "TomoSizeX", "TomoSizeY", "TomoSizeZ"]
    row = f"TS {tilts} -1 300 2.7 0.07 {PIXEL_ANGST} {SHAPE[2]} {SHAPE[1]} 1200"
    (folder / "tomograms.star").write_text(table("global", columns, [row]))
    half_angst = PIXEL_ANGST * np.array([SHAPE[2], SHAPE[1], 600]) / 2
    places = np.random.default_rng(3).uniform(-half_angst, half_angst, (N_PARTICLES, 3))
    columns = ["TomoName", "TomoParticleName"] + [f"CenteredCoordinate{axis}Angst" for axis in "XYZ"]
    rows = [f"TS TS/{n + 1} {x:.2f} {y:.2f} {z:.2f}" for n, (x, y, z) in enumerate(places)]
    (folder / "particles.star").write_text(table("particles", columns, rows))
    return ProjectFiles(particles=str(folder / "particles.star"), tomograms=str(folder / "tomograms.star"))


def table(name: str, columns: list[str], rows: list[str]) -> str:
    """Write a table of a STAR file."""
    return f"data_{name}\n\nloop_\n" + "".join(f"_rln{c}\n" for c in columns) + "\n".join(rows) + "\n"


@pytest.mark.parametrize("images", LAYOUTS)
def bench_plan(benchmark, tmp_path, images):
    project, options = read_project(write_tables(tmp_path)), ExtractOptions(128, min_frames=1)
    codec = ChunkCodec("blosc", ((("id", "blosc"),),))
    layout = ArrayLayout("s3://bucket/a.zarr/0", SHAPE, np.dtype("<f4"), LAYOUTS[images], codec)
    stack = ImageStack((layout.uri,) * SHAPE[0], np.arange(SHAPE[0]), (SHAPE[2], SHAPE[1]))

    def plan():
        views = find_views(project, 0, options)
        return plan_reading(stack, {layout.uri: layout}, views.boxes, ReadOptions())

    found = benchmark.pedantic(plan, rounds=5, warmup_rounds=1)
    benchmark.extra_info["views"] = found.views
    print(f"\n{benchmark.name}: {found.views} views, median {benchmark.stats.stats.median:.2f} s: {found}")
