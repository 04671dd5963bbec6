"""Deadlines and pauses for requests."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")

PAUSE_LIMIT_S = 15.0


def call_within(seconds: float, call: Callable[[], Result]) -> Result:
    """Call, and give up waiting after some time; the call is then left to itself in its own thread.

    Socket timeouts start anew with every byte, so a server that drips would hold a client for ever.

    Parameters
    ----------
    seconds
        How long to wait.
    call
        What to call.

    Raises
    ------
    TimeoutError
        The call did not return in time.
    """
    outcome: SimpleQueue[Future[Result]] = SimpleQueue()

    def work() -> None:
        future: Future[Result] = Future()
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)
        outcome.put(future)

    threading.Thread(target=work, name="portal-request", daemon=True).start()
    try:
        answer = outcome.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    return answer.result()


def pause_s(backoff_s: float, attempt: int) -> float:
    """Seconds before the next attempt: doubled each time, half more or less by chance.

    Parameters
    ----------
    backoff_s
        Mean pause after the first attempt.
    attempt
        Attempts made so far.
    """
    return min(PAUSE_LIMIT_S, backoff_s * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.5)
