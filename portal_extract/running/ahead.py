"""The next stream is opened while the present one is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, Protocol, Self, TypeVar


class Opened(Protocol):
    """Something that reads, from its opening on."""

    def prepare(self) -> None:
        """Look at what will be read, and begin as soon as what was opened before lets it."""

    def close(self) -> None:
        """Stop reading, and give everything free."""


T = TypeVar("T", bound=Opened)


@dataclass(frozen=True)
class Opener(Generic[T]):
    """Opens something.

    Attributes
    ----------
    open
        Does it.
    may_be_early
        Whether it may be opened, in another thread, while what comes before it is read.
    """

    open: Callable[[], T]
    may_be_early: bool = True


class Ahead(Generic[T]):
    """Opens one thing after the other, the next one in advance; a context manager.

    Parameters
    ----------
    openers
        Taken one by one, at most one in advance.
    """

    def __init__(self, openers: Iterable[Opener[T]]) -> None:
        self._source = iter(openers)
        self._next: Opener[T] | None = next(self._source, None)
        self._early: Future[T] | None = None
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="open-ahead")

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to open."""
        return self._next is None

    def take(self) -> T:
        """Open what comes next, or wait until it is open; :meth:`look_ahead` is due then.

        Raises
        ------
        Exception
            Whatever opening raises.
        """
        assert self._next is not None
        opener, early = self._next, self._early
        self._next = self._early = None
        return _open(opener) if early is None else early.result()

    def look_ahead(self) -> None:
        """Begin to open what comes next, if it may be opened early."""
        self._next = next(self._source, None)
        if self._next is not None and self._next.may_be_early:
            self._early = self._helper.submit(_open, self._next)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # not waited for: it may hang on a store, and ends when the reader that it uses is closed
        self._helper.shutdown(wait=False, cancel_futures=True)
        if self._early is not None:
            self._early.add_done_callback(_close)


def _open(opener: Opener[T]) -> T:
    opened = opener.open()
    try:
        opened.prepare()
    except BaseException:
        opened.close()
        raise
    return opened


def _close(future: Future[T]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().close()
