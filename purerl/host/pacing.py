"""The length of a run's chunks, and the signals that end it early."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from purerl.host.devices import begin_from_devices, from_hosts
from purerl.host.options import Stopped

WHILE_TRAINING = b"\nthe run stops after the chunk it has begun; Ctrl-C again ends it at once\n"
WHILE_COMPILING = b"\nthe run ends as soon as its programs are compiled\n"
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


class Signals:
    """Whether to stop, and when to write a checkpoint; every host gets the same answers."""

    def __init__(self, seconds: float, mesh: jax.sharding.Mesh):
        """Starts the time to the first checkpoint.

        Args:
            seconds: Wall time between two checkpoints.
            mesh: Of all hosts' devices.
        """
        self.seconds, self.mesh = seconds, mesh
        self.saved_at = time.perf_counter()
        self.training = False  # until then programs are compiled, which nothing interrupts
        self._received: set[int] = set()
        self._before: Any = np.zeros((1, 3), bool)  # wishes of all hosts, a chunk ago

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """While it is entered, Ctrl-C and SIGTERM are noted; a second Ctrl-C interrupts at once.

        An exception in the middle of a chunk would lose the state that was given to it. A signal
        that is ignored (nohup) stays ignored.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number, frame):
            self._received.add(number)
            if number == signal.SIGINT:
                signal.signal(number, signal.default_int_handler)
                os.write(2, WHILE_TRAINING if self.training else WHILE_COMPILING)

        before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def decide(self, writes: bool) -> tuple[Stopped | None, bool]:
        """Whether to stop, and whether to write a checkpoint.

        Several hosts go by what they wished a chunk ago: the devices exchange the answers, and the
        newest ones wait behind the chunk that is being computed.

        Args:
            writes: Whether this host writes checkpoints.
        """
        now = time.perf_counter()
        due = writes and now - self.saved_at >= self.seconds
        if due:
            self.saved_at = now
        wishes = self._wishes(due)
        if jax.process_count() > 1:
            before, self._before = self._before, begin_from_devices(wishes, self.mesh)
            wishes = np.any(np.asarray(before), axis=0)  # not on the devices, which are busy
        return _signal(wishes), bool(wishes[2])

    def late(self) -> Stopped | None:
        """A signal that came where no chunk is begun after it; waits for all hosts."""
        return _signal(np.any(from_hosts(self._wishes(False)), axis=0))

    def _wishes(self, due: bool) -> np.ndarray:
        return np.array([signal.SIGINT in self._received, signal.SIGTERM in self._received, due])


def _signal(wishes: np.ndarray) -> Stopped | None:
    return "SIGTERM" if wishes[1] else "SIGINT" if wishes[0] else None
