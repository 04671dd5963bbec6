"""Tables of shards are untrusted: the right pixels, or one error that names the object."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from fuzz_support import (
    CODECS,
    MIB,
    MISSING,
    few_valued,
    flip,
    impatient,
    modest_memory,
    replaced,
    some,
    whole,
)
from google_crc32c import value as crc32c
from hypothesis import given
from hypothesis import strategies as st
from images_support import stack_of

from portal_extract.errors import ChunkReadError, ReadError
from portal_extract.images.blosc import FrameError
from portal_extract.images.layout import ArrayLayout, ChunkCodec
from portal_extract.images.options import ReadOptions
from portal_extract.images.shards import ShardIndex, read_shard_index
from portal_extract.images.source import finish
from portal_extract.images.store import Body
from portal_extract.images.stream import read_tilt_region

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Numcodecs codecs")]
__all__ = ["impatient"]


@dataclass
class Kept:
    """One object in memory, as a source of bytes."""

    content: bytes
    tells_size: bool = True

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        *,
        may_be_shorter: bool = False,
        unless: str | None = None,
    ) -> Body:
        size = len(self.content)
        first = max(size + start, 0) if start < 0 else start
        part = self.content[first : size if stop is None else min(stop, size)]
        if stop is not None and len(part) < stop - first and not may_be_shorter:
            raise ChunkReadError(uri, 1, "too short")
        return Body(part, first, size if self.tells_size else None)


def sharded_layout(per_shard: tuple[int, ...], at_end: bool, has_checksum: bool) -> ArrayLayout:
    inner = (1, 2, 2)
    shard = tuple(n * i for n, i in zip(per_shard, inner, strict=True))
    raw = ChunkCodec("raw")
    table = {"index_at_end": at_end, "index_has_checksum": has_checksum}
    return ArrayLayout("a", shard, np.dtype("<f4"), inner, raw, shard_shape=shard, **table)


def table_or_none(content: bytes, layout: ArrayLayout, tells_size: bool = True) -> ShardIndex | None:
    """What the reader makes of a table; None if it is refused."""
    try:
        return finish(read_shard_index(Kept(content, tells_size), layout, "a"))
    except (FrameError, ChunkReadError):
        return None


def assert_inside(index: ShardIndex, layout: ArrayLayout, n_bytes: int) -> None:
    assert layout.shard_shape is not None
    counts = [s // c for s, c in zip(layout.shard_shape, layout.chunk_shape, strict=True)]
    for position in itertools.product(*map(range, counts)):
        part = index.part(layout, position)
        assert part is None or 0 <= part[0] <= part[1] <= n_bytes


per_shards = st.tuples(*[st.integers(1, 3)] * 3)
numbers = st.sampled_from(
    [0, 1, 16, 100, 116, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, MISSING - 16, MISSING - 1, MISSING]
) | st.integers(0, MISSING)


@some(300)
@given(
    per_shard=per_shards,
    at_end=st.booleans(),
    has_checksum=st.booleans(),
    tells_size=st.booleans(),
    data=st.data(),
)
def test_any_bytes_as_the_table_of_a_shard(
    per_shard: Any, at_end: bool, has_checksum: bool, tells_size: bool, data: st.DataObject
) -> None:
    layout = sharded_layout(per_shard, at_end, has_checksum)
    n = 2 * math.prod(per_shard)
    table = struct.pack(f"<{n}Q", *data.draw(st.lists(numbers, min_size=n, max_size=n)))
    if has_checksum:
        table += struct.pack("<I", data.draw(st.just(crc32c(table)) | st.integers(0, 2**32 - 1)))
    table = table[: data.draw(st.none() | st.integers(0, len(table)))]
    rest = data.draw(st.binary(max_size=200))
    content = rest + table if at_end else table + rest
    index = table_or_none(content, layout, tells_size)
    if index is not None:
        assert_inside(index, layout, len(content) if tells_size else 2**63)


@pytest.mark.parametrize("at_end", [False, True])
def test_a_table_entry_that_is_missing_in_part_only(at_end: bool) -> None:
    layout = sharded_layout((1, 1, 2), at_end, False)
    for entry in ((MISSING, 16), (0, MISSING), (MISSING, 0), (MISSING, MISSING - 1)):
        table, rest = struct.pack("<4Q", 0, 16, *entry), bytes(16)
        content = rest + table if at_end else table + rest
        index = table_or_none(content, layout)
        if index is not None:
            assert_inside(index, layout, len(content))


@some(60)
@given(
    sizes=st.tuples(*[st.integers(1, 2**39) | st.sampled_from([2**20, 2**31, 2**39])] * 3),
    at_end=st.booleans(),
    has_checksum=st.booleans(),
    content=st.binary(max_size=500),
)
def test_a_shard_of_absurdly_many_chunks(
    sizes: Any, at_end: bool, has_checksum: bool, content: bytes
) -> None:
    layout = sharded_layout(sizes, at_end, has_checksum)
    with modest_memory(50 * MIB):
        index = table_or_none(content, layout)
    assert index is None or 16 * math.prod(sizes) <= len(content)


SHARDED_SHAPE = (4, 16, 24)
INNER, SHARD = (2, 8, 8), (2, 16, 24)
PER_SHARD = (1, 2, 3)
#: codec, whether the table is at the end, whether it has a checksum
SHARDINGS = list(itertools.product(CODECS, (True, False), (True, False)))


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    for codec, at_end, has_checksum in SHARDINGS:
        inner = CODECS[codec]
        bytes_codec, checksum = zarr.codecs.BytesCodec(), zarr.codecs.Crc32cCodec()
        sharding = zarr.codecs.ShardingCodec(
            chunk_shape=INNER,
            codecs=[bytes_codec, *([inner] if inner else [])],
            index_codecs=[bytes_codec, *([checksum] if has_checksum else [])],
            index_location="end" if at_end else "start",
        )
        path = folder / f"{codec}-{at_end}-{has_checksum}.zarr"
        array = zarr.create_array(
            path, shape=SHARDED_SHAPE, chunks=SHARD, dtype="f4", serializer=sharding, compressors=None
        )
        array[:] = few_valued(SHARDED_SHAPE)
    return folder


@some(150)
@given(
    which=st.sampled_from(SHARDINGS),
    shard=st.integers(0, 1),
    in_table=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=3),
    anywhere=st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 255)), max_size=3),
    entry=st.none() | st.tuples(st.integers(0, 11), numbers),
    cut=st.just(0) | st.integers(0, 9999),
    appended=st.just(b"") | st.binary(max_size=40),
    remote_like=st.booleans(),
)
def test_a_damaged_shard(
    sharded: Path,
    which: Any,
    shard: int,
    in_table: Any,
    anywhere: Any,
    entry: Any,
    cut: int,
    appended: bytes,
    remote_like: bool,
) -> None:
    codec, at_end, has_checksum = which
    array = sharded / f"{codec}-{at_end}-{has_checksum}.zarr"
    expected = np.asarray(zarr.open_array(array, mode="r")[:])
    key = array / f"c/{shard}/0/0"
    content = key.read_bytes()
    table_bytes = 16 * math.prod(PER_SHARD) + 4 * has_checksum
    table_start = len(content) - table_bytes if at_end else 0
    entries = np.frombuffer(content, "<u8", 12, table_start).reshape(*PER_SHARD, 2)

    damaged = flip(content, anywhere)
    table = flip(damaged[table_start : table_start + table_bytes], in_table)
    if entry is not None:
        table = table[: 8 * entry[0]] + struct.pack("<Q", entry[1]) + table[8 * entry[0] + 8 :]
    damaged = damaged[:table_start] + table + damaged[table_start + table_bytes :]
    changed = np.flatnonzero(np.frombuffer(damaged, "u1") != np.frombuffer(content, "u1"))
    damaged = damaged[: max(len(damaged) - cut, 0)] + appended

    # inner chunks that depend on nothing that was damaged
    in_file = (changed >= table_start) & (changed < table_start + table_bytes)
    intact = np.ones(PER_SHARD, dtype=bool)
    if (at_end and (cut or appended)) or (has_checksum and in_file.any()):
        intact[:] = False
    for position in np.ndindex(*PER_SHARD):
        first, size = (int(n) for n in entries[position])
        number = int(np.ravel_multi_index(position, PER_SHARD))
        own = (changed - table_start) // 16 == number
        hit = ((changed >= first) & (changed < first + size)).any() or (in_file & own).any()
        intact[position] &= not hit and first + size <= len(content) - cut
    mask = np.repeat(np.repeat(np.repeat(intact, INNER[0], 0), INNER[1], 1), INNER[2], 2)

    reading = ReadOptions(memory_bytes=64 * MIB, strategy="blocks" if remote_like else "chunks")
    sections = slice(SHARD[0] * shard, SHARD[0] * (shard + 1))
    other = (SHARD[0] * (1 - shard), SHARD[0] * (2 - shard))
    with replaced({key: damaged}):
        try:
            with modest_memory():
                found = whole(str(array), SHARDED_SHAPE, reading)
        except ReadError as error:
            assert str(key) in str(error)  # noqa: PT017
            assert not intact.all()
        else:
            assert np.array_equal(found[sections][mask], expected[sections][mask])
        # the other shard is as it was
        stack = stack_of(str(array), SHARDED_SHAPE)
        found = read_tilt_region(stack, other, (0, SHARDED_SHAPE[1]), (0, SHARDED_SHAPE[2]), reading)
        assert np.array_equal(found, expected[slice(*other)])
