"""Both servers of the embedded portal together, in this process or in one of their own."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from portal_extract.demo.graphql_server import GraphQLServer
from portal_extract.demo.object_server import ObjectServer
from portal_extract.errors import SourceError

BUCKET = "cryoet-data-portal-public"
REAL_HTTPS_HOST = "https://files.cryoetdataportal.cziscience.com"
START_TIMEOUT_S = 60.0


class EmbeddedPortal:
    """A portal on 127.0.0.1: GraphQL API and object store. A context manager.

    Parameters
    ----------
    s3_root
        Folder tree ``s3_root/BUCKET/key``.
    tables
        Rows of the API by type name.
    latency_s
        Wait before every answer of either server.
    bandwidth
        Bytes per second of the object store, all connections together; None for no limit.
    local_https
        Make the ``https*`` fields of the API point at the object store instead of the real portal.
    api_port, s3_port
        Ports; 0 takes free ones.

    Attributes
    ----------
    api, objects
        The two servers, with their ``log``, ``fault`` hook, ``latency_s`` and ``bandwidth``.
    """

    def __init__(
        self,
        s3_root: Path,
        tables: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        latency_s: float = 0.0,
        bandwidth: float | None = None,
        local_https: bool = True,
        api_port: int = 0,
        s3_port: int = 0,
    ) -> None:
        self.objects = ObjectServer(s3_root, port=s3_port, latency_s=latency_s, bandwidth=bandwidth)
        if local_https:
            tables = with_https_host(tables, f"{self.objects.url}/{BUCKET}")
        self.api = GraphQLServer(tables, port=api_port, latency_s=latency_s)
        self._servers = ExitStack()

    @property
    def portal_url(self) -> str:
        """Address of the API, for ``cryoet_data_portal.Client``."""
        return self.api.graphql_url

    @property
    def s3_endpoint_url(self) -> str:
        """Address of the S3 endpoint."""
        return self.objects.url

    def environment(self) -> dict[str, str]:
        """Environment variables that point portal-extract, s3fs, boto3 and the portal's client here."""
        return environment(self.portal_url, self.s3_endpoint_url)

    def start(self) -> Self:
        """Begin to answer."""
        self._servers.enter_context(self.objects)
        self._servers.enter_context(self.api)
        return self

    def close(self) -> None:
        """Stop both servers."""
        self._servers.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class RemotePortal:
    """An embedded portal that runs in a process of its own.

    Attributes
    ----------
    portal_url, s3_endpoint_url
        Addresses.
    """

    portal_url: str
    s3_endpoint_url: str
    _connection: Connection

    def environment(self) -> dict[str, str]:
        """Environment variables, as those of :class:`EmbeddedPortal`."""
        return environment(self.portal_url, self.s3_endpoint_url)

    def counts(self) -> dict[str, int]:
        """``api_requests``, ``object_requests`` and ``object_bytes`` so far."""
        self._connection.send("counts")
        counts: dict[str, int] = self._connection.recv()
        return counts

    def clear(self) -> None:
        """Start counting anew."""
        self._connection.send("clear")
        self._connection.recv()


def environment(portal_url: str, s3_endpoint_url: str) -> dict[str, str]:
    """Environment variables that point clients at an API and an S3 endpoint."""
    return {
        "CRYOET_PORTAL_URL": portal_url,
        "AWS_ENDPOINT_URL_S3": s3_endpoint_url,
        "AWS_ENDPOINT_URL": s3_endpoint_url,
        "BOTO_ENDPOINT_URL": s3_endpoint_url,
        "AWS_DEFAULT_REGION": "us-west-2",
    }


def with_https_host(
    tables: Mapping[str, Sequence[Mapping[str, Any]]], base_url: str
) -> dict[str, list[dict[str, Any]]]:
    """Replace the real portal's host in every address of the tables.

    Parameters
    ----------
    tables
        Rows by type name.
    base_url
        Address of the bucket, without a trailing slash.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(f"{REAL_HTTPS_HOST}/"):
            return base_url + value.removeprefix(REAL_HTTPS_HOST)
        return value

    return {
        name: [{column: moved(value) for column, value in row.items()} for row in rows]
        for name, rows in tables.items()
    }


def read_tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read ``tables.json`` of a portal folder.

    Raises
    ------
    SourceError
        The file or the bucket folder is missing, or the file is no JSON.
    """
    path = folder / "tables.json"
    if not (folder / "s3").is_dir():
        raise SourceError(f"{folder}: no folder s3/ with buckets in it; give the folder of a portal data set")
    try:
        tables: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    except FileNotFoundError:
        raise SourceError(f"{path}: not there; give the folder of a portal data set") from None
    except ValueError as error:
        raise SourceError(f"{path}: not readable as JSON ({error}); make the data set anew") from None
    return tables


def load_portal_folder(folder: Path, **settings: Any) -> EmbeddedPortal:
    """Portal over a folder with ``s3/BUCKET/...`` and ``tables.json``, not yet started.

    Parameters
    ----------
    folder
        The folder, e.g. one that :func:`portal_extract.demo.simulate.simulate_portal` wrote.
    **settings
        Keyword arguments of :class:`EmbeddedPortal`.

    Raises
    ------
    SourceError
        The folder is no portal folder.
    """
    return EmbeddedPortal(folder / "s3", read_tables(folder), **settings)


@contextmanager
def serve_in_process(
    folder: Path, prepare: Callable[[EmbeddedPortal], None] | None = None, **settings: Any
) -> Iterator[RemotePortal]:
    """Serve a portal folder from another process, so that the servers do not compete for the interpreter.

    Parameters
    ----------
    folder
        As for :func:`load_portal_folder`.
    prepare
        Called in that process before serving, e.g. to set fault hooks; must be importable (a function of
        a module).
    **settings
        Keyword arguments of :class:`EmbeddedPortal`.

    Yields
    ------
    RemotePortal
        Addresses and counters; the servers stop with the context.

    Raises
    ------
    SourceError
        The folder is no portal folder, or the process did not start.
    """
    read_tables(folder)  # complain here rather than there
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(theirs, folder, prepare, settings), name="embedded-portal", daemon=True
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(START_TIMEOUT_S):
            raise SourceError(f"{folder}: the embedded portal did not start in {START_TIMEOUT_S:g} s")
        try:
            portal_url, s3_endpoint_url = ours.recv()
        except EOFError:
            raise SourceError(f"{folder}: the embedded portal ended while it started") from None
        yield RemotePortal(portal_url, s3_endpoint_url, ours)
    finally:
        ours.close()
        process.join(5)
        if process.is_alive():
            process.kill()
            process.join()


def _serve(
    connection: Connection,
    folder: Path,
    prepare: Callable[[EmbeddedPortal], None] | None,
    settings: dict[str, Any],
) -> None:
    """Serve until the other end of the connection is closed."""
    # Control-C in a terminal reaches both processes; the other one decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with load_portal_folder(folder, **settings) as portal:
        if prepare is not None:
            prepare(portal)
        connection.send((portal.portal_url, portal.s3_endpoint_url))
        while True:
            try:
                asked = connection.recv()
            except (EOFError, OSError):
                return
            if asked == "clear":
                portal.api.log.clear()
                portal.objects.log.clear()
            connection.send(
                {
                    "api_requests": portal.api.log.count(),
                    "object_requests": portal.objects.log.count(),
                    "object_bytes": portal.objects.log.body_bytes,
                }
            )
