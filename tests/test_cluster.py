"""Units on real dask clusters of spawned processes: the same bytes, and what happens when processes die."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from running_project import assert_same, kill_all, load, results, wait_until, write_many

from portal_extract.errors import ClusterError, OutputError, ReadError
from portal_extract.extraction.job import extract
from portal_extract.extraction.tasks import STACK_SUFFIX, cut_units, make_tasks
from portal_extract.images.boxes import PatchBatch
from portal_extract.options import ExtractOptions, RunOptions, VolumeOptions
from portal_extract.relion_io.paths import stack_paths
from portal_extract.running.clients import SchedulerOptions, open_client
from portal_extract.running.events import BytesRead, Note, StageAdvanced, ignore
from portal_extract.running.guard import Guard
from portal_extract.running.journal import LOG, Journal
from portal_extract.running.schedulers import find_place, run_units

STACKS = ExtractOptions(box_size=16)
VOLUMES = ExtractOptions(box_size=16, mode="volume3d", volume=VolumeOptions(write_sum=True))
ONE = RunOptions(workers=1)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return load(write_many(tmp_path_factory.mktemp("project"), n_series=5, n_particles=20))


@pytest.fixture(scope="module")
def expected(project, tmp_path_factory):
    """Results on threads, by mode; the folder has the name that the tests use."""
    found = {}
    before = Path.cwd()
    for options in (STACKS, VOLUMES):
        os.chdir(tmp_path_factory.mktemp("threads"))
        extract(project, options, "out", ONE)
        found[options.mode] = results(Path("out"))
    os.chdir(before)
    return found


@pytest.fixture(scope="module")
def two():
    """A client of two worker processes."""
    with open_client(SchedulerOptions("local", processes=2, threads=1)) as client:
        yield client


def n_stacks() -> int:
    return len(list(Path("out").glob("Subtomograms/*/*.mrcs")))


def workers_of(client) -> list[int]:
    return sorted(client.run(os.getpid).values())


def test_processes_are_spawned_and_hold_few_library_threads(two):
    def look() -> dict:
        import multiprocessing

        return {
            "method": multiprocessing.get_context("spawn").get_start_method(),
            "omp": os.environ.get("OMP_NUM_THREADS"),
            "blas": os.environ.get("OPENBLAS_NUM_THREADS"),
            "parent": os.getppid(),
        }

    found = list(two.run(look).values())
    assert len(found) == 2
    assert all(one["omp"] == one["blas"] == "1" for one in found)
    lines = [" ".join(psutil.Process(pid).cmdline()) for pid in workers_of(two)]
    assert all("spawn_main" in line for line in lines)


@pytest.mark.parametrize("options", [STACKS, VOLUMES], ids=["stacks", "sums"])
def test_two_processes_give_the_bytes_of_threads(project, expected, two, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    steps, n_bytes = [], []

    def observe(event):
        if isinstance(event, StageAdvanced):
            steps.append(event.steps)
        elif isinstance(event, BytesRead):
            n_bytes.append(event.n_bytes)

    summary = extract(project, options, "out", ONE, observe, client=two)
    assert_same(Path("out"), expected[options.mode])
    assert summary.n_extracted == 100
    assert sum(steps) == 700
    assert sum(n_bytes) == summary.bytes_read > 0
    log = [json.loads(line) for line in Path("out/.journal", LOG).read_text().splitlines()]
    assert len({entry["label"] for entry in log}) == 5


def test_four_processes_share_one_large_tilt_series(tmp_path, monkeypatch):
    project = load(write_many(tmp_path / "project", n_series=1, n_particles=100))
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    wanted = results(Path("out"))
    Path("out").rename("threads")
    with open_client(SchedulerOptions("local", processes=4, threads=1)) as client:
        assert len(set(workers_of(client))) == 4
        extract(project, STACKS, "out", ONE, client=client)
    assert_same(Path("out"), wanted)
    log = [json.loads(line) for line in Path("out/.journal", LOG).read_text().splitlines()]
    assert len(log) == 7
    assert {entry["label"] for entry in log} == {"TS_00"}


def test_a_run_begun_on_threads_is_finished_by_processes(project, expected, two, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    for path in sorted(Path("out").rglob("*.mrcs"))[::7]:
        path.unlink()
    extract(project, STACKS, "out", ONE, client=two)
    assert_same(Path("out"), expected["stack2d"])


# ---------------------------------------------------------------------------------- tasks


def test_tasks_are_small_and_hold_nothing_open(project):
    names = stack_paths(project, STACK_SUFFIX)
    todo = [(n, p) for n, p in enumerate(project.particles_of)]
    units = cut_units(project, todo, STACKS, ONE)
    tasks = list(make_tasks(project, units, STACKS, Path("/somewhere"), names))
    for task in tasks:
        content = pickle.dumps(task)
        # the description of a tilt series, and some numbers and two names for each particle
        assert len(content) < 6000 + 300 * len(task.particles)
        again = pickle.loads(content)
        assert again.particles == task.particles
        assert again.label == task.label
        assert again.project.tables is None
    for modules in (b"fsspec", b"s3fs", b"aiohttp", b"zarr", b"mmap", b"_io", b"dask", b"pandas"):
        assert all(modules not in pickle.dumps(task) for task in tasks)


class Sleepy:
    """A task that notes what it was given, and lasts."""

    label, may_open_early = "TS", True

    def __init__(self, folder, number, seconds=0.0, fail=None):
        self.folder, self.particles, self.seconds, self.fail = str(folder), (number,), seconds, fail

    def open(self, run, workers, observer, reader):
        observer(BytesRead(10))
        start = time.time()
        time.sleep(self.seconds)
        if self.fail is not None:
            raise self.fail
        text = json.dumps(
            [start, time.time(), run.requests_in_flight, workers, run.memory_bytes, os.getpid()]
        )
        Path(self.folder, f"{self.particles[0]}.json").write_text(text)
        return NoStream(), NoConsumer()


class NoStream:
    def prepare(self):
        """Nothing to do."""

    def __iter__(self):
        return iter(())

    def close(self):
        """Nothing to do."""


class NoConsumer:
    bad: dict = {}  # noqa: RUF012

    def consume(self, which, patches):
        raise AssertionError

    def finish(self):
        """Nothing to do."""


def guarded(folder: Path) -> Guard:
    (folder / ".journal").mkdir(exist_ok=True)
    journal = Journal(folder)
    journal.begin({})
    return Guard(str(folder), journal.token)


def test_few_units_are_handed_out_at_a_time_and_requests_stay_bounded(two, tmp_path):
    made, done, ahead = [], [], []

    def tasks():
        for number in range(40):
            made.append(number)
            yield Sleepy(tmp_path, number, 0.02)

    def finished(result):
        done.append(result.particles[0])
        ahead.append(len(made) - len(done))

    run = RunOptions(workers=2, requests_in_flight=32, total_requests=10, memory_bytes=1000)
    place = find_place(run, two, ignore)
    assert run_units(tasks(), place, guarded(tmp_path), ignore, finished) == []
    assert sorted(done) == list(range(40))
    # three are with the scheduler, and as many may have come back together
    assert max(ahead) <= 6
    notes = [json.loads((tmp_path / f"{n}.json").read_text()) for n in range(40)]
    assert {note[3] for note in notes} == {2}
    assert {note[4] for note in notes} == {1000}
    moments = [note[0] for note in notes]
    for moment in moments:
        assert sum(note[2] for note in notes if note[0] <= moment < note[1]) <= 10
    assert len({note[5] for note in notes}) == 2


def test_units_of_one_process_share_its_threads_memory_and_requests(tmp_path):
    with open_client(SchedulerOptions("local", processes=1, threads=3)) as client:
        place = find_place(RunOptions(workers=6, requests_in_flight=12, memory_bytes=900), client, ignore)
    assert (place.n_slots, place.run.workers, place.run.memory_bytes) == (3, 2, 300)
    assert place.run.requests_in_flight == 4


def test_failures_are_collected_and_stop_hands_out_no_more(two, tmp_path):
    def tasks(n):
        for number in range(n):
            fail = ReadError("no pixels") if number in (3, 5) else None
            yield Sleepy(tmp_path, number, 0.05, fail)

    done = []
    skip = find_place(dataclasses.replace(ONE, on_error="skip"), two, ignore)
    failures = run_units(tasks(12), skip, guarded(tmp_path), ignore, done.append)
    assert sorted(f.particles for f in failures) == [(3,), (5,)]
    assert all(isinstance(f.error, ReadError) and f.cause == "no pixels" for f in failures)
    assert len(done) == 10
    done.clear()
    stop = find_place(ONE, two, ignore)
    failures = run_units(tasks(1000), stop, guarded(tmp_path), ignore, done.append)
    assert 1 <= len(failures) <= 2
    assert 3 <= len(done) <= 8


def test_an_error_of_writing_is_never_skipped(two, tmp_path):
    skip = find_place(dataclasses.replace(ONE, on_error="skip"), two, ignore)
    tasks = [Sleepy(tmp_path, n, 0.0, OutputError("the disk is full") if n == 2 else None) for n in range(9)]
    with pytest.raises(OutputError, match="the disk is full"):
        run_units(tasks, skip, guarded(tmp_path), ignore, lambda result: None)


def test_no_tasks_are_no_work(two, tmp_path):
    assert run_units([], find_place(ONE, two, ignore), guarded(tmp_path), ignore, ignore) == []


# ---------------------------------------------------------------------------------- death


def test_workers_killed_in_the_middle_of_units(project, expected, tmp_path, monkeypatch):
    chance = random.Random(8)
    monkeypatch.chdir(tmp_path)
    with open_client(SchedulerOptions("local", processes=2, threads=1)) as client:
        victims = workers_of(client)

        def kill():
            for stacks, victim in zip(sorted(chance.sample(range(1, 80), 2)), victims, strict=True):
                wait_until(lambda n=stacks: n_stacks() >= n)
                os.kill(victim, signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        summary = extract(project, STACKS, "out", ONE, client=client)
        killer.join()
        assert wait_until(lambda: len(client.nthreads()) == 2)
        assert not set(victims) & set(workers_of(client))
    assert summary.n_extracted == 100
    # the sweep at the next start takes what the killed ones left
    extract(project, STACKS, "out", ONE)
    assert_same(Path("out"), expected["stack2d"])


class Deadly(Sleepy):
    """A task that kills its process, as a system without memory does."""

    def open(self, run, workers, observer, reader):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_unit_that_kills_every_worker(tmp_path):
    import dask
    import distributed  # noqa: F401 - before its configuration is changed

    tasks = [Deadly(tmp_path, 0), *(Sleepy(tmp_path, n) for n in range(1, 4))]
    run, done = dataclasses.replace(ONE, on_error="skip"), []
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        open_client(SchedulerOptions("local", processes=2, threads=1)) as client,
    ):
        failures = run_units(tasks, find_place(run, client, ignore), guarded(tmp_path), ignore, done.append)
    assert [f.particles for f in failures] == [(0,)]
    assert isinstance(failures[0].error, ClusterError)
    assert "TS: 2 dask workers died one after the other" in failures[0].cause
    assert len(done) == 3


@pytest.fixture
def outside(tmp_path):
    """A scheduler and a worker that run as commands; a list of the processes, and the scheduler file."""
    file = tmp_path / "scheduler.json"
    environment = {**os.environ, "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s"}

    def begin(*arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *arguments]
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
        )

    scheduler = [
        "scheduler",
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    processes = [begin(*scheduler)]
    assert wait_until(file.exists, 30)
    local = ["--local-directory", str(tmp_path / "scratch"), "--no-dashboard", "--nthreads", "2"]
    processes.append(begin("worker", "--scheduler-file", str(file), *local))
    yield processes, file
    for process in processes:
        kill_all(process)
        process.communicate(timeout=20)


@pytest.mark.parametrize("seed", [9, 10])
def test_the_scheduler_is_killed_and_another_one_goes_on(
    project, expected, outside, tmp_path, monkeypatch, seed
):
    monkeypatch.chdir(tmp_path)
    processes, file = outside
    stacks = random.Random(seed).randrange(1, 60)

    def kill():
        wait_until(lambda: n_stacks() >= stacks)
        kill_all(processes[0])

    killer = threading.Thread(target=kill)
    killer.start()
    start = time.monotonic()
    with (
        open_client(SchedulerOptions(str(file))) as client,
        pytest.raises(ClusterError, match=r"dask scheduler .*run the same command again to go on"),
    ):
        extract(project, STACKS, "out", ONE, client=client)
    killer.join()
    assert time.monotonic() - start < 60
    with open_client(SchedulerOptions("local", processes=1, threads=1)) as client:
        extract(project, STACKS, "out", ONE, client=client)
    assert_same(Path("out"), expected["stack2d"])


def test_a_scheduler_by_its_address(project, expected, outside, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    address = json.loads(outside[1].read_text())["address"]
    assert address.startswith("tcp://127.0.0.1:")
    notes = []
    with open_client(SchedulerOptions(address)) as client:
        extract(project, STACKS, "out", RunOptions(), notes.append, client=client)
    assert_same(Path("out"), expected["stack2d"])
    assert all(event.level == "info" for event in notes if isinstance(event, Note))


def test_nobody_answers(monkeypatch):
    monkeypatch.setattr("portal_extract.running.clients._CONNECT_WITHIN_S", 1)
    with (
        pytest.raises(ClusterError, match=r"--scheduler tcp://127\.0\.0\.1:9: no dask scheduler answers"),
        open_client(SchedulerOptions("tcp://127.0.0.1:9")),
    ):
        raise AssertionError


# ---------------------------------------------------------------------------------- strays


def test_a_stray_worker_cannot_write_into_another_run(project, tmp_path):
    from portal_extract.running.schedulers import run_unit

    out = tmp_path / "out"
    extract(project, STACKS, out, ONE)
    stale = Guard(str(out), Journal(out).token)
    names = stack_paths(project, STACK_SUFFIX)
    task = next(make_tasks(project, [(0, project.particles_of[0])], STACKS, out, names))
    before = results(out)
    run_unit(task, ONE, stale)
    assert results(out) == before
    other = dataclasses.replace(STACKS, ctf=False)
    extract(project, other, out, dataclasses.replace(ONE, overwrite=True))
    before = results(out)
    with pytest.raises(OutputError, match="another run has taken the folder over"):
        run_unit(task, ONE, stale)
    assert results(out) == before


def test_overwriting_waits_for_units_at_work(project, tmp_path, monkeypatch):
    out = tmp_path / "out"
    extract(project, STACKS, out, ONE)
    anew = dataclasses.replace(ONE, overwrite=True)
    guard = Guard(str(out), Journal(out).token)
    with guard.held():
        monkeypatch.setattr("portal_extract.running.guard._PATIENCE_S", 0.3)
        with pytest.raises(OutputError, match="workers of an earlier run are still writing here"):
            extract(project, STACKS, out, anew)
        extract(project, STACKS, out, ONE)
    extract(project, STACKS, out, anew)


def test_a_worker_without_the_folder_or_with_another_version_says_so(tmp_path):
    with (
        pytest.raises(OutputError, match="must be on a file system that all workers share"),
        Guard(str(tmp_path / "nowhere"), "token").held(),
    ):
        raise AssertionError
    with (
        pytest.raises(OutputError, match=r"has portal-extract .*, the run was started with 0\.0\.1"),
        Guard(str(tmp_path), "token", "0.0.1").held(),
    ):
        raise AssertionError


def test_one_unit_twice_at_the_same_time(project, tmp_path):
    from portal_extract.running.schedulers import run_unit

    out = tmp_path / "out"
    for options, expected_files in ((STACKS, 20), (VOLUMES, 40)):
        extract(project, options, out, dataclasses.replace(ONE, overwrite=True))
        before, guard = results(out), Guard(str(out), Journal(out).token)
        names = stack_paths(project, "_stack2d.mrcs" if options is STACKS else "_data.mrc")
        task = next(make_tasks(project, [(0, project.particles_of[0])], options, out, names))
        threads = [threading.Thread(target=run_unit, args=(task, ONE, guard)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results(out) == before
        assert len([name for name in before if "TS_00" in name]) == expected_files
        assert [path.name for path in out.rglob("*.part")] == []


# ---------------------------------------------------------------------------------- forks


def test_a_fork_after_reading_does_not_hang(tmp_path):
    """A program that read, and then forks, reads in the child too: nothing that is in use is inherited."""
    script = tmp_path / "program.py"
    folder = write_many(tmp_path / "project", n_series=2, n_particles=3)
    script.write_text(FORKING)
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == ["parent", "child", "parent"]


FORKING = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
import numpy as np
from images_support import blosc, cut_fast, make_pixels, random_boxes, stack_of, write_zarr2
from portal_extract.demo.object_server import ObjectServer
from portal_extract.extraction.job import extract
from portal_extract.images.options import ReadOptions
from portal_extract.options import ExtractOptions, RunOptions
from running_project import load

shape, here = (5, 200, 200), Path(sys.argv[2])
pixels = make_pixels(shape, "f4")
write_zarr2(here / "store/bucket/a.zarr", pixels, (1, 100, 100), blosc(block_bytes=16384))
boxes, project = random_boxes(shape, 60, 32), load(Path(sys.argv[1]))

def use(who):
    found = cut_fast(stack_of("s3://bucket/a.zarr", shape, endpoint_url=server.url), boxes, ReadOptions())
    extract(project, ExtractOptions(box_size=16), here / f"out-{who}", RunOptions(workers=2, overwrite=True))
    print(who, flush=True)
    return found

with ObjectServer(here / "store") as server:
    expected = use("parent")
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        os._exit(0 if np.array_equal(use("child"), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    assert np.array_equal(use("parent"), expected)
"""


def test_patch_batches_never_cross_processes():
    batch = PatchBatch(np.arange(2), lambda out: out)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(batch)


def faults_of(work) -> int:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="of glibc")
def test_workers_keep_freed_memory_though_dask_tells_them_not_to():
    def churn(keep: bool) -> int:
        from portal_extract.running.memory import keep_freed_memory

        if keep:
            keep_freed_memory()

        def work() -> None:
            for _ in range(100):
                np.ones(1 << 18)

        work()
        return faults_of(work)

    with open_client(SchedulerOptions("local", processes=1, threads=1)) as client:
        trimmed = client.submit(churn, False, pure=False).result()
        kept = client.submit(churn, True, pure=False).result()
    assert trimmed > 100 * 200, "dask does not trim any more: the function is of no use"
    assert kept < trimmed / 10
