"""Event loops of one's own: nothing global, nothing that a fork could inherit in use."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_alone(start: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine to its end in an event loop and a thread of its own.

    Works where the caller has a running event loop, as in a notebook.

    Parameters
    ----------
    start
        Makes the coroutine.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(start()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="portal-extract-read", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
