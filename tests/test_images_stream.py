"""Boxes cut by the stream equal boxes cut from what zarr itself returns."""

from __future__ import annotations

import pickle
from pathlib import Path

import numcodecs
import numpy as np
import pytest
from images_support import (
    blosc,
    cut_fast,
    cut_slowly,
    make_pixels,
    random_boxes,
    stack_of,
    write_zarr2,
)

from portal_extract.images.layout import read_shape
from portal_extract.images.lazy import open_lazily
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_tilt_images
from portal_extract.relion_io.mrc import write_mrc

SHAPE = (7, 100, 90)


@pytest.mark.parametrize("strategy", ["auto", "chunks", "blocks"])
@pytest.mark.parametrize("chunks", [(3, 32, 40), (1, 64, 64)])
@pytest.mark.parametrize(
    "compressor",
    [blosc(), blosc("zstd", 2, 4096), None, numcodecs.Zlib()],
    ids=lambda c: getattr(c, "codec_id", "raw"),
)
def test_boxes_of_local_zarr_are_those_of_the_pixels(tmp_path: Path, compressor, chunks, strategy) -> None:
    pixels = make_pixels(SHAPE, "f4")
    uri = write_zarr2(tmp_path / "a.zarr", pixels, chunks, compressor)
    boxes = random_boxes(SHAPE, 300, 20)
    reading = ReadOptions(batch_views=16, strategy=strategy)
    assert np.array_equal(cut_fast(stack_of(uri, SHAPE), boxes, reading), cut_slowly(pixels, boxes))


@pytest.mark.parametrize("side", [1, 20, 130])
def test_boxes_of_a_local_mrc_are_those_of_the_pixels(tmp_path: Path, side: int) -> None:
    pixels = make_pixels(SHAPE, "f4")
    write_mrc(tmp_path / "a.mrc", pixels, 1.0, kind="stack")
    boxes = random_boxes(SHAPE, 300, side)
    found = cut_fast(stack_of(str(tmp_path / "a.mrc"), SHAPE), boxes, ReadOptions(batch_views=16))
    assert np.array_equal(found, cut_slowly(pixels, boxes))


@pytest.mark.parametrize("kind", ["zarr", "mrc"])
def test_whole_tilt_images_and_the_lazy_array_are_the_pixels(tmp_path: Path, kind: str) -> None:
    pixels = make_pixels(SHAPE, "f4")
    if kind == "zarr":
        uri = write_zarr2(tmp_path / "a.zarr", pixels, (3, 32, 40), blosc())
    else:
        uri = str(tmp_path / "a.mrc")
        write_mrc(uri, pixels, 1.0, kind="stack")
    stack = stack_of(uri, SHAPE)
    assert read_shape(uri, {}) == SHAPE
    images = dict(stream_tilt_images(stack, np.array([2, 5, 3]), ReadOptions()))
    assert sorted(images) == [2, 3, 5]
    assert all(np.array_equal(image, pixels[tilt]) for tilt, image in images.items())
    lazy = pickle.loads(pickle.dumps(open_lazily(stack)))
    assert lazy.shape == SHAPE
    assert lazy.dtype == np.float32
    assert np.array_equal(lazy.compute(scheduler="threads"), pixels)
    assert np.array_equal(lazy[3, 5:50, 60:].compute(), pixels[3, 5:50, 60:])
