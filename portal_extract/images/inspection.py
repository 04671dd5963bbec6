"""Look at a stored tilt series as far as a plan needs it: metadata and the table of one chunk."""

from __future__ import annotations

from dataclasses import dataclass

from portal_extract.images.boxes import Boxes
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.options import ReadOptions
from portal_extract.images.session import open_session
from portal_extract.model import ImageStack
from portal_extract.planning.estimate import ReadPlan, plan_reading
from portal_extract.planning.regions import group_regions
from portal_extract.planning.stored import StoredSizes
from portal_extract.running.events import Observer, ignore


@dataclass(frozen=True)
class StoredStack:
    """What is known of the files of a tilt series.

    Attributes
    ----------
    layouts
        By address.
    sizes
        Stored sizes met so far, and the cache.
    """

    layouts: dict[str, ArrayLayout]
    sizes: StoredSizes


def plan_stream(
    stack: ImageStack, boxes: Boxes, reading: ReadOptions, observer: Observer = ignore
) -> ReadPlan:
    """Tell what :func:`~portal_extract.images.stream.stream_patches` will read.

    Fetches the metadata and, of Blosc-compressed arrays, the table of one chunk.

    Parameters
    ----------
    stack, boxes, reading, observer
        As there.

    Raises
    ------
    ImageFormatError, AccessDeniedError, NotFoundError, ChunkReadError, MemoryBudgetError
        As there.
    """
    stored = inspect_stack(stack, boxes, reading, observer)
    return plan_reading(stack, stored.layouts, boxes, reading, stored.sizes)


def inspect_stack(
    stack: ImageStack, boxes: Boxes, reading: ReadOptions, observer: Observer = ignore
) -> StoredStack:
    """Read layouts, and the table of one chunk that the boxes touch; see :func:`plan_stream`."""
    size = (boxes.side_px, boxes.side_px)
    if len(boxes) == 0:
        return StoredStack({}, StoredSizes())
    with open_session(stack, reading, observer) as session:
        layouts = session.open(boxes.tilt)
        for regions in group_regions(stack, layouts, boxes.tilt, boxes.origin_px, size):
            session.typical_table(regions)
        loader = session.loader
        frames = {(frame.layout.uri, frame.position): frame for frame in loader.frames.known.values()}
        return StoredStack(layouts, StoredSizes(frames, loader.cache, loader.versions))
