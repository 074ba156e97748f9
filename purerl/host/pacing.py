"""What a run's host side depends on from outside: the length of chunks, signals, the clock."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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
def catch_signals(received: list[Stopped]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are put into a list; a second Ctrl-C interrupts at once.

    An exception in the middle of a chunk would lose the state that was given to it. A signal that
    is ignored (nohup) stays ignored.

    Args:
        received: Where to.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: x for number, x in before.items() if x is not signal.SIG_IGN}

    def handle(number, frame):
        received.append("SIGINT" if number == signal.SIGINT else "SIGTERM")
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)
            os.write(2, AFTER_CTRL_C)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Surroundings(NamedTuple):
    """What a run is driven with; tests give others.

    Attributes:
        driver: Makes what holds the programs: :class:`Driver`.
        chunk: Iterations of a chunk; 0: measured.
        clock: Wall time in seconds.
        signals: Context manager that puts signals into a list.
    """

    driver: Callable[..., Driver] = Driver
    chunk: int = 0
    clock: Callable[[], float] = time.perf_counter
    signals: Callable[[list[Stopped]], Any] = catch_signals
