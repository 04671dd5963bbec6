"""A run asks for pixels before it loads what computes with them, and looks at every image once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from streaming_world import KINDS, arguments, enter, extract, write_world

from portal_extract import kernels
from portal_extract.demo.object_server import ObjectServer
from portal_extract.kernels import cut, mask, modulate

pytestmark = pytest.mark.timeout(120)

#: libraries that take long to load
HEAVY = ("numba", "scipy", "pandas", "matplotlib", "dask", "distributed", "zarr", "s3fs", "rich.progress")
PROGRAM = f"""
import json, sys
from portal_extract.cli import main
from portal_extract.images import fetcher

loaded, get = {{}}, fetcher.Fetcher.get

async def noting(self, uri, *arguments, **options):
    kind = "metadata" if uri.endswith((".zattrs", ".zarray")) or (arguments[:1] == (0,)) else "pixels"
    loaded.setdefault(kind, [name for name in {HEAVY!r} if name in sys.modules])
    return await get(self, uri, *arguments, **options)

fetcher.Fetcher.get = noting
try:
    main(sys.argv[1:])
finally:
    print(json.dumps([loaded, "numba" in sys.modules]))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def server(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    enter(world, tmp_path, monkeypatch)
    with ObjectServer(world / "store") as running:
        yield running


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_heavy_is_loaded_before_the_first_pixels_are_asked_for(
    server: ObjectServer, kind: str
) -> None:
    options = [*arguments(kind, server.url), "-o", "out", "--quiet"]
    command = [sys.executable, "-c", PROGRAM, "local", *options]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    loaded, computed = json.loads(told)
    assert loaded == {"metadata": [], "pixels": []}
    assert computed


@pytest.mark.parametrize("kind", KINDS)
def test_every_image_is_looked_at_once(server: ObjectServer, kind: str) -> None:
    assert extract(kind, server.url) == 0
    asked = [(entry.path, entry.range_header) for entry in server.log.entries]
    assert len(asked) == len(set(asked))
    metadata = [path for path, header in asked if "/.z" in path or header == "bytes=0-1023"]
    assert len(metadata) == (1 if kind == "mrc" else 2)


def test_what_is_loaded_in_advance_is_what_an_extraction_calls(server: ObjectServer) -> None:
    kernels.load()
    loops = (cut.cut_boxes, mask.mask_and_crop, modulate._modulate)
    before = [len(loop.signatures) for loop in loops]
    assert min(before) > 0
    assert extract("new", server.url) == 0
    assert extract("old", server.url, "--bin", "2", "--overwrite") == 0
    assert [len(loop.signatures) for loop in loops] == before
