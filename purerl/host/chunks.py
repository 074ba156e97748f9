"""One process's part of a run: from its beginning or a checkpoint to its end or a stop."""

import bisect
import collections
import contextlib
import dataclasses
import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.host import devices, pacing
from purerl.host.options import STOP, RunOptions, Stopped, Terminated
from purerl.host.programs import Driver, Report
from purerl.host.report.log import Log, check_info, make_rows, named, train_return
from purerl.host.report.progress import Progress
from purerl.host.report.writers import make_writers
from purerl.host.store.checkpoint import Checkpoints, without_late_noise
from purerl.host.store.folder import RunFolder
from purerl.training.evaluation import Evaluation
from purerl.training.sizes import spread
from purerl.training.state import TrainState

ROWS = 20  # of the log, where nothing is evaluated
OnRow = Callable[[dict[str, np.ndarray]], Any]


class _Chunk(NamedTuple):
    """A part of a run that was begun; the devices may still be computing its results."""

    length: int  # iterations
    done: int  # iterations of the run at its end
    report: Report
    is_row: bool  # whether a row of the log ends with it
    evaluation: Evaluation | None
    copy: tuple[Any, Any] | None  # state and totals at its end, for a checkpoint


@dataclasses.dataclass
class Session:
    """One process's part of a run, or of one part of a sweep.

    Attributes:
        driver: The run's programs and state.
        folder: Where results go; None: nowhere.
        description: What is run, JSON-ready; what is resumed must be the same.
        options: How it is driven.
        on_row: Called with the columns of each row of the log; see :func:`purerl.run`.
        learned: Learners and normalizers that the run begins with, instead of new ones.
        names: Columns ``[S]`` that name a seed in the log; by default ``seed``, its number.
        title: What the progress bar begins with.
    """

    driver: Driver
    folder: RunFolder | None
    description: dict[str, Any]
    options: RunOptions
    on_row: OnRow | None = None
    learned: TrainState | None = None
    names: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    title: str = ""

    def __post_init__(self):
        train, options = self.driver.train, self.options
        self.main = jax.process_index() == 0  # of several hosts, the one that writes
        self.shown = options.progress and self.main
        self.names = self.names or {"seed": np.arange(self.driver.seeds)}
        # The iterations after which the log gets a row.
        self.points = train.evaluate_at or spread(train.iterations, ROWS)
        longest = int(max(np.diff([0, *self.points])))
        self.chunks = pacing.ChunkLength(options.chunk_seconds, longest, self.driver.chunk)
        self.log = Log(make_writers(options.writers) if self.main and self.folder else [])
        self.row_at = 0  # iterations at the last row of the log
        self.added: list[str] | None = None  # columns by the user's function, after its first row
        self.steps: list[int] = []  # of the evaluations
        self.returns: list[np.ndarray] = []  # [S] each
        self.failed = np.zeros(self.driver.seeds, bool)
        self.stopped: Stopped | None = None
        self.signals = pacing.Signals(options.checkpoint_seconds, self.driver.layout.mesh)
        self.trouble: dict[str, str] = {}  # what could not be written, by where
        self.kept: Checkpoints | None = None

    def run(self, begun: bool) -> dict[str, Any]:
        """Trains, and writes checkpoints and the log.

        Args:
            begun: Whether the folder holds this run already.

        Returns:
            What its last checkpoint says of it; what ended it early (``stopped``), and what could
            not be written (``trouble``), or None.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.signals.caught())
            stack.enter_context(without_late_noise())
            stack.callback(self.driver.close)
            self._begin(begun, stack)
            self._train()
            if self.kept is not None:
                # Nothing is donated any more, so the state need not be a copy.
                self._save(self.driver.done, self.driver.state, self.driver.totals)
                self._note("checkpoints", self.kept.wait())
                self._note("log", self.log.flush())
            self.stopped = self.stopped or self.signals.late()
        trouble = "; ".join(self.trouble.values()) or None
        return self._record(self.driver.done) | {"stopped": self.stopped, "trouble": trouble}

    def _begin(self, begun: bool, stack: contextlib.ExitStack) -> None:
        driver, folder, newest = self.driver, self.folder, None
        if folder is not None and begun:
            newest = self._open(folder, stack).newest()
        if newest is None or newest["iteration"] < driver.train.iterations:
            check_info(driver.template()[1].info, self.names)
            if driver.programs is None and self.shown:
                label = driver.experiment.label
                print(f"compiling {label} for {driver.seeds} seeds", file=sys.stderr)
            driver.compile()
        if (late := self.signals.late()) is not None:  # it came while the programs were compiled
            raise KeyboardInterrupt if late == "SIGINT" else Terminated
        self.signals.training = True
        if folder is not None:
            if self.main and begun:
                folder.update(self.description)
            elif self.main:  # only now: what does not compile leaves no folder
                folder.create(self.description, self.options.to_json())
            devices.from_hosts(np.zeros(()))  # no host looks for the folder before it is there
            if not begun:
                self._open(folder, stack)
        if newest is not None:
            self._restore(newest["iteration"])
        else:
            driver.start(self.learned)
        stack.callback(self._close_log)
        step = driver.experiment.loop.step(driver.done)
        if folder is not None and self.main:
            # -1: it was interrupted before its first checkpoint, and begins again.
            since = None if not begun else step if newest else -1
            self.log.open(folder.path, folder.read_config(), since)
        steps = driver.seeds * driver.train.steps, driver.seeds * step
        self.progress = Progress(driver.experiment.label, *steps, self.shown, self.title)
        stack.callback(self.progress.close)
        if newest is not None:
            self.progress.say(f"resumed at step {step:,} of each seed")
            if self.added and self.on_row is None:
                columns = ", ".join(self.added)
                self.progress.say(f"on_row is not given again, so {columns} will be NaN")
        elif begun:
            print("there was no checkpoint yet: the run begins again", file=sys.stderr)
        self.signals.saved_at = self.mark = time.perf_counter()
        if folder is not None and self.main and driver.train.evaluate_at:
            # What draws the curves at the end, while the devices are busy.
            drawing = threading.Thread(target=importlib.import_module, args=("matplotlib.figure",))
            drawing.start()
            stack.callback(drawing.join)

    def _open(self, folder: RunFolder, stack: contextlib.ExitStack) -> Checkpoints:
        """Locks the folder, all hosts or none, and opens its checkpoints."""
        refused = None
        try:
            if self.main:
                stack.enter_context(folder.lock())
        except OSError as error:
            refused = error
        if devices.any_host(refused is not None):
            raise refused or OSError(f"{folder.path} is in use by another process.")
        self.kept = Checkpoints(folder.path, self.description, self.options)
        stack.callback(self.kept.close)
        return self.kept

    def _restore(self, iteration: int) -> None:
        assert self.kept is not None
        template = self.driver.template()
        places = self.driver.layout.shardings(template)
        (state, totals), host = self.kept.restore(iteration, template, places)
        self.driver.resume(state, totals, host)
        self.chunks.length = host["chunk"] or self.chunks.length
        self.row_at, self.steps = host["row"], host["steps"]
        self.returns = [np.array(x) for x in host["returns"]]
        self.failed = np.array(host["failed"])
        self.added = host.get("added")

    def _train(self) -> None:
        """Chunk after chunk; the next one is begun before the results of the last one are read: no
        device waits for the host, nor for another device longer than a chunk.
        """
        driver, begun = self.driver, collections.deque[_Chunk]()
        while driver.done < driver.train.iterations and self.stopped is None:
            if self.options.on_failure == "stop" and self.failed.any():
                self.stopped = "failure"
                break
            self.stopped, save = self.signals.decide(self.main and self.kept is not None)
            if self.stopped is not None:
                break
            left = self.points[bisect.bisect_right(self.points, driver.done)] - driver.done
            length = self.chunks.next(left)
            report, is_row = driver.advance(length), length == left
            evaluation = driver.evaluate() if is_row and driver.train.evaluate_at else None
            if is_row:
                driver.begin_row()
            copy = driver.copy() if save else None
            begun.append(_Chunk(length, driver.done, report, is_row, evaluation, copy))
            # A state that may be the best must be kept before the next chunk replaces it.
            keeps_best = self.kept is not None and self.options.keep_best
            ahead = self.chunks.length > 0 and not (is_row and keeps_best)
            while len(begun) > ahead:
                seconds = self._read(begun.popleft())
                if not self.chunks.length:  # all hosts go by the first one's time
                    told = devices.from_hosts(np.array(seconds, np.float32))
                    self.chunks.measured(length, float(told[0]))
        while begun:
            self._read(begun.popleft())

    def _read(self, chunk: _Chunk) -> float:
        """Waits for a chunk, and shows its results; the seconds since the one before."""
        driver, step = self.driver, self.driver.experiment.loop.step(chunk.done)
        report = driver.read(chunk.report)
        seconds = self._tick("training")
        new = report.failed & ~self.failed
        if new.any():
            illegal = np.asarray(report.totals.info.get("no_legal_action", 0.0)) > 0
            why = "a state's action_mask allowed no action" if np.any(illegal & new) else None
            self.progress.say(
                f"{named(self.names, new)}: {why or 'an update was not finite'} by step {step:,}; "
                "the learner is kept as it was before it"
            )
        self.failed = report.failed
        count = f"{self.failed.sum()} failed ({named(self.names, self.failed)})"
        steps = chunk.length * driver.train.steps_per_iteration * driver.seeds
        self.progress.advance(steps, train_return(report), count if self.failed.any() else "")
        if chunk.is_row:
            self._row(chunk, report, step)
        copy = chunk.copy
        if self.kept is not None and chunk.evaluation is not None and copy is None:
            copy = driver.copy() if self.kept.is_best(self.returns[-1]) else None
        if copy is not None:
            self._save(chunk.done, *copy)
        return seconds

    def _row(self, chunk: _Chunk, report: Report, step: int) -> None:
        """Waits for an evaluation, and writes a row a seed."""
        driver, evaluation = self.driver, jax.device_get(chunk.evaluation)
        if evaluation is not None:
            self._tick("evaluating")
            self.steps.append(step)
            self.returns.append(evaluation.mean_return)
            self.progress.evaluated(self.steps, self.returns)
        iterations, self.row_at = chunk.done - self.row_at, chunk.done
        rows = make_rows(step, driver.seconds["training"], evaluation, report, iterations)
        rows = self.names | rows
        self._note("log", self.log.write(rows | self._told(rows)))

    def _told(self, rows: dict[str, Any]) -> dict[str, np.ndarray]:
        """Columns that the user's function adds to rows, the same at each; it may end the run."""
        empty = dict.fromkeys(self.added or [], np.nan)
        if self.on_row is None:
            answer: Any = empty
        else:
            answer = STOP if self.stopped == "hook" else self.on_row(dict(rows))
        if answer is STOP:
            self.stopped = self.stopped or "hook"
            answer = empty
        seeds = self.driver.seeds
        wanted = f"wanted None, purerl.STOP, or a dict of columns [{seeds}]"
        if not isinstance(answer, dict | None):
            raise TypeError(f"on_row returned a {type(answer).__name__}, {wanted}.")
        columns = {}
        for name, x in (answer or {}).items():
            if np.shape(x) not in ((), (seeds,)) or name in rows:
                raise ValueError(f"on_row: column {name!r} of shape {np.shape(x)}, {wanted}.")
            columns[name] = np.broadcast_to(np.asarray(x), seeds)
        if self.added is not None and set(columns) != set(self.added):
            raise ValueError(
                f"on_row returned the columns {list(columns)}, and {self.added} at the row before; "
                "a log has the same columns at each row, so put NaN where there is nothing to say."
            )
        self.added = self.added or list(columns)
        return {name: columns[name] for name in self.added}

    def _record(self, done: int) -> dict[str, Any]:
        """The run after so many iterations, JSON-ready."""
        driver = self.driver
        return {
            "iteration": done,
            "step": driver.experiment.loop.step(done),
            "finished": done == driver.train.iterations,
            "chunk": self.chunks.length,
            "row": self.row_at,
            "seconds": dict(driver.seconds),
            "steps": self.steps[:],
            "returns": [x.tolist() for x in self.returns],
            "failed": self.failed.tolist(),
            "added": self.added,
        }

    def _save(self, done: int, state: Any, totals: Any) -> None:
        assert self.kept is not None
        self._note("checkpoints", self.kept.save(done, state, totals, self._record(done)))

    def _note(self, where: str, trouble: str | None) -> None:
        """Keeps what could not be written, until it could."""
        if trouble is None:
            self.trouble.pop(where, None)
            return
        if where not in self.trouble:
            self.progress.say(f"{trouble}; the run goes on, and tries again")
        self.trouble[where] = trouble

    def _close_log(self) -> None:
        if (trouble := self.log.close()) is not None:
            self.trouble["log"] = trouble

    def _tick(self, what: str) -> float:
        """Adds the seconds since the last call to those of training or evaluating."""
        now = time.perf_counter()
        seconds, self.mark = now - self.mark, now
        self.driver.seconds[what] += seconds
        return seconds
