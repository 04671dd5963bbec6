"""Tiles fetched, decoded and handed out while others are being cut: the moving parts of a stream.

One thread runs an event loop for the requests, a few threads decode, and the consumers' threads cut. Tiles
live in the slots of one arena, so that memory is bounded by construction: a unit of fetching starts when
there are slots for all its tiles, in the order of the plan, which has made sure that the boxes before it
can be finished with the slots taken before it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import partial

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.boxes import array_to_cut_into
from portal_extract.images.decoding import TileTarget
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.loader import UnitLoader
from portal_extract.images.reader import Reader, Turn
from portal_extract.images.source import finish
from portal_extract.planning.plan import GroupPlan

STARVING_S = 1.0


class Slots:
    """Free rows of the arena; taken in the loop, given back by any thread."""

    def __init__(self, n_slots: int, loop: asyncio.AbstractEventLoop) -> None:
        self._free = list(range(n_slots - 1, -1, -1))
        self._lock = threading.Lock()
        self._loop = loop
        self._changed = asyncio.Event()
        self.are_awaited = False

    async def take(self, n: int) -> list[int]:
        """Wait until so many are free, and take them; one task only may wait."""
        while True:
            with self._lock:
                if len(self._free) >= n:
                    taken = self._free[len(self._free) - n :]
                    del self._free[len(self._free) - n :]
                    self.are_awaited = False
                    return taken
                self._changed.clear()
                self.are_awaited = True
            await self._changed.wait()

    def give(self, slots: list[int]) -> None:
        """Give slots back."""
        with self._lock:
            self._free.extend(slots)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)


class TileEngine:
    """Carries out the plan of one group.

    Parameters
    ----------
    plan
        What to read, in which order.
    loader
        Loads one unit.
    reader
        The loop and the decoding threads.
    turn
        The stream's turn to fetch.
    is_last
        Whether nothing of the stream comes after this group.

    Attributes
    ----------
    plan
        As above.
    """

    def __init__(
        self, plan: GroupPlan, loader: UnitLoader, reader: Reader, turn: Turn, *, is_last: bool
    ) -> None:
        self.plan = plan
        self._loader = loader
        self._reader = reader
        self._turn, self._is_last = turn, is_last
        self._arena = np.empty((0, 0), np.float32)
        self._n_uncut = len(plan.order.batches)
        self._slot_of = np.full(plan.grid.n_tiles, -1, dtype=np.int64)
        self._uses = np.bincount(plan.order.batch_tiles.items, minlength=plan.grid.n_tiles)
        self._waiting_for = np.bincount(plan.order.unit_batches.items, minlength=len(plan.order.batches))
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._patience_s = STARVING_S
        self._uncut: dict[int, None] = {}
        self._cut_early_as: dict[int, NDArray[np.float32]] = {}
        self._slots = Slots(plan.n_slots, reader.loop)
        self._task: asyncio.Task[None] | None = None
        self._ready: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def start(self) -> None:
        """Begin to fetch, as soon as it is the stream's turn."""

        async def begin() -> None:
            self._task = self._reader.loop.create_task(self._fetch_all())

        self._reader.run(begin())

    def stop(self) -> None:
        """Stop fetching, and wait until it has stopped."""

        async def end() -> None:
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])
            if self._n_uncut > len(self._uncut):
                self._turn.leave()  # some batches will never be cut

        if not self._reader.is_gone:
            self._reader.run(end())

    def next_batch(self) -> int:
        """Wait for a batch whose tiles are all there.

        Raises
        ------
        ReadError
            Fetching or decoding has failed.
        """
        while True:
            try:
                item = self._ready.get(timeout=self._patience_s)
            except queue.Empty:
                if self._slots.are_awaited:
                    self._cut_early()
                continue
            if isinstance(item, BaseException):
                raise item
            self._uncut[item] = None
            return item

    def _cut_early(self) -> None:
        """Cut the batch that has been handed out first, because its consumer seems to collect batches.

        Without this, a consumer that cuts only when it has all batches would wait for ever.
        """
        with self._claiming:
            batch = next(iter(self._uncut), None)
            if batch is not None:
                self._patience_s = STARVING_S / 100
                n_views = len(self.plan.order.batches[batch])
                out = array_to_cut_into(n_views, self.plan.regions.size_px, None)
                self._cut_now(batch, out)
                self._cut_early_as[batch] = out
                del self._uncut[batch]

    def cut(self, batch: int, out: NDArray[np.float32] | None) -> NDArray[np.float32]:
        """Cut the boxes of a batch, in any thread, and give its tiles free; once."""
        n_views, size_px = len(self.plan.order.batches[batch]), self.plan.regions.size_px
        if out is not None:
            array_to_cut_into(n_views, size_px, out)
        with self._claiming:
            early = self._cut_early_as.pop(batch, None)
            if early is None:
                if batch not in self._uncut:
                    raise RuntimeError("a batch can be cut only once")
                del self._uncut[batch]
        if early is not None and out is None:
            return early
        out = array_to_cut_into(n_views, size_px, out)
        if early is not None:
            out[:] = early
        else:
            self._cut_now(batch, out)
        return out

    def _cut_now(self, batch: int, out: NDArray[np.float32]) -> None:
        from portal_extract.kernels.cut import cut_boxes

        plan = self.plan
        places = plan.regions.places[plan.order.batches[batch]]
        cut_boxes(self._arena, self._slot_of, places, plan.grid.geometry, out)
        self._release(batch)

    def _release(self, batch: int) -> None:
        tiles = self.plan.order.batch_tiles[batch]
        with self._lock:
            self._uses[tiles] -= 1
            unused = tiles[self._uses[tiles] == 0]
            slots = self._slot_of[unused].tolist()
            self._slot_of[unused] = -1
            self._n_uncut -= 1
            is_last_cut = self._n_uncut == 0
        self._slots.give(slots)
        if is_last_cut and self._is_last:
            self._reader.call(self._turn.leave)

    async def _fetch_all(self) -> None:
        plan = self.plan
        try:
            # what comes after this group is not planned yet: it may need all the memory there is
            await self._turn.enter(plan.memory_bytes if self._is_last else self._turn.most_bytes)
            self._arena = np.empty((plan.n_slots, plan.grid.tile_items), np.float32)
            async with asyncio.TaskGroup() as group:
                await self._start_units(group)
        except* Exception as errors:
            self._ready.put(_first(errors))

    async def _start_units(self, group: asyncio.TaskGroup) -> None:
        plan = self.plan
        window = Window(plan.window_bytes)
        for unit in range(len(plan.order.units)):
            tiles = plan.order.units[unit]
            slots = np.array(await self._slots.take(len(tiles)), dtype=np.int64)
            self._slot_of[tiles] = slots
            size = int(plan.held_bytes[unit])
            await window.enter(size)
            task = group.create_task(self._load(unit, tiles, slots))
            task.add_done_callback(partial(window.leave, size))
        if self._is_last:
            self._turn.pass_on()

    async def _load(self, unit: int, tiles: NDArray[np.int64], slots: NDArray[np.int64]) -> None:
        plan = self.plan
        chunk = int(plan.order.unit_chunks[unit])
        layout, position = plan.regions.locate(chunk)
        target = TileTarget(layout, self._arena, tiles - chunk * plan.grid.tiles_per_chunk, slots)
        whole = bool(plan.whole[unit])
        if self._loader.is_waiting:
            await self._loader.load(layout, position, target, whole=whole)
        else:
            await self._reader.decode(self._load_now, layout, position, target, whole)
        batches = plan.order.unit_batches[unit]
        self._waiting_for[batches] -= 1
        for batch in batches[self._waiting_for[batches] == 0].tolist():
            self._ready.put(batch)

    def _load_now(
        self, layout: ArrayLayout, position: tuple[int, int, int], target: TileTarget, whole: bool
    ) -> None:
        finish(self._loader.load(layout, position, target, whole=whole))


class Window:
    """Bounds the stored bytes held at one time; entered by one task, left by many."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._changed = asyncio.Event()

    async def enter(self, size: int) -> None:
        """Wait for room, and take it."""
        while self._free < size:
            self._changed.clear()
            await self._changed.wait()
        self._free -= size

    def leave(self, size: int, _: object = None) -> None:
        """Give room back."""
        self._free += size
        self._changed.set()


def _first(errors: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
