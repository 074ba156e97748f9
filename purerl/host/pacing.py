"""The length of a run's chunks, and the signals that end it early."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from purerl.host.options import Stopped
from purerl.host.programs import Driver

AFTER_CTRL_C = b"\nthe run stops after the chunk it has begun; Ctrl-C again ends it at once\n"
TRIAL = 0.5  # of the wished time of a chunk: what takes less is too short to be measured


class ChunkLength:
    """How many iterations a chunk has: trials are doubled until one takes long enough."""

    def __init__(self, seconds: float, longest: int, length: int = 0):
        """The first chunk is a trial of one iteration, unless the length is known.

        Args:
            seconds: Wall time that a chunk should take.
            longest: Iterations at most.
            length: Iterations, if they are known; 0: to be measured.
        """
        self.seconds, self.longest, self.length = seconds, longest, length
        self._trial, self._cold = 1, True

    def next(self, left: int) -> int:
        """Iterations of the next chunk: as few and as even chunks as can be.

        Args:
            left: Iterations to the next row of the log, where a chunk ends.
        """
        if not self.length:
            return min(self._trial, left)
        return -(-left // -(-left // self.length))

    def measured(self, length: int, seconds: float) -> None:
        """Fixes the length, once a trial has taken long enough.

        Args:
            length: Iterations of a trial.
            seconds: Wall time it took.
        """
        if self._cold:  # a device's first execution takes longer
            self._cold = False
        elif length < min(self._trial, self.longest):  # cut short by a row of the log
            return
        elif seconds >= TRIAL * self.seconds or length >= self.longest:
            wished = round(length * self.seconds / max(seconds, 1e-9))
            self.length = max(1, min(wished, self.longest))
        else:
            self._trial *= 2


@contextlib.contextmanager
def catch_signals(received: set[Stopped]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are noted; a second Ctrl-C interrupts at once.

    An exception in the middle of a chunk would lose the state that was given to it. A signal that
    is ignored (nohup) stays ignored.

    Args:
        received: Where to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number, frame):
        received.add("SIGINT" if number == signal.SIGINT else "SIGTERM")
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            os.write(2, AFTER_CTRL_C)

    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Surroundings(NamedTuple):
    """What tests drive a run with.

    Attributes:
        driver: Makes what holds the programs: :class:`Driver`.
        chunk: Iterations of a chunk; 0: measured.
    """

    driver: Callable[..., Driver] = Driver
    chunk: int = 0
