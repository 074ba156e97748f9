"""The on-policy loop: unroll, update, again."""

import jax
import jax.numpy as jnp

from purerl.config import check_range
from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import (
    init_moments,
    init_reward_scaler,
    merge_moments,
    normalize,
    scale_rewards,
)
from purerl.records import Clock, OffPolicyAlgorithm, OnPolicyAlgorithm
from purerl.training.train import Metrics, Normalizer, Sizes, Train, TrainState, assemble, start


def make_train(
    algorithm: OnPolicyAlgorithm,
    env: Env,
    steps: int,
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
        steps: Environment steps, over all ``num_envs``; rounded up to whole iterations of
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
        ValueError: If a size is out of range, or ``steps`` is less than one iteration.

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
        advice = (
            "train it with purerl.make_off_policy_train"
            if isinstance(algorithm, OffPolicyAlgorithm)
            else "purerl.ppo_clip(config, env.action_space) returns one"
        )
        raise TypeError(
            f"algorithm is a {type(algorithm).__name__}, wanted an OnPolicyAlgorithm: {advice}."
        )
    sizes = Sizes(
        steps,
        num_envs,
        rollout_length,
        evaluations,
        evaluation_episodes,
        greedy_evaluation,
        max_episode_steps,
    )
    sizes.check("make_train", env)
    check_range("make_train", "reward_gamma", reward_gamma, "[0, 1]")
    if algorithm.whole_episodes:
        _check_whole_episodes(env, rollout_length)
    real = jnp.result_type(float)

    def init(key: jax.Array) -> TrainState:
        normalizer = Normalizer(
            init_moments(env.obs_shape, real) if normalize_obs else None,
            init_reward_scaler(num_envs, real) if normalize_reward else None,
        )
        return start(algorithm, env, sizes, normalizer, key)

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / sizes.iterations
        key = jax.random.fold_in(state.key, state.clock.iteration)
        reset_key, unroll_key, update_key = jax.random.split(key, 3)

        def act(obs, key):
            obs = state.normalizer.observe(obs)
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
        return state, Metrics(sizes.step(iteration), statistics, info)

    return assemble(algorithm, env, sizes, init, iterate)


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
