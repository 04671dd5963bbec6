"""Long runs survive: killed, cut short, spread over processes, with tilt series that fail."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from reconstruct_support import (
    AT_ONCE,
    OPTIONS,
    Told,
    average,
    maps,
    sums_on_disk,
    tables,
    volume,
    without_pictures,
)
from running_project import FILES, load, spoil, write_many

from portal_extract.cli import cli
from portal_extract.errors import ReadError
from portal_extract.options import RunOptions
from portal_extract.reconstruction import tasks
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.reconstruction.fsc import draw_subsets
from portal_extract.reconstruction.summing import Summing, cut_shares
from portal_extract.reconstruction.sums import Sums, find_sums, write_sums
from portal_extract.reconstruction.survey import survey_reconstruction
from portal_extract.running.clients import SchedulerOptions, open_client
from portal_extract.running.events import StageAdvanced
from portal_extract.running.units import UnitResult

N_SERIES = 4
SKIP = RunOptions(on_error="skip", workers=2)


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    without_pictures(monkeypatch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_many(tmp_path_factory.mktemp("project"), n_series=N_SERIES, n_particles=6)


@pytest.fixture(scope="module")
def project(folder):
    return load(folder)


@pytest.fixture(scope="module")
def expected(project, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("expected") / "out"
    average(project, out)
    return out


# ------------------------------------------------------------------------------------- partial sums


def make_sums(stamp: str, seed: int, particles: tuple[int, ...]) -> Sums:
    rng = np.random.default_rng(seed)
    shape = (8, 8, 5)
    data = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    half = Accumulator(data, rng.uniform(size=shape))
    return Sums(stamp, [half], (UnitResult("TS", particles, {particles[0]: "odd"}, 5, 6, 7),))


def test_sums_come_back_as_they_were_and_add_up(tmp_path):
    one, other = make_sums("run", 1, (4, 5, 6)), make_sums("run", 2, (1, 2))
    write_sums(tmp_path / ".sum-b", one)
    write_sums(tmp_path / ".sum-c", other)
    found = find_sums(tmp_path, "run")
    assert [sums.particles for sums in found] == [(1, 2), (4, 5, 6)]
    assert found[1].results == one.results
    total = [Accumulator.empty(8)]
    for sums in found:
        sums.add_to(total)
    np.testing.assert_array_equal(total[0].data, other.halves[0].data + one.halves[0].data)
    np.testing.assert_array_equal(total[0].weight, other.halves[0].weight + one.halves[0].weight)


def test_sums_of_other_runs_and_damaged_ones_do_not_count(tmp_path):
    path = tmp_path / ".sum-a"
    write_sums(path, make_sums("run", 1, (4,)))
    assert find_sums(tmp_path, "another run") == []
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:100], b"", b"{}\n", whole.replace(b"sums 1", b"sums 9", 1)):
        path.write_bytes(content)
        assert find_sums(tmp_path, "run") == []
    path.write_bytes(whole)
    assert len(find_sums(tmp_path, "run")) == 1


# ------------------------------------------------------------------------------------- interruption

SCRIPT = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from reconstruct_support import AT_ONCE, average
from running_project import load
from portal_extract.running.events import StageAdvanced

out, seen = Path({out!r}), 0

def kill(event):
    global seen
    if isinstance(event, StageAdvanced) and event.stage == "extract":
        seen += event.steps
        if seen > {views} and list((out / ".journal").glob(".sum-*")):
            os.kill(os.getpid(), signal.{signal})

average(load(Path({folder!r})), out, observer=kill, **AT_ONCE)
"""


def run_and_kill(folder: Path, out: Path, views: int, name: str) -> int:
    script = SCRIPT.format(
        tests=str(Path(__file__).parent), out=str(out), folder=str(folder), views=views, signal=name
    )
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL, timeout=90).returncode


@pytest.mark.parametrize("views", [45, 100])
def test_killed_between_tilt_series_it_goes_on_to_the_same_bytes(folder, project, expected, tmp_path, views):
    out = tmp_path / "out"
    assert run_and_kill(folder, out, views, "SIGKILL") == -signal.SIGKILL
    assert maps(out) == {}
    assert sums_on_disk(out) == [".sum-checkpoint"]
    told = Told()
    average(project, out, observer=told)
    assert "goes on" in told.notes()
    again = sum(e.steps for e in told.events if isinstance(e, StageAdvanced) and e.stage == "extract")
    assert again == N_SERIES * 6 * 7
    assert maps(out) == maps(expected)
    assert sums_on_disk(out) == []
    assert list(out.rglob("*.part")) == []


def test_killed_while_maps_are_written_it_makes_them_all(project, expected, tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("portal_extract.reconstruction.outputs.write_mrc", full)
        with pytest.raises(KeyboardInterrupt):
            average(project, tmp_path, **AT_ONCE)
    assert maps(tmp_path) == {}
    told = Told()
    average(project, tmp_path, observer=told)
    assert "24 particles are in the sums" in told.notes()
    assert maps(tmp_path) == maps(expected)


def test_interrupted_in_the_middle_of_a_tilt_series(project, expected, tmp_path):
    seen = []

    def stop(event) -> None:
        if isinstance(event, StageAdvanced) and event.stage == "extract":
            seen.append(event)
            if len(seen) == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        average(project, tmp_path, observer=stop, **AT_ONCE)
    average(project, tmp_path)
    assert maps(tmp_path) == maps(expected)


def test_checkpoints_wait_for_their_time(project, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "portal_extract.reconstruction.summing.write_sums", lambda path, sums: written.append(path)
    )
    average(project, tmp_path / "seldom", checkpoint_seconds=1e6)
    assert written == []
    average(project, tmp_path / "often", **AT_ONCE)
    assert len(written) == N_SERIES


def test_sums_of_other_options_are_not_used(project, expected, tmp_path):
    average(project, tmp_path, max_dose_e_per_a2=6.0, **AT_ONCE)
    journal = tmp_path / ".journal"
    write_sums(journal / ".sum-0", make_sums("another", 3, (0,)))
    average(project, tmp_path, run=RunOptions(overwrite=True))
    assert maps(tmp_path) == maps(expected)


# ------------------------------------------------------------------------------------------ failures


@pytest.fixture
def broken(tmp_path):
    """A project whose third tilt series was cut short after it was looked at; and how to mend it."""
    folder = write_many(tmp_path / "project", n_series=N_SERIES, n_particles=6)
    project = load(folder)
    content = spoil(folder, "TS_02")
    return project, lambda: (folder / "images/TS_02.mrcs").write_bytes(content)


def test_a_failure_stops_the_run_and_keeps_the_sums(broken, tmp_path):
    project, mend = broken
    out = tmp_path / "out"
    with pytest.raises(ReadError, match="TS_02"):
        average(project, out, **AT_ONCE)
    (found,) = find_sums_of(out)
    assert [result.label for result in found.results] == ["TS_00", "TS_01"]
    mend()
    average(load(tmp_path / "project"), out, run=RunOptions(overwrite=True))
    assert len(maps(out)) == 9


def find_sums_of(out: Path) -> list:
    path = out / ".journal" / ".sum-checkpoint"
    stamp = json.loads(path.read_bytes().partition(b"\n")[0])["stamp"]
    return find_sums(out / ".journal", stamp)


def test_a_failure_can_be_skipped(broken, tmp_path):
    project, _ = broken
    out, told = tmp_path / "out", Told()
    summary = average(project, out, run=SKIP, observer=told)
    assert [(f.name, f.n_particles) for f in summary.failures] == [("TS_02", 6)]
    assert summary.n_averaged == 18
    assert "TS_02" in told.notes("warning")
    # the maps are those of the other tilt series alone
    keep = np.flatnonzero(project.particles.tilt_series != 2)
    divided = replace(project.particles, random_subset=draw_subsets(24, OPTIONS.seed))
    others = replace(project, particles=divided.take(keep), tables=None)
    average(others, tmp_path / "others", make_subsets=False)
    assert maps(out) == maps(tmp_path / "others")


def test_the_same_command_tries_again_what_failed(project, tmp_path, monkeypatch, expected):
    def fail(stack, *more):
        if "TS_01" in stack.uris[0]:
            raise ReadError("TS_01: no network")
        return real(stack, *more)

    real = tasks.open_patches
    with monkeypatch.context() as patch:
        patch.setattr(tasks, "open_patches", fail)
        summary = average(project, tmp_path, run=SKIP)
    assert summary.n_averaged == 18
    assert sums_on_disk(tmp_path) == [".sum-checkpoint"]
    summary = average(project, tmp_path, run=SKIP)
    assert summary.n_averaged == 24
    assert not summary.failures
    for name in ("half1", "half2", "merged"):
        found, wanted = volume(tmp_path, name), volume(expected, name)
        np.testing.assert_allclose(found, wanted, atol=1e-5 * wanted.std())


# ------------------------------------------------------------------------------------------- cluster


@pytest.mark.parametrize("n_slots", [1, 2, 3, 9])
def test_shares_hold_each_particle_once_and_cut_no_series_without_need(project, n_slots):
    survey = survey_reconstruction(project, replace(OPTIONS, make_subsets=False), RunOptions())
    shares = cut_shares(survey.parts, n_slots)
    held = [i for share in shares for part in share for i in part.particles]
    assert sorted(held) == list(range(24))
    assert len(shares) >= min(n_slots, N_SERIES)
    n_pieces = sum(map(len, shares))
    assert n_pieces == N_SERIES if n_slots <= N_SERIES else n_pieces > N_SERIES
    for share in shares:
        for part in share:
            names = [project.particles.names[i] for i in part.particles]
            assert part.project.particles.names == tuple(names)


def test_a_cluster_gives_the_same_maps_each_time(project, expected, tmp_path):
    told = Told()
    with open_client(SchedulerOptions("local", processes=2, threads=1)) as client:
        for name in ("one", "two"):
            average(project, tmp_path / name, client=client, observer=told)
    assert maps(tmp_path / "one") == maps(tmp_path / "two")
    assert tables(tmp_path / "one").keys() == tables(expected).keys()
    for name in ("half1", "half2", "merged"):
        found, wanted = volume(tmp_path / "one", name), volume(expected, name)
        np.testing.assert_allclose(found, wanted, atol=1e-6 * wanted.std())
    assert sums_on_disk(tmp_path / "one") == []


def test_a_cluster_skips_one_tilt_series_of_a_share(broken, tmp_path):
    project, _ = broken
    with open_client(SchedulerOptions("local", processes=1, threads=1)) as client:
        summary = average(project, tmp_path / "out", run=SKIP, client=client)
    assert [(f.name, f.n_particles) for f in summary.failures] == [("TS_02", 6)]
    assert summary.n_averaged == 18


def test_threads_go_on_where_a_cluster_stopped(project, expected, tmp_path, monkeypatch):
    def stop(self, *_args):
        raise KeyboardInterrupt

    with open_client(SchedulerOptions("local", processes=1, threads=1)) as client, monkeypatch.context() as p:
        p.setattr(Summing, "_add", stop)
        with pytest.raises(KeyboardInterrupt):
            average(project, tmp_path, client=client)
    assert len(sums_on_disk(tmp_path)) >= 2
    average(project, tmp_path)
    np.testing.assert_allclose(volume(tmp_path), volume(expected), atol=1e-6 * volume(expected).std())


# ------------------------------------------------------------------------------------------ command


def test_the_command_line_goes_on_by_itself(folder, expected, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert run_and_kill(folder, out, 45, "SIGKILL") == -signal.SIGKILL
    monkeypatch.chdir(folder)
    arguments = ["reconstruct", "local", *FILES, "--box-size", "16", "--taper", "3", "--make-subsets"]
    cli.main([*arguments, "--seed", "5", "-o", str(out), "--quiet"], standalone_mode=False)
    assert maps(out) == maps(expected)
    assert OPTIONS.seed == 5
