"""What chunks cost: pixels and padding, ranges in the file, blocks or the whole chunk."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from images_support import blosc, make_pixels, random_boxes, stack_of, write_zarr2

from portal_extract.images.blosc import FrameTable, parse_header, parse_table
from portal_extract.images.decoding import coalesce
from portal_extract.images.inspection import plan_stream
from portal_extract.images.layout import ArrayLayout, ChunkCodec
from portal_extract.images.options import ReadOptions
from portal_extract.planning.cost import block_places, pixels_inside, ranges_of_units, whole_units
from portal_extract.planning.order import order_regions
from portal_extract.planning.regions import Regions, TileGrid
from portal_extract.planning.touched import Lists

SIDES = st.integers(1, 6)


def layout_of(shape: tuple[int, int, int], chunks: tuple[int, int, int]) -> ArrayLayout:
    codec = ChunkCodec("blosc", ((("id", "blosc"),),))
    return ArrayLayout("s3://bucket/a.zarr/0", shape, np.dtype("<f4"), chunks, codec)


def regions_of(layout: ArrayLayout, places: list[list[int]], side: int) -> Regions:
    return Regions((layout,), np.arange(len(places)), np.array(places, dtype=np.int64), (side, side))


@given(st.tuples(SIDES, SIDES, SIDES), st.tuples(SIDES, SIDES, SIDES), st.data())
def test_pixels_are_told_from_padding(
    shape: tuple[int, int, int], chunks: tuple[int, int, int], data: st.DataObject
) -> None:
    layout = layout_of(shape, chunks)
    n_first = data.draw(st.integers(0, layout.chunk_items))
    stored = np.zeros([n * c for n, c in zip(layout.grid, chunks, strict=True)], bool)
    stored[: shape[0], : shape[1], : shape[2]] = True
    counts = []
    for z, y, x in np.ndindex(*layout.grid):
        part = stored[z * chunks[0] :, y * chunks[1] :, x * chunks[2] :]
        counts.append(int(part[: chunks[0], : chunks[1], : chunks[2]].reshape(-1)[:n_first].sum()))
    regions = regions_of(layout, [[0, 0, 0, 0]], 1)
    every = np.arange(len(counts))
    assert pixels_inside(regions, every, n_first).tolist() == counts
    assert pixels_inside(regions, every).sum() == np.prod(shape)


def table_of(sizes: list[int], order: list[int], block_bytes: int) -> FrameTable:
    """Blocks of some sizes that lie in the file in some order."""
    starts, at = [0] * len(sizes), 16 + 4 * len(sizes)
    for block in order:
        starts[block] = at
        at += sizes[block]
    front = struct.pack("<4B3I", 2, 1, 1, 4, len(sizes) * block_bytes, block_bytes, at)
    data = front + np.array(starts, "<i4").tobytes()
    return parse_table(data, parse_header(data, len(sizes) * block_bytes, at))


@given(st.lists(st.integers(5, 100), min_size=8, max_size=8), st.permutations(range(8)), st.data())
def test_ranges_are_those_that_are_fetched(sizes: list[int], order: list[int], data: st.DataObject) -> None:
    typical, gap_bytes = table_of(sizes, order, 128), data.draw(st.integers(0, 150))
    units = data.draw(st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=1, max_size=4))
    tiles = [sorted(8 * chunk + tile for tile in unit) for chunk, unit in enumerate(units)]
    lists = Lists(np.cumsum([0, *map(len, tiles)]), np.concatenate(tiles))
    grid = TileGrid((1, 256 * len(units)), (1, 1, 256), (1, 1, len(units)), 32)
    for known in (typical, None):
        n_ranges, gaps = ranges_of_units(lists.lengths, *block_places(lists, grid, 128, known), gap_bytes)
        starts = typical.starts if known else 128 * np.arange(8)
        stops = typical.stops if known else 128 * np.arange(1, 9)
        for chunk, unit in enumerate(units):
            wanted = np.array(sorted(unit, key=lambda tile: starts[tile]))
            runs = coalesce(starts[wanted], stops[wanted], gap_bytes)
            assert n_ranges[chunk] == len(runs)
            fetched = sum(stops[wanted[last - 1]] - starts[wanted[first]] for first, last in runs)
            assert gaps[chunk] == fetched - (stops - starts)[wanted].sum()


def test_scattered_blocks_are_worth_a_whole_chunk_sooner() -> None:
    layout = layout_of((1, 64, 64), (1, 64, 64))
    grid = TileGrid((64, 64), (1, 64, 64), (1, 1, 1), 512)
    # all rows but those of the last block
    places = [[0, 0, y, 0] for y in range(0, 56, 8)]
    regions = regions_of(layout, places, 8)
    order = order_regions(grid, regions.places, (8, 8), 64, 1, whole_chunks=False)
    assert order.units.lengths.tolist() == [7]
    reading = ReadOptions(request_cost_bytes=512, gap_bytes=0)
    in_line = table_of([1500] * 8, list(range(8)), 2048)
    scattered = table_of([1500] * 8, [0, 7, 1, 2, 3, 4, 5, 6], 2048)
    assert not whole_units(regions, grid, order, reading, in_line).any()
    assert not whole_units(regions, grid, order, reading, scattered).any()
    dearer = ReadOptions(request_cost_bytes=800, gap_bytes=0)
    assert not whole_units(regions, grid, order, dearer, in_line).any()
    assert whole_units(regions, grid, order, dearer, scattered).all()


@pytest.mark.parametrize("chunks", [(256, 128, 128), (1, 256, 256)])
def test_estimates_are_close(tmp_path, chunks) -> None:
    pixels = make_pixels((9, 300, 260), "f4")
    uri = write_zarr2(tmp_path / "a.zarr", pixels, chunks, blosc(block_bytes=32768))
    boxes = random_boxes(pixels.shape, 40, 24)
    plan = plan_stream(stack_of(uri, pixels.shape), boxes, ReadOptions())
    stored = sum(p.stat().st_size for p in (tmp_path / "a.zarr" / "0").rglob("*") if p.name.isdecimal())
    assert plan.is_estimate
    assert plan.total_bytes == pytest.approx(stored, rel=0.1)
