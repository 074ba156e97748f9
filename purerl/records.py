"""The records that the pieces hand to each other.

Shape letters, used throughout the package:

=====  ==========================================================
``T``  time steps of one rollout
``N``  parallel environments
``B``  samples in a batch (``B = T * N`` for a whole rollout)
``O``  observation shape, ``*O`` its axes
``A``  action shape, ``*A`` its axes (none for discrete actions)
=====  ==========================================================
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

PyTree = Any
Info = dict[str, jax.Array]


class Discrete(NamedTuple):
    """Actions ``0 ... num_actions - 1``, as int32 scalars."""

    num_actions: int


class Box(NamedTuple):
    """Real-valued actions of a fixed shape, between ``low`` and ``high`` (element-wise)."""

    shape: tuple[int, ...]
    low: Any = -float("inf")
    high: Any = float("inf")


ActionSpace = Discrete | Box


class Rollout(NamedTuple):
    """What N environments did in T steps.

    ``terminated`` and ``truncated`` are never merged. After ``terminated`` nothing follows, so a
    bootstrap is zero; after ``truncated`` the episode was only cut off, so a bootstrap is the value
    of ``next_obs``, which is the observation *before* any reset. With both set, terminated wins.
    """

    obs: jax.Array  # [T, N, *O] what the policy saw
    action: jax.Array  # [T, N, *A] what it chose; Gaussian actions unclipped
    log_prob: jax.Array  # [T, N] log pi(action | obs) when it chose
    reward: jax.Array  # [T, N]
    terminated: jax.Array  # [T, N] bool
    truncated: jax.Array  # [T, N] bool
    next_obs: jax.Array  # [T, N, *O] the observation the step led to, before any reset
    episode_step: jax.Array  # [T, N] int32, 0 at the first step of an episode


class OnPolicyBatch(NamedTuple):
    """One minibatch of a rollout, as the on-policy losses take it."""

    obs: jax.Array  # [B, *O]
    action: jax.Array  # [B, *A]
    log_prob: jax.Array  # [B] log pi_old(action | obs)
    value: jax.Array  # [B] V_old(obs)
    advantage: jax.Array  # [B]
    target: jax.Array  # [B] what the critic is regressed on
    distribution: PyTree = None  # pi_old(. | obs), where a loss needs the whole of it


class OnPolicyAlgorithm(NamedTuple):
    """An on-policy algorithm: three pure functions, as an optax transformation is two.

    The configuration and the network are bound when the record is built, so the functions depend on
    nothing but their arguments, and can be jitted, scanned and vmapped. The loop reads two entries
    of what they return: ``extras["log_prob"]`` ``[N]``, which goes into the rollout, and
    ``info["finite"]``, a bool scalar: False where the update was refused and the state kept.
    """

    init: Callable[..., Any]  # (obs [N, *O], key) -> state
    act: Callable[..., Any]  # (state, obs [N, *O], key, *, greedy, progress) -> (action, extras)
    update: Callable[..., Any]  # (state, rollout [T, N], key, *, progress) -> (state, info)
    whole_episodes: bool = False  # each rollout starts at a reset and holds the first episode whole
    gamma: Any = None  # discount factor; only what normalizes rewards needs it


class Transition(NamedTuple):
    """What N environments did in one step, as a replay buffer holds it.

    ``next_obs`` is the observation *before* any reset; the flags are never merged.
    """

    obs: jax.Array  # [N, *O]
    action: jax.Array  # [N, *A]
    reward: jax.Array  # [N]
    terminated: jax.Array  # [N] bool
    truncated: jax.Array  # [N] bool
    next_obs: jax.Array  # [N, *O]


class OffPolicyBatch(NamedTuple):
    """What an off-policy algorithm learns from.

    A target is ``reward + discount * (value of next_obs)``. With one-step returns ``discount`` is
    gamma, and zero after ``terminated``; n-step returns have gamma to the power of the steps that
    each of them really spans.
    """

    obs: jax.Array  # [B, *O]
    action: jax.Array  # [B, *A]
    reward: jax.Array  # [B] of one or several steps, discounted
    discount: jax.Array  # [B] what the value of next_obs is multiplied with
    next_obs: jax.Array  # [B, *O]
    weight: jax.Array  # [B] importance weights in (0, 1]; ones for uniform replay
    indices: jax.Array  # [B] int32, places in the replay buffer


class OffPolicyAlgorithm(NamedTuple):
    """An off-policy algorithm: the three functions of an on-policy one, and what it replays.

    ``update`` takes a batch instead of a rollout. The loop reads two entries of its info:
    ``finite``, as for an on-policy algorithm, and ``td_error`` ``[B]``, the new priorities.
    """

    init: Callable[..., Any]  # (obs [N, *O], key) -> state
    act: Callable[..., Any]  # (state, obs [N, *O], key, *, greedy, progress) -> (action, extras)
    update: Callable[..., Any]  # (state, batch [B], key, *, progress) -> (state, info)
    replay: Any  # purerl.replay.Replay: where transitions are kept and how they are drawn
    batch_size: int  # B
    n_step: int  # rewards in a return
    gamma: float | jax.Array  # discount factor of those returns


class Clock(NamedTuple):
    """What drives periodic work; a part of a TrainState that is never batched.

    Under ``jax.vmap`` a batched predicate turns ``lax.cond`` into a select that runs both branches
    for every seed at every step. ``purerl.vectorize`` therefore maps a Clock with axis ``None``.
    """

    iteration: jax.Array  # [] int32, iterations finished


class Cursor(NamedTuple):
    """Where a replay buffer is written next; never batched either.

    All seeds write to the same place of their buffers, so that adding under ``jax.vmap`` is one
    write of N rows a seed; with a place of its own for each seed it would be a scatter of rows.
    """

    next: jax.Array  # [] int32, the place of the next item
    size: jax.Array  # [] int32, items held
