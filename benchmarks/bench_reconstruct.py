"""Averages of 300 particles from a tilt series of 41 images of 3838 x 3710, and the insertion alone.

Whole processes, started as a user would; run with ``scripts/bench -k reconstruct``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from whole_process import run

from portal_extract.demo.plan import NEW_CHUNKS
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices

SIZES = {
    "box64-bin4": ["--box-size", "64", "--bin", "4"],
    "box128-bin2": ["--box-size", "128", "--bin", "2"],
    "box256-bin1": ["--box-size", "256"],
}


@pytest.mark.parametrize("images", ["mrc", "zarr1024"])
@pytest.mark.parametrize("size", SIZES)
def bench_reconstruct(benchmark, big_series, tmp_path, size, images):
    tomograms = big_series.tomograms_star(NEW_CHUNKS if images == "zarr1024" else None)
    inputs = ["--particles-starfile", str(big_series.particles_star), "--tomograms-starfile", str(tomograms)]
    arguments = ["reconstruct", "local", *inputs, *SIZES[size]]
    run(benchmark, arguments, tmp_path / "out", big_series.options.n_particles, rounds=3)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("box", [64, 128, 256])
def bench_reconstruct_insertion(benchmark, box, workers):
    """Slices of random orientation that the dose does not limit."""
    rng, n_slices = np.random.default_rng(0), 64
    shape = (n_slices, box, box // 2 + 1)
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    matrices = insertion_matrices(np.eye(3), Rotation.random(n_slices, rng=rng).as_matrix())
    radius = np.full(n_slices, box // 2 + 1, np.int64)
    slices = Slices(spectra, rng.uniform(size=shape).astype(np.float32), matrices, radius)
    accumulator = Accumulator.empty(box)
    with ThreadPoolExecutor(workers) as pool:
        benchmark.pedantic(
            insert, (accumulator, slices, pool, 4 * workers), rounds=10, warmup_rounds=1, iterations=1
        )
    benchmark.extra_info["ms_per_slice"] = round(1e3 * benchmark.stats.stats.min / n_slices, 3)
    print(f"\n{benchmark.name}: {benchmark.extra_info}")
