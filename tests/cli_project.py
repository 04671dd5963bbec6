"""A small RELION project on disk, for tests of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from portal_extract.relion_io.mrc import write_stack

N_TILTS = 5
SIZES = {"TS_1": (100, 120), "007": (90, 110)}  # height, width
ANGLES = np.linspace(-40, 40, N_TILTS)

_TILT_LABELS = (
    "rlnMicrographName", "rlnTomoYTilt", "rlnTomoZRot", "rlnTomoXShiftAngst", "rlnTomoYShiftAngst",
    "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnMicrographPreExposure",
)  # fmt: skip
_TOMOGRAM_LABELS = (
    "rlnTomoName", "rlnTomoTiltSeriesStarFile", "rlnTomoHand", "rlnVoltage", "rlnSphericalAberration",
    "rlnAmplitudeContrast", "rlnTomoTiltSeriesPixelSize", "rlnTomoSizeX", "rlnTomoSizeY", "rlnTomoSizeZ",
)  # fmt: skip
_PARTICLE_LABELS = (
    "rlnTomoName", "rlnTomoParticleName", "rlnCenteredCoordinateXAngst", "rlnCenteredCoordinateYAngst",
    "rlnCenteredCoordinateZAngst",
)  # fmt: skip

PARTICLES = [
    ("TS_1", "TS_1/1", "0", "0", "0"),
    ("TS_1", "TS_1/2", "40", "-20", "10"),
    ("TS_1", "TS_1/3", "-30", "25", "-5"),
    ("007", "007/1", "10", "20", "-8"),
]

#: the two files and a box that fits
ARGUMENTS = ["--particles-starfile", "particles.star", "--tomograms-starfile", "tomograms.star"]
BOX = ["--box-size", "16"]


def table(name: str, labels: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A loop of a STAR file."""
    head = "\n".join(f"_{label} #{n}" for n, label in enumerate(labels, start=1))
    return f"\ndata_{name}\n\nloop_\n{head}\n" + "\n".join(" ".join(row) for row in rows) + "\n"


def write_project(folder: Path) -> None:
    """Two tilt series of noise with four particles, all of which every tilt image sees in a box of 16."""
    random = np.random.default_rng(3)
    for name in ("images", "tilts"):
        (folder / name).mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        pixels = random.normal(size=(N_TILTS, height, width)).astype(np.float32)
        write_stack(folder / f"images/{name}.mrcs", pixels, 2.0)
        rows = [
            (f"{t + 1}@images/{name}.mrcs", f"{angle:g}", "85", "0", "0", "30000", "29000", "40", f"{3 * t}")
            for t, angle in enumerate(ANGLES)
        ]
        (folder / f"tilts/{name}.star").write_text(table(name, _TILT_LABELS, rows))
    tomograms = [
        (name, f"tilts/{name}.star", "-1", "300", "2.7", "0.1", "2.0", f"{width}", f"{height}", "40")
        for name, (height, width) in SIZES.items()
    ]
    (folder / "tomograms.star").write_text(table("global", _TOMOGRAM_LABELS, tomograms))
    (folder / "particles.star").write_text(table("particles", _PARTICLE_LABELS, PARTICLES))


def write_motion(folder: Path, n_rows: int = N_TILTS) -> None:
    """Trajectories of all particles; the second has ``n_rows`` rows."""
    text = f"\ndata_general\n\n_rlnParticleNumber {len(PARTICLES)}\n"
    for number, particle in enumerate(PARTICLES):
        rows = [("0.5", "0", "-1")] * (n_rows if number == 1 else N_TILTS)
        text += table(particle[1], ("rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginZAngst"), rows)
    (folder / "motion.star").write_text(text)


def change(path: Path, old: str, new: str) -> None:
    """Replace text that must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
