"""The off-policy loop: act, remember, learn from what is remembered, again."""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import init_moments, merge_moments
from purerl.records import Box, Clock, Info, OffPolicyAlgorithm, PyTree, Transition
from purerl.replay.transitions import ReplayMemoryState, replay_memory
from purerl.training.sizes import OffPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Normalizer, TrainState, start


def make_loop(algorithm: OffPolicyAlgorithm, env: Env, sizes: OffPolicyLoopConfig) -> Loop:
    """The beginning of a run and one iteration of it.

    Args:
        algorithm: Off-policy.
        env: Environment.
        sizes: Of the run.

    Raises:
        ValueError: If the sizes do not fit the algorithm's batch or buffer.
    """
    _check(algorithm, sizes)
    low, high = env.obs_range or (-jnp.inf, jnp.inf)
    most = {"float": jnp.inf, "uint8": 255, "bool": 1}[sizes.replay_obs]
    if high > most or (low < 0 and sizes.replay_obs != "float"):
        raise ValueError(
            f"replay_obs={sizes.replay_obs!r} holds whole numbers from 0 to {most}, but the "
            f"observations of {env.name} are {env.obs_range or 'real numbers'}; use 'float'."
        )
    num_envs = sizes.num_envs
    real = jnp.result_type(float)
    memory = replay_memory(algorithm.replay, num_envs, env.truncation_interval)
    held = {"float": real, "uint8": jnp.dtype("uint8"), "bool": jnp.dtype("bool")}[sizes.replay_obs]

    def play(state: TrainState, key: jax.Array, length: int, progress: float | jax.Array):
        """Acts for so many steps, and remembers them."""

        def act(obs, key):
            obs = state.normalizer.observe(obs)
            return algorithm.act(state.learner, obs, key, progress=progress)

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
        state = start(algorithm, env, num_envs, Normalizer(moments, None), key)
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
        learner, info = algorithm.update(learner, batch, update_key, progress=progress)
        td_error = info.pop("td_error")
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
        info = {name: jnp.mean(x) for name, x in info.items()} | {"finite": info["finite"].all()}
        iteration = state.clock.iteration + 1
        state = state._replace(
            clock=Clock(iteration), learner=learner, replay=replay, refused=refused
        )
        return state, Metrics(sizes.step(iteration), statistics, info)

    return Loop(init, iterate)


def _item(env: Env, obs_dtype: Any) -> Transition:
    """Shapes and dtypes of one transition."""
    real, space = jnp.result_type(float), env.action_space
    obs: Any = jax.ShapeDtypeStruct(env.obs_shape, obs_dtype)
    number: Any = jax.ShapeDtypeStruct((), real)
    flag: Any = jax.ShapeDtypeStruct((), jnp.bool_)
    if isinstance(space, Box):
        action: Any = jax.ShapeDtypeStruct(space.shape, real)
    else:
        action = jax.ShapeDtypeStruct((), jnp.int32)
    return Transition(obs, action, number, flag, flag, obs)


def _check(algorithm: OffPolicyAlgorithm, sizes: OffPolicyLoopConfig) -> None:
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
