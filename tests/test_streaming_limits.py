"""Never more requests at the store than ``--requests`` allows, and no request but GET of an object."""

from __future__ import annotations

import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import cli_project
import numpy as np
import pytest
from reconstruct_support import without_pictures
from streaming_world import SHAPE, arguments, enter, write_world

from portal_extract.cli import main
from portal_extract.demo.loopback import Fault, Request
from portal_extract.demo.object_server import ObjectServer

pytestmark = pytest.mark.timeout(120)

DELAY_S = 0.02
#: longer than a request may stall before it is sent twice
STALL_S = 3.5
#: projects of several tilt series
SERIES = {"many_zarr": ("old", "new", "old", "new", "new", "new"), "many_mrc": ("mrc",) * 6}


class Meter:
    """Counts the requests that are under way: read, and their answer not yet sent to the last byte.

    A client that has given a request up and closed its connection waits for it no longer. Before the first
    request for pixels is the time of the headers of all tilt series, which is told apart.
    """

    def __init__(self) -> None:
        self.most_before = self.most = 0
        self._is_before = True
        self._lock = threading.Lock()
        self._under_way: dict[int, socket.socket] = {}

    def begin(self, connection: socket.socket, request: Request) -> None:
        with self._lock:
            self._under_way[id(connection)] = connection
            n_open = sum(map(is_open, self._under_way.values()))
            self._is_before = self._is_before and is_metadata(request.path, request.range_header)
            if self._is_before:
                self.most_before = max(self.most_before, n_open)
            else:
                self.most = max(self.most, n_open)

    def end(self, connection: socket.socket) -> None:
        with self._lock:
            self._under_way.pop(id(connection), None)


def is_open(connection: socket.socket) -> bool:
    """Whether the other end has not closed a connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class MeteredServer(ObjectServer):
    """An object server that counts the requests under way at one time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        meter = self.meter = Meter()

        class Metered(self._listener.RequestHandlerClass):  # type: ignore[name-defined]
            def _answer(self, request: Request) -> None:
                meter.begin(self.connection, request)
                try:
                    super()._answer(request)
                finally:
                    meter.end(self.connection)

            def send_body(self, status: int, body: bytes, headers: dict[str, str]) -> None:
                meter.end(self.connection)
                super().send_body(status, body, headers)

            def _send_pieces(self, length: int, send: Callable[[int, int], None]) -> None:
                def send_but_the_last_byte(start: int, stop: int) -> None:
                    send(start, stop - 1)
                    if stop == length:  # the client is free to ask again once it has that byte
                        meter.end(self.connection)
                    send(stop - 1, stop)

                super()._send_pieces(length, send_but_the_last_byte)

        self._listener.RequestHandlerClass = Metered


def write_many(folder: Path, name: str, kinds: tuple[str, ...]) -> None:
    """Add a project of several tilt series, each with images of its own."""
    bucket, table, random = folder / "store" / "bucket", cli_project.table, np.random.default_rng(5)
    tomograms, particles = [], []
    for number, kind in enumerate(kinds):
        series = f"{name}_{number}"
        stored = bucket / ("stack.mrc" if kind == "mrc" else f"{kind}.zarr")
        copy = bucket / f"{series}{stored.suffix}"
        copy.symlink_to(stored)
        tilts = (
            (folder / f"tilts/{kind}.star")
            .read_text()
            .replace(f"s3://bucket/{stored.name}", f"s3://bucket/{copy.name}")
        )
        assert copy.name in tilts
        (folder / f"tilts/{series}.star").write_text(tilts.replace("data_TS_1", f"data_{series}"))
        sizes = (str(SHAPE[2]), str(SHAPE[1]), "40")
        tomograms.append((series, f"tilts/{series}.star", "-1", "300", "2.7", "0.1", "1.0", *sizes))
        for particle, place in enumerate(random.uniform(-120, 120, (10, 3)) * (1, 1, 0.1)):
            particles.append((series, f"{series}/{particle + 1}", *(f"{x:.2f}" for x in place)))
    (folder / f"tomograms_{name}.star").write_text(table("global", cli_project._TOMOGRAM_LABELS, tomograms))
    (folder / f"particles_{name}.star").write_text(
        table("particles", cli_project._PARTICLE_LABELS, particles)
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_world(tmp_path_factory.mktemp("world"))
    for name, kinds in SERIES.items():
        write_many(folder, name, kinds)
    return folder


@pytest.fixture
def server(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MeteredServer]:
    enter(world, tmp_path, monkeypatch)
    without_pictures(monkeypatch)
    with MeteredServer(world / "store") as running:
        yield running


def disturbed(stalled: tuple[int, ...]) -> Callable[[Request], Fault]:
    """Every answer takes a while; those to some requests for pixels stall, midway or from the start."""
    n_data, lock = 0, threading.Lock()

    def fault(request: Request) -> Fault:
        nonlocal n_data
        if is_metadata(request.path, request.range_header):
            return Fault(delay_s=DELAY_S)
        with lock:
            number, n_data = n_data, n_data + 1
        if number not in stalled:
            return Fault(delay_s=DELAY_S)
        if number % 2:
            return Fault(delay_s=STALL_S)
        return Fault(delay_s=DELAY_S, body_bytes=10, stall_s=STALL_S)

    return fault


def is_metadata(path: str, range_header: str | None) -> bool:
    return path.endswith((".zattrs", ".zarray", "zarr.json")) or range_header == "bytes=0-1023"


def project(kind: str, url: str, limit: int) -> list[str]:
    tables = ["--particles-starfile", f"particles_{kind}.star"] if kind in SERIES else []
    return arguments(kind, url, *tables, "--requests", str(limit))


def run(*given: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(given))
    assert ended.value.code == 0


def assert_within(server: MeteredServer, limit: int, least: int) -> None:
    assert least <= server.meter.most <= limit
    entries = server.log.entries
    assert {entry.method for entry in entries} == {"GET"}
    assert not any(entry.query for entry in entries)
    assert not any(entry.path.strip("/") in ("", "bucket") for entry in entries)


def assert_asked_again(server: MeteredServer) -> None:
    """The stalled requests were sent twice."""
    asked = Counter((entry.path, entry.range_header) for entry in server.log.entries)
    assert max(asked.values()) > 1


@pytest.mark.parametrize(
    ("kind", "limit"),
    [("new", 1), ("many_mrc", 1), ("old", 4), ("many_zarr", 4), ("mrc", 32), ("many_zarr", 32)],
)
def test_an_extraction_keeps_within_its_requests(server: MeteredServer, kind: str, limit: int) -> None:
    server.fault = disturbed((5,) if limit == 1 else (5, 8, 11))
    run("local", *project(kind, server.url, limit), "--output-dir", "out", "--quiet")
    if limit > 1:
        assert_asked_again(server)
    assert_within(server, limit, min(limit, 4))


@pytest.mark.parametrize(("kind", "limit"), [("new", 1), ("old", 4), ("many_zarr", 4), ("many_zarr", 32)])
def test_a_plan_keeps_within_its_requests(server: MeteredServer, kind: str, limit: int) -> None:
    server.fault = disturbed((0,))
    run("plan", "local", *project(kind, server.url, limit))
    if limit > 1:
        assert_asked_again(server)
    assert_within(server, limit, min(limit, 2) if kind in SERIES else 1)


@pytest.mark.parametrize(("kind", "limit"), [("old", 1), ("many_zarr", 4), ("many_mrc", 32)])
def test_a_reconstruction_keeps_within_its_requests(server: MeteredServer, kind: str, limit: int) -> None:
    server.fault = disturbed((5,) if limit == 1 else (5, 8, 11))
    given = project(kind, server.url, limit)
    run("reconstruct", "local", *given, "--taper", "3", "--output-dir", "out", "--quiet")
    if limit > 1:
        assert_asked_again(server)
    assert_within(server, limit, min(limit, 4))


def test_worker_processes_keep_within_their_requests(server: MeteredServer) -> None:
    server.fault = disturbed((5, 8))
    given = project("many_zarr", server.url, 3)
    cluster = ["--scheduler", "local", "--processes", "2", "--total-requests", "4"]
    run("local", *given, *cluster, "--output-dir", "out", "--quiet")
    assert_within(server, 4, 2)


@pytest.mark.parametrize(("kind", "limit"), [("new", 1), ("many_zarr", 1), ("many_mrc", 4), ("many_zarr", 4)])
def test_reading_the_headers_of_a_project_keeps_within_its_requests(
    server: MeteredServer, kind: str, limit: int
) -> None:
    server.fault = disturbed(())
    run("plan", "local", *project(kind, server.url, limit))
    assert 1 <= server.meter.most_before <= limit
