"""What the two loops share: their records, evaluation along the way, and a run out of its parts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_key
from purerl.config import check_integer
from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.gradient import all_finite
from purerl.pieces.normalize import Moments, RewardScaler, normalize
from purerl.records import Clock, Info, PyTree
from purerl.training.evaluation import Evaluation, evaluate

_EVALUATION = 2**32 - 1  # folded into the run's key: no iteration has this number
_MOST_STEPS = 2**31 - 1


class Normalizer(NamedTuple):
    """Running moments; None for what is not normalized."""

    obs: Moments | None
    reward: RewardScaler | None

    def observe(self, obs: jax.Array) -> jax.Array:
        """Observations as the learner sees them."""
        return obs if self.obs is None else normalize(obs, self.obs)


class TrainState(NamedTuple):
    """All that the rest of a run depends on."""

    clock: Clock
    key: jax.Array  # [] the run's key; iteration i uses fold_in(key, i)
    learner: PyTree  # the algorithm's state
    actors: rollouts.Actors
    normalizer: Normalizer
    refused: jax.Array  # [] int32, updates that were not finite and therefore not made
    replay: Any = None  # the ReplayState of an off-policy run


class Metrics(NamedTuple):
    """What happened in each iteration."""

    step: jax.Array  # [I] environment steps finished
    episodes: rollouts.EpisodeStatistics  # [I] training episodes that ended
    info: Info  # [I] the algorithm's own


class Totals(NamedTuple):
    """Metrics summed over iterations; their size never grows, however many there are."""

    episodes: rollouts.EpisodeStatistics  # [] training episodes that ended
    info: Info  # [] sums of the algorithm's own


class LearningCurve(NamedTuple):
    """Evaluations at chosen steps."""

    step: jax.Array  # [E] environment steps before the evaluation
    evaluation: Evaluation  # [E]


class TrainResult(NamedTuple):
    """A finished run."""

    state: TrainState
    metrics: Metrics
    curve: LearningCurve
    failed: jax.Array  # [] bool: an update was refused, or something became non-finite


class Train(NamedTuple):
    """A whole training run, as pure functions of one seed; ``purerl.vectorize`` maps them."""

    init: Callable[..., TrainState]  # (key) -> state
    advance: Callable[..., tuple[TrainState, Metrics]]  # (state, iterations) -> (state, metrics)
    totals: Callable[..., Totals]  # (state) -> zeros, to begin with
    accumulate: Callable[..., tuple[TrainState, Totals]]  # (state, totals, Clock of how many)
    evaluate: Callable[..., Evaluation]  # (state) -> evaluation; changes nothing
    train: Callable[..., TrainResult]  # (key) -> result: init, then everything
    failed: Callable[..., jax.Array]  # (state) -> bool
    iterations: int
    steps_per_iteration: int
    evaluate_every: int  # iterations; the last iteration is always followed by an evaluation
    steps: int  # warmup_steps + iterations * steps_per_iteration: what is really run
    warmup_steps: int  # environment steps that init takes


class Sizes(NamedTuple):
    """Of a run; what both loops are told."""

    steps: int
    num_envs: int
    rollout_length: int
    evaluations: int
    evaluation_episodes: int
    greedy_evaluation: bool
    max_episode_steps: int | None
    warmup_steps: int = 0  # environment steps that init takes, of the total

    @property
    def steps_per_iteration(self) -> int:
        """Of all environments together."""
        return self.num_envs * self.rollout_length

    @property
    def iterations(self) -> int:
        """Of the whole run; the number of steps is rounded up."""
        return -(-(self.steps - self.warmup_steps) // self.steps_per_iteration)

    def step(self, iteration: jax.Array | int) -> Any:
        """Environment steps after so many iterations.

        Args:
            iteration: Iterations finished.
        """
        return self.warmup_steps + iteration * self.steps_per_iteration

    def check(self, where: str, env: Env) -> None:
        """Raises ValueError where a size is out of range or does not fit the others.

        Args:
            where: Whose argument it is, for the message.
            env: Environment.
        """
        for name, low in (
            ("steps", 1),
            ("num_envs", 1),
            ("rollout_length", 1),
            ("evaluations", 0),
            ("evaluation_episodes", 1),
        ):
            check_integer(where, name, getattr(self, name), low)
        if self.steps + self.steps_per_iteration > _MOST_STEPS:
            raise ValueError(
                f"{where}: steps={self.steps} is more than an int32 counts "
                f"({_MOST_STEPS}); ask for fewer steps, or more seeds."
            )
        if self.max_episode_steps is not None:
            check_integer(where, "max_episode_steps", self.max_episode_steps, 1)
        elif self.evaluations and env.max_episode_steps is None:
            raise ValueError(
                f"{where}: {env.name} has no known time limit to end an evaluation with; give "
                "max_episode_steps, or evaluations=0."
            )
        if self.steps < self.steps_per_iteration:
            raise ValueError(
                f"{where}: steps={self.steps} is less than one iteration, num_envs * "
                f"rollout_length = {self.num_envs} * {self.rollout_length} = "
                f"{self.steps_per_iteration} steps; ask for more steps, or make num_envs or "
                "rollout_length smaller."
            )


def start(
    algorithm: Any, env: Env, sizes: Sizes, normalizer: Normalizer, key: jax.Array
) -> TrainState:
    """A run before its first iteration.

    Args:
        algorithm: On-policy or off-policy.
        env: Environment.
        sizes: Of the run.
        normalizer: That has seen nothing.
        key: The run's key.
    """
    check_key(key)
    run_key, reset_key, learner_key = jax.random.split(key, 3)
    actors = rollouts.reset(env, sizes.num_envs, reset_key)
    learner = algorithm.init(actors.obs, learner_key)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(Clock(zero), run_key, learner, actors, normalizer, zero)


def assemble(
    algorithm: Any,
    env: Env,
    sizes: Sizes,
    init: Callable[[jax.Array], TrainState],
    iterate: Callable[[TrainState], tuple[TrainState, Metrics]],
) -> Train:
    """A run out of its beginning and one iteration.

    Args:
        algorithm: On-policy or off-policy; evaluation acts with it.
        env: Environment.
        sizes: Of the run.
        init: ``(key) -> state``.
        iterate: ``(state) -> (state, metrics)``, one iteration.
    """
    real = jnp.result_type(float)
    iterations, evaluations = sizes.iterations, sizes.evaluations
    evaluate_every = max(1, round(iterations / evaluations)) if evaluations else iterations

    def advance(state: TrainState, iterations: int) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, _: iterate(state), state, length=iterations)

    def totals(state: TrainState) -> Totals:
        metrics = jax.eval_shape(iterate, state)[1]
        zeros = {k: jnp.zeros((), real) for k in metrics.info if k != "finite"}
        count = jnp.zeros((), jnp.int32)
        return Totals(rollouts.EpisodeStatistics(count, jnp.zeros((), real), count), zeros)

    def accumulate(state: TrainState, totals: Totals, count: Clock) -> tuple[TrainState, Totals]:
        def step(_, carry):
            state, totals = carry
            state, metrics = iterate(state)
            episodes = jax.tree.map(jnp.add, totals.episodes, metrics.episodes)
            info = {k: x + metrics.info[k] for k, x in totals.info.items()}
            return state, Totals(episodes, info)

        return jax.lax.fori_loop(0, count.iteration, step, (state, totals))

    def evaluate_state(state: TrainState) -> Evaluation:
        def policy(obs, key):
            obs, greedy = state.normalizer.observe(obs), sizes.greedy_evaluation
            return algorithm.act(state.learner, obs, key, greedy=greedy, progress=1.0)[0]

        key = jax.random.fold_in(state.key, _EVALUATION)
        key = jax.random.fold_in(key, state.clock.iteration)
        episodes, limit = sizes.evaluation_episodes, sizes.max_episode_steps
        return evaluate(policy, env, key, episodes=episodes, max_steps=limit)

    def failed(state: TrainState) -> jax.Array:
        return (state.refused > 0) | ~all_finite((state.learner, state.normalizer))

    def iterate_and_evaluate(state, _):
        state, metrics = iterate(state)
        iteration = state.clock.iteration  # unbatched under vectorize: a real branch
        due = (iteration % evaluate_every == 0) | (iteration == iterations)
        seen = state._replace(replay=None)  # a buffer stays out of the branch
        evaluation = jax.lax.cond(due, evaluate_state, lambda _: _empty_evaluation(real), seen)
        return state, (metrics, evaluation)

    def train(key: jax.Array) -> TrainResult:
        state = init(key)
        if evaluations == 0:
            state, metrics = advance(state, iterations)
            nothing = jax.tree.map(
                lambda x: jnp.zeros((0, *x.shape), x.dtype), _empty_evaluation(real)
            )
            curve = LearningCurve(jnp.zeros(0, jnp.int32), nothing)
            return TrainResult(state, metrics, curve, failed(state))
        state, (metrics, evaluation) = jax.lax.scan(iterate_and_evaluate, state, length=iterations)
        done = evaluation_iterations(iterations, evaluate_every)
        evaluation = jax.tree.map(lambda x: x[jnp.array(done) - 1], evaluation)
        step = sizes.step(jnp.array(done, jnp.int32))
        return TrainResult(state, metrics, LearningCurve(step, evaluation), failed(state))

    return Train(
        init,
        advance,
        totals,
        accumulate,
        evaluate_state,
        train,
        failed,
        iterations,
        sizes.steps_per_iteration,
        evaluate_every,
        sizes.step(iterations),
        sizes.warmup_steps,
    )


def evaluation_iterations(iterations: int, every: int) -> list[int]:
    """The iterations after which a run is evaluated: every ``every``-th and the last.

    Args:
        iterations: Of the whole run.
        every: Interval.
    """
    return sorted({*range(every, iterations + 1, every), iterations})


def _empty_evaluation(dtype: Any) -> Evaluation:
    nan = jnp.full((), jnp.nan, dtype)
    return Evaluation(nan, nan, jnp.zeros((), jnp.int32))
