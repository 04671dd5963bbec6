"""The simulated portal: what it writes is what it says, and what it says is what RELION would compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cryoet_data_portal as portal_client
import mrcfile
import numpy as np
import pytest
import s3fs
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.blosc import Blosc
from scipy.spatial.transform import Rotation

from portal_extract.demo.images_out import halve, scatter_blocks
from portal_extract.demo.imaging import protein_thickness, tilt_images
from portal_extract.demo.phantom import phantom, phantom_volume, projection_transforms
from portal_extract.demo.plan import FERRITIN, PROTEASOME, RIBOSOME, DemoOptions
from portal_extract.demo.portal import BUCKET
from portal_extract.demo.scene import dose_symmetric_deg, make_scene
from portal_extract.demo.simulate import simulate_portal
from portal_extract.errors import NotFoundError, OutputError, UsageError

TINY = DemoOptions.tiny()
ALL_RUNS = [plan.name for plan in TINY.runs]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return simulate_portal(tmp_path_factory.mktemp("demo") / "portal", TINY)


def random_rotations(count):
    return Rotation.random(count, random_state=np.random.default_rng(3)).as_matrix()


# ---------------------------------------------------------------------------------------- phantoms


@pytest.mark.parametrize("name", [RIBOSOME, FERRITIN, PROTEASOME])
def test_projections_are_sums_of_gaussians(name):
    made, size, pixel = phantom(name), 96, 6.0
    rotations, centres = random_rotations(2), np.array([[47.3, 48.9], [50.0, 45.5]])
    images = np.fft.irfft2(projection_transforms(made, rotations, centres, size, pixel), s=(size, size))
    y, x = np.mgrid[:size, :size]
    for image, rotation, centre in zip(images, rotations, centres, strict=True):
        slow = np.zeros((size, size))
        for where, sigma, height in zip(made.centres_angst, made.sigmas_angst, made.heights, strict=True):
            at = (rotation @ where)[:2]
            square = ((x - centre[0]) * pixel - at[0]) ** 2 + ((y - centre[1]) * pixel - at[1]) ** 2
            slow += height * np.sqrt(2 * np.pi) * sigma * np.exp(-square / (2 * sigma**2))
        # a pixel of 6 Angstrom cuts a little off the narrowest Gaussians in Fourier space
        assert np.abs(image - slow).max() < 0.02 * slow.max()


def test_volume_is_the_density_and_projects_to_the_projection():
    made, size, pixel = phantom(RIBOSOME), 72, 5.0
    volume = phantom_volume(RIBOSOME, size, pixel)
    at = (np.array([40, 30, 33]) - size // 2) * pixel  # x, y, z
    square = ((made.centres_angst - at) ** 2).sum(1)
    density = (made.heights * np.exp(-square / (2 * made.sigmas_angst**2))).sum()
    assert volume[33, 30, 40] == pytest.approx(density, rel=1e-5)
    transform = projection_transforms(made, np.eye(3)[None], np.full((1, 2), size // 2), size, pixel)
    projected = np.fft.irfft2(transform[0], s=(size, size))
    assert np.corrcoef(volume.sum(0).ravel() * pixel, projected.ravel())[0, 1] > 0.9999
    assert volume.sum() * pixel == pytest.approx(projected.sum(), rel=1e-3)


def test_phantoms_have_the_symmetry_they_claim():
    def turned(volume, axes, times=1):
        # one voxel off at the front, so that voxel box // 2 stays where it is
        return np.rot90(volume[1:, 1:, 1:], times, axes)

    ferritin, ribosome = phantom_volume(FERRITIN, 48, 4.0), phantom_volume(RIBOSOME, 48, 8.0)
    for axes in ((0, 1), (1, 2), (0, 2)):
        np.testing.assert_allclose(turned(ferritin, axes), ferritin[1:, 1:, 1:], atol=1e-5)
        for times in (1, 2):
            same = np.corrcoef(turned(ribosome, axes, times).ravel(), ribosome[1:, 1:, 1:].ravel())[0, 1]
            assert same < 0.9
    rings = phantom(PROTEASOME).centres_angst
    turn = 2 * np.pi / 7
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    distance = np.linalg.norm((rings @ rotation.T)[:, None] - rings[None], axis=2)
    assert distance.min(axis=1).max() < 1e-6


def test_an_unknown_phantom_is_named():
    with pytest.raises(UsageError, match="'membrane': there are cytosolic ribosome"):
        phantom("membrane")


# ---------------------------------------------------------------------------------------- geometry


def relion_projection(tomogram_px, image_px, x_tilt, y_tilt, z_rot, shift_angst, pixel):
    """The 4 x 4 matrix of RELION 5.0.1 from its columns, written out."""
    x, y, z = np.deg2rad([x_tilt, y_tilt, z_rot])
    rx = np.array([[1, 0, 0, 0], [0, np.cos(x), -np.sin(x), 0], [0, np.sin(x), np.cos(x), 0], [0, 0, 0, 1]])
    ry = np.array([[np.cos(y), 0, np.sin(y), 0], [0, 1, 0, 0], [-np.sin(y), 0, np.cos(y), 0], [0, 0, 0, 1]])
    rz = np.array([[np.cos(z), -np.sin(z), 0, 0], [np.sin(z), np.cos(z), 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])

    def move(*by):
        matrix = np.eye(4)
        matrix[:3, 3] = by
        return matrix

    centre = move(*(-(size // 2) for size in tomogram_px))
    middle = move(image_px[0] // 2, image_px[1] // 2, 0)
    return move(shift_angst[0] / pixel, shift_angst[1] / pixel, 0) @ middle @ rz @ ry @ rx @ centre


def of(tables, name, **wanted):
    rows = [row for row in tables[name] if all(row[key] == value for key, value in wanted.items())]
    assert rows, (name, wanted)
    return rows


@pytest.mark.parametrize("run_name", ALL_RUNS)
def test_picks_and_rows_lead_to_the_true_positions(dataset, run_name):
    """From the API's rows and the ndjson to pixels as RELION does it, against the scene."""
    tables, scene = dataset.tables, dataset.scene(run_name)
    series = of(tables, "Tiltseries", runId=dataset.run_id(run_name))[0]
    pixel, image = series["pixelSpacing"], (series["sizeX"], series["sizeY"])
    for annotation in of(tables, "Annotation", runId=series["runId"]):
        shape = of(tables, "AnnotationShape", annotationId=annotation["id"])[0]
        file = of(tables, "AnnotationFile", annotationShapeId=shape["id"])[0]
        spacing = of(tables, "TomogramVoxelSpacing", id=file["tomogramVoxelSpacingId"])[0]["voxelSpacing"]
        tomograms = of(
            tables,
            "Tomogram",
            alignmentId=file["alignmentId"],
            tomogramVoxelSpacingId=file["tomogramVoxelSpacingId"],
        )
        (size,) = {(row["sizeX"], row["sizeY"], row["sizeZ"]) for row in tomograms}
        even = [2 * round(n * spacing / pixel / 2) for n in size]
        path = dataset.folder / "s3" / file["s3Path"].removeprefix("s3://")
        picks = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(picks) == annotation["objectCount"]
        voxels = np.array([[pick["location"][axis] for axis in "xyz"] for pick in picks])
        points = (voxels - np.array(size) / 2) * spacing / pixel + np.array(even) / 2
        truth = dataset.particles(run_name, annotation["objectName"])
        positions, depths = scene.project(truth.centres_angst)
        sections = of(tables, "PerSectionAlignmentParameters", alignmentId=file["alignmentId"])
        assert len(sections) == scene.aligned.sum()
        for row in sections:
            rotation = row["inPlaneRotation"]
            matrix = relion_projection(
                even,
                image,
                row["volumeXRotation"],
                row["tiltAngle"],
                np.rad2deg(np.arctan2(rotation[1][0], rotation[0][0])),
                (row["xOffset"] * pixel, row["yOffset"] * pixel),
                pixel,
            )
            found = points @ matrix[:3, :3].T + matrix[:3, 3]
            np.testing.assert_allclose(found[:, :2], positions[row["zIndex"]], atol=1e-6)
            np.testing.assert_allclose(found[:, 2] * pixel, depths[row["zIndex"]], atol=1e-5)
        if "xyz_rotation_matrix" in picks[0]:
            matrices = [pick["xyz_rotation_matrix"] for pick in picks]
            np.testing.assert_allclose(matrices, truth.rotations, atol=1e-12)


def test_a_particle_looks_as_relion_would_model_it():
    """One particle, no noise: its patch against projection x CTF x damage, all written out anew."""
    plan = replace(TINY.runs[1], species=(replace(TINY.runs[1].species[0], count=1),))
    options = replace(TINY, runs=(plan,), noise=False)
    scene = make_scene(plan, options, 0)
    tilt, size, pixel = 1, 128, plan.pixel_size_angst
    (particle,) = scene.species
    angle = scene.tilt_deg[tilt], scene.x_tilt_deg[tilt], scene.axis_deg[tilt]
    matrix = relion_projection((0, 0, 0), plan.image_size_px, angle[1], angle[0], angle[2], (0, 0), pixel)
    where = matrix @ np.append(particle.centres_angst[0] / pixel, 1)
    where[:2] += scene.shift_px[tilt]
    corner = np.round(where[:2]).astype(int) - size // 2
    x, y = np.fft.rfftfreq(size, pixel)[None], np.fft.fftfreq(size, pixel)[:, None]
    made = phantom(RIBOSOME)
    model = np.zeros((size, size // 2 + 1), dtype=complex)
    for centre, sigma, height in zip(made.centres_angst, made.sigmas_angst, made.heights, strict=True):
        at = (matrix[:3, :3] @ particle.rotations[0] @ centre)[:2] + (where[:2] - corner) * pixel
        weight = height * (2 * np.pi * sigma**2) ** 1.5 / pixel**2
        model += (
            weight
            * np.exp(-2 * np.pi**2 * sigma**2 * (x**2 + y**2))
            * np.exp(-2j * np.pi * (x * at[0] + y * at[1]))
        )
    wavelength = 12.2643247 / np.sqrt(3e5 * (1 + 3e5 * 0.978466e-6))
    depth = -1.0 * where[2] * pixel
    alpha = np.deg2rad(scene.defocus_angle_deg[tilt])
    turn = np.array([[np.cos(alpha), np.sin(alpha)], [-np.sin(alpha), np.cos(alpha)]])
    u, v = scene.defocus_u_angst[tilt] + depth, scene.defocus_v_angst[tilt] + depth
    a = turn.T @ np.diag([-u, -v]) @ turn
    square = x**2 + y**2
    gamma = (
        np.pi * wavelength * (a[0, 0] * x**2 + 2 * a[0, 1] * x * y + a[1, 1] * y**2)
        + np.pi / 2 * 2.7e7 * wavelength**3 * square**2
        - np.deg2rad(scene.phase_shift_deg[tilt])
        - np.arctan(0.07 / np.sqrt(1 - 0.07**2))
    )
    with np.errstate(divide="ignore"):
        weight = np.exp(-0.5 * scene.dose_e_per_a2[tilt] / (0.245 * np.sqrt(square) ** -1.665 + 2.81))
    patch = np.fft.irfft2(model * -np.sin(gamma) * weight, s=(size, size))
    image = np.pad(protein_thickness(scene, tilt), size)
    seen = image[corner[1] + size : corner[1] + 2 * size, corner[0] + size : corner[0] + 2 * size]
    inside = np.s_[20:-20, 20:-20]
    assert np.ptp(patch) > 50
    np.testing.assert_allclose(seen[inside], patch[inside], atol=0.02 * np.ptp(patch))
    assert np.corrcoef(seen[inside].ravel(), patch[inside].ravel())[0, 1] > 0.999
    # protein is darker than ice: where the model is positive, electrons are missing
    bright = np.pad(tilt_images(scene, options, 0)[tilt], size)[corner[1] + size :, corner[0] + size :]
    assert np.corrcoef(bright[:size, :size][inside].ravel(), patch[inside].ravel())[0, 1] < -0.9


def test_dose_symmetric_scheme():
    assert dose_symmetric_deg(7, 3.0).tolist() == [0, 3, -3, -6, 6, 9, -9]


def test_rejected_tilts_leave_gaps_in_the_dose_and_dark_ones_in_the_alignment(dataset):
    run = dataset.run_id("TS_01")
    tables, scene = dataset.tables, dataset.scene("TS_01")
    series = of(tables, "Tiltseries", runId=run)[0]
    frames = {row["id"]: row for row in of(tables, "Frame", runId=run)}
    sections = of(tables, "PerSectionParameters", tiltseriesId=series["id"])
    assert len(frames) == len(sections) + 2 == 11
    assert series["totalFlux"] == sum(row["exposureDose"] for row in frames.values())
    for row in sections:
        frame = frames[row["frameId"]]
        assert frame["accumulatedDose"] == scene.dose_e_per_a2[row["zIndex"]]
        assert scene.acquired_tilt_deg[frame["acquisitionOrder"]] == row["rawAngle"]
    (alignment,) = of(tables, "Alignment", runId=run)
    used = {row["zIndex"] for row in of(tables, "PerSectionAlignmentParameters", alignmentId=alignment["id"])}
    assert used == set(range(9)) - {0, 5}
    images = mrcfile.read(dataset.mrc_path("TS_01"))
    assert images[0].mean() < 0.1 * images[1].mean()


def test_a_run_without_ctf_reads_as_on_the_portal(dataset):
    for row in of(dataset.tables, "PerSectionParameters", runId=dataset.run_id("TS_04")):
        assert row["majorDefocus"] is None
        assert row["phaseShift"] == 0.0
    for row in of(dataset.tables, "PerSectionParameters", runId=dataset.run_id("TS_03")):
        assert 0.6 < row["phaseShift"] < 0.7


def test_imod_files_lead_back_to_the_rows(dataset):
    tables = dataset.tables
    (alignment,) = of(tables, "Alignment", runId=dataset.run_id("lamella 02"))
    folder = dataset.folder / "s3" / Path(alignment["s3AlignmentMetadata"].removeprefix("s3://")).parent
    xf = np.loadtxt(folder / "lamella 02.xf")
    tilts, x_tilts = np.loadtxt(folder / "lamella 02.tlt"), np.loadtxt(folder / "lamella 02.xtilt")
    for row in of(tables, "PerSectionAlignmentParameters", alignmentId=alignment["id"]):
        a, shift = xf[row["zIndex"], :4].reshape(2, 2), xf[row["zIndex"], 4:]
        np.testing.assert_allclose(a.T, row["inPlaneRotation"], atol=1e-8)
        np.testing.assert_allclose(-a.T @ shift, [row["xOffset"], row["yOffset"]], atol=1e-6)
        assert tilts[row["zIndex"]] == pytest.approx(row["tiltAngle"], abs=1e-6)
        assert x_tilts[row["zIndex"]] == pytest.approx(row["volumeXRotation"], abs=1e-6)


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("run_name", "chunks"), [("TS_01", [256] * 3), ("lamella 02", [1, 1024, 1024])])
def test_tilt_series_are_stored_as_on_the_portal(dataset, run_name, chunks):
    path = dataset.zarr_path(run_name)
    images = mrcfile.read(dataset.mrc_path(run_name))
    metadata = json.loads((path / "0" / ".zarray").read_text())
    assert metadata == {
        "zarr_format": 2,
        "shape": list(images.shape),
        "chunks": chunks,
        "dtype": "<f4",
        "order": "C",
        "fill_value": 0.0,
        "filters": None,
        "dimension_separator": "/",
        "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    }
    names = {str(file.relative_to(path)) for file in path.rglob(".z*")}
    assert names == {".zgroup", ".zattrs", "0/.zarray", "1/.zarray", "2/.zarray"}
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["0"][:], images)
    np.testing.assert_array_equal(group["1"][:], halve(images))
    np.testing.assert_array_equal(group["2"][:], halve(halve(images)))
    chunk = (path / "0" / "0" / "0" / "0").read_bytes()
    assert len(Blosc().decode(chunk)) == 4 * np.prod(chunks)
    transforms = [
        level["coordinateTransformations"][0] for level in group.attrs["multiscales"][0]["datasets"]
    ]
    pixel = dataset.scene(run_name).plan.pixel_size_angst
    assert [transform["scale"] for transform in transforms] == [
        [pixel, pixel * factor, pixel * factor] for factor in (1, 2, 4)
    ]


def test_the_mrc_twin_is_an_image_stack(dataset):
    with mrcfile.open(dataset.mrc_path("TS_01"), header_only=True) as file:
        assert (file.header.mode, file.header.ispg, file.header.mz) == (2, 0, 1)
        assert float(file.voxel_size.x) == pytest.approx(6.8)
        assert file.get_labels() == ["Validated by cryoET data portal."]
    assert mrcfile.validate(dataset.mrc_path("TS_01"))


def test_odd_images_are_halved_with_zeros_beyond_the_border():
    images = np.random.default_rng(0).normal(size=(2, 5, 7)).astype(np.float32)
    slow = np.zeros((2, 3, 4))
    for z, y, x in np.ndindex(images.shape):
        slow[z, y // 2, x // 2] += images[z, y, x] / 4
    np.testing.assert_allclose(halve(images), slow, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(0, 2**32 - 1), st.booleans())
def test_scattered_blocks_decode_to_the_same(blocks, seed, random):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=blocks * 1000 - 7) if random else np.arange(blocks * 1000 - 7) // 50
    codec = Blosc(cname="lz4", clevel=5, shuffle=1, blocksize=4096)
    frame = codec.encode(values.astype(np.float32))
    moved = scatter_blocks(frame, rng)
    assert len(moved) == len(frame)
    assert codec.decode(moved) == codec.decode(frame)


def test_blocks_are_out_of_order(dataset):
    frame = (dataset.zarr_path("TS_01") / "0" / "0" / "0" / "0").read_bytes()
    starts = np.frombuffer(frame, "<u4", 128, 16).astype(int)
    assert np.any(np.diff(starts) < 0)


# ------------------------------------------------------------------------------------------ as a whole


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_equal_options_give_equal_files(dataset, tmp_path):
    again = simulate_portal(tmp_path / "again", TINY)
    assert contents(again.folder) == contents(dataset.folder)
    other = simulate_portal(tmp_path / "other", replace(TINY, seed=8))
    assert not np.array_equal(mrcfile.read(other.mrc_path("TS_01")), mrcfile.read(dataset.mrc_path("TS_01")))


def test_a_finished_folder_is_left_alone_and_another_one_replaced(tmp_path):
    options = replace(TINY, runs=TINY.runs[3:])
    first = simulate_portal(tmp_path / "portal", options)
    stamp = first.mrc_path("TS_04").stat().st_mtime_ns
    told = []
    simulate_portal(tmp_path / "portal", options, told.append)
    assert (first.mrc_path("TS_04").stat().st_mtime_ns, told) == (stamp, [])
    simulate_portal(tmp_path / "portal", replace(options, seed=9), told.append)
    assert first.mrc_path("TS_04").stat().st_mtime_ns != stamp
    assert len(told) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["portal"]


def test_nothing_appears_when_the_simulation_fails(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr("portal_extract.demo.simulate.write_mrc", fail)
    with pytest.raises(OSError, match="disk full"):
        simulate_portal(tmp_path / "portal", TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(OutputError, match="holds something other"):
        simulate_portal(tmp_path, TINY)
    assert (tmp_path / "thesis.txt").exists()


def test_the_truth_is_found_by_name(dataset):
    assert dataset.particles("TS_01", FERRITIN).rotations.shape == (4, 3, 3)
    with pytest.raises(NotFoundError, match="TS_09"):
        dataset.scene("TS_09")
    with pytest.raises(NotFoundError, match="proteasome"):
        dataset.particles("TS_01", PROTEASOME)


def test_particles_do_not_touch(dataset):
    for scene in dataset.scenes:
        centres = np.concatenate([particles.centres_angst for particles in scene.species])
        radii = np.concatenate(
            [np.full(len(p.centres_angst), phantom(p.object_name).radius_angst) for p in scene.species]
        )
        distance = np.linalg.norm(centres[:, None] - centres, axis=2) + 1e9 * np.eye(len(centres))
        assert np.all(distance > 0.8 * (radii + radii[:, None]))


def test_every_address_in_the_tables_is_served(dataset):
    with dataset.portal() as portal:
        client = portal_client.Client(portal.portal_url)
        store = s3fs.S3FileSystem(anon=True, endpoint_url=portal.s3_endpoint_url, skip_instance_cache=True)
        addresses = {
            value
            for rows in dataset.tables.values()
            for row in rows
            for value in row.values()
            if isinstance(value, str) and value.startswith("s3://")
        }
        assert len(addresses) > 40
        assert [address for address in sorted(addresses) if not store.exists(address)] == []
        for name in dataset.tables:
            model = getattr(portal_client, {"Tiltseries": "TiltSeries"}.get(name, name), None)
            if model is not None:
                assert len(model.find(client)) == len(dataset.tables[name]), name
        series = portal_client.TiltSeries.find(client, [portal_client.TiltSeries.run.name == "lamella 02"])[0]
        assert store.du(series.s3_omezarr_dir) == series.file_size_omezarr
        assert store.size(series.s3_mrc_file) == series.file_size_mrc
        file = portal_client.AnnotationFile.find(client)[0]
        assert store.size(file.s3_path) == file.file_size
    assert all(address.startswith(f"s3://{BUCKET}/") for address in addresses)
