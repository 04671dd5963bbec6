"""How pixels are read: memory, requests, patience. Nothing here changes a pixel."""

from __future__ import annotations

import os
from dataclasses import dataclass

from portal_extract.errors import UsageError
from portal_extract.options import GIB, KIB, RunOptions, Strategy

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a stream reads stored pixels.

    Attributes
    ----------
    memory_bytes
        Bound for the stored and decoded pixels that the reader holds at one time.
    batch_views
        Most boxes handed out in one batch.
    requests_in_flight
        Concurrent requests to the store; fewer are made while the store asks to slow down.
    decode_threads
        Threads that decompress; None for one per core.
    strategy
        Fetch whole chunks, only the blocks that some box touches, or whatever is cheaper for each chunk.
    request_cost_bytes
        What one more request costs, in bytes that could have been transferred meanwhile. The default is
        20 ms of latency at 100 MB/s, shared by 32 requests in flight.
    gap_bytes
        Ranges of one object closer than this are fetched in one request.
    attempts
        Attempts to fetch one object or range before giving up.
    backoff_s, backoff_limit_s
        Mean pause before the second attempt, and the longest one; it doubles in between.
    connect_timeout_s
        Longest time to connect.
    stall_timeout_s
        An attempt fails when no byte arrives for this long.
    deadline_s
        Longest time for one object or range, all attempts and pauses together; more where bytes do
        arrive, slowly.
    hedge_after_s
        A second copy of a request is sent when no byte arrives for this long, as one of those in flight,
        where the store tells of arriving bytes; None for never.
    cache_dir
        Folder for stored blocks that were fetched over a network (of Blosc chunks, and rows of MRC files),
        or None for no cache.
    cache_bytes
        Most bytes kept in ``cache_dir``.
    in_order
        Hand batches out in the order of the plan, however late one of them is; where sums depend on it.
    process_bytes
        Memory of the whole process, of which ``memory_bytes`` is the reader's share; None if that is all.
    """

    memory_bytes: int = GIB
    batch_views: int = 256
    requests_in_flight: int = 32
    decode_threads: int | None = None
    strategy: Strategy = "auto"
    request_cost_bytes: int = 64 * KIB
    gap_bytes: int = 16 * KIB
    attempts: int = 10
    backoff_s: float = 0.25
    backoff_limit_s: float = 8.0
    connect_timeout_s: float = 10.0
    stall_timeout_s: float = 15.0
    deadline_s: float = 120.0
    hedge_after_s: float | None = 3.0
    cache_dir: str | None = None
    cache_bytes: int = 20 * GIB
    in_order: bool = False
    process_bytes: int | None = None

    @classmethod
    def of_run(
        cls, run: RunOptions, memory_bytes: int, batch_views: int, workers: int, *, in_order: bool = False
    ) -> ReadOptions:
        """Take from the options of a run what concerns reading.

        Parameters
        ----------
        run
            Requests, strategy and cache.
        memory_bytes
            The reader's share of the memory.
        batch_views, in_order
            See :class:`ReadOptions`.
        workers
            Number of decoding threads.
        """
        return cls(
            memory_bytes=memory_bytes,
            batch_views=batch_views,
            requests_in_flight=run.requests_in_flight,
            decode_threads=workers,
            strategy=run.strategy,
            request_cost_bytes=run.request_cost_bytes,
            gap_bytes=run.gap_bytes,
            cache_dir=run.cache_dir,
            cache_bytes=run.cache_bytes,
            in_order=in_order,
            process_bytes=run.memory_bytes,
        )

    @property
    def threads(self) -> int:
        """Number of decoding threads."""
        if self.decode_threads:
            return self.decode_threads
        if hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
        return os.cpu_count() or 1

    def check(self) -> None:
        """Refuse values that cannot be honoured.

        Raises
        ------
        UsageError
            A count below 1, a negative size, an unknown strategy, or a cache of blocks for whole chunks.
        """
        for name in ("memory_bytes", "batch_views", "requests_in_flight", "attempts"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}: must be at least 1")
        for name in ("request_cost_bytes", "gap_bytes", "cache_bytes"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}: must not be negative")
        if self.strategy not in ("auto", "chunks", "blocks"):
            raise UsageError(f"strategy {self.strategy!r} is unknown: use auto, chunks or blocks")
        if self.strategy == "chunks" and self.cache_dir is not None:
            raise UsageError("cache_dir keeps blocks, not whole chunks: use another strategy")
