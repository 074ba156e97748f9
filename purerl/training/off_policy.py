"""The off-policy loop: act, remember, learn from what is remembered, again."""

import typing
from typing import Any, Literal

import jax
import jax.numpy as jnp

from purerl.checks import check_key
from purerl.config import check_choice, check_integer
from purerl.envs.make import Env
from purerl.pieces import rollout as rollouts
from purerl.pieces.normalize import init_moments, merge_moments
from purerl.records import (
    Box,
    Clock,
    Info,
    OffPolicyAlgorithm,
    OnPolicyAlgorithm,
    PyTree,
    Transition,
)
from purerl.replay.transitions import ReplayMemoryState, replay_memory
from purerl.training.train import Metrics, Normalizer, Sizes, Train, TrainState, assemble, start

ObsDtype = Literal["float", "uint8", "bool"]


def make_off_policy_train(
    algorithm: OffPolicyAlgorithm,
    env: Env,
    steps: int,
    *,
    num_envs: int = 8,
    rollout_length: int = 1,
    updates: int = 1,
    warmup: int = 1000,
    evaluations: int = 20,
    evaluation_episodes: int = 128,
    greedy_evaluation: bool = True,
    max_episode_steps: int | None = None,
    normalize_obs: bool = False,
    replay_obs: ObsDtype = "float",
) -> Train:
    """A whole run as pure functions, as :func:`purerl.make_train` gives.

    One iteration lets every environment take ``rollout_length`` steps, adds them to the replay
    buffer, and makes ``updates`` updates; so any ratio of updates to steps can be had. Iteration i
    uses the key ``fold_in(key, i)`` and nothing outside the state.

    Args:
        algorithm: An off-policy algorithm.
        env: Environment.
        steps: Environment steps, over all ``num_envs``; rounded up to whole iterations of
            ``num_envs * rollout_length`` steps.
        num_envs: N, environments side by side.
        rollout_length: T, steps of each in an iteration.
        updates: Updates in an iteration, each with a batch of its own.
        warmup: Environment steps before the first iteration, rounded up to whole steps of all
            environments: ``init`` acts as at the start of the run (DQN: at random, where its
            epsilon starts at 1) and fills the buffer with them.
        evaluations: About how many evaluations; the interval is a whole number of iterations, and
            the last iteration is always followed by one. 0 for none.
        evaluation_episodes: Episodes of one evaluation.
        greedy_evaluation: Evaluate the best actions; else as at the end of training.
        max_episode_steps: Length at which an evaluation's episode is cut off; the environment's
            limit by default.
        normalize_obs: Subtract the running mean of observations and divide by their standard
            deviation. The buffer holds raw observations; they are normalized when they are drawn.
        replay_obs: How the buffer holds observations: ``float``, or, in a quarter of the memory,
            ``uint8`` (whole numbers up to 255) or ``bool`` (zeros and ones, as MinAtar's).

    Raises:
        TypeError: If ``algorithm`` is not an off-policy one.
        ValueError: If a size is out of range or does not fit the others.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = purerl.dqn(purerl.DQNConfig(prioritized=True), env.action_space)
        >>> train = make_off_policy_train(algorithm, env, 4000, warmup=2000, evaluations=2)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> result = jax.jit(purerl.vectorize(train.train))(keys)
        >>> result.curve.step[0].tolist(), result.curve.evaluation.mean_return.shape
        ([3000, 4000], (2, 2))
    """
    sizes = Sizes(
        steps,
        num_envs,
        rollout_length,
        evaluations,
        evaluation_episodes,
        greedy_evaluation,
        max_episode_steps,
    )
    _check(algorithm, env, sizes, updates, warmup, replay_obs)
    warmup_length = -(-warmup // num_envs)
    sizes = sizes._replace(warmup_steps=warmup_length * num_envs)
    real = jnp.result_type(float)
    memory = replay_memory(algorithm.replay, num_envs, env.truncation_interval)
    held = {"float": real, "uint8": jnp.dtype("uint8"), "bool": jnp.dtype("bool")}[replay_obs]

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
        check_key(key)
        key, play_key = jax.random.split(key)
        normalizer = Normalizer(init_moments(env.obs_shape, real) if normalize_obs else None, None)
        state = start(algorithm, env, sizes, normalizer, key)
        state = state._replace(replay=memory.init(_item(env, held)))
        return play(state, play_key, warmup_length, 0.0)[0]

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

        state, statistics = play(state, play_key, rollout_length, progress)
        (learner, replay), info = jax.lax.scan(
            lambda carry, key: learn(carry, key, state.normalizer, progress),
            (state.learner, state.replay),
            jax.random.split(learn_key, updates),
        )
        refused = state.refused + jnp.sum(~info["finite"], dtype=jnp.int32)
        info = {name: jnp.mean(x) for name, x in info.items()} | {"finite": info["finite"].all()}
        iteration = state.clock.iteration + 1
        state = state._replace(
            clock=Clock(iteration), learner=learner, replay=replay, refused=refused
        )
        return state, Metrics(sizes.step(iteration), statistics, info)

    return assemble(algorithm, env, sizes, init, iterate)


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


def _check(
    algorithm: Any, env: Env, sizes: Sizes, updates: int, warmup: int, replay_obs: str
) -> None:
    where = "make_off_policy_train"
    if not isinstance(algorithm, OffPolicyAlgorithm):
        advice = (
            "train it with purerl.make_train"
            if isinstance(algorithm, OnPolicyAlgorithm)
            else "purerl.dqn(config, env.action_space) returns one"
        )
        raise TypeError(
            f"algorithm is a {type(algorithm).__name__}, wanted an OffPolicyAlgorithm: {advice}."
        )
    sizes.check(where, env)
    check_integer(where, "updates", updates, 1)
    check_integer(where, "warmup", warmup, 0)
    check_choice(where, "replay_obs", replay_obs, typing.get_args(ObsDtype))
    if warmup < algorithm.batch_size:
        raise ValueError(
            f"{where}: warmup={warmup} is less than batch_size={algorithm.batch_size}; start to "
            "learn when there is at least one batch to learn from."
        )
    if sizes.steps < warmup + sizes.steps_per_iteration:
        raise ValueError(
            f"{where}: steps={sizes.steps} is less than warmup={warmup} and one "
            f"iteration of {sizes.steps_per_iteration} steps, so nothing would be learned; ask for "
            "more steps, or a shorter warm-up."
        )
    warmup = -(-warmup // sizes.num_envs) * sizes.num_envs
    for what, steps in (("the warm-up", warmup), ("an iteration", sizes.steps_per_iteration)):
        if steps > algorithm.replay.capacity:
            raise ValueError(
                f"{where}: {what} adds {steps} transitions to a buffer of capacity="
                f"{algorithm.replay.capacity}; make the capacity larger, or {what} smaller."
            )
