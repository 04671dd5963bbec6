"""The picture of the demo and what it is drawn from, and the big tilt series of the benchmarks."""

from __future__ import annotations

import threading
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import requests
import starfile
import zarr
from matplotlib.image import imread
from scipy.spatial.transform import Rotation

from portal_extract.demo.averaging import average_particles
from portal_extract.demo.big_series import BigSeriesOptions, make_big_series
from portal_extract.demo.extracted import read_extracted
from portal_extract.demo.imaging import contrast_transfer, damage
from portal_extract.demo.phantom import phantom, phantom_volume, projection_transforms
from portal_extract.demo.plan import RIBOSOME, DemoOptions
from portal_extract.demo.preview import draw_preview
from portal_extract.demo.run import demo_portal, demo_preview, serve_until_stopped, serving_lines, tilt_view
from portal_extract.demo.scene import make_scene
from portal_extract.demo.simulate import simulate_portal
from portal_extract.errors import OutputError, StarFileError
from portal_extract.relion_io.star import read_star, write_star
from portal_extract.relion_io.string_table import StringTable

TINY = DemoOptions.tiny()
BOX = 48


def texts(values):
    return [f"{value:.9f}" for value in np.asarray(values, dtype=float)]


@pytest.fixture(scope="module")
def extraction(tmp_path_factory):
    """What an extraction of 24 particles would write, made from phantoms without noise."""
    out = tmp_path_factory.mktemp("out")
    plan = replace(TINY.runs[0], name="TS", species=(replace(TINY.runs[0].species[0], count=0),))
    scene = make_scene(plan, TINY, 0)
    rng = np.random.default_rng(4)
    pixel, count = plan.pixel_size_angst, 24
    poses = Rotation.random(count, random_state=rng).as_matrix()
    centres = rng.uniform(-400, 400, (count, 3))
    _, depths = scene.project(centres)
    (out / "tilt_series").mkdir()
    stacks = out / "Subtomograms" / "TS"
    stacks.mkdir(parents=True)
    names, flags = [], []
    for n in range(count):
        seen = rng.uniform(size=scene.n_tilts) < 0.8
        images = []
        for tilt in np.flatnonzero(seen):
            middle = np.full((1, 2), BOX // 2)
            transform = projection_transforms(
                phantom(RIBOSOME), (scene.rotations()[tilt] @ poses[n])[None], middle, BOX, pixel
            )[0]
            weight = contrast_transfer(scene, tilt, depths[tilt, [n]], BOX)[0] * damage(scene, tilt, BOX)
            images.append(np.fft.irfft2(transform * weight**2, s=(BOX, BOX)))
        path = stacks / f"{n + 1}_stack2d.mrcs"
        mrcfile.write(path, np.array(images, dtype=np.float32))
        # relative to a folder that is no longer the current one
        names.append(f"elsewhere/Subtomograms/TS/{path.name}")
        flags.append("[" + ",".join("1" if here else "0" for here in seen) + "]")
    # RELION's matrix is the transpose of the intrinsic rotation of its angles
    angles = Rotation.from_matrix(poses.transpose(0, 2, 1)).as_euler("ZYZ", degrees=True)
    particles = {
        "rlnTomoName": ["TS"] * count,
        "rlnOpticsGroup": ["1"] * count,
        "rlnImageName": names,
        "rlnTomoVisibleFrames": flags,
    }
    for n, label in enumerate(("Rot", "Tilt", "Psi")):
        particles[f"rlnAngle{label}"] = texts(angles[:, n])
    for n, label in enumerate("XYZ"):
        particles[f"rlnCenteredCoordinate{label}Angst"] = texts(centres[:, n])
    optics = {"rlnImagePixelSize": [str(pixel)], "rlnCtfDataAreCtfPremultiplied": ["1"]}
    write_star(
        out / "particles.star", [("optics", StringTable.of(optics)), ("particles", StringTable.of(particles))]
    )
    tomogram = {
        "rlnTomoName": ["TS"],
        "rlnVoltage": ["300"],
        "rlnSphericalAberration": ["2.7"],
        "rlnAmplitudeContrast": ["0.07"],
        "rlnTomoHand": ["-1"],
        "rlnTomoTiltSeriesPixelSize": [str(pixel)],
        **{f"rlnTomoSize{axis}": ["200"] for axis in "XYZ"},
    }
    write_star(out / "tomograms.star", [("global", StringTable.of(tomogram))])
    tilts = {
        "rlnTomoXTilt": scene.x_tilt_deg,
        "rlnTomoYTilt": scene.tilt_deg,
        "rlnTomoZRot": scene.axis_deg,
        "rlnMicrographPreExposure": scene.dose_e_per_a2,
        "rlnDefocusU": scene.defocus_u_angst,
        "rlnDefocusV": scene.defocus_v_angst,
        "rlnDefocusAngle": scene.defocus_angle_deg,
    }
    table = StringTable.of({label: texts(values) for label, values in tilts.items()})
    write_star(out / "tilt_series" / "TS.star", [("TS", table)])
    return out


def test_the_quick_average_is_the_phantom(extraction):
    average = average_particles(read_extracted(extraction))
    truth = phantom_volume(RIBOSOME, BOX, average.pixel_size_angst)
    inside = np.s_[8:-8, 8:-8, 8:-8]
    assert np.corrcoef(average.volume[inside].ravel(), truth[inside].ravel())[0, 1] > 0.95
    assert average.n_particles == 24
    assert average.n_images == sum(len(read_extracted(extraction).tilts(n)) for n in range(24))
    few = average_particles(read_extracted(extraction), max_particles=3)
    assert few.n_particles == 3


def test_the_lowest_tilt_image_is_found(extraction):
    extracted = read_extracted(extraction)
    angles = np.array(extracted.tilt_table("TS")["rlnTomoYTilt"], dtype=float)
    for index in range(5):
        tilts = extracted.tilts(index)
        position = list(np.abs(angles[tilts])).index(np.abs(angles[tilts]).min())
        np.testing.assert_array_equal(extracted.lowest_tilt_image(index), extracted.stack(index)[position])


def test_without_geometry_the_picture_has_no_average(extraction, tmp_path):
    out = tmp_path / "local"
    out.mkdir()
    (out / "particles.star").write_text((extraction / "particles.star").read_text())
    (out / "Subtomograms").symlink_to(extraction / "Subtomograms")
    extracted = read_extracted(out)
    assert average_particles(extracted) is None
    stack = extracted.stack(0)
    np.testing.assert_array_equal(extracted.lowest_tilt_image(0), stack[len(stack) // 2])
    draw_preview(out, tmp_path / "small.png")
    assert imread(tmp_path / "small.png").std() > 0.05


def test_the_preview_is_a_picture_with_boxes(extraction, tmp_path):
    dataset = simulate_portal(tmp_path / "portal", TINY)
    demo_preview(dataset, extraction, tmp_path / "new" / "preview.png")
    picture = imread(tmp_path / "new" / "preview.png")
    assert picture.shape[0] > 700
    assert picture.shape[1] > 1400
    boxes = np.all(np.abs(picture[..., :3] - np.array([255, 176, 0]) / 255) < 0.1, axis=-1)
    assert boxes.sum() > 200
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["preview.png"]


def test_a_tilt_view_boxes_what_is_dark(tmp_path):
    options = replace(TINY, noise=False, contrast_per_angst=1e-3)
    dataset = simulate_portal(tmp_path / "portal", options)
    view = tilt_view(dataset, "TS_03")
    assert view.image.shape == (250, 256)
    assert "4 cytosolic ribosomes" in view.title
    half = 10
    inside = [
        view.image[int(y) - half : int(y) + half, int(x) - half : int(x) + half].mean()
        for x, y in view.centres_px
        if half < x < 256 - half and half < y < 250 - half
    ]
    assert len(inside) >= 2
    assert max(inside) < np.median(view.image)


def test_a_folder_without_stacks_is_refused(tmp_path):
    table = StringTable.of({"rlnTomoName": ["a"]})
    write_star(tmp_path / "particles.star", [("optics", table), ("particles", table)])
    with pytest.raises(StarFileError, match="rlnImageName"):
        draw_preview(tmp_path, tmp_path / "no.png")
    assert not (tmp_path / "no.png").exists()


def test_the_demo_portal_is_served_and_told(tmp_path):
    said = []
    with demo_portal(tmp_path / "portal", replace(TINY, runs=TINY.runs[3:])) as (dataset, portal):
        stop = threading.Event()
        stop.set()
        serve_until_stopped(portal, said.append, stop)
        assert requests.get(portal.s3_endpoint_url, timeout=10).status_code == 200
        assert dataset.run_id("TS_04") > 1000
    assert f"export CRYOET_PORTAL_URL={portal.portal_url}" in said
    assert serving_lines(portal.portal_url, portal.s3_endpoint_url)[0] in said


# ---------------------------------------------------------------------------------------- big series

SMALL = BigSeriesOptions(
    image_size_px=(160, 150),
    n_tilts=5,
    tilt_step_deg=15.0,
    n_particles=12,
    n_cut_off=3,
    margin_px=12.0,
    chunks=((256, 256, 256), (1, 64, 64)),
)


def test_a_big_series_is_one_project_in_every_format(tmp_path):
    series = make_big_series(tmp_path / "big", SMALL)
    pixels = mrcfile.read(series.mrc)
    assert pixels.shape == (5, 150, 160)
    assert pixels.mean() == pytest.approx(20, abs=0.1)
    assert pixels.std() == pytest.approx(4, abs=0.1)
    for chunks in SMALL.chunks:
        array = zarr.open_array(series.zarr(chunks) / "0", mode="r")
        assert array.chunks == chunks
        np.testing.assert_array_equal(array[:], pixels)
        for remote in (False, True):
            tomograms = read_star(series.tomograms_star(chunks, remote)).block("global").table()
            tilts = read_star(tomograms["rlnTomoTiltSeriesStarFile"][0]).block("big").table()
            uri = f"s3://benchmark/{series.zarr(chunks).name}" if remote else str(series.zarr(chunks))
            assert set(tilts["tomoTiltSeriesURI"]) == {uri}
            assert (series.s3_root / uri.removeprefix("s3://")).is_dir()
    particles = starfile.read(series.particles_star)["particles"]
    assert len(particles) == 12
    tilts = starfile.read(tmp_path / "big" / "tilt_series" / "mrc.star")
    assert tilts["rlnMicrographName"][4] == f"5@{series.mrc}"


def test_most_particles_of_a_big_series_are_seen_by_every_tilt(tmp_path):
    series = make_big_series(tmp_path / "big", SMALL)
    particles = starfile.read(series.particles_star)["particles"]
    tilts = starfile.read(tmp_path / "big" / "tilt_series" / "mrc.star")
    points = particles[[f"rlnCenteredCoordinate{axis}Angst" for axis in "XYZ"]].to_numpy()
    seen = np.ones(len(points), dtype=bool)
    for row in tilts.itertuples():
        turn = Rotation.from_euler("xyz", [row.rlnTomoXTilt, row.rlnTomoYTilt, row.rlnTomoZRot], degrees=True)
        shift = np.array([row.rlnTomoXShiftAngst, row.rlnTomoYShiftAngst])
        at = (turn.apply(points)[:, :2] + shift) / SMALL.pixel_size_angst + np.array([80, 75])
        seen &= np.all((at > 12) & (at < np.array([148, 138])), axis=1)
    assert seen.sum() == 9


def test_a_big_series_is_made_once_and_spares_other_folders(tmp_path):
    first = make_big_series(tmp_path / "big", SMALL)
    stamp = first.mrc.stat().st_mtime_ns
    assert make_big_series(tmp_path / "big", SMALL).mrc.stat().st_mtime_ns == stamp
    make_big_series(tmp_path / "big", replace(SMALL, seed=6))
    assert first.mrc.stat().st_mtime_ns != stamp
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine").write_text("x")
    with pytest.raises(OutputError, match="holds something other"):
        make_big_series(tmp_path / "data", SMALL)
