"""Everything that comes from a store is untrusted: the right pixels, or one error that names the object."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import itertools
import json
import math
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from google_crc32c import value as crc32c
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from images_support import blosc, cut_fast, stack_of, write_zarr2

from portal_extract.demo.object_server import ObjectServer, byte_range
from portal_extract.errors import ChunkReadError, PortalExtractError, ReadError
from portal_extract.images.blosc import HEADER_BYTES, FrameError
from portal_extract.images.boxes import Boxes
from portal_extract.images.fetcher import Fetcher
from portal_extract.images.layout import ArrayLayout, ChunkCodec, read_layouts
from portal_extract.images.options import ReadOptions
from portal_extract.images.shards import ShardIndex, read_shard_index
from portal_extract.images.source import finish
from portal_extract.images.store import AttemptError, Body
from portal_extract.images.stream import read_tilt_region
from portal_extract.images.zarr_metadata import MAX_CHUNK_BYTES, MAX_ITEMS
from portal_extract.relion_io.mrc import write_mrc

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Numcodecs codecs")]

MIB = 1 << 20
MISSING = 2**64 - 1
OPTIONS: dict[str, Any] = {
    "memory_bytes": 64 * MIB,
    "batch_views": 32,
    "decode_threads": 2,
    "attempts": 3,
    "connect_timeout_s": 2,
    "stall_timeout_s": 0.6,
    "deadline_s": 1.5,
    "hedge_after_s": 0.2,
}
QUICK = ReadOptions(**OPTIONS)


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Do not pause between attempts; their number stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetcher, "_pause_s", lambda self, attempt: 0.005)
        yield


def some(max_examples: int) -> Any:
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextlib.contextmanager
def modest_memory(limit_bytes: int = 300 * MIB) -> Iterator[None]:
    """Memory does not grow by more, where the system tells."""

    def told(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = told("VmRSS")
    except OSError:
        yield
        return
    yield
    assert told("VmHWM") - before < limit_bytes


@contextlib.contextmanager
def replaced(files: dict[Path, bytes]) -> Iterator[None]:
    """Put other contents in place of files, for a while."""
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    for path, content in files.items():
        path.write_bytes(content)
    try:
        yield
    finally:
        for path, old in before.items():
            path.unlink() if old is None else path.write_bytes(old)


def few_valued(shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels that compress."""
    return np.random.default_rng(3).integers(0, 50, shape).astype(np.float32)


def whole(uri: str, shape: tuple[int, int, int], reading: ReadOptions = QUICK, **storage: Any) -> np.ndarray:
    return read_tilt_region(
        stack_of(uri, shape, **storage), (0, shape[0]), (0, shape[1]), (0, shape[2]), reading
    )


def flip(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Replace bytes; places behind the end are counted from the start again."""
    damaged = bytearray(content)
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    return bytes(damaged)


# ------------------------------------------------------------------------------- tables of shards


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
CODECS: dict[str, Any] = {
    "blosc": zarr.codecs.BloscCodec(cname="lz4", blocksize=128),
    "raw": None,
    "zstd": zarr.codecs.ZstdCodec(),
    "gzip": zarr.codecs.GzipCodec(),
}
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


# -------------------------------------------------------------------------------------- metadata

META_SHAPE = (3, 20, 16)


class Pairs(list):
    """A JSON object as pairs, so that keys may be there twice."""


class Raw(str):
    """A piece of JSON text as it is."""

    __slots__ = ()


def to_text(value: Any) -> str:
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{json.dumps(key)}:{to_text(item)}" for key, item in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(to_text, value)) + "]"
    return json.dumps(value)


WORDS = [
    "<f8", ">i2", "<f2", "<u8", "|b1", "|S4", "<U3", "O", "M8[D]", "V8", "f4", "float32", "a4", "(2,3)f4",
    "(2147483647,9)f8", "<f4,<f4", "i4,,", "{}", "/", ".", "..", "../..", "\x00", "a\x00b", "\ufffd",
    "blosc", "zstd", "gzip", "zlib", "lzma", "delta", "shuffle", "bytes", "crc32c", "transpose",
    "sharding_indexed", "numcodecs.shuffle", "numcodecs.delta", "numcodecs.", "NaN", "Infinity",
    "-Infinity", "0x7fc00000", "default", "v2", "regular", "C", "F", "start", "end", "middle", "array",
    "group", "big", "little", "ab",
]  # fmt: skip
big = st.sampled_from(
    [0, -1, 1, 2, 3, 16, 2**15, 2**31 - 1, 2**31, 2**39, 2**40, 2**63, 2**64, 10**30, 10**400, -(10**400)]
)
words = st.sampled_from(WORDS) | st.text(max_size=6)
scalars = st.none() | st.booleans() | big | st.integers() | st.floats() | words
raw_text = st.sampled_from(
    [
        *(Raw("[" * n + "]" * n) for n in (40, 900, 100_000)),
        *(Raw('{"a":' * n + "1" + "}" * n) for n in (40, 900, 100_000)),
        Raw("1e999"),
        Raw("-1e999"),
        Raw("1" * 5000),
        Raw("1e5"),
        Raw("3.0"),
        Raw("nul"),
        Raw(""),
    ]
)
junk = st.recursive(
    scalars | raw_text,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(
            st.tuples(st.sampled_from(["id", "name", "configuration", "path", "ab"]), inner), max_size=3
        ).map(Pairs)
    ),
    max_leaves=6,
)


def slots(value: Any) -> list[tuple[Any, int]]:
    """Every place in a document that holds a value."""
    found = []
    if isinstance(value, list):
        for index, item in enumerate(value):
            found.append((value, index))
            found += slots(item[1] if isinstance(value, Pairs) else item)
    return found


def mutate(draw: Callable[[Any], Any], document: Any) -> None:
    """Change a document in one place."""
    places = slots(document)
    if not places:
        return
    holder, index = draw(st.sampled_from(range(len(places))).map(places.__getitem__))
    way = draw(st.sampled_from(["replace", "replace", "replace", "delete", "twice", "more"]))
    if way == "delete":
        del holder[index]
    elif not isinstance(holder, Pairs):
        if way == "replace":
            holder[index] = draw(junk)
        else:
            holder.insert(index, holder[index] if way == "twice" else draw(junk))
    else:
        key = holder[index][0]
        if way == "replace":
            holder[index] = (key, draw(junk))
        else:
            name = key if way == "twice" else draw(st.text(max_size=4))
            holder.insert(index + draw(st.integers(0, 1)), (name, draw(junk)))


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Arrays of several makes, whose documents are to be damaged."""
    folder, pixels = tmp_path_factory.mktemp("documented"), few_valued(META_SHAPE)
    chunks = (2, 8, 8)
    filters = [numcodecs.Shuffle(4)]
    write_zarr2(folder / "v2-raw.zarr", pixels, chunks, None)
    write_zarr2(folder / "v2-blosc.zarr", pixels, chunks, blosc(block_bytes=128))
    write_zarr2(folder / "v2-zlib.zarr", pixels, chunks, numcodecs.Zlib(), filters=filters, order="F")
    numcodecs3 = {"name": "numcodecs.zlib", "configuration": {"level": 1}}
    for name, more in {
        "v3-blosc": {"compressors": CODECS["blosc"]},
        "v3-sharded": {"compressors": CODECS["zstd"], "shards": (2, 16, 16)},
        "v3-transposed": {
            "filters": zarr.codecs.TransposeCodec(order=(2, 1, 0)),
            "compressors": [numcodecs3],
        },
    }.items():
        group = zarr.create_group(folder / f"{name}.zarr", zarr_format=3)
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"datasets": [{"path": "0"}]}]}
        array = group.create_array("0", shape=META_SHAPE, chunks=chunks, dtype="f4", fill_value=0, **more)
        array[:] = pixels
    paths = {path.stem: path for path in folder.glob("*.zarr")}
    for path in paths.values():
        assert np.array_equal(whole(str(path), META_SHAPE), pixels)
        # and one that is not stored: the fill value is of use
        objects = [p for p in (path / "0").rglob("*") if p.is_file() and p.name[0] not in ".z"]
        max(objects).unlink()
    return paths


def documents_of(name: str) -> tuple[str, str]:
    return (".zattrs", "0/.zarray") if name.startswith("v2") else ("zarr.json", "0/zarr.json")


def assert_sane(layout: ArrayLayout, uri: str) -> None:
    for sizes in (layout.shape, layout.chunk_shape, layout.shard_shape or (1, 1, 1)):
        assert len(sizes) == 3
        assert all(type(size) is int and size > 0 for size in sizes)
    assert math.prod(layout.shape) <= MAX_ITEMS
    assert layout.chunk_items * layout.dtype.itemsize <= MAX_CHUNK_BYTES
    assert layout.dtype.kind in "iuf"
    assert 1 <= layout.dtype.itemsize <= 8
    assert isinstance(layout.fill_value, float)
    assert all(n > 0 for n in layout.grid)
    assert layout.tile_items() >= 1
    assert sorted(layout.codec.transposed) == [0, 1, 2]
    assert layout.separator in (".", "/")
    assert layout.object_uri((0, 0, 0)).startswith(uri)
    hash(layout)
    if layout.shard_shape is not None:
        per_shard = [s / c for s, c in zip(layout.shard_shape, layout.chunk_shape, strict=True)]
        assert 16 * math.prod(per_shard) <= MAX_CHUNK_BYTES  # its table is fetched as a whole


def assert_refused_or_read(path: Path) -> None:
    uri = str(path)
    with modest_memory():
        try:
            layout = read_layouts([uri], {})[uri]
        except PortalExtractError:
            return
        assert_sane(layout, uri)
        if math.prod(layout.shape) <= 20_000 and layout.chunk_items <= 100_000:
            with contextlib.suppress(PortalExtractError):
                assert whole(uri, layout.shape).shape == layout.shape


MAKES = ["v2-raw", "v2-blosc", "v2-zlib", "v3-blosc", "v3-sharded", "v3-transposed"]


@pytest.mark.parametrize("name", MAKES)
@some(200)
@given(data=st.data())
def test_a_damaged_document(documented: dict[str, Path], name: str, data: st.DataObject) -> None:
    group, array = documents_of(name)
    # that of the group is short: most changes go to that of the array
    which = data.draw(st.sampled_from([array, array, array, group]))
    path = documented[name] / which
    document = json.loads(path.read_text(), object_pairs_hook=Pairs)
    for _ in range(data.draw(st.integers(1, 3))):
        mutate(data.draw, document)
    text = to_text(document)
    with replaced({path: text.encode("utf-8", "surrogatepass")}):
        assert_refused_or_read(documented[name])


json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("name", ["v2-blosc", "v3-sharded"])
@some(200)
@given(
    content=json_values.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=300),
    of_group=st.booleans(),
)
@example(b"[" * 100_000, False)
@example(b'{"a":' * 100_000, True)
@example(b"\xff\xfe", False)
@example(b"\xef\xbb\xbf{}", True)
@example(b"1" * 5000, False)
def test_any_bytes_as_a_document(
    documented: dict[str, Path], name: str, content: bytes, of_group: bool
) -> None:
    path = documented[name] / documents_of(name)[0 if of_group else 1]
    with replaced({path: content}):
        assert_refused_or_read(documented[name])


def set_in(document: Any, keys: str, value: Any) -> None:
    *holders, last = keys.split("/")
    for key in holders:
        document = document[int(key) if isinstance(document, list) else key]
    document[int(last) if isinstance(document, list) else last] = value


#: kind of array, whether it is the document of the group, where in it, and what
ODD_VALUES: list[tuple[str, bool, str, Any]] = [
    ("v2-raw", False, "dtype", "(2147483647,9)f8"),
    ("v2-raw", False, "dtype", "i4,,"),
    ("v2-raw", False, "dtype", "\ud800"),
    ("v2-raw", False, "fill_value", 10**400),
    ("v2-raw", False, "fill_value", 1e300),
    ("v2-raw", False, "compressor", {"id": "blosc", "ab": []}),
    ("v2-raw", False, "filters", [{"id": "delta", "dtype": "(9,)f8"}]),
    ("v2-raw", True, "multiscales/0/datasets/0/path", "a\0b"),
    ("v2-raw", True, "multiscales/0/datasets/0/path", "\ud800"),
    ("v2-raw", True, "multiscales/0/datasets/0/path", "a" * 5000),
    ("v2-raw", True, "multiscales/0/datasets/0/path", "../../elsewhere.zarr"),
    ("v3-blosc", False, "fill_value", -(10**400)),
    ("v3-blosc", False, "chunk_key_encoding/configuration/separator", 5),
    ("v3-blosc", False, "chunk_key_encoding/configuration/separator", ["/"]),
    ("v3-blosc", False, "chunk_key_encoding/configuration/separator", "/../../"),
    ("v3-blosc", False, "codecs/1/configuration", "ab"),
    ("v3-blosc", False, "codecs/1/configuration", ["abc"]),
    ("v3-blosc", False, "codecs/1", {"name": "numcodecs.zlib", "configuration": {"level": {}}}),
    ("v3-blosc", True, "attributes", [1]),
    ("v3-blosc", True, "attributes", "ome"),
    ("v3-blosc", True, "attributes/ome", 5),
    ("v3-sharded", False, "codecs/0/configuration", "ab"),
    ("v3-sharded", False, "chunk_grid/configuration/chunk_shape", [2**39, 2**39, 2**39]),
    ("v3-sharded", False, "codecs/0/configuration/index_location", "middle"),
]


@pytest.mark.parametrize(
    ("name", "of_group", "keys", "value"),
    ODD_VALUES,
    ids=[f"{name} {keys}" for name, _, keys, _ in ODD_VALUES],
)
def test_a_document_with_one_odd_value(
    documented: dict[str, Path], name: str, of_group: bool, keys: str, value: Any
) -> None:
    path = documented[name] / documents_of(name)[0 if of_group else 1]
    document = json.loads(path.read_text())
    set_in(document, keys, value)
    with replaced({path: json.dumps(document).encode()}):
        assert_refused_or_read(documented[name])


# ---------------------------------------------------------------------------------------- chunks

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


# ---------------------------------------------------------------------------- what a server may say


class Close(Exception):
    """Ends a connection."""


@dataclass(frozen=True)
class Honest:
    """What a good server would answer; starting point of a lie.

    The bytes ``start`` to ``stop`` of ``content``; with or without a ``Range`` in the request.
    """

    path: str
    content: bytes
    start: int
    stop: int
    is_part: bool

    @property
    def body(self) -> bytes:
        return self.content[self.start : self.stop]

    @property
    def early(self) -> int:
        """An end too early."""
        return max(self.stop - 5, self.start + 1)

    def answer(self, status: int | None = None, body: bytes | None = None, **headers: Any) -> bytes:
        """Bytes of an answer: the honest one, but for what is given; None leaves a header out."""
        body = self.body if body is None else body
        told = f"bytes {self.start}-{self.stop - 1}/{len(self.content)}" if self.is_part else None
        named = {"content_length": len(body), "content_range": told, "ETag": '"1"', **headers}
        lines = [f"HTTP/1.1 {status or (206 if self.is_part else 200)} Whatever"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in named.items() if value is not None]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body

    def part(self, start: int, stop: int, total: Any = None) -> bytes:
        """Another part, truthfully, but for the size of the object."""
        start = min(start, len(self.content) - 1)
        body = self.content[start:stop]
        told = f"bytes {start}-{start + len(body) - 1}/{len(self.content) if total is None else total}"
        return self.answer(status=206, body=body, content_range=told)

    def redirect(self, place: str) -> bytes:
        return self.answer(status=302, body=b"", content_range=None, Location=place)


def then_close(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise Close


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(piece)


def stalled(head: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(50):
        time.sleep(0.1)
        yield b""
    raise Close


def of_a_petabyte(h: Honest) -> Iterator[bytes]:
    stop = h.start + 10**15
    told = f"bytes {h.start}-{stop - 1}/{stop}" if h.is_part else None
    return then_close(h.answer(content_length=10**15, content_range=told))


CHUNKED = {"content_length": None, "Transfer-Encoding": "chunked"}
PARTS = b"--x\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--x--\r\n"
PAGE = b"<html><body>Please accept our cookies</body></html>"
ZEROS = bytes(1 << 16)
#: a lie that would go on for ever ends here
MOST_SENT = 64 * MIB

LIES: dict[str, Callable[[Honest], bytes | Iterator[bytes]]] = {
    "the truth": lambda h: h.answer(),
    # which part it is
    "whole objects instead of parts": lambda h: h.answer(200, h.content, content_range=None),
    "parts as if they were whole objects": lambda h: h.answer(200, content_range=None),
    "a part that does not say which": lambda h: h.answer(206, content_range=None),
    "a part further behind": lambda h: h.part(h.start + 8, h.stop + 8),
    "a part further ahead": lambda h: h.part(max(h.start - 8, 0), max(h.stop - 8, 1)),
    "a part that says to be another": lambda h: h.answer(
        206, content_range=f"bytes {h.start + 8}-{h.stop + 7}/{len(h.content) + 8}"
    ),
    "a longer part than asked for": lambda h: h.part(h.start, h.stop + 100),
    "a shorter part than asked for": lambda h: h.part(h.start, h.early),
    "a shorter part as if it were the end": lambda h: h.part(h.start, h.early, h.early),
    "a larger object": lambda h: h.part(h.start, h.stop, len(h.content) + 1000),
    "a smaller object": lambda h: h.part(h.start, h.stop, max(h.stop - 1, 1)),
    "an object of unknown size": lambda h: h.part(h.start, h.stop, "*"),
    "a size of absurdly many digits": lambda h: h.part(h.start, h.stop, "9" * 5000),
    "a petabyte": of_a_petabyte,
    "a negative part": lambda h: h.answer(206, content_range="bytes -5-10/20"),
    "a part that is nonsense": lambda h: h.answer(206, content_range="chapters \xff-z/*"),
    "a part that ends before it starts": lambda h: h.answer(
        206, b"", content_range=f"bytes {h.start}-{h.start - 1}/9999"
    ),
    "several parts": lambda h: h.answer(
        206, PARTS, content_range=None, content_type="multipart/byteranges; boundary=x"
    ),
    # how long it is
    "a body that goes on behind its end": lambda h: h.answer() + b"and so on\r\n" * 20,
    "a body that ends early": lambda h: then_close(h.answer(content_length=len(h.body) + 10)),
    "a body that stalls": lambda h: stalled(h.answer(content_length=len(h.body) + 10)),
    "a head that stalls": lambda h: stalled(b"HTTP/1.1 206 Partial"),
    "two lengths": lambda h: h.answer(**{"Content-length": len(h.body) + 1}),
    "a negative length": lambda h: h.answer(content_length=-5),
    "a length that is no number": lambda h: h.answer(content_length="many"),
    "a length of absurdly many digits": lambda h: h.answer(content_length="9" * 5000),
    "an endless body of chunks": lambda h: endless(
        h.answer(body=b"", **CHUNKED), b"10000\r\n" + ZEROS + b"\r\n"
    ),
    "an endless whole object": lambda h: endless(
        h.answer(200, b"", content_range=None, **CHUNKED), b"10000\r\n" + ZEROS + b"\r\n"
    ),
    "an endless body without a length": lambda h: endless(h.answer(body=b"", content_length=None), ZEROS),
    "an endless chunk": lambda h: endless(h.answer(body=b"", **CHUNKED) + b"fffffffffffffff\r\n", ZEROS),
    "endless headers": lambda h: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1000),
    "an endless header": lambda h: endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"a" * (1 << 16)),
    "endless promises": lambda h: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "chunks of nonsense sizes": lambda h: then_close(h.answer(body=b"", **CHUNKED), b"-1\r\nab\r\nzz\r\n"),
    # how it is coded
    "a compressed body": lambda h: h.answer(body=gzip.compress(h.body), content_encoding="gzip"),
    "a body that is said to be compressed": lambda h: h.answer(content_encoding="gzip"),
    "a body of an unknown coding": lambda h: h.answer(transfer_encoding="rot13"),
    # what it is
    "nothing new": lambda h: h.answer(304, b"", content_range=None),
    "no content": lambda h: h.answer(204, b"", content_length=None, content_range=None),
    "an impossible range": lambda h: h.answer(416, b"", content_range="bytes */5"),
    "a status of its own": lambda h: h.answer(999),
    "a redirect in a circle": lambda h: h.redirect(h.path),
    "a redirect to a closed port": lambda h: h.redirect("http://127.0.0.1:1/a"),
    "a redirect to a file": lambda h: h.redirect("file:///etc/hostname"),
    "a redirect to nonsense": lambda h: h.redirect("http://[::1\xff:99999999/"),
    "a redirect to nowhere": lambda h: h.answer(302, b"", content_range=None),
    "an error page": lambda h: h.answer(200, PAGE, content_range=None),
    "garbage in headers": lambda h: h.answer(**{"X-\x01\xff": "\x02", "Set-Cookie": "\xff=;;\x03"}),
    "headers in another alphabet": lambda h: h.answer(**{"X-Name": "\xe9\xff", "Set-Cookie": "\xff;;"}),
    "garbage as the version": lambda h: h.answer(ETag='"\xff\xfe"'),
    "a very long version": lambda h: h.answer(ETag='"' + "e" * 8000 + '"'),
    "another version each time": lambda h: h.answer(ETag=f'"{time.monotonic_ns()}"'),
    "lines that are no headers": lambda h: b"HTTP/1.1 206 Partial\r\nno header\r\n: none\r\n\r\n" + h.body,
    "a body without a head": lambda h: then_close(h.body),
    "another protocol": lambda h: then_close(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "nothing at all": lambda h: then_close(),
}


class LyingServer(socketserver.ThreadingTCPServer):
    """Serves files below a folder, in ranges; tells lies to requests for which ``applies`` holds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told = LIES["the truth"]
        self.applies: Callable[[Honest], bool] = lambda honest: False
        self.n_lies = self.most_sent = 0
        super().__init__(("127.0.0.1", 0), LyingHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


class LyingHandler(socketserver.StreamRequestHandler):
    server: LyingServer

    def handle(self) -> None:
        with contextlib.suppress(Close, OSError):
            while line := self.rfile.readline():
                headers = {}
                while header := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                self.answer(line.split()[1].decode(), headers.get("range"))

    def answer(self, path: str, range_header: str | None) -> None:
        file = self.server.root / path.removeprefix("/bucket/")
        if not file.is_file():
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        content = file.read_bytes()
        part = byte_range(range_header, len(content))
        start, stop = part or (0, len(content))
        honest = Honest(path, content, start, stop, part is not None)
        told = LIES["the truth"]
        if self.server.applies(honest):
            self.server.n_lies += 1
            told = self.server.told
        n_sent = 0
        said = told(honest)
        for piece in [said] if isinstance(said, bytes) else said:
            self.wfile.write(piece)
            n_sent += len(piece)
            self.server.most_sent = max(self.server.most_sent, n_sent)
            if n_sent > MOST_SENT:
                raise Close


LIED_SHAPE = (2, 40, 60)
LIED_KINDS = ["blosc.zarr", "raw.zarr", "sharded.zarr", "stack.mrc"]
#: with these nothing is wrong that matters
HARMLESS = {"the truth", "whole objects instead of parts", "headers in another alphabet"}
#: these take their time
SLOW = [name for name in LIES if "endless" in name or "stalls" in name]
CASES = [
    (name, kind)
    for name in LIES
    for kind in LIED_KINDS
    if name not in SLOW or kind in ("blosc.zarr", "stack.mrc")
]


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    root, pixels = tmp_path_factory.mktemp("lied"), few_valued(LIED_SHAPE)
    write_zarr2(root / "blosc.zarr", pixels, (1, 40, 32), blosc(block_bytes=512))
    write_zarr2(root / "raw.zarr", pixels, (1, 16, 24), None)
    path, shards = root / "sharded.zarr", (1, 40, 60)
    array = zarr.create_array(path, shape=LIED_SHAPE, chunks=(1, 20, 20), shards=shards, dtype="f4")
    array[:] = pixels
    write_mrc(root / "stack.mrc", pixels, 1.0, kind="stack")
    with LyingServer(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def is_data(honest: Honest) -> bool:
    return not honest.path.endswith((".zattrs", ".zarray", "zarr.json")) and honest.stop != 1024


class FirstTime:
    """Whether a part is asked for the first time."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()
        self._lock = threading.Lock()

    def __call__(self, honest: Honest) -> bool:
        key = (honest.path, honest.start, honest.stop)
        with self._lock:
            is_new = key not in self._seen
            self._seen.add(key)
        return is_new


WHEN: dict[str, Callable[[], Callable[[Honest], bool]]] = {
    "of pixels": lambda: is_data,
    "always": lambda: lambda honest: True,
    "at first": FirstTime,
}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_server_that_tells(liar: LyingServer, name: str, kind: str) -> None:
    expected = few_valued(LIED_SHAPE)
    for when, make in WHEN.items():
        if name in SLOW and when != "of pixels":
            continue
        liar.told, liar.applies = LIES[name], make()
        liar.n_lies = liar.most_sent = 0
        found, began_s = None, time.monotonic()
        with modest_memory():
            try:
                found = whole(f"s3://bucket/{kind}", LIED_SHAPE, endpoint_url=liar.url)
            except ReadError as error:
                assert kind in str(error)  # noqa: PT017
                assert len(str(error)) < 1000  # noqa: PT017
                assert str(error).isprintable()  # noqa: PT017
        assert time.monotonic() - began_s < 10, when
        assert liar.n_lies > 0, when
        assert liar.most_sent < 32 * MIB, when
        if found is not None:
            assert np.array_equal(found, expected), when
        elif name in HARMLESS:
            pytest.fail(f"{name} {when}: not read")


class FailingStore:
    """Fails when it is told to."""

    tells_progress = True

    def __init__(self) -> None:
        self.is_asked, self.shall_fail = asyncio.Event(), asyncio.Event()

    async def get(self, *given: Any, **more: Any) -> Body:
        self.is_asked.set()
        await self.shall_fail.wait()
        raise AttemptError("failed")


def test_a_failure_that_nobody_waits_for_any_more_is_not_printed() -> None:
    told: list[str] = []

    async def give_up(n_steps: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        store = FailingStore()
        task = asyncio.create_task(Fetcher(store, QUICK).get("a"))
        await store.is_asked.wait()
        store.shall_fail.set()
        for _ in range(n_steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    for n_steps in range(8):
        asyncio.run(asyncio.wait_for(give_up(n_steps), 10))
    assert told == []


@pytest.mark.parametrize("kind", ["raw.zarr", "stack.mrc"])
def test_a_server_that_never_tells_the_size_of_objects(liar: LyingServer, kind: str) -> None:
    """It may: the size of the object is an asterisk then."""
    liar.told, liar.applies = LIES["an object of unknown size"], lambda honest: honest.is_part
    found = whole(f"s3://bucket/{kind}", LIED_SHAPE, endpoint_url=liar.url)
    assert np.array_equal(found, few_valued(LIED_SHAPE))
