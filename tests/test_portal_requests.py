"""How the portal is asked: number of requests, batches, honest filters, deadlines and retries."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from portal_world import add_annotation, connection_to, resolve, row_of, serve, world

from portal_extract.demo.loopback import Fault, Request
from portal_extract.demo.portal import EmbeddedPortal
from portal_extract.errors import ChunkReadError, PortalError
from portal_extract.running.events import Event, Note
from portal_extract.sources.portal import PortalConnection, PortalFilters
from portal_extract.sources.portal import api as api_module
from portal_extract.sources.portal.api import In, Like, PortalApi
from portal_extract.sources.portal.build import resolve_portal
from portal_extract.sources.portal.patience import call_within, pause_s
from portal_extract.sources.portal.rows import AnnotationRow, RunRow, ShapeRow


def query_of(request: Request) -> str:
    return str(json.loads(request.body)["query"]) if request.body else ""


def asked(portal: EmbeddedPortal) -> list[str]:
    """Record the root field of every query from now on."""
    fields: list[str] = []

    def listen(request: Request) -> Fault | None:
        query = query_of(request)
        fields.append(query.strip().removeprefix("query").strip(" {\n").split("(")[0].split(" ")[0])
        return None

    portal.api.fault = listen
    return fields


def test_number_of_requests_does_not_grow_with_the_runs(tmp_path: Path) -> None:
    counts = []
    for n_runs in (3, 300):
        with serve(tmp_path / str(n_runs), world(n_runs)) as portal:
            fields = asked(portal)
            resolution = resolve(portal)
            assert resolution.report.n_picks == 2 * n_runs
            assert len(resolution.project.tilt_series) == n_runs
            counts.append(Counter(fields))
            assert portal.objects.log.count() == n_runs  # one request for each file of picks
    assert counts[0] == counts[1]
    assert set(counts[0].values()) == {1}
    assert counts[0].total() == 11


def test_ids_go_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "BATCH", 4)
    with serve(tmp_path, world(10)) as portal:
        fields = asked(portal)
        api = PortalApi(connection_to(portal))
        rows = api.find_by("Run", RunRow, "id", range(1000, 1011))
    assert [row.id for row in rows] == list(range(1001, 1011))
    assert fields == ["runs"] * 3


def test_two_lists_on_one_field_are_intersected(tmp_path: Path) -> None:
    with serve(tmp_path, world(4)) as portal:
        api = PortalApi(connection_to(portal))
        both = [In("id", [1001, 1002, 1003]), In("id", [1002, 1003, 1004])]
        assert [row.id for row in api.find("Run", RunRow, both)] == [1002, 1003]
        fields = asked(portal)
        assert api.find("Run", RunRow, [In("id", [1001]), In("id", [1002])]) == []
        assert api.find_by("Run", RunRow, "id", []) == []
        assert fields == []


@pytest.mark.parametrize(
    ("model", "kind", "condition"),
    [
        ("AnnotationShape", ShapeRow, Like("shape_type", ["point"])),
        ("Annotation", AnnotationRow, Like("method_type", ["auto"])),
        ("Run", RunRow, Like("id", ["1"])),
        ("Annotation", AnnotationRow, Like("ground_truth_status", ["t"])),
    ],
)
def test_operators_that_the_client_drops_are_never_sent(
    tmp_path: Path, model: str, kind: Any, condition: Like
) -> None:
    with serve(tmp_path, world()) as portal:
        fields = asked(portal)
        with pytest.raises(PortalError, match="cannot compare"):
            PortalApi(connection_to(portal)).find(model, kind, [condition])
        assert fields == []


def test_answers_wider_than_the_filter_are_sifted(tmp_path: Path) -> None:
    """The underscore is a wildcard of the portal, but an ordinary character of a name."""
    tables = world(2)
    row_of(tables, "Run", 1001)["name"] = "TS_01"
    row_of(tables, "Run", 1002)["name"] = "TSX01"
    with serve(tmp_path, tables) as portal:
        report = resolve(portal, run_names=("s_0",), inexact_match=True).report
    assert {row.run_id for row in report.rows} == {1001}


def test_passing_faults_of_the_api_are_retried(tmp_path: Path) -> None:
    faults = {0: Fault(status=503), 1: Fault(reset=True), 3: Fault(status=429), 5: Fault(body_bytes=7)}
    heard: list[Event] = []
    with serve(tmp_path, world(2)) as portal:
        portal.api.fault = lambda request: faults.get(request.number)
        filters = PortalFilters(dataset_ids=(10,))
        resolution = resolve_portal(filters, connection=connection_to(portal), observer=heard.append)
        assert resolution.report.n_picks == 4
        assert portal.api.log.count() == 11 + len(faults)
    assert sum(isinstance(event, Note) and "attempt" in event.text for event in heard) == len(faults)


def test_lasting_faults_of_the_api_end_in_one_sentence(tmp_path: Path) -> None:
    with serve(tmp_path, world()) as portal:
        portal.api.fault = lambda request: Fault(status=503)
        with pytest.raises(PortalError, match="HTTP status 503 after 3 attempts"):
            resolve_portal(PortalFilters(run_ids=(1001,)), connection=connection_to(portal, attempts=3))
        assert portal.api.log.count() == 3
        portal.api.fault = lambda request: Fault(status=404)
        with pytest.raises(PortalError, match=r"HTTP status 404$"):
            resolve(portal, run_ids=(1001,))
        assert portal.api.log.count() == 4
    with pytest.raises(PortalError, match="no connection"):
        resolve(portal, run_ids=(1001,))


def test_an_address_that_is_no_api_is_told(tmp_path: Path) -> None:
    with serve(tmp_path, world()) as portal:
        elsewhere = PortalConnection(portal.s3_endpoint_url, attempts=1)
        with pytest.raises(PortalError, match=r"HTTP status 403|no GraphQL"):
            resolve_portal(PortalFilters(run_ids=(1001,)), connection=elsewhere)


@pytest.mark.parametrize("fault", [Fault(delay_s=20), Fault(body_bytes=10, stall_s=20)], ids=["mute", "drip"])
def test_a_stalled_api_meets_the_deadline(tmp_path: Path, fault: Fault) -> None:
    with serve(tmp_path, world()) as portal:
        portal.api.fault = lambda request: fault
        for settings in ({"request_timeout_s": 0.2, "attempts": 2}, {"deadline_s": 0.5}):
            started = time.monotonic()
            with pytest.raises(PortalError, match=r"no answer within|no time left"):
                resolve_portal(PortalFilters(run_ids=(1001,)), connection=connection_to(portal, **settings))
            assert time.monotonic() - started < 10


def test_a_call_that_hangs_is_given_up() -> None:
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        call_within(0.05, lambda: time.sleep(5))
    assert call_within(5, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        call_within(5, lambda: 1 / 0)


def test_pauses_grow_and_are_bounded() -> None:
    means = [sum(pause_s(0.5, attempt) for _ in range(300)) / 300 for attempt in (1, 2, 3, 40)]
    assert means == sorted(means)
    assert all(pause_s(0.5, attempt) <= 22.5 for attempt in range(1, 60))


def test_one_damaged_alignment_does_not_spoil_the_others(tmp_path: Path) -> None:
    """The portal cannot put a flat rotation into an answer, and fails on the whole of it."""
    tables = world(9)
    bad = {3003, 3007}
    for row in tables["PerSectionAlignmentParameters"]:
        if row["alignmentId"] in bad and row["zIndex"] == 1:
            row["inPlaneRotation"] = [1.0, 0.0, 0.0, 1.0]
    with serve(tmp_path, tables) as portal:
        report = resolve(portal).report
    assert {row.run_id for row in report.of_status("extract")} == {1000 + r for r in (1, 2, 4, 5, 6, 8, 9)}
    assert {row.alignment_id for row in report.of_status("ineligible")} == bad
    assert all("cannot deliver" in row.reason for row in report.of_status("ineligible"))


def test_files_of_picks_are_retried_and_refusals_told_apart(tmp_path: Path) -> None:
    def fault(request: Request) -> Fault | None:
        if "8001" in request.path and request.attempt < 2:
            return Fault(status=503)
        if "8002" in request.path:
            return Fault(status=403)
        if "8003" in request.path:
            return Fault(status=404)
        return None

    with serve(tmp_path, world(4)) as portal:
        portal.objects.fault = fault
        report = resolve(portal).report
    assert [row.status for row in report.rows] == ["extract", "ineligible", "ineligible", "extract"]
    assert "refuses access" in report.rows[1].reason
    assert "8003.ndjson does not exist" in report.rows[2].reason
    assert "8003" in report.rows[2].reason


def test_an_outage_of_the_store_is_no_reason_to_leave_runs_out(tmp_path: Path) -> None:
    with serve(tmp_path, world(3)) as portal:
        portal.objects.fault = lambda request: Fault(status=503) if "8002" in request.path else None
        with pytest.raises(ChunkReadError, match="8002"):
            resolve_portal(PortalFilters(dataset_ids=(10,)), connection=connection_to(portal, attempts=2))


def test_runs_without_picks_are_described_in_two_more_requests(tmp_path: Path) -> None:
    tables = world(30)
    add_annotation(tables, 6500, run=2, objectName="vault")
    with serve(tmp_path, tables) as portal:
        fields = asked(portal)
        report = resolve(portal, dataset_ids=(10,), annotation_names=("vault",)).report
    assert Counter(fields)["annotations"] == 2
    assert Counter(fields)["identifiedObjects"] == 1
    assert len(report.unmatched_runs) == 29
