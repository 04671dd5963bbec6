"""Particles of a simulated portal average to the object they were made of, and with no other convention.

The whole way is used: the portal's API, its object store, streaming, extraction of boxes, CTF, insertion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest

from portal_extract.cli import cli
from portal_extract.demo.phantom import phantom_volume
from portal_extract.demo.plan import NEW_CHUNKS, OLD_CHUNKS, RIBOSOME, DemoOptions, RunPlan, SpeciesPlan
from portal_extract.demo.portal import EmbeddedPortal
from portal_extract.demo.simulate import simulate_portal
from portal_extract.geometry import euler_to_matrix, matrix_to_euler
from portal_extract.model import Floats, Project
from portal_extract.options import RunOptions
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.fsc import correlate_shells, soft_sphere
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.summing import Summing
from portal_extract.reconstruction.survey import survey_reconstruction
from portal_extract.relion_io.star import read_star
from portal_extract.running.events import ignore
from portal_extract.running.guard import Guard
from portal_extract.running.schedulers import find_place
from portal_extract.sources.portal.build import resolve_portal
from portal_extract.sources.portal.filters import PortalFilters
from portal_extract.sources.portal.settings import PortalConnection

BOX, PIXEL = 40, 6.8
RUNS = tuple(
    RunPlan(
        name,
        (size, size - 10),
        pixel,
        11,
        10.0,
        (SpeciesPlan(RIBOSOME, 24),),
        chunks,
        tilt_axis_deg=axis,
        pretilt_deg=pretilt,
    )
    for name, size, pixel, chunks, axis, pretilt in (
        ("first", 330, PIXEL, OLD_CHUNKS, 85.0, 4.0),
        ("second", 340, 6.3, NEW_CHUNKS, -90.0, 0.0),
    )
)


@pytest.fixture(scope="module")
def portal(tmp_path_factory) -> Iterator[EmbeddedPortal]:
    made = simulate_portal(tmp_path_factory.mktemp("demo") / "portal", DemoOptions(runs=RUNS, seed=3))
    with made.portal() as running:
        yield running


@pytest.fixture(scope="module")
def project(portal) -> Project:
    connection = PortalConnection(portal_url=portal.portal_url, s3_endpoint_url=portal.s3_endpoint_url)
    return resolve_portal(PortalFilters(annotation_names=(RIBOSOME,)), connection=connection).project


def correlation(volume: np.ndarray) -> Floats:
    """Shell by shell with the true object."""
    mask = soft_sphere(BOX)
    truth = phantom_volume(RIBOSOME, BOX, PIXEL)
    return correlate_shells(*(np.fft.rfftn(v * mask) for v in (volume, truth)))


def resolution(volume: np.ndarray) -> float:
    """Resolution to which a map correlates with the true object by 0.5 or more."""
    below = np.flatnonzero(correlation(volume) < 0.5)
    return BOX * PIXEL / max(1, below[0] - 1)


def average(project: Project, folder: Path, run: RunOptions | None = None) -> np.ndarray:
    options, run = ReconstructOptions(box_size=BOX), run or RunOptions()
    survey = survey_reconstruction(project, options, run)
    summing = Summing(survey.parts, options, 1, survey.map_pixel_angst, folder, "stamp", 999.0)
    place = find_place(run, None, ignore)
    summed = summing.run(place, Guard(str(folder), ""), ignore)
    return finalise(summed.halves, options, survey.map_pixel_angst)["merged"]


@pytest.fixture(scope="module")
def maps(portal, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("reconstruct") / "out"
    arguments = ["reconstruct", "data-portal", "--annotation-names", RIBOSOME, "--box-size", str(BOX)]
    arguments += ["--portal-url", portal.portal_url, "--s3-endpoint-url", portal.s3_endpoint_url]
    cli.main([*arguments, "--make-subsets", "-o", str(out), "--quiet"], standalone_mode=False)
    return out


def test_average_is_the_object_to_the_resolution_that_the_half_maps_tell(maps):
    told = read_star(maps / "report" / "fsc.star").block("general").values()
    expected = float(told["rlnFinalResolution"])
    assert expected < 24
    assert resolution(mrcfile.read(maps / "merged.mrc")) <= expected * 1.01
    with mrcfile.open(maps / "merged.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(PIXEL)


def test_wrong_axes_of_the_map_would_be_noticed(maps):
    volume = mrcfile.read(maps / "merged.mrc")
    assert resolution(volume.transpose(2, 1, 0)) > 60
    assert resolution(np.roll(volume[::-1], 1, axis=0)) > 60


FLIP, SWAP = np.diag([1.0, 1.0, -1.0]), np.eye(3)[[1, 0, 2]]
Change = Callable[[Floats], Floats]


def with_poses(project: Project, change: Change) -> Project:
    particles = project.particles
    angles = matrix_to_euler(change(euler_to_matrix(particles.angles_deg)))
    return replace(project, particles=replace(particles, angles_deg=angles))


def with_tilts(project: Project, change: Change) -> Project:
    """Change the rotations of all tilt images about the centre of the tomogram."""
    changed = []
    for series in project.tilt_series:
        projections = series.projections.copy()
        projections[:, :3, :3] = change(projections[:, :3, :3])
        projections[:, :3, 3] += (series.projections - projections)[:, :3, :3] @ series.centre_px
        changed.append(replace(series, projections=projections))
    return replace(project, tilt_series=tuple(changed))


SPOILED = {
    "transposed pose": lambda p: with_poses(p, lambda a: a.transpose(0, 2, 1)),
    "swapped axes of the pose": lambda p: with_poses(p, lambda a: SWAP @ a @ SWAP),
    "mirrored pose": lambda p: with_poses(p, lambda a: FLIP @ a @ FLIP),
    "flipped hand of the tilts": lambda p: with_tilts(p, lambda a: FLIP @ a @ FLIP),
    "swapped axes of the tilts": lambda p: with_tilts(p, lambda a: a[:, [1, 0, 2]]),
}


def test_average_of_an_untouched_project(project, tmp_path):
    assert resolution(average(project, tmp_path)) < 24


def test_streamed_maps_do_not_depend_on_workers_and_memory(project, tmp_path):
    runs = [RunOptions(workers=1), RunOptions(workers=4, requests_in_flight=3, memory_bytes=1 << 30)]
    one, other = (average(project, tmp_path, run) for run in runs)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", SPOILED)
def test_any_other_convention_fails(name, project, tmp_path):
    assert resolution(average(SPOILED[name](project), tmp_path)) > 30
