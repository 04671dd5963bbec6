"""What the fuzz tests share: quick failures, modest memory, damaged files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr.codecs
from hypothesis import HealthCheck, settings
from images_support import stack_of

from portal_extract.images.fetcher import Fetcher
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import read_tilt_region

MIB = 1 << 20
MISSING = 2**64 - 1
OPTIONS: dict[str, Any] = {
    "memory_bytes": 64 * MIB,
    "batch_views": 32,
    "decode_threads": 2,
    "attempts": 3,
    "connect_timeout_s": 2,
    "stall_timeout_s": 0.6,
    "deadline_s": 1.5,
    "hedge_after_s": 0.2,
}
QUICK = ReadOptions(**OPTIONS)
CODECS: dict[str, Any] = {
    "blosc": zarr.codecs.BloscCodec(cname="lz4", blocksize=128),
    "raw": None,
    "zstd": zarr.codecs.ZstdCodec(),
    "gzip": zarr.codecs.GzipCodec(),
}


@pytest.fixture(scope="module", autouse=True)
def impatient() -> Iterator[None]:
    """Do not pause between attempts; their number stays."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fetcher, "_pause_s", lambda self, attempt: 0.005)
        yield


def some(max_examples: int) -> Any:
    return settings(
        max_examples=max_examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@contextlib.contextmanager
def modest_memory(limit_bytes: int = 300 * MIB) -> Iterator[None]:
    """Memory does not grow by more, where the system tells."""

    def told(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = told("VmRSS")
    except OSError:
        yield
        return
    yield
    assert told("VmHWM") - before < limit_bytes


@contextlib.contextmanager
def replaced(files: dict[Path, bytes]) -> Iterator[None]:
    """Put other contents in place of files, for a while."""
    before = {path: path.read_bytes() if path.exists() else None for path in files}
    for path, content in files.items():
        path.write_bytes(content)
    try:
        yield
    finally:
        for path, old in before.items():
            path.unlink() if old is None else path.write_bytes(old)


def few_valued(shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels that compress."""
    return np.random.default_rng(3).integers(0, 50, shape).astype(np.float32)


def whole(uri: str, shape: tuple[int, int, int], reading: ReadOptions = QUICK, **storage: Any) -> np.ndarray:
    return read_tilt_region(
        stack_of(uri, shape, **storage), (0, shape[0]), (0, shape[1]), (0, shape[2]), reading
    )


def flip(content: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Replace bytes; places behind the end are counted from the start again."""
    damaged = bytearray(content)
    for place, value in changes:
        if damaged:
            damaged[place % len(damaged)] = value
    return bytes(damaged)
