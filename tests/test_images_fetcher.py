"""The fetcher alone, over a store that does what it is told."""

from __future__ import annotations

import asyncio

import pytest

from portal_extract.errors import AccessDeniedError, ChunkReadError
from portal_extract.images.fetcher import Fetcher, RequestLimit
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import AttemptError, Body, MissingObjectError, Progress
from portal_extract.running.events import BytesRead


class Scripted:
    """Answers attempt after attempt as told; the last answer repeats."""

    tells_progress = True

    def __init__(self, *answers: Body | Exception | float) -> None:
        self.answers = answers
        self.attempts = 0
        self.active = self.most_active = 0

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        progress: Progress | None = None,
        unless: str | None = None,
    ) -> Body:
        answer = self.answers[min(self.attempts, len(self.answers) - 1)]
        self.attempts += 1
        self.active += 1
        self.most_active = max(self.most_active, self.active)
        try:
            await asyncio.sleep(answer if isinstance(answer, float) else 0.001)
        finally:
            self.active -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Body) else Body(b"late", start, 4)

    async def close(self) -> None:
        pass


QUICK = ReadOptions(attempts=4, backoff_s=0.001, hedge_after_s=None)
GOOD = Body(b"good", 0, 4)


def fetch(store: Scripted, reading: ReadOptions = QUICK, stop: int | None = 4) -> Body:
    return asyncio.run(Fetcher(store, reading).get("uri", 0, stop))


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_passing_failures_are_repeated_and_counted(failures: int) -> None:
    store = Scripted(*[AttemptError("no")] * failures, GOOD)
    events: list[BytesRead] = []
    assert asyncio.run(Fetcher(store, QUICK, events.append).get("uri", 0, 4)).data == b"good"  # type: ignore[arg-type]
    assert sum(e.n_requests for e in events) == failures + 1
    assert sum(e.n_retries for e in events) == failures
    assert sum(e.n_bytes for e in events) == 4


def test_the_last_cause_is_told() -> None:
    store = Scripted(AttemptError("first"), AttemptError("second"))
    with pytest.raises(ChunkReadError, match="uri bytes 0-3: not readable after 4 attempts: second"):
        fetch(store)
    store = Scripted(AttemptError("lasting", is_lasting=True))
    with pytest.raises(ChunkReadError, match="after 3 attempts: lasting"):
        fetch(store)


@pytest.mark.parametrize("error", [AccessDeniedError("no"), MissingObjectError("no")])
def test_refusals_and_missing_objects_are_final(error: Exception) -> None:
    store = Scripted(error)
    with pytest.raises(type(error)):
        fetch(store)
    assert store.attempts == 1


def test_a_body_that_ends_early_is_an_error() -> None:
    with pytest.raises(ChunkReadError, match="the object ends after 2 bytes"):
        fetch(Scripted(Body(b"go", 0, 2)))
    short = asyncio.run(Fetcher(Scripted(Body(b"go", 0, 2)), QUICK).get("uri", 0, 4, may_be_shorter=True))
    assert short.data == b"go"
    with pytest.raises(ChunkReadError, match="ends after 2"):
        asyncio.run(Fetcher(Scripted(Body(b"go", 0, 9)), QUICK).get("uri", 0, 4, may_be_shorter=True))


def test_a_second_copy_of_a_stalled_request_wins() -> None:
    store = Scripted(60.0, GOOD)
    reading = ReadOptions(hedge_after_s=0.02)
    assert fetch(store, reading).data == b"good"
    assert store.attempts == 2
    assert store.active == 0


def test_second_copies_keep_to_the_limit() -> None:
    async def run(in_flight: int) -> tuple[Scripted, list[Body]]:
        # the first stalls, and all others are quick
        store = Scripted(60.0, *[0.02] * 30)
        reading = ReadOptions(hedge_after_s=0.05, requests_in_flight=in_flight, deadline_s=0.6)
        fetcher = Fetcher(store, reading)
        bodies = await asyncio.gather(*(fetcher.get("uri", 0, 4) for _ in range(20)), return_exceptions=True)
        assert fetcher.limit._active == fetcher._hedges == 0
        return store, bodies

    store, bodies = asyncio.run(run(2))
    assert all(isinstance(body, Body) for body in bodies)
    assert store.most_active == 2
    assert store.attempts == 21
    # there is no room for a second copy of the only request
    store, bodies = asyncio.run(run(1))
    assert isinstance(bodies[0], ChunkReadError)
    assert store.most_active == 1


def test_a_request_that_goes_on_needs_no_second_copy() -> None:
    class Pausing(Scripted):
        async def get(self, uri, start=0, stop=None, etag=None, progress=None, unless=None):
            self.attempts += 1
            for number in range(5):
                await asyncio.sleep(0.12 if self.attempts == 1 and number == 0 else 0.03)
                progress.advance(1)
            return GOOD

    async def run() -> int:
        store = Pausing()
        fetcher = Fetcher(store, ReadOptions(hedge_after_s=0.08, requests_in_flight=2))
        async with asyncio.TaskGroup() as group:
            group.create_task(fetcher.get("uri", 0, 4))
            turn = fetcher.limit.turn()  # someone else, who is done when the stalled request goes on
            group.create_task(fetcher.get("uri", 0, 4))
            await asyncio.sleep(0.14)
            fetcher.limit.give_up(turn)
        assert fetcher.limit._active == fetcher._hedges == 0
        return store.attempts

    assert asyncio.run(run()) == 2


def test_a_store_that_tells_no_progress_gets_no_second_copies() -> None:
    store = Scripted(0.2, GOOD)
    store.tells_progress = False
    assert fetch(store, ReadOptions(hedge_after_s=0.02)).data == b"late"
    assert store.attempts == 1


def test_when_both_copies_fail_the_attempt_fails() -> None:
    store = Scripted(0.1, AttemptError("second"), GOOD)
    store.answers = (0.05, AttemptError("second"))
    assert fetch(store, ReadOptions(hedge_after_s=0.01)).data == b"late"


def test_the_deadline_covers_attempts_and_pauses_but_not_the_queue() -> None:
    with pytest.raises(ChunkReadError, match=r"after 1 attempt: no complete answer.*given up after 0\.05 s"):
        fetch(Scripted(60.0), ReadOptions(deadline_s=0.05, hedge_after_s=None))
    with pytest.raises(ChunkReadError, match="given up"):
        fetch(Scripted(AttemptError("no")), ReadOptions(deadline_s=0.1, backoff_s=0.04, attempts=99))

    async def queue() -> list[Body]:
        fetcher = Fetcher(Scripted(0.03), ReadOptions(deadline_s=0.2, requests_in_flight=1))
        return await asyncio.gather(*(fetcher.get("uri", 0, 4) for _ in range(12)))

    assert len(asyncio.run(queue())) == 12


def test_the_limit_holds_adapts_and_survives_cancellation() -> None:
    async def run() -> tuple[int, int]:
        store = Scripted(0.005)
        fetcher = Fetcher(store, ReadOptions(requests_in_flight=5))
        tasks = [asyncio.create_task(fetcher.get("uri", 0, 4)) for _ in range(40)]
        await asyncio.sleep(0.012)
        for task in tasks[10:20]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert store.most_active == 5
        async with asyncio.timeout(5):
            await asyncio.gather(*(fetcher.get("uri", 0, 4) for _ in range(10)))
        before = fetcher.limit.allowed
        for second in range(20):
            fetcher.limit.slow_down(float(second))
            fetcher.limit.slow_down(second + 0.5)  # at most once a second
        slow = fetcher.limit.allowed
        for _ in range(100):
            fetcher.limit.speed_up()
        assert fetcher.limit.allowed == before == 5
        return before, slow

    assert asyncio.run(run()) == (5, 1)


def test_one_decrease_is_gentle() -> None:
    limit = RequestLimit(32)
    limit.slow_down(0.0)
    assert limit.allowed == 22


def test_throttling_slows_down() -> None:
    async def run() -> int:
        store = Scripted(AttemptError("slow", is_throttled=True), GOOD)
        fetcher = Fetcher(store, ReadOptions(backoff_s=0.001, requests_in_flight=20))
        await fetcher.get("uri", 0, 4)
        return fetcher.limit.allowed

    assert asyncio.run(run()) == 14
