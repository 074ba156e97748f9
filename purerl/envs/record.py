"""The record of an environment: two pure functions, and what loops have to know of them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from purerl.records import ActionSpace, PyTree


class Step(NamedTuple):
    """What one environment step gives.

    Attributes:
        obs: ``[*O]`` what to act on next: the first of a new episode, if one ended.
        next_obs: ``[*O]`` what the action led to, before any reset.
        reward: ``[]`` floating point.
        terminated: ``[]`` bool, the episode ended in a state after which nothing follows.
        truncated: ``[]`` bool, the episode was cut off, by a time limit for example.
    """

    obs: jax.Array
    next_obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Pictures(NamedTuple):
    """How an environment is drawn, outside of JAX's transformations.

    Attributes:
        frames: ``(states) -> frames``: one uint8 ``[height, width, 3]`` for each state of a list.
        seconds: Of one step, by which a film runs as fast as the environment.
        html: ``(states) -> text``, a page that shows them; None where there is none.
    """

    frames: Callable[[list[PyTree]], Sequence[np.ndarray]]
    seconds: float = 0.05
    html: Callable[[list[PyTree]], str] | None = None


class Outside(NamedTuple):
    """How the host plays an environment that is not written in JAX.

    Attributes:
        make: ``(count, seeds [count]) -> player`` of so many environments, as
            :class:`purerl.host.players.player.Player` says.
        idle: Whether a player may spend steps on its own resets, which are then no transitions.
        notes: What a run tells its user of the environment, such as that numbers lose precision.
        filmed: ``(seed) -> (player of one, frame, seconds)`` with a function ``() -> frame``, uint8
            ``[height, width, 3]``, and the seconds of a step; None where there is no picture.
    """

    make: Callable[[int, np.ndarray], Any]
    idle: bool = False
    notes: tuple[str, ...] = ()
    filmed: Callable[[int], tuple[Any, Callable[[], np.ndarray], float]] | None = None


class Env(NamedTuple):
    """A single environment as two pure functions; loops ``vmap`` them.

    A new episode begins within ``step``: where one ends, ``obs`` and ``state`` are those of
    ``fresh``, a result of ``reset``, or, without it, of a reset drawn from ``key``. Rewards are
    floating point; ``state`` is a pytree of arrays whose shapes and dtypes no step changes. Extra
    arguments of a record of one's own may be left at their defaults.

    An observation is an array ``[*O]``, or a pytree of arrays, each floating point, or uint8: bytes
    stay bytes in a replay memory, and the default networks scale them by 1/255. One called
    ``action_mask``, bool ``[K]``, is no input of a network; it says which of K discrete actions are
    allowed (of a MultiDiscrete: of all its choices, one after the other), and each state allows at
    least one.

    Attributes:
        name: For messages.
        reset: ``(key) -> (obs [*O], state)``.
        step: ``(state, action, key, fresh=None) -> (Step, state)``.
        action_space: What ``step`` takes. A finite Box is [-1, 1], whatever the environment's own,
            and ``step`` scales: other finite bounds are refused.
        obs_shape: ``O``; where an observation is a pytree, the same tree of shapes.
        max_episode_steps: Time limit in steps, after which an episode has ended; None if there is
            none, or it is not known.
        truncation_interval: No two truncations of an environment in fewer steps than this; 1 where
            nothing is known.
        obs_range: Smallest and largest value of observations that are integers or booleans, cast to
            floating point; None where they are real numbers.
        resets: Where :func:`purerl.unroll` has the starts of new episodes from: ``"due"``, drawn
            for the episodes that ended, when they ended; ``"ahead"``, one for each step of a
            rollout, drawn in one batch before it; ``"own"``, nowhere, since ``step`` does not look
            at ``fresh``; ``"auto"``, ``"due"`` on CPUs, and on accelerators, where a loop of
            unknown length waits for the host, ``"ahead"`` if a start is little data. No two
            episodes share a start, and the numbers are the same in any case.
        to_env_action: ``(action) -> action``, from ``action_space`` to the environment's own
            actions (clipped to its bounds), as ``step`` does it. A policy that plays the
            environment elsewhere needs it.
        pictures: How it is drawn; None where it cannot be.
        outside: Of an environment that the host plays, since it is not written in JAX: how. Its
            ``reset`` then tells shapes only, and its ``step`` raises.
        observe: ``(raw, many=False) -> obs``, from an observation as the environment itself gives
            it, or from ``many`` with a leading axis, to what ``obs_shape`` says: a whole number
            becomes one-hot. TypeError or ValueError: it is none. None: they are the same.
    """

    name: str
    reset: Callable[[jax.Array], tuple[jax.Array, PyTree]]
    step: Callable[..., tuple[Step, PyTree]]
    action_space: ActionSpace
    obs_shape: PyTree
    max_episode_steps: int | None
    truncation_interval: int = 1
    obs_range: tuple[float, float] | None = None
    resets: Literal["auto", "due", "ahead", "own"] = "auto"
    to_env_action: Callable[[jax.Array], jax.Array] = lambda action: action
    pictures: Pictures | None = None
    outside: Outside | None = None
    observe: Callable[..., PyTree] | None = None


def is_shape(x: Any) -> bool:
    """Whether a node of :attr:`Env.obs_shape` is the shape of an array.

    Args:
        x: A node.
    """
    return type(x) is tuple and all(isinstance(axis, int) for axis in x)
