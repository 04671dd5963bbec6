"""Sums are the same bits whatever the threads, the slabs, and the order in which batches come."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from images_support import blosc, make_pixels, random_boxes, stack_of, write_zarr2
from scipy.spatial.transform import Rotation

from portal_extract.images.boxes import PatchBatch
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import _in_turn, stream_patches
from portal_extract.reconstruction.accumulate import Accumulator, Slices, insert, insertion_matrices
from portal_extract.reconstruction.inserter import Batch, OrderedInserter

BOX = 12


def slices(seed: int, n: int) -> Slices:
    rng = np.random.default_rng(seed)
    shape = (n, BOX, BOX // 2 + 1)
    spectra = (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)
    poses = Rotation.random(n, rng=rng).as_matrix() if n else np.zeros((0, 3, 3))
    matrices = insertion_matrices(np.eye(3), poses)
    return Slices(spectra, rng.uniform(size=shape).astype(np.float32), matrices, np.full(n, 6, np.int64))


BATCHES: list[Batch] = [(slices(2 * i, i % 4), slices(2 * i + 1, 3)) for i in range(23)]


def plain_sums() -> list[Accumulator]:
    halves = [Accumulator.empty(BOX), Accumulator.empty(BOX)]
    for batch in BATCHES:
        for half, one in zip(halves, batch, strict=True):
            insert(half, one)
    return halves


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        np.testing.assert_array_equal(one.weight, other.weight)


@pytest.mark.parametrize(("workers", "n_slabs"), [(1, 1), (2, 5), (4, 12), (3, 40)])
def test_sums_do_not_depend_on_threads_slabs_and_arrival(workers, n_slabs):
    inserter = OrderedInserter([Accumulator.empty(BOX), Accumulator.empty(BOX)], n_slabs, len(BATCHES))
    numbered = [(inserter.next_number(), batch) for batch in BATCHES]
    random.Random(workers).shuffle(numbered)
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda one: inserter.add(*one), numbered))
    inserter.when_done(lambda: None)
    assert_same(inserter.halves, plain_sums())


def test_callback_sees_what_was_numbered_before_and_nothing_else():
    inserter = OrderedInserter([Accumulator.empty(BOX), Accumulator.empty(BOX)], 7, 99)
    seen = []

    def look() -> None:
        seen.append([Accumulator(h.data.copy(), h.weight.copy()) for h in inserter.halves])

    numbers = [inserter.next_number() for _ in range(10)]
    inserter.when_done(look)
    numbers += [inserter.next_number() for _ in range(10, len(BATCHES))]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(inserter.add, reversed(numbers), reversed(BATCHES)))
    inserter.when_done(lambda: None)
    assert len(seen) == 1
    expected = [Accumulator.empty(BOX), Accumulator.empty(BOX)]
    for batch in BATCHES[:10]:
        for half, one in zip(expected, batch, strict=True):
            insert(half, one)
    assert_same(seen[0], expected)
    assert_same(inserter.halves, plain_sums())


def test_numbers_wait_for_room():
    inserter = OrderedInserter([Accumulator.empty(BOX), Accumulator.empty(BOX)], 3, 2)
    first, second = inserter.next_number(), inserter.next_number()
    got: list[int] = []
    waiting = threading.Thread(target=lambda: got.append(inserter.next_number()))
    waiting.start()
    inserter.add(second, BATCHES[1])
    waiting.join(0.2)
    assert got == []
    inserter.add(first, BATCHES[0])
    waiting.join(10)
    assert got == [2]


def test_failure_wakes_who_waits_and_stops_the_work():
    inserter = OrderedInserter([Accumulator.empty(BOX), Accumulator.empty(BOX)], 3, 1)
    inserter.next_number()
    waiting = threading.Thread(target=inserter.next_number)
    waiting.start()
    inserter.fail()
    waiting.join(10)
    assert not waiting.is_alive()
    assert inserter.has_failed
    inserter.add(0, BATCHES[3])
    assert not inserter.halves[0].data.any()


def test_error_in_a_callback_is_a_failure():
    inserter = OrderedInserter([Accumulator.empty(BOX)], 3, 9)

    def full_disk() -> None:
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        inserter.when_done(full_disk)
    assert inserter.has_failed


def test_held_back_batches_come_in_turn():
    assert list(_in_turn(iter([2, 0, 1, 4, 3]))) == [0, 1, 2, 3, 4]


def test_stream_in_order_is_the_same_each_time(tmp_path: Path):
    shape = (7, 100, 90)
    uri = write_zarr2(tmp_path / "a.zarr", make_pixels(shape, "f4"), (1, 32, 40), blosc())
    boxes = random_boxes(shape, 200, 20)

    def order(threads: int, delay_s: float) -> list[int]:
        reading = ReadOptions(batch_views=8, in_order=True, decode_threads=threads)
        found: list[int] = []
        batches: list[PatchBatch] = []
        for batch in stream_patches(stack_of(uri, shape), boxes, reading):
            batches.append(batch)
            found += batch.views.tolist()
            time.sleep(delay_s)
            if len(batches) == 3:
                for one in reversed(batches):
                    one.cut(None)
                batches = []
        for one in batches:
            one.cut(None)
        return found

    expected = order(1, 0.0)
    assert sorted(expected) == list(range(200))
    assert order(4, 0.0) == expected
    assert order(4, 0.005) == expected
