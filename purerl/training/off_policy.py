"""The off-policy loop: act, remember, learn from what is remembered, again."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import init_moments, merge_moments
from purerl.records import Box, Clock, Info, OffPolicyAlgorithm, PyTree, Transition
from purerl.replay.transitions import ReplayMemoryState, replay_memory
from purerl.training import state as states
from purerl.training.sizes import OffPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Normalizer, TrainState


def make_loop(algorithm: OffPolicyAlgorithm, env: Env, sizes: OffPolicyLoopConfig) -> Loop:
    """The beginning of a run and one iteration of it.

    Args:
        algorithm: Off-policy.
        env: Environment.
        sizes: Of the run.

    Raises:
        ValueError: If the sizes do not fit the algorithm's batch or buffer.
    """
    _check(algorithm, env, sizes)
    num_envs = sizes.num_envs
    real = jnp.result_type(float)
    memory = replay_memory(algorithm.replay, num_envs, env.truncation_interval)
    held = {"float": real, "uint8": jnp.dtype("uint8"), "bool": jnp.dtype("bool")}[sizes.replay_obs]

    def play(state: TrainState, key: jax.Array, length: int, progress: float | jax.Array):
        """Acts for so many steps, and remembers them."""

        def act(obs, key):
            obs = state.normalizer.observe(obs)
            acted = algorithm.act(state.learner, obs, key, progress=progress)
            states.check_acted(acted, num_envs, env)
            return acted[0], {"log_prob": jnp.zeros(num_envs)}  # nothing off-policy reads it

        actors, rollout, statistics = rollouts.unroll(act, env, state.actors, key, length)
        transitions = Transition(*(getattr(rollout, name) for name in Transition._fields))
        replay = memory.add(state.replay, transitions)
        normalizer = state.normalizer
        if normalizer.obs is not None:
            normalizer = Normalizer(merge_moments(normalizer.obs, rollout.obs), None)
        return state._replace(actors=actors, normalizer=normalizer, replay=replay), statistics

    def init(key: jax.Array) -> TrainState:
        key, play_key = jax.random.split(key)
        moments = init_moments(env.obs_shape, real) if sizes.normalize_obs else None
        state = states.start(algorithm, env, num_envs, Normalizer(moments, None), key)
        state = state._replace(replay=memory.init(_item(env, held)))
        return play(state, play_key, sizes.warmup_steps // num_envs, 0.0)[0]

    def learn(
        carry: tuple[PyTree, ReplayMemoryState],
        key: jax.Array,
        normalizer: Normalizer,
        progress: jax.Array,
    ) -> tuple[tuple[PyTree, ReplayMemoryState], Info]:
        """One update, and the priorities after it."""
        learner, replay = carry
        sample_key, update_key = jax.random.split(key)
        size = algorithm.batch_size
        sample = memory.sample(replay, sample_key, size, progress=progress)
        batch = memory.batch(replay, sample, gamma=algorithm.gamma, n_step=algorithm.n_step)
        batch = batch._replace(
            obs=normalizer.observe(batch.obs), next_obs=normalizer.observe(batch.next_obs)
        )
        updated = algorithm.update(learner, batch, update_key, progress=progress)
        states.check_updated(learner, updated, td_error=(algorithm.batch_size,))
        learner, info = updated
        td_error = info["td_error"]
        replay = memory.update_priorities(replay, batch.indices, td_error)
        return (learner, replay), info | {"td_error": jnp.mean(jnp.abs(td_error))}

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / sizes.iterations
        key = jax.random.fold_in(state.key, state.clock.iteration)
        play_key, learn_key = jax.random.split(key)

        state, statistics = play(state, play_key, sizes.rollout_length, progress)
        (learner, replay), info = jax.lax.scan(
            lambda carry, key: learn(carry, key, state.normalizer, progress),
            (state.learner, state.replay),
            jax.random.split(learn_key, sizes.updates),
        )
        refused = state.refused + jnp.sum(~info["finite"], dtype=jnp.int32)
        mean = jax.tree.map(lambda x: jnp.mean(x, axis=0), info)
        info = mean | {"finite": info["finite"].all()}
        iteration = state.clock.iteration + 1
        state = state._replace(
            clock=Clock(iteration), learner=learner, replay=replay, refused=refused
        )
        return state, Metrics(sizes.step(iteration), statistics, info)

    return Loop(init, iterate)


def _item(env: Env, obs_dtype: Any) -> Transition:
    """Shapes and dtypes of one transition."""
    real, space = jnp.result_type(float), env.action_space
    obs = jax.ShapeDtypeStruct(env.obs_shape, obs_dtype)
    number, flag = (jax.ShapeDtypeStruct((), x) for x in (real, jnp.bool_))
    kind = (space.shape, real) if isinstance(space, Box) else ((), jnp.int32)
    parts: Any = obs, jax.ShapeDtypeStruct(*kind), number, flag, flag, obs
    return Transition(*parts)


def _check(algorithm: OffPolicyAlgorithm, env: Env, sizes: OffPolicyLoopConfig) -> None:
    if sizes.warmup < algorithm.batch_size:
        raise ValueError(
            f"make_train: warmup={sizes.warmup} is less than batch_size={algorithm.batch_size}; "
            "start to learn when there is at least one batch to learn from."
        )
    each = sizes.steps_per_iteration
    for what, steps in (("the warm-up", sizes.warmup_steps), ("an iteration", each)):
        if steps > algorithm.replay.capacity:
            raise ValueError(
                f"make_train: {what} adds {steps} transitions to a buffer of capacity="
                f"{algorithm.replay.capacity}; make the capacity larger, or {what} smaller."
            )
    steps = algorithm.replay.capacity // sizes.num_envs
    if algorithm.n_step > steps:
        raise ValueError(
            f"make_train: n_step={algorithm.n_step} is more than the {steps} steps of each of "
            f"{sizes.num_envs} environments that a buffer of capacity={algorithm.replay.capacity} "
            "holds; make n_step smaller, or the capacity larger."
        )
    highest = {"float": None, "uint8": 255, "bool": 1}[sizes.replay_obs]
    low, high = env.obs_range or (-math.inf, math.inf)
    if highest is not None and not (low >= 0 and high <= highest):
        got = "real numbers" if env.obs_range is None else f"integers from {low} to {high}"
        raise ValueError(
            f"make_train: replay_obs={sizes.replay_obs!r} holds whole numbers from 0 to {highest}, "
            f"and the observations of {env.name} are {got}; use replay_obs='float'."
        )
