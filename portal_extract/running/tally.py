"""An observer that counts what is read."""

from __future__ import annotations

import threading

from portal_extract.running.events import BytesRead, Event, Observer, StageAdvanced, ignore


class Tally:
    """Counts bytes, requests and views, and passes every event on."""

    def __init__(self, observer: Observer = ignore) -> None:
        self._observer, self._lock = observer, threading.Lock()
        self.bytes_read = self.n_requests = self.n_views = 0

    def __call__(self, event: Event) -> None:
        """Observe."""
        with self._lock:
            if isinstance(event, BytesRead):
                self.bytes_read += event.n_bytes
                self.n_requests += event.n_requests
            elif isinstance(event, StageAdvanced) and event.stage == "extract":
                self.n_views += event.steps
        self._observer(event)
