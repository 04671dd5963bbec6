"""What the servers of the embedded portal are told and tell: faults, requests, and a shared bandwidth."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """What a client asks.

    Attributes
    ----------
    method
        ``GET``, ``HEAD`` or ``POST``.
    path
        Decoded path, without the leading slash: ``bucket/key`` for the object store.
    query
        Raw query string.
    headers
        Header values by lower-case name.
    body
        Body of a POST, else empty.
    number
        How many requests the server had met before this one.
    attempt
        How many requests for the same method, path and range it had met before this one.
    """

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    number: int = 0
    attempt: int = 0

    @property
    def range_header(self) -> str | None:
        """Value of the ``Range`` header, or None."""
        return self.headers.get("range")


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request; the parts combine.

    Attributes
    ----------
    delay_s
        Wait before anything is sent.
    status
        Answer with this HTTP status and an error body instead of the content.
    reset
        Reset the connection without an answer.
    body_bytes
        Announce the whole body but send only this many bytes of it, then (after ``stall_s``) drop the
        connection.
    stall_s
        Wait between the part of the body that is sent and the end of the connection.
    """

    delay_s: float = 0.0
    status: int | None = None
    reset: bool = False
    body_bytes: int | None = None
    stall_s: float = 0.0


FaultHook = Callable[[Request], Fault | None]


@dataclass
class LoggedRequest:
    """One request and its answer.

    Attributes
    ----------
    method, path, query
        As in :class:`Request`.
    range_header
        ``Range`` header of the request, or None.
    started_s
        Time on the monotonic clock when the request had been read.
    status
        HTTP status; 0 if nothing was answered (yet).
    body_bytes
        Bytes of the body handed to the network, counted before the client can see them.
    """

    method: str
    path: str
    query: str
    range_header: str | None
    started_s: float
    status: int = 0
    body_bytes: int = 0


class RequestLog:
    """All requests of a server, in the order in which they arrived."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: list[LoggedRequest] = []
        self._seen: Counter[tuple[str, str, str | None]] = Counter()
        self._number = 0

    def admit(self, entry: LoggedRequest) -> tuple[int, int]:
        """Note a request that has arrived; return its number over all and among its equals."""
        key = (entry.method, entry.path, entry.range_header)
        with self._lock:
            numbers = self._number, self._seen[key]
            self._number += 1
            self._seen[key] += 1
            self._entries.append(entry)
        return numbers

    @property
    def entries(self) -> list[LoggedRequest]:
        """A copy of the log."""
        with self._lock:
            return list(self._entries)

    @property
    def body_bytes(self) -> int:
        """Bytes of all bodies sent."""
        return sum(entry.body_bytes for entry in self.entries)

    def count(self, method: str | None = None, contains: str = "", status: int | None = None) -> int:
        """Count the requests of a method, with a part of their path, and with a status."""
        return sum(
            (method is None or entry.method == method)
            and contains in entry.path
            and (status is None or entry.status == status)
            for entry in self.entries
        )

    def clear(self) -> None:
        """Forget everything, the numbers of attempts too."""
        with self._lock:
            self._entries.clear()
            self._seen.clear()
            self._number = 0


class Throttle:
    """A bandwidth that all connections share.

    Parameters
    ----------
    bytes_per_s
        Bandwidth, or None for no limit.
    """

    def __init__(self, bytes_per_s: float | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    def seconds_before(self, n_bytes: int) -> float:
        """Book ``n_bytes`` on the line and tell how long to wait until they have passed."""
        if self.bytes_per_s is None:
            return 0.0
        now = time.monotonic()
        with self._lock:
            self._free_at = max(self._free_at, now) + n_bytes / self.bytes_per_s
            return self._free_at - now
