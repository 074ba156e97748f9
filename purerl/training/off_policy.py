"""The off-policy loop: act, add to the replay memory, learn from batches of it."""

import math

import jax
import jax.numpy as jnp

from purerl.config import Number
from purerl.envs.make import Env
from purerl.records import Box, Clock, OffPolicyAlgorithm, PyTree, Transition
from purerl.replay.transitions import ReplayMemoryState, replay_memory
from purerl.training import state as states
from purerl.training.sizes import OffPolicyLoopConfig
from purerl.training.state import Loop, Metrics, TrainState


def make_loop(algorithm: OffPolicyAlgorithm, env: Env, sizes: OffPolicyLoopConfig) -> Loop:
    """How a run starts, and one iteration.

    Args:
        algorithm: Off-policy.
        env: Environment.
        sizes: Of the run.

    Raises:
        ValueError: If the sizes do not fit the algorithm's batch or buffer.
    """
    _check(algorithm, env, sizes)
    seen = jax.eval_shape(env.reset, jax.random.key(0))[0]
    memory = replay_memory(algorithm.replay, sizes.num_envs, env.truncation_interval, seen)
    real, space = jnp.result_type(float), env.action_space
    kind = real if isinstance(space, Box) else jnp.int32
    action = jnp.zeros(getattr(space, "shape", ()), kind)

    def held(x: jax.Array) -> jax.Array:
        """A place for an observation's array: of numbers as the sizes say, else as it is."""
        narrow = sizes.replay_obs != "float" and jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.zeros(x.shape, sizes.replay_obs if narrow else x.dtype)

    obs = jax.tree.map(held, seen)
    no = jnp.array(False)
    item = Transition(obs, action, jnp.zeros((), real), terminated=no, truncated=no, next_obs=obs)

    def play(state: TrainState, key: jax.Array, length: int, progress: Number):
        """Acts for ``length`` steps, which go into the replay memory."""
        actors, rollout, statistics = states.play(algorithm, env, state, key, length, progress)
        transitions = Transition(*(getattr(rollout, name) for name in Transition._fields))
        replay = memory.add(state.replay, transitions)
        normalizer = state.normalizer.merge(rollout.obs, rollout.valid)
        return state._replace(actors=actors, normalizer=normalizer, replay=replay), statistics

    def init(key: jax.Array) -> TrainState:
        key, play_key = jax.random.split(key)
        state = states.start(algorithm, env, sizes, key)
        state = state._replace(replay=memory.init(item))
        return play(state, play_key, sizes.warmup_steps // sizes.num_envs, 0.0)[0]

    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / sizes.iterations
        key = jax.random.fold_in(state.key, state.clock.iteration)
        play_key, learn_key = jax.random.split(key)
        state, statistics = play(state, play_key, sizes.rollout_length, progress)
        observe = state.normalizer.observe

        def learn(carry: tuple[PyTree, ReplayMemoryState], key: jax.Array):
            """One update of the learner, then of the priorities."""
            learner, replay = carry
            sample_key, update_key = jax.random.split(key)
            size = algorithm.batch_size
            sample = memory.sample(replay, sample_key, size, progress=progress)
            batch = memory.batch(replay, sample, gamma=algorithm.gamma, n_step=algorithm.n_step)
            batch = batch._replace(obs=observe(batch.obs), next_obs=observe(batch.next_obs))
            updated = algorithm.update(learner, batch, update_key, progress=progress)
            learner, info = states.checked_update(learner, updated, td_error=(size,))
            td_error = info["td_error"]
            replay = memory.update_priorities(replay, batch.indices, td_error)
            return (learner, replay), info | {"td_error": jnp.mean(jnp.abs(td_error))}

        keys = jax.random.split(learn_key, sizes.updates)
        (learner, replay), info = jax.lax.scan(learn, (state.learner, state.replay), keys)
        refused = state.refused + jnp.sum(~info["finite"], dtype=jnp.int32)
        every = info["finite"].all()
        info = jax.tree.map(lambda x: jnp.mean(x, axis=0), info) | {"finite": every}
        clock = Clock(state.clock.iteration + 1)
        state = state._replace(clock=clock, learner=learner, replay=replay, refused=refused)
        return state, Metrics(sizes.step(clock.iteration), statistics, info)

    return Loop(init, iterate)


def _check(algorithm: OffPolicyAlgorithm, env: Env, sizes: OffPolicyLoopConfig) -> None:
    capacity, each = algorithm.replay.capacity, sizes.steps_per_iteration
    held = capacity // sizes.num_envs
    most = {"float": math.inf, "uint8": 255, "bool": 1}[sizes.replay_obs]
    low, high = env.obs_range or (-math.inf, math.inf)
    for refused, message in (
        (
            sizes.warmup < algorithm.batch_size,
            f"warmup={sizes.warmup} is less than batch_size={algorithm.batch_size}; start to learn "
            "when there is at least one batch to learn from.",
        ),
        (
            max(sizes.warmup_steps, each) > capacity,
            f"the warm-up adds {sizes.warmup_steps} and an iteration {each} transitions to a "
            f"buffer of capacity={capacity}; make the capacity larger, or these smaller.",
        ),
        (
            algorithm.n_step > held,
            f"n_step={algorithm.n_step} is more than the {held} steps of each of {sizes.num_envs} "
            f"environments that capacity={capacity} holds; lessen it, or enlarge the capacity.",
        ),
        (
            most < math.inf and not 0 <= low <= high <= most,
            f"replay_obs={sizes.replay_obs!r} holds whole numbers from 0 to {most}, and {env.name} "
            f"observes {'real numbers' if env.obs_range is None else f'{low} to {high}'}; use "
            "replay_obs='float'.",
        ),
    ):
        if refused:
            raise ValueError(f"make_train: {message}")
