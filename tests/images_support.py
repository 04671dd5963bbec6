"""Stored tilt series of every kind, and the slow way to cut boxes from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
import zarr.codecs
from numpy.typing import NDArray

from portal_extract.images.boxes import Boxes
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import ImageStack


def make_pixels(shape: tuple[int, int, int], dtype: str, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(20, 4, shape).astype(dtype)
    return rng.integers(-100 if np.dtype(dtype).kind == "i" else 0, 100, shape).astype(dtype)


def blosc(cname: str = "lz4", shuffle: int = 1, block_bytes: int = 0) -> numcodecs.Blosc:
    return numcodecs.Blosc(cname=cname, clevel=5, shuffle=shuffle, blocksize=block_bytes)


def write_zarr2(
    path: Path,
    pixels: NDArray[Any],
    chunks: tuple[int, int, int],
    compressor: Any = None,
    separator: str = "/",
    **more: Any,
) -> str:
    """A zarr format 2 group with one level, as the portal stores them."""
    group = zarr.create_group(path, zarr_format=2, overwrite=True)
    level = {"datasets": [{"path": "0", "coordinateTransformations": []}], "version": "0.4"}
    group.attrs["multiscales"] = [level]
    array = group.create_array(
        "0",
        shape=pixels.shape,
        chunks=chunks,
        dtype=pixels.dtype,
        compressors=compressor,
        chunk_key_encoding={"name": "v2", "separator": separator},
        **more,
    )
    array[:] = pixels
    return str(path)


def stack_of(uri: str, shape: tuple[int, int, int], **storage: Any) -> ImageStack:
    n = shape[0]
    return ImageStack((uri,) * n, np.arange(n, dtype=np.int64), (shape[2], shape[1]), storage)


def random_boxes(shape: tuple[int, int, int], n: int, side: int, seed: int = 1) -> Boxes:
    """Boxes everywhere, some of them across the border or outside."""
    rng = np.random.default_rng(seed)
    tilt = rng.integers(0, shape[0], n)
    x = rng.integers(-2 * side, shape[2] + side, n)
    y = rng.integers(-2 * side, shape[1] + side, n)
    return Boxes(tilt.astype(np.int64), np.stack([x, y], axis=1).astype(np.int64), side)


def cut_slowly(pixels: NDArray[Any], boxes: Boxes) -> NDArray[np.float32]:
    """The reference: one box after the other, clamped coordinates."""
    out = np.empty((len(boxes), boxes.side_px, boxes.side_px), np.float32)
    for view, (tilt, (x, y)) in enumerate(zip(boxes.tilt, boxes.origin_px, strict=True)):
        rows = np.clip(np.arange(y, y + boxes.side_px), 0, pixels.shape[1] - 1)
        columns = np.clip(np.arange(x, x + boxes.side_px), 0, pixels.shape[2] - 1)
        out[view] = pixels[tilt][np.ix_(rows, columns)].astype(np.float32)
    return out


def cut_fast(stack: ImageStack, boxes: Boxes, reading: ReadOptions, **more: Any) -> NDArray[np.float32]:
    """Every box once, by the stream under test."""
    out = np.full((len(boxes), boxes.side_px, boxes.side_px), np.nan, np.float32)
    seen = np.zeros(len(boxes), dtype=np.int64)
    for batch in stream_patches(stack, boxes, reading, **more):
        assert 0 < len(batch.views) <= reading.batch_views
        seen[batch.views] += 1
        out[batch.views] = batch.cut(None)
    assert (seen == 1).all()
    return out
