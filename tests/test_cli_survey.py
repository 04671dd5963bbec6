"""What is said before a pixel is read: particles that no image sees, and where they fall."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_project import ARGUMENTS, BOX, PARTICLES, write_project

from portal_extract.cli import main
from portal_extract.errors import IneligibleError, OutputError
from portal_extract.extraction.summary import SeriesSurvey
from portal_extract.extraction.survey import (
    count_reasons,
    outside_warnings,
    refuse_hopeless,
    survey_project,
    written_bytes,
)
from portal_extract.extraction.views import OUTSIDE
from portal_extract.options import ExtractOptions, VolumeOptions
from portal_extract.sources.relion import ProjectFiles, read_project

OPTIONS = ExtractOptions(16)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def move(*names: str, x_angst: float) -> None:
    """Put particles elsewhere."""
    lines = Path("particles.star").read_text().splitlines()
    for row, (tomogram, name, _, y, z) in enumerate(PARTICLES):
        if name in names:
            index = len(lines) - len(PARTICLES) + row
            assert lines[index].split()[1] == name
            lines[index] = f"{tomogram} {name} {x_angst} {y} {z}"
    Path("particles.star").write_text("\n".join(lines) + "\n")


def surveyed() -> list[SeriesSurvey]:
    return survey_project(read_project(ProjectFiles("particles.star", "tomograms.star")), OPTIONS)


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["local", *ARGUMENTS, *BOX, "--output-dir", "out", *arguments])
    return ended.value.code


def test_all_particles_inside_are_no_news(folder):
    survey = surveyed()
    assert [(one.name, one.n_particles, one.n_kept, one.n_views) for one in survey] == [
        ("TS_1", 3, 3, 15),
        ("007", 1, 1, 5),
    ]
    assert [one.diagnosis for one in survey] == [None, None]
    assert outside_warnings(survey) == []


def test_when_all_are_outside_it_is_told_where_they_fall(folder, capfd):
    """Coordinates in a wrong unit, say: 10 times too large."""
    move("TS_1/1", "TS_1/2", "TS_1/3", x_angst=4000.0)
    move("007/1", x_angst=-4000.0)
    assert run() == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "No particle is left to extract: 4 outside of every tilt image" in line
    assert "the images are 120 x 100 and a particle must stay 8 pixels from their edges" in line
    assert "check the unit of the coordinates, the pixel size and the size of the tomogram" in line
    assert not Path("out").exists()


def test_the_places_told_are_those_of_the_particles(folder):
    """The tilt axis is 85 degrees from x: in the untilted image x becomes y with a sign."""
    move("TS_1/1", "TS_1/2", "TS_1/3", x_angst=4000.0)
    (diagnosis, _) = (one.diagnosis for one in surveyed())
    words = diagnosis.split()
    (x0, x1), (y0, y1) = (
        [float(value) for value in words[words.index(axis) + 1].rstrip(",").split("..")] for axis in "xy"
    )
    # 2000 pixels from the centre, times the cosine of tilts up to 40 degrees
    reach = max(np.hypot(x0 - 60, y0 - 50), np.hypot(x0 - 60, y1 - 50))
    assert 1900 < reach < 2100
    assert x1 - x0 < 250


def test_more_than_half_outside_is_a_warning(folder, capfd):
    move("TS_1/1", "TS_1/2", x_angst=4000.0)
    assert run() == 0
    said = capfd.readouterr()
    (warning,) = [line for line in said.err.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(
        "warning: 2 of 3 particles are outside of every tilt image. TS_1: particles project"
    )
    assert "Extracted 2 of 4 particles" in said.out


def test_half_outside_is_none(folder, capfd):
    move("TS_1/1", x_angst=4000.0)
    assert run("--dry-run") == 0
    assert "warning" not in capfd.readouterr().err


def test_a_dry_run_warns_too(folder, capfd):
    move("007/1", x_angst=4000.0)
    assert run("--dry-run") == 0
    assert "warning: 1 of 1 particles are outside of every tilt image. 007: " in capfd.readouterr().err


def test_many_warnings_become_few():
    outside = SeriesSurvey("TS", 3, 1, 5, {OUTSIDE: np.array([1, 2])}, "TS: they are there")
    warnings = outside_warnings([outside] * 9)
    assert len(warnings) == 6
    assert warnings[0] == "2 of 3 particles are outside of every tilt image. TS: they are there"
    assert warnings[-1] == "the same of 4 more tilt series"


def test_reasons_are_counted_over_tilt_series():
    one = SeriesSurvey("a", 5, 2, 9, {OUTSIDE: np.array([1]), "few": np.array([2, 3])})
    other = SeriesSurvey("b", 5, 4, 9, {"few": np.array([7])})
    assert count_reasons([one, other]) == {OUTSIDE: 1, "few": 3}


def test_dose_and_frames_are_told_apart(folder):
    """Tilt images have 0, 3, 6, 9 and 12 e/A^2."""
    project = read_project(ProjectFiles("particles.star", "tomograms.star"))
    survey = survey_project(project, ExtractOptions(16, max_dose_e_per_a2=4, min_frames=3))
    assert count_reasons(survey) == {"seen by fewer than 3 tilt images within the dose limit": 4}
    with pytest.raises(IneligibleError, match="4 seen by fewer than 3 tilt images within the dose limit"):
        refuse_hopeless(survey, 0, folder)


def test_results_must_fit_on_the_disk(folder, monkeypatch):
    from portal_extract.extraction import survey as module

    survey = surveyed()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10_000}))
    refuse_hopeless(survey, 10_000, folder / "not" / "yet" / "there")
    with pytest.raises(OutputError, match="choose another --output-dir"):
        refuse_hopeless(survey, 10_001, folder)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (ExtractOptions(16), 7 * 16 * 16 * 4 + 2 * 1024),
        (ExtractOptions(16, crop_size=12, float16=True), 7 * 12 * 12 * 2 + 2 * 1024),
        (ExtractOptions(16, mode="volume3d", volume=VolumeOptions(write_particles=False)), 0),
    ],
)
def test_size_of_the_results(options, expected):
    assert written_bytes(options, n_particles=2, n_views=7) == expected
