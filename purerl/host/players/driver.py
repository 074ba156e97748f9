"""Runs in environments that the host plays: S seeds x N environments as one vector.

An iteration is played by the host, which asks one compiled call a step how all seeds act, and then
learned from by another. What is learned, normalized, evaluated, logged and kept is as in a run in
JAX. What cannot be exact is where a run goes on: the state of such an environment cannot be kept,
so what is resumed begins new episodes.
"""

import contextlib
import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.host.compilation import compiler_options
from purerl.host.devices import gathered
from purerl.host.experiment import Experiment
from purerl.host.options import RunOptions
from purerl.host.players.actors import Actors
from purerl.host.players.loops import as_rollout, play_episodes, play_steps
from purerl.host.programs import Driver, Report
from purerl.pieces.rollout import EpisodeStatistics
from purerl.records import Clock, OnPolicyAlgorithm, PyTree, Rollout
from purerl.training.evaluation import Evaluation
from purerl.training.seeds import vectorize
from purerl.training.state import Played, Totals, TrainState

# Folded into the run's key: no iteration has these numbers.
_ACTING, _EVALUATING, _SEEDS = (2**32 - n for n in (3, 4, 5))


def make_driver(
    experiment: Experiment, values: dict[str, np.ndarray], keys: jax.Array, options: RunOptions
) -> Driver:
    """What drives an experiment's seeds: compiled programs alone, or with the host as a player.

    Args:
        experiment: What each seed trains, but for ``values``.
        values: Swept numbers ``[S]`` that differ between seeds, by name.
        keys: Keys ``[S]``.
        options: How it is driven.

    Raises:
        ValueError: If playing is to overlap with learning where it cannot.
    """
    algorithm, env = experiment.parts()
    if options.overlap and (env.outside is None or isinstance(algorithm, OnPolicyAlgorithm)):
        raise ValueError(
            f"overlap=True is for an off-policy run in environments that the host plays, and this "
            f"is {experiment.label}; leave it out."
        )
    kind = Driver if env.outside is None else PlayedDriver
    return kind(experiment, values, keys, options)


def evaluate_played(experiment: Experiment, state: TrainState) -> Evaluation:
    """Evaluates learners where the host plays.

    Args:
        experiment: What was trained, and how it is to be evaluated.
        state: Learners, normalizers and keys ``[S, ...]``, and a clock.

    Returns:
        An evaluation with leaves ``[S]``.
    """
    driver = PlayedDriver(experiment, {}, state.key, RunOptions())
    driver.state = state
    with contextlib.closing(driver):
        return driver.evaluate()


class Acting(NamedTuple):
    """What acting needs of a state; a copy, since training may use the state's memory again.

    Attributes:
        learner: ``[S, ...]``.
        normalizer: ``[S, ...]``.
        key: The runs' keys, ``[S]``.
        clock: Iterations finished.
    """

    learner: PyTree
    normalizer: Any
    key: jax.Array
    clock: Clock


class PlayedPrograms(NamedTuple):
    """What is compiled of a run that the host plays.

    Attributes:
        begin: ``(rows) -> (state, totals, acting)``, before anything is played.
        warm_up: ``(rows, state, rollout) -> (state, acting)``, what is learned of the first steps;
            None where there are none.
        advance: ``(rows, state, totals, rollout, statistics) -> (state, totals, report, acting)``,
            one iteration.
    """

    begin: Any
    warm_up: Any
    advance: Any


class PlayedDriver(Driver):
    """A :class:`Driver` whose environments the host plays."""

    def use(self, values: dict[str, np.ndarray], keys: jax.Array) -> None:
        """As :meth:`Driver.use`."""
        super().use(values, keys)
        self.close()
        self.keys = keys
        self.acting: Any = None  # Acting, of the last iteration or of the one before it
        self.next_acting: Any = None
        self.real = jax.dtypes.canonicalize_dtype(float)
        algorithm, env = self.experiment.parts()
        self.on_policy = isinstance(algorithm, OnPolicyAlgorithm)
        self.whole_episodes = getattr(algorithm, "whole_episodes", False)
        self.idle = env.outside is not None and env.outside.idle
        self.masked = self.whole_episodes or self.idle

    @functools.cached_property
    def _act(self) -> Any:
        """``(rows, acting, obs, number, *remembered) -> (action, log_prob, memory)``.

        On one device: a step is so little that it is not worth to ask two.
        """
        return jax.jit(vectorize(self._act_one, shard=False))

    @functools.cached_property
    def _best(self) -> Any:
        """The same of evaluations, without a log-probability."""
        return jax.jit(vectorize(self._best_one, shard=False))

    def close(self) -> None:
        """As :meth:`Driver.close`."""
        for actors in (getattr(self, "actors", None), getattr(self, "evaluated", None)):
            if actors is not None:
                actors.close()
        self.actors: Any = None
        self.evaluated: Any = None

    def compile(self) -> None:
        """As :meth:`Driver.compile`."""
        if self.programs is not None:
            return
        if jax.process_count() > 1:
            name = self.experiment.environment.name
            raise ValueError(f"{name} is played by the host, which must be the only one.")
        begin, layout = time.perf_counter(), self.layout

        def compiled(function: Any, *given: Any, program: Any = "once", donate: Any = ()) -> Any:
            shapes = jax.tree.map(
                lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
                *(given, layout.shardings(given)),
            )
            jitted = jax.jit(layout.vectorize(function), donate_argnums=donate)
            return jitted.lower(*shapes).compile(compiler_options(program))

        state, totals = self.template()
        first = None
        if self.train.loop.warm_up_length:
            first = compiled(self._warm_up_one, self.rows, state, self._example(True)[0])
        self.programs = PlayedPrograms(
            begin=compiled(self._begin_one, self.rows),
            warm_up=first,
            advance=compiled(
                *(self._learn_one, self.rows, state, totals, *self._example()),
                program=self.experiment.algorithm,
                donate=(1,),
            ),
        )
        self.seconds["compiling"] += time.perf_counter() - begin

    def start(self, learned: TrainState | None = None) -> None:
        """As :meth:`Driver.start`."""
        begin = time.perf_counter()
        self.state, self.totals, self.acting = self.programs.begin(self.rows)
        if self.programs.warm_up is not None:
            rollout, _ = self._collect(self.train.loop.warm_up_length)
            rollout = rollout._replace(log_prob=None)  # type: ignore[arg-type]
            self.state, self.acting = self.programs.warm_up(self.rows, self.state, rollout)
        self.seconds["training"] += time.perf_counter() - begin
        if learned is not None:
            learner, normalizer = self.layout.put((learned.learner, learned.normalizer))
            self.state = self.state._replace(learner=learner, normalizer=normalizer)
            self.acting = self._acting_of(self.state)

    def resume(self, state: TrainState, totals: Totals, host: dict[str, Any]) -> None:
        """As :meth:`Driver.resume`; new episodes begin."""
        super().resume(state, totals, host)
        self.acting = self._acting_of(state)

    def advance(self, iterations: int) -> Report:
        """Trains; the next report is of a state that the devices may still be computing."""
        length, report = self.experiment.loop.rollout_length, None
        for _ in range(iterations):
            before = self.train.loop.warm_up_length + self.done * length
            played = self._collect(length, before)
            self.state, self.totals, report, after = self.programs.advance(
                self.rows, self.state, self.totals, *played
            )
            # Where playing is to overlap with learning, the policy is one update behind.
            late = self.options.overlap and self.next_acting is not None
            self.acting, self.next_acting = self.next_acting if late else after, after
            self.done += 1
        return gathered(report)

    def evaluate(self) -> Evaluation:
        """Plays one episode in each of E environments a seed, stepping those that go on."""
        begin = time.perf_counter()
        episodes, env = self.train.evaluation_episodes, self.experiment.environment
        limit = self.experiment.loop.episode_limit(env)
        if self.evaluated is None:
            self.evaluated = self._make_actors(episodes, _EVALUATING)
        else:
            self.evaluated.reset()
        rows, acting = self._on_one_device((self.rows, self._acting_of(self.state)))

        def act(number: int, obs: PyTree, *remembered: PyTree) -> Any:
            return self._best(rows, acting, obs, _counter(self.done * limit + number), *remembered)

        evaluation = play_episodes(self.evaluated, act, limit)
        seconds = time.perf_counter() - begin
        self.seconds["evaluating"] += seconds
        self.seconds["training"] -= seconds  # to which a session adds all that passes until then
        return evaluation

    def read(self, report: Any) -> Any:
        """As :meth:`Driver.read`."""
        return jax.device_get(report)

    def _make_actors(self, num_envs: int, what: int) -> Actors:
        """Environments of all seeds; where a run goes on, with other seeds than at its start."""

        def numbers(key: jax.Array) -> jax.Array:
            for number in (_SEEDS, what, self.done):
                key = jax.random.fold_in(key, number)
            return jax.random.randint(key, (num_envs,), 0, 2**31 - 1)

        seeds = np.asarray(jax.vmap(numbers)(self.keys)).reshape(-1)
        outside = self.experiment.environment.outside
        assert outside is not None
        player = outside.make(len(seeds), seeds)
        actors = Actors(player, self.seeds, num_envs, self.options.env_seconds)
        init_memory = getattr(self.experiment.parts()[0], "init_memory", None)
        if init_memory is not None:  # each one's first step forgets it
            actors.memory = jax.tree.map(np.asarray, jax.vmap(init_memory)(actors.obs))
        return actors

    def _collect(self, length: int, before: int = 0) -> tuple[Rollout, EpisodeStatistics]:
        """Plays ``length`` steps after those before; leaves ``[S, T, N, ...]`` and ``[S]``."""
        if self.actors is None:
            self.actors = self._make_actors(self.experiment.loop.num_envs, _ACTING)
        rows, acting = self._on_one_device((self.rows, self.acting))

        def act(number: int, obs: PyTree, *remembered: PyTree) -> Any:
            number = before + number
            action, log_prob, memory = self._act(rows, acting, obs, _counter(number), *remembered)
            return action, log_prob if self.on_policy else None, memory

        whole = self.whole_episodes
        steps, sums = play_steps(self.actors, act, length, whole_episodes=whole)
        sums = sums._replace(return_sum=sums.return_sum.astype(self.real))
        rollout = as_rollout(steps, self.actors.memory, masked=self.masked)
        return self.layout.put((rollout, sums))

    def _example(self, warm_up: bool = False) -> tuple[Rollout, EpisodeStatistics]:
        """Shapes and dtypes of what :meth:`_collect` gives: those of a rollout in JAX."""

        def of_one(row: Any) -> Played:
            loop = self._build(row[0]).loop
            state = loop.start(row[1])
            return loop.warm_up(state, row[1]) if warm_up else loop.play(state)

        played = jax.eval_shape(vectorize(of_one, shard=False), self.rows)
        rollout = played.rollout
        return rollout._replace(
            valid=rollout.terminated if self.masked else None
        ), played.statistics

    def _on_one_device(self, tree: PyTree) -> PyTree:
        if self.layout.mesh.size == 1:
            return tree
        return jax.device_put(tree, jax.local_devices()[0])

    def _acting_of(self, state: TrainState) -> Acting:
        return self._copy(_acting_of(state))

    # Of one seed; vectorized.

    def _begin_one(self, row: Any) -> tuple[TrainState, Totals, Acting]:
        state, totals = self._init_one(row)
        return state, totals, _acting_of(state)

    def _init_one(self, row: tuple[dict[str, Any], jax.Array]) -> tuple[TrainState, Totals]:
        train = self._build(row[0])
        state = train.loop.start(row[1])
        totals = train.totals(state)
        if self.idle:
            totals = totals._replace(info=totals.info | {"valid": jnp.zeros((), self.real)})
        return state, totals

    def _warm_up_one(self, row: Any, state: TrainState, rollout: Rollout):
        train = self._build(row[0])
        state = train.loop.begin(state, Played(state.actors, rollout, None))  # type: ignore[arg-type]
        return state, _acting_of(state)

    def _learn_one(self, row, state: TrainState, totals: Totals, rollout, statistics):
        train = self._build(row[0])
        state, metrics = train.loop.learn(state, Played(state.actors, rollout, statistics))
        if self.idle:  # the share of the steps that were transitions
            share = jnp.mean(rollout.valid, dtype=self.real)
            metrics = metrics._replace(info=metrics.info | {"valid": share})
        totals = totals.plus(metrics)
        report = Report(totals, state.refused, train.failed(state._replace(replay=None)))
        return state, totals, report, jax.tree.map(jnp.copy, _acting_of(state))

    def _act_one(self, row: Any, acting: Acting, obs: PyTree, number: Clock, *remembered: PyTree):
        progress = acting.clock.iteration / self.experiment.loop.iterations
        key = jax.random.fold_in(jax.random.fold_in(acting.key, _ACTING), number.iteration)
        action, extras = self._acted(row, acting, obs, key, remembered, progress=progress)
        return action, extras.get("log_prob"), extras.get("memory")

    def _best_one(self, row: Any, acting: Acting, obs: PyTree, number: Clock, *remembered: PyTree):
        key = jax.random.fold_in(jax.random.fold_in(acting.key, _EVALUATING), number.iteration)
        greedy = self.experiment.loop.greedy_evaluation
        how = {"greedy": greedy, "progress": 1.0}
        action, extras = self._acted(row, acting, obs, key, remembered, **how)
        return action, None, extras.get("memory")

    def _acted(self, row: Any, acting: Acting, obs: PyTree, key: jax.Array, remembered, **how: Any):
        values, _ = row
        how |= dict(zip(("memory", "start"), remembered, strict=False))
        experiment = self.experiment.replace(**values) if values else self.experiment
        obs = acting.normalizer.observe(obs, experiment.loop)
        return experiment.parts()[0].act(acting.learner, obs, key, **how)


def _counter(number: int) -> Clock:
    """A number that is the same for all seeds."""
    return Clock(np.int32(number % 2**31))  # type: ignore[arg-type]


def _acting_of(state: TrainState) -> Acting:
    return Acting(state.learner, state.normalizer, state.key, state.clock)
