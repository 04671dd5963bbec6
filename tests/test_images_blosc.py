"""Blosc frames: every block alone decodes as in the whole, and nothing malformed gets through."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images_support import blosc

from portal_extract.images.blosc import (
    HEADER_BYTES,
    FrameError,
    decode_block,
    decode_frame,
    parse_header,
    parse_table,
)
from portal_extract.images.codecs import decode_chunk, zstd_content_size, zstd_size_bound
from portal_extract.images.layout import ArrayLayout, ChunkCodec


def frame_of(n_items: int, dtype: str, **settings_: Any) -> tuple[bytes, bytes]:
    values = np.random.default_rng(n_items).integers(0, 60, n_items).astype(dtype)
    return bytes(blosc(**settings_).encode(values)), values.tobytes()


@settings(max_examples=80, deadline=None)
@given(
    n_items=st.integers(1, 20_000),
    dtype=st.sampled_from(["u1", "i2", "f4", "f8"]),
    cname=st.sampled_from(["lz4", "lz4hc", "zstd", "blosclz", "zlib"]),
    shuffle=st.sampled_from([0, 1, 2]),
    block_bytes=st.sampled_from([0, 64, 256, 4096, 30_000]),
)
def test_blocks_decode_alone(n_items: int, dtype: str, cname: str, shuffle: int, block_bytes: int) -> None:
    frame, expected = frame_of(n_items, dtype, cname=cname, shuffle=shuffle, block_bytes=block_bytes)
    header = parse_header(frame, len(expected), len(frame))
    table = parse_table(frame, header)
    blocks = [
        decode_block(header, block, frame[table.starts[block] : table.stops[block]])
        for block in range(header.n_blocks)
    ]
    assert b"".join(block.tobytes() for block in blocks) == expected
    assert decode_frame(frame, len(expected)).tobytes() == expected


def test_a_copied_frame_needs_no_table() -> None:
    values = np.random.default_rng(0).bytes(70_000)
    frame = numcodecs.Blosc("lz4", 0).encode(values)
    header = parse_header(frame, 70_000, len(frame))
    assert header.is_copied
    assert header.table_bytes == HEADER_BYTES
    assert decode_frame(frame, 70_000).tobytes() == values


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_a_damaged_frame_is_refused_or_decodes_to_the_promised_size(data: st.DataObject) -> None:
    frame, expected = frame_of(
        3000, "f4", cname=data.draw(st.sampled_from(["lz4", "zstd", "blosclz", "zlib"])), block_bytes=256
    )
    damaged = bytearray(frame)
    where = st.integers(0, 60) | st.integers(0, len(frame) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(where)] = data.draw(st.integers(0, 255))
    cut = data.draw(st.none() | st.integers(0, len(frame)))
    try:
        found = decode_frame(bytes(damaged[:cut]), len(expected))
    except FrameError:
        return
    assert found.nbytes == len(expected)


@settings(max_examples=300, deadline=None)
@given(junk=st.binary(max_size=400), expected=st.sampled_from([0, 1, 256, 4096]))
def test_junk_is_refused(junk: bytes, expected: int) -> None:
    front = struct.pack("<4B3I", 2, 1, 0x21, 4, expected, max(expected // 4, 1), HEADER_BYTES + len(junk))
    for frame in (junk, front + junk):
        with contextlib.suppress(FrameError):
            assert decode_frame(frame, expected).nbytes == expected


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (0, b"\x07", "version 7"),
        (4, struct.pack("<I", 2**31), "holds 2147483648 bytes where"),
        (8, struct.pack("<I", 0), "makes no sense"),
        (8, struct.pack("<I", 2**30), "makes no sense"),
        (8, struct.pack("<I", 1), "do not fit"),
        (8, struct.pack("<I", 13), "overlap|do not fit"),
        (12, struct.pack("<I", 2**31), "the object"),
        (16, struct.pack("<i", -1), "overlap or lie outside"),
        (16, struct.pack("<i", 17), "overlap or lie outside"),
        (16, struct.pack("<i", 2**31 - 1), "overlap or lie outside"),
    ],
)
def test_each_lie_of_a_header_is_named(offset: int, value: bytes, message: str) -> None:
    frame, expected = frame_of(3000, "f4", block_bytes=256)
    damaged = frame[:offset] + value + frame[offset + len(value) :]
    with pytest.raises(FrameError, match=message):
        decode_frame(damaged, len(expected))


def test_two_blocks_at_one_place_are_refused() -> None:
    frame, expected = frame_of(3000, "f4", block_bytes=256)
    damaged = frame[:16] + frame[20:24] + frame[20:]
    with pytest.raises(FrameError, match="overlap"):
        decode_frame(damaged, len(expected))


def layout_with(*names: str) -> ArrayLayout:
    steps = tuple((("id", name),) for name in names)
    return ArrayLayout("a", (1, 10, 10), np.dtype("<f4"), (1, 10, 10), ChunkCodec("pipeline", steps))


BOMB = bytes(50 << 20)


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc"])
@pytest.mark.parametrize("followed", [False, True])
def test_bombs_are_refused(name: str, followed: bool) -> None:
    bomb = numcodecs.get_codec({"id": name}).encode(BOMB)
    names = (name, "shuffle") if followed else (name,)
    with pytest.raises(FrameError):
        decode_chunk(layout_with(*names), bytes(bomb))


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma", "zstd", "lz4", "blosc"])
def test_damaged_or_short_chunks_are_refused(name: str) -> None:
    codec = numcodecs.get_codec({"id": name})
    good = bytes(codec.encode(np.arange(100, dtype="<f4")))
    assert decode_chunk(layout_with(name), good).tolist() == list(range(100))
    for bad in (b"", good[:5], good[: len(good) // 2], bytes(codec.encode(np.arange(99, dtype="<f4")))):
        with pytest.raises(FrameError):
            decode_chunk(layout_with(name), bad)


def test_the_size_of_a_zstd_frame() -> None:
    data = np.random.default_rng(0).integers(0, 9, 300_000).astype("u1").tobytes()
    for n in (0, 100, 300, 70_000, 300_000):
        frame = memoryview(bytes(numcodecs.Zstd().encode(data[:n])))
        assert zstd_content_size(frame) == n
        assert zstd_size_bound(frame) == n
    # a frame that does not tell its size: the window descriptor stands where the size was
    unsized = frame[:4].tobytes() + bytes([frame[4] & 0x1F, 0x58]) + frame[9:].tobytes()
    assert frame[4] >> 6 == 2
    assert zstd_content_size(memoryview(unsized)) is None
    assert 300_000 <= zstd_size_bound(memoryview(unsized)) <= 3 * 131072
    layout = ArrayLayout(
        "a", (1, 500, 600), np.dtype("u1"), (1, 500, 600), ChunkCodec("pipeline", ((("id", "zstd"),),))
    )
    assert decode_chunk(layout, unsized).tobytes() == data
