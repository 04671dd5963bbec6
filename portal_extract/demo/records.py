"""What a depositor would hand in for a simulated run: alignments, tomograms, annotations, and their paths."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

import numpy as np

from portal_extract.demo.portal import BUCKET, REAL_HTTPS_HOST
from portal_extract.demo.scene import Floats, Ints, Particles, Scene

DATASET_ID = 10731
AUTHORS_DEPOSITION = 10518
COMMUNITY_DEPOSITION = 10526
DATES = {
    "deposition_date": "2025-11-28",
    "release_date": "2026-01-15",
    "last_modified_date": "2026-02-03",
}


def s3_uri(key: str) -> str:
    """Address of an object or folder in the store."""
    return f"s3://{BUCKET}/{key}"


def https_url(key: str) -> str:
    """Address of the same on the web."""
    return f"{REAL_HTTPS_HOST}/{key}"


def deposition_id(by_community: bool) -> int:
    """Deposition of the authors or of the community."""
    return COMMUNITY_DEPOSITION if by_community else AUTHORS_DEPOSITION


@dataclass(frozen=True)
class AlignmentRecord:
    """An alignment; lengths: A aligned sections.

    Attributes
    ----------
    folder
        Path from the bucket's root.
    by_community
        Whether it belongs to the second deposition.
    z_index
        ``(A,)`` sections of the stack.
    tilt_deg, x_tilt_deg, axis_deg, shift_px
        ``(A,)`` and ``(A, 2)`` parameters of the sections.
    from_imod
        Whether its files are those of IMOD, else of AreTomo.
    volume_angst
        Size x, y, z of the volume that it states.
    """

    folder: str
    by_community: bool
    z_index: Ints
    tilt_deg: Floats
    x_tilt_deg: Floats
    axis_deg: Floats
    shift_px: Floats
    from_imod: bool
    volume_angst: tuple[float, float, float]

    def in_plane_rotation(self, row: int) -> list[list[float]]:
        """Rotation matrix in the plane of the image of one aligned section."""
        angle = np.deg2rad(self.axis_deg[row])
        cosine, sine = float(np.cos(angle)), float(np.sin(angle))
        return [[cosine, -sine], [sine, cosine]]


@dataclass(frozen=True)
class TomogramRecord:
    """A tomogram: metadata, no pixels.

    Attributes
    ----------
    folder
        Path from the bucket's root.
    voxel_binning
        Voxel spacing in tilt-series pixels.
    alignment
        Index of its alignment in the run.
    size
        Voxels in x, y, z.
    processing
        ``raw`` or ``denoised``.
    """

    folder: str
    voxel_binning: int
    alignment: int
    size: tuple[int, int, int]
    processing: str


@dataclass(frozen=True)
class AnnotationRecord:
    """Picks of one kind of particle.

    Attributes
    ----------
    stem
        Path of its files from the bucket's root, without shape and ending.
    particles
        The truth, which the picks tell.
    size
        Voxels of the tomogram in x, y, z.
    voxel_spacing_angst
        What the coordinates are in.
    """

    stem: str
    particles: Particles
    size: tuple[int, int, int]
    voxel_spacing_angst: float

    def path(self, shape: str) -> str:
        """Path of the file with a shape, from the bucket's root."""
        return f"{self.stem}_{shape.lower()}.ndjson"

    def locations_voxels(self) -> Floats:
        """``(N, 3)`` x, y, z in voxels, the first voxel at 0."""
        return self.particles.centres_angst / self.voxel_spacing_angst + np.array(self.size) / 2


@dataclass(frozen=True)
class RunRecord:
    """A run as the portal describes it.

    Attributes
    ----------
    scene
        The truth.
    """

    scene: Scene

    @property
    def folder(self) -> str:
        """Path of the run from the bucket's root."""
        return f"{DATASET_ID}/{self.scene.name}"

    @property
    def tilt_series_stem(self) -> str:
        """Path of the tilt series from the bucket's root, without an ending."""
        return f"{self.folder}/TiltSeries/100/{self.scene.name}"

    def spacing_folder(self, voxel_binning: int) -> str:
        """Path of everything with a voxel spacing, from the bucket's root."""
        spacing = self.scene.voxel_spacing_angst(voxel_binning)
        return f"{self.folder}/Reconstructions/VoxelSpacing{spacing:.3f}"

    @property
    def voxel_binnings(self) -> list[int]:
        """All voxel spacings, in tilt-series pixels."""
        return sorted({species.plan.voxel_binning for species in self.scene.species})

    @cached_property
    def alignments(self) -> tuple[AlignmentRecord, ...]:
        """The true alignment and, where planned, a wrong one of the community that comes first."""
        scene, plan = self.scene, self.scene.plan
        rows = np.flatnonzero(scene.aligned)
        spacing = scene.voxel_spacing_angst(self.voxel_binnings[0])
        x, y, z = (n * spacing for n in scene.tomogram_size(self.voxel_binnings[0]))
        true = AlignmentRecord(
            f"{self.folder}/Alignments/{101 if plan.second_alignment else 100}",
            False,
            rows,
            scene.tilt_deg[rows],
            scene.x_tilt_deg[rows],
            scene.axis_deg[rows],
            scene.shift_px[rows],
            plan.x_tilt_deg != 0,
            (x, y, z),
        )
        if not plan.second_alignment:
            return (true,)
        wrong = AlignmentRecord(
            f"{self.folder}/Alignments/100",
            True,
            np.arange(scene.n_tilts),
            scene.raw_tilt_deg,
            scene.x_tilt_deg,
            scene.axis_deg - 1.5,
            scene.shift_px + 17.0,
            False,
            (0.9 * x, 0.9 * y, 1.2 * z),
        )
        return wrong, true

    @property
    def true_alignment(self) -> int:
        """Index of the alignment that the picks belong to."""
        return len(self.alignments) - 1

    @cached_property
    def tomograms(self) -> tuple[TomogramRecord, ...]:
        """A tomogram for every alignment and voxel spacing, and a denoised twin of the first."""
        found = []
        for binning in self.voxel_binnings:
            number = 100
            for index in range(len(self.alignments)):
                size = self.scene.tomogram_size(binning)
                if index != self.true_alignment:
                    size = (size[0] + 6, size[1] - 4, size[2])
                kinds = ("raw", "denoised") if binning == self.voxel_binnings[0] else ("raw",)
                for processing in kinds:
                    folder = f"{self.spacing_folder(binning)}/Tomograms/{number}"
                    found.append(TomogramRecord(folder, binning, index, size, processing))
                    number += 1
        return tuple(found)

    @cached_property
    def annotations(self) -> tuple[AnnotationRecord, ...]:
        """One annotation for every kind of particle."""
        found = []
        numbers = dict.fromkeys(self.voxel_binnings, 100)
        for particles in self.scene.species:
            binning = particles.plan.voxel_binning
            name = re.sub(r"\W+", "_", particles.object_name)
            stem = f"{self.spacing_folder(binning)}/Annotations/{numbers[binning]}/{name}-1.0"
            numbers[binning] += 1
            found.append(
                AnnotationRecord(
                    stem,
                    particles,
                    self.scene.tomogram_size(binning),
                    self.scene.voxel_spacing_angst(binning),
                )
            )
        return tuple(found)


def parent(key: str) -> str:
    """Folder of a key."""
    return str(PurePosixPath(key).parent)
