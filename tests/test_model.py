"""The model, and the tilt images as a notebook sees them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import dask.array
import numpy as np
import pytest
import zarr
from cli_project import N_TILTS, SIZES, write_motion, write_project
from relion_cases import HERE

import portal_extract
from portal_extract.demo.portal import EmbeddedPortal, load_portal_folder
from portal_extract.relion_io.mrc import write_stack
from portal_extract.sources.portal import PortalConnection, PortalFilters
from portal_extract.sources.relion import ProjectFiles, read_project

PORTAL = HERE / "data" / "portal"
STORED = PORTAL / "s3/cryoet-data-portal-public/10493/TS_028/TiltSeries/100/TS_028.zarr/0"


@pytest.fixture(scope="module")
def portal() -> Iterator[EmbeddedPortal]:
    with load_portal_folder(PORTAL) as portal:
        yield portal


@pytest.fixture(scope="module")
def series(portal) -> portal_extract.TiltSeries:
    """The tilt series of a run on the portal whose section 8 is not aligned."""
    filters = PortalFilters(run_ids=(17844,), annotation_names=("cytosolic ribosome",))
    connection = PortalConnection(portal.portal_url, portal.s3_endpoint_url)
    (found,) = portal_extract.resolve_portal(filters, connection=connection).project.tilt_series
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def chunks_asked_for(portal: EmbeddedPortal) -> set[str]:
    """Sections whose chunk was asked for since the log was cleared."""
    keys = [entry.path.partition(".zarr/0/")[2] for entry in portal.objects.log.entries]
    return {key.split("/")[0] for key in keys if key and not key.startswith(".")}


# ---------------------------------------------------------------------------------- images on the portal


def test_opening_reads_metadata_only(portal, series):
    portal.objects.log.clear()
    images = series.images
    assert isinstance(images, dask.array.Array)
    assert images.shape == (8, 400, 420)
    assert images.dtype == np.float32
    assert images.chunks == ((1,) * 8, (400,), (420,))
    assert 0 < portal.objects.log.count() <= 4
    assert portal.objects.log.body_bytes < 10_000
    assert chunks_asked_for(portal) == set()


def test_images_are_the_stored_sections_that_are_aligned(series):
    stored = zarr.open_array(STORED, mode="r")
    sections = series.image_stack.sections.tolist()
    assert sections == [z for z in range(9) if z != 8]
    np.testing.assert_array_equal(series.images.compute(), stored[:][sections])


def test_a_part_reads_the_chunks_of_that_part(portal, series):
    images = series.images
    portal.objects.log.clear()
    part = images[2:4, 100:200, 50:60].compute()
    assert chunks_asked_for(portal) == {"2", "3"}
    np.testing.assert_array_equal(part, zarr.open_array(STORED, mode="r")[2:4, 100:200, 50:60])


def test_a_notebook_can_calculate_with_them(series):
    stored = zarr.open_array(STORED, mode="r")[:][series.image_stack.sections]
    images = series.images
    means = images.mean(axis=(1, 2)).compute(scheduler="threads")
    np.testing.assert_allclose(means, stored.mean(axis=(1, 2), dtype=np.float64), rtol=0, atol=1e-4)
    binned = dask.array.coarsen(np.mean, images, {1: 4, 2: 4})
    assert binned.shape == (8, 100, 105)
    order = np.argsort(series.dose_e_per_a2)
    np.testing.assert_array_equal(images[order[0]].compute(), stored[order[0]])
    again = pickle.loads(pickle.dumps(images))
    np.testing.assert_array_equal(again[1].compute(), stored[1])


# ---------------------------------------------------------------------------------- images on disk


def test_images_of_an_mrc_are_read_when_they_are_asked_for(folder):
    height, width = SIZES["TS_1"]
    series = read_project(ProjectFiles("particles.star", "tomograms.star")).tilt_series[0]
    images = series.images
    assert images.shape == (N_TILTS, height, width)
    later = np.arange(N_TILTS * height * width, dtype=np.float32).reshape(N_TILTS, height, width)
    write_stack("images/TS_1.mrcs", later, 2.0)
    np.testing.assert_array_equal(images.compute(), later)


def test_images_follow_the_order_of_the_table(folder):
    text = Path("tilts/TS_1.star").read_text()
    Path("tilts/TS_1.star").write_text(text.replace("1@", "x@").replace("3@", "1@").replace("x@", "3@"))
    series = read_project(ProjectFiles("particles.star", "tomograms.star")).tilt_series[0]
    assert series.image_stack.sections.tolist() == [2, 1, 0, 3, 4]
    pixels = np.fromfile("images/TS_1.mrcs", "<f4", offset=1024).reshape(N_TILTS, *SIZES["TS_1"])
    np.testing.assert_array_equal(series.images.compute(), pixels[[2, 1, 0, 3, 4]])


# ---------------------------------------------------------------------------------- parts of a project


def test_a_part_of_a_project_is_a_project(folder):
    write_motion(folder)
    project = read_project(ProjectFiles("particles.star", "tomograms.star", "motion.star"))
    assert [members.tolist() for members in project.particles_of] == [[0, 1, 2], [3]]
    part = project.part(0, np.array([2, 0]))
    assert [series.name for series in part.tilt_series] == ["TS_1"]
    assert part.particles.names == ("TS_1/3", "TS_1/1")
    assert part.particles.tilt_series.tolist() == [0, 0]
    assert part.particles.coordinates_angst.tolist() == [[-30, 25, -5], [0, 0, 0]]
    assert [shifts.tolist() for shifts in part.particles.trajectories_angst] == [[[0.5, 0, -1]] * N_TILTS] * 2
    assert part.particles.random_subset is None
    assert part.tables is None
    other = project.part(1, np.array([3]))
    assert other.particles.tilt_series.tolist() == [0]
    assert other.particles_of[0].tolist() == [0]


def test_a_project_can_be_pickled_and_not_changed(folder):
    project = read_project(ProjectFiles("particles.star", "tomograms.star"))
    again = pickle.loads(pickle.dumps(project))
    assert again.particles.names == project.particles.names
    np.testing.assert_array_equal(again.tilt_series[1].projections, project.tilt_series[1].projections)
    assert again.tilt_series[1].centre_px.tolist() == [55.0, 45.0, 20.0]
    with pytest.raises(FrozenInstanceError):
        project.particles.names = ()
