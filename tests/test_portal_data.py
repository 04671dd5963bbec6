"""Peculiarities of the portal's data: units, joins, gaps, nulls, odd values."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from portal_world import (
    IDENTITY,
    N_SECTIONS,
    TILTS,
    Tables,
    add_annotation,
    in_plane,
    pick,
    resolve,
    row_of,
    serve,
    tomogram,
    world,
)
from scipy.spatial.transform import Rotation

from portal_extract.errors import IneligibleError, PortalError, SourceError, UnsupportedError, UsageError
from portal_extract.geometry import euler_to_matrix, project
from portal_extract.model import TiltSeries
from portal_extract.sources.portal import PortalAssumptions, PortalConnection, PortalFilters
from portal_extract.sources.portal.checks import parse_affine
from portal_extract.sources.portal.eligibility import EligibilityRow
from portal_extract.sources.portal.picks import (
    centred_angst,
    parse_picks,
    relion_angles_deg,
    track_lengths_angst,
)
from portal_extract.sources.portal.sections import in_plane_angle_deg


def resolve_one(folder: Path, tables: Tables, assumptions: PortalAssumptions | None = None) -> TiltSeries:
    with serve(folder, tables) as portal:
        (series,) = resolve(portal, assumptions).project.tilt_series
    return series


def refused(folder: Path, tables: Tables, assumptions: PortalAssumptions | None = None) -> EligibilityRow:
    """Row of a world of one run that cannot be extracted."""
    with serve(folder, tables) as portal, pytest.raises(IneligibleError) as caught:
        resolve(portal, assumptions)
    assert "\n" not in str(caught.value)
    (row,) = caught.value.report.rows
    assert isinstance(row, EligibilityRow)
    assert row.reason in str(caught.value)
    return row


def change(tables: Tables, name: str, z: int | None = None, **values: Any) -> Tables:
    """Change a section (or all rows) of a table."""
    for row in tables[name]:
        if z is None or row["zIndex"] == z:
            row.update(values)
    return tables


def without(tables: Tables, name: str, *sections: int) -> Tables:
    tables[name] = [row for row in tables[name] if row["zIndex"] not in sections]
    return tables


# --- units and joins ------------------------------------------------------------


def test_projection_is_the_formula_of_the_portal(tmp_path: Path) -> None:
    """Image position - centre = R * first_two_rows(Ry(t) Rx(x) r) / p + d, with d in pixels."""
    tables = world()
    series = resolve_one(tmp_path, tables)
    points_angst = np.array([[0.0, 0.0, 0.0], [100.0, -50.0, 30.0], [-222.0, 15.0, 77.0]])
    found = project(series.projections, points_angst / 2.0 + series.centre_px)
    for z in range(N_SECTIONS):
        t, x = np.deg2rad(TILTS[z]), np.deg2rad(0.5)
        rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
        ry = np.array([[np.cos(t), 0, np.sin(t)], [0, 1, 0], [-np.sin(t), 0, np.cos(t)]])
        moved = points_angst @ (ry @ rx).T
        expected = moved[:, :2] @ np.array(in_plane(85.0)).T / 2.0 + [1.5, -2.0 + z] + [200, 190]
        np.testing.assert_allclose(found[:, z, :2], expected, atol=1e-4)


def test_rows_are_joined_by_section_and_frame_in_whatever_order(tmp_path: Path) -> None:
    tables = world()
    rng = np.random.default_rng(3)
    for name in ("PerSectionParameters", "PerSectionAlignmentParameters", "Frame", "Tomogram"):
        tables[name] = [tables[name][i] for i in rng.permutation(len(tables[name]))]
    tables["Frame"].append(tables["Frame"][0] | {"id": 5, "acquisitionOrder": 77, "accumulatedDose": 99.0})
    series = resolve_one(tmp_path, tables)
    assert series.dose_e_per_a2.tolist() == [9.0, 3.0, 0.0, 6.0, 12.0]
    assert series.defocus_u_angst.tolist() == [30000.0 + z for z in range(N_SECTIONS)]
    assert series.image_stack.sections.tolist() == list(range(N_SECTIONS))


def test_phase_shift_is_radians(tmp_path: Path) -> None:
    tables = change(world(), "PerSectionParameters", phaseShift=math.pi / 2)
    assert resolve_one(tmp_path, tables).phase_shift_deg.tolist() == [90.0] * N_SECTIONS


def test_voltage_is_volts_and_optics_are_per_tilt_series(tmp_path: Path) -> None:
    tables = world(3)
    row_of(tables, "Tiltseries", 2002)["pixelSpacing"] = 4.0
    with serve(tmp_path, tables) as portal:
        project = resolve(portal).project
    assert [one.voltage_kv for one in project.tilt_series] == [300.0] * 3
    assert [one.pixel_size_angst for one in project.optics_groups] == [2.0, 4.0, 2.0]
    assert project.particles.optics_group.tolist() == [0, 0, 1, 1, 2, 2]
    assert project.tilt_series[1].tomogram_size_px == (200, 204, 100)


def test_sizes_are_even_tilt_series_pixels(tmp_path: Path) -> None:
    tables = world()
    row_of(tables, "Tomogram", 4001).update(sizeX=101, sizeY=99, sizeZ=51, voxelSpacing=3.0)
    row_of(tables, "Tiltseries", 2001)["pixelSpacing"] = 2.0
    # 151.5 -> 152, 148.5 -> 149 -> 148, 76.5 -> 77 -> 76
    with serve(tmp_path, tables) as portal:
        project = resolve(portal).project
    assert project.tilt_series[0].tomogram_size_px == (152, 148, 76)
    # coordinates are relative to half of the size in voxels, odd or not
    assert project.particles.coordinates_angst[0].tolist() == [
        (20 - 50.5) * 3,
        (30 - 49.5) * 3,
        (25 - 25.5) * 3,
    ]


def test_coordinates_follow_the_voxel_spacing_of_the_file(tmp_path: Path) -> None:
    tables = world()
    tables["TomogramVoxelSpacing"].append(
        tables["TomogramVoxelSpacing"][0] | {"id": 5900, "voxelSpacing": 16.0}
    )
    tables["Tomogram"].append(tomogram(4900, 1001, 3001, 5900, (50, 51, 25)) | {"voxelSpacing": 16.0})
    tables["AnnotationFile"][0]["tomogramVoxelSpacingId"] = 5900  # the annotation itself still says 5001
    with serve(tmp_path, tables) as portal:
        resolution = resolve(portal)
    assert resolution.project.tilt_series[0].name.endswith("_spacing_5900")
    assert resolution.project.particles.coordinates_angst[0].tolist() == [-80.0, 72.0, 200.0]


def test_size_missing_on_the_portal_is_read_from_the_images(tmp_path: Path) -> None:
    tables = world()
    row_of(tables, "Tiltseries", 2001).update(sizeX=None, sizeY=None, sizeZ=None)
    assert "its images do not tell" in refused(tmp_path, tables).reason
    folder = tmp_path / "cryoet-data-portal-public/10/run 1001/TiltSeries/100/run 1001.zarr"
    (folder / "0").mkdir(parents=True)
    data = (
        Path(__file__).parent
        / "data/portal/s3/cryoet-data-portal-public/10493/TS_026/TiltSeries/100/TS_026.zarr"
    )
    (folder / ".zattrs").write_text((data / ".zattrs").read_text())
    zarray = json.loads((data / "0/.zarray").read_text())
    (folder / "0/.zarray").write_text(json.dumps(zarray | {"shape": [N_SECTIONS, 380, 400]}))
    assert resolve_one(tmp_path, tables).image_stack.size_px == (400, 380)
    (folder / "0/.zarray").write_text(json.dumps(zarray | {"shape": [3, 380, 400]}))
    assert "z_index 3" in refused(tmp_path, tables).reason


# --- what is missing ------------------------------------------------------------


def test_sections_that_share_a_ctf_row_are_left_out_and_counted(tmp_path: Path) -> None:
    tables = without(world(), "PerSectionParameters", 3)
    with serve(tmp_path, tables) as portal:
        resolution = resolve(portal)
    (series,) = resolution.project.tilt_series
    assert series.image_stack.sections.tolist() == [0, 1, 2, 4]
    assert series.dose_e_per_a2.tolist() == [9.0, 3.0, 0.0, 12.0]
    (row,) = resolution.report.rows
    assert row.n_tilts == 4
    assert "1 of 5 aligned sections left out" in row.warnings[0]


@pytest.mark.parametrize(("policy", "n_tilts"), [("error", None), ("skip", 3), ("no-ctf", 5)])
def test_sections_without_ctf(tmp_path: Path, policy: Any, n_tilts: int | None) -> None:
    tables = change(
        world(), "PerSectionParameters", 1, majorDefocus=None, minorDefocus=None, astigmaticAngle=None
    )
    change(tables, "PerSectionParameters", 4, majorDefocus=None, minorDefocus=None, astigmaticAngle=None)
    assumptions = PortalAssumptions(on_missing_ctf=policy)
    if n_tilts is None:
        reason = refused(tmp_path, tables, assumptions).reason
        assert "no CTF for 2 of 5 sections, z_index 1, 4" in reason
        assert "--on-missing-ctf skip" in reason
        return
    with serve(tmp_path, tables) as portal:
        resolution = resolve(portal, assumptions)
    (series,) = resolution.project.tilt_series
    assert series.n_tilts == n_tilts
    assert "2 of 5 sections" in resolution.report.rows[0].warnings[0]
    kept = [0, 2, 3] if policy == "skip" else range(5)
    assert series.image_stack.sections.tolist() == list(kept)
    missing = [z in (1, 4) for z in kept]
    assert (series.defocus_u_angst == 0).tolist() == missing


def test_some_runs_go_on_without_the_others(tmp_path: Path) -> None:
    tables = world(3)
    for row in tables["PerSectionParameters"]:
        if row["tiltseriesId"] == 2002:
            row["majorDefocus"] = None
    with serve(tmp_path, tables) as portal:
        resolution = resolve(portal)
    assert [one.name[:8] for one in resolution.project.tilt_series] == ["run_1001", "run_1003"]
    assert resolution.report.ineligible_run_ids == (1002,)
    assert resolution.report.n_picks == len(resolution.project.particles) == 4


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("Tiltseries", {"s3OmezarrDir": None}, "no OME-Zarr"),
        ("Tiltseries", {"isAligned": True}, "already aligned"),
        ("Tiltseries", {"sizeZ": 3}, "z_index 3, 4, but tilt series 2001 has 3 sections"),
        ("Tiltseries", {"pixelSpacing": 0.0}, "pixel spacing of 0"),
        ("Alignment", {"tiltseriesId": None}, "alignment 3001 has no tilt series"),
        (
            "Alignment",
            {"affineTransformationMatrix": "{{1,0,0,0},{0,1,0,0},{0,0,-1,0},{0,0,625,1}}"},
            "flipped",
        ),
        ("Alignment", {"affineTransformationMatrix": "[[1, 0], [0, 1]]"}, "no 4 x 4 matrix"),
        ("Alignment", {"volumeZOffset": 8.0}, "volume offset of 8 A in z"),
        ("Tomogram", {"offsetX": 12}, "cropped"),
        ("Tomogram", {"sizeZ": 0}, "size of"),
        ("Tomogram", {"alignmentId": None}, "no tomogram of alignment 3001 in voxel spacing 5001"),
        ("AnnotationFile", {"alignmentId": 999}, "alignment 999 is not on the portal"),
        ("Frame", {"accumulatedDose": None}, "no dose for 5 of 5 sections"),
        ("PerSectionAlignmentParameters", {"tiltAngle": None}, "no tilt angle for 5 of 5 sections"),
        ("PerSectionAlignmentParameters", {"xOffset": None}, "no x offset"),
        ("PerSectionAlignmentParameters", {"inPlaneRotation": [[0, 0], [0, 0]]}, "no in-plane rotation"),
        ("PerSectionParameters", {"minorDefocus": None}, "no minor defocus"),
    ],
)
def test_what_hinders_extraction_is_told(
    tmp_path: Path, name: str, changes: dict[str, Any], words: str
) -> None:
    tables = world()
    for row in tables[name]:
        row.update(changes)
    assert words in refused(tmp_path, tables).reason


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("PerSectionAlignmentParameters", "alignment 3001 has no sections"),
        ("PerSectionParameters", "tilt series 2001 has no CTF and no dose"),
        ("AnnotationShape", "the portal has no files"),
        ("AnnotationFile", "no ndjson file"),
    ],
)
def test_tables_without_rows_are_told(tmp_path: Path, name: str, words: str) -> None:
    tables = world()
    with serve(tmp_path, tables) as portal:
        assert resolve(portal).report.n_picks == 2
    tables[name] = []
    assert words in refused(tmp_path, tables).reason


def test_frames_missing_is_no_dose(tmp_path: Path) -> None:
    tables = world()
    tables["Frame"] = []
    assert "no dose for 5 of 5 sections" in refused(tmp_path, tables).reason


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    """NaN cannot pass the API's JSON, so it is put in behind it."""
    from portal_extract.sources.portal.rows import AlignedSectionRow, FrameRow, SectionRow
    from portal_extract.sources.portal.sections import _tilt_image

    aligned = AlignedSectionRow(1, 3001, 7, 10.0, 0.0, in_plane(3.0), 1.0, float("nan"))
    ctf = SectionRow(1, 2001, 5, 7, 10.0, float("nan"), 1.0, 2.0, None, None)
    missing: Any = {"y offset": [], "major defocus": []}
    assert _tilt_image(aligned, ctf, FrameRow(5, 1, 0, 3.0), 2.0, missing) is None
    assert missing == {"y offset": [7], "major defocus": [7]}


def test_odd_values_are_warnings(tmp_path: Path) -> None:
    tables = change(world(), "Alignment", tiltOffset=2.5, volumeXDimension=950.0)
    change(tables, "PerSectionAlignmentParameters", 2, inPlaneRotation=[[1.1, 0.0], [0.0, 1.0]])
    for row in tables["Frame"]:
        row["acquisitionOrder"] = 10 - row["acquisitionOrder"]
    with serve(tmp_path, tables) as portal:
        (row,) = resolve(portal).report.rows
    said = " | ".join(row.warnings)
    for words in ("tilt_offset of 2.5", "950 A in x", "shear", "does not rise"):
        assert words in said
    assert row.status == "extract"


def test_aligned_stacks_are_taken_on_demand(tmp_path: Path) -> None:
    tables = change(world(), "Tiltseries", isAligned=True)
    assumptions = PortalAssumptions(allow_aligned=True)
    assert resolve_one(tmp_path, tables, assumptions).n_tilts == N_SECTIONS
    assert any("already aligned" in sentence for sentence in assumptions.sentences())


# --- choices ------------------------------------------------------------


def test_tomograms_of_several_sizes_are_ambiguous(tmp_path: Path) -> None:
    tables = world()
    tables["Tomogram"].append(tomogram(4900, 1001, 3001, 5001))
    with serve(tmp_path, tables) as portal:
        assert resolve(portal).report.n_picks == 2  # equal sizes agree
    tables["Tomogram"].append(tomogram(4901, 1001, 3001, 5001, (90, 102, 50)))
    row = refused(tmp_path, tables)
    assert (row.status, row.option) == ("ambiguous", "--tomogram-ids")
    assert [candidate.split()[0] for candidate in row.candidates] == ["4001", "4900", "4901"]
    with serve(tmp_path, tables) as portal:
        (series,) = resolve(portal, tomogram_ids=(4901,)).project.tilt_series
    assert series.tomogram_size_px == (360, 408, 200)


def test_the_same_picks_in_two_tomograms_are_ambiguous(tmp_path: Path) -> None:
    tables = world()
    tables["Alignment"].append(tables["Alignment"][0] | {"id": 3900})
    tables["PerSectionAlignmentParameters"] += [
        row | {"id": row["id"] + 10**6, "alignmentId": 3900}
        for row in tables["PerSectionAlignmentParameters"]
    ]
    tables["Tomogram"].append(tomogram(4900, 1001, 3900, 5001))
    tables["AnnotationFile"].append(tables["AnnotationFile"][0] | {"id": 8900, "alignmentId": 3900})
    row = refused(tmp_path, tables)
    assert (row.status, row.option) == ("ambiguous", "--alignment-ids")
    assert len(row.candidates) == 2
    with serve(tmp_path, tables) as portal:
        report = resolve(portal, alignment_ids=(3900,)).report
    assert report.file_ids == (8900,)
    tables["AnnotationFile"][-1]["alignmentId"] = 3001  # twice the same place: once is enough
    with serve(tmp_path, tables) as portal:
        assert resolve(portal).report.n_picks == 2


def test_the_only_alignment_must_still_be_chosen(tmp_path: Path) -> None:
    tables = change(world(), "AnnotationFile", alignmentId=None)
    row = refused(tmp_path, tables)
    assert "no alignment id, and the run has one alignment" in row.reason
    assert row.candidates[0].startswith("3001 ")
    with serve(tmp_path, tables) as portal:
        assert resolve(portal, alignment_ids=(3001,)).report.n_picks == 2


def test_voxel_spacing_left_open_is_chosen_by_tomogram(tmp_path: Path) -> None:
    tables = change(world(), "AnnotationFile", tomogramVoxelSpacingId=None)
    tables["TomogramVoxelSpacing"].append(tables["TomogramVoxelSpacing"][0] | {"id": 5900})
    tables["Tomogram"].append(tomogram(4900, 1001, 3001, 5900, (50, 51, 25)) | {"voxelSpacing": 16.0})
    assert refused(tmp_path, tables).option == "--tomogram-ids"
    with serve(tmp_path, tables) as portal:
        (series,) = resolve(portal, tomogram_ids=(4900,)).project.tilt_series
    assert series.name.endswith("_spacing_5900")


# --- picks ------------------------------------------------------------


def test_annotations_of_one_tomogram_are_numbered_through(tmp_path: Path) -> None:
    tables = world(2)
    add_annotation(tables, 6900, run=1, objectName="proteasome, 20S")
    with serve(tmp_path, tables, {6900: [pick(1, 2, 3), pick(4, 5, 6), pick(7, 8, 9)]}) as portal:
        project = resolve(portal).project
    table = project.tables.particles
    first, second = (one.name for one in project.tilt_series)
    assert table["rlnTomoParticleName"] == [f"{first}/{n}" for n in range(1, 6)] + [
        f"{second}/{n}" for n in (1, 2)
    ]
    assert table["portalAnnotationId"] == ["6001"] * 2 + ["6900"] * 3 + ["6002"] * 2
    assert table["portalObjectName"][2] == "proteasome,_20S"
    assert len(project.tilt_series) == 2


def test_picks_of_two_annotations_at_one_place_are_taken_once(tmp_path: Path) -> None:
    tables = world()
    add_annotation(tables, 6900)
    add_annotation(tables, 6901, objectName="vault")
    files = {6900: [pick(20, 30, 25), pick(21, 30, 25), pick(21, 30, 25)], 6901: [pick(20, 30, 25)]}
    with serve(tmp_path, tables, files) as portal:
        report = resolve(portal).report
    assert [row.n_picks for row in report.rows] == [2, 2, 1]
    assert "1 picks left out" in report.rows[1].warnings[-1]
    assert "6001, 6900" in report.warnings[0]
    assert "--annotation-ids" in report.warnings[0]


def test_an_empty_file_is_a_warning_and_counts_nothing(tmp_path: Path) -> None:
    tables = world(2)
    with serve(tmp_path, tables, {8001: ""}) as portal:
        resolution = resolve(portal)
    assert [row.n_picks for row in resolution.report.rows] == [0, 2]
    assert resolution.report.rows[0].warnings == ("the file of picks is empty",)
    assert [one.name[:8] for one in resolution.project.tilt_series] == ["run_1002"]
    with serve(tmp_path, world(), {8001: "\n"}) as portal, pytest.raises(IneligibleError, match="empty"):
        resolve(portal)


def test_picks_outside_of_the_tomogram_are_a_warning(tmp_path: Path) -> None:
    with serve(tmp_path, world(), {8001: [pick(99, 0, 0, np.eye(3)), pick(99.5, 0, 0, np.eye(3))]}) as portal:
        (row,) = resolve(portal).report.rows
    assert "1 picks lie outside" in row.warnings[0]


def test_filaments_get_tubes_and_track_lengths(tmp_path: Path) -> None:
    tables = world()
    tables["AnnotationShape"][0]["shapeType"] = "InstanceSegmentation"
    add_annotation(tables, 6900, shape="InstanceSegmentation", objectName="actin")
    add_annotation(tables, 6901, objectName="vault")
    files = {
        8001: [pick(10, 10, 10, instance=4), pick(50, 50, 20, instance=2), pick(10, 13, 14, instance=4)],
        6900: [pick(1, 1, 1, instance=4)],
        6901: [pick(2, 2, 2)],
    }
    with serve(tmp_path, tables, files) as portal:
        resolution = resolve(portal)
    table = resolution.project.tables.particles
    assert table["rlnHelicalTubeID"] == ["2", "1", "2", "3", "0"]
    assert [float(value) for value in table["rlnHelicalTrackLengthAngst"]] == [0.0, 0.0, 40.0, 0.0, 0.0]
    assert "filaments" in resolution.report.rows[0].warnings[0]


def test_oriented_points_come_before_filaments_before_points(tmp_path: Path) -> None:
    tables = world()
    for number, shape in ((7901, "Point"), (7902, "InstanceSegmentation"), (7903, "SegmentationMask")):
        tables["AnnotationShape"].append({"id": number, "annotationId": 6001, "shapeType": shape})
        file = tables["AnnotationFile"][0] | {"id": number + 1000, "annotationShapeId": number}
        tables["AnnotationFile"].append(file | {"s3Path": file["s3Path"].replace("8001", str(number))})
    files = {8902: [pick(1, 1, 1, instance=1)]}
    with serve(tmp_path, tables, files) as portal:
        assert resolve(portal).report.file_ids == (8001,)
        request = {"dataset_ids": (10,), "no_orientations": True}
        assert resolve(portal, **request).report.file_ids == (8901,)
    tables["AnnotationFile"] = [row for row in tables["AnnotationFile"] if row["id"] not in (8001, 8901)]
    with serve(tmp_path, tables, files) as portal:
        assert resolve(portal).report.file_ids == (8902,)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"type": "point"}', "line 1: not a pick of kind OrientedPoint (no 'location')"),
        (json.dumps(pick(1, 2, 3)), "no 'xyz_rotation_matrix'"),
        (json.dumps(pick(1, 2, 3, np.eye(3))) + "\n{oops", "line 2: not a pick"),
        (json.dumps(pick(1, 2, float("nan"), np.eye(3))), "line 1: a coordinate is no finite number"),
        (json.dumps(pick(1, 2, 3, np.diag([1, 1, -1]))), "the matrix of pick 1 is no rotation"),
        (json.dumps(pick(1, 2, 3, 2 * np.eye(3))), "is no rotation"),
        (json.dumps(pick(1, 2, 3, np.eye(2))), "line 1: not a pick"),
    ],
)
def test_damaged_picks_are_refused_with_file_and_line(tmp_path: Path, text: str, words: str) -> None:
    with serve(tmp_path, world(), {8001: text}) as portal, pytest.raises(IneligibleError) as caught:
        resolve(portal)
    assert words in str(caught.value)
    assert "8001.ndjson" in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-180, 180), min_size=3, max_size=3), st.floats(0, 1e-3), st.integers(0, 1 << 30))
def test_angles_are_those_of_the_transpose_read_as_zyz(angles: list[float], noise: float, seed: int) -> None:
    exact = Rotation.from_euler("ZYZ", angles, degrees=True).as_matrix().T
    rounded = exact + noise * np.random.default_rng(seed).uniform(-1, 1, (3, 3))
    found = relion_angles_deg(rounded[None])
    assert np.isfinite(found).all()
    np.testing.assert_allclose(euler_to_matrix(found)[0], exact, atol=5 * noise + 1e-5)


@pytest.mark.parametrize("tilt", [0.0, 180.0, 1e-7, 180 - 1e-7])
@pytest.mark.parametrize("psi", [0.0, 33.0, -120.0])
def test_degenerate_angles_keep_the_rotation(tilt: float, psi: float) -> None:
    exact = euler_to_matrix([0.0, tilt, psi])
    noisy = exact + 1e-9 * np.random.default_rng(5).uniform(-1, 1, (20, 3, 3))
    found = relion_angles_deg(noisy)
    np.testing.assert_allclose(euler_to_matrix(found), np.broadcast_to(exact, (20, 3, 3)), atol=1e-6)


def test_records_parse_with_and_without_last_line_end() -> None:
    line = json.dumps(pick(1.5, 2, 3)).encode()
    for body in (line, line + b"\n", b"\n" + line + b"\r\n\r\n"):
        assert parse_picks(body, "Point", "x").voxels.tolist() == [[1.5, 2.0, 3.0]]
    with pytest.raises(SourceError, match="line 2"):
        parse_picks(line + b"\n[1]", "Point", "x")


def test_helpers_by_hand() -> None:
    assert centred_angst(np.array([[2.0, 2.0, 2.0]]), (4, 5, 1), 10.0).tolist() == [[0.0, -5.0, 15.0]]
    points = np.array([[0, 0, 0], [9, 9, 9], [3, 4, 0], [3, 4, 12]], dtype=float)
    assert track_lengths_angst(points, np.array([1, 2, 1, 1])).tolist() == [0.0, 0.0, 5.0, 17.0]
    for text in (IDENTITY, "{{1,0,0,0},{0,1,0,0},{0,0,1,0},{0,0,0,1}}"):
        matrix = parse_affine(text)
        assert matrix is not None
        assert np.array_equal(matrix, np.eye(4))
    assert parse_affine("nonsense") is None
    assert in_plane_angle_deg([0.0, -1.0, 1.0, 0.0]) == 90.0
    assert in_plane_angle_deg(in_plane(-93.7)) == pytest.approx(-93.7)
    assert in_plane_angle_deg([[1.0, 0.0]]) is None
    assert in_plane_angle_deg(None) is None


# --- settings ------------------------------------------------------------


def test_requests_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UsageError, match="--run-ids"):
        PortalFilters(ground_truth=True).check()
    with pytest.raises(UsageError, match="--run-ids 0"):
        PortalFilters(run_ids=(0,)).check()
    with pytest.raises(UsageError, match="--annotation-names"):
        PortalFilters(annotation_names=(" ",)).check()
    with pytest.raises(UnsupportedError) as caught:
        PortalAssumptions(0.0, 2.0, -1.0, "maybe").check()  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4


def test_addresses_come_from_the_environment() -> None:
    environment = {"CRYOET_PORTAL_URL": "http://a/graphql", "AWS_ENDPOINT_URL": "http://b"}
    found = PortalConnection.from_environment(environment)
    assert (found.portal_url, found.s3_endpoint_url) == ("http://a/graphql", "http://b")
    environment["AWS_ENDPOINT_URL_S3"] = "http://c"
    found = PortalConnection.from_environment(environment, portal_url="http://d", deadline_s=5.0)
    assert (found.portal_url, found.s3_endpoint_url, found.deadline_s) == ("http://d", "http://c", 5.0)
    assert PortalConnection.from_environment({}).storage == {"anon": True}


def test_a_metadata_deadline_covers_the_files_too(tmp_path: Path) -> None:
    from portal_extract.demo.loopback import Fault
    from portal_extract.sources.portal.objects import read_objects

    with serve(tmp_path, world()) as portal:
        portal.objects.fault = lambda request: Fault(delay_s=20)
        connection = PortalConnection(portal.portal_url, portal.s3_endpoint_url, deadline_s=0.3)
        path = "s3://cryoet-data-portal-public/10/picks 8001/ribosome-1.0_8001.ndjson"
        with pytest.raises(PortalError, match=r"longer than 0\.3 s"):
            read_objects([path], connection)
