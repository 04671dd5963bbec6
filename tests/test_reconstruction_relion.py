"""Reconstructions equal RELION's, from the slow 2D reference through the package's 3D numerics."""

from __future__ import annotations

import numpy as np
import pytest
from reference_cases import difference, failures, maps
from relion_cases import HERE, SHARED, Case, cases

from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert
from portal_extract.reconstruction.finalise import finalise
from portal_extract.reconstruction.options import ReconstructOptions

SMALL = cases(HERE / "data" / "relion5", "recon_")
ALL = cases(SHARED / "relion5", "recon_")

SYMMETRIC = {
    "recon_T": {"symmetry": "T"},
    "recon_O": {"symmetry": "o"},
    "recon_I1": {"symmetry": "I1"},
    "recon_helical": {"helical_units": 5, "helical_rise_angst": 27.0, "helical_twist_deg": 40.0},
    "recon_C2_helical": {
        "symmetry": "C2",
        "helical_units": 3,
        "helical_rise_angst": 20.0,
        "helical_twist_deg": -25.0,
    },
}


def test_there_are_cases():
    assert len(SMALL) >= 3


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_cases(case: Case):
    assert failures(case, maps(case)) == []


@pytest.fixture(scope="module")
def halves() -> tuple[list[Accumulator], float]:
    stored = np.load(HERE / "data" / "reconstruction" / "slices_b20_bin2.npz")
    found = []
    for half in (1, 2):
        mine = stored["half_set"] == half
        found.append(Accumulator.empty(20))
        slices = [stored[key][mine] for key in ("spectra", "weights", "matrices", "max_freq")]
        insert(found[-1], Slices(*slices))
    return found, float(stored["pixel_size_angst"])


@pytest.mark.parametrize("name", SYMMETRIC)
def test_symmetric_maps(name, halves):
    expected = np.load(HERE / "data" / "reconstruction" / f"{name}.npz")
    options = ReconstructOptions(box_size=20, **SYMMETRIC[name])
    found = finalise(halves[0], options, halves[1])
    none = {"max": 0.0, "rms": 0.0}
    for key in expected.files:
        assert difference(key, found[key], expected[key], none).ok
    np.testing.assert_array_equal(found["weight_merged"], found["weight_half1"])


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_cases(case: Case):
    assert failures(case, maps(case)) == []
