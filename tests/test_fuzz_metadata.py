"""Metadata are untrusted: an array of sane size, or one error that names the document."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from fuzz_support import (
    CODECS,
    few_valued,
    impatient,
    modest_memory,
    replaced,
    some,
    whole,
)
from hypothesis import example, given
from hypothesis import strategies as st
from images_support import blosc, write_zarr2

from portal_extract.errors import PortalExtractError
from portal_extract.images.layout import ArrayLayout, read_layouts
from portal_extract.images.zarr_metadata import MAX_CHUNK_BYTES, MAX_ITEMS

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Numcodecs codecs")]
__all__ = ["impatient"]


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
