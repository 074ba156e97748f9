"""The on-policy loop: collect a rollout, update."""

import jax
import jax.numpy as jnp

from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import scale_rewards
from purerl.records import Clock, OnPolicyAlgorithm
from purerl.training import state as states
from purerl.training.sizes import OnPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Normalizer, TrainState

_MOMENTS = 2**32 - 2  # folded into the run's key: no iteration has this number


def make_loop(algorithm: OnPolicyAlgorithm, env: Env, sizes: OnPolicyLoopConfig) -> Loop:
    """How a run starts, and one iteration.

    Args:
        algorithm: On-policy.
        env: Environment.
        sizes: Of the run.

    Raises:
        ValueError: If the algorithm needs whole episodes, and rollouts are shorter; or if rewards
            are to be normalized, and the algorithm has no gamma.
    """
    num_envs, rollout_length = sizes.num_envs, sizes.rollout_length
    if algorithm.whole_episodes:
        _check_whole_episodes(env, rollout_length)
    if sizes.normalize_reward and algorithm.gamma is None:
        raise ValueError(
            "make_train: normalize_reward needs a discount factor, and gamma is None; set the "
            "field: OnPolicyAlgorithm(init, act, update, gamma=0.99)."
        )

    def init(key: jax.Array) -> TrainState:
        state = states.start(algorithm, env, sizes, key)
        if not sizes.normalize_obs:
            return state
        # Moments for the first rollout are those of another one, as long, which is forgotten.
        key = jax.random.fold_in(state.key, _MOMENTS)
        _, rollout, _ = states.play(algorithm, env, state, key, rollout_length, 0.0)
        return state._replace(normalizer=state.normalizer.merge(rollout.obs))

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / sizes.iterations
        key = jax.random.fold_in(state.key, state.clock.iteration)
        reset_key, unroll_key, update_key = jax.random.split(key, 3)

        actors, normalizer, whole = state.actors, state.normalizer, algorithm.whole_episodes
        if whole:
            actors = rollouts.reset(env, num_envs, reset_key)
            if normalizer.reward is not None:  # its running return was of the abandoned episodes
                nothing = jnp.zeros_like(normalizer.reward.running)
                normalizer = normalizer._replace(reward=normalizer.reward._replace(running=nothing))
        state = state._replace(actors=actors)
        actors, rollout, statistics = states.play(
            *(algorithm, env, state, unroll_key, rollout_length, progress, "log_prob"),
            first_only=whole,
        )
        rollout, normalizer = _normalize_rollout(rollout, normalizer, algorithm.gamma)
        updated = algorithm.update(state.learner, rollout, update_key, progress=progress)
        learner, info = states.checked_update(state.learner, updated)
        iteration = state.clock.iteration + 1
        refused = state.refused + ~info["finite"]
        state = TrainState(Clock(iteration), state.key, learner, actors, normalizer, refused)
        return state, Metrics(sizes.step(iteration), statistics, info)

    return Loop(init, iterate)


def _normalize_rollout(rollout, normalizer: Normalizer, gamma):
    """Normalizes a rollout by the moments it was collected with; also the moments after it."""
    observe, scaler = normalizer.observe, normalizer.reward
    seen = rollout._replace(obs=observe(rollout.obs), next_obs=observe(rollout.next_obs))
    if scaler is not None:
        done = rollout.terminated | rollout.truncated
        reward, scaler = scale_rewards(scaler, rollout.reward, done, gamma, valid=rollout.valid)
        seen, normalizer = seen._replace(reward=reward), normalizer._replace(reward=scaler)
    return seen, normalizer.merge(rollout.obs, rollout.valid)


def _check_whole_episodes(env: Env, rollout_length: int) -> None:
    limit = env.max_episode_steps
    if limit is None or rollout_length < limit:
        raise ValueError(
            f"make_train: without a critic rollout_length={rollout_length} must be at least the "
            f"time limit of {env.name} ({limit} steps); set it, make_env(..., "
            "max_steps_in_episode=...), or an estimator with a critic."
        )
