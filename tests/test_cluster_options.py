"""Where the work is done: options, files, messages; and jobs of a batch system that is none."""

from __future__ import annotations

import json
import os
import stat
import tomllib
from pathlib import Path

import click
import pytest
from running_project import STACKS, assert_same, finish, results, start, write_many

from portal_extract.cli import cli
from portal_extract.cli.cluster import chosen_scheduler
from portal_extract.errors import UsageError
from portal_extract.running.clients import CLUSTERS, SchedulerOptions, open_client

CONFIGS = Path(__file__).parents[1] / "configs"
NEEDED = ["--box-size", "16", "--output-dir", "out"]


def chosen(*arguments: str) -> SchedulerOptions:
    parent = click.Context(cli, info_name="portal-extract")
    command = cli.get_command(parent, "local")
    with command.make_context("local", [*NEEDED, *arguments], parent=parent) as context:
        return chosen_scheduler(context.params)


def test_threads_need_no_client():
    assert chosen() == SchedulerOptions()
    with open_client(SchedulerOptions()) as client:
        assert client is None


def test_options_of_the_command_line():
    local = chosen("--scheduler", "local", "--processes", "3", "--workers", "2")
    assert (local.scheduler, local.processes, local.threads) == ("local", 3, 2)
    assert chosen("--scheduler", "tcp://10.0.0.1:8786").scheduler == "tcp://10.0.0.1:8786"
    assert chosen("--cluster", "lsf").cluster == "lsf"


def test_a_table_of_the_option_file_names_the_cluster_and_the_command_line_wins(tmp_path):
    path = tmp_path / "options.toml"
    path.write_text("bin = 2\n[cluster]\nkind = 'slurm'\njobs = 3\ncores = 8\n")
    found = chosen("--config", str(path))
    assert found.cluster == "slurm"
    assert found.settings == {"kind": "slurm", "jobs": 3, "cores": 8}
    assert chosen("--config", str(path), "--cluster", "pbs").cluster == "pbs"
    assert chosen("--config", str(path), "--scheduler", "threads") == SchedulerOptions()
    path.write_text("[cluster]\nkind = 'slum'\n")
    with pytest.raises(UsageError, match=r"--cluster slum: is none of slurm, lsf"):
        chosen("--config", str(path))


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_examples(path):
    content = tomllib.loads(path.read_text())
    if "cluster" not in content:
        return
    found = chosen("--config", str(path))
    assert found.cluster == path.stem
    assert found.settings == content["cluster"]
    # the memory of the worker processes fits the jobs
    memory = {"GiB": 1 << 30}[content["memory"][-3:]] * int(content["memory"][:-3])
    assert memory * content["cluster"]["processes"] < int(content["cluster"]["memory"][:-2]) * 10**9


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.name)
def test_examples_are_jobs_of_their_batch_system(path):
    jobqueue = pytest.importorskip("dask_jobqueue")
    settings = tomllib.loads(path.read_text()).get("cluster")
    if settings is None:
        return
    kind = settings.pop("kind")
    assert settings.pop("jobs") == 8
    with getattr(jobqueue, CLUSTERS[kind][1])(
        **settings, scheduler_options={"dashboard_address": ":0"}
    ) as cluster:
        script = cluster.job_script()
    assert "--nthreads 4" in script
    assert "--nworkers 4" in script
    assert "--lifetime 230m" in script


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (SchedulerOptions("thread"), "--scheduler thread: write threads, local, an address"),
        (SchedulerOptions("nowhere.json"), r"--scheduler nowhere\.json: no such file"),
        (SchedulerOptions(cluster="cray"), "--cluster cray: is none of slurm"),
        (SchedulerOptions("local", cluster="slurm"), "--cluster starts a scheduler of its own"),
        (SchedulerOptions(processes=2), "--processes belongs to --scheduler local"),
        (SchedulerOptions(dashboard=True), "--dask-dashboard needs dask: add --scheduler or --cluster"),
    ],
)
def test_what_makes_no_sense(options, said):
    with pytest.raises(UsageError, match=said), open_client(options):
        raise AssertionError


def test_packages_that_are_not_there(monkeypatch):
    monkeypatch.setitem(CLUSTERS, "slurm", ("dask_jobqueue_that_is_not_there", "SLURMCluster"))
    with (
        pytest.raises(
            UsageError, match=r"--cluster slurm needs dask-jobqueue-that-is-not-there: pip install"
        ),
        open_client(SchedulerOptions(cluster="slurm")),
    ):
        raise AssertionError
    monkeypatch.setattr("portal_extract.running.clients.find_spec", lambda name: None)
    with (
        pytest.raises(UsageError, match=r"needs bokeh: pip install 'portal-extract\[cluster\]'"),
        open_client(SchedulerOptions("local", dashboard=True)),
    ):
        raise AssertionError


# ---------------------------------------------------------------------------------- a batch system

SBATCH = """#!/bin/bash
setsid bash -c "$(cat "$1")" > "$JOBS/$$.log" 2>&1 &
echo $! >> "$JOBS/pids"
echo "Submitted batch job $!"
"""
SCANCEL = """#!/bin/bash
echo "$1" >> "$JOBS/cancelled"
kill -- -"$1"
"""
REFUSING = """#!/bin/bash
echo "sbatch: error: invalid partition specified: standard" >&2
exit 1
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A function that writes commands like those of SLURM (without a queue) and an option file."""
    pytest.importorskip("dask_jobqueue")
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("JOBS", str(folder))
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def write(sbatch: str = SBATCH) -> list[str]:
        for name, text in (("sbatch", sbatch), ("scancel", SCANCEL)):
            (folder / name).write_text(text)
            (folder / name).chmod(stat.S_IRWXU)
        config = tomllib.loads((CONFIGS / "slurm.toml").read_text())["cluster"]
        config |= {"jobs": 2, "cores": 2, "processes": 1, "memory": "2GB", "interface": "lo"}
        config |= {"local_directory": str(tmp_path / "scratch"), "log_directory": str(tmp_path / "logs")}
        lines = [f"{key} = {json.dumps(value)}" for key, value in config.items()]
        (tmp_path / "slurm.toml").write_text("\n".join(["[cluster]", *lines]))
        return ["--config", str(tmp_path / "slurm.toml")]

    yield write
    pids = (folder / "pids").read_text().split() if (folder / "pids").exists() else []
    for pid in map(int, pids):
        try:
            os.killpg(pid, 9)
        except ProcessLookupError:
            continue


def test_a_run_on_jobs_of_a_batch_system(slurm, tmp_path):
    folder = write_many(tmp_path / "project", n_series=3, n_particles=6)
    code, errors = finish(start(folder, STACKS))
    assert code == 0, errors
    expected = results(folder / "out")
    (folder / "out").rename(folder / "threads")
    code, errors = finish(start(folder, [*STACKS, *slurm()]))
    assert code == 0, errors
    assert_same(folder / "out", expected)
    pids = (tmp_path / "bin/pids").read_text().split()
    assert len(pids) == 2
    assert sorted((tmp_path / "bin/cancelled").read_text().split()) == sorted(pids)


def test_a_batch_system_that_refuses_the_job(slurm, tmp_path):
    folder = write_many(tmp_path / "project", n_series=1, n_particles=2)
    code, errors = finish(start(folder, [*STACKS, *slurm(REFUSING)]))
    assert code == 2
    said = "the job was not taken: sbatch: error: invalid partition specified: standard"
    assert errors.splitlines() == [f"portal-extract: --cluster slurm: {said}"]
    assert not (folder / "out").exists()


def test_not_where_jobs_are_submitted_from(slurm, tmp_path, monkeypatch):
    pytest.importorskip("dask_jobqueue")
    monkeypatch.setenv("PATH", str(tmp_path))
    with (
        pytest.raises(
            UsageError, match="--cluster slurm: sbatch is not here: run this where jobs are submitted"
        ),
        open_client(SchedulerOptions(cluster="slurm")),
    ):
        raise AssertionError


def test_settings_that_the_batch_system_does_not_know(slurm, monkeypatch):
    slurm()
    settings = {"cores": 1, "memory": "1GB", "walltim": "1:00"}
    with (
        pytest.raises(UsageError, match=r"\[cluster\] settings for --cluster slurm: .*'walltim'"),
        open_client(SchedulerOptions(cluster="slurm", settings=settings)),
    ):
        raise AssertionError
