"""What a user reads: progress, the closing summary, JSON, the table of what is found, and dry runs."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_project import ARGUMENTS, BOX, change, write_project
from rich.console import Console
from rich.progress import Progress

from portal_extract.cli import main, progress
from portal_extract.cli.dry_run import forecast_table
from portal_extract.cli.progress import Bars, Lines, human_bytes, human_seconds, human_speed
from portal_extract.extraction.forecast import forecast
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.running.events import BytesRead, Note, StageAdvanced, StageFinished, StageStarted
from portal_extract.sources.portal.eligibility import (
    EligibilityReport,
    EligibilityRow,
    UnmatchedRun,
    report_table,
)
from portal_extract.sources.relion import ProjectFiles, read_project

OUT = ["--output-dir", "out"]
EVENTS = [
    StageStarted("extract", 20, "views"),
    BytesRead(1_500_000, 3),
    StageAdvanced("extract", 5),
    BytesRead(500_000, 2, n_retries=1),
    Note("mind the gap", "warning"),
    StageAdvanced("extract", 15),
    StageFinished("extract"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A small project in the current directory, one particle of which no tilt image sees."""
    write_project(tmp_path)
    change(tmp_path / "particles.star", "TS_1 TS_1/3 -30", "TS_1 TS_1/3 -3000")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    return ended.value.code


def local(*arguments: str, out: bool = True) -> int:
    return run("local", *ARGUMENTS, *BOX, *(OUT if out else ()), *arguments)


# ---------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (12_340, "12.3 kB"),
        (2_147_483_648, "2.15 GB"),
        (3e15, "3e+03 TB"),
    ],
)
def test_sizes(n, text):
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (31.4, "31 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_times(seconds, text):
    assert human_seconds(seconds) == text


def test_speeds():
    assert [human_speed(speed) for speed in (0.26, 4.0, 123.4)] == ["0.3", "4.0", "123"]


# ---------------------------------------------------------------------------------- progress


def test_lines_tell_how_far_a_stage_is(capfd, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines()
    for event in EVENTS:
        now[0] += 11.0 if isinstance(event, StageAdvanced) else 0.0
        lines(event)
    assert capfd.readouterr().err.splitlines() == [
        "Extract: 20 views",
        # 5 in 11 s: 33 s for the other 15
        "Extract: 5 of 20 views, 0.5 views/s, 1.5 MB read, 33 s left",
        "warning: mind the gap",
        "Extract: 20 of 20 views, 0.9 views/s, 2 MB read, 1 retried, 0.0 s left",
        "Extract: 20 of 20 views, 0.9 views/s, 2 MB read, 1 retried, done in 22 s",
    ]


def bars_after(events: list[Any]) -> str:
    """What stands on a terminal of 100 columns."""
    live, still = (
        Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None) for _ in range(2)
    )
    with Progress(*progress.bar_columns(), console=live, auto_refresh=False) as shown:
        bars = Bars(shown)
        for event in events:
            bars(event)
        with still.capture() as captured:
            still.print(shown.get_renderable())
    return captured.get()


def test_bars_tell_count_speed_bytes_and_time():
    text = bars_after(EVENTS[:4])
    assert "Extract" in text
    assert "5/20 views" in text
    assert "2 MB read, 1 retried" in text
    assert " left" in text
    done = bars_after(EVENTS)
    assert "20/20 views" in done
    assert " in 0.0 s" in done
    assert max(map(len, done.splitlines())) <= 100


def test_a_stage_that_comes_again_makes_its_bar_longer():
    whiten = [StageStarted("whiten", 3, "tilt images"), StageAdvanced("whiten", 3), StageFinished("whiten")]
    assert bars_after(whiten * 2).count("Whiten") == 1
    assert "6/6 tilt images" in bars_after(whiten * 2)
    assert "3/6 tilt images" in bars_after([*whiten, whiten[0]])


def test_a_stage_without_a_total_only_counts():
    asking = [StageStarted("ask", None, "requests"), StageAdvanced("ask", 7)]
    assert " 7 requests" in bars_after(asking)
    assert "7/7 requests" in bars_after([*asking, StageFinished("ask")])


def test_a_terminal_gets_bars_and_a_summary_that_fits(folder):
    """The installed command in a terminal of 70 columns."""
    controller, terminal = pty.openpty()
    command = [Path(sys.executable).with_name("portal-extract"), "local", *ARGUMENTS, *BOX, *OUT]
    environment = os.environ | {"COLUMNS": "70", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    text = b""
    while True:
        try:
            more = os.read(controller, 65536)
        except OSError:  # the other end is closed
            break
        if not more:
            break
        text += more
    os.close(controller)
    assert process.wait(60) == 0
    shown = text.decode()
    assert "━" in shown
    assert "15/15 views" in shown
    summary = shown[shown.index("Extracted 3 of 4 particles") :].splitlines()
    assert max(map(len, summary[:-2])) <= 70
    assert "relion_refine" in summary[-1]


# ---------------------------------------------------------------------------------- the end


def test_the_summary(folder, capfd):
    assert local() == 0
    said = capfd.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("Extracted 3 of 4 particles (15 images) in ")
    assert lines[0].endswith(" particles/s")
    assert lines[1] == "  skipped 1: outside of every tilt image (TS_1: 1)"
    assert lines[2].startswith("  read ")
    assert " requests, wrote 18.4 kB, peak memory " in lines[2]
    assert lines[-1] == "  relion_refine --o Class3D/run --ios out/optimisation_set.star ..."
    assert Path("out/optimisation_set.star").is_file()
    assert said.err.splitlines()[0] == "Extract: 15 views"
    assert "\x1b" not in said.out + said.err


def test_quiet_says_nothing(folder, capfd):
    assert local("--quiet") == 0
    assert capfd.readouterr() == ("", "")
    assert Path("out/particles.star").is_file()


def test_json_stands_alone_on_standard_output(folder, capfd):
    assert local("--json") == 0
    said = capfd.readouterr()
    summary = json.loads(said.out)
    assert said.err == ""
    assert (summary["particles"], summary["extracted"], summary["views"]) == (4, 3, 15)
    assert summary["skipped"] == {"outside of every tilt image": 1}
    assert summary["skipped_by_tilt_series"] == {"TS_1": {"outside of every tilt image": 1}}
    stacks = list(Path("out/Subtomograms").rglob("*.mrcs"))
    assert summary["bytes_written"] == sum(path.stat().st_size for path in stacks)
    report = json.loads(Path("out/report/report.json").read_text())
    assert report["extracted"] == 3
    assert report["options"]["box_size"] == 16


def test_the_same_command_again_has_nothing_left_to_do(folder, capfd):
    assert local() == 0
    before = {path: path.stat().st_mtime_ns for path in Path("out/Subtomograms").rglob("*.mrcs")}
    capfd.readouterr()
    assert local() == 0
    said = capfd.readouterr()
    assert (
        "3 particles are done from an earlier run" in said.err or "are done from an earlier run" in said.err
    )
    assert {path: path.stat().st_mtime_ns for path in Path("out/Subtomograms").rglob("*.mrcs")} == before
    assert "Extracted 3 of 4 particles" in said.out


# ---------------------------------------------------------------------------------- what is found


def test_the_table_of_what_is_found_fits_100_columns():
    long = "a run with quite a long name, as authors give them"
    rows = (
        EligibilityRow("extract", 17841, long, 41201, "80S ribosome", file_id=63107,
                       shape_type="OrientedPoint", n_picks=12345, n_tilts=41, pixel_size_angst=1.3521,
                       warnings=("two picks are one",)),
        EligibilityRow("ambiguous", 17844, "TS_028", 41207, "[b]ferritin[/b] complex", file_id=63120,
                       shape_type="Point", reason="the run has 2 alignments",
                       candidates=("17458 (IMOD)", "17459 (AreTomo)"), option="--alignment-ids"),
        EligibilityRow("ineligible", 17843, "TS_027", 41205, "membrane", reason="it has no points"),
    )  # fmt: skip
    report = EligibilityReport(
        rows, (UnmatchedRun(17, "x", "no annotation"),), ("handedness -1",), ("overlap",)
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(report_table(report))
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert max(map(len, lines)) <= 100
    text = "\n".join(lines)
    for words in ("will be extracted", "ambiguous", "ineligible", "12345", "1.3521", "[b]ferritin[/b]"):
        assert words in text
    below = [
        line.strip()
        for line in lines[lines.index(next(line for line in lines if line.startswith("└"))) + 1 :]
    ]
    assert any(line.endswith("'membrane': it has no points") for line in below)
    assert "choose by --alignment-ids among" in below
    assert below[-1] == "Assumed: handedness -1"
    for words in (
        "17458 (IMOD)",
        "17459 (AreTomo)",
        "two picks are one",
        "Without match: run 17 (x)",
        "overlap",
    ):
        assert words in "\n".join(below)


# ---------------------------------------------------------------------------------- dry runs


def test_a_dry_run_says_what_a_run_then_does(folder, capfd):
    assert local("--dry-run", "--json") == 0
    planned = json.loads(capfd.readouterr().out)
    assert not Path("out").exists()
    assert local("--json") == 0
    done = json.loads(capfd.readouterr().out)
    for key in ("particles", "extracted", "views", "skipped", "bytes_written", "output_dir"):
        assert planned[key] == done[key], key
    assert planned["dry_run"] is True
    assert planned["memory_bytes"] < 2 << 30
    names = [one["name"] for one in planned["tilt_series"]]
    assert names == ["TS_1", "007"]
    assert sum(one["views"] for one in planned["tilt_series"]) == planned["views"]
    # the stacks are 5 images of 120 x 100 and of 110 x 90 pixels
    assert planned["reading"]["total_bytes"] == 4 * 5 * (120 * 100 + 110 * 90)


def test_a_dry_run_as_text(folder, capfd):
    assert local("--dry-run") == 0
    text = capfd.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "Particles  Images  Chunks  Blocks  Requests",
        "2 of 3",
        "Total: 2 tilt series",
        "Would extract 3 of 4 particles (15 images)",
        "  skipped 1: outside of every tilt image (TS_1: 1)",
        "  write 18.4 kB to out",
        "of the 2.15 GB of --memory",
    ):
        assert words in text
    assert text.splitlines()[-1] == "Nothing was written."
    assert not Path("out").exists()


def test_plan_is_a_dry_run_with_a_bandwidth(folder, capfd):
    assert local("--dry-run", "--json") == 0
    dry = json.loads(capfd.readouterr().out)
    assert run("plan", "local", *ARGUMENTS, *BOX, "--json", "--bandwidth", "1kB") == 0
    plan = json.loads(capfd.readouterr().out)
    assert plan.pop("fetch_seconds") == pytest.approx(dry["reading"]["fetched_bytes"] / 1000)
    seconds = [one.pop("fetch_seconds") for one in plan["tilt_series"]]
    assert seconds == [one["reading"]["fetched_bytes"] / 1000 for one in dry["tilt_series"]]
    assert plan.pop("output_dir") is None
    del dry["output_dir"]
    assert plan == dry
    assert run("plan", "local", *ARGUMENTS, *BOX, "--bandwidth", "1kB") == 0
    said = capfd.readouterr().out
    assert "  fetching takes " in said
    assert re.search(r"Memory +Time\n", said)
    assert sorted(path.name for path in Path().iterdir()) == [
        "images",
        "particles.star",
        "tilts",
        "tomograms.star",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--box-size", "17"], "--box-size 17"),
        (
            ["--box-size", "16", "--output-mode", "volume3d", "--memory", "16MiB", "--workers", "400"],
            "--memory",
        ),
    ],
)
def test_a_dry_run_refuses_what_a_run_would_refuse(arguments, words, folder, capfd):
    assert run("local", *ARGUMENTS, *arguments, *OUT, "--dry-run") == 2
    assert words in capfd.readouterr().err
    Path("particles.star").write_text(Path("particles.star").read_text().replace("TS_1/2", "../x"))
    assert run("local", *ARGUMENTS, *BOX, *OUT, "--dry-run") == 2
    assert "'../x'" in capfd.readouterr().err


def test_a_dry_run_tells_that_there_are_results(folder, capfd):
    assert local("--quiet") == 0
    assert local("--dry-run") == 0
    assert "out holds results" in capfd.readouterr().out
    assert local("--dry-run", "--overwrite") == 0
    assert "out holds results" not in capfd.readouterr().out


def test_a_dry_run_reads_whole_tilt_images_to_whiten(folder):
    project = read_project(ProjectFiles("particles.star", "tomograms.star"))
    plain, whitened = (forecast(project, ExtractOptions(16, whiten=whiten)) for whiten in (False, True))
    assert whitened.n_views == plain.n_views == whitened.reading.views
    whole = plain.reading.total_bytes
    assert whitened.reading.fetched_bytes == plain.reading.fetched_bytes + whole


def test_volumes_are_planned_in_units_that_fit(folder):
    project = read_project(ProjectFiles("particles.star", "tomograms.star"))
    found = forecast(project, ExtractOptions(16, mode="volume3d"), RunOptions(workers=1))
    assert found.n_extracted == 3
    assert found.memory_bytes <= RunOptions().memory_bytes
    # a data volume and the weights, real and imaginary halves side by side
    one = 2 * 1024 + 4 * 16**3 + 4 * 2 * 16 * 16 * 9
    assert found.bytes_written == 3 * one


def test_long_names_have_lines_of_their_own(folder):
    found = forecast(read_project(ProjectFiles("particles.star", "tomograms.star")), ExtractOptions(16))
    name = "run_17841_tiltseries_17207_alignment_17455_spacing_21311"
    renamed = [replace(one, survey=replace(one.survey, name=name)) for one in found.series]
    lines = forecast_table(replace(found, series=tuple(renamed)))
    assert max(map(len, lines)) <= 100
    assert lines[1] == lines[3] == name
    assert lines[2].split()[:3] == ["2", "of", "3"]
    assert lines[5] == "Total: 2 tilt series"
