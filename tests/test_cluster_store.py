"""Workers that read from an object store: bounded requests, and a store that fails at times."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from running_project import assert_same, finish, from_store, load, results, start, write_many, write_store

from portal_extract.demo.loopback import Fault
from portal_extract.demo.object_server import ObjectServer
from portal_extract.extraction.job import extract
from portal_extract.options import ExtractOptions, RunOptions
from portal_extract.running.clients import SchedulerOptions, open_client
from portal_extract.running.journal import LOG

STACKS = ExtractOptions(box_size=16)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A project, and the folder of a store with its images."""
    folder = write_many(tmp_path_factory.mktemp("project"), n_series=5, n_particles=20)
    write_store(folder, folder / "store")
    return folder


@pytest.fixture(scope="module")
def two():
    with open_client(SchedulerOptions("local", processes=2, threads=1)) as client:
        yield client


def reference(stored: Path) -> dict[str, bytes]:
    """Results from the images on disk."""
    extract(load(stored), STACKS, "out", RunOptions(workers=1))
    expected = results(Path("out"))
    Path("out").rename("local")
    return expected


def most_at_once(entries, seconds: float) -> int:
    """Most requests in flight, each of which lasts so long at least."""
    starts = sorted(entry.started_s for entry in entries)
    return max(sum(start - seconds < other <= start for other in starts) for start in starts)


@pytest.mark.parametrize("total", [3, 9])
def test_requests_of_all_workers_together_are_bounded(stored, two, tmp_path, monkeypatch, total):
    monkeypatch.chdir(tmp_path)
    expected = reference(stored)
    with ObjectServer(stored / "store", latency_s=0.03) as server:
        project = from_store(load(stored), server.url)
        run = RunOptions(workers=1, requests_in_flight=32, total_requests=total)
        summary = extract(project, STACKS, "out", run, client=two)
        assert most_at_once(server.log.entries, 0.03) <= total
        # they are used too
        assert most_at_once(server.log.entries, 0.03) >= total // 3 * 2
        assert summary.n_requests == len(server.log.entries)
    assert_same(Path("out"), expected)


@pytest.mark.parametrize("place", ["threads", "cluster"])
def test_one_tilt_series_that_the_store_refuses(stored, two, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    expected, refused = reference(stored), ["TS_03"]

    def faults(request):
        return Fault(status=403) if any(name in request.path for name in refused) else None

    client = two if place == "cluster" else None
    with ObjectServer(stored / "store") as server:
        server.fault = faults
        project = from_store(load(stored), server.url)
        run = RunOptions(workers=1, on_error="skip")
        summary = extract(project, STACKS, "out", run, client=client)
        assert [(f.name, f.n_particles) for f in summary.failures] == [("TS_03", 20)]
        assert "TS_03.zarr" in summary.failures[0].cause
        assert summary.n_extracted == 80
        labels = {json.loads(line)["label"] for line in Path("out/.journal", LOG).read_text().splitlines()}
        assert labels == {"TS_00", "TS_01", "TS_02", "TS_04"}
        refused.clear()
        server.log.clear()
        summary = extract(project, STACKS, "out", run, client=client)
        assert summary.failures == ()
        assert all("TS_03" in entry.path for entry in server.log.entries)
    assert_same(Path("out"), expected)


def test_exit_codes_of_the_command_line(stored, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("tilts", "particles.star"):
        (folder / name).symlink_to(stored / name)

    def faults(request):
        # pixels alone: metadata are read before anything is extracted
        return Fault(status=403) if re.search(r"TS_03\.zarr/0/\d", request.path) else None

    with ObjectServer(stored / "store") as server:
        server.fault = faults
        lines = (stored / "tomograms.star").read_text().splitlines()
        named = [
            f"{line} s3://bucket/{line.split()[0]}.zarr" if line.startswith("TS_")
            else f"{line}\n_tomoTiltSeriesURI #11" if "rlnTomoSizeZ" in line
            else line
            for line in lines
        ]  # fmt: skip
        (folder / "tomograms.star").write_text("\n".join(named) + "\n")
        files = ["--particles-starfile", "particles.star", "--tomograms-starfile", "tomograms.star"]
        arguments = [*files, "--box-size", "16", "--s3-endpoint-url", server.url]
        code, errors = finish(start(folder, [*arguments, "--on-error", "skip", "--json-progress"]))
        assert code == 3, errors
        events = [json.loads(line) for line in errors.splitlines()]
        assert events[-1]["event"] == "finished"
        assert [f["tilt_series"] for f in events[-1]["summary"]["failures"]] == ["TS_03"]
        warnings = [e["text"] for e in events if e["event"] == "note" and e["level"] == "warning"]
        assert any(text.startswith("TS_03: 20 particles failed: ") for text in warnings)
        process = start(folder, [*arguments, "--on-error", "skip"])
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 3
        assert "failed: TS_03, 20 particles: " in out
        code, errors = finish(start(folder, arguments))
        assert code == 2
        assert errors.splitlines()[-1].startswith("portal-extract: ")
        assert "TS_03.zarr" in errors.splitlines()[-1]
        assert "Traceback" not in errors
