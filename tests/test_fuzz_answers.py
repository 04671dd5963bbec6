"""Answers are untrusted: the right pixels, or one error that names the object, in a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import zarr
import zarr.codecs
from fuzz_support import (
    MIB,
    QUICK,
    few_valued,
    impatient,
    modest_memory,
    whole,
)
from images_support import blosc, write_zarr2
from lying_server import LIES, Honest, LyingServer

from portal_extract.errors import ReadError
from portal_extract.images.fetcher import Fetcher
from portal_extract.images.store import AttemptError, Body
from portal_extract.relion_io.mrc import write_mrc

pytestmark = [pytest.mark.timeout(120), pytest.mark.filterwarnings("ignore:Numcodecs codecs")]
__all__ = ["impatient"]


LIED_SHAPE = (2, 40, 60)
LIED_KINDS = ["blosc.zarr", "raw.zarr", "sharded.zarr", "stack.mrc"]
#: with these nothing is wrong that matters
HARMLESS = {"the truth", "whole objects instead of parts", "headers in another alphabet"}
#: these take their time
SLOW = [name for name in LIES if "endless" in name or "stalls" in name]
CASES = [
    (name, kind)
    for name in LIES
    for kind in LIED_KINDS
    if name not in SLOW or kind in ("blosc.zarr", "stack.mrc")
]


@pytest.fixture(scope="module")
def liar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LyingServer]:
    root, pixels = tmp_path_factory.mktemp("lied"), few_valued(LIED_SHAPE)
    write_zarr2(root / "blosc.zarr", pixels, (1, 40, 32), blosc(block_bytes=512))
    write_zarr2(root / "raw.zarr", pixels, (1, 16, 24), None)
    path, shards = root / "sharded.zarr", (1, 40, 60)
    array = zarr.create_array(path, shape=LIED_SHAPE, chunks=(1, 20, 20), shards=shards, dtype="f4")
    array[:] = pixels
    write_mrc(root / "stack.mrc", pixels, 1.0, kind="stack")
    with LyingServer(root) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def is_data(honest: Honest) -> bool:
    return not honest.path.endswith((".zattrs", ".zarray", "zarr.json")) and honest.stop != 1024


class FirstTime:
    """Whether a part is asked for the first time."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, int, int]] = set()
        self._lock = threading.Lock()

    def __call__(self, honest: Honest) -> bool:
        key = (honest.path, honest.start, honest.stop)
        with self._lock:
            is_new = key not in self._seen
            self._seen.add(key)
        return is_new


WHEN: dict[str, Callable[[], Callable[[Honest], bool]]] = {
    "of pixels": lambda: is_data,
    "always": lambda: lambda honest: True,
    "at first": FirstTime,
}


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_server_that_tells(liar: LyingServer, name: str, kind: str) -> None:
    expected = few_valued(LIED_SHAPE)
    for when, make in WHEN.items():
        if name in SLOW and when != "of pixels":
            continue
        liar.told, liar.applies = LIES[name], make()
        liar.n_lies = liar.most_sent = 0
        found, began_s = None, time.monotonic()
        with modest_memory():
            try:
                found = whole(f"s3://bucket/{kind}", LIED_SHAPE, endpoint_url=liar.url)
            except ReadError as error:
                assert kind in str(error)  # noqa: PT017
                assert len(str(error)) < 1000  # noqa: PT017
                assert str(error).isprintable()  # noqa: PT017
        assert time.monotonic() - began_s < 10, when
        assert liar.n_lies > 0, when
        assert liar.most_sent < 32 * MIB, when
        if found is not None:
            assert np.array_equal(found, expected), when
        elif name in HARMLESS:
            pytest.fail(f"{name} {when}: not read")


class FailingStore:
    """Fails when it is told to."""

    tells_progress = True

    def __init__(self) -> None:
        self.is_asked, self.shall_fail = asyncio.Event(), asyncio.Event()

    async def get(self, *given: Any, **more: Any) -> Body:
        self.is_asked.set()
        await self.shall_fail.wait()
        raise AttemptError("failed")


def test_a_failure_that_nobody_waits_for_any_more_is_not_printed() -> None:
    told: list[str] = []

    async def give_up(n_steps: int) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        store = FailingStore()
        task = asyncio.create_task(Fetcher(store, QUICK).get("a"))
        await store.is_asked.wait()
        store.shall_fail.set()
        for _ in range(n_steps):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        del task
        gc.collect()

    for n_steps in range(8):
        asyncio.run(asyncio.wait_for(give_up(n_steps), 10))
    assert told == []


@pytest.mark.parametrize("kind", ["raw.zarr", "stack.mrc"])
def test_a_server_that_never_tells_the_size_of_objects(liar: LyingServer, kind: str) -> None:
    """It may: the size of the object is an asterisk then."""
    liar.told, liar.applies = LIES["an object of unknown size"], lambda honest: honest.is_part
    found = whole(f"s3://bucket/{kind}", LIED_SHAPE, endpoint_url=liar.url)
    assert np.array_equal(found, few_valued(LIED_SHAPE))
