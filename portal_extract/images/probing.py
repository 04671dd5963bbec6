"""What one stored chunk tells of all: size and order of Blosc blocks."""

from __future__ import annotations

import numpy as np

from portal_extract.images.blosc import FrameError, FrameTable
from portal_extract.images.loader import UnitLoader
from portal_extract.images.store import MissingObjectError
from portal_extract.planning.regions import Regions

PROBES = 3


async def typical_table(loader: UnitLoader, regions: Regions) -> FrameTable | None:
    """Table of the blocks of a chunk that is needed anyway.

    All chunks of an array have been compressed with the same settings; one that was not is decoded as a
    whole.

    Parameters
    ----------
    loader
        Fetches the table, and remembers it.
    regions
        What is going to be cut.

    Returns
    -------
    FrameTable or None
        None where the chunks are no Blosc frames, or the first ones are missing or unreadable.
    """
    layout = regions.layout
    if layout.codec.coding != "blosc":
        return None
    _, chunk_y, chunk_x = layout.chunk_shape
    _, grid_y, grid_x = regions.grid
    z = regions.places[:, 0]
    y = np.clip(regions.places[:, 2], 0, layout.shape[1] - 1) // chunk_y
    x = np.clip(regions.places[:, 3], 0, layout.shape[2] - 1) // chunk_x
    chunks = np.unique((z * grid_y + y) * grid_x + x)
    for chunk in chunks[np.linspace(0, len(chunks) - 1, min(PROBES, len(chunks))).astype(int)].tolist():
        array, position = regions.locate(chunk)
        try:
            segment = await loader.segment(array, position)
            if segment is not None:
                known, _ = await loader.frames.read(array, position, segment)
                loader.frames.remember(segment, known)
                return known.table
        except (MissingObjectError, FrameError):
            continue  # met again, and reported, when the chunk itself is loaded
    return None
