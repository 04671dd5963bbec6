"""Writes the simulated portal: the bucket as a folder tree, and the tables of the API."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from portal_extract.demo.documents import dataset_documents, run_documents
from portal_extract.demo.images_out import write_array_metadata, write_group, write_mrc, write_ome_zarr
from portal_extract.demo.imaging import tilt_images
from portal_extract.demo.once import make_once
from portal_extract.demo.plan import OLD_CHUNKS, DemoOptions
from portal_extract.demo.portal import BUCKET, EmbeddedPortal, load_portal_folder
from portal_extract.demo.records import RunRecord
from portal_extract.demo.rows import FileSizes, api_tables
from portal_extract.demo.scene import Particles, Scene, make_scene
from portal_extract.errors import NotFoundError
from portal_extract.running.events import Note, Observer, ignore

FORMAT_VERSION = 1


@dataclass(frozen=True)
class DemoDataset:
    """A simulated portal on disk, and the truth about it.

    Attributes
    ----------
    folder
        Holds ``s3/``, ``tables.json`` and ``demo.json``.
    options
        What it was made from.
    """

    folder: Path
    options: DemoOptions

    @cached_property
    def scenes(self) -> tuple[Scene, ...]:
        """The truth about each run."""
        return tuple(make_scene(plan, self.options, n) for n, plan in enumerate(self.options.runs))

    @cached_property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows of the API by type name."""
        tables: dict[str, list[dict[str, Any]]] = json.loads((self.folder / "tables.json").read_text())
        return tables

    def scene(self, run_name: str) -> Scene:
        """Get the truth about a run.

        Raises
        ------
        NotFoundError
            There is no such run.
        """
        for scene in self.scenes:
            if scene.name == run_name:
                return scene
        raise NotFoundError(
            f"no simulated run {run_name!r}: there are {', '.join(s.name for s in self.scenes)}"
        )

    def particles(self, run_name: str, object_name: str) -> Particles:
        """Get the true poses of the particles of a kind in a run, in the order of their picks.

        Raises
        ------
        NotFoundError
            There is no such run, or no such particle in it.
        """
        for particles in self.scene(run_name).species:
            if particles.object_name == object_name:
                return particles
        raise NotFoundError(f"simulated run {run_name!r}: no {object_name!r} in it")

    def run_id(self, run_name: str) -> int:
        """Get the id of a run in the API."""
        self.scene(run_name)
        return int(next(row["id"] for row in self.tables["Run"] if row["name"] == run_name))

    def zarr_path(self, run_name: str) -> Path:
        """Get the folder of the OME-Zarr of a run's tilt series."""
        record = RunRecord(self.scene(run_name))
        return self.folder / "s3" / BUCKET / f"{record.tilt_series_stem}.zarr"

    def mrc_path(self, run_name: str) -> Path:
        """Get the MRC twin of a run's tilt series."""
        return self.zarr_path(run_name).with_suffix(".mrc")

    def portal(self, **settings: Any) -> EmbeddedPortal:
        """Make a portal that serves this data set; settings of :class:`EmbeddedPortal`."""
        return load_portal_folder(self.folder, **settings)


def simulate_portal(
    folder: Path, options: DemoOptions | None = None, observer: Observer = ignore
) -> DemoDataset:
    """Simulate a portal and write it.

    The folder appears whole or not at all. A folder that holds the same data set already is left as it
    is, one with other options is replaced.

    Parameters
    ----------
    folder
        Folder to make.
    options
        What to simulate; None for the default data set.
    observer
        Is told of each run.

    Returns
    -------
    DemoDataset
        The data set, with the truth.

    Raises
    ------
    OutputError
        The folder holds something else.
    """
    dataset = DemoDataset(folder, options or DemoOptions())
    contents = {"format": FORMAT_VERSION, "options": asdict(dataset.options)}
    make_once(folder, contents, lambda made: _write(made, dataset, observer))
    return dataset


def _write(folder: Path, dataset: DemoDataset, observer: Observer) -> None:
    bucket = folder / "s3" / BUCKET
    records = [RunRecord(scene) for scene in dataset.scenes]
    sizes = []
    for index, record in enumerate(records):
        width, height = record.scene.plan.image_size_px
        observer(
            Note(f"simulating {record.scene.name}: {record.scene.n_tilts} tilt images of {width} x {height}")
        )
        sizes.append(_write_run(bucket, record, dataset.options, index))
    for key, text in dataset_documents():
        _write_text(bucket / key, text)
    tables = api_tables(records, sizes, dataset.options.seed)
    (folder / "tables.json").write_text(json.dumps(tables, indent=1) + "\n")


def _write_run(bucket: Path, record: RunRecord, options: DemoOptions, index: int) -> FileSizes:
    scene = record.scene
    images = tilt_images(scene, options, index)
    stem, spacing = bucket / record.tilt_series_stem, scene.plan.pixel_size_angst
    zarr_bytes = write_ome_zarr(stem.with_name(f"{stem.name}.zarr"), images, scene.plan.chunks, spacing)
    mrc_bytes = write_mrc(stem.with_name(f"{stem.name}.mrc"), images, spacing)
    by_key = {}
    for key, text in run_documents(record):
        by_key[key] = _write_text(bucket / key, text)
    for tomogram in record.tomograms:
        voxel = scene.voxel_spacing_angst(tomogram.voxel_binning)
        group = bucket / tomogram.folder / f"{scene.name}.zarr"
        write_group(group, [(voxel * 2**level,) * 3 for level in range(3)])
        for level in range(3):
            shape = tuple(-(-size // 2**level) for size in reversed(tomogram.size))
            # no chunks: they read as zeros
            write_array_metadata(group / str(level), shape, OLD_CHUNKS)
    return FileSizes(zarr_bytes, mrc_bytes, by_key)


def _write_text(path: Path, text: str) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(text.encode())
