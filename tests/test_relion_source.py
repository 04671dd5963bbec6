"""RELION projects: what is read from the tables, and how everything that is wrong with them is said."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from relion_cases import HERE

from portal_extract.errors import (
    ImageFormatError,
    PortalExtractError,
    StarFileError,
    UnsupportedError,
    UsageError,
)
from portal_extract.geometry import projection_matrices
from portal_extract.model import ImageStack, Project
from portal_extract.relion_io.mrc import write_mrc, write_stack
from portal_extract.relion_io.paths import is_safe_name, output_prefix, stack_paths
from portal_extract.sources.relion import ProjectFiles, build_project, read_project

DATA = HERE / "data" / "relion5"

TILTS = """
loop_
_rlnMicrographName #1
_rlnTomoYTilt #2
_rlnTomoZRot #3
_rlnTomoXShiftAngst #4
_rlnTomoYShiftAngst #5
_rlnDefocusU #6
_rlnDefocusV #7
_rlnDefocusAngle #8
_rlnMicrographPreExposure #9
1@images/{0}.mrcs -30 85 1 2 30000 29000 40 6
2@images/{0}.mrcs 0 85 3 4 31000 30000 41 0
3@images/{0}.mrcs 30 85 5 6 32000 31000 42 3
"""
TOMOGRAMS = """
data_global

loop_
_rlnTomoName #1
_rlnTomoTiltSeriesStarFile #2
_rlnTomoHand #3
_rlnVoltage #4
_rlnSphericalAberration #5
_rlnAmplitudeContrast #6
_rlnTomoTiltSeriesPixelSize #7
_rlnTomoSizeX #8
_rlnTomoSizeY #9
_rlnTomoSizeZ #10
_rlnOpticsGroupName #11
007 tilts/007.star -1 300 2.7 0.1 2.0 31 21 11 krios
TS_2 tilts/TS_2.star 1 200 2.6 0.07 4.0 30 20 10 arctica
"""
PARTICLES = """
data_particles

loop_
_rlnTomoName #1
_rlnCenteredCoordinateXAngst #2
_rlnCenteredCoordinateYAngst #3
_rlnCenteredCoordinateZAngst #4
TS_2 1 2 3
007 4 5 6
TS_2 7 8 9
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small project in the current directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("images", "tilts"):
        Path(name).mkdir()
    for name, shape in (("007", (3, 20, 30)), ("TS_2", (3, 22, 32))):
        write_stack(f"images/{name}.mrcs", np.arange(np.prod(shape), dtype=np.float32).reshape(shape), 2.0)
        Path(f"tilts/{name}.star").write_text(f"data_{name}\n{TILTS.format(name)}")
    Path("tomograms.star").write_text(TOMOGRAMS)
    Path("particles.star").write_text(PARTICLES)
    return tmp_path


FILES = ProjectFiles("particles.star", "tomograms.star")


def change(file: str, old: str, new: str) -> None:
    text = Path(file).read_text()
    assert old in text
    Path(file).write_text(text.replace(old, new))


def refusal(files: ProjectFiles = FILES, kind: type[PortalExtractError] = StarFileError) -> str:
    with pytest.raises(kind) as error:
        read_project(files)
    return str(error.value)


# ------------------------------------------------------------------------------------- what is read


def test_a_small_project(folder):
    project = read_project(FILES)
    first, second = project.tilt_series
    assert (first.name, second.name) == ("007", "TS_2")
    assert first.image_stack.uris == (str(folder / "images/007.mrcs"),) * 3
    assert first.image_stack.sections.tolist() == [0, 1, 2]
    assert first.image_stack.size_px == (30, 20)
    assert second.image_stack.size_px == (32, 22)
    assert (first.pixel_size_angst, first.voltage_kv, first.handedness) == (2.0, 300.0, -1.0)
    assert (second.spherical_aberration_mm, second.amplitude_contrast) == (2.6, 0.07)
    assert first.tomogram_size_px == (31, 21, 11)
    assert first.dose_e_per_a2.tolist() == [6, 0, 3]
    assert first.defocus_u_angst.tolist() == [30000, 31000, 32000]
    assert first.ctf_scale.tolist() == [1, 1, 1]
    assert first.phase_shift_deg.tolist() == first.ctf_bfactor_a2.tolist() == [0, 0, 0]
    assert (first.defocus_slope, first.bfactor_per_dose, first.deformation) == (1.0, 0.0, None)
    expected = projection_matrices(
        [0, 0, 0], [-30, 0, 30], [85] * 3, [1, 3, 5], [2, 4, 6], 2.0, (30, 20), (31, 21, 11)
    )
    np.testing.assert_array_equal(first.projections, expected)

    particles = project.particles
    assert particles.names == ("TS_2/1", "007/1", "TS_2/2")
    assert particles.tilt_series.tolist() == [1, 0, 1]
    assert particles.coordinates_angst.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert particles.coordinates_px is None
    assert not particles.origins_angst.any()
    assert not particles.angles_deg.any()
    assert particles.random_subset is None
    assert particles.trajectories_angst is None
    assert [members.tolist() for members in project.particles_of] == [[1], [0, 2]]


def test_a_missing_optics_table_is_built_in_order_of_appearance(folder):
    project = read_project(FILES)
    optics = project.tables.optics
    assert list(optics.labels) == [
        "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnTomoTiltSeriesPixelSize",
        "rlnOpticsGroup", "rlnOpticsGroupName",
    ]  # fmt: skip
    assert list(optics.row(0).values()) == ["200", "2.6", "0.07", "4.0", "1", "arctica"]
    assert optics["rlnOpticsGroupName"] == ["arctica", "krios"]
    assert [group.pixel_size_angst for group in project.optics_groups] == [4.0, 2.0]
    assert project.particles.optics_group.tolist() == [0, 1, 0]
    assert project.tables.particles["rlnOpticsGroup"] == ["1", "2", "1"]
    assert list(project.tables.particles.labels)[-2:] == ["rlnOpticsGroup", "rlnTomoParticleName"]


def test_without_optics_group_names_every_tomogram_is_a_group(folder):
    change("tomograms.star", "_rlnOpticsGroupName #11", "_rlnOther #11")
    assert [group.name for group in read_project(FILES).optics_groups] == ["TS_2", "007"]


def test_the_number_of_an_optics_group_is_a_row(folder):
    change("particles.star", "#4\n", "#4\n_rlnOpticsGroup\n")
    for old, new in ((" 3\n", " 3 2\n"), (" 6\n", " 6 1\n"), (" 9\n", " 9 2\n")):
        change("particles.star", old, new)
    optics = "data_optics\nloop_\n_rlnOpticsGroup\n_rlnOpticsGroupName\n_rlnTomoTiltSeriesPixelSize\n"
    optics += "_rlnEvenZernike\n9 one 2.0 [1,2]\n9 two 4.0 []\n"
    Path("particles.star").write_text(optics + Path("particles.star").read_text())
    project = read_project(FILES)
    assert project.particles.optics_group.tolist() == [1, 0, 1]
    assert [group.name for group in project.optics_groups] == ["one", "two"]
    np.testing.assert_array_equal(project.optics_groups[0].even_zernike, [1, 2])
    assert project.optics_groups[1].even_zernike is None
    assert project.optics_groups[0].odd_zernike is None


def test_pixel_coordinates_where_there_are_no_centred_ones(folder):
    for axis in "XYZ":
        change("particles.star", f"rlnCenteredCoordinate{axis}Angst", f"rlnCoordinate{axis}")
    particles = read_project(FILES).particles
    assert particles.coordinates_px.tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert np.isnan(particles.coordinates_angst).all()


def test_centred_coordinates_go_before_pixel_coordinates(folder):
    text = PARTICLES.replace(
        "_rlnTomoName #1", "_rlnTomoName #1\n_rlnCoordinateX\n_rlnCoordinateY\n_rlnCoordinateZ"
    )
    Path("particles.star").write_text(text.replace("TS_2 ", "TS_2 0 0 0 ").replace("007 ", "007 0 0 0 "))
    particles = read_project(FILES).particles
    assert particles.coordinates_px is None
    assert particles.coordinates_angst[0].tolist() == [1, 2, 3]


def test_angles_count_only_with_their_first_column(folder):
    labels = "_rlnTomoName #1\n_rlnAngleTilt\n_rlnAnglePsi\n_rlnTomoSubtomogramRot\n_rlnTomoSubtomogramTilt\n"
    labels += "_rlnTomoSubtomogramPsi\n_rlnOriginYAngst\n_rlnRandomSubset"
    text = PARTICLES.replace("_rlnTomoName #1", labels)
    Path("particles.star").write_text(
        text.replace("TS_2 ", "TS_2 1 2 3 4 5 6 2 ").replace("007 ", "007 1 2 3 4 5 6 1 ")
    )
    particles = read_project(FILES).particles
    assert not particles.angles_deg.any()
    assert particles.subtomogram_angles_deg[0].tolist() == [3, 4, 5]
    assert particles.origins_angst[0].tolist() == [0, 6, 0]
    assert particles.random_subset.tolist() == [2, 1, 2]


def test_the_advanced_reference_project(tmp_path, monkeypatch):
    """Matrices, deformations, Zernike tables, dose B-factor and trajectories, from the files themselves."""
    project = advanced(tmp_path, monkeypatch, trajectories="motion.star")
    first, second = project.tilt_series
    assert first.deformation.kind == "spline"
    assert first.deformation.grid == (3, 3)
    assert first.deformation.coefficients.shape == (13, 72)
    assert first.deformation.coefficients[0, :2].tolist() == [0.956449666, 1.0574034]
    assert second.deformation.kind == "linear"
    assert second.deformation.coefficients.shape == (13, 3)
    assert second.projections[0, 0].tolist() == [-0.692867846, -0.103284461, 0.713629083, 276.809652]
    assert second.projections[0, 3].tolist() == [0, 0, 0, 1]
    assert (first.defocus_slope, second.defocus_slope) == (1.06, 0.93)
    assert (first.bfactor_per_dose, second.bfactor_per_dose) == (0.0, 4.0)
    assert second.phase_shift_deg[0] == 45.5
    assert first.ctf_scale[0] == 0.743145
    assert first.ctf_bfactor_a2[0] == 62.0
    assert project.optics_groups[1].odd_zernike.tolist() == [-2, 4, -1000, -3, 2, -700]
    assert project.particles.trajectories_angst[0][0].tolist() == [-4.267384, 10.469071, -2.072695]
    assert {len(shifts) for shifts in project.particles.trajectories_angst} == {13}
    assert project.tables.trajectories_file == "motion.star"


def advanced(tmp_path: Path, monkeypatch, **files: str) -> Project:
    """The advanced reference project, with images of the right size and no content."""
    shutil.copytree(
        DATA / "advanced", tmp_path / "p", ignore=shutil.ignore_patterns("expected", "tiltseries")
    )
    monkeypatch.chdir(tmp_path / "p")
    Path("tiltseries").mkdir()
    for name, shape in (("grid1_ts3", (13, 384, 352)), ("grid2_ts1", (13, 368, 352))):
        write_stack(f"tiltseries/{name}.mrcs", np.zeros(shape, dtype=np.float32), 7.4)
    return read_project(ProjectFiles("particles.star", "tomograms.star", **files))


def test_trajectories_by_name_and_by_position(tmp_path, monkeypatch):
    named = advanced(tmp_path, monkeypatch, trajectories="motion.star").particles.trajectories_angst
    blocks = Path("motion.star").read_text().split("# version 50001")
    Path("shuffled.star").write_text("# version 50001".join([*blocks[:2], *reversed(blocks[2:])]))
    shuffled = read_project(ProjectFiles("particles.star", "tomograms.star", "shuffled.star")).particles
    numbered = [blocks[0], blocks[1]]
    for number, block in enumerate(blocks[2:]):
        name = block.split()[0]
        numbered.append(block.replace(name, f"data_{number}"))
    Path("numbered.star").write_text("# version 50001".join(numbered))
    by_position = read_project(ProjectFiles("particles.star", "tomograms.star", "numbered.star")).particles
    for one, two, three in zip(
        named, shuffled.trajectories_angst, by_position.trajectories_angst, strict=True
    ):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_an_optimisation_set_and_what_goes_before_it(folder):
    Path("set.star").write_text(
        "data_\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile none.star\n"
        "_rlnTomoManifoldsFile m.star\n"
    )
    project = read_project(ProjectFiles(tomograms="tomograms.star", optimisation_set="set.star"))
    assert project.tables.tomograms_file == "tomograms.star"
    assert project.tables.manifolds_file == "m.star"
    assert len(project.particles) == 3


def test_relion_4_tables_in_one_file(folder):
    tables = [f"data_{name}\n{TILTS.format(name)}" for name in ("007", "TS_2")]
    tomograms = TOMOGRAMS.replace("_rlnTomoTiltSeriesStarFile", "_rlnOld")
    Path("tomograms.star").write_text(tomograms + "\n" + "\n".join(tables))
    shutil.rmtree("tilts")
    assert [series.n_tilts for series in read_project(FILES).tilt_series] == [3, 3]


def test_tilt_series_without_particles_keep_their_place_and_need_no_images(folder):
    Path("particles.star").write_text(PARTICLES.replace("007 4 5 6\n", ""))
    Path("images/007.mrcs").unlink()
    change("tilts/007.star", "_rlnDefocusU", "_rlnOther")
    project = read_project(FILES)
    assert [series.name for series in project.tilt_series] == ["007", "TS_2"]
    assert project.tilt_series[0].image_stack.size_px == (0, 0)
    assert np.isnan(project.tilt_series[0].projections).all()
    assert project.particles.tilt_series.tolist() == [1, 1]


# ------------------------------------------------------------------------------------- images


def test_paths_relative_to_another_folder(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    files = ProjectFiles(f"{folder}/particles.star", f"{folder}/tomograms.star")
    assert f"{folder}/tilts/007.star exists: give {folder} as the folder" in refusal(files)
    project = read_project(replace(files, tiltseries_relative_dir=str(folder)))
    assert project.tilt_series[0].image_stack.uris[0] == f"{folder}/images/007.mrcs"


def test_one_mrc_for_each_tilt(folder):
    for n in range(3):
        write_mrc(f"images/t{n}.mrc", np.full((1, 20, 30), n, dtype=np.float32), 2.0, kind="stack")
        change("tilts/007.star", f"{n + 1}@images/007.mrcs", f"images/t{2 - n}.mrc")
    stack = read_project(FILES).tilt_series[0].image_stack
    assert [os.path.basename(uri) for uri in stack.uris] == ["t2.mrc", "t1.mrc", "t0.mrc"]
    assert stack.sections.tolist() == [0, 0, 0]


def test_sections_in_any_order(folder):
    change("tilts/007.star", "1@", "0003@")
    change("tilts/007.star", "2@", "1@")
    assert read_project(FILES).tilt_series[0].image_stack.sections.tolist() == [2, 0, 2]


def test_one_stack_for_a_tilt_series(folder):
    change(
        "tomograms.star",
        "_rlnOpticsGroupName #11",
        "_rlnOpticsGroupName #11\n_rlnTomoTiltSeriesName\n_rlnTomoFrameCount",
    )
    change("tomograms.star", "krios", "krios images/007.mrcs 3")
    change("tomograms.star", "arctica", "arctica images/TS_2.mrcs 3")
    change("tilts/007.star", "_rlnMicrographName", "_rlnOther")
    stack = read_project(FILES).tilt_series[0].image_stack
    assert stack.uris == (str(folder / "images/007.mrcs"),) * 3
    assert stack.sections.tolist() == [0, 1, 2]
    change("tomograms.star", "images/007.mrcs 3", "images/007.mrcs 4")
    assert "rlnTomoFrameCount is 4, but tilts/007.star, data_007 has 3 rows" in refusal()


@pytest.mark.parametrize("scope", ["tilts", "global"])
def test_zarr_named_by_a_column(folder, scope):
    import zarr

    zarr.create_array("images/z.zarr", shape=(5, 20, 30), chunks=(1, 20, 30), dtype="f4", zarr_format=2)
    if scope == "tilts":
        change("tilts/007.star", "_rlnTomoYTilt", "_tomoTiltSeriesURI\n_rlnTomoYTilt")
        for n in (1, 2, 3):
            change("tilts/007.star", f"{n}@images/007.mrcs", f"{n + 2}@frames/{n}.mrc images/z.zarr")
        Path("particles.star").write_text(PARTICLES.replace("TS_2", "007"))
    else:
        change("tomograms.star", "_rlnOpticsGroupName #11", "_rlnOpticsGroupName #11\n_tomoTiltSeriesURI")
        change("tomograms.star", "krios", "krios file:///" + str(folder / "images/z.zarr").lstrip("/"))
        change("tomograms.star", "arctica", "arctica images/TS_2.mrcs")
        change("tilts/007.star", "_rlnMicrographName", "_rlnOther")
    stack = read_project(FILES).tilt_series[0].image_stack
    assert stack.uris == (str(folder / "images/z.zarr"),) * 3
    assert stack.sections.tolist() == ([2, 3, 4] if scope == "tilts" else [0, 1, 2])
    assert stack.size_px == (30, 20)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("tomograms.star", "data_global", "data_tomograms", "no block data_global (found data_tomograms)"),
        ("particles.star", "data_particles", "data_", "has no block data_particles (found data_)"),
        ("tilts/007.star", "data_007", "data_7", "tilts/007.star has no block data_007 (found data_7)"),
        ("tomograms.star", "tilts/007.star", "tilts/8.star", "tilts/8.star does not exist"),
        ("tomograms.star", "_rlnTomoHand", "_rlnHand", "data_global: column rlnTomoHand missing"),
        ("tomograms.star", "_rlnVoltage", "_rlnVolt", "column rlnVoltage missing"),
        ("tomograms.star", "_rlnTomoTiltSeriesPixelSize", "_rlnPixel", "rlnTomoTiltSeriesPixelSize missing"),
        ("tomograms.star", "0.1 2.0", "1.1 0", "PixelSize must be positive in row 1"),
        ("tomograms.star", "0.1 2.0", "1.1 0", "rlnAmplitudeContrast must be from 0 to 1 in row 1"),
        ("tomograms.star", "_rlnTomoSizeY", "_rlnSizeY", "SizeX, rlnTomoSizeZ but not rlnTomoSizeY"),
        ("tomograms.star", " 21 11", " 21.5 11", "rlnTomoSizeY is no whole number in row 1 ('21.5')"),
        ("tomograms.star", "TS_2 tilts/TS_2", "007 tilts/007", "rlnTomoName occurs twice in row 2"),
        ("tilts/007.star", "_rlnDefocusU", "_rlnU", "data_007: column rlnDefocusU missing"),
        ("tilts/007.star", "_rlnMicrographPreExposure", "_x", "column rlnMicrographPreExposure missing"),
        ("tilts/007.star", "_rlnTomoZRot", "_rlnZ", "no alignment: neither rlnTomoYTilt"),
        ("tilts/007.star", "31000 30000", "31000 abc", "rlnDefocusV is no finite number in row 2 ('abc')"),
        ("tilts/007.star", "3@images", "4@images", "section number out of range in row 3 ('4')"),
        ("tilts/007.star", "1@images", "0@images", "section number out of range in row 1 ('0')"),
        ("tilts/007.star", "1@images", "images", "holds 3 sections: name one of them"),
        ("tilts/007.star", "_rlnMicrographName", "_rlnName", "data_007: no images"),
        ("particles.star", "_rlnTomoName", "_rlnName", "data_particles: column rlnTomoName missing"),
        ("particles.star", "rlnCenteredCoordinateZAngst", "rlnZ", "data_particles: no coordinates"),
        ("particles.star", "007 4", "nowhere 4", "row 2 of rlnTomoName nowhere, which the"),
        ("particles.star", "5 6", "nan 6", "CoordinateYAngst is no finite number in row 2 ('nan')"),
        ("particles.star", "5 6", "5,0 6", "CoordinateYAngst is no finite number in row 2 ('5,0')"),
        ("particles.star", "5 6", "5 6 7", "line 10: 5 values in a row of 4 columns"),
        ("particles.star", "data_particles", "data_general\n_a 1\ndata_particles", "Are2DStacks missing"),
        ("particles.star", "#4\n", "#4\n_rlnAngleRot #2\n", "values in a row of 5 columns"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_tables(folder, file, old, new, message):
    change(file, old, new)
    assert message in refusal()


def test_missing_files(folder):
    assert refusal(replace(FILES, particles="none.star")).startswith("none.star does not exist")
    assert refusal(replace(FILES, trajectories="m.star")).startswith("m.star does not exist")
    Path("images/007.mrcs").unlink()
    assert f"{folder}/images/007.mrcs does not exist" in refusal(kind=ImageFormatError)
    Path("images/TS_2.mrcs").unlink()
    assert refusal(kind=ImageFormatError).startswith("2 problems:")
    write_stack("images/TS_2.mrcs", np.zeros((3, 22, 32), dtype=np.float32), 2.0)
    for n in (1, 2, 3):
        change("tilts/007.star", f"{n}@images/007.mrcs", f"{n}@images/none.zarr")
    change("tilts/007.star", "_rlnMicrographName", "_tomoTiltSeriesURI")
    assert "images/none.zarr" in refusal(kind=PortalExtractError)


def test_neither_files_nor_a_set(folder):
    assert "give a particle and a tomogram STAR file" in refusal(ProjectFiles("particles.star"), UsageError)
    Path("set.star").write_text("data_\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile ''\n")
    assert "rlnTomoTomogramsFile missing or empty" in refusal(ProjectFiles(optimisation_set="set.star"))


def test_all_problems_are_told_at_once(folder):
    change("tomograms.star", "_rlnTomoHand", "_rlnHand")
    change("tomograms.star", "_rlnVoltage", "_rlnVolt")
    change("particles.star", "007 4", "nowhere 4")
    message = refusal()
    assert message.startswith("3 problems:")
    change("tomograms.star", "_rlnHand", "_rlnTomoHand")
    change("tomograms.star", "_rlnVolt", "_rlnVoltage")
    change("particles.star", "nowhere 4", "007 4")
    change("tilts/007.star", "31000 30000", "inf abc")
    change("tilts/TS_2.star", "3@images", "9@images")
    message = refusal()
    assert message.startswith("3 problems:")
    assert "rlnDefocusU is no finite number in row 2 ('inf')" in message
    assert "section number out of range in row 3 ('9')" in message


def test_truncated_and_unequal_images(folder):
    os.truncate("images/007.mrcs", 5000)
    assert "images/007.mrcs is truncated: 5000 bytes" in refusal(kind=ImageFormatError)
    write_stack("images/007.mrcs", np.zeros((3, 20, 30), dtype=np.float32), 2.0)
    write_stack("images/other.mrcs", np.zeros((3, 20, 31), dtype=np.float32), 2.0)
    change("tilts/007.star", "2@images/007.mrcs", "2@images/other.mrcs")
    assert "the images differ in size" in refusal(kind=ImageFormatError)


def test_trajectories_that_do_not_fit(folder):
    shifts = "loop_\n_rlnOriginXAngst\n_rlnOriginYAngst\n_rlnOriginZAngst\n"
    head = "data_general\n_rlnParticleNumber 3\n"
    names = ("TS_2/1", "007/1", "TS_2/2")
    whole = head + "".join(f"data_{name}\n{shifts}1 2 3\n4 5 6\n7 8 9\n" for name in names)
    files = replace(FILES, trajectories="motion.star")

    def told(text: str) -> str:
        Path("motion.star").write_text(text)
        return refusal(files)

    Path("motion.star").write_text(whole)
    assert read_project(files).particles.trajectories_angst[1][2].tolist() == [7, 8, 9]
    short = whole.replace(f"data_007/1\n{shifts}1 2 3\n", f"data_007/1\n{shifts}")
    assert (
        "motion.star: 2 rows for particle 007/1 (row 2 of the particle table), but its tilt series has 3"
        in told(short)
    )
    assert "no trajectory for 1 particles: 007/1" in told(whole.replace("data_007/1", "data_007/2"))
    assert "rlnParticleNumber is 2, but there are 3" in told(whole.replace("Number 3", "Number 2"))
    assert "data_007/1: a shift is no finite number in row 1" in told(
        whole.replace(f"data_007/1\n{shifts}1", f"data_007/1\n{shifts}nan")
    )
    assert "data_TS_2/1: column rlnOriginXAngst missing" in told(whole.replace("_rlnOriginXAngst", "_x", 1))
    numbered = (
        whole.replace("data_TS_2/1", "data_0")
        .replace("data_007/1", "data_1")
        .replace("data_TS_2/2", "data_2")
    )
    Path("motion.star").write_text(numbered)
    assert len(read_project(files).particles.trajectories_angst) == 3
    assert "2 trajectories for 3 particles" in told(numbered[: numbered.index("data_2")])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("spline", "cubic", "rlnTomoDeformationType 'cubic'; known are linear, spline, Fourier"),
        ("_rlnTomoDeformationType", "_rlnType", "column rlnTomoDeformationType missing"),
        ("_rlnTomoDeformationGridSizeX", "_rlnX", "but not rlnTomoDeformationGridSizeX"),
        ("3            3       spline", "3 4 spline", "72 numbers in row 1; a spline deformation of 3 x 4"),
        ("3            3       spline", "1 3 spline", "at least 2 x 2 are needed"),
        ("3            3       spline", "3 3 Fourier", "has 72 numbers in row 1; a Fourier"),
        ("2            2       linear", "2 2 spline", "has 3 numbers in row 1"),
    ],
)  # fmt: skip
def test_deformations_that_do_not_fit(tmp_path, monkeypatch, old, new, message):
    advanced(tmp_path, monkeypatch)
    change("tomograms.star", old, new)
    assert message in refusal()


def test_deformation_coefficients_missing_or_no_vector(tmp_path, monkeypatch):
    advanced(tmp_path, monkeypatch)
    change("tilt_series/grid2_ts1.star", "[0.000167315838,", "[zero,")
    assert "rlnTomoDeformationCoefficients has no vector in row 1" in refusal()
    change("tilt_series/grid2_ts1.star", "_rlnTomoDeformationCoefficients", "_rlnOther")
    assert "rlnTomoDeformationCoefficients missing, although the global table switches linear" in refusal()


def test_matrices_that_are_none(tmp_path, monkeypatch):
    advanced(tmp_path, monkeypatch)
    change("tilt_series/grid2_ts1.star", "[0,0,0,1]    33.0", "[0,0,1]    33.0")
    assert "rlnTomoProjW has 3 numbers instead of 4 in row 1" in refusal()
    change("tilt_series/grid2_ts1.star", "[0,0,1]    33.0", "0    33.0")
    assert "rlnTomoProjW is no vector of numbers such as [1,2,3] in row 1 ('0')" in refusal()


def test_optics_that_disagree(tmp_path, monkeypatch):
    advanced(tmp_path, monkeypatch)
    change("particles.star", "arctica     2.620000   200.000000", "arctica     2.700000   200.000000")
    message = refusal()
    assert "data_optics: rlnSphericalAberration is 2.7 in row 2 but 2.62 for tomogram grid2_ts1" in message
    assert "problems" not in message


def test_optics_groups_without_a_row(folder):
    change("particles.star", "#4\n", "#4\n_rlnOpticsGroup\n")
    for old, new in ((" 3\n", " 3 1\n"), (" 6\n", " 6 3\n"), (" 9\n", " 9 0\n")):
        change("particles.star", old, new)
    optics = "data_optics\nloop_\n_rlnTomoTiltSeriesPixelSize\n2\n4\n"
    Path("particles.star").write_text(optics + Path("particles.star").read_text())
    assert "rlnOpticsGroup is outside of the 2 rows of data_optics in rows 2 ('3'), 3 ('0')" in refusal()


def test_angles_in_part(folder):
    change("particles.star", "#4\n", "#4\n_rlnAngleRot\n_rlnAngleTilt\n")
    for row in (" 3\n", " 6\n", " 9\n"):
        change("particles.star", row, row[:-1] + " 1 2\n")
    assert "column rlnAnglePsi missing" in refusal()


def test_no_particles(folder):
    Path("particles.star").write_text(PARTICLES[: PARTICLES.index("TS_2 1")])
    assert "there are no particles" in refusal()


# ------------------------------------------------------------------------------------- without files


def test_tables_of_any_source_make_a_project(folder):
    read = read_project(FILES)
    tables = replace(read.tables, tomograms_file=None, tilts=dict(read.tables.tilts))
    seen = []

    def images(tomogram):
        seen.append((tomogram.name, tomogram.row["rlnTomoHand"], len(tomogram.tilts)))
        return ImageStack(("s3://b/x.zarr",) * 3, np.array([4, 5, 6]), (30, 20))

    project = build_project(tables, images)
    assert sorted(seen) == [("007", "-1", 3), ("TS_2", "1", 3)]
    assert project.tilt_series[0].image_stack.sections.tolist() == [4, 5, 6]
    np.testing.assert_array_equal(project.tilt_series[0].projections, read.tilt_series[0].projections)
    with pytest.raises(StarFileError, match="no per-tilt table for TS_2"):
        build_project(replace(tables, tilts={"007": tables.tilts["007"]}), images)


# ------------------------------------------------------------------------------------- paths


def named(folder: Path, *particles: str) -> Project:
    rows = "".join(f"TS_2 {name} 1 2 3\n" for name in particles)
    head = PARTICLES[: PARTICLES.index("TS_2 1")].replace(
        "_rlnTomoName #1", "_rlnTomoName #1\n_rlnTomoParticleName"
    )
    Path("particles.star").write_text(head + rows)
    return read_project(FILES)


def test_paths_of_particles_follow_the_first_name(folder):
    assert stack_paths(named(folder, "TS_2/1", "x/y/z"), "_stack2d.mrcs") == (
        "Subtomograms/TS_2/1_stack2d.mrcs",
        "Subtomograms/x/y/z_stack2d.mrcs",
    )
    assert stack_paths(named(folder, "1", "a/2"), "_data.mrc") == (
        "Subtomograms/TS_2/1_data.mrc",
        "Subtomograms/TS_2/a/2_data.mrc",
    )


def test_the_first_particle_is_that_of_the_first_tilt_series_with_any(folder):
    change("particles.star", "_rlnTomoName #1", "_rlnTomoName #1\n_rlnTomoParticleName")
    for old, new in (("TS_2 1", "TS_2 p/1 1"), ("007 4", "007 2 4"), ("TS_2 7", "TS_2 p/3 7")):
        change("particles.star", old, new)
    assert stack_paths(read_project(FILES), ".mrcs")[0] == "Subtomograms/TS_2/p/1.mrcs"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/abs",
        "a/../b",
        "a//b",
        "a/",
        ".",
        "a/./b",
        "'a b'",
        "a\\b",
        "1@a",
        "a:b",
        "a*",
        "~'",
        "a" * 200,
    ],
)
def test_names_that_are_no_paths_are_refused(folder, name):
    project = named(folder, "good/1", name)
    with pytest.raises(UnsupportedError, match=r"particle table, row 2 .* cannot be a path"):
        stack_paths(project, "_stack2d.mrcs")


@pytest.mark.parametrize("name", ["TS_01/17", "Position_1.2+x-3", "..a/b..", "Größe/1", "[1](2)~3=4,5;6&7!"])
def test_names_that_are_paths(name):
    assert is_safe_name(name)


def test_particles_that_would_share_a_file_are_refused_with_both_rows(folder):
    project = named(folder, "a/1", "a/2", "a/1", "a/2")
    with pytest.raises(UnsupportedError) as error:
        stack_paths(project, "_stack2d.mrcs")
    assert len(error.value.problems) == 2
    assert "rows 1 (a/1) and 3 (a/1) would share one file" in str(error.value)


def test_how_star_files_name_the_output_folder(tmp_path):
    below, outside = tmp_path / "out" / "job", tmp_path.parent / "else"
    assert output_prefix(Path("out/job"), "auto", tmp_path) == "out/job/"
    assert output_prefix(below, "auto", tmp_path) == "out/job/"
    assert output_prefix(below, "relative", tmp_path) == "out/job/"
    assert output_prefix(below, "absolute", tmp_path) == f"{below}/"
    assert output_prefix(outside, "auto", tmp_path) == f"{outside}/"
    assert output_prefix(outside, "relative", tmp_path) == "../else/"
    assert output_prefix(Path("."), "auto", tmp_path) == ""
    assert output_prefix(Path("..") / "else", "auto", tmp_path) == f"{outside}/"
    assert output_prefix(tmp_path.parent / (tmp_path.name + "x"), "auto", tmp_path) == f"{tmp_path}x/"
