"""The job as a whole: memory, units, bad stacks, going on after an interruption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
from relion_cases import HERE

from portal_extract.errors import BadResultError, IneligibleError, MemoryBudgetError, OutputError
from portal_extract.extraction.job import extract
from portal_extract.extraction.resume import remaining_particles
from portal_extract.extraction.stacks import stored_image_bytes
from portal_extract.extraction.tasks import cut_units, memory_shares
from portal_extract.extraction.views import find_views
from portal_extract.options import ExtractOptions, RunOptions, VolumeOptions
from portal_extract.running.events import Note
from portal_extract.running.units import UnitResult
from portal_extract.sources.relion import ProjectFiles, read_project

ADVANCED = HERE / "data" / "relion5" / "advanced"
STACKS = ExtractOptions(box_size=24, binning=2.0)
VOLUMES = ExtractOptions(box_size=16, binning=2.0, mode="volume3d", volume=VolumeOptions(write_sum=True))


@pytest.fixture
def project(monkeypatch):
    monkeypatch.chdir(ADVANCED)
    return read_project(ProjectFiles("particles.star", "tomograms.star", "motion.star"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every result below a folder, by name."""
    files = [p for p in folder.rglob("*") if p.is_file() and ".journal" not in p.parts]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.suffix != ".json"}


def images_replaced(project, path: Path, change):
    """Write changed images of the first tilt series and give a project that uses them."""
    series = project.tilt_series[0]
    with mrcfile.open(series.image_stack.uris[0]) as mrc:
        data = np.array(mrc.data)
    change(data)
    with mrcfile.new(path, data) as mrc:
        mrc.set_image_stack()
    stack = dataclasses.replace(series.image_stack, uris=(str(path),) * series.n_tilts)
    first = dataclasses.replace(series, image_stack=stack)
    return dataclasses.replace(project, tilt_series=(first, *project.tilt_series[1:]))


@pytest.mark.parametrize(
    "options", [STACKS, dataclasses.replace(STACKS, float16=True)], ids=["float32", "float16"]
)
def test_however_many_images_wait_the_bytes_are_the_same(project, tmp_path, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    extract(project, options, "out")
    whole = contents(tmp_path / "out")
    for n_images in (0, 2, 5):
        write_bytes = n_images * stored_image_bytes(options)
        monkeypatch.setattr("portal_extract.extraction.stack_files._WRITE_BYTES", write_bytes)
        extract(project, options, "out", RunOptions(workers=3, overwrite=True))
        assert contents(tmp_path / "out") == whole
        assert not list((tmp_path / "out").rglob("*.part"))


def shares(project, options, memory_bytes):
    """Memory shares of the first tilt series, and what is not for computing."""
    run, patch = RunOptions(memory_bytes=memory_bytes), 4 * options.unbinned_box**2
    views = find_views(project, 0, options)
    waiting, reading = memory_shares(views, options, run, 2)
    batch = int(np.clip((2 << 20) // patch, 4, 64))
    computing = 2 * batch * (4 * patch + 32 * options.box_size**2)
    free = max(memory_bytes - computing, memory_bytes // 4)
    assert reading.memory_bytes == free - waiting
    return waiting, free, views


@pytest.mark.parametrize("float16", [False, True])
@pytest.mark.parametrize("box", [24, 128, 384])
@pytest.mark.parametrize("memory_mib", [4, 16, 64, 2048])
def test_memory_for_images_that_wait_is_a_few_of_each_particle(project, box, float16, memory_mib):
    options = ExtractOptions(box_size=box, crop_size=min(box, 200), float16=float16)
    waiting, free, views = shares(project, options, memory_mib << 20)
    image = options.output_size**2 * (2 if float16 else 4)
    each = waiting // (len(views.kept) * image) if len(views.kept) else 0
    assert waiting == each * len(views.kept) * image <= free // 8
    assert each == 0 or 2 <= each <= max(views.stack_lengths)
    assert each * image <= 512 << 10
    tomogram = dataclasses.replace(options, stack_layout="tomogram")
    assert shares(project, tomogram, memory_mib << 20)[0] == 0


def test_memory_for_volumes_that_wait_is_that_of_all_views_or_half(project):
    options = dataclasses.replace(VOLUMES, volume=VolumeOptions())
    waiting, free, views = shares(project, options, 1 << 30)
    assert waiting == len(views) * 12 * 16 * 9 < free // 2
    waiting, free, _ = shares(project, options, 1 << 18)
    assert waiting == free // 2


@pytest.mark.parametrize("options", [STACKS, VOLUMES], ids=["stacks", "volumes"])
def test_units_of_any_size_and_any_number_of_threads_give_the_same_bytes(
    project, tmp_path, monkeypatch, options
):
    monkeypatch.chdir(tmp_path)
    extract(project, options, "out", RunOptions(workers=1))
    one = contents(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    cuts = []

    def cut_small(project, todo, *rest):
        cuts.append([(t, part) for t, p in todo for part in np.array_split(p, 3) if len(part)])
        return cuts[-1]

    monkeypatch.setattr("portal_extract.extraction.resume.cut_units", cut_small)
    extract(project, options, "out", RunOptions(workers=3))
    other = contents(tmp_path / "out")
    # sums in another order of addition differ by rounding
    for name in ("sum_data.mrc", "sum_weight.mrc", "sum_div.mrc"):
        assert (name in one) == (name in other) == (options is VOLUMES)
        one.pop(name, None), other.pop(name, None)
    assert other == one
    assert len(cuts[-1]) == 6


def test_units_fit_the_memory(project):
    todo = remaining_particles(project, ())
    volumes = dataclasses.replace(VOLUMES, volume=VolumeOptions())
    assert [len(p) for _, p in cut_units(project, todo, volumes, RunOptions(workers=1))] == [8, 8]
    per_particle = 13 * 12 * 16 * 9
    small = RunOptions(workers=1, memory_bytes=2 * (3 * per_particle + 16**3 * 32))
    units = cut_units(project, todo, volumes, small)
    assert max(len(p) for _, p in units) <= 3
    assert sorted(i for _, p in units for i in p) == list(range(16))
    assert all(np.all(np.diff(p) > 0) for _, p in units)


def test_a_volume_too_large_for_the_memory_is_refused_with_the_number(project, tmp_path):
    options = ExtractOptions(box_size=256, mode="volume3d")
    with pytest.raises(MemoryBudgetError, match=r"needs .* GiB .* --memory is 0.25 GiB"):
        extract(project, options, tmp_path / "out", RunOptions(memory_bytes=1 << 28))
    assert not (tmp_path / "out").exists()


def test_a_cluster_gets_several_units_of_a_tilt_series(project):
    units = cut_units(project, remaining_particles(project, ()), STACKS, RunOptions(), n_slots=4)
    assert len(units) >= 2
    assert sorted(i for _, p in units for i in p) == list(range(16))


def test_going_on_does_only_what_is_missing(project, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    extract(project, STACKS, "out")
    before = contents(tmp_path / "out")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "Subtomograms").rglob("*.mrcs")}
    gone = sorted((tmp_path / "out" / "Subtomograms" / "grid2_ts1").glob("*.mrcs"))[0]
    gone.unlink()
    notes = []
    extract(project, STACKS, "out", observer=lambda e: notes.append(e.text) if isinstance(e, Note) else None)
    assert contents(tmp_path / "out") == before
    assert any("8 particles are done from an earlier run" in note for note in notes)
    untouched = [p for p in times if "grid1_ts3" in str(p)]
    assert all(p.stat().st_mtime_ns == times[p] for p in untouched)


def test_other_options_in_the_same_folder_are_refused_with_the_difference(project, tmp_path):
    extract(project, STACKS, tmp_path / "out")
    with pytest.raises(OutputError, match="box_size was 24, is 32"):
        extract(project, dataclasses.replace(STACKS, box_size=32), tmp_path / "out")
    summary = extract(
        project, dataclasses.replace(STACKS, box_size=32), tmp_path / "out", RunOptions(overwrite=True)
    )
    assert summary.n_extracted > 0


def test_stacks_that_are_not_finite_or_constant_are_left_out_and_told(project, tmp_path, monkeypatch):
    def spoil(data):
        data[3, :, :] = np.nan

    spoiled = images_replaced(project, tmp_path / "nan.mrcs", spoil)
    monkeypatch.chdir(tmp_path)
    summary = extract(spoiled, STACKS, "out")
    assert summary.skipped["stack with values that are not finite"] >= 6
    table = starfile.read(tmp_path / "out" / "particles.star")["particles"]
    assert len(table) == summary.n_extracted < 16
    assert all((tmp_path / name).is_file() for name in table["rlnImageName"])
    assert len(list((tmp_path / "out").rglob("*.mrcs"))) == summary.n_extracted
    report = json.loads((tmp_path / "out" / "report" / "report.json").read_text())
    assert report["skipped"] == dict(summary.skipped)
    assert report["skipped_by_tilt_series"]["grid1_ts3"]["stack with values that are not finite"] >= 6


def test_nothing_but_bad_stacks_is_an_error(project, tmp_path):
    only = project.part(0, project.particles_of[0])
    blank = images_replaced(only, tmp_path / "zero.mrcs", lambda data: data.fill(0))
    options = dataclasses.replace(STACKS, ctf=False)
    with pytest.raises(BadResultError, match="constant"):
        extract(blank, options, tmp_path / "out")
    assert not (tmp_path / "out" / "particles.star").exists()


def test_particles_that_all_miss_the_images_are_diagnosed(project, tmp_path):
    particles = dataclasses.replace(
        project.particles, coordinates_angst=project.particles.coordinates_angst * 50
    )
    with pytest.raises(IneligibleError, match=r"No particle is left.*project to x .* must stay 24 pixels"):
        extract(dataclasses.replace(project, particles=particles), STACKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_disk_without_room_is_refused_before_work(project, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("portal_extract.extraction.survey.shutil.disk_usage", lambda path: usage)
    with pytest.raises(OutputError, match="free"):
        extract(project, STACKS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_remaining_particles(project):
    done = [UnitResult("grid1_ts3", tuple(range(8))), UnitResult("grid2_ts1", (8, 10))]
    assert [(t, p.tolist()) for t, p in remaining_particles(project, done)] == [(1, [9, 11, 12, 13, 14, 15])]
