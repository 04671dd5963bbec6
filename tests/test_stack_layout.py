"""One stack for each tilt series: the same images in fewer files, and a table that says what each one is."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from relion_cases import HERE
from running_project import assert_same, load, results, write_many
from scipy.spatial.transform import Rotation

from portal_extract.cli import cli
from portal_extract.errors import OutputError, UnsupportedError
from portal_extract.extraction.job import extract
from portal_extract.extraction.views import find_views
from portal_extract.geometry import euler_to_matrix
from portal_extract.geometry import project as project_points
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.relion_io.star import read_star, write_star, write_star_in_parts
from portal_extract.relion_io.string_table import StringTable
from portal_extract.running.clients import SchedulerOptions, open_client
from portal_extract.running.journal import LOG
from portal_extract.sources.relion import ProjectFiles, read_project

ADVANCED = HERE / "data" / "relion5" / "advanced"
PARTICLES = ExtractOptions(box_size=24)
TOMOGRAMS = dataclasses.replace(PARTICLES, stack_layout="tomogram")
ONE = RunOptions(workers=1)


@pytest.fixture(scope="module")
def advanced():
    """Two tilt series with offsets, angles of both kinds, trajectories, deformations and all optics."""
    before = Path.cwd()
    os.chdir(ADVANCED)
    files = {"particles": "particles.star", "tomograms": "tomograms.star", "trajectories": "motion.star"}
    project = read_project(ProjectFiles(**files, tiltseries_relative_dir=str(ADVANCED)))
    os.chdir(before)
    return project


@pytest.fixture(scope="module")
def both(advanced, tmp_path_factory):
    """Output folders of both layouts."""
    folder = tmp_path_factory.mktemp("layouts")
    for options in (PARTICLES, TOMOGRAMS):
        extract(advanced, options, folder / options.stack_layout, ONE)
    return folder


def images_of(folder: Path):
    file = read_star(folder / "images.star")
    return file.block("optics").table().to_pandas(), file.block("particles").table().to_pandas()


def named_image(name: str) -> np.ndarray:
    number, path = name.split("@")
    assert len(number) == 6
    with mrcfile.mmap(path, mode="r") as stack:
        return np.array(stack.data[int(number) - 1])


def test_the_same_images_in_one_file_for_each_tilt_series(advanced, both):
    _, rows = images_of(both / "tomogram")
    stacks = sorted(path.name for path in (both / "tomogram/Subtomograms").rglob("*.*"))
    assert stacks == sorted(f"{series.name}_stack2d.mrcs" for series in advanced.tilt_series)
    particles = read_star(both / "particle/particles.star").block("particles").table()
    expected = {}
    for name, path in zip(particles["rlnTomoParticleName"], particles["rlnImageName"], strict=True):
        with mrcfile.open(path) as stack:
            expected[name] = np.array(stack.data)
    seen = dict.fromkeys(expected, 0)
    for name, image in zip(rows["rlnTomoParticleName"], rows["rlnImageName"], strict=True):
        assert np.array_equal(named_image(image), expected[name][seen[name]])
        seen[name] += 1
    assert seen == {name: len(images) for name, images in expected.items()}
    assert rows["rlnImageName"].is_unique


def test_the_stacks_are_valid_files(both):
    for path in (both / "tomogram/Subtomograms").rglob("*.mrcs"):
        assert mrcfile.validate(path)
        with mrcfile.open(path) as file:
            assert file.is_image_stack()
            data = file.data.astype(np.float64)
            assert np.isclose(file.header.dmean, data.mean(), rtol=0, atol=1e-6 * data.std())
            assert np.isclose(file.header.rms, data.std(), rtol=1e-6)
            assert (file.header.dmin, file.header.dmax) == (file.data.min(), file.data.max())
            assert np.isclose(file.voxel_size.x, 7.4)


def test_another_reader_of_star_files_agrees(both):
    optics, rows = images_of(both / "tomogram")
    blocks = starfile.read(both / "tomogram/images.star", always_dict=True)
    assert list(blocks) == ["optics", "particles"]
    assert list(blocks["particles"].columns) == list(rows.columns)
    assert blocks["particles"]["rlnImageName"].tolist() == rows["rlnImageName"].tolist()
    assert np.allclose(blocks["particles"]["rlnDefocusU"], rows["rlnDefocusU"].astype(float))
    assert blocks["optics"]["rlnImageDimensionality"].tolist() == [2] * len(optics)
    assert blocks["optics"]["rlnCtfDataAreCtfPremultiplied"].tolist() == [1] * len(optics)


def test_no_table_of_multi_image_particles_names_images_that_it_cannot(both):
    names = {path.name for path in (both / "tomogram").iterdir()}
    assert names == {".journal", "report", "Subtomograms", "images.star"}


def test_angles_are_those_of_single_particle_analysis(advanced, both):
    """A point of the particle lies in the image where RELION's single-particle convention puts it."""
    _, rows = images_of(both / "tomogram")
    names = list(advanced.particles.names)
    points = np.array([[10.0, 0, 0], [0, 10.0, 0], [0, 0, 10.0], [-3.0, 7.0, 5.0]])
    row = 0
    for index, series in enumerate(advanced.tilt_series):
        views = find_views(advanced, index, TOMOGRAMS)
        for local, tilt in zip(views.particle, views.tilt, strict=True):
            particle = views.kept[local]
            record = rows.iloc[row]
            row += 1
            assert record["rlnTomoParticleName"] == names[particle]
            angles = [float(record[f"rlnAngle{angle}"]) for angle in ("Rot", "Tilt", "Psi")]
            # the image is what one sees of the reference turned by the inverse of the intrinsic ZYZ rotation
            found = Rotation.from_euler("ZYZ", angles, degrees=True).inv().apply(points)[:, :2]
            pose = euler_to_matrix(advanced.particles.subtomogram_angles_deg[particle])
            pose = pose @ euler_to_matrix(advanced.particles.angles_deg[particle])
            centre = np.array([100.0, 90.0, 50.0])
            placed = project_points(series.projections, centre + points @ pose.T)[:, tilt]
            middle = project_points(series.projections, centre[None])[0, tilt]
            assert np.allclose(found, (placed - middle)[:, :2], atol=1e-4)
    assert row == len(rows)


def test_defocus_is_that_at_the_depth_of_the_particle(advanced, both):
    _, rows = images_of(both / "tomogram")
    row = 0
    for index, series in enumerate(advanced.tilt_series):
        views = find_views(advanced, index, TOMOGRAMS)
        for view, tilt in enumerate(views.tilt.tolist()):
            record = rows.iloc[row]
            row += 1
            angst = series.handedness * series.defocus_slope * series.pixel_size_angst * views.depth_px[view]
            assert float(record["rlnDefocusU"]) == pytest.approx(
                series.defocus_u_angst[tilt] + angst, abs=2e-5
            )
            assert float(record["rlnDefocusV"]) == pytest.approx(
                series.defocus_v_angst[tilt] + angst, abs=2e-5
            )
            assert float(record["rlnDefocusAngle"]) == pytest.approx(series.defocus_angle_deg[tilt], abs=2e-5)
            assert float(record["rlnPhaseShift"]) == pytest.approx(series.phase_shift_deg[tilt], abs=2e-5)
            assert float(record["rlnCtfBfactor"]) == pytest.approx(series.ctf_bfactor_a2[tilt], abs=2e-5)
            assert float(record["rlnCtfScalefactor"]) == pytest.approx(series.ctf_scale[tilt], abs=2e-5)
            assert float(record["rlnMicrographPreExposure"]) == pytest.approx(series.dose_e_per_a2[tilt])
            assert record["rlnMicrographName"] == f"{series.name}_{tilt + 1:03d}"
    assert rows["rlnDefocusU"].nunique() > len(advanced.tilt_series[0].defocus_u_angst)


def test_columns_of_particles_travel_along(advanced, both):
    _, rows = images_of(both / "tomogram")
    table = advanced.tables.particles
    gone = set(table.labels) - set(rows.columns)
    assert {label for label in gone if not label.startswith(("rlnCoordinate", "rlnTomoSubtomogram"))} <= {
        "rlnOriginZAngst",
        "rlnTomoVisibleFrames",
        "rlnCtfImage",
        "rlnAngleTiltPrior",
        "rlnAnglePsiPrior",
    }
    assert "rlnRandomSubset" in rows.columns
    of = dict(zip(table["rlnTomoParticleName"], table["rlnRandomSubset"], strict=True))
    assert [of[name] for name in rows["rlnTomoParticleName"]] == rows["rlnRandomSubset"].tolist()


def test_origins_are_zero_where_they_are_applied_and_projected_where_not(advanced, both, tmp_path):
    _, rows = images_of(both / "tomogram")
    assert set(rows["rlnOriginXAngst"].astype(float)) == {0.0}
    options = dataclasses.replace(TOMOGRAMS, apply_offsets=False)
    extract(advanced, options, tmp_path / "out", ONE)
    _, rows = images_of(tmp_path / "out")
    views = find_views(advanced, 0, options)
    series = advanced.tilt_series[0]
    for row, (local, tilt) in enumerate(zip(views.particle, views.tilt, strict=True)):
        particle = views.kept[local]
        frame = euler_to_matrix(advanced.particles.subtomogram_angles_deg[particle])
        # the particle is off the middle of its box by minus the origin: the origin moves it there
        place = -frame @ advanced.particles.origins_angst[particle] / series.pixel_size_angst
        centre = np.array([100.0, 90.0, 50.0])
        both_points = np.stack([centre + place, centre])
        moved, middle = project_points(series.projections, both_points)[:, tilt, :2] * series.pixel_size_angst
        record = rows.iloc[row]
        found = np.array([float(record["rlnOriginXAngst"]), float(record["rlnOriginYAngst"])])
        assert np.allclose(found, -(moved - middle), atol=1e-4)
    assert np.ptp(rows["rlnOriginXAngst"].astype(float)) > 1


@pytest.mark.parametrize("change", [{"float16": True}, {"ctf": False}, {"crop_size": 16, "binning": 2.0}])
def test_other_options(advanced, tmp_path, change):
    for options in (PARTICLES, TOMOGRAMS):
        changed = dataclasses.replace(options, **change)
        extract(advanced, changed, tmp_path / options.stack_layout, ONE)
    optics, rows = images_of(tmp_path / "tomogram")
    particles = read_star(tmp_path / "particle/particles.star").block("particles").table()
    images = [named_image(name) for name in rows["rlnImageName"]]
    stacks = []
    for path in particles["rlnImageName"]:
        with mrcfile.open(path) as file:
            stacks += list(np.array(file.data))
    assert np.array_equal(images, stacks)
    assert set(optics["rlnCtfDataAreCtfPremultiplied"]) == {"0" if change.get("ctf") is False else "1"}


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    project = load(write_many(tmp_path / "project", n_series=4, n_particles=6))
    monkeypatch.chdir(tmp_path)
    extract(project, TOMOGRAMS, "out", ONE)
    expected = results(Path("out"))
    log = Path("out/.journal", LOG)
    assert len(log.read_text().splitlines()) == 4
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:2]))
    victim = Path("out/Subtomograms/TS_00_stack2d.mrcs")
    os.truncate(victim, victim.stat().st_size - 1)
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mrcs")}
    extract(project, TOMOGRAMS, "out", ONE)
    assert_same(Path("out"), expected)
    again = [path.name for path, time in times.items() if path.stat().st_mtime_ns != time]
    assert sorted(again) == ["TS_00_stack2d.mrcs", "TS_02_stack2d.mrcs", "TS_03_stack2d.mrcs"]


def test_processes_give_the_same_bytes_and_share_no_stack(tmp_path, monkeypatch):
    project = load(write_many(tmp_path / "project", n_series=2, n_particles=40))
    monkeypatch.chdir(tmp_path)
    extract(project, TOMOGRAMS, "out", ONE)
    expected = results(Path("out"))
    Path("out").rename("threads")
    with open_client(SchedulerOptions("local", processes=2, threads=1)) as client:
        extract(project, TOMOGRAMS, "out", ONE, client=client)
    assert_same(Path("out"), expected)
    assert len(Path("out/.journal", LOG).read_text().splitlines()) == 2


def test_particles_whose_images_are_no_good_are_not_named(tmp_path, monkeypatch):
    from portal_extract.extraction import series_stacks

    project = load(write_many(tmp_path / "project", n_series=1, n_particles=3))
    check, calls = series_stacks.check_images, []

    def second_is_bad(sums):
        calls.append(len(sums))
        return "constant stack" if len(calls) == 2 else check(sums)

    monkeypatch.setattr(series_stacks, "check_images", second_is_bad)
    summary = extract(project, TOMOGRAMS, tmp_path / "out", ONE)
    assert summary.n_extracted == 2
    assert summary.skipped == {"constant stack": 1}
    _, rows = images_of(tmp_path / "out")
    assert rows["rlnTomoParticleName"].nunique() == 2
    for name in rows["rlnImageName"]:
        assert named_image(name).std() > 0


def test_volumes_and_mixed_optics_are_refused(advanced, tmp_path):
    with pytest.raises(UnsupportedError, match="--stack-layout tomogram: volumes are one file"):
        extract(advanced, dataclasses.replace(TOMOGRAMS, mode="volume3d"), tmp_path / "out", ONE)
    other = dataclasses.replace(advanced.tilt_series[1], voltage_kv=120.0)
    mixed = dataclasses.replace(advanced, tilt_series=(advanced.tilt_series[0], other))
    with pytest.raises(UnsupportedError, match=r"has rlnVoltage 120, its optics group . 200"):
        extract(mixed, TOMOGRAMS, tmp_path / "out", ONE)
    assert not (tmp_path / "out").exists()


def test_the_command_line(tmp_path, monkeypatch, capsys):
    folder = write_many(tmp_path / "project", n_series=2, n_particles=2)
    monkeypatch.chdir(folder)
    files = ["--particles-starfile", "particles.star", "--tomograms-starfile", "tomograms.star"]
    arguments = ["local", *files, "--box-size", "16", "--stack-layout", "tomogram", "--output-dir", "out"]
    cli.main(args=[*arguments], standalone_mode=False)
    assert "relion_refine --o Class2D/run --i out/images.star" in capsys.readouterr().out
    names = read_star("out/images.star").block("particles").table()["rlnImageName"]
    assert names[0] == "000001@out/Subtomograms/TS_00_stack2d.mrcs"
    report = json.loads(Path("out/report/report.json").read_text())
    assert report["table"] == "images.star"


def test_a_loop_in_parts_is_the_loop(tmp_path):
    blocks = [("general", {"rlnTomoSubTomosAre2DStacks": "1"})]
    columns = {"rlnImageName": ["1@a b", "2@a", "3@c"], "rlnDefocusU": ["1.0", "-2.5", "30000.0"]}
    table = StringTable.of(columns)
    write_star(tmp_path / "whole.star", [*blocks, ("particles", table)])
    write_star_in_parts(tmp_path / "parts.star", blocks, "particles", (table.take([n]) for n in range(3)))
    whole, parts = (
        read_star(tmp_path / name).block("particles").table() for name in ("whole.star", "parts.star")
    )
    assert parts == whole
    assert (tmp_path / "parts.star").read_text().split() == (tmp_path / "whole.star").read_text().split()

    def broken():
        yield table
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputError, match=r"broken\.star cannot be written: No space left on device"):
        write_star_in_parts(tmp_path / "broken.star", blocks, "particles", broken())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.star", "whole.star"]
