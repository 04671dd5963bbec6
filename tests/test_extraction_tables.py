"""The STAR files of an extraction: RELION's tables, labels in RELION's order."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from relion_cases import HERE, SHARED, Case, cases, tool

from portal_extract.geometry import euler_to_matrix
from portal_extract.model import Project
from portal_extract.options import ExtractOptions
from portal_extract.relion_io.extraction_star import (
    ExtractedParticles,
    optics_table,
    particle_table,
    write_extraction_tables,
)
from portal_extract.relion_io.numbers import parse_vector
from portal_extract.relion_io.project_star import write_project_tables
from portal_extract.relion_io.star import read_star
from portal_extract.sources.relion import ProjectFiles, read_project

DATA = HERE / "data" / "relion5"
STARTS = ("stack_", "volume_")
SMALL = [case for start in STARTS for case in cases(DATA, start)]
ALL = [case for start in STARTS for case in cases(SHARED / "relion5", start)]


def options_of(args: tuple[str, ...]) -> ExtractOptions:
    """RELION's arguments to options, as far as the tables depend on them."""

    def value(flag: str, default: float) -> float:
        return float(args[args.index(flag) + 1]) if flag in args else default

    return ExtractOptions(
        box_size=int(value("--b", 0)),
        crop_size=int(value("--crop", 0)) or None,
        binning=value("--bin", 1),
        ctf="--no_ctf" not in args,
        apply_offsets="--dont_apply_offsets" not in args,
        apply_orientations="--apply_orientations" in args,
        mode="stack2d" if "--stack2d" in args else "volume3d",
    )


def files_of(args: tuple[str, ...]) -> ProjectFiles:
    given = dict(pairwise(args))
    return ProjectFiles(given.get("--p"), given.get("--t"), given.get("--mot"), given.get("--i"))


def shifted_coordinates(project: Project) -> np.ndarray:
    particles = project.particles
    rotations = euler_to_matrix(particles.subtomogram_angles_deg)
    return particles.coordinates_angst - np.einsum("nij,nj->ni", rotations, particles.origins_angst)


def kept_as_in(project: Project, expected: Path) -> ExtractedParticles:
    """What the reference kept, with everything else computed here."""
    columns = read_star(expected / "particles.star").block("particles").columns
    row = {name: i for i, name in enumerate(project.particles.names)}
    indices = np.array([row[name] for name in columns["rlnTomoParticleName"]], dtype=np.int64)

    def below(label: str) -> tuple[str, ...]:
        return tuple(name[name.index("Subtomograms/") :] for name in columns[label])

    flags = [parse_vector(text) for text in columns.get("rlnTomoVisibleFrames", [])]
    return ExtractedParticles(
        indices=indices,
        visible=tuple(vector.astype(bool) for vector in flags if vector is not None),
        image_names=below("rlnImageName"),
        weight_names=below("rlnCtfImage") if "rlnCtfImage" in columns else None,
        coordinates_angst=shifted_coordinates(project)[indices],
    )


def check_case(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(case.project)
    project = read_project(files_of(case.args))
    prefix = f"out/{case.name}/"
    notes = write_extraction_tables(
        tmp_path, project, options_of(case.args), kept_as_in(project, case.expected), out_prefix=prefix
    )

    assert notes == ()
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == sorted(file.name for file in case.expected.glob("*.star"))
    for name in written:
        ours, theirs = tmp_path / name, case.expected / name
        result = tool("compare_relion").compare_star(
            ours, theirs, name, 1e-4, (prefix, prefix), strict_columns=True
        )
        assert result.errors == []
        # what RELION formats anew has 5 decimals where it is negative; here it stays as it stood
        assert result.max_diff <= 1.1e-5
        if name != "particles.star":
            assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_tables_of_small_cases(case, tmp_path, monkeypatch):
    check_case(case, tmp_path, monkeypatch)


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_tables_of_all_cases(case, tmp_path, monkeypatch):
    check_case(case, tmp_path, monkeypatch)


# ------------------------------------------------------------------ rules that no case shows


def small_project(monkeypatch, tmp_path, particles: str) -> Project:
    """Two tomograms of two tilts in one stack of 20 x 10 pixels, and the particles given."""
    from portal_extract.relion_io.mrc import write_stack

    monkeypatch.chdir(tmp_path)
    write_stack("s.mrcs", np.arange(400, dtype=np.float32).reshape(2, 10, 20), 2.0)
    tilts = (
        "loop_\n_rlnMicrographName\n_rlnTomoYTilt\n_rlnTomoZRot\n_rlnTomoXShiftAngst\n_rlnTomoYShiftAngst\n"
    )
    tilts += "_rlnDefocusU\n_rlnDefocusV\n_rlnDefocusAngle\n_rlnMicrographPreExposure\n"
    tilts += "1@s.mrcs 0 0 0 0 1 1 0 0\n2@s.mrcs 3 0 0 0 1 1 0 3\n"
    for name in ("b", "a"):
        Path(f"{name}.star").write_text(f"data_{name}\n{tilts}")
    Path("tomograms.star").write_text(
        "data_global\nloop_\n_rlnTomoName\n_rlnTomoTiltSeriesStarFile\n_rlnTomoHand\n_rlnVoltage\n"
        "_rlnSphericalAberration\n_rlnAmplitudeContrast\n_rlnTomoTiltSeriesPixelSize\n"
        "_rlnTomoSizeX\n_rlnTomoSizeY\n_rlnTomoSizeZ\n"
        "b b.star -1 300 2.7 0.1 2.0 20 10 8\na a.star -1 300 2.7 0.1 2.0 20 10 8\n"
    )
    Path("particles.star").write_text(particles)
    return read_project(ProjectFiles("particles.star", "tomograms.star"))


PIXELS = (
    "data_particles\nloop_\n_rlnTomoName\n_rlnCoordinateX\n_rlnFancy\n_rlnCoordinateY\n_rlnCoordinateZ\n"
    "_rlnCtfImage\n"
    "a 1 007 2 3 old_1\nb 4 'x y' 5 6 old_2\na 7 nan 8 9 old_3\n"
)


def all_of(project: Project, **changes) -> ExtractedParticles:
    indices = np.concatenate(project.particles_of)
    extracted = ExtractedParticles(
        indices=indices,
        visible=tuple(np.array([True, False]) for _ in indices),
        image_names=tuple(f"Subtomograms/{project.particles.names[i]}_stack2d.mrcs" for i in indices),
        weight_names=None,
        coordinates_angst=np.array([[-1.5, 0.0, 123456.0]] * len(indices)),
    )
    return replace(extracted, **changes)


def test_pixel_coordinates_become_centred_ones_and_unknown_columns_stay(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    table = particle_table(project, ExtractOptions(box_size=8), all_of(project), "out/")

    assert list(table.labels) == [
        "rlnTomoName", "rlnFancy", "rlnOpticsGroup", "rlnTomoParticleName",
        "rlnTomoVisibleFrames", "rlnImageName",
        "rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst",
        "rlnCenteredCoordinateXAngst", "rlnCenteredCoordinateYAngst", "rlnCenteredCoordinateZAngst",
    ]  # fmt: skip
    assert table["rlnTomoName"] == ["b", "a", "a"]
    assert table["rlnFancy"] == ["x y", "007", "nan"]
    assert table["rlnTomoParticleName"] == ["b/1", "a/1", "a/2"]
    assert table["rlnTomoVisibleFrames"] == ["[1,0]"] * 3
    assert table["rlnImageName"][0] == "out/Subtomograms/b/1_stack2d.mrcs"
    row = table.row(0)
    assert row["rlnCenteredCoordinateXAngst"] == "-1.50000"
    assert row["rlnCenteredCoordinateYAngst"] == "0.000000"
    assert row["rlnCenteredCoordinateZAngst"] == "1.234560e+05"


def test_without_offsets_pixel_coordinates_vanish_as_in_relion_and_the_user_is_told(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    options = ExtractOptions(box_size=8, apply_offsets=False)
    notes = write_extraction_tables(tmp_path / "out", project, options, all_of(project), out_prefix="out/")
    labels = list(read_star("out/particles.star").block("particles").columns)
    assert not any("Coordinate" in label or "Origin" in label for label in labels)
    assert len(notes) == 1
    assert "no coordinates" in notes[0]


def test_volumes_keep_old_flags_and_name_their_weights(tmp_path, monkeypatch):
    text = PIXELS.replace("_rlnFancy", "_rlnTomoVisibleFrames")
    project = small_project(monkeypatch, tmp_path, text)
    options = ExtractOptions(box_size=8, mode="volume3d", ctf=False)
    extracted = all_of(project, weight_names=("w1.mrc", "w2.mrc", "w3.mrc"))
    table = particle_table(project, options, extracted, "out/")

    assert table["rlnTomoVisibleFrames"] == ["x y", "007", "nan"]
    assert table["rlnCtfImage"] == ["out/w1.mrc", "out/w2.mrc", "out/w3.mrc"]
    assert list(table.labels).index("rlnCtfImage") == 2
    optics = optics_table(project.tables.optics, options)
    assert optics["rlnCtfDataAreCtfPremultiplied"] == ["1", "1"]
    assert optics["rlnImageDimensionality"] == ["3", "3"]


def test_no_particle_left_gives_tables_without_rows(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    nothing = ExtractedParticles(np.zeros(0, dtype=np.int64), (), (), None, np.zeros((0, 3)))
    write_extraction_tables(tmp_path / "out", project, ExtractOptions(box_size=8), nothing, out_prefix="out/")
    written = read_star("out/particles.star").block("particles")
    assert len(written) == 0
    assert "rlnImageName" in written.columns


def test_tables_of_another_source_are_written_and_read_back(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    portal = replace(project, tables=replace(project.tables, tomograms_file=None))
    write_extraction_tables(
        tmp_path / "out", portal, ExtractOptions(box_size=8), all_of(project), out_prefix="out/"
    )

    again = read_project(ProjectFiles(optimisation_set="out/optimisation_set.star"))
    assert [series.name for series in again.tilt_series] == ["b", "a"]
    assert again.tables.tomograms["rlnTomoTiltSeriesStarFile"] == [
        "out/tilt_series/b.star",
        "out/tilt_series/a.star",
    ]
    for ours, theirs in zip(again.tilt_series, project.tilt_series, strict=True):
        np.testing.assert_array_equal(ours.projections, theirs.projections)
    assert again.particles.names == ("b/1", "a/1", "a/2")


def test_a_whole_project_written_is_the_project_read(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    write_project_tables(tmp_path / "resolved", project.tables, "resolved/")
    again = read_project(ProjectFiles(optimisation_set="resolved/optimisation_set.star"))
    assert again.tables.particles == project.tables.particles
    assert again.tables.optics == project.tables.optics
    assert again.particles.names == project.particles.names
    np.testing.assert_array_equal(again.particles.coordinates_px, project.particles.coordinates_px)


def test_the_same_project_gives_the_same_bytes(tmp_path, monkeypatch):
    project = small_project(monkeypatch, tmp_path, PIXELS)
    for folder in ("one", "two"):
        write_extraction_tables(
            tmp_path / folder, project, ExtractOptions(box_size=8), all_of(project), out_prefix="out/"
        )
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["optimisation_set.star", "particles.star"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
