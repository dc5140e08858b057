"""Interrupts wait until the weights are those of a whole step; a second one waits no more."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from secateur.errors import Advice

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Pending:
    """The signal that waits, if any, and the handlers that were there before."""

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._waiting: int | None = None
        self._process = os.getpid()

    @property
    def waits(self) -> bool:
        """Whether a signal came."""
        return self._waiting is not None

    def deliver(self) -> None:
        """Give the signal to the handler that was there before, which raises; else raise here."""
        if self._waiting in self._before:
            self._before[self._waiting](self._waiting, None)
        raise KeyboardInterrupt

    def take(self, number: int, handler: Callable[[int, FrameType | None], Any]) -> None:
        """Let a signal wait that `handler` would answer at once."""
        self._before[number] = handler
        signal.signal(number, self._came)

    def give_back(self) -> None:
        """Put the handlers back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _came(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            # A forked worker outlives an interrupt of the terminal, and ends when it is told to.
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        if self.waits:
            self._before[number](number, frame)
        self._waiting = number
        warnings.warn(
            "stopping after this step, with a checkpoint; interrupt again to stop at once",
            Advice,
            stacklevel=2,
        )


@contextmanager
def deferred_signals(wanted: bool) -> Iterator[Pending]:
    """Let SIGINT and SIGTERM wait, where Python answers them, in the main thread."""
    pending = Pending()
    if wanted and threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and not isinstance(handler, signal.Handlers):
                pending.take(number, handler)
    try:
        yield pending
    finally:
        pending.give_back()
