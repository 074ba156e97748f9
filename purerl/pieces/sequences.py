"""A rollout's observations as what the network takes: samples, or with a memory sequences.

Rows that are no transitions stand at the ends of their environments' sequences, where nothing
follows that could remember them.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.policies.memory import has_memory
from purerl.records import PyTree, Rollout, Sequences, flatten_time


def observations(network: Any, rollout: Rollout, length: int | None = None) -> Any:
    """All observations of a rollout, for :func:`purerl.policies.acting.apply_network`.

    Args:
        network: With a memory or without.
        rollout: ``[T, N]``.
        length: Steps of a sequence, which must divide T; each begins with the memory that the
            actors had there. None: T, so that gradients go through the whole rollout.

    Returns:
        ``[T * N, *O]``, or :class:`purerl.Sequences` of so many observations, in the order of
        :func:`samples`.
    """
    if not has_memory(network):
        return flatten_time(rollout.obs)
    length = check_length(rollout, length)
    before = jax.tree.map(lambda x: x[:-1], _memory(rollout))
    parts = _valid_first(rollout.valid, (rollout.obs, rollout.episode_step == 0, before))
    obs, start = _cut(parts[:2], length)
    return Sequences(obs, flatten_time(jax.tree.map(lambda x: x[::length], parts[2])), start)


def samples(network: Any, rollout: Rollout, fields: PyTree, length: int | None = None) -> PyTree:
    """``[T, N, ...]`` to ``[T * N, ...]``, in the order of :func:`observations`.

    Args:
        network: With a memory or without.
        rollout: ``[T, N]``.
        fields: Arrays ``[T, N, ...]``.
        length: As given there.
    """
    if has_memory(network):
        fields = _valid_first(rollout.valid, fields)
        fields = _cut(fields, check_length(rollout, length))
    return flatten_time(fields)


def states(network: Any, rollout: Rollout) -> tuple[Any, Any]:
    """The observations before and after each step, each for itself.

    With a memory they are sequences of one step, with the memories that the actors had: before the
    step, and after it. The latter is what an observation before a reset is seen with.

    Args:
        network: With a memory or without.
        rollout: ``[T, N]``.

    Returns:
        ``(of obs, of next_obs)``, ``T * N`` each, in the order of ``[T, N]``.
    """
    obs, next_obs = flatten_time((rollout.obs, rollout.next_obs))
    if not has_memory(network):
        return obs, next_obs
    memory = _memory(rollout)
    before, after = (jax.tree.map(rows, memory) for rows in (lambda x: x[:-1], lambda x: x[1:]))
    start = flatten_time(rollout.episode_step == 0)

    def each(obs: PyTree, memory: PyTree, start: jax.Array) -> Sequences:
        obs, start = jax.tree.map(lambda x: x[None], (obs, start))
        return Sequences(obs, flatten_time(memory), start)

    return each(obs, before, start), each(next_obs, after, jnp.zeros_like(start))


def check_length(rollout: Rollout, length: int | None) -> int:
    """Steps of a sequence; raises ValueError unless they divide the rollout.

    Args:
        rollout: ``[T, N]``.
        length: None: T.
    """
    total = rollout.reward.shape[0]
    if length is not None and total % length:
        raise ValueError(
            f"sequence_length={length} does not divide the rollout's {total} steps; choose one "
            "that divides rollout_length, or None: sequences as long as the rollout."
        )
    return length or total


def take_sequences(batch: Any, groups: jax.Array) -> Any:
    """Some sequences of a batch whose ``obs`` is :class:`purerl.Sequences`.

    Args:
        batch: All other fields ``[T * n, ...]``.
        groups: int ``[G, m]``, which sequences.

    Returns:
        Batches with leaves ``[G, ...]``, each of ``T * m`` samples.
    """
    obs = batch.obs
    lead = obs.start.shape

    def steps(x: jax.Array) -> jax.Array:  # [T, n, ...] -> [G, T, m, ...]
        return jnp.moveaxis(jnp.take(x, groups, axis=1, mode="clip"), 1, 0)

    def samples(x: jax.Array) -> jax.Array:  # [T * n, ...] -> [G, T * m, ...]
        x = steps(x.reshape(*lead, *x.shape[1:]))
        return x.reshape(len(groups), -1, *x.shape[3:])

    memory = jax.tree.map(lambda x: x[groups], obs.memory)
    taken = Sequences(jax.tree.map(steps, obs.obs), memory, steps(obs.start))
    return jax.tree.map(samples, batch._replace(obs=None))._replace(obs=taken)


def _memory(rollout: Rollout) -> PyTree:
    """The rollout's memories; ValueError if there are none."""
    total = rollout.reward.shape[0]
    sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(rollout.memory)}
    if sizes != {total + 1}:
        got = f"{sorted(sizes)} rows" if sizes else "nothing"
        raise ValueError(
            f"rollout.memory has {got}, wanted leaves [T + 1, N, ...] with T = {total}: the memory "
            'before each step and after the last, as init_memory and extras["memory"] of act give.'
        )
    return rollout.memory


def _valid_first(valid: jax.Array | None, tree: PyTree) -> PyTree:
    """Arrays ``[T, N, ...]`` with the valid rows of each environment before all others."""
    if valid is None:
        return tree
    order = jnp.argsort(~valid, axis=0, stable=True)

    def one(x: jax.Array) -> jax.Array:
        places = order.reshape(*order.shape, *[1] * (x.ndim - 2))
        return jnp.take_along_axis(x, places, axis=0)

    return jax.tree.map(one, tree)


def _cut(tree: PyTree, length: int) -> PyTree:
    """``[T, N, ...]`` to ``[length, (T / length) * N, ...]``: sequences side by side."""

    def one(x: jax.Array) -> jax.Array:
        x = x.reshape(-1, length, *x.shape[1:])
        return jnp.moveaxis(x, 1, 0).reshape(length, -1, *x.shape[3:])

    return jax.tree.map(one, tree)
