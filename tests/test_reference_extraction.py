"""The slow reference is right: it reproduces RELION's stacks."""

from __future__ import annotations

import pytest
from reference_cases import failures, stacks
from relion_cases import HERE, SHARED, Case, cases

SMALL = cases(HERE / "data" / "relion5", "stack_b32")
ALL = cases(SHARED / "relion5", "stack_")


def test_there_are_cases():
    assert SMALL


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small_cases(case: Case):
    assert failures(case, stacks(case)) == []


@pytest.mark.shared
@pytest.mark.skipif(not ALL, reason="the full reference data is not beside the checkout")
@pytest.mark.parametrize("case", ALL, ids=str)
def test_all_cases(case: Case):
    # float16 files are met within one unit in the last place, which the comparison forgives
    assert failures(case, stacks(case)) == []
