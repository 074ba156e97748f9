"""One process's part of a run: from its beginning or a checkpoint to its end or a stop."""

import bisect
import collections
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.host.devices import any_host, begin_from_devices, from_hosts, gathered
from purerl.host.options import RunOptions, Stopped, Terminated
from purerl.host.programs import Driver, Report
from purerl.host.report.log import Log, make_rows, named, train_return
from purerl.host.report.progress import Progress
from purerl.host.report.writers import make_writers
from purerl.host.store.checkpoint import Snapshot, without_late_noise
from purerl.host.store.folder import RunFolder
from purerl.host.store.retention import RunCheckpoints
from purerl.training.evaluation import Evaluation
from purerl.training.sizes import spread
from purerl.training.state import Totals, TrainState

ROWS = 20  # of the log, where nothing is evaluated
AFTER_CTRL_C = b"\nthe run stops after the chunk it has begun; Ctrl-C again ends it at once\n"
TRIAL = 0.5  # of the wished time of a chunk: what takes less says too little


class Outcome(NamedTuple):
    """What a session came to; the driver holds the state."""

    steps: np.ndarray  # [E]
    returns: np.ndarray  # [S, E]
    failed: np.ndarray  # [S] bool
    stopped: Stopped | None
    trouble: str | None  # what could not be written


class _Chunk(NamedTuple):
    """A part of a run that was begun; the devices may still be computing what came of it."""

    length: int  # iterations
    done: int  # iterations of the run at its end
    report: Report  # whole on every host, and so is the evaluation
    is_row: bool  # whether a row of the log ends with it
    evaluation: Evaluation | None
    copy: tuple[Any, Any] | None  # state and totals at its end, for a checkpoint


class Session:
    """One process's part of a run."""

    def __init__(
        self,
        driver: Driver,
        label: str,
        evaluated: bool,
        folder: RunFolder | None,
        description: dict[str, Any],
        options: RunOptions,
        names: dict[str, np.ndarray] | None = None,
        title: str = "",
    ):
        """Begins nothing yet.

        Args:
            driver: The run's programs.
            label: What is trained.
            evaluated: Whether it is evaluated along the way.
            folder: Where results go; None: nowhere.
            description: What is run, JSON-ready; what is resumed must be the same.
            options: How.
            names: Columns ``[S]`` that name a seed in the log; by default ``seed``, its number.
            title: What the progress bar begins with.
        """
        self.title = title
        self.names = {"seed": np.arange(driver.seeds)} if names is None else names
        self.driver, self.label, self.evaluated = driver, label, evaluated
        self.folder, self.description, self.options = folder, description, options
        self.main = jax.process_index() == 0  # of several hosts, the one that writes
        train = driver.train
        # The iterations after which the log gets a row.
        self.points = train.evaluate_at if evaluated else spread(train.iterations, ROWS)
        self.chunk, self.trial = 0, 1  # iterations; chunk is 0 until it is calibrated
        self.cold = True
        self.steps: list[int] = []
        self.returns: list[np.ndarray] = []  # [S] each
        self.failed = np.zeros(driver.seeds, bool)
        self.stopped: Stopped | None = None
        self.received: list[Stopped] = []
        self.wishes: Any = np.zeros((1, 3), bool)  # of all hosts, a chunk ago
        self.log = Log(make_writers(options.writers) if self.main and folder else [])
        self.trouble: dict[str, str] = {}
        self.kept: RunCheckpoints | None = None
        self.progress: Any = None
        self.held = contextlib.ExitStack()  # the folder's lock

    def run(self, begun: bool) -> Outcome:
        """Everything.

        Args:
            begun: Whether the folder holds this run already.
        """
        with _signals(self.received), without_late_noise():
            try:
                self._begin(begun)
                self._train()
                self._end()
                self.stopped = self.stopped or self._late_signal()
            finally:
                self._close()
        returns = np.stack(self.returns, axis=1) if self.returns else None
        return Outcome(
            np.array(self.steps, int),
            np.zeros((self.driver.seeds, 0)) if returns is None else returns,
            self.failed,
            self.stopped,
            "; ".join(self.trouble.values()) or None,
        )

    def _begin(self, begun: bool) -> None:
        driver, folder, options = self.driver, self.folder, self.options
        newest: dict[str, Any] | None = None
        if folder is not None and begun:
            newest = self._open(folder).newest()
        if newest is None or not newest["finished"]:
            self._compile()
        if (late := self._late_signal()) is not None:  # it came while the programs were compiled
            raise KeyboardInterrupt if late == "SIGINT" else Terminated
        if folder is not None and not begun:
            if self.main:  # only now: what does not compile leaves no folder
                folder.create(self.description, self.options.to_json())
            from_hosts(np.zeros(()))  # no host looks for the folder before it is there
            self._open(folder)
        if newest is not None:
            self._restore(newest["iteration"])
        if driver.done == 0:
            driver.start()
        if folder is not None and self.main:
            # -1: it was interrupted before its first checkpoint, and begins again.
            step = None if not begun else driver.step if newest else -1
            self.log.open(folder.path, folder.read_config(), step)
        total = driver.seeds * driver.train.steps
        self.progress = Progress(
            self.label,
            total,
            driver.seeds * driver.step,
            options.progress and self.main,
            self.title,
        )
        self._check_failed()
        self.saved_at = self.mark = time.perf_counter()

    def _compile(self) -> None:
        if self.driver.program is None and self.options.progress and self.main:
            print(f"compiling {self.label} for {self.driver.seeds} seeds", file=sys.stderr)
        self.driver.compile()

    def _check_failed(self) -> None:
        unfinished = self.driver.done < self.driver.train.iterations
        if self.options.on_failure == "stop" and self.failed.any() and unfinished:
            self.stopped = self.stopped or "failure"

    def _train(self) -> None:
        """Chunk after chunk; the next one is begun before what came of the last one is read: no
        device waits for the host, nor for another device longer than a chunk.
        """
        driver, begun = self.driver, collections.deque[_Chunk]()
        while driver.done < driver.train.iterations and self.stopped is None:
            self.stopped, save = self._decide()
            if self.stopped is not None:
                break
            row = self.points[bisect.bisect_right(self.points, driver.done)]
            left = row - driver.done
            length = even_chunk(left, self.chunk) if self.chunk else min(self.trial, left)
            begun.append(self._begin_chunk(length, length == left, save))
            # A state that may be the best must be kept before the next chunk replaces it.
            keeps_best = self.kept is not None and self.kept.keeps_best
            ahead = self.chunk > 0 and not (begun[-1].is_row and keeps_best)
            while len(begun) > ahead:
                seconds = self._read(begun.popleft())
                if not self.chunk:
                    self._calibrate(length, seconds)
        while begun:
            self._read(begun.popleft())

    def _begin_chunk(self, length: int, is_row: bool, save: bool) -> _Chunk:
        driver = self.driver
        report = gathered(driver.advance(length))  # now: later it would wait behind the next one
        evaluation = gathered(driver.evaluate()) if is_row and self.evaluated else None
        if is_row:
            driver.begin_row()
        copy = driver.copy() if save else None
        return _Chunk(length, driver.done, report, is_row, evaluation, copy)

    def _decide(self) -> tuple[Stopped | None, bool]:
        """Whether to stop, and whether to write a checkpoint; the same on all hosts.

        Several hosts go by what they wished a chunk ago: the devices exchange the answers, and the
        newest ones wait behind the chunk that is being computed.
        """
        now = time.perf_counter()
        due = now - self.saved_at >= self.options.checkpoint_seconds
        due = due and self.main and self.kept is not None
        if due:
            self.saved_at = now
        wishes = np.array(["SIGINT" in self.received, "SIGTERM" in self.received, due])
        if jax.process_count() > 1:
            before, self.wishes = self.wishes, begin_from_devices(wishes, self.driver.layout.mesh)
            wishes = np.any(np.asarray(before), axis=0)  # not on the devices, which are busy
        ctrl_c, terminated, save = wishes
        return "SIGTERM" if terminated else "SIGINT" if ctrl_c else None, bool(save)

    def _calibrate(self, length: int, seconds: float) -> None:
        """Fixes the length of a chunk, once one has taken long enough to be measured."""
        longest = max(np.diff([0, *self.points]))
        if self.cold:  # a device's first execution takes longer
            self.cold = False
            return
        if length < min(self.trial, longest):  # cut short by a row of the log
            return
        wished = self.options.chunk_seconds
        seconds = float(from_hosts(np.array(seconds, np.float32))[0])  # all hosts go the same way
        if seconds >= TRIAL * wished or length >= longest:
            chunk = np.clip(round(length * wished / seconds), 1, longest)
            self.chunk = int(chunk)
        else:
            self.trial *= 2

    def _read(self, chunk: _Chunk) -> float:
        """Waits for a chunk, and shows what came of it; the seconds since the one before."""
        report = jax.device_get(chunk.report)
        seconds = self._tick("training")
        new = report.failed & ~self.failed
        if new.any():
            self.progress.say(
                f"{named(self.names, new)}: an update was not finite by step "
                f"{self.driver.step_after(chunk.done):,}; the learner is kept as it was before it"
            )
        self.failed = np.asarray(report.failed)
        self._check_failed()
        steps = chunk.length * self.driver.train.steps_per_iteration * self.driver.seeds
        count = f"{self.failed.sum()} failed ({named(self.names, self.failed)})"
        self.progress.advance(steps, train_return(report), count if self.failed.any() else "")
        if chunk.is_row:
            self._row(chunk, report)
        if chunk.copy is not None and self.kept is not None:
            self.kept.save(chunk.done, self._snapshot(chunk.done, *chunk.copy))
        return seconds

    def _row(self, chunk: _Chunk, report: Report) -> None:
        """Waits for an evaluation, and writes a row a seed."""
        step = self.driver.step_after(chunk.done)
        evaluation = None
        if chunk.evaluation is not None:
            evaluation = jax.device_get(chunk.evaluation)
            self._tick("evaluating")
            value = np.asarray(evaluation.mean_return)
            self.steps.append(step)
            self.returns.append(value)
            self.progress.evaluated(self.steps, self.returns)
            if self.kept is not None and self.kept.beats_best(value):
                self.kept.save_best(chunk.done, self._snapshot(chunk.done, *self.driver.copy()))
        row_before = [0, *self.points][bisect.bisect_left(self.points, chunk.done)]
        seconds = self.driver.seconds["training"]
        rows = make_rows(step, seconds, evaluation, report, chunk.done - row_before)
        self._note("log", self.log.write(self.names | rows))

    def _open(self, folder: RunFolder) -> RunCheckpoints:
        """Locks the folder, all hosts or none, and opens its checkpoints."""
        refused = None
        try:
            if self.main:
                self.held.enter_context(folder.lock())
        except OSError as error:
            refused = error
        if any_host(refused is not None):
            raise refused or OSError(f"{folder.path} is in use by another process.")
        self.kept = RunCheckpoints(folder.path, self.description, self.options, self._note)
        return self.kept

    def _restore(self, iteration: int) -> None:
        assert self.kept is not None
        snapshot = self.kept.restore(iteration, self.driver.template(), self.driver.layout)
        host = snapshot.host
        self.driver.resume(snapshot, host["iteration"])
        self.chunk, self.steps = host["chunk"], host["steps"]
        self.failed = np.array(host["failed"])
        dtype = jnp.result_type(float)
        self.returns = [np.array(x, dtype) for x in host["returns"]]

    def _snapshot(self, done: int, state: TrainState, totals: Totals) -> Snapshot:
        """The run after so many iterations."""
        host = {
            "iteration": done,
            "step": self.driver.step_after(done),
            "finished": done == self.driver.train.iterations,
            "chunk": self.chunk,
            "seconds": dict(self.driver.seconds),
            "steps": self.steps[:],
            "returns": [x.tolist() for x in self.returns],
            "failed": self.failed.tolist(),
        }
        return Snapshot(state, totals, host)

    def _end(self) -> None:
        """The last checkpoint, and what could not be written before."""
        if self.kept is None:
            return
        # Nothing is donated any more, so it need not be a copy.
        last = self._snapshot(self.driver.done, self.driver.state, self.driver.totals)
        self.kept.save(self.driver.done, last)
        self.kept.wait()
        self._note("log", self.log.flush())

    def _late_signal(self) -> Stopped | None:
        """A signal that came where no chunk is begun after it; the same on all hosts."""
        wishes = np.array(["SIGINT" in self.received, "SIGTERM" in self.received])
        ctrl_c, terminated = np.any(from_hosts(wishes), axis=0)
        return "SIGTERM" if terminated else "SIGINT" if ctrl_c else None

    def _close(self) -> None:
        if self.progress is not None:
            self.progress.close()
        if (trouble := self.log.close()) is not None:
            self.trouble["log"] = trouble
        if self.kept is not None:
            self.kept.close()
        self.held.close()

    def _note(self, what: str, trouble: str | None) -> None:
        if trouble is None:
            self.trouble.pop(what, None)
            return
        if what not in self.trouble:
            self.progress.say(f"{trouble}; the run goes on, and tries again")
        self.trouble[what] = trouble

    def _tick(self, what: str) -> float:
        """Adds the seconds since the last call to those of training or evaluating."""
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        self.driver.seconds[what] += seconds
        return seconds


@contextlib.contextmanager
def _signals(received: list[Stopped]) -> Iterator[None]:
    """Ctrl-C and SIGTERM are put into a list; a second Ctrl-C interrupts at once.

    An exception in the middle of a chunk would lose the state that was given to it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

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


def even_chunk(left: int, most: int) -> int:
    """Iterations of the next chunk, if a distance is cut into as few and as even ones as can be.

    Args:
        left: The distance, in iterations.
        most: Iterations of a chunk at most.
    """
    return -(-left // -(-left // most))
