"""RELION's cases through the slow 2D reference and the package's 3D numerics, compared as arrays.

No image is written: what is compared are the arrays that would be. The tolerances are those of
``compare_relion.py``: 1e-4 (largest) and 1e-5 (RMS) of the RMS of the reference, plus what was recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import mrcfile
import numpy as np
import reference_extraction as ref
from relion_cases import Case

from portal_extract.extraction.volumes import Pose, VolumeSum, particle_volumes
from portal_extract.options import ExtractOptions, VolumeOptions
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.options import ReconstructOptions

SWITCHES = {
    "--no_ctf": ("ctf", False),
    "--no_circle_crop": ("circle_crop", False),
    "--circle_precrop": ("circle_precrop", True),
    "--no_ic": ("invert", False),
    "--dont_apply_offsets": ("apply_offsets", False),
    "--apply_orientations": ("apply_orientations", True),
    "--whiten": ("whiten", True),
    "--grid_precorr": ("grid_precorr", True),
    "--stack2d": ("", True),
    "--float16": ("float16", True),
    "--multi": ("write_multiplicity", True),
    "--ctf": ("write_ctf", True),
    "--nrm": ("write_normalised", True),
    "--div": ("write_divided", True),
    "--no_comb": ("write_combined", False),
    "--cone_weight": ("cone_weight", True),
    "--no_center": ("centre", False),
    "--sum": ("write_sum", True),
    "--no_writing": ("write_particles", False),
}
VALUES = {
    "--b": ("box", int),
    "--crop": ("crop", int),
    "--bin": ("binning", float),
    "--max_dose": ("max_dose", float),
    "--min_frames": ("min_frames", int),
    "--cutoff_fract": ("cutoff", float),
    "--SNR": ("snr", float),
    "--taper": ("taper_px", float),
    "--cone_angle": ("cone_angle_deg", float),
    "--cone_sig0": ("cone_sigma0", float),
    "--sym": ("symmetry", str),
    "--nr_helical_asu": ("helical_units", int),
    "--helical_rise": ("helical_rise_angst", float),
    "--helical_twist": ("helical_twist_deg", float),
    "--i": ("set", str),
    "--p": ("particles", str),
    "--t": ("tomograms", str),
    "--mot": ("motion", str),
}


@dataclass(frozen=True)
class Difference:
    name: str
    largest: float
    rms: float
    ok: bool


def values_of(case: Case) -> dict[str, object]:
    found: dict[str, object] = {}
    rest = list(case.args)
    while rest:
        name = rest.pop(0)
        if name in SWITCHES:
            found[SWITCHES[name][0]] = SWITCHES[name][1]
        else:
            label, kind = VALUES[name]
            found[label] = kind(rest.pop(0))
    if "set" in found:
        files = ref.starfile.read(case.project / str(found["set"]))
        found["particles"], found["tomograms"] = files["rlnTomoParticlesFile"], files["rlnTomoTomogramsFile"]
        found["motion"] = files.get("rlnTomoTrajectoriesFile")
    return found


def only(kind: type, values: dict[str, object]) -> dict[str, object]:
    return {f.name: values[f.name] for f in fields(kind) if f.name in values}


def load(case: Case) -> tuple[ref.Project, ref.Settings, dict[str, object]]:
    values = values_of(case)
    settings = ref.Settings(**only(ref.Settings, values), reconstruct="reconstruct" in case.program)
    project = ref.load_project(
        case.project, str(values["particles"]), str(values["tomograms"]), values.get("motion")
    )
    return project, settings, values


def stacks(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    project, settings, _ = load(case)
    for particle in project.particles:
        if ref.is_kept(particle, settings):
            yield (
                f"Subtomograms/{particle.name}_stack2d.mrcs",
                ref.stack2d(project, particle, settings),
            )


def volumes(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    project, s, values = load(case)
    options = ExtractOptions(
        box_size=s.box,
        crop_size=s.out,
        binning=s.binning,
        apply_orientations=s.apply_orientations,
        volume=VolumeOptions(**only(VolumeOptions, values)),
    )
    total = VolumeSum(options.output_size)
    for particle in project.particles:
        if not ref.is_kept(particle, s):
            continue
        frames = ref.spectra(project, particle, s)
        seen = np.flatnonzero(frames.visible)
        found, weight = particle_volumes(
            ref.masked_spectra(frames, s)[seen],
            frames.weights[seen] if s.ctf or s.whiten else np.ones((1, 1, 1), np.float32),
            frames.projections[seen],
            Pose(frames.a_sub, frames.a_full),
            frames.ranges[seen],
            options,
        )
        total.add(found["data"], weight)
        if options.volume.write_particles:
            yield from ((f"Subtomograms/{particle.name}_{key}.mrc", v) for key, v in found.items())
    if options.volume.write_sum:
        yield from ((f"{key}.mrc", v) for key, v in total.volumes(options.volume).items())


def slices_of(project: ref.Project, particle: ref.Particle, s: ref.Settings) -> Slices:
    frames = ref.spectra(project, particle, s)
    seen = np.flatnonzero(frames.visible)
    ratio = project.tomograms[0].pixel * s.binning / (particle.tomogram.pixel * s.binning)
    return Slices(
        frames.spectra[seen],
        frames.weights[seen] if s.ctf or s.whiten else np.ones((1, 1, 1), np.float32),
        insertion_matrices(frames.projections[seen], frames.a_full, ratio),
        frames.ranges[seen, 0],
    )


def half_set(particle: ref.Particle) -> int:
    return int(particle.row.get("rlnRandomSubset", 1)) - 1


def accumulate(project: ref.Project, s: ref.Settings) -> list[Accumulator]:
    halves = [Accumulator.empty(s.box) for _ in range(1 + max(map(half_set, project.particles)))]
    for particle in project.particles:
        insert(halves[half_set(particle)], slices_of(project, particle, s))
    return halves


def reconstruction_options(box: int, values: dict[str, object]) -> ReconstructOptions:
    crop = {"crop_size": values["crop"]} if "crop" in values else {}
    options = ReconstructOptions(box_size=box, **crop, **only(ReconstructOptions, values))
    options.check()
    return options


def maps(case: Case) -> Iterator[tuple[str, np.ndarray]]:
    project, s, values = load(case)
    options = reconstruction_options(s.box, values)
    pixel = s.binning * project.tomograms[0].pixel
    for name, volume in finalise(accumulate(project, s), options, pixel, workers=2).items():
        yield f"{name}.mrc", volume


def compare(case: Case, found: Iterator[tuple[str, np.ndarray]]) -> list[Difference]:
    """Differences to the files of a case; missing and additional files are failures."""
    record = next(
        c for c in json.loads((case.project / "cases.json").read_text())["cases"] if c["name"] == case.name
    )
    left = {str(p.relative_to(case.expected)) for p in case.expected.rglob("*.mrc*")}
    result = []
    for name, volume in found:
        if name not in left:
            result.append(Difference(f"{name} is not in the reference", np.inf, np.inf, False))
            continue
        left.remove(name)
        expected = mrcfile.read(case.expected / name)
        kind = name
        if name.startswith("Subtomograms"):
            kind = "Subtomograms/*_" + Path(name).name.partition("_")[2]
        result.append(
            difference(name, volume, expected, record["rounding"].get(kind, {"max": 0.0, "rms": 0.0}))
        )
    return result + [Difference(f"{name} is missing", np.inf, np.inf, False) for name in sorted(left)]


def difference(name: str, volume: np.ndarray, expected: np.ndarray, rounding: dict[str, float]) -> Difference:
    if expected.ndim == 2:  # one image
        expected = expected[None]
    assert volume.shape == expected.shape, (name, volume.shape, expected.shape)
    apart = np.abs(volume.astype(np.float64) - expected.astype(np.float64))
    if expected.dtype == np.float16:  # one unit in the last place is free
        smallest = float(np.finfo(np.float16).smallest_normal)
        spacing = np.maximum(np.spacing(np.abs(expected)).astype(np.float64), smallest)
        apart = np.maximum(apart - spacing, 0)
    apart /= np.sqrt(np.mean(expected.astype(np.float64) ** 2)) or 1.0
    largest, rms = float(apart.max()), float(np.sqrt(np.mean(apart**2)))
    return Difference(
        name, largest, rms, largest <= 1e-4 + 4 * rounding["max"] and rms <= 1e-5 + 4 * rounding["rms"]
    )


def failures(case: Case, found: Iterator[tuple[str, np.ndarray]]) -> list[Difference]:
    differences = compare(case, found)
    assert differences, "nothing was compared"
    return [d for d in differences if not d.ok]
