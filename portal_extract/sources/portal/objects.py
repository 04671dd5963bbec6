"""Small files of the portal, many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from portal_extract.errors import AccessDeniedError, PortalError, ReadError
from portal_extract.images.fetcher import Fetcher
from portal_extract.images.options import ReadOptions
from portal_extract.images.reader import Reader, open_reader
from portal_extract.images.store import MissingObjectError
from portal_extract.running.events import Observer, StageAdvanced, StageFinished, StageStarted, ignore
from portal_extract.sources.portal.settings import BUCKET_REGION, PortalConnection

STAGE = "Reading picks"


def read_objects(
    uris: Iterable[str], connection: PortalConnection, observer: Observer = ignore
) -> dict[str, bytes | ReadError]:
    """Read whole objects concurrently.

    Parameters
    ----------
    uris
        ``s3://`` addresses.
    connection
        Endpoint and patience.
    observer
        Told of progress and bytes.

    Returns
    -------
    By address, the contents; an error where nothing is stored there or the store refuses.

    Raises
    ------
    ReadError
        The store did not answer after all attempts.
    PortalError
        The time for all of it is over.
    """
    wanted = list(dict.fromkeys(uris))
    if not wanted:
        return {}
    observer(StageStarted(STAGE, len(wanted), "files"))
    reading = ReadOptions(
        requests_in_flight=connection.requests_in_flight,
        attempts=connection.attempts,
        backoff_s=connection.backoff_s,
        deadline_s=connection.request_timeout_s,
    )
    try:
        with open_reader(reading) as reader:
            return reader.run(_read_all(wanted, connection, reader, observer))
    except TimeoutError:
        raise PortalError(
            f"the portal's {len(wanted)} files of picks took longer than {connection.deadline_s:g} s: ask "
            "for fewer runs, or later"
        ) from None
    finally:
        observer(StageFinished(STAGE))


async def _read_all(
    uris: list[str], connection: PortalConnection, reader: Reader, observer: Observer
) -> dict[str, bytes | ReadError]:
    store = await reader.store(uris[0], {"region": BUCKET_REGION, **connection.storage})
    fetcher = Fetcher(store, reader.reading, observer, reader.limit)

    async def read(uri: str) -> bytes | ReadError:
        try:
            body = await fetcher.get(uri)
        except (MissingObjectError, AccessDeniedError) as error:
            return error
        observer(StageAdvanced(STAGE, 1))
        return bytes(body.data)

    async with asyncio.timeout(connection.deadline_s):
        return dict(zip(uris, await asyncio.gather(*map(read, uris)), strict=True))
