"""Tiles that boxes touch: arrays, compiled loop, and a loop over pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from portal_extract.planning import touched
from portal_extract.planning.regions import TileGrid
from portal_extract.planning.touched import Ints, Lists, tiles_by_kernel, tiles_of_batches

Case = tuple[TileGrid, Ints, Ints, tuple[int, int]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    chunk = draw(st.integers(1, 3)), draw(st.integers(1, 17)), draw(st.integers(1, 17))
    grid = TileGrid(
        (height, width),
        chunk,
        (draw(st.integers(1, 3)), -(-height // chunk[1]), -(-width // chunk[2])),
        draw(st.integers(1, int(np.prod(chunk)))),
    )
    size = draw(st.integers(1, 20)), draw(st.integers(1, 20))
    n = draw(st.integers(0, 12))
    place = st.tuples(
        st.integers(0, grid.grid[0] - 1),
        st.integers(0, chunk[0] - 1),
        st.integers(-30, height + 30),
        st.integers(-30, width + 30),
    )
    places = np.array(draw(st.lists(place, min_size=n, max_size=n)), dtype=np.int64).reshape(-1, 4)
    cuts = draw(st.lists(st.integers(0, n), max_size=4)) if n else []
    return grid, places, np.unique([0, *cuts, n]).astype(np.int64), size


def slowly(grid: TileGrid, places: Ints, starts: Ints, size_px: tuple[int, int]) -> list[set[int]]:
    """Look at every pixel of every box; outside of the image the border is repeated."""
    (height, width), (_, cy, cx), (_, gy, gx) = grid.image_px, grid.chunk_shape, grid.grid
    found = []
    for a, b in pairwise(starts.tolist()):
        tiles = set()
        for z, section, top, left in places[a:b].tolist():
            for y in np.clip(np.arange(top, top + size_px[0]), 0, height - 1).tolist():
                for x in np.clip(np.arange(left, left + size_px[1]), 0, width - 1).tolist():
                    chunk = (z * gy + y // cy) * gx + x // cx
                    item = (section * cy + y % cy) * cx + x % cx
                    tiles.add(chunk * grid.tiles_per_chunk + item // grid.tile_items)
        found.append(tiles)
    return found


def check(found: Lists, expected: list[set[int]]) -> None:
    lists = [found[batch].tolist() for batch in range(len(found))]
    assert [set(tiles) for tiles in lists] == expected
    assert [len(tiles) for tiles in lists] == [len(tiles) for tiles in expected]


@settings(deadline=None)
@given(cases())
def test_arrays_find_the_tiles_of_every_pixel(case: Case) -> None:
    check(tiles_of_batches(*case), slowly(*case))


@settings(deadline=None)
@given(cases())
def test_the_compiled_loop_finds_the_tiles_of_every_pixel(case: Case) -> None:
    check(tiles_by_kernel(*case), slowly(*case))


def test_many_boxes_are_left_to_the_compiled_loop(monkeypatch) -> None:
    grid = TileGrid((3000, 3000), (1, 3000, 3000), (2, 1, 1), 3000)
    places = np.random.default_rng(1).integers(0, (2, 1, 2900, 2900), (20_000, 4))
    starts = np.arange(0, 20_001, 50)
    loops = []

    def loop(*arguments):
        loops.append(len(arguments[1]))
        return tiles_by_kernel(*arguments)

    monkeypatch.setattr(touched, "tiles_by_kernel", loop)
    many = tiles_of_batches(grid, places, starts, (64, 64))
    few = tiles_of_batches(grid, places[:1000], starts[:21], (64, 64))
    tall = tiles_of_batches(grid, places[:16_000], starts[:321], (90, 64))
    assert loops == [20_000, 16_000]
    for batch in range(20):
        assert set(few[batch].tolist()) == set(many[batch].tolist())
        assert set(tall[batch].tolist()) > set(many[batch].tolist())
