"""Tilt series as the portal stores them: OME-Zarr 0.4 in zarr format 2, and the MRC twin.

The chunks are written here and not through zarr 3, whose files differ from the portal's (written by zarr
2.18): it leaves empty chunks out and adds ``.zattrs`` to every level.
"""

from __future__ import annotations

import json
import struct
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
from numcodecs.blosc import Blosc
from numpy.typing import NDArray

Images = NDArray[np.float32]
Chunks = tuple[int, int, int]
THREADS = 2
LEVELS = 3
BLOSC_HEADER_BYTES = 16
BLOSC_MEMCPYED = 0x2
MRC_LABEL = "Validated by cryoET data portal."


def write_ome_zarr(
    path: Path, images: Images, chunks: Chunks, pixel_size_angst: float, levels: int = LEVELS
) -> int:
    """Write a tilt series with its pyramid.

    Parameters
    ----------
    path
        Folder of the multiscale group, ending ``.zarr``; must not exist.
    images
        ``(F, height, width)``.
    chunks
        Chunk shape of every level.
    pixel_size_angst
        Pixel spacing of level 0.
    levels
        Levels of the pyramid; the portal has three.

    Returns
    -------
    int
        Bytes of all files.
    """
    scale = round(pixel_size_angst, 3)
    scales = [(scale, scale * 2**level, scale * 2**level) for level in range(levels)]
    n_bytes = write_group(path, scales)
    for level in range(levels):
        n_bytes += write_array_metadata(path / str(level), images.shape, chunks)
        n_bytes += _write_chunks(path / str(level), images, chunks)
        if level + 1 < levels:
            images = halve(images)
    return n_bytes


def write_group(path: Path, scales_zyx: list[tuple[float, float, float]]) -> int:
    """Write the metadata of a multiscale group.

    Parameters
    ----------
    path
        Folder of the group.
    scales_zyx
        Scale of each level, Angstrom.

    Returns
    -------
    int
        Bytes of the files.
    """
    axes = [{"name": name, "type": "space", "unit": "angstrom"} for name in "zyx"]
    datasets = [
        {"coordinateTransformations": [{"scale": list(scale), "type": "scale"}], "path": str(level)}
        for level, scale in enumerate(scales_zyx)
    ]
    multiscales = [{"axes": axes, "datasets": datasets, "name": "/", "version": "0.4"}]
    path.mkdir(parents=True)
    return _write_json(path / ".zgroup", {"zarr_format": 2}) + _write_json(
        path / ".zattrs", {"multiscales": multiscales}
    )


def write_array_metadata(path: Path, shape: tuple[int, ...], chunks: Chunks, dtype: str = "<f4") -> int:
    """Write ``.zarray`` of one level; return its bytes."""
    path.mkdir(parents=True)
    return _write_json(
        path / ".zarray",
        {
            "chunks": list(chunks),
            "compressor": {"blocksize": 0, "clevel": 5, "cname": "lz4", "id": "blosc", "shuffle": 1},
            "dimension_separator": "/",
            "dtype": dtype,
            "fill_value": 0.0,
            "filters": None,
            "order": "C",
            "shape": list(shape),
            "zarr_format": 2,
        },
    )


def halve(images: Images) -> Images:
    """Average 2 x 2 pixels; an odd last row or column is first continued by zeros, as on the portal."""
    sections, height, width = images.shape
    even = np.zeros((sections, height + height % 2, width + width % 2), dtype=np.float32)
    even[:, :height, :width] = images
    total = even[:, ::2, ::2] + even[:, ::2, 1::2] + even[:, 1::2, ::2] + even[:, 1::2, 1::2]
    return np.asarray(total / 4, dtype=np.float32)


def write_mrc(path: Path, images: Images, pixel_size_angst: float) -> int:
    """Write the MRC twin of a tilt series: an image stack of float32 without a trace of when it was made.

    Parameters
    ----------
    path
        File to write.
    images
        ``(F, height, width)``.
    pixel_size_angst
        Pixel spacing.

    Returns
    -------
    int
        Bytes of the file.
    """
    with mrcfile.new(path) as file:
        file.set_data(images)
        file.set_image_stack()
        file.voxel_size = pixel_size_angst
        file.header.label[:] = b""
        file.header.label[0] = MRC_LABEL.encode()
        file.header.nlabl = 1
    return path.stat().st_size


def scatter_blocks(frame: bytes, rng: np.random.Generator) -> bytes:
    """Store the blocks of a Blosc frame in another order, as parallel compression does.

    Parameters
    ----------
    frame
        Blosc 1 frame.
    rng
        Decides the order.

    Returns
    -------
    bytes
        A frame of the same length and contents; the same frame if it has a single block or is not
        compressed.
    """
    flags = frame[2]
    n_bytes, block_bytes, frame_bytes = struct.unpack_from("<III", frame, 4)
    count = -(-n_bytes // block_bytes) if block_bytes else 0
    if flags & BLOSC_MEMCPYED or count < 2:
        return frame
    starts = np.frombuffer(frame, "<u4", count, BLOSC_HEADER_BYTES).astype(np.int64)
    in_file = np.argsort(starts)
    stops = np.empty(count, dtype=np.int64)
    stops[in_file] = np.append(starts[in_file][1:], frame_bytes)
    order = rng.permutation(count)
    lengths = (stops - starts)[order]
    moved = np.empty(count, dtype="<u4")
    moved[order] = BLOSC_HEADER_BYTES + 4 * count + np.cumsum(lengths) - lengths
    blocks = b"".join(frame[starts[block] : stops[block]] for block in order)
    return frame[:BLOSC_HEADER_BYTES] + moved.tobytes() + blocks


def _write_chunks(path: Path, images: Images, chunks: Chunks) -> int:
    counts = [-(-size // chunk) for size, chunk in zip(images.shape, chunks, strict=True)]
    indices = list(product(*(range(count) for count in counts)))
    for z, y in {index[:2] for index in indices}:
        (path / str(z) / str(y)).mkdir(parents=True)
    with ThreadPoolExecutor(THREADS) as pool:
        return sum(pool.map(lambda index: _write_chunk(path, images, chunks, index), indices))


def _write_chunk(path: Path, images: Images, chunks: Chunks, index: tuple[int, ...]) -> int:
    part = images[tuple(slice(i * c, (i + 1) * c) for i, c in zip(index, chunks, strict=True))]
    if part.shape != chunks:
        whole = np.zeros(chunks, dtype=np.float32)
        whole[tuple(slice(size) for size in part.shape)] = part
        part = whole
    codec = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE, blocksize=0)
    frame = scatter_blocks(bytes(codec.encode(np.ascontiguousarray(part))), np.random.default_rng(index))
    path.joinpath(*map(str, index)).write_bytes(frame)
    return len(frame)


def _write_json(path: Path, content: Any) -> int:
    text = json.dumps(content, indent=4, sort_keys=True)
    path.write_text(text)
    return len(text)
