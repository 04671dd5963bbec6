"""``portal-extract reconstruct`` at the command line: help, plan, summary, refusals, option files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from reconstruct_support import maps, without_pictures
from running_project import FILES, spoil, write_many

from portal_extract.cli import cli, main

BOX = ["--box-size", "16", "--taper", "3"]
BASE = ["reconstruct", "local", *FILES, *BOX]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    without_pictures(monkeypatch)
    write_many(tmp_path, n_series=2, n_particles=5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str):
    return CliRunner().invoke(cli, [*BASE, *arguments], catch_exceptions=False)


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["reconstruct", *arguments])
    assert caught.value.code == 2
    assert not Path("out").exists()
    return capsys.readouterr().err


def test_every_option_of_relion_is_named_in_the_help():
    text = CliRunner().invoke(cli, ["reconstruct", "local", "--help"]).output
    for name in (
        "--i", "--p", "--t", "--mot", "--b", "--crop", "--bin", "--whiten", "--no_ctf", "--taper", "--SNR",
        "--sym", "--nr_helical_asu", "--helical_rise", "--helical_twist", "--no_circle_crop",
        "--cutoff_fract", "--o", "--only_do_unfinished",
    ):  # fmt: skip
        assert f"[{name}]" in text, name


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from portal_extract.cli import cli\n"
        "cli.main(['reconstruct', 'data-portal', '--help'], standalone_mode=False)\n"
        "print(*sorted(sys.modules))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    imported = set(told.splitlines()[-1].split())
    assert "portal_extract.cli.reconstruct" in imported
    assert not imported & {"numpy", "numba", "scipy", "pandas", "matplotlib", "distributed"}


def test_closing_summary_tells_what_was_done_and_what_comes_next():
    told = run("--make-subsets", "-o", "out").output
    assert "Averaged 10 of 10 particles (70 images) in half sets of 5 and 5" in told
    assert "whatever rlnTomoVisibleFrames says" in told
    assert "(FSC 0.143)" in told
    assert "out/merged.mrc" in told
    assert "relion_postprocess --i out/half1.mrc" in told
    assert len(maps(Path("out"))) == 9


def test_summary_as_json_alone_on_standard_output():
    found = json.loads(run("--make-subsets", "-o", "out", "--json").stdout)
    assert found["averaged"] == 10
    assert found["half_sets"] == [{"particles": 5, "views": 35}] * 2
    assert found["bytes_read"] > 0
    report = json.loads(Path("out/report/report.json").read_text())
    assert report["averaged"] == 10


def test_dry_run_reads_and_writes_nothing():
    told = run("-o", "out", "--dry-run").output
    assert "Would average 10 of 10 particles (70 images): no half sets" in told
    assert "weight_merged.mrc" in told
    found = json.loads(run("-o", "out", "--dry-run", "--make-subsets", "--json").stdout)
    assert found["views"] == 70
    assert found["reading"]["views"] == 70
    assert len(found["maps"]) == 9
    assert found["bytes_written"] == 9 * (1024 + 4 * 16**3)
    assert not Path("out").exists()


def test_overwrite_and_resume():
    run("-o", "out", "--quiet")
    first = maps(Path("out"))
    run("-o", "out", "--quiet", "--resume")
    assert maps(Path("out")) == first
    again = CliRunner().invoke(cli, [*BASE, "--no-ctf", "-o", "out", "--overwrite"], catch_exceptions=False)
    assert again.exit_code == 0
    assert maps(Path("out")) != first


def test_failures_that_are_skipped_end_with_3(folder, monkeypatch):
    from portal_extract.sources.relion import files

    real = files.read_project
    monkeypatch.setattr(
        "portal_extract.sources.relion.read_project",
        lambda *given: (real(*given), spoil(folder, "TS_01"))[0],
    )
    found = CliRunner().invoke(cli, [*BASE, "-o", "out", "--on-error", "skip"])
    assert found.exit_code == 3
    assert "failed: TS_01, 5 particles" in found.output


def test_options_from_a_file():
    Path("o.toml").write_text("memory = '1GiB'\n[reconstruct]\nbox-size = 16\nmake-subsets = true\n")
    arguments = ["reconstruct", "local", *FILES, "--config", "o.toml", "-o", "out", "--json"]
    found = json.loads(CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout)
    assert len(found["half_sets"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["local", *BOX, "-o", "out"], ["nothing to average", "--optimisation-set"]),
        (["local", *FILES, "-o", "out"], ["--box-size is missing"]),
        (["local", *FILES, *BOX, "--sym", "Q3", "-o", "out"], ["--sym Q3"]),
        (["local", *FILES, *BOX, "--whiten", "--no-ctf", "-o", "out"], ["--whiten with --no-ctf"]),
        (["local", *FILES, *BOX, "--replace-subsets", "-o", "out"], ["--make-subsets"]),
        (["local", *FILES, *BOX, "--visible-frames", "stored", "-o", "out"], ["rlnTomoVisibleFrames"]),
        (["local", *FILES, *BOX, "--mask", "none.mrc", "-o", "out"], ["none.mrc"]),
        (["local", *FILES, "--box-size", "600", "-o", "out"], ["--box-size 600", "--memory is 2.00 GiB"]),
        (["data-portal", "--box-size", "7", "-o", "out"], ["--box-size 7"]),
    ],
)
def test_refusals_are_one_sentence(capsys, arguments, words):
    told = refused(capsys, *arguments)
    assert told.startswith("portal-extract: ")
    assert all(word in told for word in words), told
    assert "Traceback" not in told
