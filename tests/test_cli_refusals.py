"""What ``portal-extract local`` refuses: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_project import ARGUMENTS, BOX, SIZES, change, write_motion, write_project

from portal_extract.cli import main
from portal_extract.errors import StarFileError

OUT = ["--output-dir", "out"]
COMMAND = Path(sys.executable).with_name("portal-extract")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small project in the current directory."""
    write_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capfd: pytest.CaptureFixture[str], *arguments: str, out: str = "out") -> list[str]:
    """Run ``local``; give the lines on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(["local", *ARGUMENTS, *BOX, "--output-dir", out, *arguments])
    said = capfd.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert "Traceback" not in said.err
    lines = said.err.splitlines()
    assert lines[0].startswith("portal-extract: ")
    return lines


def cut_short(path: str, n_bytes: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:n_bytes])


def replace(path: str, old: str, new: str) -> Callable[[], None]:
    return lambda: change(Path(path), old, new)


def rename_tomogram(name: str) -> None:
    """Call tomogram 007 otherwise, in all tables; its files keep their names."""
    for path in (Path("particles.star"), Path("tomograms.star")):
        path.write_text(
            path.read_text().replace("007 tilts", f"{name} tilts").replace("007 007/", f"{name} {name}/")
        )
    change(Path("tilts/007.star"), "data_007", f"data_{name}")


#: name: what is done to the project, more arguments, what the sentence must say
PROJECTS: dict[str, tuple[Callable[[], object], list[str], list[str]]] = {
    "no particle file": (
        lambda: Path("particles.star").unlink(),
        [],
        ["particles.star does not exist", "check the path"],
    ),
    "no tomogram file": (lambda: Path("tomograms.star").unlink(), [], ["tomograms.star does not exist"]),
    "no tilt table": (
        lambda: Path("tilts/TS_1.star").unlink(),
        [],
        ["tilts/TS_1.star does not exist", "tomograms.star, data_global, row 1", "relative to"],
    ),
    "no tilt column": (
        replace("tilts/TS_1.star", "_rlnDefocusU", "_rlnOther"),
        [],
        ["tilts/TS_1.star, data_TS_1: column rlnDefocusU missing"],
    ),
    "no particle column": (
        replace("particles.star", "_rlnTomoName", "_rlnOther"),
        [],
        ["particles.star, data_particles: column rlnTomoName missing"],
    ),
    "no block": (
        replace("particles.star", "data_particles", "data_other"),
        [],
        ["particles.star has no block data_particles", "found data_other"],
    ),
    "unknown tomogram": (
        replace("particles.star", "007 007/1", "TS_9 007/1"),
        [],
        ["particles.star, data_particles: row 4", "TS_9", "it has TS_1, 007", "take the particles out"],
    ),
    "section out of range": (
        replace("tilts/007.star", "5@", "6@"),
        [],
        ["tilts/007.star, data_007", "row 5 ('6')", "has sections 1 to 5"],
    ),
    "no number": (
        replace("particles.star", " -20 ", " nan "),
        [],
        ["particles.star, data_particles", "rlnCenteredCoordinateYAngst", "row 2 ('nan')"],
    ),
    "truncated images": (
        lambda: cut_short("images/TS_1.mrcs", 5000),
        [],
        ["images/TS_1.mrcs is truncated: 5000 bytes", "tilts/TS_1.star, data_TS_1, row 1", "copy it again"],
    ),
    "truncated header": (
        lambda: cut_short("images/TS_1.mrcs", 500),
        [],
        ["images/TS_1.mrcs is no MRC file: 500 bytes"],
    ),
    "no images": (
        lambda: Path("images/TS_1.mrcs").unlink(),
        [],
        ["images/TS_1.mrcs does not exist", "tilts/TS_1.star, data_TS_1, row 1"],
    ),
    "trajectory of wrong length": (
        lambda: write_motion(Path(), n_rows=4),
        ["--trajectories-starfile", "motion.star"],
        ["motion.star: 4 rows for particle TS_1/2 (row 2 of the particle table)", "has 5 images"],
    ),
    "unsafe particle name": (
        replace("particles.star", "TS_1/2", "../x"),
        [],
        ["particle table, row 2", "'../x'", "use letters, digits"],
    ),
    "unsafe tomogram name": (lambda: rename_tomogram("../7"), [], ["'../7/", "use letters, digits"]),
    "shared file": (
        replace("particles.star", "TS_1/2", "TS_1/1"),
        [],
        ["particle table, rows 1 (TS_1/1) and 2 (TS_1/1) would share one file", "rlnTomoParticleName"],
    ),
}


@pytest.mark.parametrize("name", PROJECTS)
def test_project(name, folder, capfd):
    prepare, arguments, words = PROJECTS[name]
    prepare()
    (line,) = refused(capfd, *arguments)
    for word in words:
        assert word in line
    assert not Path("out").exists()


#: arguments that replace others, and what the sentence must say
ARGUMENT_REFUSALS = {
    "odd crop": (["--crop-size", "7"], ["--crop-size 7", "even", "use 8"]),
    "crop larger than box": (["--crop-size", "18"], ["--crop-size 18", "--box-size 16"]),
    "binning below 1": (["--bin", "0.5"], ["--bin 0.5", "at least 1"]),
    "binning no number": (["--bin", "nan"], ["--bin nan", "at least 1"]),
    "odd unbinned box": (["--bin", "1.3125"], ["--bin 1.3125", "21 pixels", "choose another box size"]),
    "box no number": (["--box-size", "big"], ["--box-size", "'big'", "portal-extract local --help"]),
    "unknown option": (["--boxsize", "16"], ["--boxsize", "--box-size", "--help"]),
    "no size": (["--memory", "1..2"], ["--memory", "'1..2'", "for example 2GiB"]),
    "too little memory": (["--memory", "1"], ["--memory", "too small", "16MiB"]),
    "offsets contradict": (
        ["--dont-apply-offsets", "--apply-orientations"],
        ["--dont-apply-offsets", "--apply-orientations", "drop one"],
    ),
}


@pytest.mark.parametrize("name", ARGUMENT_REFUSALS)
def test_arguments(name, folder, capfd):
    arguments, words = ARGUMENT_REFUSALS[name]
    (line,) = refused(capfd, *arguments)
    for word in words:
        assert word in line
    assert not Path("out").exists()


def test_an_odd_box_is_refused_with_the_next_even_one(folder, capfd):
    lines = refused(capfd, "--box-size", "17")
    assert any("--box-size 17: must be even" in line and "use 18" in line for line in lines)
    assert not Path("out").exists()


def test_all_problems_of_the_options_at_once(folder, capfd):
    wrong = ["--box-size", "17", "--crop-size", "19", "--bin", "0.5", "--min-frames", "0", "--max-dose", "-2"]
    text = "\n".join(refused(capfd, *wrong))
    assert "6 problems" in text
    for option in ("--box-size 17", "--crop-size 19", "--bin 0.5", "--min-frames 0", "--max-dose -2"):
        assert option in text


def test_all_problems_of_the_tables_at_once(folder, capfd):
    change(Path("tilts/TS_1.star"), "_rlnDefocusU", "_rlnOther")
    change(Path("tilts/007.star"), "5@", "6@")
    change(Path("tilts/007.star"), " 40 3\n", " nan 3\n")
    Path("images/TS_1.mrcs").unlink()
    lines = refused(capfd)
    assert lines[0] == "portal-extract: 4 problems:"
    said = ("section number", "rlnDefocusU", "rlnDefocusAngle", "images/TS_1.mrcs does not exist")
    for word, line in zip(said, lines[1:], strict=True):
        assert line.startswith("  - ")
        assert word in line
    assert not Path("out").exists()


def test_all_missing_images_at_once(folder, capfd):
    for name in SIZES:
        Path(f"images/{name}.mrcs").unlink()
    lines = refused(capfd)
    assert lines[0] == "portal-extract: 2 problems:"
    assert len(lines) == 3
    assert "TS_1.mrcs" in lines[1]
    assert "007.mrcs" in lines[2]


def test_no_project_at_all(folder, capfd):
    with pytest.raises(SystemExit) as ended:
        main(["local", *BOX, *OUT])
    assert ended.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "--particles-starfile and --tomograms-starfile, or --optimisation-set" in line


# ---------------------------------------------------------------------------------- the output folder


def test_a_folder_of_another_program_is_left_alone(folder, capfd):
    Path("out").mkdir()
    Path("out/particles.star").write_text("precious")
    (line,) = refused(capfd)
    assert "out: holds particles.star of another program or run" in line
    assert "--overwrite" in line
    assert [path.name for path in Path("out").iterdir()] == ["particles.star"]
    assert Path("out/particles.star").read_text() == "precious"


def test_a_run_with_other_options_is_left_alone(folder, capfd):
    run = ["local", *ARGUMENTS, *OUT, "--quiet", "--box-size"]
    with pytest.raises(SystemExit) as ended:
        main([*run, "16"])
    assert ended.value.code == 0
    before = {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()}
    (line,) = refused(capfd, "--box-size", "20")
    assert "box_size was 16, is 20" in line
    assert "--overwrite" in line
    assert {path: path.read_bytes() for path in Path("out").rglob("*") if path.is_file()} == before
    with pytest.raises(SystemExit) as ended:
        main([*run, "20", "--overwrite"])
    assert ended.value.code == 0
    stacks = sorted(Path("out/Subtomograms").rglob("*.mrcs"))
    assert [path.stat().st_size for path in stacks] == [1024 + 5 * 20 * 20 * 4] * 4


def test_a_file_in_the_place_of_the_folder(folder, capfd):
    Path("out").write_text("")
    (line,) = refused(capfd)
    assert "'out' is a file" in line
    (line,) = refused(capfd, out="out/below")
    assert line.startswith("portal-extract: out/below: cannot be written")
    assert "choose another --output-dir" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_may_not_be_written(folder, capfd):
    Path("closed").mkdir(mode=0o500)
    (line,) = refused(capfd, out="closed/out")
    assert "cannot be written (Permission denied)" in line
    assert "choose another --output-dir" in line


def test_a_disk_without_room(folder, capfd, monkeypatch):
    from portal_extract.extraction import survey

    usage = type("Usage", (), {"free": 20_000})
    monkeypatch.setattr(survey.shutil, "disk_usage", lambda path: usage)
    (line,) = refused(capfd)
    assert "are free; choose another --output-dir" in line
    assert not Path("out").exists()


# ---------------------------------------------------------------------------------- as installed


def test_the_installed_command_refuses_too(folder):
    Path("images/TS_1.mrcs").unlink()
    done = subprocess.run(
        [COMMAND, "local", *ARGUMENTS, *BOX, *OUT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "images/TS_1.mrcs does not exist" in done.stderr
    assert not Path("out").exists()


def test_debug_shows_where_it_happened(folder):
    Path("particles.star").unlink()
    with pytest.raises(StarFileError, match=r"particles\.star does not exist"):
        main(["local", *ARGUMENTS, *BOX, *OUT, "--debug"])
