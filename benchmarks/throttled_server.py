"""The embedded object server in a process of its own, so that it takes no time from the program measured.

Lines of JSON come in on standard input, one answer to each goes out on standard output.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from portal_extract.demo.object_server import ObjectServer


@dataclass(frozen=True)
class Served:
    """What the server has answered.

    Attributes
    ----------
    n_requests
        Requests.
    n_bytes
        Bytes of all bodies.
    n_repeated
        Requests for the same part of the same object as an earlier one, metadata not counted.
    first_s
        Time of the first one, on the system's monotonic clock.
    """

    n_requests: int
    n_bytes: int
    n_repeated: int
    first_s: float


class ThrottledServer:
    """An object server that can be slowed down; a context manager.

    Parameters
    ----------
    root
        Folder tree ``root/BUCKET/key``.
    """

    def __init__(self, root: Path) -> None:
        command = [sys.executable, __file__, str(root)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url: str = self._answer()["url"]

    def set_line(self, latency_s: float = 0.0, bandwidth: float | None = None) -> None:
        """Set latency and bandwidth (bytes/s, of all connections together), and forget what was served."""
        self._ask({"latency_s": latency_s, "bandwidth": bandwidth})

    def served(self) -> Served:
        """Tell what was served since the line was set."""
        return Served(**self._ask({}))

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(content) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=10)


def serve(root: Path) -> None:
    """Serve until standard input ends."""
    with ObjectServer(root) as server:
        print(json.dumps({"url": server.url}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            answer = {}
            if asked:
                server.latency_s, server.bandwidth = asked["latency_s"], asked["bandwidth"]
                server.log.clear()
            else:
                entries = server.log.entries
                parts = [
                    (e.path, e.range_header) for e in entries if "/.z" not in e.path and e.body_bytes > 1024
                ]
                answer = {
                    "n_requests": len(entries),
                    "n_bytes": sum(entry.body_bytes for entry in entries),
                    "n_repeated": len(parts) - len(set(parts)),
                    "first_s": min((entry.started_s for entry in entries), default=0.0),
                }
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
