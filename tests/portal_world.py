"""Small portals made of a few numbers, to be bent by tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from portal_extract.demo.portal import BUCKET, EmbeddedPortal
from portal_extract.sources.portal import PortalAssumptions, PortalConnection, PortalFilters
from portal_extract.sources.portal.build import PortalResolution, resolve_portal

N_SECTIONS = 5
TILTS = np.linspace(-40.0, 40.0, N_SECTIONS)
IDENTITY = json.dumps(np.eye(4).tolist())

Tables = dict[str, list[dict[str, Any]]]


def in_plane(angle_deg: float) -> list[list[float]]:
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    return [[c, -s], [s, c]]


def world(n_runs: int = 1) -> Tables:
    """Rows of a data set with ``n_runs`` runs (1001, 1002 ...), each with one oriented annotation.

    Run 1000 + r has tilt series 2000 + r, alignment 3000 + r, tomogram 4000 + r, spacing 5000 + r, annotation
    6000 + r, shape 7000 + r and file 8000 + r; pixel 2 A, voxel 8 A, tomogram 100 x 102 x 50 voxels.
    """
    tables: Tables = {
        "Dataset": [_row("Dataset", 10, title="Set", organismName="Yeast", depositionId=9)],
        "Deposition": [_row("Deposition", 9, title="Deposited")],
    }
    for r in range(1, n_runs + 1):
        for name, rows in _run(r).items():
            tables.setdefault(name, []).extend(rows)
    return tables


def row_of(tables: Tables, name: str, number: int) -> dict[str, Any]:
    """A row, to be changed in place."""
    return next(row for row in tables[name] if row["id"] == number)


def pick(x: float, y: float, z: float, matrix: Any = None, instance: int | None = None) -> dict[str, Any]:
    """A line of a file of picks."""
    record: dict[str, Any] = {"type": "point", "location": {"x": x, "y": y, "z": z}}
    if matrix is not None:
        record |= {"type": "orientedPoint", "xyz_rotation_matrix": np.asarray(matrix).tolist()}
    if instance is not None:
        record |= {"type": "instancePoint", "instance_id": instance}
    return record


def add_annotation(
    tables: Tables, number: int, run: int = 1, shape: str = "Point", **changes: Any
) -> dict[str, Any]:
    """Add annotation ``number`` with shape and file of the same number; return the row of the file."""
    spacing = 5000 + run
    annotation = _annotation(number, 1000 + run, spacing) | changes
    tables["Annotation"].append(annotation)
    tables["AnnotationShape"].append(_row("AnnotationShape", number, annotationId=number, shapeType=shape))
    tables["AnnotationFile"].append(_file(number, number, 3000 + run, spacing))
    return tables["AnnotationFile"][-1]


def serve(
    folder: Path, tables: Tables, files: dict[int, Sequence[dict[str, Any]] | str] | None = None
) -> EmbeddedPortal:
    """Portal of some rows; ``files`` gives picks (or raw text) by file id, two picks where it does not."""
    for row in tables["AnnotationFile"]:
        path = folder / BUCKET / row["s3Path"].removeprefix(f"s3://{BUCKET}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        kinds = {s["id"]: s["shapeType"] for s in tables["AnnotationShape"]}
        matrix = np.eye(3) if kinds.get(row["annotationShapeId"]) == "OrientedPoint" else None
        content = (files or {}).get(row["id"], [pick(20, 30, 25, matrix), pick(60.5, 40, 20, matrix)])
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        path.write_text(text)
    (folder / BUCKET).mkdir(parents=True, exist_ok=True)
    return EmbeddedPortal(folder, tables)


def connection_to(portal: EmbeddedPortal, **settings: Any) -> PortalConnection:
    patience = {"deadline_s": 30.0, "request_timeout_s": 10.0, "backoff_s": 0.01} | settings
    return PortalConnection(portal.portal_url, portal.s3_endpoint_url, **patience)


def resolve(
    portal: EmbeddedPortal, assumptions: PortalAssumptions | None = None, **request: Any
) -> PortalResolution:
    """Resolve a request (all runs of the data set if none is given)."""
    filters = PortalFilters(**(request or {"dataset_ids": (10,)}))
    return resolve_portal(filters, assumptions, connection_to(portal))


def _run(r: int) -> Tables:
    run, series, alignment, spacing = 1000 + r, 2000 + r, 3000 + r, 5000 + r
    sections = range(N_SECTIONS)
    order = np.argsort(np.abs(TILTS), kind="stable").tolist()
    base = f"s3://{BUCKET}/10/run {run}/TiltSeries/100/run {run}"
    return {
        "Run": [_row("Run", run, datasetId=10, name=f"run {run}")],
        "Tiltseries": [
            _row(
                "Tiltseries",
                series,
                runId=run,
                depositionId=9,
                s3OmezarrDir=f"{base}.zarr",
                s3MrcFile=f"{base}.mrc",
                accelerationVoltage=300000,
                sphericalAberrationConstant=2.7,
                pixelSpacing=2.0,
                isAligned=False,
                sizeX=400,
                sizeY=380,
                sizeZ=N_SECTIONS,
                microscopeManufacturer="SIMULATED",
                tiltSeriesQuality=4,
            )
        ],
        "Alignment": [
            _row(
                "Alignment",
                alignment,
                runId=run,
                tiltseriesId=series,
                depositionId=9,
                alignmentType="GLOBAL",
                alignmentMethod="projection_matching",
                affineTransformationMatrix=IDENTITY,
                tiltOffset=0.0,
                xRotationOffset=0.0,
                **{f"volume{axis}Offset": 0.0 for axis in "XYZ"},
                **{f"volume{axis}Dimension": 8.0 * n for axis, n in zip("XYZ", (100, 102, 50), strict=True)},
            )
        ],
        "PerSectionAlignmentParameters": [
            {
                "id": 100 * alignment + z,
                "alignmentId": alignment,
                "zIndex": z,
                "tiltAngle": float(TILTS[z]),
                "volumeXRotation": 0.5,
                "inPlaneRotation": in_plane(85.0),
                "xOffset": 1.5,
                "yOffset": -2.0 + z,
            }
            for z in reversed(sections)
        ],
        "PerSectionParameters": [
            {
                "id": 100 * series + z,
                "runId": run,
                "tiltseriesId": series,
                "frameId": 100 * run + 10 + z,
                "zIndex": z,
                "rawAngle": float(TILTS[z]),
                "majorDefocus": 30000.0 + z,
                "minorDefocus": 29000.0 + z,
                "astigmaticAngle": 12.5,
                "phaseShift": 0.0,
                "maxResolution": 8.0,
            }
            for z in sections
        ],
        "Frame": [
            {
                "id": 100 * run + 10 + z,
                "runId": run,
                "depositionId": 9,
                "acquisitionOrder": order.index(z),
                "accumulatedDose": 3.0 * order.index(z),
                "exposureDose": 3.0,
            }
            for z in sections
        ],
        "TomogramVoxelSpacing": [_row("TomogramVoxelSpacing", spacing, runId=run, voxelSpacing=8.0)],
        "Tomogram": [tomogram(4000 + r, run, alignment, spacing)],
        "Annotation": [_annotation(6000 + r, run, spacing)],
        "AnnotationShape": [
            _row("AnnotationShape", 7000 + r, annotationId=6000 + r, shapeType="OrientedPoint")
        ],
        "AnnotationFile": [_file(8000 + r, 7000 + r, alignment, spacing)],
    }


def tomogram(
    number: int, run: int, alignment: int, spacing: int, size: Sequence[int] = (100, 102, 50)
) -> dict[str, Any]:
    """A row of a tomogram."""
    return _row(
        "Tomogram",
        number,
        runId=run,
        alignmentId=alignment,
        depositionId=9,
        tomogramVoxelSpacingId=spacing,
        voxelSpacing=8.0,
        processing="raw",
        reconstructionMethod="WBP",
        fiducialAlignmentStatus="NON_FIDUCIAL",
        **{f"size{axis}": n for axis, n in zip("XYZ", size, strict=True)},
        **{f"offset{axis}": 0 for axis in "XYZ"},
    )


def _annotation(number: int, run: int, spacing: int) -> dict[str, Any]:
    return _row(
        "Annotation",
        number,
        runId=run,
        depositionId=9,
        tomogramVoxelSpacingId=spacing,
        objectName="ribosome",
        objectId="GO:1",
        objectCount=2,
        groundTruthStatus=None,
        methodType="manual",
    )


def _file(number: int, shape: int, alignment: int, spacing: int) -> dict[str, Any]:
    path = f"10/picks {number}/ribosome-1.0_{number}.ndjson"
    return _row(
        "AnnotationFile",
        number,
        alignmentId=alignment,
        annotationShapeId=shape,
        tomogramVoxelSpacingId=spacing,
        format="ndjson",
        s3Path=f"s3://{BUCKET}/{path}",
    )


def _row(kind: str, number: int, **values: Any) -> dict[str, Any]:
    """A row with something harmless in every column that must not be null."""
    return {name: _filler(name) for name in _REQUIRED.get(kind, ())} | {"id": number} | values


def _filler(name: str) -> Any:
    if name.endswith("Date"):
        return "2025-01-01T00:00:00+00:00"
    return 1.0 if name in _NUMBERS else "-"


_DATES = ("depositionDate", "releaseDate", "lastModifiedDate")
_NUMBERS = {"tiltMin", "tiltMax", "tiltRange", "tiltStep", "tiltAxis", "totalFlux", "tomogramVersion"}
_REQUIRED = {
    "Dataset": ("description", "s3Prefix", "httpsPrefix", *_DATES),
    "Deposition": ("description", *_DATES),
    "Run": ("s3Prefix", "httpsPrefix"),
    "TomogramVoxelSpacing": ("s3Prefix", "httpsPrefix"),
    "Tiltseries": (
        "microscopeModel",
        "microscopeEnergyFilter",
        "cameraManufacturer",
        "cameraModel",
        "tiltingScheme",
        "dataAcquisitionSoftware",
        *sorted(_NUMBERS - {"tomogramVersion"}),
    ),
    "Tomogram": ("reconstructionSoftware", "tomogramVersion", *_DATES),
    "Annotation": ("s3MetadataPath", "httpsMetadataPath", "annotationMethod", "annotationIngestId", *_DATES),
    "AnnotationFile": ("httpsPath",),
}
