"""Streams that share a reader: one after the other, no pause between them, none waiting in vain."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
from images_support import blosc, cut_slowly, make_pixels, random_boxes, stack_of, write_zarr2

from portal_extract.demo.loopback import Fault
from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import AccessDeniedError, MemoryBudgetError, ReadError
from portal_extract.images.layout import ArrayLayout, look_at
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.images.reader import Reader, Turns, open_reader
from portal_extract.images.stream import PatchStream, open_patches
from portal_extract.model import ImageStack
from portal_extract.relion_io.mrc import write_mrc

pytestmark = pytest.mark.timeout(60)

SHAPE = (6, 200, 180)
READING = ReadOptions(batch_views=16, attempts=3, backoff_s=0.01)
BOXES = random_boxes(SHAPE, 150, 20)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_pixels(SHAPE, "f4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("store")
    for name in "abc":
        write_zarr2(root / "bucket" / f"{name}.zarr", pixels, (1, 64, 64), blosc(block_bytes=4096))
    write_zarr2(root / "bucket" / "other.zarr", pixels[:3], (2, 100, 64), blosc(block_bytes=2048))
    write_mrc(root / "bucket" / "a.mrc", pixels[:3], 1.0, kind="stack")
    return root


@pytest.fixture
def server(store: Path) -> Iterator[ObjectServer]:
    with ObjectServer(store, latency_s=0.02) as running:
        yield running


@pytest.fixture
def reader() -> Iterator[Reader]:
    with open_reader(READING) as opened:
        yield opened


def stream_of(server: ObjectServer, name: str, reader: Reader, reading: ReadOptions = READING) -> PatchStream:
    stack = stack_of(f"s3://bucket/{name}.zarr", SHAPE, endpoint_url=server.url)
    return open_patches(stack, BOXES, reading, reader=reader)


def cut_all(stream: PatchStream) -> np.ndarray:
    out = np.empty((len(BOXES), 20, 20), np.float32)
    for batch in stream:
        out[batch.views] = batch.cut(None)
    return out


def pixel_requests(server: ObjectServer) -> list[str]:
    return [entry.path.split("/")[1] for entry in server.log.entries if "/." not in entry.path]


def test_the_line_is_never_idle(server: ObjectServer, reader: Reader, pixels: np.ndarray) -> None:
    streams = [stream_of(server, name, reader) for name in "abc"]
    for stream in streams:
        stream.prepare()
    for number, stream in enumerate(streams):
        assert np.array_equal(cut_all(stream), cut_slowly(pixels, BOXES))
        # the next one has begun by now
        assert number == 2 or pixel_requests(server).count("abc"[number + 1] + ".zarr") > 1
    probes, order = {name: pixel_requests(server).index(name) for name in ("b.zarr", "c.zarr")}, []
    for number, name in enumerate(pixel_requests(server)):
        if number not in probes.values():
            order.append(name)
    # requests that are repeated or depend on others are made late, but none is early
    first = {name: order.index(name) for name in ("a.zarr", "b.zarr", "c.zarr")}
    assert first["a.zarr"] < first["b.zarr"] < first["c.zarr"]
    assert "c.zarr" not in order[: first["b.zarr"]]
    assert len(reader._stores) == 1


def test_what_was_looked_at_is_what_is_read(tmp_path: Path, reader: Reader, pixels: np.ndarray) -> None:
    path = tmp_path / "bucket" / "a.mrc"
    path.parent.mkdir()
    write_mrc(path, pixels, 1.0, kind="stack")
    with ObjectServer(tmp_path) as server:
        stack = stack_of("s3://bucket/a.mrc", SHAPE, endpoint_url=server.url)
        found = look_at([stack.uris[0]], stack.storage, reader)[stack.uris[0]]
        assert isinstance(found, ArrayLayout)
        assert np.array_equal(
            cut_all(open_patches(stack, BOXES, READING, reader=reader)), cut_slowly(pixels, BOXES)
        )
        assert server.log.count("GET", "a.mrc") == len(server.log.entries)
        assert [entry.range_header for entry in server.log.entries].count("bytes=0-1023") == 1
        write_mrc(path, pixels + 1, 1.0, kind="stack")
        with pytest.raises(ReadError, match=r"a\.mrc.*changed"):
            cut_all(open_patches(stack, BOXES, READING, reader=reader))


@pytest.mark.parametrize("together", [False, True])
def test_two_streams_stay_within_the_memory(server: ObjectServer, pixels: np.ndarray, together: bool) -> None:
    tight = ReadOptions(batch_views=16, memory_bytes=MIB if not together else 64 * MIB)
    with open_reader(tight) as reader:
        first, second = (stream_of(server, name, reader, tight) for name in "ab")
        first.prepare()
        second.prepare()
        batches = list(first) if together else []
        if together:  # what is not cut yet is held, and there is room for both
            assert reader.turns._held
        for batch in batches:
            batch.cut(None)
        if not together:
            assert np.array_equal(cut_all(first), cut_slowly(pixels, BOXES))
        assert np.array_equal(cut_all(second), cut_slowly(pixels, BOXES))
        reader.run(asyncio.sleep(0))
        assert not reader.turns._held
        assert not reader.turns._line


def test_a_stream_that_fails_lets_the_next_one_pass(
    server: ObjectServer, reader: Reader, pixels: np.ndarray
) -> None:
    for fails_at in (".zattrs", "0/0/0/0", "0/5/3/2"):
        server.fault = lambda request, end=fails_at: (
            Fault(status=403) if request.path.endswith(f"a.zarr/{end}") else None
        )
        first, second = stream_of(server, "a", reader), stream_of(server, "b", reader)
        failed = False
        try:
            first.prepare()
        except AccessDeniedError:
            failed = True
        second.prepare()
        if not failed:
            with pytest.raises(AccessDeniedError):
                cut_all(first)
        first.close()
        assert np.array_equal(cut_all(second), cut_slowly(pixels, BOXES))


def test_a_stream_that_does_not_fit_lets_the_next_one_pass(
    server: ObjectServer, reader: Reader, pixels: np.ndarray
) -> None:
    first = stream_of(server, "a", reader, ReadOptions(memory_bytes=1000))
    with pytest.raises(MemoryBudgetError):
        first.prepare()
    first.close()
    assert np.array_equal(cut_all(stream_of(server, "b", reader)), cut_slowly(pixels, BOXES))


@pytest.mark.parametrize("kinds", ["a.zarr other.zarr", "a.mrc other.zarr", "other.zarr a.mrc"])
@pytest.mark.parametrize("remote", [False, True])
def test_images_in_files_of_several_kinds(
    server: ObjectServer,
    store: Path,
    reader: Reader,
    pixels: np.ndarray,
    kinds: str,
    remote: bool,
) -> None:
    """They are read one kind after the other; the next stream comes after all of them."""
    base = "s3://bucket" if remote else str(store / "bucket")
    uris = tuple(f"{base}/{kinds.split()[tilt >= 3]}" for tilt in range(6))
    stack = ImageStack(uris, np.arange(6) % 3, SHAPE[:0:-1], {"endpoint_url": server.url})
    expected = cut_slowly(np.concatenate([pixels[:3], pixels[:3]]), BOXES)
    first, second = open_patches(stack, BOXES, READING, reader=reader), stream_of(server, "b", reader)
    first.prepare()
    second.prepare()
    assert np.array_equal(cut_all(first), expected)
    assert np.array_equal(cut_all(second), cut_slowly(pixels, BOXES))


def test_streams_that_are_given_up(server: ObjectServer, reader: Reader, pixels: np.ndarray) -> None:
    first, second, third = (stream_of(server, name, reader) for name in "abc")
    for stream in (first, second, third):
        stream.prepare()
    batches = iter(first)
    next(batches)
    batches.close()  # type: ignore[attr-defined]
    second.close()
    assert np.array_equal(cut_all(third), cut_slowly(pixels, BOXES))
    assert second._first is not None
    assert second._first._task is not None
    assert second._first._task.done()


def test_closing_the_reader_ends_what_waits_for_it(store: Path) -> None:
    with ObjectServer(store) as server:
        server.fault = lambda request: Fault(delay_s=50)
        with open_reader(READING) as reader:
            stack = stack_of("s3://bucket/a.zarr", SHAPE, endpoint_url=server.url)
            pending = asyncio.run_coroutine_threadsafe(
                reader.store(stack.uris[0], stack.storage), reader.loop
            ).result()
            waiting = asyncio.run_coroutine_threadsafe(pending.get("s3://bucket/a.zarr/.zattrs"), reader.loop)
        assert waiting.cancelled()
    assert reader.is_gone
    reader.call(lambda: None)
    with pytest.raises(ReadError, match="ended before"):
        reader.run(asyncio.sleep(0))


def test_streams_prepared_while_the_reader_is_closed_do_not_hang(server: ObjectServer) -> None:
    for delay_s in np.linspace(0, 0.15, 16):
        with open_reader(READING) as reader:
            stream = stream_of(server, "a", reader)
            helper = threading.Thread(target=lambda one=stream: _attempt(one.prepare))
            helper.start()
            time.sleep(delay_s)
        helper.join(10)
        assert not helper.is_alive()
        stream.close()


def _attempt(action: Callable[[], object]) -> None:
    with contextlib.suppress(ReadError, CancelledError):
        action()


def test_turns() -> None:
    async def run() -> list[str]:
        turns, log = Turns(), []
        first, second, third = (turns.line_up(100) for _ in range(3))

        async def enter(turn, n_bytes, name):
            await turn.enter(n_bytes)
            log.append(name)

        tasks = [asyncio.create_task(enter(t, n, name)) for t, n, name in
                 ((third, 30, "third"), (second, 60, "second"), (first, 50, "first"))]  # fmt: skip
        await asyncio.sleep(0.01)
        assert log == ["first"]
        first.pass_on()
        await asyncio.sleep(0.01)
        assert log == ["first"]  # 110 bytes are too many
        first.leave()
        await asyncio.sleep(0.01)
        assert log == ["first", "second"]
        second.pass_on()
        await asyncio.gather(*tasks)
        second.leave()
        third.leave()
        # whoever holds nothing beside others may take whatever it needs
        await asyncio.wait_for(turns.line_up(10).enter(1000), 1)
        return log

    assert asyncio.run(run()) == ["first", "second", "third"]
