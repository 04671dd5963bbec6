"""Going on with a run: what is done is not done again, and the bytes are those of an undisturbed run."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
from pathlib import Path

import pytest
from running_project import assert_same, load, results, spoil, write_many

from portal_extract.errors import OutputError, PortalExtractError, ReadError
from portal_extract.extraction.job import extract
from portal_extract.options import ExtractOptions, RunOptions, VolumeOptions
from portal_extract.running.events import Note, StageAdvanced
from portal_extract.running.journal import LOG

STACKS = ExtractOptions(box_size=16)
SUMS = ExtractOptions(box_size=16, mode="volume3d", volume=VolumeOptions(write_sum=True))
ONE = RunOptions(workers=1)


class Stop(Exception):
    """Ends a run from within."""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return load(write_many(tmp_path_factory.mktemp("project"), n_series=4, n_particles=5))


def read_bytes_of(project, out, options, run=ONE) -> int:
    """Extract; tell how many images were processed anew."""
    steps = []

    def observe(event):
        if isinstance(event, StageAdvanced) and event.stage == "extract":
            steps.append(event.steps)

    extract(project, options, out, run, observe)
    return sum(steps)


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / ".journal" / LOG).read_text().splitlines()]


def stop_after(n_units: int):
    """An observer that ends the run when so many units are on record."""

    def observe(event):
        if isinstance(event, StageAdvanced) and observe.out is not None:
            log = observe.out / ".journal" / LOG
            if log.exists() and len(log.read_text().splitlines()) >= n_units:
                raise Stop

    observe.out = None
    return observe


@pytest.mark.parametrize(
    "options", [STACKS, SUMS, dataclasses.replace(STACKS, float16=True)], ids=["stacks", "sums", "half"]
)
def test_a_run_that_was_stopped_goes_on(project, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    extract(project, options, "out", ONE)
    expected = results(Path("out"))
    Path("out").rename("undisturbed")
    observe = stop_after(2)
    observe.out = Path("out")
    with pytest.raises(Stop):
        extract(project, options, "out", ONE, observe)
    done = log_of(Path("out"))
    assert 2 <= len(done) < 4
    assert not Path("out/particles.star").exists()
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mrc*")}
    notes = []
    summary = extract(
        project, options, "out", ONE, lambda e: notes.append(e.text) if isinstance(e, Note) else None
    )
    assert any("particles are done from an earlier run" in note for note in notes)
    assert summary.n_extracted == 20
    assert_same(Path("out"), expected)
    kept = [path for path in before if path.stat().st_mtime_ns == before[path]]
    assert len(kept) >= 2 * 5, "finished units were done again"


def test_a_finished_run_does_nothing_again(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    stacks = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.mrcs")}
    expected = results(Path("out"))
    for name in ("particles.star", "optimisation_set.star"):
        Path("out", name).unlink()
    summary = extract(project, STACKS, "out", ONE)
    assert {path: path.stat().st_mtime_ns for path in stacks} == stacks
    assert_same(Path("out"), expected)
    assert summary.n_extracted == 20


@pytest.mark.parametrize("harm", ["gone", "short", "empty"])
@pytest.mark.parametrize("options", [STACKS, SUMS], ids=["stacks", "sums"])
def test_files_that_are_gone_or_short_are_made_again(project, tmp_path, monkeypatch, options, harm):
    monkeypatch.chdir(tmp_path)
    extract(project, options, "out", ONE)
    expected = results(Path("out"))
    victim = sorted(Path("out").rglob("*_data.mrc" if options is SUMS else "*.mrcs"))[7]
    if harm == "gone":
        victim.unlink()
    else:
        os.truncate(victim, 0 if harm == "empty" else victim.stat().st_size - 4)
    extract(project, options, "out", ONE)
    assert_same(Path("out"), expected)
    assert sum("forget" in entry for entry in log_of(Path("out"))) == 1


def test_a_sum_that_is_gone_is_made_again(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, SUMS, "out", ONE)
    expected = results(Path("out"))
    sums = sorted(Path("out/.journal").glob(".sum-*"))
    assert len(sums) == 4
    sums[1].unlink()
    extract(project, SUMS, "out", ONE)
    assert_same(Path("out"), expected)


def test_sums_do_not_depend_on_workers_memory_or_interruptions(project, tmp_path, monkeypatch):
    from portal_extract.extraction import tasks

    # so few bytes that a tilt series is several units
    monkeypatch.setattr(tasks, "_SUMMED_BYTES", 2 * 12 * 16 * 9 * 7)
    monkeypatch.chdir(tmp_path)
    extract(project, SUMS, "out", ONE)
    assert len(list(Path("out/.journal").glob(".sum-*"))) == 4 * 3
    expected = results(Path("out"))
    Path("out").rename("undisturbed")
    observe = stop_after(5)
    observe.out = Path("out")
    with pytest.raises(Stop):
        extract(project, SUMS, "out", ONE, observe)
    extract(project, SUMS, "out", RunOptions(workers=2, memory_bytes=1 << 30))
    assert_same(Path("out"), expected)


def test_a_torn_line_of_the_journal_is_dropped(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    expected, log = results(Path("out")), Path("out/.journal", LOG)
    whole = log.read_bytes()
    for cut in (len(whole) - 1, len(whole) - 30, whole.find(b"\n") // 2):
        log.write_bytes(whole[:cut])
        extract(project, STACKS, "out", ONE)
        assert_same(Path("out"), expected)
        assert len(log_of(Path("out"))) == 4


def test_a_journal_that_makes_no_sense_is_refused(project, tmp_path):
    extract(project, STACKS, tmp_path / "out", ONE)
    for text in ("[1]\n", "nonsense\n", '{"particles": [[0, 1]]}\n'):
        (tmp_path / "out/.journal" / LOG).write_text(text)
        with pytest.raises(OutputError, match=r"units\.log: unreadable journal .*--overwrite starts anew"):
            extract(project, STACKS, tmp_path / "out", ONE)
    (tmp_path / "out/.journal/run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run\.json: unreadable journal"):
        extract(project, STACKS, tmp_path / "out", ONE)
    extract(project, STACKS, tmp_path / "out", dataclasses.replace(ONE, overwrite=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"box_size": 18}, "box_size was 16, is 18"),
        ({"binning": 2.0, "ctf": False}, "binning was 1.0, is 2.0; ctf was true, is false"),
    ],
)
def test_other_options_are_refused_by_name(project, tmp_path, monkeypatch, change, named):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    before = results(Path("out"))
    with pytest.raises(OutputError, match=named) as refused:
        extract(project, dataclasses.replace(STACKS, **change), "out", ONE)
    assert "--overwrite to start anew" in str(refused.value)
    assert results(Path("out")) == before
    extract(project, dataclasses.replace(STACKS, **change), "out", dataclasses.replace(ONE, overwrite=True))
    assert results(Path("out")) != before


def test_other_inputs_are_refused_by_name(project, tmp_path):
    extract(project, STACKS, tmp_path / "out", ONE)
    particles = dataclasses.replace(
        project.particles, coordinates_angst=project.particles.coordinates_angst + 1.0
    )
    with pytest.raises(OutputError, match="particles was "):
        extract(dataclasses.replace(project, particles=particles), STACKS, tmp_path / "out", ONE)
    series = dataclasses.replace(project.tilt_series[0], handedness=1.0)
    moved = dataclasses.replace(project, tilt_series=(series, *project.tilt_series[1:]))
    with pytest.raises(OutputError, match="tilt series was "):
        extract(moved, STACKS, tmp_path / "out", ONE)


def test_images_that_changed_are_noticed(tmp_path):
    folder = write_many(tmp_path / "project", n_series=2, n_particles=2)
    extract(load(folder), STACKS, tmp_path / "out", ONE)
    path = folder / "images/TS_01.mrcs"
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 10**9))
    with pytest.raises(OutputError, match="images was "):
        extract(load(folder), STACKS, tmp_path / "out", ONE)


def test_another_version_does_not_go_on(project, tmp_path, monkeypatch):
    extract(project, STACKS, tmp_path / "out", ONE)
    monkeypatch.setattr("portal_extract.running.identity.__version__", "0.0.1")
    with pytest.raises(OutputError, match=r'portal-extract was .* is "0\.0\.1"'):
        extract(project, STACKS, tmp_path / "out", ONE)


def test_how_a_run_is_run_may_change(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    expected = results(Path("out"))
    extract(project, STACKS, "out", RunOptions(workers=2, memory_bytes=1 << 28, requests_in_flight=3))
    assert_same(Path("out"), expected)


def test_overwriting_leaves_nothing_of_the_old_run(project, tmp_path):
    extract(project, SUMS, tmp_path / "out", ONE)
    (tmp_path / "out/mine.txt").write_text("kept")
    extract(project, STACKS, tmp_path / "out", dataclasses.replace(ONE, overwrite=True))
    names = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [name for name in names if "sum" in name or name.endswith("_data.mrc")]
    assert "mine.txt" in names
    assert len(log_of(tmp_path / "out")) == 4


def test_files_of_another_program_are_not_touched(project, tmp_path):
    out = tmp_path / "out"
    (out / "Subtomograms").mkdir(parents=True)
    (out / "particles.star").write_text("of another program")
    with pytest.raises(OutputError, match=r"holds Subtomograms, particles\.star of another program"):
        extract(project, STACKS, out, ONE)
    assert (out / "particles.star").read_text() == "of another program"


# ---------------------------------------------------------------------------------- failures


@pytest.fixture
def bad_folder(tmp_path):
    return write_many(tmp_path / "project", n_series=5, n_particles=4)


def test_stop_finishes_what_runs_and_says_what_failed(bad_folder, tmp_path):
    project = load(bad_folder)
    spoil(bad_folder)
    out, notes = tmp_path / "out", []
    with pytest.raises(ReadError, match=r"TS_02\.mrcs") as raised:
        extract(project, STACKS, out, ONE, lambda e: notes.append(e) if isinstance(e, Note) else None)
    assert any("TS_02: 4 particles failed" in note.text and note.level == "warning" for note in notes)
    assert {entry["label"] for entry in log_of(out)} == {"TS_00", "TS_01"}
    report = json.loads((out / "report/report.json").read_text())
    assert report["complete"] is False
    assert report["failures"] == [{"tilt_series": "TS_02", "particles": 4, "cause": str(raised.value)}]
    assert not (out / "particles.star").exists()
    assert [path.name for path in out.rglob("*.part")] == []


def test_skip_does_the_others_and_a_rerun_tries_again(bad_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project, skip = load(bad_folder), dataclasses.replace(ONE, on_error="skip")
    extract(project, STACKS, "out", skip)
    expected = results(Path("out"))
    Path("out").rename("undisturbed")
    status = (bad_folder / "images/TS_02.mrcs").stat()
    content = spoil(bad_folder)
    # the journal looks at size and time: hide that the file is another one, as a store that fails would
    monkeypatch.setattr("portal_extract.running.identity._stack_identity", lambda stack: list(stack.uris))
    summary = extract(project, STACKS, "out", skip)
    assert [(f.name, f.n_particles) for f in summary.failures] == [("TS_02", 4)]
    assert summary.n_extracted == 16
    assert summary.skipped["failed"] == 4
    assert sum(summary.skipped.values()) + summary.n_extracted == summary.n_particles
    star = Path("out/particles.star").read_text()
    assert "TS_02/" not in star
    assert star.count("_stack2d.mrcs") == 16
    report = json.loads(Path("out/report/report.json").read_text())
    assert report["complete"] is False
    assert report["failures"][0]["cause"] == summary.failures[0].cause
    assert len(log_of(Path("out"))) == 4
    (bad_folder / "images/TS_02.mrcs").write_bytes(content)
    os.utime(bad_folder / "images/TS_02.mrcs", ns=(status.st_atime_ns, status.st_mtime_ns))
    again = extract(project, STACKS, "out", skip)
    assert again.failures == ()
    assert_same(Path("out"), expected)


def test_when_everything_fails_skipping_does_not_help(tmp_path):
    folder = write_many(tmp_path / "project", n_series=2, n_particles=2)
    project = load(folder)
    for name in ("TS_00", "TS_01"):
        spoil(folder, name)
    with pytest.raises(ReadError, match=r"TS_00\.mrcs"):
        extract(project, STACKS, tmp_path / "out", dataclasses.replace(ONE, on_error="skip"))
    report = json.loads((tmp_path / "out/report/report.json").read_text())
    assert {f["tilt_series"] for f in report["failures"]} == {"TS_00", "TS_01"}


def test_an_error_that_nobody_foresaw_is_named(project, tmp_path, monkeypatch):
    from portal_extract.extraction.stacks import StackConsumer

    consume = StackConsumer.consume

    def sometimes(self, which, patches):
        if self._views.series.name == "TS_01":
            raise ZeroDivisionError("by chance")
        consume(self, which, patches)

    monkeypatch.setattr(StackConsumer, "consume", sometimes)
    summary = extract(project, STACKS, tmp_path / "out", dataclasses.replace(ONE, on_error="skip"))
    assert [(f.name, f.cause) for f in summary.failures] == [("TS_01", "ZeroDivisionError: by chance")]


# ---------------------------------------------------------------------------------- the disk


def fill_up(monkeypatch, n_bytes: int):
    """Let writev and pwrite fail like a full disk after so many bytes."""
    written, writev, pwrite = 0, os.writev, os.pwrite

    def add(n):
        nonlocal written
        written += n
        if written > n_bytes:
            raise OSError(28, os.strerror(28))

    def limited_writev(descriptor, buffers):
        add(sum(len(b) for b in buffers))
        return writev(descriptor, buffers)

    def limited_pwrite(descriptor, data, offset):
        add(len(data))
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "writev", limited_writev)
    monkeypatch.setattr(os, "pwrite", limited_pwrite)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@pytest.mark.parametrize("n_bytes", [0, 20_000, 100_000])
@pytest.mark.parametrize("images_waiting", [1, 3, 100])
def test_a_full_disk_is_one_error_and_the_run_goes_on_later(
    project, tmp_path, monkeypatch, on_error, n_bytes, images_waiting
):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    expected = results(Path("out"))
    Path("out").rename("undisturbed")
    with monkeypatch.context() as full:
        full.setattr("portal_extract.extraction.stack_files._WRITE_BYTES", images_waiting * 4 * 16**2)
        fill_up(full, n_bytes)
        with pytest.raises(OutputError, match="cannot be written: No space left on device"):
            extract(project, STACKS, "out", dataclasses.replace(ONE, on_error=on_error))
    assert [path.name for path in Path("out").rglob("*.part")] == []
    extract(project, STACKS, "out", ONE)
    assert_same(Path("out"), expected)


def test_a_disk_that_is_full_for_images_that_wait(project, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("portal_extract.extraction.tasks.memory_shares", spill_everything())
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match=r"TS_0.*No space left on device"):
        extract(project, STACKS, tmp_path / "out", dataclasses.replace(ONE, on_error="skip"))


def spill_everything():
    """Memory shares that leave no byte for images that wait."""
    from portal_extract.extraction.tasks import memory_shares

    return lambda views, options, run, workers: (0, memory_shares(views, options, run, workers)[1])


def test_only_what_is_missing_needs_room(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out", ONE)
    expected = results(Path("out"))
    log = Path("out/.journal", LOG)
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    stack = next(Path("out").rglob("*.mrcs")).stat().st_size
    for n_free, is_enough in ((4 * stack, False), (6 * stack, True)):
        usage = type("Usage", (), {"free": n_free})
        monkeypatch.setattr("portal_extract.extraction.survey.shutil.disk_usage", lambda path, u=usage: u)
        if is_enough:
            extract(project, STACKS, "out", ONE)
        else:
            with pytest.raises(OutputError, match="GB are free; choose another"):
                extract(project, STACKS, "out", ONE)
    assert_same(Path("out"), expected)


def test_a_limit_of_the_file_size(project, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OutputError, match="File too large"):
            extract(project, STACKS, tmp_path / "out", ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in (tmp_path / "out").rglob("*.part")] == []


def test_a_journal_that_cannot_grow_keeps_whole_lines(project, tmp_path, monkeypatch):
    from portal_extract.running.journal import Journal
    from portal_extract.running.units import UnitResult

    (tmp_path / ".journal").mkdir()
    journal = Journal(tmp_path)
    journal.begin({"options": {}})
    journal.record(UnitResult("TS", (0, 1)))
    size = (tmp_path / ".journal" / LOG).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, hard))
    try:
        with pytest.raises(OutputError, match=r"units\.log cannot be written"):
            journal.record(UnitResult("TS", (2, 3)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / ".journal" / LOG).stat().st_size == size
    assert [r.particles for r in journal.begin({"options": {}})] == [(0, 1)]


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_that_became_read_only(project, tmp_path):
    out = tmp_path / "out"
    extract(project, STACKS, out, ONE)
    (out / ".journal/.lock").chmod(0o400)
    with pytest.raises(OutputError, match=r"cannot be written \(Permission denied\)"):
        extract(project, STACKS, out, ONE)


def test_a_file_system_that_takes_no_files(project):
    with pytest.raises(PortalExtractError, match="/proc/nowhere: "):
        extract(project, STACKS, "/proc/nowhere", ONE)
