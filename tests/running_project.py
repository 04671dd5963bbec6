"""Projects of several tilt series of noise, and ways to run and compare extractions from them."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cli_project
import numpy as np

from portal_extract.relion_io.mrc import write_stack
from portal_extract.sources.relion import ProjectFiles, read_project

N_TILTS = 7
SIDE = 128
FILES = ["--particles-starfile", "particles.star", "--tomograms-starfile", "tomograms.star"]
STACKS = [*FILES, "--box-size", "32"]
SUMS = [*FILES, "--box-size", "16", "--output-mode", "volume3d", "--sum"]


def write_many(folder: Path, n_series: int = 6, n_particles: int = 12) -> Path:
    """A project of ``n_series`` tilt series, all of whose particles every tilt image sees."""
    random = np.random.default_rng(11)
    (folder / "images").mkdir(parents=True)
    (folder / "tilts").mkdir()
    tomograms, particles = [], []
    for name in (f"TS_{n:02d}" for n in range(n_series)):
        pixels = random.normal(size=(N_TILTS, SIDE, SIDE)).astype(np.float32)
        write_stack(folder / f"images/{name}.mrcs", pixels, 2.0)
        rows = [
            (f"{t + 1}@images/{name}.mrcs", f"{angle:g}", "85", "0", "0", "30000", "29000", "40", f"{3 * t}")
            for t, angle in enumerate(np.linspace(-30, 30, N_TILTS))
        ]
        labels = cli_project._TILT_LABELS
        (folder / f"tilts/{name}.star").write_text(cli_project.table(name, labels, rows))
        tomograms.append(
            (name, f"tilts/{name}.star", "-1", "300", "2.7", "0.1", "2.0", f"{SIDE}", f"{SIDE}", "40")
        )
        for n in range(n_particles):
            x, y, z = random.uniform((-50, -50, -10), (50, 50, 10))
            particles.append((name, f"{name}/{n + 1}", f"{x:.3f}", f"{y:.3f}", f"{z:.3f}"))
    table = cli_project.table
    (folder / "tomograms.star").write_text(table("global", cli_project._TOMOGRAM_LABELS, tomograms))
    (folder / "particles.star").write_text(table("particles", cli_project._PARTICLE_LABELS, particles))
    return folder


def load(folder: Path):
    """The project, with absolute paths of its images so that it can be used from everywhere."""
    return read_project(
        ProjectFiles(
            particles=str(folder / "particles.star"),
            tomograms=str(folder / "tomograms.star"),
            tiltseries_relative_dir=str(folder),
        )
    )


def spoil(folder: Path, name: str = "TS_02") -> bytes:
    """Cut the images of a tilt series short; return them as they were."""
    path = folder / f"images/{name}.mrcs"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


def results(out: Path) -> dict[str, bytes]:
    """Every file that an extraction made, but the journal and the report (which tells the time)."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] not in (".journal", "report")
    }


def assert_same(out: Path, expected: dict[str, bytes]) -> None:
    found = results(out)
    assert sorted(found) == sorted(expected)
    assert [name for name in found if found[name] != expected[name]] == []
    assert [path.name for path in out.rglob("*.part")] == []


def start(folder: Path, arguments: list[str], out: str = "out", **more) -> subprocess.Popen:
    """Start ``portal-extract local`` in a process group of its own."""
    command = [sys.executable, "-m", "portal_extract", "local", *arguments, "--output-dir", out]
    return subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **more,
    )


def finish(process: subprocess.Popen, timeout: float = 90) -> tuple[int, str]:
    """Wait for a process; give its exit code and what it said on standard error."""
    try:
        _, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_all(process)
        process.communicate()
        raise
    return process.returncode, errors


def kill_all(process: subprocess.Popen) -> None:
    """Kill a process and those it started, at once."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], bool], timeout: float = 60, pause: float = 0.005) -> bool:
    """Wait; whether the condition came true."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(pause)
    return False


def write_store(folder: Path, store: Path) -> None:
    """Put the images of a project into a bucket as OME-Zarr of small chunks."""
    import mrcfile
    from images_support import blosc, write_zarr2

    for path in sorted((folder / "images").glob("*.mrcs")):
        write_zarr2(store / "bucket" / f"{path.stem}.zarr", mrcfile.read(path), (1, 64, 64), blosc())


def from_store(project, url: str):
    """The same project with its images on an S3 endpoint."""
    series = [
        dataclasses.replace(
            one,
            image_stack=dataclasses.replace(
                one.image_stack,
                uris=(f"s3://bucket/{one.name}.zarr",) * one.n_tilts,
                storage={"endpoint_url": url},
            ),
        )
        for one in project.tilt_series
    ]
    return dataclasses.replace(project, tilt_series=tuple(series))
