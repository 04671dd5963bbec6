"""Zarr metadata, formats 2 and 3: bytes in, :class:`~portal_extract.images.layout.ArrayLayout` out."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from portal_extract.errors import ImageFormatError
from portal_extract.images.layout import ArrayLayout, ChunkCodec

MAX_ITEMS = 1 << 40
MAX_CHUNK_BYTES = (1 << 31) - 1
V3_TYPES = ("int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "float32", "float64")
V2_KINDS = "iuf"
V3_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
PLAIN_CODECS = ("zlib", "gzip", "zstd", "lz4", "bz2", "lzma", "blosc")
FILTERS = ("shuffle", "delta", "fixedscaleoffset", "crc32", "adler32", "fletcher32", "bitround")

Json = dict[str, Any]


def parse_json(uri: str, data: bytes | bytearray) -> Json:
    """Parse a metadata document.

    Raises
    ------
    ImageFormatError
        It is no JSON object.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageFormatError(f"{uri} is no valid JSON: {error}") from error
    if not isinstance(document, dict):
        raise ImageFormatError(f"{uri} is no zarr metadata: it holds no JSON object")
    return document


def full_size_level(attributes: Json) -> str | None:
    """Path of the full-size array of an OME-Zarr group, or None if it is no such group.

    Parameters
    ----------
    attributes
        Attributes of the group, of OME-Zarr 0.4 (top level) or 0.5 (under ``ome``).
    """
    try:
        holder = attributes.get("ome", attributes)
        path = holder["multiscales"][0]["datasets"][0]["path"]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    if not isinstance(path, str) or "\0" in path or any(0xD800 <= ord(c) < 0xE000 for c in path):
        return None
    return path.strip("/")


def layout_v2(array_uri: str, meta: Json) -> ArrayLayout:
    """Layout of a zarr format 2 array.

    Parameters
    ----------
    array_uri
        Address of the array.
    meta
        Its ``.zarray``.

    Raises
    ------
    ImageFormatError
        Something is missing, ill-formed or not supported.
    """
    where = f"{array_uri}/.zarray"
    try:
        if meta["zarr_format"] != 2:
            raise ImageFormatError(f"{where}: zarr_format is {meta['zarr_format']}, not 2")
        shape, chunks = _triple(where, "shape", meta["shape"]), _triple(where, "chunks", meta["chunks"])
        dtype = _dtype_v2(where, meta["dtype"])
        compressor, filters = meta.get("compressor"), meta.get("filters") or []
        order, fill = meta.get("order", "C"), meta.get("fill_value")
        separator = meta.get("dimension_separator", ".")
    except KeyError as error:
        raise ImageFormatError(f"{where} lacks {error.args[0]!r}") from None
    if order not in ("C", "F") or separator not in (".", "/"):
        raise ImageFormatError(f"{where}: order {order!r} or dimension_separator {separator!r} is unknown")
    if not isinstance(filters, list) or not all(isinstance(f, dict) for f in filters):
        raise ImageFormatError(f"{where}: filters is no list of codecs")
    steps = [_step(where, compressor)] if compressor is not None else []
    steps += [_step(where, config, FILTERS) for config in reversed(filters)]
    return ArrayLayout(
        uri=array_uri,
        shape=shape,
        dtype=dtype,
        chunk_shape=_bounded(where, shape, chunks, dtype),
        codec=_codec(steps, (0, 1, 2) if order == "C" else (2, 1, 0)),
        fill_value=_fill(where, fill),
        separator=separator,
    )


def layout_v3(array_uri: str, meta: Json) -> ArrayLayout:
    """Layout of a zarr format 3 array, sharded or not.

    Parameters
    ----------
    array_uri
        Address of the array.
    meta
        Its ``zarr.json``.

    Raises
    ------
    ImageFormatError
        Something is missing, ill-formed or not supported.
    """
    where = f"{array_uri}/zarr.json"
    try:
        if meta["zarr_format"] != 3 or meta["node_type"] != "array":
            raise ImageFormatError(f"{where} describes no zarr format 3 array")
        shape = _triple(where, "shape", meta["shape"])
        if meta["chunk_grid"]["name"] != "regular":
            raise ImageFormatError(f"{where}: only regular chunk grids are supported")
        outer = _triple(where, "chunk_shape", meta["chunk_grid"]["configuration"]["chunk_shape"])
        encoding = meta["chunk_key_encoding"]
        kind = encoding["name"]
        codecs, data_type = meta["codecs"], meta["data_type"]
        if data_type not in V3_TYPES:
            raise ImageFormatError(f"{where}: data_type {data_type!r} is not supported")
        if kind not in ("default", "v2"):
            raise ImageFormatError(f"{where}: chunk_key_encoding {kind!r} is not supported")
        default = "/" if kind == "default" else "."
        separator = encoding.get("configuration", {}).get("separator", default)
        sharding = codecs[0]["configuration"] if codecs[0]["name"] == "sharding_indexed" else None
        inner_codecs = sharding["codecs"] if sharding else codecs
        dtype, codec = _codecs_v3(where, inner_codecs, np.dtype(data_type))
        inner = _triple(where, "chunk_shape", sharding["chunk_shape"]) if sharding else outer
        index = sharding.get("index_codecs", []) if sharding else []
        index_names = [config["name"] for config in index]
        location = (sharding or {}).get("index_location", "end")
        is_swapped = any((config.get("configuration") or {}).get("endian") == "big" for config in index)
        extra = len(codecs) > 1 and sharding is not None
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ImageFormatError(f"{where} is incomplete or ill-formed ({error!r})") from None
    if separator not in (".", "/"):
        raise ImageFormatError(f"{where}: separator {separator!r} is unknown")
    is_odd = location not in ("start", "end") or is_swapped
    if extra or is_odd or index_names not in ([], ["bytes"], ["bytes", "crc32c"]):
        raise ImageFormatError(f"{where}: this way of sharding is not supported: {codecs}")
    if math.prod(o // i for o, i in zip(outer, inner, strict=True)) * 16 > MAX_CHUNK_BYTES:
        raise ImageFormatError(f"{where}: shards of {outer} in chunks of {inner} are absurd")
    if any(o % i for o, i in zip(outer, inner, strict=True)):
        raise ImageFormatError(f"{where}: shards of {outer} do not hold whole chunks of {inner}")
    return ArrayLayout(
        uri=array_uri,
        shape=shape,
        dtype=dtype,
        chunk_shape=_bounded(where, shape, inner, dtype),
        codec=codec,
        fill_value=_fill(where, meta.get("fill_value", 0)),
        separator=separator,
        prefix=f"c{separator}" if kind == "default" else "",
        shard_shape=outer if sharding else None,
        index_at_end=location == "end",
        index_has_checksum="crc32c" in index_names,
    )


def _codecs_v3(where: str, codecs: list[Json], dtype: np.dtype[Any]) -> tuple[np.dtype[Any], ChunkCodec]:
    transposed = (0, 1, 2)
    steps = []
    for config in codecs:
        name, settings = config["name"], dict(config.get("configuration") or {})
        if name == "transpose":
            order = tuple(settings["order"])
            if sorted(order) != [0, 1, 2]:
                raise ImageFormatError(f"{where}: transpose order {order} is no order of three axes")
            transposed = tuple(transposed[axis] for axis in order)  # type: ignore[assignment]
        elif name == "bytes":
            dtype = dtype.newbyteorder(">" if settings.get("endian") == "big" else "<")
        elif name == "blosc":
            shuffle = V3_SHUFFLES.get(str(settings.get("shuffle")))
            steps.append(
                _step(where, {"id": "blosc", "shuffle": shuffle, "typesize": settings.get("typesize")})
            )
        elif name in ("gzip", "zstd"):
            steps.append(_step(where, {"id": name}))
        elif name == "crc32c":
            steps.append((("id", "crc32c"),))
        elif name.startswith("numcodecs.") and name[10:] in PLAIN_CODECS + FILTERS:
            steps.append(_step(where, {"id": name[10:], **settings}, FILTERS))
        else:
            raise ImageFormatError(f"{where}: codec {name!r} is not supported")
    return dtype, _codec(steps[::-1], transposed)


def _codec(steps: list[tuple[tuple[str, Any], ...]], transposed: tuple[int, int, int]) -> ChunkCodec:
    names = [dict(step)["id"] for step in steps]
    if transposed == (0, 1, 2) and not names:
        return ChunkCodec("raw")
    if transposed == (0, 1, 2) and names == ["blosc"]:
        return ChunkCodec("blosc", tuple(steps))
    return ChunkCodec("pipeline", tuple(steps), transposed)


def _step(where: str, config: Any, more: tuple[str, ...] = ()) -> tuple[tuple[str, Any], ...]:
    name = config.get("id") if isinstance(config, dict) else None
    if name not in PLAIN_CODECS + more:
        raise ImageFormatError(f"{where}: codec {name!r} is not supported")
    assert isinstance(config, dict)
    if any(isinstance(value, dict | list) for value in config.values()):
        raise ImageFormatError(f"{where}: settings of codec {name!r} are ill-formed")
    return tuple(sorted(config.items()))


def _triple(where: str, name: str, value: Any) -> tuple[int, int, int]:
    whole = isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    if not whole or len(value) != 3 or not all(0 < n < MAX_ITEMS for n in value):
        raise ImageFormatError(f"{where}: {name} {value!r} is no (sections, rows, columns)")
    return value[0], value[1], value[2]


def _bounded(
    where: str, shape: tuple[int, int, int], chunks: tuple[int, int, int], dtype: np.dtype[Any]
) -> tuple[int, int, int]:
    if math.prod(shape) > MAX_ITEMS or math.prod(chunks) * dtype.itemsize > MAX_CHUNK_BYTES:
        raise ImageFormatError(f"{where}: shape {shape} in chunks of {chunks} is absurd")
    return chunks


def _dtype_v2(where: str, text: Any) -> np.dtype[Any]:
    try:
        dtype = np.dtype(text) if isinstance(text, str) else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or dtype.kind not in V2_KINDS or f"{dtype.kind}{dtype.itemsize}" in ("i8", "u8", "f16"):
        raise ImageFormatError(f"{where}: dtype {text!r} is not supported")
    return dtype


def _fill(where: str, value: Any) -> float:
    if value is None:
        return 0.0
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            raise ImageFormatError(f"{where}: fill_value is out of range") from None
    named = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
    if isinstance(value, str) and value in named:
        return named[value]
    raise ImageFormatError(f"{where}: fill_value {value!r} is not supported")
