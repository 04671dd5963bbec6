"""The model of large jobs agrees with what was measured, and the page with the model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model():
    spec = importlib.util.spec_from_file_location("scaling_model", ROOT / "benchmarks" / "scaling_model.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_model_agrees_with_the_measurements(model):
    assert len(model.MEASURED) >= 10
    for name, job, place, found in model.MEASURED:
        assert model.seconds(job, place) == pytest.approx(found, rel=0.2), name


def test_requests_are_divided_as_they_are(model):
    from portal_extract.options import RunOptions
    from portal_extract.running.cluster import units_at_the_scheduler

    run = RunOptions()
    for n_slots in (1, 2, 16, 64, 300):
        expected = max(1, min(run.requests_in_flight, run.total_requests // units_at_the_scheduler(n_slots)))
        assert model.requests_in_flight(model.Place(n_slots)) == expected


def test_more_of_anything_is_not_slower(model):
    job = model.SERIES
    times = [model.seconds(job, model.Place(n)) for n in (1, 2, 8, 32, 64, 128)]
    assert times == sorted(times, reverse=True)
    slow, fast = (model.seconds(job, model.Place(64, latency)) for latency in (0.1, 0.01))
    assert slow > fast


def test_the_page_has_the_tables_of_the_model(model):
    page = model.PAGE.read_text(encoding="utf-8")
    assert model.filled(page) == page
