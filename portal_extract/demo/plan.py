"""What the simulated portal holds: the plan of its runs, without a random number drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

PointShape = Literal["OrientedPoint", "Point"]
OLD_CHUNKS = (256, 256, 256)
NEW_CHUNKS = (1, 1024, 1024)


@dataclass(frozen=True)
class SpeciesPlan:
    """Particles of one kind in one run, and how they were picked.

    Attributes
    ----------
    object_name
        Name on the portal and of a phantom (:mod:`portal_extract.demo.phantom`).
    count
        Number of particles; fewer if they do not fit.
    shapes
        Shapes of the annotation files.
    voxel_binning
        Voxel spacing of the picks in tilt-series pixels.
    by_community
        Whether the picks come from the second deposition.
    ground_truth
        What their author says about them.
    """

    object_name: str
    count: int
    shapes: tuple[PointShape, ...] = ("OrientedPoint",)
    voxel_binning: int = 4
    by_community: bool = False
    ground_truth: bool | None = True


@dataclass(frozen=True)
class RunPlan:
    """One run with one tilt series.

    Attributes
    ----------
    name
        Name of the run.
    image_size_px
        Width and height of the tilt images.
    pixel_size_angst
        Pixel spacing of the tilt series.
    n_tilts, tilt_step_deg
        Sections of the stack, and the angle between them.
    species
        What is in the ice.
    chunks
        Chunk shape (section, row, column) of the OME-Zarr.
    tilt_axis_deg, pretilt_deg, x_tilt_deg
        Angle of the tilt axis, refined tilt of the specimen at stage zero, and its rotation about x.
        A run with a rotation about x has an alignment of IMOD, the others one of AreTomo.
    thickness_angst
        Thickness of the ice.
    defocus_angst, phase_shift_deg
        Mean defocus, and the phase shift of a phase plate.
    dark_sections
        Sections of the stack that the alignment leaves out.
    rejected
        Positions in the order of acquisition of tilts that are not in the stack.
    has_ctf
        Whether the portal knows the CTF; without it the run cannot be extracted.
    second_alignment
        Whether there is another, wrong alignment of the same tilt series.
    integer_counts
        Whether the pixels are whole numbers, as of a counting camera.
    """

    name: str
    image_size_px: tuple[int, int]
    pixel_size_angst: float
    n_tilts: int
    tilt_step_deg: float
    species: tuple[SpeciesPlan, ...]
    chunks: tuple[int, int, int] = NEW_CHUNKS
    tilt_axis_deg: float = 85.0
    pretilt_deg: float = 0.0
    x_tilt_deg: float = 0.0
    thickness_angst: float = 1200.0
    defocus_angst: float = 38000.0
    phase_shift_deg: float = 0.0
    dark_sections: tuple[int, ...] = ()
    rejected: tuple[int, ...] = ()
    has_ctf: bool = True
    second_alignment: bool = False
    integer_counts: bool = True


RIBOSOME = "cytosolic ribosome"
FERRITIN = "ferritin complex"
PROTEASOME = "proteasome complex"

DEFAULT_RUNS = (
    RunPlan(
        "TS_01",
        (960, 928),
        4.6,
        19,
        6.0,
        (
            SpeciesPlan(RIBOSOME, 46, ("OrientedPoint", "Point")),
            SpeciesPlan(FERRITIN, 30, voxel_binning=2, by_community=True, ground_truth=False),
        ),
        OLD_CHUNKS,
        pretilt_deg=7.4,
        tilt_axis_deg=84.6,
        dark_sections=(0, 11),
        rejected=(7, 19),
    ),
    RunPlan(
        "lamella 02",
        (1100, 1200),
        4.1,
        17,
        7.0,
        (SpeciesPlan(RIBOSOME, 60), SpeciesPlan(PROTEASOME, 24)),
        tilt_axis_deg=-93.4,
        x_tilt_deg=-2.3,
        defocus_angst=42000.0,
        dark_sections=(16,),
        integer_counts=False,
    ),
    RunPlan(
        "TS_03",
        (1024, 1000),
        4.6,
        15,
        8.0,
        (
            SpeciesPlan(RIBOSOME, 50),
            SpeciesPlan(FERRITIN, 36, ("Point",), ground_truth=None),
        ),
        pretilt_deg=-5.2,
        phase_shift_deg=35.0,
        defocus_angst=16000.0,
        dark_sections=(6,),
        rejected=(3,),
        second_alignment=True,
    ),
    RunPlan(
        "TS_04",
        (720, 700),
        6.2,
        9,
        10.0,
        (SpeciesPlan(RIBOSOME, 20),),
        OLD_CHUNKS,
        has_ctf=False,
    ),
)


@dataclass(frozen=True)
class DemoOptions:
    """Everything that decides what the simulated portal holds; equal options give equal pixels.

    Attributes
    ----------
    runs
        The runs.
    seed
        Of all random numbers.
    exposure_e_per_a2
        Dose of each tilt image.
    contrast_per_angst
        Fraction of the electrons that an Angstrom of protein removes; a strong exaggeration, so that few
        particles make a recognisable average.
    noise
        Whether the images are noisy; without noise there are no whole-number counts either.
    """

    runs: tuple[RunPlan, ...] = DEFAULT_RUNS
    seed: int = 20260
    exposure_e_per_a2: float = 3.0
    contrast_per_angst: float = 6e-3
    noise: bool = True

    @classmethod
    def tiny(cls, **changes: object) -> DemoOptions:
        """Four runs in less than two seconds, for tests.

        Parameters
        ----------
        **changes
            Other values of the attributes.
        """
        runs = tuple(replace(run, **_TINY[run.name]) for run in DEFAULT_RUNS)  # type: ignore[arg-type]
        return replace(cls(runs=runs, seed=7), **changes)  # type: ignore[arg-type]


_TINY: dict[str, dict[str, object]] = {
    "TS_01": {
        "image_size_px": (281, 270),
        "pixel_size_angst": 6.8,
        "n_tilts": 9,
        "tilt_step_deg": 12.0,
        "species": (
            SpeciesPlan(RIBOSOME, 6, ("OrientedPoint", "Point"), voxel_binning=2),
            SpeciesPlan(FERRITIN, 4, voxel_binning=3, by_community=True, ground_truth=False),
        ),
        "dark_sections": (0, 5),
        "rejected": (3, 9),
    },
    "lamella 02": {
        "image_size_px": (300, 310),
        "pixel_size_angst": 6.0,
        "n_tilts": 7,
        "tilt_step_deg": 15.0,
        "species": (SpeciesPlan(RIBOSOME, 5, voxel_binning=3), SpeciesPlan(PROTEASOME, 3, voxel_binning=3)),
        "dark_sections": (6,),
    },
    "TS_03": {
        "image_size_px": (256, 250),
        "pixel_size_angst": 7.0,
        "n_tilts": 5,
        "tilt_step_deg": 20.0,
        "species": (
            SpeciesPlan(RIBOSOME, 4, voxel_binning=2),
            SpeciesPlan(FERRITIN, 3, ("Point",), voxel_binning=2, ground_truth=None),
        ),
        "dark_sections": (1,),
        "rejected": (2,),
    },
    "TS_04": {
        "image_size_px": (200, 190),
        "pixel_size_angst": 8.0,
        "n_tilts": 3,
        "tilt_step_deg": 20.0,
        "species": (SpeciesPlan(RIBOSOME, 2, voxel_binning=2),),
    },
}
