"""The on-policy loop: unroll, update, again."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl import rollout as rollouts
from purerl.envs import Env
from purerl.normalize import (
    Moments,
    RewardScaler,
    init_moments,
    init_reward_scaler,
    merge_moments,
    normalize,
    scale_rewards,
)
from purerl.optimize import all_finite
from purerl.train.evaluate import Evaluation, evaluate
from purerl.types import Clock, Info, OnPolicyAlgorithm, PyTree
from purerl.validation import check_integer, check_key, check_range

_EVALUATION = 2**32 - 1  # folded into the run's key: no iteration has this number


class Normalizer(NamedTuple):
    """Running moments; None for what is not normalized."""

    obs: Moments | None
    reward: RewardScaler | None


class TrainState(NamedTuple):
    """All that the rest of a run depends on."""

    clock: Clock
    key: jax.Array  # [] the run's key; iteration i uses fold_in(key, i)
    learner: PyTree  # the algorithm's state
    actors: rollouts.Actors
    normalizer: Normalizer
    refused: jax.Array  # [] int32, updates that were not finite and therefore not made


class Metrics(NamedTuple):
    """What happened in each iteration."""

    step: jax.Array  # [I] environment steps finished
    episodes: rollouts.EpisodeStatistics  # [I] training episodes that ended
    info: Info  # [I] the algorithm's own


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
    evaluate: Callable[..., Evaluation]  # (state) -> evaluation; changes nothing
    train: Callable[..., TrainResult]  # (key) -> result: init, then everything
    failed: Callable[..., jax.Array]  # (state) -> bool
    iterations: int
    steps_per_iteration: int
    evaluate_every: int  # iterations; the last iteration is always followed by an evaluation
    total_steps: int  # iterations * steps_per_iteration: what is really run


def make_train(
    algorithm: OnPolicyAlgorithm,
    env: Env,
    total_steps: int,
    *,
    num_envs: int = 8,
    rollout_length: int = 128,
    evaluations: int = 20,
    evaluation_episodes: int = 128,
    greedy_evaluation: bool = True,
    max_episode_steps: int | None = None,
    normalize_obs: bool = False,
    normalize_reward: bool = False,
    reward_gamma: float | jax.Array = 0.99,
) -> Train:
    """A whole run as pure functions.

    Iteration i uses the key ``fold_in(key, i)`` and nothing outside the state, so that a run cut in
    pieces by ``advance`` equals the run in one piece, bit for bit. Evaluation has keys of its own.

    Args:
        algorithm: An on-policy algorithm.
        env: Environment.
        total_steps: Environment steps, over all ``num_envs``; rounded up to whole iterations of
            ``num_envs * rollout_length`` steps.
        num_envs: N, environments side by side.
        rollout_length: T, steps of each between two updates.
        evaluations: About how many evaluations; the interval is a whole number of iterations, and
            the last iteration is always followed by one. 0 for none.
        evaluation_episodes: Episodes of one evaluation.
        greedy_evaluation: Evaluate the policy's mode; else samples of it.
        max_episode_steps: Length at which an evaluation's episode is cut off; the environment's
            limit by default.
        normalize_obs: Subtract the running mean of observations and divide by their standard
            deviation.
        normalize_reward: Divide rewards by the standard deviation of the discounted return.
            Reported returns are of raw rewards.
        reward_gamma: Discount of that return: the algorithm's gamma.

    Raises:
        TypeError: If ``algorithm`` is not an on-policy one.
        ValueError: If a size is out of range, or ``total_steps`` is less than one iteration.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = purerl.ppo_clip(purerl.PPOClipConfig(), env.action_space)
        >>> train = make_train(algorithm, env, 4000, num_envs=4, rollout_length=128, evaluations=2)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> result = jax.jit(purerl.vectorize(train.train))(keys)
        >>> result.curve.step[0].tolist(), result.curve.evaluation.mean_return.shape
        ([2048, 4096], (2, 2))
    """
    if not isinstance(algorithm, OnPolicyAlgorithm):
        raise TypeError(
            f"algorithm is a {type(algorithm).__name__}, wanted an OnPolicyAlgorithm such as "
            "purerl.ppo_clip(config, env.action_space) returns."
        )
    for name, value, low in (
        ("total_steps", total_steps, 1),
        ("num_envs", num_envs, 1),
        ("rollout_length", rollout_length, 1),
        ("evaluations", evaluations, 0),
        ("evaluation_episodes", evaluation_episodes, 1),
    ):
        check_integer("make_train", name, value, low)
    if max_episode_steps is not None:
        check_integer("make_train", "max_episode_steps", max_episode_steps, 1)
    elif evaluations and env.max_episode_steps is None:
        raise ValueError(
            f"make_train: {env.name} has no known time limit to end an evaluation with; give "
            "max_episode_steps, or evaluations=0."
        )
    check_range("make_train", "reward_gamma", reward_gamma, 0, 1)
    steps_per_iteration = num_envs * rollout_length
    if total_steps < steps_per_iteration:
        raise ValueError(
            f"make_train: total_steps={total_steps} is less than one iteration, num_envs * "
            f"rollout_length = {num_envs} * {rollout_length} = {steps_per_iteration} steps; ask "
            "for more steps, or make num_envs or rollout_length smaller."
        )
    if algorithm.whole_episodes:
        _check_whole_episodes(env, rollout_length)
    iterations = -(-total_steps // steps_per_iteration)
    evaluate_every = max(1, round(iterations / evaluations)) if evaluations else iterations
    real = jnp.result_type(float)

    def observe(obs: jax.Array, normalizer: Normalizer) -> jax.Array:
        return obs if normalizer.obs is None else normalize(obs, normalizer.obs)

    def init(key: jax.Array) -> TrainState:
        check_key(key)
        run_key, reset_key, learner_key = jax.random.split(key, 3)
        actors = rollouts.reset(env, num_envs, reset_key)
        normalizer = Normalizer(
            init_moments(env.obs_shape, real) if normalize_obs else None,
            init_reward_scaler(num_envs, real) if normalize_reward else None,
        )
        learner = algorithm.init(actors.obs, learner_key)
        zero = jnp.zeros((), jnp.int32)
        return TrainState(Clock(zero), run_key, learner, actors, normalizer, zero)

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / iterations
        key = jax.random.fold_in(state.key, state.clock.iteration)
        reset_key, unroll_key, update_key = jax.random.split(key, 3)

        def act(obs, key):
            obs = observe(obs, state.normalizer)
            return algorithm.act(state.learner, obs, key, progress=progress)

        actors, normalizer, whole = state.actors, state.normalizer, algorithm.whole_episodes
        if whole:
            actors = rollouts.reset(env, num_envs, reset_key)
            if normalizer.reward is not None:  # its running return was of the abandoned episodes
                nothing = jnp.zeros_like(normalizer.reward.running)
                normalizer = normalizer._replace(reward=normalizer.reward._replace(running=nothing))
        actors, rollout, statistics = rollouts.unroll(
            act, env, actors, unroll_key, rollout_length, first_only=whole
        )
        rollout, normalizer = _normalize_rollout(rollout, normalizer, reward_gamma)
        learner, info = algorithm.update(state.learner, rollout, update_key, progress=progress)
        iteration = state.clock.iteration + 1
        refused = state.refused + ~info["finite"]
        state = TrainState(Clock(iteration), state.key, learner, actors, normalizer, refused)
        return state, Metrics(iteration * steps_per_iteration, statistics, info)

    def advance(state: TrainState, iterations: int) -> tuple[TrainState, Metrics]:
        return jax.lax.scan(lambda state, _: iterate(state), state, length=iterations)

    def evaluate_state(state: TrainState) -> Evaluation:
        def policy(obs, key):
            obs = observe(obs, state.normalizer)
            return algorithm.act(state.learner, obs, key, greedy=greedy_evaluation, progress=1.0)[0]

        key = jax.random.fold_in(state.key, _EVALUATION)
        key = jax.random.fold_in(key, state.clock.iteration)
        limit = max_episode_steps
        return evaluate(policy, env, key, episodes=evaluation_episodes, max_steps=limit)

    def failed(state: TrainState) -> jax.Array:
        return (state.refused > 0) | ~all_finite((state.learner, state.normalizer))

    def train(key: jax.Array) -> TrainResult:
        state = init(key)
        if evaluations == 0:
            state, metrics = advance(state, iterations)
            nothing = jax.tree.map(
                lambda x: jnp.zeros((0, *x.shape), x.dtype), _empty_evaluation(real)
            )
            curve = LearningCurve(jnp.zeros(0, jnp.int32), nothing)
            return TrainResult(state, metrics, curve, failed(state))

        def iterate_and_evaluate(state, _):
            state, metrics = iterate(state)
            iteration = state.clock.iteration  # unbatched under vectorize: a real branch
            due = (iteration % evaluate_every == 0) | (iteration == iterations)
            evaluation = jax.lax.cond(due, evaluate_state, lambda _: _empty_evaluation(real), state)
            return state, (metrics, evaluation)

        state, (metrics, evaluation) = jax.lax.scan(iterate_and_evaluate, state, length=iterations)
        done = evaluation_iterations(iterations, evaluate_every)
        evaluation = jax.tree.map(lambda x: x[jnp.array(done) - 1], evaluation)
        curve = LearningCurve(jnp.array(done, jnp.int32) * steps_per_iteration, evaluation)
        return TrainResult(state, metrics, curve, failed(state))

    return Train(
        init,
        advance,
        evaluate_state,
        train,
        failed,
        iterations,
        steps_per_iteration,
        evaluate_every,
        iterations * steps_per_iteration,
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


def _normalize_rollout(rollout, normalizer: Normalizer, gamma):
    """The rollout as the learner sees it, under the moments it was collected with; and the moments
    after it.
    """
    obs_moments, scaler = normalizer
    if obs_moments is not None:
        raw = rollout.obs
        rollout = rollout._replace(
            obs=normalize(raw, obs_moments), next_obs=normalize(rollout.next_obs, obs_moments)
        )
        obs_moments = merge_moments(obs_moments, raw)
    if scaler is not None:
        done = rollout.terminated | rollout.truncated
        reward, scaler = scale_rewards(scaler, rollout.reward, done, gamma)
        rollout = rollout._replace(reward=reward)
    return rollout, Normalizer(obs_moments, scaler)


def _check_whole_episodes(env: Env, rollout_length: int) -> None:
    limit = env.max_episode_steps
    if limit is None or rollout_length < limit:
        raise ValueError(
            f"make_train: this estimator has no critic to continue an unfinished episode with, so "
            f"rollout_length={rollout_length} must be at least the time limit of {env.name} "
            f"({limit} steps); set rollout_length, make_env(..., max_steps_in_episode=...), or an "
            "estimator with a critic."
        )
