"""Portals for tests: plain functions, no plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

SHARED = Path(__file__).parents[1].parent / "shared"
SHARED_PORTAL = SHARED / "testdata" / "portal"
BUCKET = "cryoet-data-portal-public"
HTTPS = "https://files.cryoetdataportal.cziscience.com"

needs_shared_portal = pytest.mark.skipif(
    not SHARED_PORTAL.is_dir(), reason="the reference portal is not beside the checkout"
)


def write_hand_made_portal(folder: Path) -> np.ndarray:
    """Write two runs by hand, one of which has a tilt series of 3 x 40 x 50; return its pixels."""
    pixels = np.random.default_rng(1).normal(size=(3, 40, 50)).astype(np.float32)
    series = folder / "s3" / BUCKET / "10001" / "TS 1+a%b" / "TiltSeries" / "100"
    series.mkdir(parents=True)
    array = zarr.create_array(
        series / "TS 1+a%b.zarr" / "0",
        shape=pixels.shape,
        chunks=(1, 32, 32),
        dtype="<f4",
        zarr_format=2,
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    array[:] = pixels
    (series / "notes.txt").write_text("some words\n")
    (folder / "tables.json").write_text(json.dumps(hand_made_tables()))
    return pixels


def hand_made_tables() -> dict[str, list[dict[str, Any]]]:
    """Rows of two data sets, three runs, two tilt series with some sections."""
    base = f"{HTTPS}/10001/TS 1+a%b/TiltSeries/100"
    return {
        "Dataset": [_dataset(10001, "Yeast"), _dataset(10002, "Mouse")],
        "Run": [_run(13, 10002, "lamella"), _run(11, 10001, "TS 1+a%b"), _run(12, 10001, "ts_2")],
        "Tiltseries": [
            _tilt_series(21, 11, 2.0) | {"httpsMrcFile": f"{base}/notes.txt"},
            _tilt_series(22, 12, 3.5),
        ],
        "Frame": [{"id": n, "depositionId": 1, "runId": 11, "acquisitionOrder": n - 100} for n in (102, 101)],
        "PerSectionParameters": [
            _section(33, 2, None),
            _section(31, 0, 30000.0),
            _section(32, 1, 31000.0),
        ],
    }


def _dataset(number: int, organism: str) -> dict[str, Any]:
    day = f"2025-03-0{number - 10000}T00:00:00+00:00"
    return {
        "id": number,
        "depositionId": 1,
        "title": f"Data set {number}",
        "description": "made by hand",
        "organismName": organism,
        "depositionDate": day,
        "releaseDate": day,
        "lastModifiedDate": day,
        "s3Prefix": f"s3://{BUCKET}/{number}/",
        "httpsPrefix": f"{HTTPS}/{number}/",
    }


def _run(number: int, dataset: int, name: str) -> dict[str, Any]:
    return {
        "id": number,
        "datasetId": dataset,
        "name": name,
        "s3Prefix": f"s3://{BUCKET}/{dataset}/{name}/",
        "httpsPrefix": f"{HTTPS}/{dataset}/{name}/",
    }


def _tilt_series(number: int, run: int, pixel_spacing: float) -> dict[str, Any]:
    return {
        "id": number,
        "runId": run,
        "accelerationVoltage": 300000,
        "sphericalAberrationConstant": 2.7,
        "microscopeManufacturer": "SIMULATED",
        "microscopeModel": "none",
        "microscopeEnergyFilter": "none",
        "cameraManufacturer": "none",
        "cameraModel": "none",
        "tiltMin": -60.0,
        "tiltMax": 60.0,
        "tiltRange": 120.0,
        "tiltStep": 3.0,
        "tiltingScheme": "none",
        "tiltAxis": 85.0,
        "totalFlux": 120.0,
        "dataAcquisitionSoftware": "none",
        "tiltSeriesQuality": 4,
        "isAligned": False,
        "pixelSpacing": pixel_spacing,
    }


def _section(number: int, z_index: int, defocus_angst: float | None) -> dict[str, Any]:
    return {
        "id": number,
        "runId": 11,
        "tiltseriesId": 21,
        "frameId": 101,
        "zIndex": z_index,
        "rawAngle": 3.0 * z_index,
        "majorDefocus": defocus_angst,
        "phaseShift": 0.0,
    }
