"""The on-policy loop: collect a rollout, update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs.record import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import scale_rewards
from purerl.records import Box, Clock, Info, OnPolicyAlgorithm, PyTree, Rollout
from purerl.training import state as states
from purerl.training.choices import refuse_without_choice
from purerl.training.sizes import OnPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Normalizer, Played, TrainState

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

    whole = algorithm.whole_episodes

    def start(key: jax.Array) -> TrainState:
        return states.start(algorithm, env, sizes, key)

    def warm_up(state: TrainState, key: jax.Array) -> Played:
        # Moments for the first rollout are those of another one, as long, which is forgotten.
        key = jax.random.fold_in(state.key, _MOMENTS)
        return states.play(algorithm, env, sizes, state, key, rollout_length, 0.0)

    def begin(state: TrainState, played: Played) -> TrainState:
        rollout = played.rollout
        return state._replace(normalizer=state.normalizer.merge(rollout.obs, rollout.valid))

    def keys(state: TrainState) -> jax.Array:
        return jax.random.split(jax.random.fold_in(state.key, state.clock.iteration), 3)

    def play(state: TrainState) -> Played:
        reset_key, unroll_key, _ = keys(state)
        if whole:
            fresh = rollouts.reset(env, num_envs, reset_key)
            # The memory is forgotten at their first steps.
            state = state._replace(actors=fresh._replace(memory=state.actors.memory))
        progress = state.clock.iteration / sizes.iterations
        return states.play(
            *(algorithm, env, sizes, state, unroll_key, rollout_length, progress, "log_prob"),
            first_only=whole,
        )

    def outside(learner: Any, obs: PyTree) -> Info:
        """How often a Box policy's best action is one that the environment clips, of one step."""
        space = env.action_space
        if not isinstance(space, Box):
            return {}
        if not (np.isfinite(space.low).any() or np.isfinite(space.high).any()):
            return {}
        given: dict[str, Any] = {}
        if algorithm.init_memory is not None:
            given = {"memory": algorithm.init_memory(obs), "start": jnp.ones(num_envs, bool)}
        best, _ = algorithm.act(learner, obs, jax.random.key(0), greedy=True, **given)
        beyond = (best < jnp.asarray(space.low)) | (best > jnp.asarray(space.high))
        return {"mean_outside": jnp.mean(beyond.any(axis=-1), dtype=best.dtype)}

    def learn(state: TrainState, played: Played) -> tuple[TrainState, Metrics]:
        normalizer = state.normalizer
        if whole and normalizer.reward is not None:  # the running return of abandoned episodes
            nothing = jnp.zeros_like(normalizer.reward.running)
            normalizer = normalizer._replace(reward=normalizer.reward._replace(running=nothing))
        rollout, normalizer = _as_seen(played.rollout, normalizer, sizes, algorithm.gamma)
        progress = state.clock.iteration / sizes.iterations
        updated = algorithm.update(state.learner, rollout, keys(state)[2], progress=progress)
        learner, info = states.checked_update(state.learner, updated)
        before, space = state.learner, env.action_space
        learner, info = refuse_without_choice(before, learner, info, rollout, space)
        info |= outside(state.learner, jax.tree.map(lambda x: x[0], rollout.obs))
        clock = Clock(state.clock.iteration + 1)
        refused = state.refused + ~info["finite"]
        state = TrainState(clock, state.key, learner, played.actors, normalizer, refused)
        return state, Metrics(sizes.step(clock.iteration), played.statistics, info)

    length = rollout_length if sizes.normalize_obs else 0
    return Loop(start, warm_up, begin, play, learn, length)


def _as_seen(
    rollout: Rollout, normalizer: Normalizer, sizes: OnPolicyLoopConfig, gamma: Any
) -> tuple[Rollout, Normalizer]:
    """A rollout as the learner sees it, by the moments before it; also the moments after it."""
    obs, next_obs = (normalizer.observe(x, sizes) for x in (rollout.obs, rollout.next_obs))
    seen, scaler = rollout._replace(obs=obs, next_obs=next_obs), normalizer.reward
    if sizes.reward_scale != 1:
        seen = seen._replace(reward=sizes.reward_scale * rollout.reward)
    if scaler is not None:
        done = rollout.terminated | rollout.truncated
        how = gamma, sizes.clip_reward, rollout.valid
        reward, scaler = scale_rewards(scaler, seen.reward, done, *how)
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
