"""Averages of stacks already extracted equal those straight from the tilt images, as far as they can.

Stacks have lost what a real image cannot hold at the Nyquist frequency: sums are compared inside of it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from reconstruct_support import volume, without_pictures
from relion_cases import HERE

from portal_extract.cli import cli, main
from portal_extract.extraction.job import extract
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.reconstruction.correction import signed_frequencies
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.fsc import correlate_shells
from portal_extract.reconstruction.options import ReconstructOptions
from portal_extract.reconstruction.parts import part_views
from portal_extract.reconstruction.stacks import find_stacks, no_images, options_for_stacks, stack_batches
from portal_extract.reconstruction.summing import Summing
from portal_extract.reconstruction.survey import survey_reconstruction
from portal_extract.relion_io.star import read_star, write_star
from portal_extract.running.events import ignore
from portal_extract.running.guard import Guard
from portal_extract.running.schedulers import find_place
from portal_extract.sources.relion import ProjectFiles, read_project

PROJECT = HERE / "data" / "relion5" / "advanced"
FILES = ProjectFiles("particles.star", "tomograms.star", "motion.star")
BOX = 24
#: masks of the unbinned box alone, as in a reconstruction
ALIKE = {"circle_crop": False, "circle_precrop": True}


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch):
    monkeypatch.chdir(PROJECT)
    without_pictures(monkeypatch)


def sums(project, options: ReconstructOptions, folder: Path, from_stacks: bool):
    stacks = find_stacks(project) if from_stacks else None
    if stacks is not None:
        options = options_for_stacks(options, stacks)
    survey = survey_reconstruction(project, options, RunOptions(), stacks)
    summing = Summing(survey.parts, options, survey.n_halves, survey.map_pixel_angst, folder, "stamp", 999.0)
    place = find_place(RunOptions(), None, ignore)
    return summing.run(place, Guard(str(folder), ""), ignore).halves


def read_extracted(out: Path):
    return read_project(ProjectFiles(optimisation_set=str(out / "optimisation_set.star")), no_images)


def differences(found, expected) -> tuple[float, float]:
    """Largest differences of data and weights inside of the Nyquist frequency, relative to their RMS."""
    k = signed_frequencies(BOX)
    radius2 = np.arange(BOX // 2 + 1.0) ** 2 + (k**2)[:, None] + (k**2)[:, None, None]
    inside = radius2 < (BOX / 2 - 1.5) ** 2
    apart = []
    for name in ("data", "weight"):
        one, other = (
            np.stack([getattr(half, name)[inside] for half in halves]) for halves in (found, expected)
        )
        apart.append(float(np.abs(one - other).max() / np.sqrt(np.mean(np.abs(other) ** 2))))
    return apart[0], apart[1]


@pytest.mark.parametrize(
    ("extracted", "averaged"),
    [
        ({}, {}),
        ({"ctf": False}, {}),
        ({"ctf": False}, {"ctf": False}),
        ({}, {"max_dose_e_per_a2": 40.0, "cutoff_fraction": 0.3}),
        ({"binning": 1.5, "box_size": 24}, {"binning": 1.5}),
    ],
    ids=["premultiplied", "bare", "bare-without-ctf", "limited", "binned"],
)
def test_sums_are_those_of_the_direct_way(tmp_path, extracted, averaged):
    options = ExtractOptions(**{"box_size": BOX, **ALIKE, **extracted})
    direct = read_project(FILES)
    extract(direct, options, tmp_path / "x")
    stored = read_extracted(tmp_path / "x")
    # extraction keeps a larger distance from the border than reconstruction where it bins
    frames = {"visible_frames": "stored"} if options.binning > 1 else {}
    if frames:
        direct = read_project(ProjectFiles(optimisation_set=str(tmp_path / "x/optimisation_set.star")))
    expected = sums(direct, ReconstructOptions(BOX, **averaged, **frames), tmp_path, from_stacks=False)
    found = sums(stored, ReconstructOptions(0, **averaged), tmp_path, from_stacks=True)
    data, weight = differences(found, expected)
    assert weight < 1e-5
    assert data < 2e-4
    assert np.abs(expected[0].data).max() > 0


def test_wrong_scale_would_be_noticed(tmp_path):
    extract(read_project(FILES), ExtractOptions(box_size=BOX, **ALIKE), tmp_path / "x")
    found = sums(read_extracted(tmp_path / "x"), ReconstructOptions(0), tmp_path, from_stacks=True)
    for half in found:
        half.data[:] *= 1.01
    expected = sums(read_project(FILES), ReconstructOptions(BOX), tmp_path, from_stacks=False)
    assert differences(found, expected)[0] > 1e-2


def test_origins_refined_after_extraction_are_applied(tmp_path):
    """Extraction without offsets leaves them in the table, as a refinement does."""
    extract(read_project(FILES), ExtractOptions(box_size=BOX, apply_offsets=False, **ALIKE), tmp_path / "x")
    stored = read_extracted(tmp_path / "x")
    options = ReconstructOptions(BOX)
    assert np.abs(stored.particles.origins_angst).max() > 5
    expected = finalise(sums(read_project(FILES), options, tmp_path, from_stacks=False), options, 7.4)
    found = finalise(sums(stored, ReconstructOptions(0), tmp_path, from_stacks=True), options, 7.4)

    def agreement(maps) -> float:
        one, other = (np.fft.rfftn(m["merged"].astype(np.float64)) for m in (maps, expected))
        return float(correlate_shells(one, other)[1:10].min())

    # the masks are elsewhere, so that they do not agree completely
    assert agreement(found) > 0.98
    without = sums(read_without_origins(tmp_path / "x"), ReconstructOptions(0), tmp_path, from_stacks=True)
    assert agreement(finalise(without, options, 7.4)) < 0.9


def read_without_origins(out: Path):
    shutil.copytree(out, out.with_name("y"))
    path = out.with_name("y") / "particles.star"
    file = read_star(path)
    particles = file.block("particles").table()
    for axis in "XYZ":
        particles = particles.with_column(f"rlnOrigin{axis}Angst", ["0"] * len(particles))
    blocks = [("general", file.block("general").values()), ("optics", file.block("optics").table())]
    write_star(path, [*blocks, ("particles", particles)])
    return read_project(ProjectFiles(str(path), "tomograms.star"), no_images)


# -------------------------------------------------------------------------------------- command line


@pytest.fixture
def extracted(tmp_path) -> Path:
    options = ExtractOptions(box_size=BOX, crop_size=20, binning=1.5, float16=True)
    extract(read_project(FILES), options, tmp_path / "x")
    return tmp_path / "x"


def run(out: Path, *arguments: str) -> None:
    optimisation_set = str(out / "optimisation_set.star")
    command = ["reconstruct", "local", "--from-stacks", "--optimisation-set", optimisation_set, *arguments]
    cli.main([*command, "-o", str(out / "average"), "--quiet"], standalone_mode=False)


def test_half_precision_cropped_stacks_through_the_command_line(extracted):
    run(extracted, "--sym", "C2")
    assert volume(extracted / "average").shape == (20, 20, 20)
    with mrcfile.open(extracted / "average" / "half1.mrc") as file:
        assert float(file.voxel_size.x) == pytest.approx(1.5 * 7.4)


def refusal(capsys, out: Path, *arguments: str) -> str:
    optimisation_set = str(out / "optimisation_set.star")
    command = ["reconstruct", "local", "--from-stacks", "--optimisation-set", optimisation_set, *arguments]
    with pytest.raises(SystemExit) as caught:
        main([*command, "-o", str(out / "refused"), "--quiet"])
    assert caught.value.code == 2
    assert not (out / "refused").exists()
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--box-size", "24"], ["--box-size 24", "images of 20"]),
        (["--bin", "2"], ["--bin 2", "extracted with 1.5"]),
        (["--whiten"], ["--whiten", "tilt images"]),
        (["--no-ctf"], ["--no-ctf", "multiplied by the CTF already"]),
        (["--visible-frames", "geometric"], ["--visible-frames geometric"]),
        (["--memory", "16MiB", "--crop-size", "18"], ["--memory is 0.02 GiB"]),
    ],
)
def test_what_stacks_cannot_give_is_refused(extracted, capsys, arguments, words):
    told = refusal(capsys, extracted, *arguments)
    assert all(word in told for word in words), told


def test_missing_and_changed_stacks_are_named(extracted, capsys):
    stacks = sorted((extracted / "Subtomograms").rglob("*.mrcs"))
    stacks[0].unlink()
    shutil.copy(stacks[2], stacks[1])
    told = refusal(capsys, extracted)
    assert str(stacks[0]) in told


def test_particles_without_stacks_are_refused(capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(["reconstruct", "local", "--from-stacks", "--particles-starfile", "particles.star",
              "--tomograms-starfile", "tomograms.star", "-o", str(tmp_path / "out")])  # fmt: skip
    assert "data_particles has no rlnImageName" in capsys.readouterr().err


def test_batches_hold_each_image_once(extracted):
    project = read_extracted(extracted)
    stacks = find_stacks(project)
    options = options_for_stacks(ReconstructOptions(0), stacks)
    survey = survey_reconstruction(project, options, RunOptions(), stacks)
    part = survey.parts[0]
    views = part_views(part, options)
    for size in (1, 7, 10_000):
        batches = list(stack_batches(part.stacks, views, size, ignore))
        assert np.concatenate([batch.views for batch in batches]).tolist() == list(range(len(views)))
        for batch in batches[:3]:
            images = batch.cut(None)
            for image, view in zip(images, batch.views, strict=True):
                stack = mrcfile.read(part.stacks.paths[views.particle[view]])
                stack = stack.reshape(-1, 20, 20)
                np.testing.assert_array_equal(image, stack[views.slot[view]].astype(np.float32))
