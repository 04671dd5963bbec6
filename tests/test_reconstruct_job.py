"""The reconstruction job: what it writes, what it refuses, and what its options do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import starfile
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
from running_project import load, write_many

from portal_extract.errors import (
    IneligibleError,
    MemoryBudgetError,
    OutputError,
    StarFileError,
    UnsupportedError,
    UsageError,
)
from portal_extract.options import RunOptions
from portal_extract.reconstruction.accumulate import Accumulator
from portal_extract.reconstruction.budget import plan_memory
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.outputs import map_names, written_bytes
from portal_extract.relion_io.mrc import write_mrc
from portal_extract.sources.relion import ProjectFiles, read_project

TAGS = ("half1", "half2", "merged")
NAMES = sorted(f"{kind}{tag}.mrc" for tag in TAGS for kind in ("", "data_", "weight_"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_many(tmp_path_factory.mktemp("project"), n_series=3, n_particles=8)


@pytest.fixture(scope="module")
def project(folder):
    return load(folder)


@pytest.fixture(scope="module")
def out(project, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "a"
    average(project, out)
    return out


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch, out):
    without_pictures(monkeypatch)


# ----------------------------------------------------------------------------------------- outputs


def test_names_sizes_and_headers(out):
    assert sorted(maps(out)) == NAMES
    assert sum(map(len, maps(out).values())) == written_bytes(OPTIONS, 2)
    for name in NAMES:
        with mrcfile.open(out / name) as file:
            assert file.is_volume()
            assert file.header.mode == 2
            assert [float(file.voxel_size[axis]) for axis in "xyz"] == [2.0, 2.0, 2.0]
            assert file.data.shape == (16, 16, 16)
        assert mrcfile.validate(out / name)
    report = sorted(path.name for path in (out / "report").iterdir())
    assert report == ["fsc.png", "fsc.star", "halves.png", "merged.png", "report.json"]
    assert sums_on_disk(out) == []
    assert list(out.rglob("*.part")) == []


@pytest.mark.parametrize("n_halves", [1, 2])
@pytest.mark.parametrize("crop", [None, 12, 16])
def test_predicted_names_are_those_of_finalisation(n_halves, crop):
    options = ReconstructOptions(box_size=16, crop_size=crop, taper_px=2)
    made = finalise([Accumulator.empty(16)] * n_halves, options, 2.0)
    assert map_names(options, n_halves) == tuple(made)
    assert written_bytes(options, n_halves) == sum(1024 + volume.nbytes for volume in made.values())


def test_half_sets_are_in_the_table_and_the_next_job_finds_everything(out, project, tmp_path, monkeypatch):
    monkeypatch.chdir(out.parent)
    star = starfile.read(out / "optimisation_set.star")
    star = star if isinstance(star, dict) else star.iloc[0].to_dict()
    assert Path(star["rlnTomoReferenceMap1File"]).samefile(out / "half1.mrc")
    assert Path(star["rlnTomoReferenceMap2File"]).samefile(out / "half2.mrc")
    images = Path(project.tilt_series[0].image_stack.uris[0]).parents[1]
    files = ProjectFiles(
        optimisation_set=str(out / "optimisation_set.star"), tiltseries_relative_dir=str(images)
    )
    again = read_project(files)
    assert sorted(np.unique(again.particles.random_subset)) == [1, 2]
    average(again, tmp_path / "b", make_subsets=False)
    assert maps(tmp_path / "b") == maps(out)


def test_seed_decides_the_half_sets(project, out, tmp_path):
    average(project, tmp_path / "same")
    average(project, tmp_path / "other", seed=6)
    assert maps(tmp_path / "same") == maps(out)
    assert maps(tmp_path / "other")["half1.mrc"] != maps(out)["half1.mrc"]
    np.testing.assert_allclose(volume(tmp_path / "other"), volume(out), atol=1e-4 * volume(out).std())


def test_report_tells_what_happened(out, project):
    report = json.loads((out / "report" / "report.json").read_text())
    assert report["particles"] == report["averaged"] == 24
    assert [half["particles"] for half in report["half_sets"]] == [12, 12]
    assert report["views"] == 24 * 7 == sum(half["views"] for half in report["half_sets"])
    assert report["visible_frames"] == "geometric"
    assert report["options"]["seed"] == 5
    assert report["bytes_read"] > 24 * 7 * 16 * 16 * 4 * 0.99
    assert report["resolution"]["mask"] == "soft sphere"
    fsc = starfile.read(out / "report" / "fsc.star", always_dict=True)
    assert len(fsc["fsc"]) == 9
    columns = fsc["fsc"].columns
    assert "rlnFourierShellCorrelationCorrected" in columns
    assert fsc["fsc"]["rlnSpectralIndex"].tolist() == list(range(9))


def test_mask_counts_for_the_curves_alone(project, out, tmp_path):
    mask = np.zeros((16, 16, 16), np.float32)
    mask[4:12, 4:12, 4:12] = 1
    write_mrc(tmp_path / "mask.mrc", mask, 2.0, kind="volume")
    summary = average(project, tmp_path / "out", mask=str(tmp_path / "mask.mrc"))
    assert maps(tmp_path / "out") == maps(out)
    general = starfile.read(tmp_path / "out" / "report" / "fsc.star", always_dict=True)["general"]
    general = general if isinstance(general, dict) else general.iloc[0].to_dict()
    assert general["rlnParticleBoxFractionSolventMask"] == pytest.approx(1 / 8)
    assert general["rlnMaskName"] == str(tmp_path / "mask.mrc") == summary.resolution.mask


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.ones((8, 8, 8)), "8 x 8 x 8"),
        (np.full((16, 16, 16), 2.0), "0 to 1"),
        (np.zeros((16,) * 3), "0 to 1"),
    ],
)
def test_unfit_masks_are_refused(project, tmp_path, mask, words):
    write_mrc(tmp_path / "mask.mrc", mask.astype(np.float32), 2.0, kind="volume")
    with pytest.raises(UsageError, match=words):
        average(project, tmp_path / "out", mask=str(tmp_path / "mask.mrc"))
    assert not (tmp_path / "out").exists()


def test_without_half_sets_there_is_one_map_and_a_warning(project, tmp_path):
    told = Told()
    summary = average(project, tmp_path, make_subsets=False, observer=told)
    assert sorted(maps(tmp_path)) == ["data_merged.mrc", "merged.mrc", "weight_merged.mrc"]
    assert "half sets" in told.notes("warning")
    assert summary.resolution is None
    assert not (tmp_path / "report" / "fsc.png").exists()
    assert "ReferenceMap" not in (tmp_path / "optimisation_set.star").read_text()


# ------------------------------------------------------------------------------- the same, again


@pytest.mark.parametrize("run", [RunOptions(workers=1), RunOptions(workers=3, memory_bytes=96 << 20)])
def test_maps_do_not_depend_on_workers_and_memory(project, out, tmp_path, run):
    average(project, tmp_path, run=run, **AT_ONCE)
    assert maps(tmp_path) == maps(out)


def test_a_finished_folder_is_left_as_it_is(project, tmp_path):
    average(project, tmp_path)
    before, told = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mrc")}, Told()
    summary = average(project, tmp_path, observer=told)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.mrc")} == before
    assert "finished" in told.notes()
    assert summary.n_averaged == 24
    assert summary.resolution is not None


def test_a_map_that_is_gone_is_made_again(project, out, tmp_path):
    average(project, tmp_path)
    (tmp_path / "half2.mrc").unlink()
    average(project, tmp_path)
    assert maps(tmp_path) == maps(out)


def test_other_options_in_the_same_folder_are_refused_or_overwrite(project, tmp_path):
    average(project, tmp_path)
    with pytest.raises(OutputError, match="snr was -1"):
        average(project, tmp_path, snr=1.0)
    with pytest.raises(OutputError, match="box_size"):
        average(project, tmp_path, box_size=12)
    average(project, tmp_path, box_size=12, run=RunOptions(overwrite=True))
    assert volume(tmp_path).shape == (12, 12, 12)


def test_symmetry_file_counts_by_its_content(project, tmp_path):
    file = tmp_path / "group.sym"
    file.write_text("rot_axis 2 0 0 1\n")
    average(project, tmp_path / "file", symmetry=str(file))
    average(project, tmp_path / "name", symmetry="C2")
    assert maps(tmp_path / "file") == maps(tmp_path / "name")
    file.write_text("rot_axis 3 0 0 1\n")
    with pytest.raises(OutputError, match="symmetry file"):
        average(project, tmp_path / "file", symmetry=str(file))


# ------------------------------------------------------------------------------- tilt images that count


def with_frames(project, flags: list[str]):
    particles = project.tables.particles.with_column("rlnTomoVisibleFrames", flags)
    return replace(project, tables=replace(project.tables, particles=particles))


def test_stored_frames_are_those_that_a_dose_limit_leaves(project, tmp_path):
    limited = with_frames(project, ["[1,1,1,0,0,0,0]"] * 24)  # doses are 0, 3, 6 ...
    stored = average(limited, tmp_path / "stored", visible_frames="stored")
    average(project, tmp_path / "dose", max_dose_e_per_a2=6.0)
    average(limited, tmp_path / "geometric")
    assert stored.n_views == 24 * 3
    assert maps(tmp_path / "stored") == maps(tmp_path / "dose")
    assert maps(tmp_path / "geometric")["merged.mrc"] != maps(tmp_path / "dose")["merged.mrc"]


def test_some_particles_may_lose_all_frames(project, tmp_path):
    flags = ["[0,0,0,0,0,0,0]"] * 2 + ["[1,0,1,0,1,0,1]"] * 22
    summary = average(with_frames(project, flags), tmp_path, visible_frames="stored")
    assert summary.n_averaged == 22
    assert summary.n_views == 22 * 4
    assert list(summary.skipped.values()) == [2]


@pytest.mark.parametrize(("flags", "words"), [("[1,1]", "a list of 2"), ("none", "no list")])
def test_stored_frames_must_fit(project, tmp_path, flags, words):
    with pytest.raises(StarFileError, match=words):
        average(with_frames(project, [flags] * 24), tmp_path / "out", visible_frames="stored")
    assert not (tmp_path / "out").exists()


def test_stored_frames_must_be_there(project, tmp_path):
    with pytest.raises(StarFileError, match="rlnTomoVisibleFrames"):
        average(project, tmp_path, visible_frames="stored")


# ----------------------------------------------------------------------------------------- refusals


def with_subset(project, subset: list[int]):
    return replace(project, particles=replace(project.particles, random_subset=np.array(subset)))


def test_half_sets_that_are_there_are_not_drawn_over(project, tmp_path):
    divided = with_subset(project, [1, 2] * 12)
    with pytest.raises(UsageError, match="--replace-subsets"):
        average(divided, tmp_path / "refused")
    average(divided, tmp_path / "replaced", replace_subsets=True)
    average(project, tmp_path / "drawn")
    assert maps(tmp_path / "replaced") == maps(tmp_path / "drawn")
    assert tables(tmp_path / "replaced")["particles.star"] == tables(tmp_path / "drawn")["particles.star"]


def test_unknown_half_sets_are_refused(project, tmp_path):
    with pytest.raises(UnsupportedError, match="row 24: rlnRandomSubset is 3"):
        average(with_subset(project, [1] * 23 + [3]), tmp_path, make_subsets=False)


def test_one_half_set_is_none(project, tmp_path):
    told = Told()
    average(with_subset(project, [2] * 24), tmp_path, make_subsets=False, observer=told)
    assert "half1.mrc" not in maps(tmp_path)
    assert "half sets" in told.notes("warning")


def moved(project, rows: slice):
    """Put some particles far outside of the images."""
    coordinates = project.particles.coordinates_angst.copy()
    coordinates[rows] += 1e5
    return replace(project, particles=replace(project.particles, coordinates_angst=coordinates))


def test_nothing_to_see_is_refused(project, tmp_path):
    with pytest.raises(IneligibleError, match="no particle is in any tilt image"):
        average(moved(project, slice(None)), tmp_path / "none")
    divided = with_subset(moved(project, slice(12)), [1] * 12 + [2] * 12)
    with pytest.raises(IneligibleError, match="one half set"):
        average(divided, tmp_path / "half", make_subsets=False)
    assert not (tmp_path / "none").exists()


def test_particles_outside_are_counted(project, tmp_path):
    # all of the first tilt series, and one more
    summary = average(moved(project, slice(9)), tmp_path)
    assert summary.n_averaged == 15
    assert summary.skipped == {"outside of every tilt image that counts": 9}


def test_a_box_too_large_for_the_memory_is_refused_before_anything_is_read(project, tmp_path):
    options = replace(OPTIONS, box_size=512)
    with pytest.raises(MemoryBudgetError, match=r"raise --memory to \d+\.?\d*GiB") as caught:
        average(project, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    needed = str(caught.value).partition("raise --memory to ")[2].partition("GiB")[0]
    plan_memory(options, 2, 7, RunOptions(memory_bytes=int(float(needed) * (1 << 30))), 2)


@pytest.mark.parametrize("box", [64, 256])
@pytest.mark.parametrize("workers", [1, 16])
def test_memory_is_divided_without_a_rest(box, workers):
    run = RunOptions(memory_bytes=3 << 30)
    budget = plan_memory(ReconstructOptions(box_size=box, binning=2), 2, 60, run, workers)
    sums = 2 * 24 * box * box * (box // 2 + 1)
    assert budget.reading.memory_bytes + sums < run.memory_bytes
    assert budget.reading.memory_bytes >= 48 << 20
    assert budget.reading.in_order
    assert budget.predicted_bytes <= run.memory_bytes


# ----------------------------------------------------------------------------------------- bad pixels


def test_images_that_are_not_finite_are_left_out(tmp_path):
    folder = write_many(tmp_path / "project", n_series=1, n_particles=6)
    project = load(folder)
    average(with_frames(project, ["[1,1,0,1,1,1,1]"] * 6), tmp_path / "without", visible_frames="stored")
    with mrcfile.mmap(folder / "images/TS_00.mrcs", "r+", permissive=True) as file:
        file.data[2] = np.nan
    told = Told()
    summary = average(load(folder), tmp_path / "with", observer=told)
    assert maps(tmp_path / "with") == maps(tmp_path / "without")
    assert set(summary.left_out) == set(project.particles.names)
    assert "1 image with values that are not finite left out" in told.notes("warning")
    assert "and 1 more particles" in told.notes("warning")
