"""One process's part of a run: from its beginning or a checkpoint to its end or a stop."""

import collections
import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checkpoint import BEST, NEWEST, Checkpoints, Snapshot
from purerl.driver import Driver, Report
from purerl.folder import RunFolder, check_same
from purerl.progress import Progress
from purerl.provenance import environment
from purerl.statistics import iqm
from purerl.train.evaluate import Evaluation
from purerl.train.loop import evaluation_iterations
from purerl.train.sharding import Shard, any_host, begin_from_devices, from_hosts, gathered
from purerl.validation import check_choice, check_integer, check_range, suggest
from purerl.writers import Log, Writer, make_writers

ROWS = 20  # of the log, where nothing is evaluated
AFTER_CTRL_C = b"\nthe run stops after the chunk it has begun; Ctrl-C again ends it at once\n"
TRIAL = 0.5  # of the wished time of a chunk: what takes less says too little
INEXACT = (
    "; the run would not be bitwise the same: continue it where it began, or accept differences of "
    "rounding with --inexact"
)
Stopped = Literal["SIGINT", "SIGTERM", "failure"]


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with status 143; ``result`` is what was done until then."""

    def __init__(self, result: Any = None):
        super().__init__(128 + signal.SIGTERM)
        self.result = result


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is driven; none of it changes a number of the run."""

    progress: bool = True
    """Show a progress bar."""
    chunk_seconds: float = 1.0
    """Wall time of a chunk, about: between two looks at the progress; Ctrl-C waits for up to two."""
    checkpoint_seconds: float = 300.0
    """Wall time between two checkpoints; there is always one at the end."""
    keep: int = 2
    """The newest checkpoints that are kept."""
    keep_best: bool = False
    """Also keep the checkpoint of the evaluation with the highest IQM."""
    writers: tuple[str | Writer, ...] = ("csv",)
    """Where rows go: csv, jsonl, tensorboard, wandb, or writers of your own."""
    on_failure: Literal["continue", "stop"] = "continue"
    """When a seed becomes non-finite: go on with the others, or stop the run."""
    shard: Shard = "seeds"
    """Spread whole seeds over the devices, or the environments of each seed."""
    inexact: bool = False
    """Resume although versions or devices differ; the numbers are then equal to rounding only."""

    def __post_init__(self):
        check_range("run", "chunk_seconds", self.chunk_seconds, 0, 3600, low_open=True)
        check_range("run", "checkpoint_seconds", self.checkpoint_seconds, 0)
        check_integer("run", "keep", self.keep, 1)
        check_choice("run", "on_failure", self.on_failure, ("continue", "stop"))
        check_choice("run", "shard", self.shard, ("seeds", "environments"))
        make_writers(self.writers)

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; writers that are no names are left out."""
        names = [writer for writer in self.writers if isinstance(writer, str)]
        return {**vars(self), "writers": names}

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Options out of a function's keyword arguments.

        Args:
            options: By name.

        Raises:
            TypeError: If a name is unknown.
            ValueError: If a value is out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                raise TypeError(f"run has no option {name!r}. {suggest(name, names)}")
        chosen: dict[str, Any] = {**options}
        if "writers" in chosen:
            chosen["writers"] = tuple(chosen["writers"])
        return cls(**chosen)


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
        """
        self.names = {"seed": np.arange(driver.seeds)} if names is None else names
        self.driver, self.label, self.evaluated = driver, label, evaluated
        self.folder, self.description, self.options = folder, description, options
        self.main = jax.process_index() == 0  # of several hosts, the one that writes
        self.circumstances = circumstances(options.shard)
        train = driver.train
        every = train.evaluate_every if evaluated else -(-train.iterations // ROWS)
        self.points = evaluation_iterations(train.iterations, every)  # rows of the log
        self.chunk, self.trial = 0, 1  # iterations; chunk is 0 until it is calibrated
        self.cold = True
        self.steps: list[int] = []
        self.returns: list[np.ndarray] = []  # [S] each
        self.best_iqm = -np.inf
        self.failed = np.zeros(driver.seeds, bool)
        self.stopped: Stopped | None = None
        self.received: list[Stopped] = []
        self.wishes: Any = np.zeros((1, 3), bool)  # of all hosts, a chunk ago
        self.log = Log(make_writers(options.writers) if self.main and folder else [])
        self.trouble: dict[str, str] = {}
        self.newest: Checkpoints | None = None
        self.best: Checkpoints | None = None
        self.progress: Any = None
        self.held = contextlib.ExitStack()  # the folder's lock

    def run(self, begun: bool) -> Outcome:
        """Everything.

        Args:
            begun: Whether the folder holds this run already.
        """
        with _signals(self.received):
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
        iterations: list[int] = []
        if folder is not None and begun:
            self._lock(folder)
            iterations = self._open(folder)
        if not (iterations and self._host(iterations[-1])["finished"]):
            driver.compile()
        if (late := self._late_signal()) is not None:  # it came while the programs were compiled
            raise KeyboardInterrupt if late == "SIGINT" else Terminated
        if folder is not None and not begun:
            if self.main:  # only now: what does not compile leaves no folder
                folder.create(self.description, self.options.to_json())
            from_hosts(np.zeros(()))  # no host looks for the folder before it is there
            self._lock(folder)
            self._open(folder)
        if iterations:
            self._restore(iterations[-1])
        if driver.done == 0:
            driver.start()
        if folder is not None and self.main:
            # -1: it was interrupted before its first checkpoint, and begins again.
            step = None if not begun else driver.step if iterations else -1
            self.log.open(folder.path, folder.read_config(), step)
        total = driver.seeds * driver.train.total_steps
        self.progress = Progress(
            self.label, total, driver.seeds * driver.step, options.progress and self.main
        )
        self._check_failed()
        self.saved_at = self.mark = time.perf_counter()

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
            left = next(p for p in self.points if p > driver.done) - driver.done  # to a row
            length = even_chunk(left, self.chunk) if self.chunk else min(self.trial, left)
            begun.append(self._begin_chunk(length, length == left, save))
            # A state that may be the best must be kept before the next chunk replaces it.
            ahead = self.chunk > 0 and not (begun[-1].is_row and self.best is not None)
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
        due = due and self.main and self.newest is not None
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
        self.progress.advance(steps, _train_return(report), count if self.failed.any() else "")
        if chunk.is_row:
            self._row(chunk, report)
        if chunk.copy is not None:
            self._wait(self.best)  # what is resumed from the newest would not see it again
            self._save(self.newest, chunk.done, chunk.copy)
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
            if self.best is not None and iqm(value) > self.best_iqm:  # not if it is no number
                self.best_iqm = float(iqm(value))
                self._save(self.best, chunk.done, self.driver.copy())
        row_before = max(p for p in (0, *self.points) if p < chunk.done)
        seconds = self.driver.seconds["training"]
        rows = _rows(step, seconds, evaluation, report, chunk.done - row_before)
        self._note("log", self.log.write(self.names | rows))

    def _save(self, checkpoints: Checkpoints | None, done: int, copy: tuple[Any, Any]) -> None:
        """Begins to write a checkpoint; trouble is told, and the run goes on.

        Args:
            checkpoints: Where.
            done: Iterations.
            copy: State and totals after them, in memory of their own: the run goes on meanwhile.
        """
        if checkpoints is None:
            return
        host = {
            "run": self.description,
            "environment": self.circumstances,
            "iteration": done,
            "step": self.driver.step_after(done),
            "finished": done == self.driver.train.iterations,
            "chunk": self.chunk,
            "seconds": dict(self.driver.seconds),
            "steps": self.steps[:],
            "returns": [x.tolist() for x in self.returns],
            "failed": self.failed.tolist(),
        }
        try:
            checkpoints.save(done, Snapshot(*copy, host))
            self._note(checkpoints.path.name, None)
        except OSError as error:
            self._note(checkpoints.path.name, str(error))
            if checkpoints is self.best:
                self.best_iqm = self._best_kept()

    def _lock(self, folder: RunFolder) -> None:
        """All hosts, or none."""
        refused = None
        try:
            if self.main:
                self.held.enter_context(folder.lock())
        except OSError as error:
            refused = error
        if any_host(refused is not None):
            raise refused or OSError(f"{folder.path} is in use by another process.")

    def _open(self, folder: RunFolder) -> list[int]:
        """Opens the folders of checkpoints; the iterations of those that are there."""
        self.newest = Checkpoints(folder.path / NEWEST, self.options.keep)
        if self.options.keep_best:
            self.best = Checkpoints(folder.path / BEST, 1)
            self.best_iqm = self._best_kept()
        return self.newest.iterations()

    def _best_kept(self) -> float:
        """IQM of the evaluation whose state is kept as the best."""
        assert self.best is not None
        iterations = self.best.iterations()
        if not iterations:
            return -np.inf
        return float(iqm(self.best.read_host(iterations[-1])["returns"][-1]))

    def _host(self, iteration: int) -> dict[str, Any]:
        """What a checkpoint says of itself, if it is of this run."""
        assert self.newest is not None
        where = str(self.newest.path / str(iteration))
        host = self.newest.read_host(iteration)
        check_same(self.description, host["run"], where)
        if not self.options.inexact:
            check_same(self.circumstances, host["environment"], where, INEXACT)
        return host

    def _restore(self, iteration: int) -> None:
        assert self.newest is not None
        snapshot = self.newest.restore(iteration, self.driver.template(), self.driver.layout)
        host = snapshot.host
        self.driver.resume(snapshot, host["iteration"])
        self.chunk, self.steps = host["chunk"], host["steps"]
        self.failed = np.array(host["failed"])
        dtype = jnp.result_type(float)
        self.returns = [np.array(x, dtype) for x in host["returns"]]

    def _end(self) -> None:
        """The last checkpoint, and what could not be written before."""
        if self.newest is None:
            return
        self._wait(self.best)
        # Nothing is donated any more, so it need not be a copy.
        self._save(self.newest, self.driver.done, (self.driver.state, self.driver.totals))
        self._wait(self.newest)
        self._note("log", self.log.flush())

    def _wait(self, checkpoints: Checkpoints | None) -> None:
        """Until what was begun to be written is written."""
        if checkpoints is None:
            return
        try:
            checkpoints.wait()
            if self.driver.done in checkpoints.iterations():
                self._note(checkpoints.path.name, None)
        except OSError as error:
            self._note(checkpoints.path.name, str(error))
            if checkpoints is self.best:
                self.best_iqm = self._best_kept()

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
        for checkpoints in (self.newest, self.best):
            if checkpoints is not None:
                checkpoints.close()
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


def circumstances(shard: Shard) -> dict[str, Any]:
    """What the last bits of a run depend on besides what is run; the same on all hosts.

    Args:
        shard: What is spread over the devices.
    """
    return environment() | {"shard": shard}


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


def named(names: dict[str, np.ndarray], which: np.ndarray) -> str:
    """Seeds in words, such as "seed 1, 4", or of a sweep "point/seed 0/1, 3/0".

    Args:
        names: Columns ``[S]``.
        which: ``[S]`` bool.

    Returns:
        The first five; nothing if there are none.
    """
    rows = np.flatnonzero(which)
    if not len(rows):
        return ""
    first = ", ".join("/".join(str(x[i]) for x in names.values()) for i in rows[:5])
    return f"{'/'.join(names)} {first}{', ...' if len(rows) > 5 else ''}"


def even_chunk(left: int, most: int) -> int:
    """Iterations of the next chunk, if a distance is cut into as few and as even ones as can be.

    Args:
        left: The distance, in iterations.
        most: Iterations of a chunk at most.
    """
    return -(-left // -(-left // most))


def _train_return(report: Report) -> np.ndarray:
    """Mean return ``[S]`` of the training episodes since the last row; NaN where none ended."""
    episodes = report.totals.episodes
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(episodes.return_sum / episodes.ended)


def _rows(
    step: int, seconds: float, evaluation: Evaluation | None, report: Report, iterations: int
) -> dict[str, Any]:
    """The log's columns, after the names: one evaluation, and the training since the one before."""
    evaluated: dict[str, Any] = {}
    if evaluation is not None:
        evaluated = {
            "return": evaluation.mean_return,
            "length": evaluation.mean_length,
            "unfinished": evaluation.unfinished,
        }
    return {
        "step": np.full(len(report.failed), step),
        **evaluated,
        "train_return": _train_return(report),
        "train_episodes": report.totals.episodes.ended,
        "refused": report.refused,
        "failed": report.failed.astype(int),
        "seconds": np.full(len(report.failed), round(seconds, 3)),
        **{k: np.asarray(x / iterations) for k, x in sorted(report.totals.info.items())},
    }
