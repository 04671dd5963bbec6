"""Order, batches and memory of a plan, against slow bookkeeping over single pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal_extract.errors import ImageFormatError, MemoryBudgetError
from portal_extract.images.boxes import Boxes
from portal_extract.images.layout import ArrayLayout, ChunkCodec
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.model import ImageStack
from portal_extract.planning.cost import tiles_inside, whole_units
from portal_extract.planning.estimate import ReadPlan, plan_reading
from portal_extract.planning.order import Order, order_regions
from portal_extract.planning.plan import GroupPlan, plan_group
from portal_extract.planning.regions import Regions, TileGrid, group_regions

BLOSC = ChunkCodec("blosc", ((("id", "blosc"),),))


def layout_of(
    shape: tuple[int, int, int], chunks: tuple[int, int, int], codec: ChunkCodec = BLOSC
) -> ArrayLayout:
    return ArrayLayout("s3://bucket/a.zarr/0", shape, np.dtype("<f4"), chunks, codec)


def regions_of(layout: ArrayLayout, boxes: Boxes) -> Regions:
    n = layout.shape[0]
    stack = ImageStack(("a",) * n, np.arange(n), (layout.shape[2], layout.shape[1]))
    size = (boxes.side_px, boxes.side_px)
    (regions,) = group_regions(stack, {"a": layout}, boxes.tilt, boxes.origin_px, size)
    return regions


def boxes_in(shape: tuple[int, int, int], n: int, side: int, seed: int) -> Boxes:
    rng = np.random.default_rng(seed)
    origin = np.stack([rng.integers(-side, shape[2] + side, n), rng.integers(-side, shape[1] + side, n)], 1)
    return Boxes(rng.integers(0, shape[0], n), origin.astype(np.int64), side)


def tiles_slowly(grid: TileGrid, place: np.ndarray, side: int) -> set[int]:
    """Tiles of one box, pixel by pixel."""
    z, section, top, left = place.tolist()
    height, width = grid.image_px
    _, chunk_y, chunk_x = grid.chunk_shape
    tiles = set()
    for y in np.clip(np.arange(top, top + side), 0, height - 1).tolist():
        for x in np.clip(np.arange(left, left + side), 0, width - 1).tolist():
            chunk = (z * grid.grid[1] + y // chunk_y) * grid.grid[2] + x // chunk_x
            item = (section * chunk_y + y % chunk_y) * chunk_x + x % chunk_x
            tiles.add(chunk * grid.tiles_per_chunk + item // grid.tile_items)
    return tiles


def check_order(order: Order, grid: TileGrid, places: np.ndarray, side: int) -> None:
    assert sorted(order.batches.items.tolist()) == list(range(len(places)))
    touched = [
        set().union(*(tiles_slowly(grid, places[view], side) for view in order.batches[batch]))
        for batch in range(len(order.batches))
    ]
    for batch, tiles in enumerate(touched):
        assert sorted(order.batch_tiles[batch].tolist()) == sorted(tiles)
    fetched = order.units.items.tolist()
    assert len(fetched) == len(set(fetched))
    assert set(fetched) == set().union(*touched)
    unit_of = {tile: unit for unit in range(len(order.units)) for tile in order.units[unit].tolist()}
    for unit in range(len(order.units)):
        tiles = order.units[unit]
        assert (np.diff(tiles) > 0).all()
        assert set(tiles // grid.tiles_per_chunk) == {order.unit_chunks[unit]}
        waiting = {b for b, ts in enumerate(touched) if ts & set(tiles.tolist())}
        assert set(order.unit_batches[unit].tolist()) == waiting
    # bookkeeping of a run in which nothing is fetched ahead and batches are cut in turn
    started, alive, peak = 0, set(), 0
    for batch, tiles in enumerate(touched):
        needed = max(unit_of[tile] for tile in tiles) + 1
        for unit in range(started, needed):
            alive |= set(order.units[unit].tolist())
        started = max(started, needed)
        peak = max(peak, len(alive))
        later = set().union(*touched[batch + 1 :])
        alive &= later
    assert peak <= order.peak_tiles


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 40), st.integers(1, 40)),
    chunks=st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
    tile_items=st.integers(1, 300),
    n=st.integers(1, 30),
    side=st.integers(1, 25),
    batch_views=st.integers(1, 8),
    slab=st.integers(1, 4),
    whole=st.booleans(),
    seed=st.integers(0, 99),
)
def test_an_order_is_complete_and_its_peak_is_true(
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    tile_items: int,
    n: int,
    side: int,
    batch_views: int,
    slab: int,
    whole: bool,
    seed: int,
) -> None:
    layout = layout_of(shape, chunks)
    regions = regions_of(layout, boxes_in(shape, n, side, seed))
    tile_items = min(tile_items, layout.chunk_items)
    grid = TileGrid(shape[1:], chunks, regions.grid, tile_items)
    order = order_regions(
        grid, regions.places, regions.size_px, batch_views, min(slab, chunks[0]), whole_chunks=whole
    )
    assert order.batches.lengths.max() <= batch_views
    check_order(order, grid, regions.places, side)
    if whole:
        assert len(np.unique(order.unit_chunks)) == len(order.unit_chunks)


def portal_boxes(shape: tuple[int, int, int], n: int, side: int) -> Boxes:
    """Every particle in every tilt image, at about the same place."""
    rng = np.random.default_rng(0)
    tilt = np.repeat(np.arange(shape[0]), n)
    origin = np.tile(rng.integers(0, [shape[2] - side, shape[1] - side], (n, 2)), (shape[0], 1))
    return Boxes(tilt, origin, side)


OLD = layout_of((41, 3710, 3838), (256, 256, 256))
NEW = layout_of((41, 3710, 3838), (1, 1024, 1024))
BLOCK_BYTES = 512 << 10


def plan_of(layout: ArrayLayout, n: int, memory_mib: float, side: int = 128) -> GroupPlan:
    regions = regions_of(layout, portal_boxes(layout.shape, n, side))
    return plan_group(regions, BLOCK_BYTES, ReadOptions(memory_bytes=int(memory_mib * MIB)))


@pytest.mark.parametrize("layout", [OLD, NEW])
@pytest.mark.parametrize("memory_mib", [1024, 512, 300, 100])
def test_the_plan_keeps_the_memory(layout: ArrayLayout, memory_mib: int) -> None:
    plan = plan_of(layout, 300, memory_mib)
    assert plan.memory_bytes <= memory_mib * MIB
    assert plan.n_slots >= plan.order.peak_tiles


def test_old_chunks_are_taken_in_slabs_of_sections_where_memory_is_short() -> None:
    assert plan_of(OLD, 300, 1024).order.slab_sections == 41
    short = plan_of(OLD, 300, 200)
    assert short.order.slab_sections < 41
    assert len(short.order.units) > len(np.unique(short.order.unit_chunks))
    assert not short.whole.any()


def test_too_little_memory_is_refused_with_the_number_that_does() -> None:
    with pytest.raises(MemoryBudgetError, match=r"needs (\d+) MiB of memory where 4 MiB") as caught:
        plan_of(OLD, 300, 4)
    needed = int(str(caught.value).split("needs ")[1].split()[0])
    assert plan_of(OLD, 300, needed).memory_bytes <= needed * MIB
    with pytest.raises(MemoryBudgetError):
        plan_of(OLD, 300, needed - 1)


def test_absurdly_many_chunks_are_refused() -> None:
    with pytest.raises(ImageFormatError, match="too many"):
        plan_of(layout_of((41, 37100, 38380), (1, 1, 1)), 3, 1024)


def test_few_boxes_come_in_batches_small_enough_to_overlap() -> None:
    plan = plan_of(NEW, 20, 1024)
    assert len(plan.order.batches) > 4


def test_tiles_inside_are_counted_without_padding() -> None:
    regions = regions_of(OLD, portal_boxes(OLD.shape, 3, 128))
    grid = TileGrid((3710, 3838), (256, 256, 256), regions.grid, 131072)
    counts = tiles_inside(regions, grid, np.array([0, grid.n_chunks - 1]))
    assert counts.tolist() == [21, 21]
    regions = regions_of(NEW, portal_boxes(NEW.shape, 3, 128))
    grid = TileGrid((3710, 3838), (1, 1024, 1024), regions.grid, 131072)
    assert tiles_inside(regions, grid, np.array([0, 15])).tolist() == [8, 5]


def test_a_chunk_is_fetched_whole_when_that_is_cheaper() -> None:
    # every row of the first chunk row, a corner of the others
    y = np.arange(0, 1024, 64)
    boxes = Boxes(np.zeros(len(y), np.int64), np.stack([np.zeros_like(y), y], 1), 64)
    regions = regions_of(NEW, boxes)
    reading = ReadOptions()
    plan = plan_group(regions, BLOCK_BYTES, reading)
    assert plan.whole.tolist() == [True]
    fewer = plan_group(
        replace(regions, places=regions.places[:4], views=regions.views[:4]), BLOCK_BYTES, reading
    )
    assert fewer.whole.tolist() == [False]
    for strategy, expected in (("chunks", True), ("blocks", False)):
        options = ReadOptions(strategy=strategy)  # type: ignore[arg-type]
        assert (whole_units(regions, plan.grid, plan.order, options) == expected).all()
        assert (whole_units(fewer.regions, fewer.grid, fewer.order, options) == expected).all()
    dear = ReadOptions(request_cost_bytes=10 << 20)
    assert whole_units(fewer.regions, fewer.grid, fewer.order, dear).all()


def plan_text(layout: ArrayLayout, boxes: Boxes) -> ReadPlan:
    n = layout.shape[0]
    stack = ImageStack((layout.uri,) * n, np.arange(n), (layout.shape[2], layout.shape[1]))
    return plan_reading(stack, {layout.uri: layout}, boxes, ReadOptions())


def test_a_plan_counts_and_prints() -> None:
    plan = plan_text(OLD, portal_boxes(OLD.shape, 1, 128))
    assert plan.views == 41
    assert plan.is_estimate
    assert plan.block_bytes < plan.fetched_bytes < plan.chunk_bytes < plan.total_bytes
    assert "41 views in" in str(plan)
    assert "about" in str(plan)
    assert plan.seconds(plan.fetched_bytes) == 1.0
    both = ReadPlan.together([plan, plan])
    assert both.fetched_bytes == 2 * plan.fetched_bytes
    assert both.memory_bytes == plan.memory_bytes
    assert ReadPlan.together([]).views == 0


def test_sizes_of_uncompressed_data_are_no_estimate() -> None:
    raw = layout_of((5, 1000, 900), (1, 500, 500), ChunkCodec("raw"))
    plan = plan_text(raw, portal_boxes(raw.shape, 4, 64))
    assert not plan.is_estimate
    assert plan.total_bytes == 5 * 4 * 500 * 500 * 4
    mrc = replace(raw, uri="s3://bucket/a.mrc", chunk_shape=(1, 300, 900), data_offset=1024)
    plan = plan_text(mrc, portal_boxes(raw.shape, 4, 64))
    assert not plan.is_estimate
    assert plan.total_bytes == 5 * 1000 * 900 * 4


def test_hundreds_of_thousands_of_views_are_planned() -> None:
    plan = plan_of(OLD, 7300, 1024)
    assert len(plan.regions.views) == 299_300
    assert plan.order.batches.lengths.sum() == 299_300
