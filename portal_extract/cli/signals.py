"""Control-C and SIGTERM end a command cleanly, and say so with the exit code that shells expect."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
AGAIN = "what is finished is kept: run the same command again to go on"


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end.

    Parameters
    ----------
    number
        Of the signal.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class Ended(BaseException):
    """Carries an interruption past click, which would turn it into another one."""


@contextmanager
def end_on_signals() -> Iterator[None]:
    """Raise :class:`Interrupted` in the main thread at the first signal; the second one kills.

    Elsewhere than in the main thread, where handlers cannot be set, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[signal.Signals, Any] = {number: signal.getsignal(number) for number in _SIGNALS}

    def end(number: int, frame: FrameType | None) -> None:
        for each in _SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        raise Interrupted(number)

    for number in _SIGNALS:
        # a program started with a signal ignored, as by nohup or in the background of a script, keeps to it
        if before[number] is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code(error: BaseException) -> int:
    """Give the exit code after an interruption: 128 and the number of the signal."""
    return 128 + int(getattr(error.__cause__, "number", signal.SIGINT))
