"""The whole program on a store that fails: the same bytes or one sentence, no hang, no wrong pixel."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running_project import assert_same, results
from streaming_world import KINDS, enter, extract, random_faults, undisturbed, write_world

from portal_extract.demo.loopback import Fault, Request
from portal_extract.demo.object_server import ObjectServer
from portal_extract.images.fetcher import Fetcher

pytestmark = pytest.mark.timeout(60)


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


@pytest.fixture
def own_store(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store that may be damaged."""
    enter(world, tmp_path, monkeypatch)
    return Path(shutil.copytree(world / "store", tmp_path / "store"))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not pause between attempts; their number stays."""
    monkeypatch.setattr(Fetcher, "_pause_s", lambda self, attempt: 0.01)


def refused(capfd: pytest.CaptureFixture[str], kind: str, url: str, *more: str) -> str:
    """Run the program, which must end with one sentence; give it."""
    assert extract(kind, url, *more) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.startswith("portal-extract: ")
    assert "Traceback" not in said.err
    assert len(said.err.splitlines()) == 1
    return said.err


def assert_incomplete(expected: dict[str, bytes], out: Path = Path("out")) -> None:
    """No table, and no stack but those that are complete and right."""
    found = results(out) if out.exists() else {}
    assert not [name for name in found if name.endswith((".star", ".part"))]
    assert all(expected[name] == content for name, content in found.items())


@pytest.mark.parametrize("kind", KINDS)
def test_passing_faults_change_nothing(server: ObjectServer, expected, kind: str) -> None:
    server.fault = random_faults(5, stall_s=4.5)
    assert extract(kind, server.url) == 0
    assert_same(Path("out"), expected[kind])
    entries = [entry for entry in server.log.entries if not entry.path.endswith((".zattrs", ".zarray"))]
    assert len(entries) > len({(entry.path, entry.range_header) for entry in entries})


@pytest.mark.parametrize(
    ("kind", "away_s"),
    [("old", 3), ("mrc", 3), pytest.param("new", 20, marks=pytest.mark.timeout(120))],
)
def test_a_store_that_is_away_for_a_while(
    world: Path, server: ObjectServer, expected, kind: str, away_s: float
) -> None:
    asked, back, refused_connections = threading.Event(), [], []

    def hold(request: Request) -> Fault | None:
        if request.number < 6:
            return None
        asked.set()
        return Fault(delay_s=30)

    def interrupt() -> None:
        asked.wait(30)
        server.close()
        time.sleep(away_s)
        with socket.socket() as probe:
            refused_connections.append(probe.connect_ex(("127.0.0.1", server.port)))
        back.append(ObjectServer(world / "store", port=server.port).start())

    server.fault = hold
    meanwhile = threading.Thread(target=interrupt)
    meanwhile.start()
    began_s = time.monotonic()
    code = extract(kind, server.url)
    lasted_s = time.monotonic() - began_s
    meanwhile.join()
    again = back[0]
    n_later = again.log.count()
    again.close()
    assert code == 0
    assert refused_connections == [errno.ECONNREFUSED]
    assert lasted_s > away_s
    # pixels were read before and after
    assert any("/." not in entry.path and entry.status in (200, 206) for entry in server.log.entries)
    assert n_later > 0
    assert_same(Path("out"), expected[kind])


def first_data(kind: str) -> Callable[[Request], bool]:
    """Whether a request is for pixels of some object in the middle of the work."""
    if kind == "mrc":
        return lambda request: request.number > 4
    end = {"old": "0/0/1/1", "new": "0/3/0/0"}[kind]
    return lambda request: request.path.endswith(end)


FAILURES = {
    "forbidden": (Fault(status=403), "the store refuses access (HTTP 403)"),
    "throttled": (Fault(status=503), "not readable after 10 attempts: HTTP 503"),
    "reset": (Fault(reset=True), "not readable after 10 attempts: "),
    "cut short": (Fault(body_bytes=3), "not readable after 10 attempts: "),
    "broken": (Fault(status=500), "not readable after 10 attempts: HTTP 500"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.usefixtures("impatient")
def test_a_lasting_fault_is_one_sentence(
    server: ObjectServer, expected, capfd, kind: str, failure: str
) -> None:
    fault, words = FAILURES[failure]
    applies = first_data(kind)
    server.fault = lambda request: fault if applies(request) else None
    said = refused(capfd, kind, server.url)
    assert f"s3://bucket/{'stack.mrc' if kind == 'mrc' else kind + '.zarr'}" in said
    assert words in said
    assert_incomplete(expected[kind])
    # and the same command, once the store is well again, completes what is there
    server.fault = None
    assert extract(kind, server.url) == 0
    assert_same(Path("out"), expected[kind])


@pytest.mark.usefixtures("impatient", "server")
def test_a_host_that_does_not_exist(capfd) -> None:
    said = refused(capfd, "new", "http://no-such-host.invalid")
    assert "no-such-host.invalid" in said
    assert "not found" in said
    assert not Path("out").exists()


@pytest.mark.usefixtures("impatient", "server")
def test_a_port_where_nobody_listens(capfd, world: Path) -> None:
    with ObjectServer(world / "store") as gone:
        url = gone.url
    said = refused(capfd, "new", url)
    assert "s3://bucket/new.zarr" in said
    assert "10 attempts" in said
    assert not Path("out").exists()


def chunk(store: Path, kind: str) -> Path:
    """A chunk that several particles need."""
    return store / "bucket" / f"{kind}.zarr/0" / {"old": "0/1/1", "new": "3/0/0"}[kind]


def overwrite(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut in half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "another size in the header": lambda path: overwrite(path, 4, b"\xff\xff\xff\x7f"),
    "blocks outside the object": lambda path: overwrite(path, 16, b"\xff\xff\xff\x7f" * 4),
    "blocks that overlap": lambda path: overwrite(path, 16, b"\x40\x01\x00\x00" * 4),
    "the error page of a proxy": lambda path: path.write_bytes(b"<html><body>Gateway</body></html>"),
    "garbage in a block": lambda path: overwrite(path, path.stat().st_size // 2, b"\xff" * 40000),
}


@pytest.mark.parametrize("kind", ["old", "new"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.usefixtures("impatient")
def test_a_damaged_chunk_is_named(own_store: Path, expected, capfd, kind: str, damage: str) -> None:
    path = chunk(own_store, kind)
    DAMAGES[damage](path)
    with ObjectServer(own_store) as server:
        said = refused(capfd, kind, server.url)
    assert f"s3://bucket/{path.relative_to(own_store / 'bucket')}" in said
    assert_incomplete(expected[kind])


def test_a_truncated_mrc_is_named(own_store: Path, expected, capfd) -> None:
    path = own_store / "bucket" / "stack.mrc"
    os.truncate(path, path.stat().st_size - 4)
    with ObjectServer(own_store) as server:
        said = refused(capfd, "mrc", server.url)
    assert "s3://bucket/stack.mrc" in said
    assert "truncated" in said
    assert_incomplete(expected["mrc"])


@pytest.mark.usefixtures("impatient")
def test_an_object_that_changes_while_it_is_read(own_store: Path, expected, capfd) -> None:
    path = chunk(own_store, "old")
    other = path.with_name("other")
    shutil.copy(path, other)
    overwrite(other, other.stat().st_size - 1, b"\x00")

    def swap(request: Request) -> None:
        starts_later = (request.range_header or "").startswith("bytes=") and "=0-" not in request.range_header
        if request.path.endswith("0/0/1/1") and starts_later and other.exists():
            other.replace(path)

    with ObjectServer(own_store) as server:
        server.fault = swap
        said = refused(capfd, "old", server.url, "--read", "blocks")
    assert "0/0/1/1" in said
    assert "the object has changed while it was read" in said
    assert_incomplete(expected["old"])
