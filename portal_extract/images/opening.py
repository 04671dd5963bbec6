"""Layouts of stored arrays: which metadata object is asked for, in which order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass

from portal_extract.errors import ImageFormatError, NotFoundError
from portal_extract.images.fetcher import Fetcher
from portal_extract.images.layout import ArrayLayout, is_mrc_uri, mrc_layout
from portal_extract.images.store import (
    Body,
    MissingObjectError,
    is_local,
    local_path,
)
from portal_extract.images.zarr_metadata import full_size_level, layout_v2, layout_v3, parse_json

MRC_HEADER_BYTES = 1024


@dataclass(frozen=True)
class KnownArray:
    """What was found when an array was looked at.

    Attributes
    ----------
    layout
        How it is stored.
    version
        Version (ETag) of the MRC file, if the store tells one: what is fetched later must be of it.
    """

    layout: ArrayLayout
    version: str | None = None


Known = MutableMapping[str, KnownArray]
"""Arrays of one store that have been looked at, by address."""


async def open_known(fetcher: Fetcher, uri: str, known: Known) -> ArrayLayout:
    """Layout of one stored array, which is looked at once; see :func:`open_layout`."""
    if uri not in known:
        layout = await open_layout(fetcher, uri)
        known[uri] = KnownArray(layout, fetcher.versions.get(uri))
    found = known[uri]
    if found.version is not None:
        fetcher.versions[uri] = found.version
    return found.layout


async def open_layouts_with(fetcher: Fetcher, uris: Sequence[str], known: Known) -> dict[str, ArrayLayout]:
    """Layouts of stored arrays, all at once; see :func:`open_known`."""
    distinct = list(dict.fromkeys(uris))
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(open_known(fetcher, uri, known)) for uri in distinct]
    except* Exception as errors:
        first = errors.exceptions[0]
        raise first from first.__cause__
    return {uri: task.result() for uri, task in zip(distinct, tasks, strict=True)}


async def open_layout(fetcher: Fetcher, uri: str) -> ArrayLayout:
    """Layout of one stored array.

    Zarr format 2 is asked for first, because the portal uses it: two requests for a group, at once.

    Parameters
    ----------
    fetcher
        Fetches the metadata.
    uri
        An MRC file, an OME-Zarr group, or a zarr array.

    Raises
    ------
    ImageFormatError
        Not such a file, or ill-formed metadata.
    AccessDeniedError
        The store refuses.
    NotFoundError
        Nothing is stored there.
    """
    if _is_mrc(uri):
        return await _open_mrc(fetcher, uri)
    uri = uri.rstrip("/")
    # the first level of nearly every group is called 0: asked for at the same time, it saves a round trip
    guess = f"{uri}/0"
    attributes, guessed = await asyncio.gather(
        _find(fetcher, f"{uri}/.zattrs"), _find(fetcher, f"{guess}/.zarray")
    )
    level = None if attributes is None else full_size_level(parse_json(f"{uri}/.zattrs", attributes.data))
    if level == "0" and guessed is not None:
        return layout_v2(guess, parse_json(f"{guess}/.zarray", guessed.data))
    return await _open_array(fetcher, f"{uri}/{level}" if level else uri)


async def _open_array(fetcher: Fetcher, uri: str, *, may_be_group: bool = True) -> ArrayLayout:
    body = await _find(fetcher, f"{uri}/.zarray") if may_be_group else None
    if body is not None:
        return layout_v2(uri, parse_json(f"{uri}/.zarray", body.data))
    body = await _find(fetcher, f"{uri}/zarr.json")
    if body is None:
        raise NotFoundError(f"{uri}: no OME-Zarr array is stored there (neither .zarray nor zarr.json)")
    meta = parse_json(f"{uri}/zarr.json", body.data)
    if meta.get("node_type") != "group":
        return layout_v3(uri, meta)
    level = full_size_level(meta.get("attributes") or {})
    if not level or not may_be_group:
        raise ImageFormatError(f"{uri}/zarr.json: a group without OME-Zarr multiscales; name its array")
    return await _open_array(fetcher, f"{uri}/{level}", may_be_group=False)


async def _open_mrc(fetcher: Fetcher, uri: str) -> ArrayLayout:
    try:
        body = await fetcher.get(uri, 0, MRC_HEADER_BYTES, may_be_shorter=True)
    except MissingObjectError:
        raise NotFoundError(f"{uri} does not exist") from None
    if body.etag is not None:
        fetcher.versions[uri] = body.etag
    return mrc_layout(uri, bytes(body.part(0, MRC_HEADER_BYTES)), body.total)


async def _find(fetcher: Fetcher, uri: str) -> Body | None:
    try:
        return await fetcher.get(uri)
    except MissingObjectError:
        return None


def _is_mrc(uri: str) -> bool:
    if is_local(uri):
        return not os.path.isdir(local_path(uri)) and ".zarr" not in uri
    return is_mrc_uri(uri) or ".zarr" not in uri
