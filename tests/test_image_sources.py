"""The same tilt series in every form that is read: the stacks are the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
import zarr
from relion_cases import HERE

from portal_extract.cli import cli
from portal_extract.demo.object_server import ObjectServer

ADVANCED = HERE / "data" / "relion5" / "advanced"
NAMES = ("grid1_ts3", "grid2_ts1")
ARGUMENTS = [
    *("local", "--particles-starfile", "particles_few.star", "--tomograms-starfile", "tomograms.star"),
    *("--box-size", "20", "--bin", "2", "--trajectories-starfile", "motion.star", "--quiet", "--output-dir"),
]


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A project folder of one's own, with links to the images."""
    folder = tmp_path / "project"
    shutil.copytree(ADVANCED, folder, ignore=shutil.ignore_patterns("expected", "tiltseries"))
    (folder / "tiltseries").symlink_to(ADVANCED / "tiltseries")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("reference") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ADVANCED)
        cli.main([*ARGUMENTS, str(out)], standalone_mode=False)
    return stacks(out)


def stacks(out: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*.mrcs")}
    assert len(found) >= 4
    return found


def pixels(name: str) -> np.ndarray:
    with mrcfile.open(ADVANCED / "tiltseries" / f"{name}.mrcs") as mrc:
        return np.array(mrc.data)


def change_table(path: Path, change) -> None:
    tables = starfile.read(path, always_dict=True)
    for table in tables.values():
        change(table)
    starfile.write(tables, path, overwrite=True)


def extract_again(*more: str) -> dict[str, bytes]:
    cli.main([*ARGUMENTS, "out", *more], standalone_mode=False)
    return stacks(Path("out"))


def test_one_file_for_each_tilt_image(copy, expected):
    for name in NAMES:
        for f, image in enumerate(pixels(name)):
            with mrcfile.new(copy / f"{name}_{f}.mrc", image):
                pass

        def one_file_each(table, name=name):
            table["rlnMicrographName"] = [f"{name}_{f}.mrc" for f in range(len(table))]

        change_table(copy / "tilt_series" / f"{name}.star", one_file_each)
    assert extract_again() == expected


def test_a_stack_named_for_the_tilt_series(copy, expected):
    for name in NAMES:
        with mrcfile.new(copy / f"{name}.mrc", pixels(name)):
            pass
        change_table(copy / "tilt_series" / f"{name}.star", lambda t: t.pop("rlnMicrographName"))

    def name_stacks(table):
        table["rlnTomoTiltSeriesName"] = [f"{name}.mrc" for name in NAMES]
        table["rlnTomoFrameCount"] = 13

    change_table(copy / "tomograms.star", name_stacks)
    assert extract_again() == expected


def test_relative_paths_start_from_the_folder_given(copy, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [str(copy / word) if word.endswith(".star") else word for word in ARGUMENTS]
    cli.main([*arguments, "out", "--tiltseries-relative-dir", str(copy)], standalone_mode=False)
    assert stacks(Path("out")) == expected


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("where", ["per tilt", "global"])
def test_ome_zarr_on_disk(copy, expected, zarr_format, where):
    for name in NAMES:
        write_zarr(copy / f"{name}.zarr", pixels(name), zarr_format)
    name_zarrs(copy, where, "")
    assert extract_again() == expected


def test_ome_zarr_over_s3_and_https(copy, expected, tmp_path):
    root = tmp_path / "store" / "bucket"
    for name in NAMES:
        write_zarr(root / f"{name}.zarr", pixels(name), 2)
    with ObjectServer(root.parent) as server:
        name_zarrs(copy, "global", "s3://bucket/")
        assert extract_again("--s3-endpoint-url", server.url) == expected
        shutil.rmtree("out")
        name_zarrs(copy, "global", f"{server.url}/bucket/")
        assert extract_again() == expected


def test_mrc_over_https(copy, expected, tmp_path):
    root = tmp_path / "store" / "bucket"
    root.mkdir(parents=True)
    for name in NAMES:
        shutil.copy(ADVANCED / "tiltseries" / f"{name}.mrcs", root)
    with ObjectServer(root.parent) as server:
        for name in NAMES:

            def remote(table, name=name):
                n = len(table)
                table["rlnMicrographName"] = [f"{f + 1}@{server.url}/bucket/{name}.mrcs" for f in range(n)]

            change_table(copy / "tilt_series" / f"{name}.star", remote)
        assert extract_again() == expected


def write_zarr(path: Path, data: np.ndarray, zarr_format: int) -> None:
    """An OME-Zarr group with one level, in chunks that cut the images."""
    group = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    scales = [{"type": "scale", "scale": [1.0, 1.0, 1.0]}]
    axes = [{"name": n, "type": "space"} for n in "zyx"]
    levels = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scales}]}
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", **levels}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [levels]}
    array = group.create_array("0", shape=data.shape, chunks=(5, 128, 128), dtype=data.dtype)
    array[...] = data


def name_zarrs(copy: Path, where: str, prefix: str) -> None:
    def uris(names):
        return [f"{prefix}{name}.zarr" for name in names]

    if where == "global":
        change_table(
            copy / "tomograms.star", lambda table: table.__setitem__("tomoTiltSeriesURI", uris(NAMES))
        )
        return
    for name in NAMES:
        change_table(
            copy / "tilt_series" / f"{name}.star",
            lambda table, name=name: table.__setitem__("tomoTiltSeriesURI", uris([name] * len(table))),
        )
