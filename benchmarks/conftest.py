"""The big tilt series that the benchmarks share: 41 images of 3838 x 3710, 300 particles."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from portal_extract.demo.big_series import BigSeries, make_big_series


@pytest.fixture(scope="session")
def big_series(tmp_path_factory) -> BigSeries:
    """Made once in BENCHMARK_FOLDER, where it is kept, or in a temporary folder."""
    folder = os.environ.get("BENCHMARK_FOLDER")
    return make_big_series(Path(folder) if folder else tmp_path_factory.mktemp("series") / "big")
