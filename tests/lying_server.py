"""A server that says what is not so, one lie at a time."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import socketserver
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portal_extract.demo.object_server import byte_range


class Close(Exception):
    """Ends a connection."""


@dataclass(frozen=True)
class Honest:
    """What a good server would answer; starting point of a lie.

    The bytes ``start`` to ``stop`` of ``content``; with or without a ``Range`` in the request.
    """

    path: str
    content: bytes
    start: int
    stop: int
    is_part: bool

    @property
    def body(self) -> bytes:
        return self.content[self.start : self.stop]

    @property
    def early(self) -> int:
        """An end too early."""
        return max(self.stop - 5, self.start + 1)

    def answer(self, status: int | None = None, body: bytes | None = None, **headers: Any) -> bytes:
        """Bytes of an answer: the honest one, but for what is given; None leaves a header out."""
        body = self.body if body is None else body
        told = f"bytes {self.start}-{self.stop - 1}/{len(self.content)}" if self.is_part else None
        named = {"content_length": len(body), "content_range": told, "ETag": '"1"', **headers}
        lines = [f"HTTP/1.1 {status or (206 if self.is_part else 200)} Whatever"]
        lines += [f"{key.replace('_', '-')}: {value}" for key, value in named.items() if value is not None]
        return "\r\n".join([*lines, "\r\n"]).encode("latin-1") + body

    def part(self, start: int, stop: int, total: Any = None) -> bytes:
        """Another part, truthfully, but for the size of the object."""
        start = min(start, len(self.content) - 1)
        body = self.content[start:stop]
        told = f"bytes {start}-{start + len(body) - 1}/{len(self.content) if total is None else total}"
        return self.answer(status=206, body=body, content_range=told)

    def redirect(self, place: str) -> bytes:
        return self.answer(status=302, body=b"", content_range=None, Location=place)


def then_close(*pieces: bytes) -> Iterator[bytes]:
    yield from pieces
    raise Close


def endless(head: bytes, piece: bytes) -> Iterator[bytes]:
    yield head
    yield from itertools.repeat(piece)


def stalled(head: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(50):
        time.sleep(0.1)
        yield b""
    raise Close


def of_a_petabyte(h: Honest) -> Iterator[bytes]:
    stop = h.start + 10**15
    told = f"bytes {h.start}-{stop - 1}/{stop}" if h.is_part else None
    return then_close(h.answer(content_length=10**15, content_range=told))


CHUNKED = {"content_length": None, "Transfer-Encoding": "chunked"}
PARTS = b"--x\r\nContent-Range: bytes 0-1/9\r\n\r\nab\r\n--x--\r\n"
PAGE = b"<html><body>Please accept our cookies</body></html>"
ZEROS = bytes(1 << 16)
#: a lie that would go on for ever ends here
MOST_SENT = 64 << 20

LIES: dict[str, Callable[[Honest], bytes | Iterator[bytes]]] = {
    "the truth": lambda h: h.answer(),
    # which part it is
    "whole objects instead of parts": lambda h: h.answer(200, h.content, content_range=None),
    "parts as if they were whole objects": lambda h: h.answer(200, content_range=None),
    "a part that does not say which": lambda h: h.answer(206, content_range=None),
    "a part further behind": lambda h: h.part(h.start + 8, h.stop + 8),
    "a part further ahead": lambda h: h.part(max(h.start - 8, 0), max(h.stop - 8, 1)),
    "a part that says to be another": lambda h: h.answer(
        206, content_range=f"bytes {h.start + 8}-{h.stop + 7}/{len(h.content) + 8}"
    ),
    "a longer part than asked for": lambda h: h.part(h.start, h.stop + 100),
    "a shorter part than asked for": lambda h: h.part(h.start, h.early),
    "a shorter part as if it were the end": lambda h: h.part(h.start, h.early, h.early),
    "a larger object": lambda h: h.part(h.start, h.stop, len(h.content) + 1000),
    "a smaller object": lambda h: h.part(h.start, h.stop, max(h.stop - 1, 1)),
    "an object of unknown size": lambda h: h.part(h.start, h.stop, "*"),
    "a size of absurdly many digits": lambda h: h.part(h.start, h.stop, "9" * 5000),
    "a petabyte": of_a_petabyte,
    "a negative part": lambda h: h.answer(206, content_range="bytes -5-10/20"),
    "a part that is nonsense": lambda h: h.answer(206, content_range="chapters \xff-z/*"),
    "a part that ends before it starts": lambda h: h.answer(
        206, b"", content_range=f"bytes {h.start}-{h.start - 1}/9999"
    ),
    "several parts": lambda h: h.answer(
        206, PARTS, content_range=None, content_type="multipart/byteranges; boundary=x"
    ),
    # how long it is
    "a body that goes on behind its end": lambda h: h.answer() + b"and so on\r\n" * 20,
    "a body that ends early": lambda h: then_close(h.answer(content_length=len(h.body) + 10)),
    "a body that stalls": lambda h: stalled(h.answer(content_length=len(h.body) + 10)),
    "a head that stalls": lambda h: stalled(b"HTTP/1.1 206 Partial"),
    "two lengths": lambda h: h.answer(**{"Content-length": len(h.body) + 1}),
    "a negative length": lambda h: h.answer(content_length=-5),
    "a length that is no number": lambda h: h.answer(content_length="many"),
    "a length of absurdly many digits": lambda h: h.answer(content_length="9" * 5000),
    "an endless body of chunks": lambda h: endless(
        h.answer(body=b"", **CHUNKED), b"10000\r\n" + ZEROS + b"\r\n"
    ),
    "an endless whole object": lambda h: endless(
        h.answer(200, b"", content_range=None, **CHUNKED), b"10000\r\n" + ZEROS + b"\r\n"
    ),
    "an endless body without a length": lambda h: endless(h.answer(body=b"", content_length=None), ZEROS),
    "an endless chunk": lambda h: endless(h.answer(body=b"", **CHUNKED) + b"fffffffffffffff\r\n", ZEROS),
    "endless headers": lambda h: endless(b"HTTP/1.1 200 OK\r\n", b"X-More: and more\r\n" * 1000),
    "an endless header": lambda h: endless(b"HTTP/1.1 200 OK\r\nX-More: ", b"a" * (1 << 16)),
    "endless promises": lambda h: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "chunks of nonsense sizes": lambda h: then_close(h.answer(body=b"", **CHUNKED), b"-1\r\nab\r\nzz\r\n"),
    # how it is coded
    "a compressed body": lambda h: h.answer(body=gzip.compress(h.body), content_encoding="gzip"),
    "a body that is said to be compressed": lambda h: h.answer(content_encoding="gzip"),
    "a body of an unknown coding": lambda h: h.answer(transfer_encoding="rot13"),
    # what it is
    "nothing new": lambda h: h.answer(304, b"", content_range=None),
    "no content": lambda h: h.answer(204, b"", content_length=None, content_range=None),
    "an impossible range": lambda h: h.answer(416, b"", content_range="bytes */5"),
    "a status of its own": lambda h: h.answer(999),
    "a redirect in a circle": lambda h: h.redirect(h.path),
    "a redirect to a closed port": lambda h: h.redirect("http://127.0.0.1:1/a"),
    "a redirect to a file": lambda h: h.redirect("file:///etc/hostname"),
    "a redirect to nonsense": lambda h: h.redirect("http://[::1\xff:99999999/"),
    "a redirect to nowhere": lambda h: h.answer(302, b"", content_range=None),
    "an error page": lambda h: h.answer(200, PAGE, content_range=None),
    "garbage in headers": lambda h: h.answer(**{"X-\x01\xff": "\x02", "Set-Cookie": "\xff=;;\x03"}),
    "headers in another alphabet": lambda h: h.answer(**{"X-Name": "\xe9\xff", "Set-Cookie": "\xff;;"}),
    "garbage as the version": lambda h: h.answer(ETag='"\xff\xfe"'),
    "a very long version": lambda h: h.answer(ETag='"' + "e" * 8000 + '"'),
    "another version each time": lambda h: h.answer(ETag=f'"{time.monotonic_ns()}"'),
    "lines that are no headers": lambda h: b"HTTP/1.1 206 Partial\r\nno header\r\n: none\r\n\r\n" + h.body,
    "a body without a head": lambda h: then_close(h.body),
    "another protocol": lambda h: then_close(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "nothing at all": lambda h: then_close(),
}


class LyingServer(socketserver.ThreadingTCPServer):
    """Serves files below a folder, in ranges; tells lies to requests for which ``applies`` holds."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        self.root = root
        self.told = LIES["the truth"]
        self.applies: Callable[[Honest], bool] = lambda honest: False
        self.n_lies = self.most_sent = 0
        super().__init__(("127.0.0.1", 0), LyingHandler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news."""


class LyingHandler(socketserver.StreamRequestHandler):
    server: LyingServer

    def handle(self) -> None:
        with contextlib.suppress(Close, OSError):
            while line := self.rfile.readline():
                headers = {}
                while header := self.rfile.readline().decode("latin-1").strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                self.answer(line.split()[1].decode(), headers.get("range"))

    def answer(self, path: str, range_header: str | None) -> None:
        file = self.server.root / path.removeprefix("/bucket/")
        if not file.is_file():
            self.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        content = file.read_bytes()
        part = byte_range(range_header, len(content))
        start, stop = part or (0, len(content))
        honest = Honest(path, content, start, stop, part is not None)
        told = LIES["the truth"]
        if self.server.applies(honest):
            self.server.n_lies += 1
            told = self.server.told
        n_sent = 0
        said = told(honest)
        for piece in [said] if isinstance(said, bytes) else said:
            self.wfile.write(piece)
            n_sent += len(piece)
            self.server.most_sent = max(self.server.most_sent, n_sent)
            if n_sent > MOST_SENT:
                raise Close
