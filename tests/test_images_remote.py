"""Streams from a counting, fault-injecting object server: the pixels, the requests, the patience."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from images_support import blosc, cut_fast, cut_slowly, make_pixels, random_boxes, stack_of, write_zarr2

from portal_extract.demo.loopback import Fault, Request
from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import AccessDeniedError, ChunkReadError, ImageFormatError, NotFoundError
from portal_extract.images.boxes import Boxes
from portal_extract.images.http_store import HttpStore, is_plain_http
from portal_extract.images.inspection import plan_stream
from portal_extract.images.layout import read_shape
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import ImageStack
from portal_extract.relion_io.mrc import write_mrc
from portal_extract.running.events import BytesRead, Event

SHAPE = (9, 300, 260)
CHUNKS = {"old": (256, 128, 128), "new": (1, 256, 256)}
QUICK = ReadOptions(batch_views=32, backoff_s=0.02, backoff_limit_s=0.1, stall_timeout_s=5, hedge_after_s=0.3)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_pixels(SHAPE, "f4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("store")
    for name, chunks in CHUNKS.items():
        write_zarr2(root / "bucket" / f"{name}.zarr", pixels, chunks, blosc(block_bytes=32768))
    write_mrc(root / "bucket" / "stack.mrc", pixels, 1.0, kind="stack")
    return root


@pytest.fixture
def server(store: Path) -> Iterator[ObjectServer]:
    with ObjectServer(store) as running:
        yield running


def s3_stack(server: ObjectServer, name: str) -> ImageStack:
    return stack_of(f"s3://bucket/{name}", SHAPE, endpoint_url=server.url)


NAMES = ["old.zarr", "new.zarr", "stack.mrc"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("strategy", ["auto", "chunks", "blocks"])
def test_pixels_requests_and_bytes(
    server: ObjectServer, pixels: np.ndarray, name: str, strategy: str
) -> None:
    boxes = random_boxes(SHAPE, 12, 24)
    seen: list[BytesRead] = []

    def observe(event: Event) -> None:
        if isinstance(event, BytesRead):
            seen.append(event)

    reading = ReadOptions(strategy=strategy, batch_views=32)
    found = cut_fast(s3_stack(server, name), boxes, reading, observer=observe)
    assert np.array_equal(found, cut_slowly(pixels, boxes))
    log = server.log.entries
    assert {entry.method for entry in log} == {"GET"}
    assert not any(entry.query for entry in log)
    assert len({(entry.path, entry.range_header) for entry in log}) == len(log)
    assert sum(event.n_requests for event in seen) == len(log)
    assert sum(event.n_bytes for event in seen) == server.log.body_bytes


@pytest.mark.parametrize("name", ["old.zarr", "new.zarr"])
def test_hardly_more_is_fetched_than_the_blocks_touched(server: ObjectServer, name: str) -> None:
    boxes = random_boxes(SHAPE, 6, 24)
    stack = s3_stack(server, name)
    reading = ReadOptions(request_cost_bytes=1024, gap_bytes=0, batch_views=32)
    plan = plan_stream(stack, boxes, reading)
    server.log.clear()
    cut_fast(stack, boxes, reading)
    entries = [entry for entry in server.log.entries if "/." not in entry.path]
    probe, others = entries[0], entries[1:]
    assert probe.range_header == "bytes=0-4095"
    assert len(entries) == plan.requests
    fetched = sum(entry.body_bytes for entry in others)
    assert fetched <= 1.05 * plan.block_bytes
    assert fetched < 0.8 * plan.chunk_bytes


def test_a_plain_http_address_and_odd_characters(tmp_path: Path, pixels: np.ndarray) -> None:
    name = "run +1 ü#2.zarr"
    write_zarr2(tmp_path / "bucket" / name, pixels, CHUNKS["new"], blosc())
    boxes = random_boxes(SHAPE, 20, 24)
    with ObjectServer(tmp_path) as server:
        for uri, storage in (
            (f"s3://bucket/{name}", {"endpoint_url": server.url}),
            (f"{server.url}/bucket/{name.replace('#', '%23')}", {}),
        ):
            found = cut_fast(stack_of(uri, SHAPE, **storage), boxes, QUICK)
            assert np.array_equal(found, cut_slowly(pixels, boxes))


def test_missing_chunks_are_the_fill_value(tmp_path: Path, pixels: np.ndarray) -> None:
    write_zarr2(tmp_path / "bucket" / "a.zarr", pixels, CHUNKS["new"], blosc(), fill_value=7)
    (tmp_path / "bucket" / "a.zarr" / "0" / "3" / "0" / "1").unlink()
    expected = pixels.copy()
    expected[3, :256, 256:] = 7
    boxes = random_boxes(SHAPE, 200, 24)
    with ObjectServer(tmp_path) as server:
        found = cut_fast(s3_stack(server, "a.zarr"), boxes, QUICK)
    assert np.array_equal(found, cut_slowly(expected, boxes))


def test_a_refused_chunk_is_an_error_at_once(server: ObjectServer) -> None:
    server.fault = lambda request: Fault(status=403) if request.path.endswith("0/3/0/1") else None
    with pytest.raises(AccessDeniedError, match=r"new\.zarr/0/3/0/1.*403"):
        cut_fast(s3_stack(server, "new.zarr"), random_boxes(SHAPE, 300, 24), QUICK)
    assert server.log.count(contains="0/3/0/1") == 1


def random_faults(seed: int) -> Callable[[Request], Fault | None]:
    """5 % refused for a while, 2 % reset, 1 % cut short, and the first chunk stalls once."""
    rng = np.random.default_rng(seed)
    lock = threading.Lock()

    def fault(request: Request) -> Fault | None:
        if request.number == 6:
            return Fault(body_bytes=10, stall_s=3)
        with lock:
            luck = rng.random()
        if luck < 0.05:
            return Fault(status=503)
        if luck < 0.07:
            return Fault(reset=True)
        return Fault(body_bytes=1) if luck < 0.08 else None

    return fault


@pytest.mark.parametrize("name", NAMES)
def test_passing_faults_change_nothing(server: ObjectServer, pixels: np.ndarray, name: str) -> None:
    boxes = random_boxes(SHAPE, 400, 24)
    server.fault = random_faults(3)
    began = time.monotonic()
    found = cut_fast(s3_stack(server, name), boxes, QUICK)
    assert np.array_equal(found, cut_slowly(pixels, boxes))
    assert time.monotonic() - began < 60
    assert server.log.count() > len({(e.path, e.range_header) for e in server.log.entries})


def test_a_store_that_comes_back(store: Path, pixels: np.ndarray) -> None:
    boxes = random_boxes(SHAPE, 100, 24)
    with ObjectServer(store) as server:
        port = server.port
        back_s = time.monotonic() + 1.5
        server.fault = lambda request: (
            Fault(reset=True) if request.number > 5 and time.monotonic() < back_s else None
        )
        reading = ReadOptions(batch_views=32, backoff_s=0.1, backoff_limit_s=0.5)
        found = cut_fast(s3_stack(server, "new.zarr"), boxes, reading)
        assert server.port == port
    assert np.array_equal(found, cut_slowly(pixels, boxes))


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault(status=503), "HTTP 503"),
        (Fault(reset=True), r"reset|disconnected"),
        (Fault(body_bytes=20), r"not enough|not completed|payload|arrived"),
        (Fault(status=400), "HTTP 400"),
    ],
)
def test_a_lasting_fault_is_one_clear_error(server: ObjectServer, fault: Fault, cause: str) -> None:
    server.fault = lambda request: fault if request.path.endswith("0/3/0/1") else None
    reading = ReadOptions(attempts=4, backoff_s=0.01, batch_views=32)
    with pytest.raises(ChunkReadError, match=rf"new\.zarr/0/3/0/1.*(3|4) attempts.*({cause})") as caught:
        cut_fast(s3_stack(server, "new.zarr"), random_boxes(SHAPE, 300, 24), reading)
    assert caught.value.attempts in (3, 4)


def test_a_stalled_request_is_sent_twice(server: ObjectServer, pixels: np.ndarray) -> None:
    def fault(request: Request) -> Fault | None:
        stalls = request.path.endswith("0/3/0/1") and request.attempt == 0
        return Fault(body_bytes=30, stall_s=60) if stalls else None

    server.fault = fault
    boxes = random_boxes(SHAPE, 300, 24)
    began = time.monotonic()
    found = cut_fast(s3_stack(server, "new.zarr"), boxes, ReadOptions(hedge_after_s=0.2, batch_views=32))
    assert np.array_equal(found, cut_slowly(pixels, boxes))
    assert time.monotonic() - began < 10


def test_a_deadline_ends_endless_stalls(server: ObjectServer) -> None:
    server.fault = lambda request: (
        Fault(body_bytes=30, stall_s=60) if request.path.endswith("0/3/0/1") else None
    )
    reading = ReadOptions(deadline_s=1.0, hedge_after_s=0.2, batch_views=32)
    with pytest.raises(ChunkReadError, match="given up after 1 s"):
        cut_fast(s3_stack(server, "new.zarr"), random_boxes(SHAPE, 300, 24), reading)


def test_a_slow_line_is_no_stall(store: Path, pixels: np.ndarray) -> None:
    boxes = Boxes(np.array([4]), np.array([[10, 10]]), 24)  # one chunk of some 450 kB
    reading = ReadOptions(deadline_s=1.2, stall_timeout_s=5, strategy="chunks")
    with ObjectServer(store, bandwidth=250_000) as server:
        began = time.monotonic()
        found = cut_fast(s3_stack(server, "old.zarr"), boxes, reading)
        assert time.monotonic() - began > 1.2
    assert np.array_equal(found, cut_slowly(pixels, boxes))


def test_an_unknown_host_is_an_error() -> None:
    stack = stack_of("https://no-such-host.invalid/a.zarr", SHAPE)
    reading = ReadOptions(attempts=3, backoff_s=0.01)
    with pytest.raises(ChunkReadError, match=r"no-such-host\.invalid.*not found"):
        cut_fast(stack, random_boxes(SHAPE, 3, 24), reading)


def test_nothing_there(server: ObjectServer) -> None:
    with pytest.raises(NotFoundError, match=r"s3://bucket/none\.zarr"):
        read_shape("s3://bucket/none.zarr", {"endpoint_url": server.url})
    with pytest.raises(NotFoundError, match=r"s3://bucket/none\.mrc"):
        read_shape("s3://bucket/none.mrc", {"endpoint_url": server.url})
    assert read_shape("s3://bucket/old.zarr", {"endpoint_url": server.url}) == SHAPE


def test_a_truncated_mrc_is_found_out_before_it_is_read(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "bucket" / "a.mrc"
    path.parent.mkdir()
    write_mrc(path, pixels, 1.0, kind="stack")
    path.write_bytes(path.read_bytes()[:-1])
    with ObjectServer(tmp_path) as server, pytest.raises(ImageFormatError, match=r"a\.mrc.*truncated"):
        cut_fast(s3_stack(server, "a.mrc"), random_boxes(SHAPE, 3, 24), QUICK)


@pytest.mark.parametrize("name", ["old.zarr", "new.zarr"])
def test_a_corrupt_chunk_is_fetched_again_and_then_reported(
    tmp_path: Path, pixels: np.ndarray, name: str
) -> None:
    chunks = CHUNKS[name.split(".")[0]]
    write_zarr2(tmp_path / "bucket" / name, pixels, chunks, blosc())
    key = "0/0/0/1" if name == "old.zarr" else "0/3/0/1"
    path = tmp_path / "bucket" / name / key
    data = bytearray(path.read_bytes())
    data[16:20] = b"\xff\xff\xff\x7f"
    path.write_bytes(data)
    with ObjectServer(tmp_path) as server:
        with pytest.raises(ChunkReadError, match=rf"{re.escape(name)}/{key}.*3 attempts.*Blosc blocks"):
            cut_fast(s3_stack(server, name), random_boxes(SHAPE, 300, 24), QUICK)
        assert server.log.count(contains=key) == 3


def test_closing_stops_threads_and_requests(server: ObjectServer) -> None:
    before = set(threading.enumerate())
    stream = stream_patches(
        s3_stack(server, "new.zarr"), random_boxes(SHAPE, 2000, 24), ReadOptions(batch_views=8)
    )
    batch = next(stream)
    stream.close()
    ours = [t for t in set(threading.enumerate()) - before if t.name.startswith("portal-extract")]
    assert not ours
    assert batch.cut(None).shape == (8, 24, 24)
    with pytest.raises(RuntimeError, match="only once"):
        batch.cut(None)


@pytest.mark.parametrize(
    ("uri", "storage", "url"),
    [
        ("s3://b/a b/c+d#1.zarr", {}, "https://b.s3.us-west-2.amazonaws.com/a%20b/c%2Bd%231.zarr"),
        ("s3://b/k", {"region": "eu-west-1"}, "https://b.s3.eu-west-1.amazonaws.com/k"),
        ("s3://b/k", {"client_kwargs": {"region_name": "x"}}, "https://b.s3.x.amazonaws.com/k"),
        ("s3://b.c/k", {}, "https://s3.us-west-2.amazonaws.com/b.c/k"),
        ("s3://b/k", {"endpoint_url": "http://host:1/"}, "http://host:1/b/k"),
        ("s3://b/k", {"client_kwargs": {"endpoint_url": "http://host:1"}}, "http://host:1/b/k"),
        ("https://host/a b/c+d%20e.zarr/0/1", {}, "https://host/a%20b/c%2Bd%20e.zarr/0/1"),
    ],
)
def test_addresses(uri: str, storage: dict[str, object], url: str) -> None:
    async def address() -> str:
        http_store = HttpStore(storage, QUICK)
        try:
            return str(http_store._url(uri))
        finally:
            await http_store.close()

    assert is_plain_http(uri, storage)
    assert asyncio.run(address()) == url


@pytest.mark.parametrize("storage", [{"anon": False}, {"key": "a", "secret": "b"}, {"profile": "me"}])
def test_credentials_are_not_left_out(storage: dict[str, object]) -> None:
    assert not is_plain_http("s3://bucket/key", storage)
    assert is_plain_http("https://host/key", storage)


def test_a_proxy_of_the_environment_is_used(
    server: ObjectServer, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    boxes = random_boxes(SHAPE, 10, 24)
    stack = stack_of("s3://bucket/new.zarr", SHAPE, endpoint_url="http://only-behind-a-proxy.invalid")
    assert np.array_equal(cut_fast(stack, boxes, QUICK), cut_slowly(pixels, boxes))
