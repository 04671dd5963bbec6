"""Reconstructions equal RELION's: every voxel and header of every case, through the command line."""

from __future__ import annotations

import pytest
from relion_cases import HERE, SHARED, Case, cases, differences, our_arguments

from portal_extract.cli import cli

SMALL = cases(HERE / "data" / "relion5", "recon_")
ALL = cases(SHARED / "relion5", "recon_")
#: what RELION does not write
OURS = ("*.star", "*.png")


def run_case(case: Case, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(case.project)
    out = tmp_path / "out"
    arguments = ["reconstruct", "local", *our_arguments(case.args, case.program), "-o", str(out), "--quiet"]
    cli.main(args=arguments, standalone_mode=False)
    assert differences(case, out, OURS) == []


def test_there_are_cases():
    assert len(SMALL) >= 3


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_cases(case, tmp_path, monkeypatch):
    run_case(case, tmp_path, monkeypatch)


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_cases(case, tmp_path, monkeypatch):
    run_case(case, tmp_path, monkeypatch)
