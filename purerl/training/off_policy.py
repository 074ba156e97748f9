"""The off-policy loop: act, add to the replay memory, learn from batches of it."""

import math

import jax
import jax.numpy as jnp

from purerl.envs.record import Env
from purerl.records import Box, Clock, OffPolicyAlgorithm, PyTree, Transition
from purerl.replay.transitions import ReplayMemoryState, replay_memory
from purerl.training import state as states
from purerl.training.choices import refuse_without_choice
from purerl.training.sizes import OffPolicyLoopConfig
from purerl.training.state import Loop, Metrics, Played, TrainState


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
    no, warmup = jnp.array(False), sizes.warmup_steps // sizes.num_envs
    idle = no if env.outside is not None and env.outside.idle else None
    zero = jnp.zeros((), real)
    item = Transition(obs, action, zero, terminated=no, truncated=no, next_obs=obs, valid=idle)

    def start(key: jax.Array) -> TrainState:
        state = states.start(algorithm, env, sizes, jax.random.split(key)[0])
        return state._replace(replay=memory.init(item))

    def warm_up(state: TrainState, key: jax.Array) -> Played:
        # A clone: `start` has the other half of the same split.
        play_key = jax.random.split(jax.random.clone(key))[1]
        return states.play(algorithm, env, sizes, state, play_key, warmup, 0.0)

    def begin(state: TrainState, played: Played) -> TrainState:
        """What was played goes into the replay memory."""
        rollout = played.rollout
        transitions = Transition(*(getattr(rollout, name) for name in Transition._fields))
        if idle is not None and rollout.valid is None:  # its shapes alone are asked for
            transitions = transitions._replace(valid=jnp.ones_like(rollout.terminated))
        replay = memory.add(state.replay, transitions)
        normalizer = state.normalizer.merge(rollout.obs, rollout.valid)
        return state._replace(actors=played.actors, normalizer=normalizer, replay=replay)

    def keys(state: TrainState) -> jax.Array:
        return jax.random.split(jax.random.fold_in(state.key, state.clock.iteration))

    def play(state: TrainState) -> Played:
        progress = state.clock.iteration / sizes.iterations
        return states.play(
            algorithm, env, sizes, state, keys(state)[0], sizes.rollout_length, progress
        )

    def learn(state: TrainState, played: Played) -> tuple[TrainState, Metrics]:
        progress = state.clock.iteration / sizes.iterations
        learn_key, statistics = keys(state)[1], played.statistics
        state = begin(state, played)
        normalizer = state.normalizer

        def update(carry: tuple[PyTree, ReplayMemoryState], key: jax.Array):
            """One update of the learner, then of the priorities."""
            learner, replay = carry
            sample_key, update_key = jax.random.split(key)
            size = algorithm.batch_size
            sample = memory.sample(replay, sample_key, size, progress=progress)
            batch = memory.batch(replay, sample, gamma=algorithm.gamma, n_step=algorithm.n_step)
            obs, next_obs = (normalizer.observe(x, sizes) for x in (batch.obs, batch.next_obs))
            batch = batch._replace(obs=obs, next_obs=next_obs)
            if sizes.reward_scale != 1:
                batch = batch._replace(reward=sizes.reward_scale * batch.reward)
            updated = algorithm.update(learner, batch, update_key, progress=progress)
            new, info = states.checked_update(learner, updated, td_error=(size,))
            learner, info = refuse_without_choice(learner, new, info, batch, space)
            td_error = info["td_error"]
            replay = memory.update_priorities(replay, batch.indices, td_error)
            return (learner, replay), info | {"td_error": jnp.mean(jnp.abs(td_error))}

        of_each = jax.random.split(learn_key, sizes.updates)
        (learner, replay), info = jax.lax.scan(update, (state.learner, state.replay), of_each)
        refused = state.refused + jnp.sum(~info["finite"], dtype=jnp.int32)
        every = info["finite"].all()
        info = jax.tree.map(lambda x: jnp.mean(x, axis=0), info) | {"finite": every}
        clock = Clock(state.clock.iteration + 1)
        state = state._replace(clock=clock, learner=learner, replay=replay, refused=refused)
        return state, Metrics(sizes.step(clock.iteration), statistics, info)

    return Loop(start, warm_up, begin, play, learn, warmup)


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
