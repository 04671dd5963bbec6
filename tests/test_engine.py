"""The engine: every patch once, errors surface, nothing hangs."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from portal_extract.images.boxes import PatchBatch
from portal_extract.running.ahead import Opener
from portal_extract.running.engine import Opened, run_streams


class Recorder:
    def __init__(self, fail_at=None):
        self.seen, self.finished, self.fail_at = [], 0, fail_at
        self.lock = threading.Lock()

    def consume(self, which, patches):
        with self.lock:
            if self.fail_at in which:
                raise ValueError(f"view {self.fail_at}")
            self.seen += which.tolist()
            assert np.all(patches[:, 0, 0] == which)

    def finish(self):
        self.finished += 1


class Stream:
    def __init__(self, n, fail_after=None):
        self.n, self.fail_after, self.closed, self.given = n, fail_after, False, 0

    def prepare(self):
        pass

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.fail_after:
            raise OSError("store away")
        if self.given == self.n:
            raise StopIteration
        views = np.arange(3) + 3 * self.given
        self.given += 1

        def cut(out):
            return np.repeat(views, 4).reshape(3, 2, 2).astype(np.float32)

        return PatchBatch(views, cut)

    def close(self):
        self.closed = True


@pytest.mark.parametrize("workers", [1, 3])
def test_every_view_reaches_its_consumer_once(workers):
    pairs = [(Stream(n), Recorder()) for n in (5, 0, 40)]
    run_streams([Opener(lambda p=p: Opened(*p)) for p in pairs], workers)
    for stream, consumer in pairs:
        assert sorted(consumer.seen) == list(range(3 * stream.n))
        assert consumer.finished == 1
        assert stream.closed


def test_error_of_a_consumer_stops_the_run_and_closes_the_stream():
    stream, consumer = Stream(10_000), Recorder(fail_at=30)
    with pytest.raises(ValueError, match="view 30"):
        run_streams([Opener(lambda: Opened(stream, consumer))], 2)
    assert stream.closed
    assert stream.given < 10_000
    assert consumer.finished == 0


def test_error_of_a_stream_surfaces():
    stream, consumer = Stream(10, fail_after=4), Recorder()
    with pytest.raises(OSError, match="store away"):
        run_streams([Opener(lambda: Opened(stream, consumer))], 2)
    assert stream.closed
    assert consumer.finished == 0
