"""How the memory of a process is divided, and whether there is enough of it."""

from __future__ import annotations

from dataclasses import dataclass

from portal_extract.errors import MemoryBudgetError
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.options import GIB, RunOptions
from portal_extract.reconstruction.accumulate import memory_bytes
from portal_extract.reconstruction.options import ReconstructOptions

_BATCH_BYTES = 2 * MIB
_MOST_VIEWS, _FEWEST_VIEWS, _VIEWS_AHEAD = 64, 4, 128
#: what the reader needs at least; tilt images in large chunks may need more, which it says itself
_LEAST_READING = 48 * MIB
_PER_THREAD = 4


@dataclass(frozen=True)
class Budget:
    """How the memory is divided.

    Attributes
    ----------
    batch_views
        Views that are transformed together.
    room
        Batches that may be under way: read, transformed or waiting for those before them.
    n_slabs
        Parts that the sums are cut into, for several threads to fill.
    reading
        Options of the reader.
    held_bytes
        Memory of sums, tables and batches; what the reader holds comes on top.
    predicted_bytes
        What is needed at least: the larger of accumulation and finalisation.
    """

    batch_views: int
    room: int
    n_slabs: int
    reading: ReadOptions
    held_bytes: int
    predicted_bytes: int


def plan_memory(
    options: ReconstructOptions, n_halves: int, n_tilts: int, run: RunOptions, workers: int
) -> Budget:
    """Divide the memory of a process.

    One accumulator for each half set is all that grows with the cube of the box; batches become smaller where
    memory is short.

    Parameters
    ----------
    options
        Box and binning.
    n_halves
        1 or 2.
    n_tilts
        Tilt images of the largest tilt series.
    run
        Memory and requests.
    workers
        Computing threads of the process.

    Raises
    ------
    MemoryBudgetError
        Not enough, with what is needed.
    """
    finalising = memory_bytes(options.box_size, n_halves, options.has_symmetry, options.crop_size)
    views = _MOST_VIEWS
    while True:
        held = _sum_bytes(options, n_halves) + _table_bytes(options, n_tilts)
        batch_views, computing = _computing(options, views, workers)
        left = run.memory_bytes - held - computing
        if left >= max(_LEAST_READING, run.memory_bytes // 4) or batch_views == _FEWEST_VIEWS:
            break
        views = max(_FEWEST_VIEWS, views // 2)
    needed = max(finalising, held + computing + _LEAST_READING)
    if needed > run.memory_bytes:
        raise MemoryBudgetError(
            f"--box-size {options.box_size}: sums and maps of this box need {_gib(needed)} with "
            f"{workers} workers, --memory is {_gib(run.memory_bytes)}; raise --memory to "
            f"{-(-needed // (GIB // 4)) / 4:g}GiB, or use a smaller --box-size, a larger --bin or fewer "
            "--workers"
        )
    reading = ReadOptions.of_run(run, left, batch_views, workers, in_order=True)
    room, n_slabs = _room(workers, batch_views), _PER_THREAD * workers
    return Budget(batch_views, room, n_slabs, reading, held + computing, max(needed, finalising))


def _sum_bytes(options: ReconstructOptions, n_halves: int) -> int:
    box = options.box_size
    return n_halves * 24 * box * box * (box // 2 + 1)


def _table_bytes(options: ReconstructOptions, n_tilts: int) -> int:
    """Give the size of the tables of two tilt series: dose and whitening in single precision."""
    image = options.box_size * (options.box_size // 2 + 1)
    return 2 * n_tilts * image * (4 + 4 * options.whiten)


def _computing(options: ReconstructOptions, most_views: int, workers: int) -> tuple[int, int]:
    """Give the views per batch, and the memory of the batches under way."""
    patch, half = 4 * options.unbinned_box**2, options.box_size * (options.box_size // 2 + 1)
    views = min(most_views, max(_FEWEST_VIEWS, _BATCH_BYTES // patch))
    # in a thread's hands: a patch, its transform and intermediates, slices and a copy of them by half set;
    # waiting: slices alone
    return views, views * (workers * (4 * patch + 24 * half) + _room(workers, views) * 12 * half)


def _room(workers: int, batch_views: int) -> int:
    """Give the batches under way: enough to keep the threads busy, and to insert many views at a time."""
    return max(4 * workers, -(-_VIEWS_AHEAD // batch_views))


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / GIB:.2f} GiB"
