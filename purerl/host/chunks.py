"""One process's part of a run: from its beginning or a checkpoint to its end or a stop."""

import bisect
import collections
import contextlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.host.devices import any_host, begin_from_devices, from_hosts, gathered
from purerl.host.options import STOP, RunOptions, Stopped, Terminated
from purerl.host.pacing import ChunkLength, Surroundings
from purerl.host.programs import Driver, Report
from purerl.host.report.log import Log, make_rows, named, train_return
from purerl.host.report.progress import Progress
from purerl.host.report.writers import make_writers
from purerl.host.store.checkpoint import Checkpoints, Snapshot
from purerl.host.store.folder import RunFolder
from purerl.host.store.quiet import without_late_noise
from purerl.training.evaluation import Evaluation
from purerl.training.sizes import spread
from purerl.training.state import Totals, TrainState

ROWS = 20  # of the log, where nothing is evaluated
OnRow = Callable[[dict[str, np.ndarray]], Any]


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
        on_row: OnRow | None = None,
        learned: TrainState | None = None,
        surroundings: Surroundings = Surroundings(),  # noqa: B008  (immutable)
    ):
        """Makes the writers, and opens nothing.

        Args:
            driver: The run's programs.
            label: What is trained.
            evaluated: Whether it is evaluated along the way.
            folder: Where results go; None: nowhere.
            description: What is run, JSON-ready; what is resumed must be the same.
            options: How.
            names: Columns ``[S]`` that name a seed in the log; by default ``seed``, its number.
            title: What the progress bar begins with.
            on_row: Called with the columns of each row of the log; see :func:`purerl.run`.
            learned: What the run begins with instead of new learners.
            surroundings: Clock, signals, length of chunks.
        """
        self.title, self.on_row, self.learned, self.around = title, on_row, learned, surroundings
        self.names = {"seed": np.arange(driver.seeds)} if names is None else names
        self.driver, self.label, self.evaluated = driver, label, evaluated
        self.folder, self.description, self.options = folder, description, options
        self.main = jax.process_index() == 0  # of several hosts, the one that writes
        train = driver.train
        # The iterations after which the log gets a row.
        self.points = train.evaluate_at if evaluated else spread(train.iterations, ROWS)
        longest = int(max(np.diff([0, *self.points])))
        self.chunks = ChunkLength(options.chunk_seconds, longest, surroundings.chunk)
        self.row_at = 0  # iterations at the last row of the log
        self.added: list[str] = []  # columns by the user's function
        self.steps: list[int] = []
        self.returns: list[np.ndarray] = []  # [S] each
        self.failed = np.zeros(driver.seeds, bool)
        self.stopped: Stopped | None = None
        self.received: list[Stopped] = []
        self.wishes: Any = np.zeros((1, 3), bool)  # of all hosts, a chunk ago
        self.log = Log(make_writers(options.writers) if self.main and folder else [])
        self.trouble: dict[str, str] = {}
        self.kept: Checkpoints | None = None
        self.progress: Any = None
        self.held = contextlib.ExitStack()  # the folder's lock

    def run(self, begun: bool) -> Outcome:
        """Everything.

        Args:
            begun: Whether the folder holds this run already.
        """
        with self.around.signals(self.received), without_late_noise():
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
        if newest is None or newest["iteration"] < driver.train.iterations:
            self._compile()
        if (late := self._late_signal()) is not None:  # it came while the programs were compiled
            raise KeyboardInterrupt if late == "SIGINT" else Terminated
        if folder is not None:
            if self.main and not begun:  # only now: what does not compile leaves no folder
                folder.create(self.description, self.options.to_json())
            elif self.main:
                folder.update(self.description)
            from_hosts(np.zeros(()))  # no host looks for the folder before it is there
            if not begun:
                self._open(folder)
        if newest is not None:
            self._restore(newest["iteration"])
        if driver.done == 0:
            driver.start(self.learned)
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
        self.saved_at = self.mark = self.around.clock()

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
            length = self.chunks.next(left)
            begun.append(self._begin_chunk(length, length == left, save))
            # A state that may be the best must be kept before the next chunk replaces it.
            keeps_best = self.kept is not None and self.options.keep_best
            ahead = self.chunks.length > 0 and not (begun[-1].is_row and keeps_best)
            while len(begun) > ahead:
                seconds = self._read(begun.popleft())
                if not self.chunks.length:  # all hosts go by the first one's time
                    told = from_hosts(np.array(seconds, np.float32))
                    self.chunks.measured(length, float(told[0]))
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
        now = self.around.clock()
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

    def _read(self, chunk: _Chunk) -> float:
        """Waits for a chunk, and shows what came of it; the seconds since the one before."""
        report = self.driver.read(chunk.report)
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
        copy = chunk.copy
        if self.kept is not None and chunk.evaluation is not None and copy is None:
            copy = self.driver.copy() if self.kept.is_best(self.returns[-1]) else None
        if self.kept is not None and copy is not None:
            trouble = self.kept.save(chunk.done, self._snapshot(chunk.done, *copy))
            self._note("checkpoints", trouble)
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
        seconds = self.driver.seconds["training"]
        rows = make_rows(step, seconds, evaluation, report, chunk.done - self.row_at)
        self.row_at = chunk.done
        self._note("log", self.log.write(self._told(self.names | rows)))

    def _told(self, rows: dict[str, Any]) -> dict[str, Any]:
        """The rows, and what the user's function adds to them."""
        if self.on_row is None:
            return rows
        answer = STOP if self.stopped == "hook" else self.on_row(dict(rows))
        if answer is STOP:
            self.stopped = self.stopped or "hook"
            answer = dict.fromkeys(self.added, np.nan)
        wanted = f"wanted None, purerl.STOP, or a dict of columns [{self.driver.seeds}]"
        if not isinstance(answer, dict | None):
            raise TypeError(f"on_row returned a {type(answer).__name__}, {wanted}.")
        for name, x in (answer or {}).items():
            if np.shape(x) not in ((), (self.driver.seeds,)) or name in rows:
                raise ValueError(f"on_row: column {name!r} of shape {np.shape(x)}, {wanted}.")
            rows[name] = np.broadcast_to(np.asarray(x), self.driver.seeds)
        self.added = list(answer or {})
        return rows

    def _open(self, folder: RunFolder) -> Checkpoints:
        """Locks the folder, all hosts or none, and opens its checkpoints."""
        refused = None
        try:
            if self.main:
                self.held.enter_context(folder.lock())
        except OSError as error:
            refused = error
        if any_host(refused is not None):
            raise refused or OSError(f"{folder.path} is in use by another process.")
        self.kept = Checkpoints(folder.path, self.description, self.options)
        return self.kept

    def _restore(self, iteration: int) -> None:
        assert self.kept is not None
        snapshot = self.kept.restore(iteration, self.driver.template(), self.driver.layout)
        host = snapshot.host
        self.driver.resume(snapshot, host["iteration"])
        self.chunks.length = host["chunk"] or self.chunks.length
        self.row_at, self.steps = host["row"], host["steps"]
        self.failed = np.array(host["failed"])
        dtype = jnp.result_type(float)
        self.returns = [np.array(x, dtype) for x in host["returns"]]

    def _snapshot(self, done: int, state: TrainState, totals: Totals) -> Snapshot:
        """The run after so many iterations."""
        host = {
            "iteration": done,
            "step": self.driver.step_after(done),
            "finished": done == self.driver.train.iterations,
            "chunk": self.chunks.length,
            "row": self.row_at,
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
        self._note("checkpoints", self.kept.wait())
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
        now = self.around.clock()
        seconds, self.mark = now - self.mark, now
        self.driver.seconds[what] += seconds
        return seconds
