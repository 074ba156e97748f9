"""The compiled programs of a run of many seeds, and their state, on the devices."""

import concurrent.futures
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.host.compilation import compiler_options
from purerl.host.devices import gathered, make_layout
from purerl.host.experiment import Experiment
from purerl.host.options import RunOptions
from purerl.records import Clock
from purerl.training.evaluation import Evaluation
from purerl.training.state import Totals, Train, TrainState


class Report(NamedTuple):
    """Device-side summary of a run after one chunk.

    Attributes:
        totals: Sums since the last row of the log, leaves ``[S]``.
        refused: Updates that were not finite and therefore not made, ``[S]`` int32.
        failed: Whether an update was refused or something is not finite, ``[S]`` bool.
    """

    totals: Totals
    refused: jax.Array
    failed: jax.Array


class Programs(NamedTuple):
    """What is compiled of a run.

    Attributes:
        begin: ``(rows) -> (state, totals)``.
        advance: ``(rows, state, totals, count) -> (state, totals, report)``.
        evaluate: ``(rows, state) -> evaluation``; None where nothing is evaluated.
    """

    begin: Any
    advance: Any
    evaluate: Any = None


class Driver:
    """Holds a run's state and its compiled programs, and measures the time of each.

    One program trains any number of iterations, so a chunk can have any length; and since the sums
    for the log are a part of what it carries on, no number depends on where a run was cut.

    Attributes:
        chunk: Iterations of a chunk; 0: measured.
    """

    chunk = 0

    def __init__(
        self,
        experiment: Experiment,
        values: dict[str, np.ndarray],
        keys: jax.Array,
        options: RunOptions,
    ):
        """Builds the run; :meth:`compile` compiles its programs.

        Args:
            experiment: What each seed trains, but for ``values``.
            values: Swept numbers ``[S]`` that differ between seeds, by name.
            keys: Keys ``[S]``.
            options: How the run is driven.
        """
        self.experiment, self.seeds, self.train = experiment, len(keys), experiment.build()
        self.options = options
        self.layout = make_layout(options.shard, self.seeds, experiment.loop.num_envs)
        self.use(values, keys)
        self._init = jax.jit(self.layout.vectorize(self._init_one))
        self._copy = jax.jit(lambda x: jax.tree.map(jnp.copy, x))
        self.programs: Any = None  # Programs, once they are compiled

    def use(self, values: dict[str, np.ndarray], keys: jax.Array) -> None:
        """Other seeds, as many, for the same programs; what was trained before is forgotten.

        Args:
            values: Hyper-parameters ``[S]`` of the same names.
            keys: Keys ``[S]``.
        """
        self.rows = self.layout.put(({name: jnp.asarray(x) for name, x in values.items()}, keys))
        self.state: Any = None  # frees the memory of what was trained before
        self.totals: Any = None
        self.done = 0  # iterations
        self.seconds = {"compiling": 0.0, "training": 0.0, "evaluating": 0.0}

    def compile(self) -> None:
        """Compiles what begins, what trains and what evaluates, if that is not done yet.

        XLA compiles outside the interpreter's lock: one program while the next is traced, two on
        two cores. Hosts may wait for one another when they compile, so each of several has the
        same order.
        """
        if self.programs is not None:
            return
        begin, threads = time.perf_counter(), 2 if jax.process_count() == 1 else 1
        with concurrent.futures.ThreadPoolExecutor(threads) as pool:
            start = compiler_options("once" if self.train.loop.warm_up_length else "start")
            jobs = [pool.submit(self._init.lower(self.rows).compile, start)]
            count = jax.eval_shape(lambda: Clock(jnp.int32(0)))
            given = self.rows, *self.template(), count
            arguments = jax.tree.map(
                lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                *(given, self.layout.shardings(given)),
            )
            advance = jax.jit(self.layout.vectorize(self._advance_one), donate_argnums=1)
            options = compiler_options(self.experiment.algorithm)
            jobs.append(pool.submit(advance.lower(*arguments).compile, options))
            if self.train.evaluate_at:
                of_one = lambda row, state: self._build(row[0]).evaluate(state)  # noqa: E731
                evaluate = jax.jit(self.layout.vectorize(of_one))
                jobs.append(pool.submit(evaluate.lower(arguments[0], _seen(arguments[1])).compile))
            self.programs = Programs(*(job.result() for job in jobs))
        self.seconds["compiling"] += time.perf_counter() - begin

    def program_bytes(self) -> int:
        """Memory of one device that training takes, by the compiler's own analysis."""
        sizes = self.programs.advance.memory_analysis()
        results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + results

    def template(self) -> tuple[TrainState, Totals]:
        """Shapes and dtypes of state and totals."""
        return self._init.eval_shape(self.rows)

    def start(self, learned: TrainState | None = None) -> None:
        """Begins the run.

        Args:
            learned: Learners and normalizers ``[S, ...]`` of another run to begin with, as
                :meth:`template` has them.
        """
        begin = time.perf_counter()
        self.state, self.totals = jax.block_until_ready(self.programs.begin(self.rows))
        # It is training: an off-policy run acts before its first iteration.
        self.seconds["training"] += time.perf_counter() - begin
        if learned is not None:
            learner, normalizer = self.layout.put((learned.learner, learned.normalizer))
            self.state = self.state._replace(learner=learner, normalizer=normalizer)

    def resume(self, state: TrainState, totals: Totals, host: dict[str, Any]) -> None:
        """Goes on from where a checkpoint was written.

        Args:
            state: Of the run.
            totals: Since the last row of the log.
            host: What else the checkpoint says of it.
        """
        self.state, self.totals = state, totals
        self.done = host["iteration"]
        for what, seconds in host["seconds"].items():
            self.seconds[what] += seconds

    def advance(self, iterations: int) -> Report:
        """Begins to train; the report is gathered from all hosts.

        Args:
            iterations: How many.
        """
        # NumPy's number: JAX's would be computed, behind what the devices are computing.
        count = self.layout.put(Clock(np.int32(iterations)))  # type: ignore[arg-type]
        self.state, self.totals, report = self.programs.advance(
            self.rows, self.state, self.totals, count
        )
        self.done += iterations
        return gathered(report)  # now: later it would wait behind the next chunk

    def read(self, report: Report) -> Any:
        """Waits for a chunk's report.

        Args:
            report: Of the devices.
        """
        return jax.device_get(report)

    def begin_row(self) -> None:
        """Sums for the log begin at zero again."""
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), self.totals)
        self.totals = self.layout.put(zeros)

    def evaluate(self) -> Evaluation:
        """Begins to evaluate all seeds; the evaluation is gathered from all hosts."""
        return gathered(self.programs.evaluate(self.rows, _seen(self.state)))

    def close(self) -> None:
        """Ends what the host plays; compiled programs stay."""

    def copy(self) -> tuple[TrainState, Totals]:
        """The state and totals as they are, in memory of their own, while training goes on."""
        return self._copy((self.state, self.totals))

    def _build(self, values: dict[str, Any]) -> Train:
        """One seed's run; its swept numbers are tracers."""
        return self.experiment.replace(**values).build() if values else self.train

    def _init_one(self, row: tuple[dict[str, Any], jax.Array]) -> tuple[TrainState, Totals]:
        train = self._build(row[0])
        state = train.init(row[1])
        return state, train.totals(state)

    def _advance_one(self, row, state: TrainState, totals: Totals, count: Clock):
        train = self._build(row[0])
        state, totals = train.accumulate(state, totals, count)
        return state, totals, Report(totals, state.refused, train.failed(_seen(state)))


def _seen(state: TrainState) -> TrainState:
    """What of a state an evaluation sees: all but the replay buffer."""
    return state._replace(replay=None)
