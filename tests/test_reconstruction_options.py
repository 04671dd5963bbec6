"""What a reconstruction refuses, and what its options imply."""

from __future__ import annotations

import pytest

from portal_extract.errors import UnsupportedError
from portal_extract.reconstruction.options import ReconstructOptions


def test_defaults_are_those_of_relion():
    options = ReconstructOptions(box_size=64)
    options.check()
    assert not options.has_symmetry
    assert not options.is_cropped
    assert options.output_size == 64
    assert options.visibility_radius_px == 32


def test_crop_to_the_box_is_no_crop():
    assert not ReconstructOptions(box_size=64, crop_size=64).is_cropped
    cropped = ReconstructOptions(box_size=64, crop_size=48)
    assert cropped.is_cropped
    assert cropped.output_size == 48


def test_visibility_ignores_the_binning():
    options = ReconstructOptions(box_size=64, binning=4)
    assert options.visibility_radius_px == 32
    assert options.unbinned_box == 256


@pytest.mark.parametrize("symmetry", ["C1", "c1"])
def test_no_symmetry(symmetry):
    assert not ReconstructOptions(box_size=8, symmetry=symmetry).has_symmetry
    assert ReconstructOptions(box_size=8, symmetry=symmetry, helical_units=3).has_symmetry


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"box_size": 63}, "--box-size"),
        ({"crop_size": 33}, "--crop-size"),
        ({"crop_size": 96}, "--crop-size"),
        ({"binning": 0.5}, "--bin"),
        ({"binning": float("inf")}, "--bin"),
        ({"binning": float("nan")}, "--bin"),
        ({"binning": 1.3}, "--bin"),
        ({"symmetry": "Q7"}, "--sym"),
        ({"helical_units": 0}, "--helical-nr-asu"),
        ({"helical_units": 3}, "--helical-rise"),
        ({"whiten": True, "ctf": False}, "--whiten"),
        ({"cutoff_fraction": 1.0}, "--cutoff-fract"),
        ({"cutoff_fraction": -0.1}, "--cutoff-fract"),
        ({"taper_px": -1.0}, "--taper"),
        ({"max_dose_e_per_a2": 0.0}, "--max-dose"),
        ({"visible_frames": "some"}, "--visible-frames"),
    ],
)
def test_refusals_name_the_option(changes, word):
    with pytest.raises(UnsupportedError, match=word) as caught:
        ReconstructOptions(**{"box_size": 64, **changes}).check()
    assert len(caught.value.problems) == 1


def test_all_problems_at_once():
    with pytest.raises(UnsupportedError) as caught:
        ReconstructOptions(box_size=7, symmetry="Z", taper_px=-1).check()
    assert len(caught.value.problems) == 3
