"""Any file system that fsspec knows: S3 with credentials (s3fs), Google Cloud, Azure, and so on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from portal_extract.errors import AccessDeniedError, ReadError
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import AttemptError, Body, MissingObjectError, Progress


class FsspecStore:
    """Objects behind an fsspec file system, which is made here and never shared.

    Parameters
    ----------
    scheme
        Such as ``s3`` or ``gs``.
    storage
        What the file system takes.
    reading
        Time limits.
    """

    tells_progress = tells_versions = False

    def __init__(self, scheme: str, storage: Mapping[str, Any], reading: ReadOptions) -> None:
        import fsspec

        settings = dict(storage)
        if scheme == "s3":
            settings.pop("region", None)
            # no HEAD before each GET, and no retries inside retries
            settings |= {"max_concurrency": 1, "anon": bool(storage.get("anon", False))}
            settings.setdefault(
                "config_kwargs",
                {
                    "connect_timeout": reading.connect_timeout_s,
                    "read_timeout": reading.stall_timeout_s,
                    "max_pool_connections": reading.requests_in_flight,
                    "retries": {"max_attempts": 1},
                },
            )
            if storage.get("region"):
                settings["client_kwargs"] = {
                    "region_name": storage["region"],
                    **(storage.get("client_kwargs") or {}),
                }
        try:
            loop = asyncio.get_running_loop()
            kind = fsspec.get_filesystem_class(scheme)
            waits = {"asynchronous": True, "loop": loop} if getattr(kind, "async_impl", False) else {}
            self._fs = kind(**settings, **waits, skip_instance_cache=True)
        except (ImportError, ValueError, TypeError) as error:
            raise ReadError(f"addresses {scheme}://... cannot be read: {error}") from error
        if scheme == "s3":
            self._fs.retries = 1
        self._waits = bool(waits)

    async def get(
        self,
        uri: str,
        start: int = 0,
        stop: int | None = None,
        etag: str | None = None,
        progress: Progress | None = None,
        unless: str | None = None,
    ) -> Body:
        """Fetch a range of an object; see :class:`portal_extract.images.store.Store`."""
        first = start or None
        try:
            if self._waits:
                data = await self._fs._cat_file(uri, start=first, end=stop)
            else:
                data = await asyncio.to_thread(self._fs.cat_file, uri, start=first, end=stop)
        except FileNotFoundError:
            raise MissingObjectError(f"{uri} does not exist") from None
        except PermissionError as error:
            raise AccessDeniedError(
                f"{uri}: the store refuses access ({error}); check the address and your credentials"
            ) from error
        except Exception as error:  # each file system has errors of its own
            text = f"{type(error).__name__}: {error}"
            throttled = "SlowDown" in text or "503" in text
            raise AttemptError(text, is_throttled=throttled) from error
        total = len(data) if stop is None and start == 0 else None
        return Body(bytes(data), max(start, 0), total)

    async def close(self) -> None:
        """Close the session, where the file system has one."""
        session = getattr(self._fs, "_s3", None)
        if session is not None:
            await session.close()
