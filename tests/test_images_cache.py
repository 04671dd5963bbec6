"""The block cache: fetches only what is new, never hands out a wrong byte, stays within its bound."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from images_support import blosc, cut_fast, cut_slowly, make_pixels, random_boxes, stack_of, write_zarr2

from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import OutputError
from portal_extract.images.boxes import Boxes
from portal_extract.images.cache import BlockCache
from portal_extract.images.options import ReadOptions
from portal_extract.relion_io.mrc import write_mrc

SHAPE = (5, 300, 260)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_pixels(SHAPE, "f4")


@pytest.fixture
def store(tmp_path: Path, pixels: np.ndarray) -> Path:
    write_zarr2(tmp_path / "s3" / "bucket" / "a.zarr", pixels, (256, 128, 128), blosc(block_bytes=1024))
    write_mrc(tmp_path / "s3" / "bucket" / "a.mrc", pixels, 1.0, kind="stack")
    return tmp_path


def body_bytes(server: ObjectServer) -> int:
    """Bytes of pixels sent since the last call, without metadata and tables."""
    found = sum(
        e.body_bytes
        for e in server.log.entries
        if "/." not in e.path and not (e.range_header or "").startswith("bytes=0-")
    )
    server.log.clear()
    return found


@pytest.mark.parametrize("name", ["a.zarr", "a.mrc"])
def test_what_was_fetched_is_not_fetched_again(store: Path, pixels: np.ndarray, name: str) -> None:
    boxes = Boxes(np.array([0, 2, 4]), np.array([[10, 10], [60, 50], [-5, 3]]), 24)
    larger = Boxes(boxes.tilt, boxes.origin_px - 20, 180)
    reading = ReadOptions(cache_dir=str(store / "cache"), gap_bytes=0)
    with ObjectServer(store / "s3") as server:
        stack = stack_of(f"s3://bucket/{name}", SHAPE, endpoint_url=server.url)
        cut_fast(stack, larger, replace(reading, cache_dir=None))
        all_of_larger = body_bytes(server)
        for round_ in range(2):
            assert np.array_equal(cut_fast(stack, boxes, reading), cut_slowly(pixels, boxes))
            first = body_bytes(server)
            assert (first > 0) == (round_ == 0)
        assert np.array_equal(cut_fast(stack, larger, reading), cut_slowly(pixels, larger))
        assert 0 < body_bytes(server) < all_of_larger
        assert np.array_equal(cut_fast(stack, larger, reading), cut_slowly(pixels, larger))
        assert body_bytes(server) == 0


@pytest.mark.parametrize("name", ["a.zarr", "a.mrc"])
def test_an_object_that_has_changed_is_fetched_again(store: Path, pixels: np.ndarray, name: str) -> None:
    boxes = random_boxes(SHAPE, 30, 24)
    reading = ReadOptions(cache_dir=str(store / "cache"))
    changed = pixels + 1
    with ObjectServer(store / "s3") as server:
        stack = stack_of(f"s3://bucket/{name}", SHAPE, endpoint_url=server.url)
        cut_fast(stack, boxes, reading)
        if name == "a.mrc":
            write_mrc(store / "s3" / "bucket" / name, changed, 1.0, kind="stack")
        else:
            write_zarr2(store / "s3" / "bucket" / name, changed, (256, 128, 128), blosc(block_bytes=1024))
        assert np.array_equal(cut_fast(stack, boxes, reading), cut_slowly(changed, boxes))


CODINGS: dict[str, Any] = {
    "blosc": {"compressors": zarr.codecs.BloscCodec(cname="zstd")},
    "gzip": {"compressors": zarr.codecs.GzipCodec()},
    "none": {"compressors": None},
    "sharded": {"compressors": zarr.codecs.ZstdCodec(), "shards": (4, 256, 256)},
    "sharded blosc": {"compressors": zarr.codecs.BloscCodec(), "shards": (4, 256, 256)},
}


@pytest.mark.parametrize("coding", CODINGS)
def test_every_coding_is_cached_and_checked(tmp_path: Path, pixels: np.ndarray, coding: str) -> None:
    def write(content: np.ndarray) -> None:
        shape = {"shape": SHAPE, "chunks": (2, 64, 64), "dtype": "f4", "overwrite": True}
        zarr.create_array(tmp_path / "s3" / "bucket" / "b.zarr", **shape, **CODINGS[coding])[:] = content

    write(pixels)
    boxes = random_boxes(SHAPE, 40, 24)
    reading = ReadOptions(cache_dir=str(tmp_path / "cache"))
    with ObjectServer(tmp_path / "s3") as server:
        stack = stack_of("s3://bucket/b.zarr", SHAPE, endpoint_url=server.url)
        for round_ in range(2):
            assert np.array_equal(cut_fast(stack, boxes, reading), cut_slowly(pixels, boxes))
            sent = sum(e.body_bytes for e in server.log.entries if "/c/" in e.path)
            assert (sent > 100_000) == (round_ == 0)
            assert (sent > 0) == (round_ == 0)
            server.log.clear()
        write(pixels + 1)
        assert np.array_equal(cut_fast(stack, boxes, reading), cut_slowly(pixels + 1, boxes))


def test_damaged_blocks_are_fetched_again(store: Path, pixels: np.ndarray) -> None:
    boxes = random_boxes(SHAPE, 30, 24)
    reading = ReadOptions(cache_dir=str(store / "cache"))
    with ObjectServer(store / "s3") as server:
        stack = stack_of("s3://bucket/a.zarr", SHAPE, endpoint_url=server.url)
        cut_fast(stack, boxes, reading)
        kept = [path for path in (store / "cache").rglob("*") if path.is_file() and path.name != ".lock"]
        for number, path in enumerate(kept):
            data = bytearray(path.read_bytes())
            if number % 3 == 0:
                data[-1] ^= 1
            path.write_bytes(data[: len(data) // 2] if number % 3 == 1 else data)
        assert np.array_equal(cut_fast(stack, boxes, reading), cut_slowly(pixels, boxes))


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 100_000)
    block = bytes(1000)
    for number in range(50):
        cache.put("uri", "etag", 1000 * number, block)
        os.utime(cache._path("uri", "etag", 1000 * number, 1000 * number + 1000), (number, number))
    assert cache.get("uri", "etag", 0, 1000) == block  # used just now
    for number in range(50, 120):
        cache.put("uri", "etag", 1000 * number, block)
    cache.trim()
    assert kept_bytes(tmp_path) <= 100_000
    assert cache.get("uri", "etag", 0, 1000) == block
    assert cache.get("uri", "etag", 1000, 2000) is None
    assert cache.get("uri", "etag", 119_000, 120_000) == block
    assert cache.get("uri", "other", 119_000, 120_000) is None


def _fill(folder: Path, seed: int) -> None:
    cache = BlockCache(folder, 200_000)
    rng = np.random.default_rng(seed)
    for _ in range(600):
        number = int(rng.integers(0, 300))
        content = bytes([number % 251]) * 1000
        found = cache.get("uri", "etag", 1000 * number, 1000 * number + 1000)
        assert found in (None, content)
        cache.put("uri", "etag", 1000 * number, content)


def test_processes_and_threads_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_fill, args=(tmp_path, seed)) for seed in range(2)]
    threads = [threading.Thread(target=_fill, args=(tmp_path, seed)) for seed in range(2, 4)]
    for worker in (*children, *threads):
        worker.start()
    for worker in (*children, *threads):
        worker.join(120)
    assert [child.exitcode for child in children] == [0, 0]
    BlockCache(tmp_path, 200_000).trim()
    assert kept_bytes(tmp_path) <= 200_000
    assert not list(tmp_path.rglob(".new-*"))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cache folder"):
        BlockCache(tmp_path / "file" / "cache", 1000)
