"""Kills and signals at random moments: the next run completes, with the bytes of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from running_project import (
    STACKS,
    SUMS,
    assert_same,
    finish,
    kill_all,
    results,
    start,
    wait_until,
    write_many,
)

MODES = {"stacks": STACKS, "sums": SUMS}
LOCAL = ["--scheduler", "local", "--processes", "2"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project, the results of undisturbed runs, and how long their work takes."""
    folder = write_many(tmp_path_factory.mktemp("project"), n_series=8, n_particles=40)
    expected, seconds = {}, {}
    for mode, arguments in MODES.items():
        code, errors = finish(start(folder, [*arguments, "--workers", "1"]))
        assert code == 0, errors
        expected[mode] = results(folder / "out")
        seconds[mode] = json.loads((folder / "out/report/report.json").read_text())["seconds"]
        (folder / "out").rename(folder / f"undisturbed-{mode}")
    return folder, expected, seconds


def fresh(project, name: str, tmp_path: Path) -> Path:
    """The project in a folder of its own; the output has the same name, so the tables are the same."""
    folder = tmp_path / name
    folder.mkdir()
    for entry in ("images", "tilts", "particles.star", "tomograms.star"):
        (folder / entry).symlink_to(project[0] / entry)
    return folder


def has_begun(folder: Path) -> bool:
    return (folder / "out/.journal/run.json").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", [1, 2])
def test_killed_again_and_again(project, tmp_path, mode, seed):
    chance, folder = random.Random(seed), fresh(project, "run", tmp_path)
    for _ in range(3):
        process = start(folder, [*MODES[mode], "--workers", "1"])
        assert wait_until(lambda p=process: has_begun(folder) or p.poll() is not None)
        time.sleep(chance.uniform(0, project[2][mode]))
        kill_all(process)
        process.communicate(timeout=30)
    code, errors = finish(start(folder, MODES[mode]))
    assert code == 0, errors
    assert_same(folder / "out", project[1][mode])


@pytest.mark.parametrize("seed", [4])
def test_the_whole_of_a_local_cluster_is_killed(project, tmp_path, seed):
    chance, folder = random.Random(seed), fresh(project, "run", tmp_path)
    process = start(folder, [*STACKS, *LOCAL])
    stacks = chance.randrange(1, 150)
    assert wait_until(lambda: len(list(folder.glob("out/Subtomograms/*/*.mrcs"))) >= stacks)
    kill_all(process)
    process.communicate(timeout=30)
    code, errors = finish(start(folder, STACKS))
    assert code == 0, errors
    assert_same(folder / "out", project[1]["stacks"])


@pytest.mark.parametrize("seed", [6])
def test_only_the_program_is_killed_and_workers_are_left_behind(project, tmp_path, seed):
    chance, folder = random.Random(seed), fresh(project, "run", tmp_path)
    process = start(folder, [*STACKS, *LOCAL])
    stacks = chance.randrange(1, 150)
    assert wait_until(lambda: len(list(folder.glob("out/Subtomograms/*/*.mrcs"))) >= stacks)
    os.kill(process.pid, signal.SIGKILL)
    code, errors = finish(start(folder, STACKS))
    assert code == 0, errors
    kill_all(process)
    process.communicate(timeout=30)
    assert_same(folder / "out", project[1]["stacks"])


@pytest.mark.parametrize("more", [["--workers", "1"], LOCAL], ids=["threads", "local"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_cleanly(project, tmp_path, number, more):
    folder = fresh(project, "run", tmp_path)
    # the tests may run in the background of a shell, which has its children ignore Control-C
    process = start(folder, [*STACKS, *more], preexec_fn=lambda: signal.signal(number, signal.SIG_DFL))
    assert wait_until(lambda: len(list(folder.glob("out/Subtomograms/*/*.mrcs"))) >= 10)
    # a terminal sends Control-C to the workers too
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    code, errors = finish(process, timeout=30)
    assert code == 128 + number
    assert "interrupted; what is finished is kept: run the same command again to go on" in errors
    assert "Traceback" not in errors
    assert [path.name for path in (folder / "out").rglob("*.part")] == []
    assert not (folder / "out/particles.star").exists()
    code, errors = finish(start(folder, STACKS))
    assert code == 0, errors
    assert_same(folder / "out", project[1]["stacks"])


def test_a_program_that_is_to_ignore_control_c_does(project, tmp_path):
    folder = fresh(project, "run", tmp_path)
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)}
    process = start(folder, [*STACKS, "--workers", "1"], **ignore)
    assert wait_until(lambda: has_begun(folder))
    os.kill(process.pid, signal.SIGINT)
    code, errors = finish(process)
    assert code == 0, errors


def test_two_runs_in_one_folder(project, tmp_path):
    folder = fresh(project, "run", tmp_path)
    first = start(folder, [*STACKS, "--workers", "1"])
    assert wait_until(lambda: has_begun(folder))
    os.kill(first.pid, signal.SIGSTOP)
    try:
        code, errors = finish(start(folder, STACKS))
        assert code == 2
        assert errors == "portal-extract: out: another run is writing here; wait for it to end\n"
        code, errors = finish(start(folder, [*STACKS, "--overwrite"]))
        assert code == 2
        assert "another run is writing here" in errors
    finally:
        os.kill(first.pid, signal.SIGCONT)
    code, errors = finish(first)
    assert code == 0, errors
    assert_same(folder / "out", project[1]["stacks"])


def test_spawned_workers_need_no_guard_in_a_program(project, tmp_path):
    """The command line works from a program that is imported again by each worker process."""
    folder = fresh(project, "run", tmp_path)
    script = folder / "program.py"
    script.write_text(
        "from portal_extract.cli import main\n"
        "if __name__ == '__main__':\n"
        f"    main(['local', *{STACKS!r}, '--output-dir', 'out', *{LOCAL!r}])\n"
    )
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert_same(folder / "out", project[1]["stacks"])
