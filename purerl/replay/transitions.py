r"""The transitions of N environments in a replay buffer, with each observation held once.

What a step led to is what the next step of that environment began with, so ``next_obs`` needs no
memory of its own: it is the ``obs`` that lies N places on. Three cases are different:

* After ``terminated`` nothing follows. What lies N places on is the observation after the reset;
  its value counts with a discount of zero.
* After ``truncated`` the observation before the reset is needed, and is nowhere else. These last
  observations have places of their own, one for each environment in every ``interval`` steps,
  where interval is the least number of steps between two truncations of an environment: its time
  limit. For CartPole, with a limit of 500, they take 1/500 of the memory of the others. Where no
  such number is known it is 1, and the memory is that of a second observation a transition.
* After the newest step of each environment nothing has been added yet: N more places.

No search, and no index an item, is needed: a place's number says at which step it was written.
Each array of an observation that is a pytree is held so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.config import Number, check_integer
from purerl.pieces import rows
from purerl.pieces.returns import UNROLL
from purerl.records import Clock, OffPolicyBatch, PyTree, Transition, flatten_time
from purerl.replay.buffers import Replay, ReplayState, Sample
from purerl.replay.packed import empty, pack, take_fields
from purerl.replay.tree import take


class ReplayMemoryState(NamedTuple):
    """State of a :class:`ReplayMemory`.

    Attributes:
        replay: Of packed transitions without ``next_obs``, which
            :func:`purerl.replay.packed.unpack` gives.
        last_obs: Observations after truncations, of W intervals, and after the newest step,
            ``[W + 1, N, *O]``.
        steps: Steps of each environment that were added.
    """

    replay: ReplayState
    last_obs: PyTree
    steps: Clock


class ReplayMemory(NamedTuple):
    """A replay memory as pure functions; :func:`replay_memory` makes one.

    Attributes:
        init: ``(Transition, shapes and dtypes of one) -> state``.
        add: ``(state, Transition [T, N, ...]) -> state``.
        sample: ``(state, key, size, *, progress) -> Sample``.
        batch: ``(state, sample, *, gamma, n_step) -> OffPolicyBatch``.
        update_priorities: ``(state, indices [B], td_error [B]) -> state``.
    """

    init: Callable[..., ReplayMemoryState]
    add: Callable[..., ReplayMemoryState]
    sample: Callable[..., Sample]
    batch: Callable[..., OffPolicyBatch]
    update_priorities: Callable[..., ReplayMemoryState]


def replay_memory(
    replay: Replay, num_envs: int = 1, interval: int = 1, obs: PyTree = None
) -> ReplayMemory:
    r"""Transitions in a buffer, and n-step returns out of it.

    ``batch`` gives

    .. math::
        r = \sum_{k < m} \gamma^k r_{t+k}, \qquad
        d = \gamma^m (1 - \text{terminated}_{t+m-1})

    and as ``next_obs`` that of step t + m - 1, before any reset. The sum stops after ``terminated``
    and after ``truncated``, and at the newest step that is held: m is ``n_step`` or less. Where
    both flags are set, terminated wins. Where d is zero, ``next_obs`` is some observation. What is
    no transition (:attr:`purerl.Transition.valid`) has weight zero, and the others make up for it.

    Args:
        replay: :func:`purerl.uniform` or :func:`purerl.prioritized`.
        num_envs: N, environments whose steps are added side by side.
        interval: No environment is truncated twice in fewer steps than this
            (:attr:`purerl.Env.truncation_interval`); 1 is right for all, and takes most memory.
        obs: Arrays, or their shapes and dtypes, in whose dtypes ``batch`` gives observations; None:
            floating point.

    Returns:
        The memory as functions.

    Raises:
        ValueError: If a number is no positive integer; by ``batch``, if ``n_step`` exceeds the
            steps of an environment that the buffer holds, capacity / N.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from purerl.replay.buffers import Sample, uniform
        >>> memory, no, yes = replay_memory(uniform(3)), jnp.array(False), jnp.array(True)
        >>> zero = jnp.float32(0)
        >>> state = memory.init(Transition(zero, zero, zero, no, no, zero))
        >>> for t, last in enumerate((no, yes, no)):
        ...     step = Transition(zero + t, zero, zero + 1, no, last, zero + t + 1)
        ...     state = memory.add(state, jax.tree.map(lambda x: x[None, None], step))
        >>> sample = Sample(jnp.array([0, 1, 2]), jnp.ones(3))
        >>> batch = memory.batch(state, sample, gamma=0.5, n_step=3)
        >>> batch.reward.tolist(), batch.discount.tolist(), batch.next_obs.tolist()
        ([1.5, 1.0, 1.0], [0.25, 0.5, 0.5], [2.0, 2.0, 3.0])
    """
    check_integer("replay_memory", "num_envs", num_envs)
    check_integer("replay_memory", "interval", interval)
    nothing: Any = None  # for next_obs, which the buffer does not hold
    capacity = replay.capacity
    steps_held = -(-capacity // num_envs)  # the oldest perhaps not of all environments
    # Intervals that so many steps can have a part in.
    windows = -(-(steps_held - 1) // interval) + 1

    def init(item: Transition) -> ReplayMemoryState:
        def places(x: jax.Array) -> jax.Array:
            return jnp.zeros((windows + 1, num_envs, *x.shape), x.dtype)

        last_obs, steps = jax.tree.map(places, item.next_obs), Clock(jnp.zeros((), jnp.int32))
        packed = empty(item._replace(next_obs=nothing))
        return ReplayMemoryState(replay.init(packed), last_obs, steps)

    def add(state: ReplayMemoryState, steps: Transition) -> ReplayMemoryState:
        length, count = steps.truncated.shape
        if count != num_envs:
            raise ValueError(
                f"add got steps of {count} environments, wanted [T, N, ...] with N = {num_envs}; "
                "give replay_memory the right num_envs."
            )
        items = pack(flatten_time(steps._replace(next_obs=nothing)), state.replay.items)
        envs = jnp.tile(jnp.arange(num_envs), 2)

        def remember(last_obs, step):
            time, truncated, next_obs = step
            # Into the window where truncated (else nowhere), and into the newest's place.
            rows = jnp.where(truncated, window_of(time), windows + 1)
            rows = jnp.concatenate([rows, jnp.full_like(rows, windows)])

            def write(last: jax.Array, new: jax.Array) -> jax.Array:
                twice = jnp.concatenate([new, new]).astype(last.dtype)
                return last.at[rows, envs].set(twice, mode="drop", wrap_negative_indices=False)

            return jax.tree.map(write, last_obs, next_obs), None

        times = state.steps.iteration + jnp.arange(length, dtype=jnp.int32)
        each = (times, steps.truncated, steps.next_obs)
        last_obs, _ = jax.lax.scan(remember, state.last_obs, each)
        steps_added = Clock(state.steps.iteration + length)
        valid = None if steps.valid is None else flatten_time(steps.valid)
        return ReplayMemoryState(replay.add(state.replay, items, valid), last_obs, steps_added)

    def window_of(time: jax.Array) -> jax.Array:
        return (time // interval) % windows

    def sample(state, *args, **kwargs) -> Sample:
        return replay.sample(state.replay, *args, **kwargs)

    def batch(
        state: ReplayMemoryState, sample: Sample, *, gamma: Number, n_step: int = 1
    ) -> OffPolicyBatch:
        if n_step > max(1, capacity // num_envs):
            raise ValueError(
                f"n_step={n_step}, but of {num_envs} environments a buffer of capacity={capacity} "
                f"holds {capacity // num_envs} steps each; choose at least {n_step * num_envs}."
            )
        items = state.replay.items
        field: Transition = items.fields
        flags = field.reward, field.terminated, field.truncated
        last = sample.indices  # place of the last step so far
        age = (state.replay.cursor.next - 1 - last) % capacity  # items added after it
        first: Transition = take_fields(items, last, field)
        reward, terminated, truncated = first.reward, first.terminated, first.truncated

        def one_more(_: int, so_far: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            """A step more, where the episode goes on and the buffer holds it."""
            last, age, reward, terminated, truncated, discount = so_far
            on = ~(terminated | truncated) & (age >= num_envs)
            last = jnp.where(on, (last + num_envs) % capacity, last)
            age = jnp.where(on, age - num_envs, age)
            later, terminated, truncated = take_fields(items, last, flags)
            reward = reward + jnp.where(on, discount * later, 0)
            discount = jnp.where(on, discount * gamma, discount)
            return last, age, reward, terminated, truncated, discount

        discount = jnp.full_like(reward, gamma)
        so_far = last, age, reward, terminated, truncated, discount
        # A loop: written out, thirty of these take XLA minutes.
        so_far = jax.lax.fori_loop(1, n_step, one_more, so_far, unroll=UNROLL)
        last, age, reward, terminated, truncated, discount = so_far

        following = take_fields(items, (last + num_envs) % capacity, field.obs)
        time, env = state.steps.iteration - 1 - age // num_envs, num_envs - 1 - age % num_envs
        row = jnp.where(truncated, window_of(time), windows)
        is_apart = truncated | (age < num_envs)
        weight = sample.weight
        if first.valid is not None:
            weight = jnp.where(first.valid, weight, 0) * rows.share(first.valid)

        def next_of(last: jax.Array, following: jax.Array) -> jax.Array:
            apart = take(last, row, env)
            return jnp.where(_like(is_apart, apart), apart, following)

        return OffPolicyBatch(
            obs=_as_seen(first.obs, obs),
            action=first.action,
            reward=reward,
            discount=jnp.where(terminated, 0, discount),
            next_obs=_as_seen(jax.tree.map(next_of, state.last_obs, following), obs),
            weight=weight,
            indices=sample.indices,
        )

    def update_priorities(state, *args) -> ReplayMemoryState:
        return state._replace(replay=replay.update_priorities(state.replay, *args))

    return ReplayMemory(init, add, sample, batch, update_priorities)


def _like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """A mask of rows with as many axes as ``x``."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))


def _as_seen(held: PyTree, obs: PyTree) -> PyTree:
    """Observations as they are held, in the dtypes that they were seen in."""
    if obs is not None:
        return jax.tree.map(lambda x, like: x.astype(like.dtype), held, obs)
    real = jnp.result_type(float)
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else x.astype(real), held
    )
