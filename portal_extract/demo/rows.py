"""The rows of the portal's API for simulated runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from portal_extract.demo.documents import TITLE
from portal_extract.demo.phantom import phantom
from portal_extract.demo.records import (
    AUTHORS_DEPOSITION,
    COMMUNITY_DEPOSITION,
    DATASET_ID,
    DATES,
    RunRecord,
    deposition_id,
    https_url,
    s3_uri,
)

Row = dict[str, Any]
FIRST_IDS = {
    "Run": 18211,
    "Tiltseries": 17930,
    "Alignment": 18054,
    "PerSectionAlignmentParameters": 801100,
    "PerSectionParameters": 640300,
    "Frame": 711000,
    "TomogramVoxelSpacing": 22417,
    "Tomogram": 31806,
    "Annotation": 44021,
    "AnnotationShape": 55702,
    "AnnotationFile": 66903,
}


@dataclass(frozen=True)
class FileSizes:
    """Bytes of the files of a run that the API tells.

    Attributes
    ----------
    omezarr, mrc
        The tilt series.
    by_key
        Other files by key.
    """

    omezarr: int
    mrc: int
    by_key: dict[str, int]


class Ids:
    """Hands out ids as the portal does: unique for a type, in no useful order."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng([seed, 1])
        self._next = dict(FIRST_IDS)

    def take(self, type_name: str, count: int) -> list[int]:
        """Take ``count`` ids of a type."""
        first = self._next[type_name]
        self._next[type_name] += count + 3
        return [first + int(offset) for offset in self._rng.permutation(count)]


def api_tables(runs: Sequence[RunRecord], sizes: Sequence[FileSizes], seed: int) -> dict[str, list[Row]]:
    """Rows of every type, shuffled: the API has no order.

    Parameters
    ----------
    runs
        The runs.
    sizes
        File sizes of each run.
    seed
        Decides ids and order.
    """
    ids = Ids(seed)
    tables: dict[str, list[Row]] = {}
    for type_name, row in _dataset_rows():
        tables.setdefault(type_name, []).append(row)
    for run, size, run_id in zip(runs, sizes, ids.take("Run", len(runs)), strict=True):
        for type_name, row in _RunRows(run, size, run_id, ids).rows():
            tables.setdefault(type_name, []).append(row)
    rng = np.random.default_rng([seed, 2])
    return {name: [rows[n] for n in rng.permutation(len(rows))] for name, rows in tables.items()}


def _dates() -> Row:
    return {
        name: f"{DATES[key]}T00:00:00+00:00"
        for name, key in (
            ("depositionDate", "deposition_date"),
            ("releaseDate", "release_date"),
            ("lastModifiedDate", "last_modified_date"),
        )
    }


def _addresses(stem: str, key: str, *, ending: str = "") -> Row:
    """Make the pair of S3 and HTTPS fields."""
    return {f"s3{stem}": s3_uri(key) + ending, f"https{stem}": https_url(key) + ending}


def _dataset_rows() -> Iterator[tuple[str, Row]]:
    yield (
        "Dataset",
        {
            "id": DATASET_ID,
            "depositionId": AUTHORS_DEPOSITION,
            "title": TITLE,
            "description": TITLE,
            "organismName": "Saccharomyces cerevisiae",
            "organismTaxid": 4932,
            "sampleType": "in_silico",
            **_addresses("Prefix", str(DATASET_ID), ending="/"),
            **_dates(),
        },
    )
    author = {"name": "Ada Example", "authorListOrder": 1, "primaryAuthorStatus": True}
    yield "DatasetAuthor", {"id": 5001, "datasetId": DATASET_ID, **author}
    for number, deposition in enumerate((AUTHORS_DEPOSITION, COMMUNITY_DEPOSITION)):
        title = f"{TITLE}: {'community picks and alignments' if number else 'tilt series'}"
        yield "Deposition", {"id": deposition, "title": title, "description": title, **_dates()}
        yield "DepositionAuthor", {"id": 5101 + number, "depositionId": deposition, **author}
        yield "DepositionType", {"id": 5201 + number, "depositionId": deposition, "type": "annotation"}


class _RunRows:
    """Rows of one run; holds the ids that they refer to each other by."""

    def __init__(self, run: RunRecord, sizes: FileSizes, run_id: int, ids: Ids) -> None:
        self.run, self.sizes, self.run_id, self.ids = run, sizes, run_id, ids
        self.scene = run.scene
        self.series_id = ids.take("Tiltseries", 1)[0]
        self.alignment_ids = ids.take("Alignment", len(run.alignments))
        spacing_ids = ids.take("TomogramVoxelSpacing", len(run.voxel_binnings))
        self.spacing_ids = dict(zip(run.voxel_binnings, spacing_ids, strict=True))
        self.frame_ids = ids.take("Frame", len(self.scene.acquired_tilt_deg))

    def rows(self) -> Iterator[tuple[str, Row]]:
        """All rows, with the names of their types."""
        yield (
            "Run",
            {
                "id": self.run_id,
                "datasetId": DATASET_ID,
                "name": self.scene.name,
                **_addresses("Prefix", self.run.folder, ending="/"),
            },
        )
        yield "Tiltseries", self._series()
        yield from self._frames()
        yield from self._sections()
        for index in range(len(self.alignment_ids)):
            yield from self._alignment(index)
        yield from self._tomograms()
        yield from self._annotations()
        yield (
            "IdentifiedObject",
            {
                "id": 9000 + self.run_id,
                "runId": self.run_id,
                "objectId": "GO:0016020",
                "objectName": "membrane",
            },
        )

    def _series(self) -> Row:
        scene, plan = self.scene, self.scene.plan
        width, height = plan.image_size_px
        low, high = float(scene.raw_tilt_deg[0]), float(scene.raw_tilt_deg[-1])
        return {
            "id": self.series_id,
            "runId": self.run_id,
            "depositionId": AUTHORS_DEPOSITION,
            **_addresses("OmezarrDir", f"{self.run.tilt_series_stem}.zarr"),
            **_addresses("MrcFile", f"{self.run.tilt_series_stem}.mrc"),
            **_addresses("AngleList", f"{self.run.tilt_series_stem}.rawtlt"),
            "fileSizeOmezarr": float(self.sizes.omezarr),
            "fileSizeMrc": float(self.sizes.mrc),
            "accelerationVoltage": 300000,
            "sphericalAberrationConstant": 2.7,
            "microscopeManufacturer": "SIMULATED",
            "microscopeModel": "simulated",
            "microscopeEnergyFilter": "None",
            "cameraManufacturer": "simulated",
            "cameraModel": "simulated",
            "tiltMin": low,
            "tiltMax": high,
            "tiltRange": high - low,
            "tiltStep": plan.tilt_step_deg,
            "tiltingScheme": "Dose symmetric from 0.0 degrees",
            "tiltAxis": plan.tilt_axis_deg,
            "totalFlux": scene.exposure_e_per_a2 * len(scene.acquired_tilt_deg),
            "dataAcquisitionSoftware": "simulated",
            "binningFromFrames": 1.0,
            "tiltSeriesQuality": 4,
            "isAligned": False,
            "pixelSpacing": plan.pixel_size_angst,
            "alignedTiltseriesBinning": 1,
            "sizeX": width,
            "sizeY": height,
            "sizeZ": scene.n_tilts,
        }

    def _frames(self) -> Iterator[tuple[str, Row]]:
        exposure = self.scene.exposure_e_per_a2
        for order, frame_id in enumerate(self.frame_ids):
            yield (
                "Frame",
                {
                    "id": frame_id,
                    "runId": self.run_id,
                    "depositionId": AUTHORS_DEPOSITION,
                    "acquisitionOrder": order,
                    "accumulatedDose": order * exposure,
                    "exposureDose": exposure,
                    "isGainCorrected": True,
                },
            )
        yield (
            "FrameAcquisitionFile",
            {
                "id": 8000 + self.run_id,
                "runId": self.run_id,
                **_addresses("MdocPath", f"{self.run.folder}/Frames/{self.scene.name}.mdoc"),
            },
        )

    def _sections(self) -> Iterator[tuple[str, Row]]:
        scene, known = self.scene, self.scene.plan.has_ctf
        for z, section_id in enumerate(self.ids.take("PerSectionParameters", scene.n_tilts)):
            yield (
                "PerSectionParameters",
                {
                    "id": section_id,
                    "runId": self.run_id,
                    "tiltseriesId": self.series_id,
                    "frameId": self.frame_ids[scene.acquisition[z]],
                    "zIndex": z,
                    "rawAngle": float(scene.raw_tilt_deg[z]),
                    "majorDefocus": float(scene.defocus_u_angst[z]) if known else None,
                    "minorDefocus": float(scene.defocus_v_angst[z]) if known else None,
                    "astigmaticAngle": float(scene.defocus_angle_deg[z]) if known else None,
                    "phaseShift": float(np.deg2rad(scene.phase_shift_deg[z])) if known else 0.0,
                    "maxResolution": 12.0 if known else None,
                },
            )

    def _alignment(self, index: int) -> Iterator[tuple[str, Row]]:
        alignment = self.run.alignments[index]
        x, y, z = alignment.volume_angst
        yield (
            "Alignment",
            {
                "id": self.alignment_ids[index],
                "runId": self.run_id,
                "tiltseriesId": self.series_id,
                "depositionId": deposition_id(alignment.by_community),
                "alignmentType": "GLOBAL",
                "alignmentMethod": "fiducial_based" if alignment.from_imod else "projection_matching",
                "volumeXDimension": x,
                "volumeYDimension": y,
                "volumeZDimension": z,
                **dict.fromkeys(("volumeXOffset", "volumeYOffset", "volumeZOffset"), 0.0),
                "xRotationOffset": 0.0,
                "tiltOffset": 0.0,
                # both spellings occur on the portal
                "affineTransformationMatrix": "{{1,0,0,0},{0,1,0,0},{0,0,1,0},{0,0,0,1}}"
                if alignment.from_imod
                else "[[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]",
                **_addresses("AlignmentMetadata", f"{alignment.folder}/alignment_metadata.json"),
                "isPortalStandard": False,
            },
        )
        section_ids = self.ids.take("PerSectionAlignmentParameters", len(alignment.z_index))
        for row, section_id in enumerate(section_ids):
            yield (
                "PerSectionAlignmentParameters",
                {
                    "id": section_id,
                    "alignmentId": self.alignment_ids[index],
                    "zIndex": int(alignment.z_index[row]),
                    "xOffset": float(alignment.shift_px[row, 0]),
                    "yOffset": float(alignment.shift_px[row, 1]),
                    "volumeXRotation": float(alignment.x_tilt_deg[row]),
                    "inPlaneRotation": alignment.in_plane_rotation(row),
                    "tiltAngle": float(alignment.tilt_deg[row]),
                },
            )

    def _tomograms(self) -> Iterator[tuple[str, Row]]:
        for binning, spacing_id in self.spacing_ids.items():
            yield (
                "TomogramVoxelSpacing",
                {
                    "id": spacing_id,
                    "runId": self.run_id,
                    "voxelSpacing": self.scene.voxel_spacing_angst(binning),
                    **_addresses("Prefix", self.run.spacing_folder(binning), ending="/"),
                },
            )
        tomogram_ids = self.ids.take("Tomogram", len(self.run.tomograms))
        for tomogram, tomogram_id in zip(self.run.tomograms, tomogram_ids, strict=True):
            alignment = self.run.alignments[tomogram.alignment]
            yield (
                "Tomogram",
                {
                    "id": tomogram_id,
                    "alignmentId": self.alignment_ids[tomogram.alignment],
                    "runId": self.run_id,
                    "depositionId": deposition_id(alignment.by_community),
                    "tomogramVoxelSpacingId": self.spacing_ids[tomogram.voxel_binning],
                    **dict(zip(("sizeX", "sizeY", "sizeZ"), tomogram.size, strict=True)),
                    **dict.fromkeys(("offsetX", "offsetY", "offsetZ"), 0),
                    "voxelSpacing": self.scene.voxel_spacing_angst(tomogram.voxel_binning),
                    "fiducialAlignmentStatus": "FIDUCIAL" if alignment.from_imod else "NON_FIDUCIAL",
                    "reconstructionMethod": "WBP",
                    "reconstructionSoftware": "simulated",
                    "processing": tomogram.processing,
                    "tomogramVersion": 1.0,
                    "isPortalStandard": False,
                    "isAuthorSubmitted": not alignment.by_community,
                    "isVisualizationDefault": tomogram.processing == "raw" and not alignment.by_community,
                    "ctfCorrected": False,
                    **_addresses("OmezarrDir", f"{tomogram.folder}/{self.scene.name}.zarr"),
                    **_dates(),
                },
            )

    def _annotations(self) -> Iterator[tuple[str, Row]]:
        for annotation in self.run.annotations:
            plan = annotation.particles.plan
            annotation_id = self.ids.take("Annotation", 1)[0]
            yield (
                "Annotation",
                {
                    "id": annotation_id,
                    "runId": self.run_id,
                    "depositionId": deposition_id(plan.by_community),
                    "tomogramVoxelSpacingId": self.spacing_ids[plan.voxel_binning],
                    **_addresses("MetadataPath", f"{annotation.stem}.json"),
                    "annotationMethod": "simulated picks",
                    "annotationIngestId": f"demo-{annotation_id}",
                    "groundTruthStatus": plan.ground_truth,
                    "objectId": phantom(plan.object_name).object_id,
                    "objectName": plan.object_name,
                    "objectCount": len(annotation.particles.centres_angst),
                    "isCuratorRecommended": False,
                    "methodType": "automated" if plan.by_community else "simulated",
                    **_dates(),
                },
            )
            for shape, shape_id in zip(
                plan.shapes, self.ids.take("AnnotationShape", len(plan.shapes)), strict=True
            ):
                yield "AnnotationShape", {"id": shape_id, "annotationId": annotation_id, "shapeType": shape}
                yield (
                    "AnnotationFile",
                    {
                        "id": self.ids.take("AnnotationFile", 1)[0],
                        "annotationShapeId": shape_id,
                        "alignmentId": self.alignment_ids[self.run.true_alignment],
                        "tomogramVoxelSpacingId": self.spacing_ids[plan.voxel_binning],
                        "format": "ndjson",
                        **_addresses("Path", annotation.path(shape)),
                        "fileSize": float(self.sizes.by_key[annotation.path(shape)]),
                        "isVisualizationDefault": shape == plan.shapes[0],
                        "source": "community" if plan.by_community else "dataset_author",
                    },
                )
