"""Streams that fail: the others go on, what runs is finished, and nothing hangs."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from portal_extract.errors import OutputError, ReadError
from portal_extract.images.boxes import PatchBatch
from portal_extract.options import RunOptions
from portal_extract.running.ahead import Opener
from portal_extract.running.engine import Opened, run_streams
from portal_extract.running.events import Note
from portal_extract.running.guard import Guard
from portal_extract.running.schedulers import Place, run_on_threads, run_units
from portal_extract.running.units import UnitResult, from_runs, to_runs


class Stream:
    """Batches of one view each; slots must be given back by cutting before more come."""

    def __init__(self, n, fail_after=None, slots=2):
        self.n, self.fail_after, self.closed, self.given = n, fail_after, False, 0
        self.slots = threading.Semaphore(slots)

    def prepare(self):
        self.prepared = True

    def __iter__(self):
        return self

    def __next__(self):
        if self.given == self.fail_after:
            raise ReadError("store away")
        if self.given == self.n:
            raise StopIteration
        assert self.slots.acquire(timeout=20), "a batch was never cut: the reader starves"
        views = np.array([self.given])
        self.given += 1

        def cut(out):
            self.slots.release()
            return np.zeros((1, 2, 2), np.float32)

        return PatchBatch(views, cut)

    def close(self):
        self.closed = True


class Consumer:
    def __init__(self, fail_at=None, error=ReadError, seconds=0.0):
        self.fail_at, self.error, self.seconds = fail_at, error, seconds
        self.seen, self.finished, self.bad, self.lock = [], 0, {}, threading.Lock()

    def consume(self, which, patches):
        time.sleep(self.seconds)
        with self.lock:
            if self.fail_at in which:
                raise self.error(f"view {self.fail_at}")
            self.seen += which.tolist()

    def finish(self):
        if self.fail_at == "finish":
            raise self.error("at the end")
        self.finished += 1


def run(pairs, workers, go_on=True, early=False):
    """Run streams; give what ``failed`` was told."""
    told = []

    def failed(number, error):
        told.append((number, str(error)))
        return go_on

    opened = []

    def opener(number, pair):
        def open_pair():
            opened.append(number)
            if isinstance(pair, Exception):
                raise pair
            return Opened(*pair)

        return Opener(open_pair, early)

    run_streams((opener(n, pair) for n, pair in enumerate(pairs)), workers, failed)
    return told, opened


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    "bad",
    [
        lambda: (Stream(40), Consumer(fail_at=7)),
        lambda: (Stream(40, fail_after=5), Consumer()),
        lambda: (Stream(40, fail_after=0), Consumer()),
        lambda: (Stream(40), Consumer(fail_at="finish")),
        lambda: ReadError("no such image"),
    ],
    ids=["computing", "reading", "first read", "finishing", "opening"],
)
def test_one_bad_stream_does_not_stop_the_others(workers, bad, early):
    pairs = [(Stream(20), Consumer()), bad(), (Stream(30), Consumer()), (Stream(0), Consumer())]
    told, opened = run(pairs, workers, early=early)
    assert [number for number, _ in told] == [1]
    assert opened == [0, 1, 2, 3]
    for number in (0, 2, 3):
        stream, consumer = pairs[number]
        assert sorted(consumer.seen) == list(range(stream.n))
        assert consumer.finished == 1
        assert stream.closed
    if isinstance(pairs[1], tuple):
        assert pairs[1][0].closed
        assert pairs[1][1].finished == 0


def test_stop_finishes_what_runs_and_opens_no_more():
    pairs = [
        (Stream(30), Consumer(seconds=0.001)),
        (Stream(40), Consumer(fail_at=0)),
        (Stream(5), Consumer()),
    ]
    told, opened = run(pairs, 2, go_on=False)
    assert told == [(1, "view 0")]
    assert opened == [0, 1]
    assert pairs[0][1].finished == 1
    assert pairs[2][0].given == 0


def test_a_failure_is_told_while_a_later_stream_is_read():
    """Late computations of one stream may fail when the next one is being read; that one is finished."""
    first = (Stream(3, slots=9), Consumer(fail_at=2, seconds=0.02))
    second, third = (Stream(50, slots=9), Consumer()), (Stream(5), Consumer())
    told, opened = run([first, second, third], 1, go_on=False)
    assert told == [(0, "view 2")]
    assert opened == [0, 1]
    assert second[1].finished == 1


def test_the_next_stream_is_opened_while_one_is_read():
    class Patient(Stream):
        def __next__(self):
            while self.given == 3 and not second.prepared:
                time.sleep(0.001)
            return super().__next__()

    second, third = Stream(5), Stream(5)
    second.prepared = third.prepared = False
    pairs = [(Patient(20, slots=99), Consumer()), (second, Consumer()), (third, Consumer())]
    told, opened = run(pairs, 1, early=True)
    assert opened == [0, 1, 2]
    assert not told
    # without leave to do so it is not
    second.prepared = True
    log = []

    class Noting(Stream):
        def prepare(self):
            log.append(first.given)

    first = Stream(20)
    run([(first, Consumer()), (Noting(5), Consumer())], 1)
    assert log == [20]


def test_a_stream_that_was_opened_for_nothing_is_closed():
    pairs = [(Stream(40), Consumer(fail_at=0)), (Stream(5), Consumer())]
    told, opened = run(pairs, 2, go_on=False, early=True)
    assert told == [(0, "view 0")]
    assert pairs[1][0].given == 0
    deadline = time.monotonic() + 10
    while opened == [0, 1] and not pairs[1][0].closed:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_early_opening_that_hangs_holds_nothing_up():
    """As where a store does not answer: the thread ends when the reader that it waits for is closed."""
    hanging, released = threading.Event(), threading.Event()

    class Hanging(Stream):
        def prepare(self):
            hanging.set()
            released.wait(60)

    class Interrupted(Stream):
        def __next__(self):
            if self.given == 5:
                assert hanging.wait(20)
                raise KeyboardInterrupt
            return super().__next__()

    first, second = Interrupted(100, slots=99), Hanging(5)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run([(first, Consumer()), (second, Consumer())], 2, early=True)
    assert time.monotonic() - start < 10
    released.set()
    while not second.closed:
        assert time.monotonic() - start < 30
        time.sleep(0.01)


@pytest.mark.parametrize("early", [False, True])
def test_many_failures_are_all_told(early):
    pairs = [(Stream(9), Consumer(fail_at=n % 9 if n % 2 else None)) for n in range(20)]
    told, _ = run(pairs, 3, early=early)
    assert sorted(number for number, _ in told) == list(range(1, 20, 2))
    assert sum(consumer.finished for _, consumer in pairs) == 10


def test_what_the_callback_raises_ends_everything():
    pairs = [(Stream(1000), Consumer(fail_at=3)), (Stream(5), Consumer())]

    def failed(number, error):
        raise OutputError("the disk is full")

    with pytest.raises(OutputError, match="the disk is full"):
        run_streams([Opener(lambda p=p: Opened(*p)) for p in pairs], 2, failed)
    assert pairs[0][0].closed
    assert pairs[1][0].given == 0


def test_an_interruption_ends_everything_soon():
    """Control-C arrives in the thread that reads."""

    class Interrupted(Stream):
        def __next__(self):
            if self.given == 5:
                raise KeyboardInterrupt
            return super().__next__()

    stream, consumer = Interrupted(1000, slots=99), Consumer(seconds=0.01)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_streams([Opener(lambda: Opened(stream, consumer))], 2, lambda number, error: True)
    assert time.monotonic() - start < 10
    assert stream.closed
    assert consumer.finished == 0


# ---------------------------------------------------------------------------------- units on threads


class Task:
    may_open_early = True

    def __init__(self, number, stream=None, consumer=None):
        self.particles, self.label = (number,), f"TS_{number}"
        self.stream, self.consumer = stream or Stream(3), consumer or Consumer()

    def open(self, run, workers, observer, reader):
        return self.stream, self.consumer


def units(tasks, on_error):
    notes, done = [], []
    place = Place(RunOptions(workers=2, on_error=on_error))

    def observe(event):
        if isinstance(event, Note):
            notes.append(event.text)

    failures = run_units(tasks, place, Guard("", ""), observe, done.append)
    return failures, done, notes


def test_failed_units_are_named_with_their_cause():
    tasks = [Task(n, consumer=Consumer(fail_at=1 if n == 2 else None)) for n in range(5)]
    failures, done, notes = units(tasks, "skip")
    assert [(f.label, f.particles, f.cause) for f in failures] == [("TS_2", (2,), "view 1")]
    assert sorted(result.particles[0] for result in done) == [0, 1, 3, 4]
    assert notes == ["TS_2: 1 particles failed: view 1"]
    tasks = [Task(n, consumer=Consumer(fail_at=1 if n == 0 else None, seconds=0.01)) for n in range(50)]
    failures, done, _ = units(tasks, "stop")
    assert len(failures) == 1
    assert len(done) < 25


def test_errors_that_nobody_foresaw_are_named_with_their_type():
    failures, _, _ = units([Task(0, consumer=Consumer(fail_at=0, error=ZeroDivisionError)), Task(1)], "skip")
    assert failures[0].cause == "ZeroDivisionError: view 0"


@pytest.mark.parametrize("fail_at", [1, "finish"])
def test_errors_of_writing_are_not_skipped(fail_at):
    class Full(OSError):
        def __init__(self, text):
            super().__init__(28, "No space left on device", "out/1.mrcs")

    tasks = [Task(0), Task(1, consumer=Consumer(fail_at=fail_at, error=Full)), Task(2)]
    with pytest.raises(OutputError, match=r"TS_1: out/1\.mrcs: results cannot be written: No space left"):
        units(tasks, "skip")


def test_without_a_callback_the_first_error_surfaces():
    with pytest.raises(ReadError, match="view 1"):
        run_on_threads(
            [Task(0, consumer=Consumer(fail_at=1))], Place(RunOptions(workers=1)), print, lambda r: None
        )


def test_runs_of_numbers():
    for numbers in ((), (5,), (0, 1, 2, 7, 8, 3), (3, 2, 1)):
        assert from_runs(to_runs(numbers)) == numbers
    assert to_runs(range(300)) == [[0, 300]]
    result = UnitResult("TS", (1, 2, 9), {2: "constant stack"}, 3, 4, 5)
    assert UnitResult.from_dict(result.to_dict()) == result
