"""Extraction of 300 particles from a tilt series of 41 images of 3838 x 3710, from MRC and from OME-Zarr.

Whole processes, started as a user would; run with ``scripts/bench``.
"""

from __future__ import annotations

import pytest
from whole_process import run

from portal_extract.demo.plan import NEW_CHUNKS, OLD_CHUNKS

SIZES = {
    "box128": ["--box-size", "128"],
    "box96-bin4": ["--box-size", "96", "--bin", "4"],
    "box192-crop96-bin2": ["--box-size", "192", "--crop-size", "96", "--bin", "2"],
}
IMAGES = {"mrc": None, "zarr256": OLD_CHUNKS, "zarr1024": NEW_CHUNKS}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("size", SIZES)
def bench_stacks(benchmark, big_series, tmp_path, size, images):
    tomograms = big_series.tomograms_star(IMAGES[images])
    inputs = ["--particles-starfile", str(big_series.particles_star), "--tomograms-starfile", str(tomograms)]
    run(benchmark, ["local", *inputs, *SIZES[size]], tmp_path / "out", big_series.options.n_particles)


@pytest.mark.parametrize("size", ["box64-bin4", "box128-bin2"])
def bench_volumes(benchmark, big_series, tmp_path, size):
    sizes = {
        "box64-bin4": ["--box-size", "64", "--bin", "4"],
        "box128-bin2": ["--box-size", "128", "--bin", "2"],
    }
    inputs = [
        *("--particles-starfile", str(big_series.particles_star)),
        *("--tomograms-starfile", str(big_series.tomograms_star())),
        *("--output-mode", "volume3d"),
    ]
    run(
        benchmark,
        ["local", *inputs, *sizes[size]],
        tmp_path / "out",
        big_series.options.n_particles,
        rounds=3,
    )
