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

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from purerl.config import check_integer

PyTree = Any
Info = dict[str, jax.Array]

ACTION_MASK = "action_mask"  # a leaf of observations that says which actions are allowed


def num_rows(tree: PyTree) -> int:
    """The length of the leading axis, which all leaves share.

    Args:
        tree: Arrays ``[N, ...]``, such as observations.
    """
    return jax.tree.leaves(tree)[0].shape[0]


def flatten_time(tree: PyTree) -> PyTree:
    """``[T, N, ...]`` to ``[T * N, ...]``, for every leaf.

    Args:
        tree: Arrays ``[T, N, ...]``.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


@dataclasses.dataclass(frozen=True)
class Discrete:
    """Actions ``0 ... num_actions - 1``, as int32 scalars.

    Attributes:
        num_actions: At least 1.

    Raises:
        ValueError: If it is no positive integer.
    """

    num_actions: int

    def __post_init__(self):
        count = check_integer("Discrete", "num_actions", self.num_actions)
        object.__setattr__(self, "num_actions", count)


@dataclasses.dataclass(frozen=True, eq=False)
class Box:
    """Real-valued actions of a fixed shape, between ``low`` and ``high`` (element-wise).

    Hashable, and equal to a Box of the same shape and bounds.

    Attributes:
        shape: Of one action, ``(D,)``.
        low: Lower bounds: a number, stored as a float, or an array ``[D]``, stored as NumPy's.
        high: Upper bounds, each larger than the lower one.

    Raises:
        ValueError: If the bounds have another shape than the actions, or a lower one is not lower.

    Example:
        >>> Box((2,), [-1.0, -1.0], 1.0) == Box((2,), -1.0, 1.0)
        True
    """

    shape: tuple[int, ...]
    low: Any = -math.inf
    high: Any = math.inf

    def __post_init__(self):
        if not isinstance(self.shape, tuple | list):
            raise ValueError(f"Box: shape={self.shape!r}, wanted a tuple of integers: (3,).")
        shape = tuple(check_integer("Box", "an axis of shape", axis) for axis in self.shape)
        object.__setattr__(self, "shape", shape)
        for name in ("low", "high"):
            object.__setattr__(self, name, self._bound(name, getattr(self, name)))
        traced = any(isinstance(x, jax.core.Tracer) for x in (self.low, self.high))
        if not traced and not np.all(self.low < self.high):  # written so that NaN fails
            raise ValueError(f"Box: low={self.low} is not below high={self.high} everywhere.")

    def _bound(self, name: str, bound: Any) -> Any:
        if (got := np.shape(bound)) not in ((), self.shape):
            wanted = f"a number or shape {self.shape}, that of an action"
            raise ValueError(f"Box: {name} has shape {got}, wanted {wanted}.")
        if isinstance(bound, jax.core.Tracer):
            return bound
        bound = np.array(bound, float)
        bound.setflags(write=False)
        return float(bound.flat[0]) if bound.size and np.all(bound == bound.flat[0]) else bound

    def _key(self) -> tuple[Any, ...]:
        return self.shape, *(tuple(np.ravel(bound).tolist()) for bound in (self.low, self.high))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Box) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True)
class MultiDiscrete:
    """Several choices at once: actions are int32 vectors ``[D]``, of ``0 ... counts[i] - 1`` each.

    Attributes:
        counts: At least 1 each, ``D`` of them.

    Raises:
        ValueError: If there is none, or one is no positive integer.

    Example:
        >>> MultiDiscrete([3, 2]).shape
        (2,)
    """

    counts: tuple[int, ...]

    def __post_init__(self):
        counts = self.counts if np.ndim(self.counts) == 1 else ()
        if not len(counts):
            raise ValueError(f"MultiDiscrete: counts={self.counts!r}, wanted integers: (3, 2).")
        counts = tuple(check_integer("MultiDiscrete", "a count", n) for n in counts)
        object.__setattr__(self, "counts", counts)

    @property
    def shape(self) -> tuple[int]:
        """Of one action, ``(D,)``."""
        return (len(self.counts),)


ActionSpace = Discrete | MultiDiscrete | Box


def action_mask(obs: PyTree) -> jax.Array | None:
    """The leaf of observations that is called ``action_mask``, bool ``[..., K]``; None without one.

    Args:
        obs: An array, or a pytree of arrays.
    """
    for path, x in jax.tree_util.tree_leaves_with_path(obs):
        if path and _name(path[-1]) == ACTION_MASK:
            return x
    return None


def allows_choice(mask: Any, space: ActionSpace) -> Any:
    """Whether a mask allows an action, bool ``[...]``: of a MultiDiscrete, one in each choice.

    Args:
        mask: Bool ``[..., K]``, of JAX's or NumPy's arrays.
        space: Of the actions.

    Example:
        >>> mask = np.array([[True, False, True], [True, True, False]])
        >>> allows_choice(mask, MultiDiscrete((2, 1))).tolist()
        [True, False]
    """
    if not isinstance(space, MultiDiscrete):
        return mask.any(axis=-1)
    ends = [0, *itertools.accumulate(space.counts)]
    choices = (mask[..., i:j].any(axis=-1) for i, j in itertools.pairwise(ends))
    return functools.reduce(operator.and_, choices)


def inputs_of(obs: PyTree) -> list[jax.Array]:
    """The leaves of observations that are inputs of a network: all but an ``action_mask``.

    Args:
        obs: An array, or a pytree of arrays.
    """
    leaves = jax.tree_util.tree_leaves_with_path(obs)
    return [x for path, x in leaves if not path or _name(path[-1]) != ACTION_MASK]


def _name(key: Any) -> Any:
    """Of the last part of a leaf's path."""
    return getattr(key, "key", getattr(key, "name", None))


def num_choices(space: ActionSpace) -> int | None:
    """How many actions an ``action_mask`` speaks of: of a MultiDiscrete all choices, one after the
    other; None of a Box, whose actions cannot be forbidden.

    Args:
        space: Of an environment.
    """
    if isinstance(space, Box):
        return None
    return space.num_actions if isinstance(space, Discrete) else sum(space.counts)


class Rollout(NamedTuple):
    """What N environments did in T steps; JAX's or NumPy's arrays.

    ``terminated`` and ``truncated`` are never merged. After ``terminated`` nothing follows, so a
    bootstrap is zero; after ``truncated`` the episode was only cut off, so a bootstrap is the value
    of ``next_obs``, which is the observation *before* any reset. With both set, terminated wins.

    Attributes:
        obs: ``[T, N, *O]``, what the policy saw.
        action: ``[T, N, *A]``, what it chose; Gaussian actions unclipped.
        log_prob: ``[T, N]``, log pi(action | obs) when it chose, in nats.
        reward: ``[T, N]``.
        terminated: bool ``[T, N]``, whether the step ended its episode.
        truncated: bool ``[T, N]``, whether the episode was cut off after the step.
        next_obs: ``[T, N, *O]``, the observation that the step led to, before any reset.
        episode_step: int32 ``[T, N]``, 0 at the first step of an episode.
        valid: bool ``[T, N]``, whether the row is a transition; None: all are. A vectorized
            environment may spend a step on its own reset, between two episodes: what that row holds
            is learned from by nobody.
        memory: The memory of a policy that has one, leaves ``[T + 1, N, ...]``: before each step,
            and after the last; else None. No reset has touched row t + 1: it is what the value of
            ``next_obs`` at step t takes. Rows that are no transitions change nothing in it.
    """

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: jax.Array
    episode_step: jax.Array
    valid: jax.Array | None = None
    memory: PyTree = None


class Sequences(NamedTuple):
    """The observations of n sequences of T steps: what a network with a memory is applied to.

    It stands for ``B = T * n`` observations, in the order of time, and at each time of sequences;
    so where a batch has one for its ``obs``, its other fields are ``[B, ...]`` in this order.

    Attributes:
        obs: ``[T, n, *O]``.
        memory: Before the first step, leaves ``[n, ...]``; constant.
        start: bool ``[T, n]``, whether a step is the first of an episode, which remembers nothing.
    """

    obs: PyTree
    memory: PyTree
    start: jax.Array


class OnPolicyBatch(NamedTuple):
    """One minibatch of a rollout, as the on-policy losses take it.

    Attributes:
        obs: ``[B, *O]``, or :class:`Sequences` for a network with a memory.
        action: ``[B, *A]``.
        log_prob: ``[B]``, log pi_old(action | obs), in nats.
        value: ``[B]``, V_old(obs).
        advantage: ``[B]``.
        target: ``[B]``, what the critic is regressed on.
        distribution: pi_old(. | obs), leaves ``[B, ...]``, where a loss needs the whole of it.
        valid: bool ``[B]``, which samples count; None: all.
    """

    obs: jax.Array
    action: jax.Array
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    distribution: PyTree = None
    valid: jax.Array | None = None


class Ahead(NamedTuple):
    """How an algorithm acts in a rollout whose random numbers are all drawn before it.

    The loops then leave log-probabilities out of the rollout's scan: a step keeps the policy, and
    they are computed after it, all at once. The actions are distributed as those of ``act``.
    Optional: what an algorithm of your own gains by it is speed, on an accelerator above all.

    Attributes:
        noise: ``(state, obs [N, *O], key, length) -> noise``, leaves ``[length, N, ...]``, of which
            a step gets one row; of the shapes of state and obs alone.
        act: ``(state, obs [N, *O], noise, *, progress) -> (action [N, *A], policy)`` with the
            distribution that the action is from, a pytree with leaves ``[N, ...]``, or None. With
            a memory: given ``memory`` and ``start``, too, it returns ``(action, policy, memory)``.
        log_prob: ``(policy [T, N, ...], action [T, N, *A]) -> [T, N]``; an off-policy algorithm
            needs none.
    """

    noise: Callable[..., Any]
    act: Callable[..., Any]
    log_prob: Callable[..., Any] | None = None


class OnPolicyAlgorithm(NamedTuple):
    """An on-policy algorithm: three pure functions, as an optax transformation is two.

    The configuration and the network are bound when the record is built, so the functions depend on
    nothing but their arguments, and can be jitted, scanned and vmapped. An algorithm of your own is
    a record of three functions that keep to the following.

    Attributes:
        init: ``(obs [N, *O], key) -> state``, any pytree of arrays.
        act: ``(state, obs [N, *O], key, *, greedy=False, progress=1.0) -> (action, extras)``.
            Actions are ``[N, *A]``, int32 or floating point; ``greedy`` (a Python bool) asks for
            the best action instead of a sample. ``extras["log_prob"]`` ``[N]`` goes into the
            rollout.
        update: ``(state, rollout, key, *, progress=0.0) -> (state, info)`` with a :class:`Rollout`
            ``[T, N]``. The state keeps its structure, shapes and dtypes. Every entry of ``info`` is
            a scalar; ``info["finite"]``, a bool, is False where the update was refused because of
            numbers that are not finite (:func:`purerl.pieces.gradient.keep_if_finite`).
        whole_episodes: Whether each rollout starts at a reset and holds the first episode whole.
        gamma: Discount factor; only what normalizes rewards needs it.
        ahead: How it acts in rollouts, in a faster way than by ``act``; None: by ``act``.
        init_memory: ``(obs [N, *O]) -> memory``, leaves ``[N, ...]``, of an algorithm whose policy
            has a memory. Its ``act`` then takes ``memory`` and ``start`` (bool ``[N]``: whether a
            step is an episode's first, at which the memory counts as empty) by keyword too, and
            ``extras["memory"]`` is the memory after the step; ``rollout.memory`` holds them. None:
            it has none.

    ``progress`` is the finished fraction of the run, a scalar in [0, 1] that the loop passes; what
    is annealed follows it. By hand, acting defaults to the end of a run and updating to its
    beginning.
    """

    init: Callable[..., Any]
    act: Callable[..., Any]
    update: Callable[..., Any]
    whole_episodes: bool = False
    gamma: Any = None
    ahead: Ahead | None = None
    init_memory: Callable[..., Any] | None = None


class Transition(NamedTuple):
    """What N environments did in one step, as a replay buffer holds it.

    Attributes:
        obs: ``[N, *O]``.
        action: ``[N, *A]``.
        reward: ``[N]``.
        terminated: bool ``[N]``, whether the step ended its episode.
        truncated: bool ``[N]``, whether the episode was cut off after it; never merged with it.
        next_obs: ``[N, *O]``, the observation *before* any reset.
        valid: bool ``[N]``, whether it is a transition, as in :class:`Rollout`; None: all are.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    next_obs: jax.Array
    valid: jax.Array | None = None


class OffPolicyBatch(NamedTuple):
    """What an off-policy algorithm learns from; JAX's or NumPy's arrays.

    A target is ``reward + discount * (value of next_obs)``. With one-step returns ``discount`` is
    gamma, and zero after ``terminated``; n-step returns have gamma to the power of the steps that
    each of them really spans.

    Attributes:
        obs: ``[B, *O]``.
        action: ``[B, *A]``.
        reward: ``[B]``, of one or several steps, discounted.
        discount: ``[B]``, what the value of next_obs is multiplied with.
        next_obs: ``[B, *O]``; any observation where ``discount`` is 0.
        weight: ``[B]``, importance weights in (0, 1]; ones for uniform replay. Of what is no
            transition 0, and the others are the larger, so that a mean is that of the others.
        indices: int32 ``[B]``, places in the replay buffer.
    """

    obs: jax.Array
    action: jax.Array
    reward: jax.Array
    discount: jax.Array
    next_obs: jax.Array
    weight: jax.Array
    indices: jax.Array


class OffPolicyAlgorithm(NamedTuple):
    """An off-policy algorithm: the three functions of an on-policy one, and what it replays.

    Attributes:
        init: As of :class:`OnPolicyAlgorithm`.
        act: As of :class:`OnPolicyAlgorithm`.
        update: ``(state, batch, key, *, progress=0.0) -> (state, info)`` with an
            :class:`OffPolicyBatch` ``[B]``. ``info`` is that of an on-policy update, and besides
            its scalars has ``td_error`` ``[B]``, from which new priorities are made.
        replay: :class:`purerl.Replay`: where transitions are kept and how they are drawn.
        batch_size: B.
        n_step: Rewards in a return.
        gamma: Discount factor of those returns.
        ahead: As of :class:`OnPolicyAlgorithm`.
    """

    init: Callable[..., Any]
    act: Callable[..., Any]
    update: Callable[..., Any]
    replay: Any
    batch_size: int
    n_step: int
    gamma: float | jax.Array
    ahead: Ahead | None = None


class Clock(NamedTuple):
    """What drives periodic work; a part of a TrainState that is never batched.

    Under ``jax.vmap`` a batched predicate turns ``lax.cond`` into a select that runs both branches
    for every seed at every step. ``purerl.vectorize`` therefore maps a Clock with axis ``None``.

    Attributes:
        iteration: int32 ``[]``, iterations finished.
    """

    iteration: jax.Array


class Cursor(NamedTuple):
    """Where a replay buffer is written next; never batched either.

    All seeds write to the same place of their buffers, so that adding under ``jax.vmap`` is one
    write of N rows a seed; with a place of its own for each seed it would be a scatter of rows.

    Attributes:
        next: int32 ``[]``, the place of the next item.
        size: int32 ``[]``, items held.
    """

    next: jax.Array
    size: jax.Array


def is_clock(x: Any) -> bool:
    """Whether this part of a state is never batched.

    Args:
        x: A node of a pytree.
    """
    return isinstance(x, Clock | Cursor)
