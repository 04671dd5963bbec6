"""Pseudo-subtomograms equal RELION's, from the slow 2D reference through the package's 3D numerics."""

from __future__ import annotations

import mrcfile
import numpy as np
import pytest
from reference_cases import failures, volumes
from relion_cases import HERE, SHARED, Case, cases

SMALL = cases(HERE / "data" / "relion5", "volume_")
ALL = cases(SHARED / "relion5", "volume_")


def test_there_are_cases():
    assert len(SMALL) >= 4


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_cases(case: Case):
    assert failures(case, volumes(case)) == []


@pytest.mark.parametrize("case", [c for c in SMALL if c.name == "volume_b40_crop20"], ids=str)
def test_weights_are_the_same_bits(case: Case):
    """The order of summation is RELION's: nothing but the rounding of the input can differ."""
    compared = 0
    for name, volume in volumes(case):
        if name.endswith("_weights.mrc"):
            expected = mrcfile.read(case.expected / name)
            # the last bit of sine and cosine may differ between libraries, and then of very few voxels
            assert np.mean(volume != expected) < 1e-3
            compared += 1
    assert compared


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_cases(case: Case):
    assert failures(case, volumes(case)) == []
