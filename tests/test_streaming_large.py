"""A tilt series of real size, 41 x 3710 x 3838 pixels or 2.3 GB, in less than a GiB of memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cli_project
import mrcfile
import numpy as np
import pytest
from images_support import blosc

from portal_extract.demo.object_server import ObjectServer
from portal_extract.relion_io.mrc import HEADER_BYTES, Statistics, header_bytes

pytestmark = pytest.mark.timeout(120)

MIB, GIB = 1 << 20, 1 << 30
PROGRAM_BYTES = 256 * MIB
SHAPE = (41, 3710, 3838)
CHUNKS = {"old": (256, 256, 256), "new": (1, 1024, 1024)}
N_PARTICLES = 100
BOX = 128
PIXEL_ANGST = 1.35
NOISY_ROWS = 32

#: start a program, and tell the peak of its memory; a child of this process could inherit its peak
LAUNCHER = """
import json, os, sys
process = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(process, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024]))
"""


def noise(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32) * 4 + 20


def write_zarr_of_one_chunk(path: Path, chunks: tuple[int, int, int]) -> None:
    """All chunks are one file: noise where the array has pixels, zeros behind its last section."""
    array = path / "0"
    array.mkdir(parents=True)
    level = {"datasets": [{"path": "0", "coordinateTransformations": []}], "version": "0.4"}
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    (path / ".zattrs").write_text(json.dumps({"multiscales": [level]}))
    codec = blosc()
    meta = {
        "zarr_format": 2,
        "shape": SHAPE,
        "chunks": chunks,
        "dtype": "<f4",
        "compressor": codec.get_config(),
        "fill_value": 0,
        "order": "C",
        "filters": None,
        "dimension_separator": "/",
    }
    (array / ".zarray").write_text(json.dumps(meta))
    pixels = np.zeros(chunks, np.float32)
    used = min(chunks[0], SHAPE[0])
    pixels[:used] = noise((used, *chunks[1:]))
    one = path / "chunk"
    one.write_bytes(codec.encode(pixels))
    n_z, n_y, n_x = (-(-n // c) for n, c in zip(SHAPE, chunks, strict=True))
    for z in range(n_z):
        for y in range(n_y):
            (array / f"{z}/{y}").mkdir(parents=True)
            for x in range(n_x):
                os.link(one, array / f"{z}/{y}/{x}")


def write_sparse_mrc(path: Path) -> None:
    """Noise in some rows of each image, which costs less disk; the file has its full size."""
    rows = noise((-(-SHAPE[1] // NOISY_ROWS), SHAPE[2]))
    row_bytes = 4 * SHAPE[2]
    with path.open("wb") as file:
        file.write(header_bytes(SHAPE, 2, PIXEL_ANGST, Statistics(0, 40, 1, 4), "stack"))
        for section in range(SHAPE[0]):
            for number, row in enumerate(rows):
                file.seek(HEADER_BYTES + (section * SHAPE[1] + NOISY_ROWS * number) * row_bytes)
                file.write(row.tobytes())
        file.truncate(HEADER_BYTES + SHAPE[0] * SHAPE[1] * row_bytes)


def write_tables(folder: Path, kind: str, uri: str) -> None:
    table = cli_project.table
    labels = (*cli_project._TILT_LABELS, "tomoTiltSeriesURI")
    rows = [
        (f"{t + 1}@none.mrcs", f"{angle:g}", "85", "0", "0", "30000", "29000", "40", f"{3 * t}", uri)
        for t, angle in enumerate(np.linspace(-60, 60, SHAPE[0]))
    ]
    (folder / f"tilts_{kind}.star").write_text(table("TS_1", labels, rows))
    optics = ("-1", "300", "2.7", "0.1", f"{PIXEL_ANGST}")
    row = ("TS_1", f"tilts_{kind}.star", *optics, str(SHAPE[2]), str(SHAPE[1]), "1000")
    text = table("global", cli_project._TOMOGRAM_LABELS, [row])
    (folder / f"tomograms_{kind}.star").write_text(text)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("large")
    bucket = folder / "store" / "bucket"
    for name, chunks in CHUNKS.items():
        write_zarr_of_one_chunk(bucket / f"{name}.zarr", chunks)
        write_tables(folder, name, f"s3://bucket/{name}.zarr")
    write_sparse_mrc(bucket / "stack.mrc")
    write_tables(folder, "mrc", "s3://bucket/stack.mrc")
    write_tables(folder, "disk", str(bucket / "stack.mrc"))
    # within the image, a box away from its edges, at all tilts
    half_angst = (np.array([SHAPE[2], SHAPE[1]]) / 2 - BOX) * PIXEL_ANGST
    places = np.random.default_rng(2).uniform(-1, 1, (N_PARTICLES, 3)) * (*half_angst, 100)
    rows = [("TS_1", f"TS_1/{n + 1}", *(f"{x:.2f}" for x in place)) for n, place in enumerate(places)]
    (folder / "particles.star").write_text(cli_project.table("particles", cli_project._PARTICLE_LABELS, rows))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("memory_mib", [None, 512], ids=["default", "512 MiB"])
@pytest.mark.parametrize("kind", [*CHUNKS, "mrc", "disk"])
def test_a_large_tilt_series_in_less_than_a_gibibyte(
    world: Path, tmp_path: Path, kind: str, memory_mib: int | None
) -> None:
    files = ["--particles-starfile", "particles.star", "--tomograms-starfile", f"tomograms_{kind}.star"]
    memory = [] if memory_mib is None else ["--memory", f"{memory_mib}MiB"]
    with ObjectServer(world / "store") as server:
        given = [*files, "--box-size", str(BOX), "--s3-endpoint-url", server.url, *memory]
        program = ["-m", "portal_extract", "local", *given, "--output-dir", str(tmp_path / "out"), "--quiet"]
        command = [sys.executable, "-c", LAUNCHER, *program]
        told = subprocess.run(command, cwd=world, stdout=subprocess.PIPE, timeout=100, check=True)
    code, peak_bytes = json.loads(told.stdout)
    stacks = list((tmp_path / "out").rglob("*.mrcs"))
    shapes = {mrcfile.mmap(stack).data.shape for stack in stacks}
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert code == 0
    assert len(stacks) == N_PARTICLES
    assert {shape[1:] for shape in shapes} == {(BOX, BOX)}
    assert max(shape[0] for shape in shapes) == SHAPE[0]
    print(f"peak of {kind}, {' '.join(memory)}: {peak_bytes / MIB:.0f} MiB")  # shown when it fails
    # beside the memory that is bounded there is the program itself
    allowed = GIB if memory_mib is None else memory_mib * MIB + PROGRAM_BYTES
    assert PROGRAM_BYTES / 4 < peak_bytes < allowed
