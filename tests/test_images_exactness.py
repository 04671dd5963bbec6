"""Decoded pixels equal what zarr itself returns, whatever the array is made of."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
import zarr.codecs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images_support import make_pixels, stack_of, write_zarr2

from portal_extract.errors import ImageFormatError, UnsupportedError
from portal_extract.images.layout import read_layouts
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import read_tilt_region
from portal_extract.model import ImageStack

DTYPES = ["int8", "int16", "uint16", "float16", "float32", "uint8", "int32", "float64"]
shapes = st.tuples(st.integers(1, 7), st.integers(1, 40), st.integers(1, 40))
chunk_shapes = st.tuples(st.integers(1, 5), st.integers(1, 24), st.integers(1, 24))
block_sizes = st.sampled_from([0, 64, 256, 1000])
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])

blosc2 = st.builds(
    numcodecs.Blosc,
    cname=st.sampled_from(["lz4", "zstd", "blosclz", "zlib"]),
    clevel=st.sampled_from([0, 1, 5]),
    shuffle=st.sampled_from([0, 1, 2]),
    blocksize=block_sizes,
)
compressors2 = st.one_of(
    blosc2,
    st.sampled_from(
        [
            None,
            numcodecs.Zlib(),
            numcodecs.GZip(),
            numcodecs.Zstd(),
            numcodecs.LZ4(),
            numcodecs.BZ2(),
            numcodecs.LZMA(),
        ]
    ),
)
codecs3 = st.one_of(
    st.builds(
        zarr.codecs.BloscCodec,
        cname=st.sampled_from(["lz4", "zstd", "blosclz"]),
        shuffle=st.sampled_from(["shuffle", "bitshuffle", "noshuffle"]),
        blocksize=block_sizes,
    ),
    st.sampled_from(
        [
            None,
            zarr.codecs.GzipCodec(),
            zarr.codecs.ZstdCodec(),
            [zarr.codecs.ZstdCodec(), zarr.codecs.Crc32cCodec()],
        ]
    ),
)


def assert_equal_to_zarr(path: Path, array: zarr.Array, reading: ReadOptions) -> None:
    expected = np.asarray(array[:]).astype(np.float32)
    _, height, width = expected.shape
    stack = stack_of(str(path), expected.shape)
    found = read_tilt_region(stack, (0, len(expected)), (0, height), (0, width), reading)
    assert np.array_equal(found, expected, equal_nan=True)


@few
@given(
    shape=shapes,
    chunks=chunk_shapes,
    dtype=st.sampled_from(DTYPES),
    big_endian=st.booleans(),
    compressor=compressors2,
    separator=st.sampled_from(["/", "."]),
    order=st.sampled_from(["C", "F"]),
    fill=st.sampled_from([0, 5]),
    strategy=st.sampled_from(["auto", "chunks", "blocks"]),
    data=st.data(),
)
def test_zarr_format_2(
    shape: Any,
    chunks: Any,
    dtype: str,
    big_endian: bool,
    compressor: Any,
    separator: str,
    order: Any,
    fill: int,
    strategy: Any,
    data: Any,
) -> None:
    stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    pixels = make_pixels(shape, dtype).astype(stored)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr"
        write_zarr2(path, pixels, chunks, compressor, separator, order=order, fill_value=fill)
        keys = [p for p in (path / "0").rglob("*") if p.is_file() and not p.name.startswith(".")]
        for key in data.draw(st.lists(st.sampled_from(keys), max_size=2)):
            key.unlink(missing_ok=True)
        array = zarr.open_array(path / "0", mode="r")
        assert_equal_to_zarr(path, array, ReadOptions(strategy=strategy))


@few
@given(
    shape=shapes,
    inner=chunk_shapes,
    per_shard=st.none() | st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)),
    dtype=st.sampled_from(DTYPES),
    big_endian=st.booleans(),
    codec=codecs3,
    key_encoding=st.sampled_from([("default", "/"), ("default", "."), ("v2", "."), ("v2", "/")]),
    index_location=st.sampled_from(["start", "end"]),
    transposed=st.booleans(),
    data=st.data(),
)
def test_zarr_format_3(
    shape: Any,
    inner: Any,
    per_shard: Any,
    dtype: str,
    big_endian: bool,
    codec: Any,
    key_encoding: Any,
    index_location: Any,
    transposed: bool,
    data: Any,
) -> None:
    pixels = make_pixels(shape, dtype)
    shards = None
    if per_shard is not None:
        shape_of_shard = tuple(i * n for i, n in zip(inner, per_shard, strict=True))
        shards = {"shape": shape_of_shard, "index_location": index_location}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.zarr"
        array = zarr.create_array(
            path,
            shape=shape,
            chunks=inner,
            shards=shards,
            dtype=dtype,
            compressors=codec,
            filters=[zarr.codecs.TransposeCodec(order=(2, 0, 1))] if transposed else None,
            serializer=zarr.codecs.BytesCodec(endian="big" if big_endian else "little"),
            chunk_key_encoding={"name": key_encoding[0], "separator": key_encoding[1]},
            fill_value=3,
        )
        rows = slice(0, data.draw(st.integers(0, shape[1])))  # what is never written stays missing
        array[:, rows] = pixels[:, rows]
        assert_equal_to_zarr(path, array, ReadOptions())


def test_chunks_of_one_block_after_missing_ones(tmp_path: Path) -> None:
    """The chunks that are looked at for the size of blocks are missing: tiles are smaller than blocks."""
    pixels = make_pixels((4, 40, 20), "float32")
    write_zarr2(tmp_path / "a.zarr", pixels, (2, 10, 20), numcodecs.Blosc())
    for key in ("0/0/0", "1/0/0"):
        (tmp_path / "a.zarr" / "0" / key).unlink()
    assert_equal_to_zarr(tmp_path / "a.zarr", zarr.open_array(tmp_path / "a.zarr/0"), ReadOptions())


def test_filters_of_format_2(tmp_path: Path) -> None:
    pixels = make_pixels((3, 20, 30), "int16")
    filters = [numcodecs.Delta(dtype="<i2"), numcodecs.Shuffle(elementsize=2)]
    write_zarr2(tmp_path / "a.zarr", pixels, (2, 16, 16), numcodecs.Zlib(), filters=filters)
    assert_equal_to_zarr(tmp_path / "a.zarr", zarr.open_array(tmp_path / "a.zarr/0"), ReadOptions())


def test_an_ome_zarr_05_group(tmp_path: Path) -> None:
    pixels = make_pixels((3, 20, 30), "float32")
    group = zarr.create_group(tmp_path / "a.zarr", zarr_format=3)
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"datasets": [{"path": "full"}]}]}
    array = group.create_array("full", shape=pixels.shape, chunks=(1, 16, 16), dtype="f4")
    array[:] = pixels
    assert_equal_to_zarr(tmp_path / "a.zarr", array, ReadOptions())


def test_sections_in_any_order_and_in_several_files(tmp_path: Path) -> None:
    pixels = make_pixels((6, 20, 30), "float32")
    first = write_zarr2(tmp_path / "a.zarr", pixels[:4], (3, 16, 16), numcodecs.Blosc())
    second = write_zarr2(tmp_path / "b.zarr", pixels[4:], (1, 8, 30), numcodecs.Zlib())
    order = np.array([5, 0, 3, 4, 2, 1])
    stack = ImageStack(
        tuple(first if i < 4 else second for i in order),
        np.where(order < 4, order, order - 4),
        (30, 20),
    )
    found = read_tilt_region(stack, (0, 6), (2, 19), (5, 30), ReadOptions())
    assert np.array_equal(found, pixels[order, 2:19, 5:30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [3, 20]}, "shape"),
        ({"shape": [3, 20, -1]}, "shape"),
        ({"chunks": [1, 10**6, 10**6]}, "absurd"),
        ({"dtype": "<c8"}, "dtype"),
        ({"dtype": "<nonsense"}, "dtype"),
        ({"dtype": None}, "dtype"),
        ({"compressor": {"id": "unknown"}}, "codec 'unknown'"),
        ({"compressor": {"id": "zlib", "level": {"a": 1}}}, "ill-formed"),
        ({"filters": "all"}, "filters"),
        ({"order": "K"}, "order"),
        ({"dimension_separator": "-"}, "dimension_separator"),
        ({"fill_value": "x"}, "fill_value"),
        ({"zarr_format": 3}, "zarr_format"),
    ],
)
def test_ill_metadata_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    import json

    uri = write_zarr2(tmp_path / "a.zarr", make_pixels((3, 20, 30), "f4"), (1, 16, 16), numcodecs.Zlib())
    path = tmp_path / "a.zarr" / "0" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ImageFormatError, match=rf"a\.zarr/0/\.zarray.*{message}"):
        read_layouts([uri], {})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"zarr_format": 2, "shape": [1, 2, 3]}'])
def test_broken_metadata_is_named(tmp_path: Path, text: str) -> None:
    uri = write_zarr2(tmp_path / "a.zarr", make_pixels((3, 20, 30), "f4"), (1, 16, 16), numcodecs.Zlib())
    (tmp_path / "a.zarr" / "0" / ".zarray").write_text(text)
    with pytest.raises(ImageFormatError, match=r"a\.zarr/0/\.zarray"):
        read_layouts([uri], {})


def test_a_file_of_another_size_and_a_missing_section(tmp_path: Path) -> None:
    uri = write_zarr2(tmp_path / "a.zarr", make_pixels((3, 20, 30), "f4"), (1, 16, 16), numcodecs.Zlib())
    with pytest.raises(ImageFormatError, match=r"30 x 20 pixels where the tilt series has 40 x 20"):
        read_tilt_region(stack_of(uri, (3, 20, 40)), (0, 3), (0, 20), (0, 40), ReadOptions())
    with pytest.raises(ImageFormatError, match=r"3 sections, but tilt image 4 is said to be section 4"):
        read_tilt_region(stack_of(uri, (4, 20, 30)), (0, 3), (0, 20), (0, 30), ReadOptions())
    mixed = ImageStack((uri, "s3://bucket/b.zarr"), np.array([0, 0]), (30, 20))
    with pytest.raises(UnsupportedError, match="several kinds of store"):
        read_tilt_region(mixed, (0, 1), (0, 20), (0, 30), ReadOptions())
