"""Other stores and other files: credentials, servers without ranges, MRC stacks of all kinds, processes."""

from __future__ import annotations

import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import mrcfile
import numpy as np
import pytest
from images_support import blosc, cut_fast, cut_slowly, make_pixels, random_boxes, stack_of, write_zarr2

from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import (
    AccessDeniedError,
    ImageFormatError,
    NotFoundError,
    ReadError,
    UnsupportedError,
)
from portal_extract.images.boxes import PatchBatch
from portal_extract.images.layout import read_shape
from portal_extract.images.lazy import open_lazily
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.images.stream import stream_patches, stream_tilt_images
from portal_extract.model import ImageStack

SHAPE = (5, 120, 100)
READING = ReadOptions(batch_views=16, attempts=3, backoff_s=0.01)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return make_pixels(SHAPE, "f4")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> Path:
    root = tmp_path_factory.mktemp("store")
    write_zarr2(root / "bucket" / "a.zarr", pixels, (1, 64, 64), blosc(block_bytes=256))
    write_zarr2(root / "bucket" / "raw.zarr", pixels, (2, 64, 64), None)
    with mrcfile.new(root / "bucket" / "a.mrc", pixels) as file:
        file.set_image_stack()
    return root


def test_s3_with_credentials_goes_through_s3fs(store: Path, pixels: np.ndarray) -> None:
    boxes = random_boxes(SHAPE, 40, 20)
    with ObjectServer(store) as server:
        login = {"key": "someone", "secret": "secret", "endpoint_url": server.url}
        for name in ("a.zarr", "raw.zarr", "a.mrc"):
            found = cut_fast(stack_of(f"s3://bucket/{name}", SHAPE, **login), boxes, READING)
            assert np.array_equal(found, cut_slowly(pixels, boxes))
        assert server.log.count("HEAD") == 0
        with pytest.raises(NotFoundError):
            read_shape("s3://bucket/none.zarr", login)


def test_any_fsspec_address(store: Path, pixels: np.ndarray) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(store / "bucket" / "a.zarr"), "/images-test/a.zarr", recursive=True)
    boxes = random_boxes(SHAPE, 40, 20)
    try:
        found = cut_fast(stack_of("memory://images-test/a.zarr", SHAPE), boxes, READING)
        assert np.array_equal(found, cut_slowly(pixels, boxes))
        # it does not tell versions, so that a cache could not be checked
        cached = replace(READING, cache_dir=str(store / "cache"))
        with pytest.raises(UnsupportedError, match=r"memory://images-test/a\.zarr.*leave out --cache-dir"):
            cut_fast(stack_of("memory://images-test/a.zarr", SHAPE), boxes, cached)
    finally:
        memory.rm("/images-test", recursive=True)
    with pytest.raises(ReadError, match="nonsense://"):
        read_shape("nonsense://a.zarr", {})


class _NoRanges(BaseHTTPRequestHandler):
    root: Path
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.root / self.path.lstrip("/")
        data = path.read_bytes() if path.is_file() else b""
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def no_ranges(store: Path) -> Iterator[str]:
    handler = type("Handler", (_NoRanges,), {"root": store / "bucket"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["a.zarr", "raw.zarr"])
@pytest.mark.parametrize("strategy", ["auto", "blocks"])
def test_a_server_without_ranges(no_ranges: str, pixels: np.ndarray, name: str, strategy: Any) -> None:
    boxes = random_boxes(SHAPE, 10, 20)
    reading = ReadOptions(batch_views=16, strategy=strategy, request_cost_bytes=0)
    found = cut_fast(stack_of(f"{no_ranges}/{name}", SHAPE), boxes, reading)
    assert np.array_equal(found, cut_slowly(pixels, boxes))


MRC_KINDS = [("int8", 0), ("int16", 1), ("float32", 2), ("uint16", 6), ("float16", 12)]


def write_raw_mrc(path: Path, pixels: np.ndarray, mode: int, order: str, extra: int) -> None:
    header = np.zeros(256, dtype=f"{order}i4")
    header[:4] = pixels.shape[2], pixels.shape[1], pixels.shape[0], mode
    header[7:10] = pixels.shape[2], pixels.shape[1], 1
    header[10:16].view(f"{order}f4")[:] = *pixels.shape[:0:-1], 1, 90, 90, 90
    header[16:19] = 1, 2, 3
    header[23] = extra
    data = bytearray(header.tobytes())
    data[208:212] = b"MAP "
    data[212:216] = b"\x44\x44\0\0" if order == "<" else b"\x11\x11\0\0"
    path.write_bytes(bytes(data) + bytes(extra) + pixels.astype(pixels.dtype.newbyteorder(order)).tobytes())


@pytest.mark.parametrize(("dtype", "mode"), MRC_KINDS)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("extra", [0, 768, 5])
@pytest.mark.parametrize("remote", [False, True])
def test_mrc_stacks_of_all_kinds(
    tmp_path: Path, dtype: str, mode: int, order: str, extra: int, remote: bool
) -> None:
    pixels = make_pixels(SHAPE, dtype)
    path = tmp_path / "bucket" / "a.mrcs"
    path.parent.mkdir()
    write_raw_mrc(path, pixels, mode, order, extra)
    boxes = random_boxes(SHAPE, 40, 20)
    with ObjectServer(tmp_path) as server:
        uri = "s3://bucket/a.mrcs" if remote else str(path)
        found = cut_fast(stack_of(uri, SHAPE, endpoint_url=server.url), boxes, READING)
    assert np.array_equal(found, cut_slowly(pixels, boxes))


@pytest.mark.parametrize("remote", [False, True])
def test_one_mrc_per_tilt_image(tmp_path: Path, pixels: np.ndarray, remote: bool) -> None:
    (tmp_path / "bucket").mkdir()
    for tilt, image in enumerate(pixels):
        write_raw_mrc(tmp_path / "bucket" / f"{tilt}.mrc", image[None], 2, "<", 0)
    boxes = random_boxes(SHAPE, 60, 20)
    with ObjectServer(tmp_path) as server:
        base = "s3://bucket" if remote else str(tmp_path / "bucket")
        uris = tuple(f"{base}/{tilt}.mrc" for tilt in range(SHAPE[0]))
        stack = ImageStack(uris, np.zeros(5, np.int64), (100, 120), {"endpoint_url": server.url})
        assert np.array_equal(cut_fast(stack, boxes, READING), cut_slowly(pixels, boxes))
        assert np.array_equal(open_lazily(stack)[1:4, 7:9].compute(), pixels[1:4, 7:9])
        if remote:
            ranges = [(e.path, e.range_header) for e in server.log.entries[:40]]
            assert ranges


def test_local_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "a.mrc").write_bytes(b"no image")
    (tmp_path / "b.mrc").write_bytes(bytes(2000))
    for name in ("a.mrc", "b.mrc"):
        with pytest.raises(ImageFormatError, match=name):
            read_shape(str(tmp_path / name), {})
    with pytest.raises(NotFoundError, match=r"c\.mrc"):
        read_shape(str(tmp_path / "c.mrc"), {})
    (tmp_path / "d.zarr").mkdir()
    with pytest.raises(NotFoundError, match=r"d\.zarr"):
        read_shape(str(tmp_path / "d.zarr"), {})


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_local_file_that_may_not_be_read(tmp_path: Path, pixels: np.ndarray) -> None:
    write_raw_mrc(tmp_path / "a.mrc", pixels, 2, "<", 0)
    (tmp_path / "a.mrc").chmod(0)
    with pytest.raises(AccessDeniedError, match=r"a\.mrc"):
        read_shape(str(tmp_path / "a.mrc"), {})


def test_a_local_file_that_is_truncated(tmp_path: Path, pixels: np.ndarray) -> None:
    write_raw_mrc(tmp_path / "a.mrc", pixels, 2, "<", 0)
    data = (tmp_path / "a.mrc").read_bytes()
    (tmp_path / "a.mrc").write_bytes(data[:-4])
    with pytest.raises(ImageFormatError, match=r"a\.mrc.*truncated"):
        cut_fast(stack_of(str(tmp_path / "a.mrc"), SHAPE), random_boxes(SHAPE, 4, 20), READING)


@pytest.mark.parametrize("name", ["a.zarr", "a.mrc"])
def test_a_consumer_that_collects_batches_does_not_wait_for_ever(
    store: Path, pixels: np.ndarray, name: str
) -> None:
    boxes = random_boxes(SHAPE, 120, 20)
    reading = ReadOptions(batch_views=20, memory_bytes=MIB // 6, decode_threads=1)
    stack = stack_of(str(store / "bucket" / name), SHAPE)
    batches = list(stream_patches(stack, boxes, reading))
    out = np.empty((len(boxes), 20, 20), np.float32)
    for batch in reversed(batches):
        out[batch.views] = batch.cut(np.empty((len(batch.views), 20, 20), np.float32))
    assert np.array_equal(out, cut_slowly(pixels, boxes))


@pytest.mark.parametrize("name", ["a.zarr", "a.mrc"])
def test_several_threads_cut_in_any_order(store: Path, pixels: np.ndarray, name: str) -> None:
    boxes = random_boxes(SHAPE, 400, 20)
    out = np.empty((len(boxes), 20, 20), np.float32)

    def consume(batch: PatchBatch) -> None:
        out[batch.views] = batch.cut(None)

    with ThreadPoolExecutor(4) as pool:
        stack = stack_of(str(store / "bucket" / name), SHAPE)
        list(pool.map(consume, stream_patches(stack, boxes, ReadOptions(batch_views=7))))
    assert np.array_equal(out, cut_slowly(pixels, boxes))


def test_a_wrong_array_to_cut_into_is_refused(store: Path) -> None:
    for name in ("a.zarr", "a.mrc"):
        stack = stack_of(str(store / "bucket" / name), SHAPE)
        for batch in stream_patches(stack, random_boxes(SHAPE, 3, 20), READING):
            for wrong in (
                np.empty((3, 20, 21), np.float32),
                np.empty((3, 20, 20)),
                np.empty((3, 20, 40), np.float32)[:, :, ::2],
            ):
                with pytest.raises(ValueError, match="C-contiguous float32"):
                    batch.cut(wrong)  # type: ignore[arg-type]


UNCLOSED_SCRIPT = """
import sys
import numpy as np
from portal_extract.images.boxes import Boxes
from portal_extract.images.options import ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import ImageStack

stack = ImageStack((sys.argv[1],) * 5, np.arange(5), (100, 120))
boxes = Boxes(np.arange(400) % 5, np.zeros((400, 2), np.int64), 20)
stream = stream_patches(stack, boxes, ReadOptions(batch_views=2))
next(stream)
print("done")
"""


def test_a_program_that_forgets_a_stream_ends(store: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", UNCLOSED_SCRIPT, str(store / "bucket" / "a.zarr")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert run.stdout == "done\n"
    assert run.stderr == ""


def _read_in_child(stack: ImageStack, path: Path) -> None:
    images = dict(stream_tilt_images(stack, np.arange(2), ReadOptions()))
    np.save(path, np.stack([images[0], images[1]]))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_process_reads_while_the_parent_does(
    store: Path, pixels: np.ndarray, tmp_path: Path, method: str
) -> None:
    with ObjectServer(store) as server:
        stack = stack_of("s3://bucket/a.zarr", SHAPE, endpoint_url=server.url)
        stream = stream_patches(stack, random_boxes(SHAPE, 100, 20), READING)
        batch = next(stream)
        child = multiprocessing.get_context(method).Process(
            target=_read_in_child, args=(stack, tmp_path / "found.npy")
        )
        child.start()
        child.join(60)
        alive = child.is_alive()
        if alive:
            child.kill()
        batch.cut(None)
        stream.close()
    assert not alive
    assert np.array_equal(np.load(tmp_path / "found.npy"), pixels[:2])


MEMORY_SCRIPT = """
import resource, sys
import numpy as np
from portal_extract.images.boxes import Boxes
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.images.stream import stream_patches
from portal_extract.model import ImageStack

uri, memory = sys.argv[1], int(sys.argv[2]) * MIB
shape = (12, 1536, 1536)
rng = np.random.default_rng(0)
stack = ImageStack((uri,) * 12, np.arange(12), (1536, 1536))
def run(n):
    boxes = Boxes(np.repeat(np.arange(12), n), np.tile(rng.integers(0, 1500, (n, 2)), (12, 1)), 64)
    out = np.empty((64, 64, 64), np.float32)
    for batch in stream_patches(stack, boxes, ReadOptions(batch_views=64, memory_bytes=memory)):
        batch.cut(out[: len(batch.views)])
run(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(300)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("kind", ["old", "new", "mrc", "zlib"])
def test_memory_stays_within_its_bound(tmp_path: Path, kind: str) -> None:
    import numcodecs

    pixels = make_pixels((12, 1536, 1536), "f4")  # 108 MiB
    if kind == "mrc":
        uri = str(tmp_path / "a.mrc")
        write_raw_mrc(Path(uri), pixels, 2, "<", 0)
    else:
        chunks = {"old": (256, 256, 256), "new": (1, 512, 512), "zlib": (1, 512, 512)}[kind]
        compressor = numcodecs.Zlib(1) if kind == "zlib" else blosc()
        uri = write_zarr2(tmp_path / "a.zarr", pixels, chunks, compressor)
    memory_mib = 40
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, uri, str(memory_mib)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    grown_mib = float(re.findall(r"[\d.]+", run.stdout)[-1])
    assert grown_mib <= 1.25 * memory_mib
