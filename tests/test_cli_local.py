"""``portal-extract local`` as it is used: what is read, where it is written, how files are named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_project import ARGUMENTS, BOX, N_TILTS, PARTICLES, change, write_motion, write_project

from portal_extract.cli import main
from portal_extract.relion_io.star import read_star

STACKS = [f"Subtomograms/{tomogram}/{name.split('/')[1]}_stack2d.mrcs" for tomogram, name, *_ in PARTICLES]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    project = tmp_path / "project"
    write_project(project)
    monkeypatch.chdir(project)
    return project


def local(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["local", *BOX, "--quiet", *arguments])
    assert ended.value.code == 0


def column(star: str, block: str, label: str) -> list[str]:
    values: list[str] = read_star(star).block(block).table()[label]
    return values


def stacks(out: str) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in Path(out).rglob("*.mrcs")}


def test_relions_layout_and_nothing_else(folder):
    local(*ARGUMENTS, "--output-dir", "Extract/job001")
    found = {str(p.relative_to("Extract/job001")) for p in Path("Extract/job001").rglob("*") if p.is_file()}
    tables = {"particles.star", "optimisation_set.star", "report/report.json"}
    assert {path for path in found if not path.startswith(".journal/")} == tables | set(STACKS)
    for path in STACKS:
        assert Path("Extract/job001", path).stat().st_size == 1024 + N_TILTS * 16 * 16 * 4
    values = read_star("Extract/job001/optimisation_set.star").block("").values()
    assert values["rlnTomoParticlesFile"] == "Extract/job001/particles.star"
    assert values["rlnTomoTomogramsFile"] == "tomograms.star"


def test_unknown_columns_and_odd_names_travel_through(folder):
    """A name that looks like a number stays a name; a column that nobody knows stays as it is."""
    change(Path("particles.star"), "#5\n", "#5\n_mySpecialScore #6\n")
    text = Path("particles.star").read_text().splitlines()
    rows = [
        f"{line} 1.{n}00e-3" if line.startswith(("TS_1 ", "007 ")) else line for n, line in enumerate(text)
    ]
    Path("particles.star").write_text("\n".join(rows) + "\n")
    scores = [line.split()[-1] for line in rows if line.startswith(("TS_1 ", "007 "))]
    assert len(scores) == 4
    local(*ARGUMENTS, "--output-dir", "out")
    assert column("out/particles.star", "particles", "mySpecialScore") == scores
    assert column("out/particles.star", "particles", "rlnTomoName") == ["TS_1", "TS_1", "TS_1", "007"]
    assert column("out/particles.star", "particles", "rlnTomoParticleName")[3] == "007/1"


@pytest.mark.parametrize(
    ("style", "out", "expected"),
    [
        ("auto", "out", "out/"),
        ("relative", "out", "out/"),
        ("absolute", "out", "{here}/out/"),
        ("auto", "../elsewhere/out", "{parent}/elsewhere/out/"),
        ("relative", "../elsewhere/out", "../elsewhere/out/"),
        ("auto", "{here}/out", "out/"),
    ],
)
def test_how_files_are_named(style, out, expected, folder):
    here = {"here": str(folder), "parent": str(folder.parent)}
    local(*ARGUMENTS, "--output-dir", out.format(**here), "--paths", style)
    prefix = expected.format(**here)
    names = column(f"{out.format(**here)}/particles.star", "particles", "rlnImageName")
    assert names == [prefix + path for path in STACKS]
    assert all(Path(name).is_file() for name in names)


def test_an_optimisation_set_is_the_same_as_its_files(folder):
    write_motion(folder)
    Path("set.star").write_text(
        "data_\n_rlnTomoParticlesFile particles.star\n_rlnTomoTomogramsFile tomograms.star\n"
        "_rlnTomoTrajectoriesFile motion.star\n"
    )
    local(*ARGUMENTS, "--trajectories-starfile", "motion.star", "--output-dir", "by_files")
    local("--optimisation-set", "set.star", "--output-dir", "by_set")
    assert len(stacks("by_files")) == 4
    assert stacks("by_files") == stacks("by_set")
    local(*ARGUMENTS, "--output-dir", "unmoved")
    # all particles move by half an Angstrom, the pixel is 2 A
    assert stacks("unmoved").keys() == stacks("by_files").keys()
    assert all(stacks("unmoved")[path] != stacks("by_files")[path] for path in STACKS)


def test_from_another_folder(folder, tmp_path, monkeypatch):
    local(*ARGUMENTS, "--output-dir", "out")
    expected = stacks("out")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    tables = [
        "--particles-starfile",
        f"{folder}/particles.star",
        "--tomograms-starfile",
        f"{folder}/tomograms.star",
    ]
    local(*tables, "--tiltseries-relative-dir", str(folder), "--output-dir", "out")
    assert stacks("out") == expected


def test_options_reach_the_extraction(folder):
    """Each switch changes voxels or form; one that did nothing would fail here."""
    local(*ARGUMENTS, "--output-dir", "plain")
    plain = stacks("plain")
    first = STACKS[0]
    for number, arguments in enumerate(
        (
            ["--no-ctf"], ["--no-circle-crop"], ["--circle-precrop"], ["--no-ic"], ["--whiten"],
            ["--grid-precorr"], ["--bin", "1.5"], ["--crop-size", "12"], ["--float16"], ["--max-dose", "4"],
        )
    ):  # fmt: skip
        local(*ARGUMENTS, *arguments, "--output-dir", f"out{number}")
        assert stacks(f"out{number}")[first] != plain[first], arguments
    inverted = np.frombuffer(stacks("out3")[first][1024:], "<f4")
    np.testing.assert_allclose(inverted, -np.frombuffer(plain[first][1024:], "<f4"), atol=1e-5)
    assert len(stacks("out8")[first]) == 1024 + N_TILTS * 16 * 16 * 2
    assert len(stacks("out9")[first]) == 1024 + 2 * 16 * 16 * 4
