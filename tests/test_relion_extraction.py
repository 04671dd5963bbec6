"""Stacks and volumes equal RELION's: every voxel, header and table of every case."""

from __future__ import annotations

import pytest
from relion_cases import HERE, SHARED, Case, cases, differences, our_arguments

from portal_extract.cli import cli

SMALL = cases(HERE / "data" / "relion5", "stack_") + cases(HERE / "data" / "relion5", "volume_")
ALL = cases(SHARED / "relion5", "stack_") + cases(SHARED / "relion5", "volume_")


def run_case(case: Case, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(case.project)
    out = tmp_path / "out"
    arguments = ["local", *our_arguments(case.args), "--output-dir", str(out), "--quiet"]
    cli.main(args=arguments, standalone_mode=False)
    assert differences(case, out) == []


def test_there_are_cases():
    names = [case.name for case in SMALL]
    assert sum(name.startswith("stack_") for name in names) >= 5
    assert sum(name.startswith("volume_") for name in names) >= 5


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_cases(case, tmp_path, monkeypatch):
    run_case(case, tmp_path, monkeypatch)


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_cases(case, tmp_path, monkeypatch):
    run_case(case, tmp_path, monkeypatch)
