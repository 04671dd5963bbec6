"""A tilt series in an object store, as OME-Zarr of both layouts and as MRC, with a project that names it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import cli_project
import numpy as np
import pytest
from images_support import blosc, make_pixels, write_zarr2
from running_project import results

from portal_extract.cli import main
from portal_extract.demo.loopback import Fault, Request
from portal_extract.demo.object_server import ObjectServer
from portal_extract.relion_io.mrc import write_mrc

SHAPE = (9, 300, 260)
CHUNKS = {"old": (256, 128, 128), "new": (1, 256, 256)}
KINDS = ("old", "new", "mrc")
N_PARTICLES = 40
BOX = ["--box-size", "24"]


def write_world(
    folder: Path, pixels: np.ndarray | None = None, chunks=CHUNKS, side_angst: float = 150
) -> Path:
    """Write the store and the tables; every tilt image sees most particles."""
    pixels = make_pixels(SHAPE, "f4") if pixels is None else pixels
    n_tilts, height, width = pixels.shape
    bucket = folder / "store" / "bucket"
    for name, shape in chunks.items():
        write_zarr2(bucket / f"{name}.zarr", pixels, shape, blosc(block_bytes=32768))
    write_mrc(bucket / "stack.mrc", pixels, 1.0, kind="stack")
    (folder / "tilts").mkdir()
    random = np.random.default_rng(7)
    for kind in [*chunks, "mrc"]:
        uri = "s3://bucket/" + ("stack.mrc" if kind == "mrc" else f"{kind}.zarr")
        labels = (*cli_project._TILT_LABELS, "tomoTiltSeriesURI")
        rows = [
            (f"{t + 1}@none.mrcs", f"{angle:g}", "85", "0", "0", "30000", "29000", "40", f"{3 * t}", uri)
            for t, angle in enumerate(np.linspace(-30, 30, n_tilts))
        ]
        (folder / f"tilts/{kind}.star").write_text(cli_project.table("TS_1", labels, rows))
        row = ("TS_1", f"tilts/{kind}.star", "-1", "300", "2.7", "0.1", "1.0", str(width), str(height), "40")
        text = cli_project.table("global", cli_project._TOMOGRAM_LABELS, [row])
        (folder / f"tomograms_{kind}.star").write_text(text)
    places = random.uniform(-side_angst, side_angst, (N_PARTICLES, 3)) * (1, 1, 0.1)
    particles = [("TS_1", f"TS_1/{n + 1}", *(f"{x:.2f}" for x in place)) for n, place in enumerate(places)]
    text = cli_project.table("particles", cli_project._PARTICLE_LABELS, particles)
    (folder / "particles.star").write_text(text)
    return folder


def enter(world: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a folder that has the tables of the world: names in the output are the same everywhere."""
    for path in (*world.glob("*.star"), world / "tilts"):
        (folder / path.name).symlink_to(path)
    monkeypatch.chdir(folder)


def arguments(kind: str, url: str, *more: str) -> list[str]:
    """Options that name a project and its store."""
    files = ["--particles-starfile", "particles.star", "--tomograms-starfile", f"tomograms_{kind}.star"]
    return [*files, *BOX, "--s3-endpoint-url", url, *more]


def extract(kind: str, url: str, *more: str) -> int:
    """Run ``portal-extract local`` in this process; give its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["local", *arguments(kind, url, *more), "--output-dir", "out", "--quiet"])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def undisturbed(world: Path, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What an extraction from a healthy store leaves."""
    folder.mkdir()
    with monkeypatch.context() as patch, ObjectServer(world / "store") as server:
        enter(world, folder, patch)
        assert extract(kind, server.url) == 0
    return results(folder / "out")


def random_faults(seed: int, stall_s: float) -> Callable[[Request], Fault | None]:
    """5 % refused for a while, 2 % reset, 1 % cut short; the requests 4 and 9 stall."""
    rng, lock = np.random.default_rng(seed), threading.Lock()

    def fault(request: Request) -> Fault | None:
        if request.number in (4, 9):
            return Fault(body_bytes=10, stall_s=stall_s)
        with lock:
            luck = rng.random()
        if luck < 0.05:
            return Fault(status=503)
        if luck < 0.07:
            return Fault(reset=True)
        return Fault(body_bytes=1) if luck < 0.08 else None

    return fault
