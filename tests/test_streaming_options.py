"""Options of reading, through the whole program: what is fetched changes, what is written does not."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from images_support import make_pixels
from running_project import assert_same
from streaming_world import KINDS, SHAPE, arguments, enter, extract, undisturbed, write_world

from portal_extract.cli import main
from portal_extract.demo.object_server import ObjectServer
from portal_extract.extraction.forecast import Forecast, SeriesForecast
from portal_extract.extraction.summary import SeriesSurvey
from portal_extract.planning.estimate import ReadPlan

MIB = 1 << 20


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def expected(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        return {kind: undisturbed(world, kind, folder / kind, patch) for kind in KINDS}


@pytest.fixture
def server(
    world: Path, expected: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ObjectServer]:
    enter(world, tmp_path, monkeypatch)
    with ObjectServer(world / "store") as running:
        yield running


def fetched(server: ObjectServer) -> dict[tuple[str, str | None], int]:
    """Parts of chunks and of images that were served since the last call, and their bytes."""
    entries, parts = server.log.entries, {}
    server.log.clear()
    for entry in entries:
        if "/." in entry.path or entry.range_header == "bytes=0-1023":
            continue
        assert (entry.path, entry.range_header) not in parts
        parts[entry.path, entry.range_header] = entry.body_bytes
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_ways_of_reading_give_the_same(server: ObjectServer, expected, kind: str) -> None:
    sizes = {}
    ways = {
        "chunks": ["--read", "chunks"],
        "blocks": ["--read", "blocks"],
        "exact": ["--read", "blocks", "--gap", "0"],
        "dear": ["--request-cost", "1GiB"],
        "cheap": ["--request-cost", "0"],
    }
    for way, options in ways.items():
        assert extract(kind, server.url, "--overwrite", *options) == 0
        assert_same(Path("out"), expected[kind])
        parts = fetched(server)
        sizes[way] = sum(parts.values())
        if kind != "mrc" and way != "cheap":
            has_whole = any(range_header is None for _, range_header in parts)
            assert has_whole == (way in ("chunks", "dear"))
    if kind == "mrc":
        assert len(set(sizes.values())) == 1
    else:
        assert sizes["exact"] <= sizes["blocks"] < sizes["dear"] <= sizes["chunks"]
        assert sizes["cheap"] <= 1.01 * sizes["blocks"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_extraction_fetches_only_what_is_new(
    server: ObjectServer, expected, tmp_path: Path, kind: str
) -> None:
    cache = ["--cache-dir", "cache", "--cache-size", "1GiB"]
    assert extract(kind, server.url, *cache) == 0
    assert_same(Path("out"), expected[kind])
    first = fetched(server)
    assert extract(kind, server.url, *cache, "--overwrite") == 0
    assert_same(Path("out"), expected[kind])
    tables = fetched(server)
    assert sum(tables.values()) < 0.01 * sum(first.values())
    # a larger box
    assert extract(kind, server.url, *cache, "--overwrite", "--box-size", "40") == 0
    more = fetched(server)
    small = {part for part in first if part not in tables}
    assert 0 < sum(more.values()) < 0.6 * sum(first.values())
    assert not small & set(more)


def test_worker_processes_share_a_cache(server: ObjectServer, expected) -> None:
    cluster = ["--scheduler", "local", "--processes", "2", "--cache-dir", "cache"]
    assert extract("new", server.url, *cluster) == 0
    assert_same(Path("out"), expected["new"])
    assert any(path.is_file() for path in Path("cache").glob("*/*"))
    server.log.clear()
    assert extract("new", server.url, "--overwrite", "--cache-dir", "cache") == 0
    assert_same(Path("out"), expected["new"])
    assert sum(fetched(server).values()) < 100_000


def test_a_cache_of_whole_chunks_is_refused(server: ObjectServer, capfd) -> None:
    assert extract("new", server.url, "--cache-dir", "cache", "--read", "chunks") == 2
    assert "--cache-dir keeps blocks, not whole chunks" in capfd.readouterr().err
    assert not server.log.entries


def plan(kind: str, url: str, capfd: pytest.CaptureFixture[str], *more: str) -> dict:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "local", *arguments(kind, url, *more), "--json"])
    assert ended.value.code == 0
    return json.loads(capfd.readouterr().out)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("more", [[], ["--read", "blocks"], ["--cache-dir", "cache"], ["--max-dose", "10"]])
def test_the_plan_is_what_is_fetched(server: ObjectServer, capfd, kind: str, more: list[str]) -> None:
    found = plan(kind, server.url, capfd, *more)["reading"]
    fetched(server)
    assert extract(kind, server.url, *more) == 0
    parts = fetched(server)
    # the order of blocks and their sizes are known of one chunk only
    assert sum(parts.values()) == pytest.approx(found["fetched_bytes"], rel=0 if kind == "mrc" else 0.06)
    assert len(parts) == pytest.approx(found["requests"], rel=0 if kind == "mrc" else 0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_fetched_before_is_planned_exactly(server: ObjectServer, capfd, kind: str) -> None:
    cache, larger = ["--cache-dir", "cache"], ["--box-size", "40", "--gap", "0"]
    assert plan(kind, server.url, capfd, *cache)["reading"]["is_estimate"] == (kind != "mrc")
    fetched(server)
    assert extract(kind, server.url, *cache) == 0
    first = sum(fetched(server).values())
    for more, is_new in (([], False), (larger, True), (larger, False)):
        found = plan(kind, server.url, capfd, *cache, *more)["reading"]
        # larger boxes touch small chunks that were not looked at before
        assert found["is_estimate"] == (is_new and kind == "new")
        assert (found["fetched_bytes"] > 0) == is_new
        assert found["fetched_bytes"] < 0.6 * first
        fetched(server)
        assert extract(kind, server.url, *cache, *more, "--overwrite") == 0
        parts = fetched(server)
        inexact = 0.25 if found["is_estimate"] else 0
        assert sum(parts.values()) == pytest.approx(found["fetched_bytes"], rel=inexact)
        assert len(parts) == pytest.approx(found["requests"], rel=inexact)


def test_a_plan_says_that_the_cache_is_left_out(server: ObjectServer, capfd) -> None:
    for more, is_said in (["--cache-dir", "cache"], True), ([], False):
        with pytest.raises(SystemExit):
            main(["plan", "local", *arguments("new", server.url, *more)])
        assert ("cache holds already is not counted" in capfd.readouterr().out) == is_said


def test_memory_is_planned_for_two_tilt_series_where_both_fit() -> None:
    def series(reader: int) -> SeriesForecast:
        reading = ReadPlan(1, 1, 1, 1, 1, 1, 1, 1, reader, False)
        return SeriesForecast(SeriesSurvey("TS", 1, 1, 1, {}), 1, 10 + reader, reading)

    def planned(*readers: int) -> int:
        return Forecast(tuple(map(series, readers)), 100).memory_bytes

    assert planned() == 0
    assert planned(40) == 50
    assert planned(40, 30) == 80
    assert planned(40, 80, 20) == 90  # 10 + 40 + 80 do not fit, nor 10 + 80 + 20
    assert planned(20, 30, 60) == 100


def test_what_is_left_out_costs_nothing(server: ObjectServer, world: Path, tmp_path: Path) -> None:
    def sections() -> set[int]:
        return {int(path.split("/0/")[1].split("/")[0]) for path, _ in fetched(server)}

    assert extract("new", server.url) == 0
    assert sections() == set(range(SHAPE[0]))
    # the accumulated dose of image n is 3 n
    assert extract("new", server.url, "--overwrite", "--max-dose", "10") == 0
    assert sections() == {0, 1, 2, 3}
    # one particle that every image sees, and one at the border that few do
    table = Path("particles.star")
    text = (world / "particles.star").read_text().splitlines(keepends=True)
    first = next(n for n, line in enumerate(text) if line.startswith("TS_1"))
    table.unlink()
    table.write_text("".join(text[:first]) + "TS_1 TS_1/1 0 0 0\n")
    assert extract("new", server.url, "--overwrite") == 0
    one = fetched(server)
    table.write_text("".join(text[:first]) + "TS_1 TS_1/1 0 0 0\nTS_1 TS_1/2 0 120 300\n")
    assert extract("new", server.url, "--overwrite") == 0
    assert set(one) < set(fetched(server))
    assert extract("new", server.url, "--overwrite", "--min-frames", str(SHAPE[0])) == 0
    assert fetched(server) == one


def run_alone(*given: str) -> None:
    subprocess.run([sys.executable, "-m", "portal_extract", *given], check=True, timeout=100)


def test_the_peak_of_the_memory_is_predicted(tmp_path: Path, capfd, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = make_pixels((12, 1536, 1536), "f4")  # 108 MiB
    chunks = {"old": (256, 256, 256), "new": (1, 512, 512)}
    world = write_world(tmp_path / "world", pixels, chunks, side_angst=700)
    enter(world, tmp_path, monkeypatch)

    def peak() -> int:
        return int(json.loads(Path("out/report/report.json").read_text())["peak_memory_bytes"])

    with ObjectServer(world / "store") as server:
        few = ["--max-dose", "1", "--memory", "16MiB"]
        run_alone("local", *arguments("mrc", server.url, *few), "-o", "out", "-q")
        program = peak() - plan("mrc", server.url, capfd, *few)["memory_bytes"]
        for kind in KINDS:
            for memory_mib in (64, 128):
                more = ["--box-size", "64", "--memory", f"{memory_mib}MiB"]
                predicted = plan(kind, server.url, capfd, *more)["memory_bytes"]
                assert predicted <= memory_mib * MIB
                run_alone("local", *arguments(kind, server.url, *more), "-o", "out", "-q", "--overwrite")
                assert peak() <= program + predicted + 24 * MIB
