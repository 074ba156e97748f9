"""The on-policy loop: unroll, update, again."""

import jax
import jax.numpy as jnp

from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import (
    init_moments,
    init_reward_scaler,
    merge_moments,
    normalize,
    scale_rewards,
)
from purerl.records import Clock, OnPolicyAlgorithm
from purerl.training.sizes import OnPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Normalizer, TrainState, start


def make_loop(algorithm: OnPolicyAlgorithm, env: Env, sizes: OnPolicyLoopConfig) -> Loop:
    """The beginning of a run and one iteration of it.

    Args:
        algorithm: On-policy.
        env: Environment.
        sizes: Of the run.

    Raises:
        ValueError: If the algorithm needs whole episodes, and rollouts are shorter.
    """
    num_envs, rollout_length = sizes.num_envs, sizes.rollout_length
    if algorithm.whole_episodes:
        _check_whole_episodes(env, rollout_length)
    real = jnp.result_type(float)

    def init(key: jax.Array) -> TrainState:
        normalizer = Normalizer(
            init_moments(env.obs_shape, real) if sizes.normalize_obs else None,
            init_reward_scaler(num_envs, real) if sizes.normalize_reward else None,
        )
        return start(algorithm, env, num_envs, normalizer, key)

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
        rollout, normalizer = _normalize_rollout(rollout, normalizer, algorithm.gamma)
        learner, info = algorithm.update(state.learner, rollout, update_key, progress=progress)
        iteration = state.clock.iteration + 1
        refused = state.refused + ~info["finite"]
        state = TrainState(Clock(iteration), state.key, learner, actors, normalizer, refused)
        return state, Metrics(sizes.step(iteration), statistics, info)

    return Loop(init, iterate)


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
