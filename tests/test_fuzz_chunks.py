"""Chunks are untrusted: the right pixels, or one error that names the object."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from fuzz_support import (
    OPTIONS,
    few_valued,
    flip,
    impatient,
    modest_memory,
    replaced,
    some,
)
from hypothesis import given
from hypothesis import strategies as st
from images_support import blosc, cut_fast, stack_of, write_zarr2

from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import ReadError
from portal_extract.images.blosc import HEADER_BYTES
from portal_extract.images.boxes import Boxes
from portal_extract.images.options import ReadOptions

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Numcodecs codecs")]
__all__ = ["impatient"]


STORED_SHAPE, STORED_CHUNKS = (3, 40, 40), (2, 16, 24)
STORED: dict[str, Any] = {
    "lz4": blosc(block_bytes=512),
    "zstd": blosc("zstd", block_bytes=1024),
    "raw": None,
    "zlib": numcodecs.Zlib(),
}
BLOSC = ("lz4", "zstd")
CHUNK_KEYS = [f"{z}/{y}/{x}" for z in range(2) for y in range(3) for x in range(2)]
CHUNK_BYTES = 4 * math.prod(STORED_CHUNKS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, ObjectServer]]:
    root, pixels = tmp_path_factory.mktemp("stored"), few_valued(STORED_SHAPE)
    for name, compressor in STORED.items():
        write_zarr2(root / "bucket" / f"{name}.zarr", pixels, STORED_CHUNKS, compressor)
    with ObjectServer(root) as server:
        yield root / "bucket", server


def region(key: str) -> tuple[slice, ...]:
    """The pixels of a chunk."""
    return tuple(
        slice(int(i) * n, (int(i) + 1) * n) for i, n in zip(key.split("/"), STORED_CHUNKS, strict=True)
    )


def stream_or_error(
    stored: tuple[Path, ObjectServer], name: str, files: dict[Path, bytes], strategy: str
) -> tuple[np.ndarray | None, str]:
    """All pixels by way of boxes, or what the error says."""
    _, server = stored
    reading = ReadOptions(**{**OPTIONS, "strategy": strategy})
    stack = stack_of(f"s3://bucket/{name}.zarr", STORED_SHAPE, endpoint_url=server.url)
    side = 8
    corners = np.mgrid[: STORED_SHAPE[0], : STORED_SHAPE[1] : side, : STORED_SHAPE[2] : side].reshape(3, -1)
    boxes = Boxes(corners[0].astype(np.int64), corners[:0:-1].T.astype(np.int64), side)
    with replaced(files), modest_memory():
        try:
            found = cut_fast(stack, boxes, reading)
        except ReadError as error:
            return None, str(error)
    image = np.empty(STORED_SHAPE, np.float32)
    for view, (z, y, x) in enumerate(corners.T):
        image[z, y : y + side, x : x + side] = found[view]
    return image, ""


names, keys = st.sampled_from(list(STORED)), st.sampled_from(CHUNK_KEYS)
strategies = st.sampled_from(["auto", "chunks", "blocks"])
changes = st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 255)), min_size=1, max_size=4)


#: but for what says which codec it is and how items are shuffled: that comes below
of_head = st.sampled_from([0, *range(4, HEADER_BYTES)]) | st.integers(HEADER_BYTES, 120)


def head_bytes(name: str, content: bytes) -> int:
    """Size of header and table of a Blosc frame."""
    n_bytes, block_bytes = struct.unpack_from("<2I", content, 4)
    return HEADER_BYTES + 4 * -(-n_bytes // block_bytes) if name in BLOSC else 0


@some(100)
@given(
    name=st.sampled_from(BLOSC),
    key=keys,
    # what says which codec and which kind of shuffling it is comes below
    places=st.lists(
        st.tuples(
            st.sampled_from([0, *range(4, HEADER_BYTES)]) | st.integers(HEADER_BYTES, 120),
            st.integers(0, 255),
        ),
        min_size=1,
        max_size=3,
    ),
    strategy=strategies,
)
def test_a_chunk_with_a_damaged_header_or_table(
    stored: tuple[Path, ObjectServer], name: str, key: str, places: Any, strategy: str
) -> None:
    path = stored[0] / f"{name}.zarr/0/{key}"
    content = path.read_bytes()
    size = head_bytes(name, content)
    damaged = (
        flip(content[:size], [(place, value) for place, value in places if place < size]) + content[size:]
    )
    found, said = stream_or_error(stored, name, {path: damaged}, strategy)
    if found is None:
        assert f"{name}.zarr/0/{key}" in said
    else:
        assert np.array_equal(found, few_valued(STORED_SHAPE))


@pytest.mark.parametrize("name", BLOSC)
@pytest.mark.parametrize("place", [1, 2, 3])
@pytest.mark.parametrize("strategy", ["chunks", "blocks"])
def test_a_chunk_whose_header_names_another_codec(
    stored: tuple[Path, ObjectServer], name: str, place: int, strategy: str
) -> None:
    """Version of the codec, flags and size of an item: the frame must be as those of its array are."""
    key = CHUNK_KEYS[5]
    path = stored[0] / f"{name}.zarr/0/{key}"
    content = path.read_bytes()
    wrong = []
    for bit in range(8):
        damaged = flip(content, [(place, content[place] ^ 1 << bit)])
        found, said = stream_or_error(stored, name, {path: damaged}, strategy)
        if found is None:
            assert f"{name}.zarr/0/{key}" in said
        elif not np.array_equal(found, few_valued(STORED_SHAPE)):
            wrong.append(bit)
    assert wrong == []


@some(60)
@given(
    name=names,
    key=keys,
    cut=st.integers(1, CHUNK_BYTES) | st.none(),
    appended=st.binary(min_size=1, max_size=5) | st.just(bytes(5000)),
    strategy=strategies,
)
def test_a_chunk_of_another_size(
    stored: tuple[Path, ObjectServer], name: str, key: str, cut: int | None, appended: bytes, strategy: str
) -> None:
    path = stored[0] / f"{name}.zarr/0/{key}"
    content = path.read_bytes()
    damaged = content + appended if cut is None else content[: max(len(content) - cut, 0)]
    found, said = stream_or_error(stored, name, {path: damaged}, strategy)
    if found is None:
        assert f"{name}.zarr/0/{key}" in said
    else:
        # what follows the end of a zlib stream is nothing to it
        assert (name, cut) == ("zlib", None)
        assert np.array_equal(found, few_valued(STORED_SHAPE))


@some(60)
@given(
    name=names,
    key=keys,
    content=st.binary(max_size=300)
    | st.sampled_from([bytes(n) for n in (0, 1, 15, 16, 17, 300, CHUNK_BYTES - 1, CHUNK_BYTES + 16)])
    | st.sampled_from([b"<html><body>Bad Gateway</body></html>", b"\x02\x01\x21\x04" + bytes(60)]),
    strategy=strategies,
)
def test_a_chunk_that_is_something_else(
    stored: tuple[Path, ObjectServer], name: str, key: str, content: bytes, strategy: str
) -> None:
    path = stored[0] / f"{name}.zarr/0/{key}"
    found, said = stream_or_error(stored, name, {path: content}, strategy)
    assert found is None
    assert f"{name}.zarr/0/{key}" in said


@some(60)
@given(name=names, key=keys, changes=changes, strategy=strategies)
def test_a_chunk_that_is_damaged_anywhere(
    stored: tuple[Path, ObjectServer], name: str, key: str, changes: Any, strategy: str
) -> None:
    path = stored[0] / f"{name}.zarr/0/{key}"
    found, said = stream_or_error(stored, name, {path: flip(path.read_bytes(), changes)}, strategy)
    if found is None:
        assert f"{name}.zarr/0/{key}" in said
    else:
        # blocks have no checksum; the other chunks are right in any case
        expected = few_valued(STORED_SHAPE)
        expected[region(key)] = found[region(key)]
        assert np.array_equal(found, expected, equal_nan=True)


@some(40)
@given(name=names, first=keys, second=keys, strategy=strategies)
def test_chunks_that_are_swapped_are_read_as_zarr_reads_them(
    stored: tuple[Path, ObjectServer], name: str, first: str, second: str, strategy: str
) -> None:
    array = stored[0] / f"{name}.zarr/0"
    one, other = (array / first).read_bytes(), (array / second).read_bytes()
    swapped = {array / first: other, array / second: one}
    with replaced(swapped):
        expected = np.asarray(zarr.open_array(array, mode="r")[:])
    found, said = stream_or_error(stored, name, swapped, strategy)
    assert said == ""
    assert np.array_equal(found, expected)
