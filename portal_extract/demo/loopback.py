"""A small HTTP/1.1 server on 127.0.0.1 that counts its requests and fails on request.

Both parts of the embedded portal stand on it: threads (one per connection, kept alive), a log of what was
asked and sent, injected faults, latency and a shared bandwidth.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

from portal_extract.demo.instruments import Fault, FaultHook, LoggedRequest, Request, RequestLog, Throttle

__all__ = ["Fault", "LoopbackHandler", "LoopbackServer", "Request"]

PIECE_BYTES = 1 << 18


class LoopbackHandler(BaseHTTPRequestHandler):
    """Reads a request, applies its fault, and lets :meth:`respond` answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener
    _headers_buffer: list[bytes]
    _fault: Fault
    _logged: LoggedRequest

    def respond(self, request: Request) -> None:
        """Answer a request by one call of a ``send_*`` method."""
        raise NotImplementedError

    def error_body(self, request: Request, status: int) -> tuple[bytes, str]:
        """Body and content type of an injected error."""
        raise NotImplementedError

    def version_string(self) -> str:
        """Name in the ``Server`` header."""
        return "portal-extract-demo"

    def log_message(self, format: str, *args: Any) -> None:
        """Keep silent: the log is :class:`RequestLog`."""

    def do_GET(self) -> None:
        """Answer a GET."""
        self._handle()

    def do_HEAD(self) -> None:
        """Answer a HEAD."""
        self._handle()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._handle()

    do_PUT = do_POST
    do_DELETE = do_POST

    def send_body(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        """Send a whole answer from memory."""
        self._head(status, len(body), headers)
        if self.command == "HEAD":
            self._flush()
        elif self._fault.body_bytes is None and self.server.throttle.bytes_per_s is None:
            self._headers_buffer.append(body)
            self._logged.body_bytes = len(body)
            self._flush()
        else:
            self._flush()
            self._send_pieces(len(body), lambda start, stop: self.connection.sendall(body[start:stop]))

    def send_file_part(
        self, status: int, file: BinaryIO, offset: int, length: int, headers: dict[str, str]
    ) -> None:
        """Send ``length`` bytes of a file from ``offset`` on, without reading them into memory."""
        self._head(status, length, headers)
        self._flush()
        if self.command == "HEAD":
            return

        def send(start: int, stop: int) -> None:
            while start < stop:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), offset + start, stop - start)
                if sent == 0:
                    raise ConnectionAbortedError(f"{file.name}: shrank while it was sent")
                start += sent

        self._send_pieces(length, send)

    def _handle(self) -> None:
        try:
            request = self._read_request()
            self._answer(request)
        except OSError:
            self.close_connection = True  # the client has gone, or a fault has dropped it

    def _answer(self, request: Request) -> None:
        hook = self.server.fault
        fault = self._fault = (hook(request) if hook else None) or Fault()
        self.server.pause(self.server.latency_s + fault.delay_s)
        if fault.reset:
            self._reset()
        elif fault.status is not None:
            body, content_type = self.error_body(request, fault.status)
            self.send_body(fault.status, body, {"Content-Type": content_type})
        else:
            self.respond(request)

    def _read_request(self) -> Request:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        length = int(headers.get("content-length", 0))
        body = self.rfile.read(length) if length else b""
        path = unquote(parts.path).removeprefix("/")
        self._logged = LoggedRequest(self.command, path, parts.query, headers.get("range"), time.monotonic())
        number, attempt = self.server.log.admit(self._logged)
        return Request(self.command, path, parts.query, headers, body, number, attempt)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self._logged.status = status
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name, value)
        self._headers_buffer.append(b"\r\n")

    def _flush(self) -> None:
        self.connection.sendall(b"".join(self._headers_buffer))
        self._headers_buffer = []

    def _send_pieces(self, length: int, send: Callable[[int, int], None]) -> None:
        fault, throttle = self._fault, self.server.throttle
        end = length if fault.body_bytes is None else min(length, fault.body_bytes)
        piece = PIECE_BYTES if throttle.bytes_per_s else max(length, 1)
        for start in range(0, end, piece):
            stop = min(start + piece, end)
            self.server.pause(throttle.seconds_before(stop - start))
            self._logged.body_bytes += stop - start
            send(start, stop)
        if end < length:
            self.server.pause(fault.stall_s)
            self.close_connection = True

    def _reset(self) -> None:
        # a linger time of zero makes the close a reset
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


class _Listener(ThreadingHTTPServer):
    """The listening socket with what its connections share."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self, handler: type[LoopbackHandler], port: int, latency_s: float, bandwidth: float | None
    ) -> None:
        self.log = RequestLog()
        self.fault: FaultHook | None = None
        self.latency_s = latency_s
        self.throttle = Throttle(bandwidth)
        self._stopping = threading.Event()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), handler)

    def pause(self, seconds: float) -> None:
        """Sleep, but not longer than the server lives."""
        if seconds > 0 and self._stopping.wait(seconds):
            raise ConnectionAbortedError("the server stops")

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore connections that break; let everything else be seen."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handle_error(request, client_address)

    def stop(self) -> None:
        self._stopping.set()
        self.shutdown()
        self.server_close()
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class LoopbackServer:
    """A server in daemon threads; a context manager.

    Parameters
    ----------
    handler
        Class that answers.
    port
        Port on 127.0.0.1; 0 takes a free one.
    latency_s
        Wait before every answer.
    bandwidth
        Bytes per second of all bodies together, or None for no limit.
    """

    def __init__(
        self,
        handler: type[LoopbackHandler],
        *,
        port: int = 0,
        latency_s: float = 0.0,
        bandwidth: float | None = None,
    ) -> None:
        self._listener = _Listener(handler, port, latency_s, bandwidth)
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(0.05,), name="embedded-portal", daemon=True
        )
        self._started = False

    @property
    def port(self) -> int:
        """Port on 127.0.0.1."""
        return self._listener.server_port

    @property
    def url(self) -> str:
        """Address without a path."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> RequestLog:
        """What was asked and sent so far."""
        return self._listener.log

    @property
    def fault(self) -> FaultHook | None:
        """Called for each request; what it returns goes wrong. None for a healthy server."""
        return self._listener.fault

    @fault.setter
    def fault(self, hook: FaultHook | None) -> None:
        self._listener.fault = hook

    @property
    def latency_s(self) -> float:
        """Wait before every answer."""
        return self._listener.latency_s

    @latency_s.setter
    def latency_s(self, seconds: float) -> None:
        self._listener.latency_s = seconds

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of all bodies together, or None for no limit."""
        return self._listener.throttle.bytes_per_s

    @bandwidth.setter
    def bandwidth(self, bytes_per_s: float | None) -> None:
        self._listener.throttle.bytes_per_s = bytes_per_s

    def start(self) -> Self:
        """Begin to answer."""
        self._thread.start()
        self._started = True
        return self

    def close(self) -> None:
        """Stop to answer, and drop every connection."""
        if self._started:
            self._started = False
            self._listener.stop()
            self._thread.join()
        else:
            self._listener.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
