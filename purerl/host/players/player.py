"""What the host asks of environments that it plays, and their records."""

import math
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from purerl.envs import spaces
from purerl.envs.record import Env, Outside, Step
from purerl.records import PyTree, action_mask, allows_choice


class Moved(NamedTuple):
    """One step of R environments, as NumPy's arrays.

    Attributes:
        obs: ``[R, *O]`` what to act on next: the first of a new episode, where one ended.
        next_obs: ``[R, *O]`` what the action led to, before any reset.
        reward: ``[R]``.
        terminated: bool ``[R]``.
        truncated: bool ``[R]``.
        valid: bool ``[R]``: False where a step was spent on a reset.
    """

    obs: PyTree
    next_obs: PyTree
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    valid: np.ndarray


class Player(Protocol):
    """K environments side by side. A new episode begins where one ended."""

    def reset(self) -> PyTree:
        """Begins an episode in each: observations ``[K, *O]``."""

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> Moved:
        """One step, by a learner's actions ``[R, *A]``, of all or of those whose numbers are given.

        A player that cannot leave environments out steps all, and returns those asked for.
        """

    def close(self) -> None:
        """Ends processes and frees memory."""


class PlayedError(RuntimeError):
    """An environment failed, or did not answer, while the host played it.

    Attributes:
        row: Which one of a player's, where that is known.
    """

    row: int | None = None


def played_env(
    name: str,
    space: tuple[Any, Any],
    limit: int | None,
    make: Callable[[int, np.ndarray], Player],
    *,
    idle: bool = False,
    filmed: Any = None,
) -> Env:
    """The record of an environment that the host plays.

    Args:
        name: For messages.
        space: Observations and actions of one of them.
        limit: Its time limit in steps, or None.
        make: Makes a player, see :class:`purerl.envs.record.Outside`.
        idle: As there.
        filmed: As there.
    """
    raw_obs, raw_action = space
    seen = spaces.observations(name, raw_obs)
    to_env, actions = spaces.actions(name, raw_action)

    def example() -> PyTree:
        """Zeros in the shapes and dtypes of an observation."""
        raw = jax.tree.map(jnp.asarray, _zeros_of(raw_obs))
        obs = seen.convert(name, raw)
        mask: Any = action_mask(obs)  # that allows all
        return jax.tree.map(lambda x: jnp.ones(x.shape, bool) if x is mask else x, obs)

    def reset(key: jax.Array) -> tuple[PyTree, PyTree]:
        return example(), ()

    def step(state: PyTree, action: jax.Array, key: jax.Array, fresh: Any = None) -> Any:
        obs, no = example(), jnp.array(False)
        return Step(obs, obs, jnp.zeros(()), terminated=no, truncated=no), state

    wide = {np.dtype(x.dtype) for x in jax.tree.leaves(_zeros_of(raw_obs))}
    notes = (f"{name} observes float64, which becomes float32",)
    told = notes if np.dtype(np.float64) in wide and not _x64() else ()
    outside = Outside(make, idle, told, filmed)
    about: Any = dict(to_env_action=to_env, resets="own", outside=outside)
    observe = spaces.observer(raw_obs)
    return Env(name, reset, step, actions, seen.shape, limit, observe=observe, **about)


def _x64() -> bool:
    return jax.config.read("jax_enable_x64")


def _zeros_of(space: Any) -> PyTree:
    """An observation of zeros, as NumPy's arrays, of the space's own dtypes."""
    kind = type(space).__name__
    if kind == "Dict":
        return {name: _zeros_of(part) for name, part in space.spaces.items()}
    if kind == "Tuple":
        return tuple(_zeros_of(part) for part in space.spaces)
    return np.zeros(getattr(space, "shape", None) or (), space.dtype)


class Converter(NamedTuple):
    """Observations and actions between a player's environments and a learner, in NumPy.

    Attributes:
        read: ``(raw [*]) -> raw [*]``, of one environment, with arrays that are copies.
        observe: ``(raw [R, *]) -> obs [R, *O]``, copies too.
        act: ``(action [R, *A]) -> raw [R, *]``.
    """

    read: Callable[[Any], PyTree]
    observe: Callable[[Any], PyTree]
    act: Callable[[np.ndarray], Any]


def make_converter(name: str, observation_space: Any, action_space: Any) -> Converter:
    """Converts between a family's spaces and those of a learner.

    Args:
        name: Of the environment, for messages.
        observation_space: Of one environment.
        action_space: Of one environment.
    """
    seen = spaces.observations(name, observation_space, arrays=np)
    to_env, space = spaces.actions(name, action_space, arrays=np)
    kind = getattr(action_space, "dtype", None)

    def observe(raw: Any) -> PyTree:
        obs = seen.convert(name, raw)
        mask = action_mask(obs)
        if mask is not None and len(dead := np.flatnonzero(~allows_choice(mask, space))):
            error = PlayedError(f"{name}: its action_mask allows no action.")
            error.row = int(dead[0])
            raise error
        return obs

    def act(action: np.ndarray) -> Any:
        raw = to_env(np.asarray(action))
        return raw if kind is None else raw.astype(kind)

    return Converter(spaces.reader(observation_space, arrays=np), observe, act)


def rows_of(tree: PyTree, rows: Any) -> PyTree:
    """Some rows of arrays.

    Args:
        tree: Arrays ``[K, ...]``.
        rows: Their numbers, or a slice.
    """
    return jax.tree.map(lambda x: x[rows], tree)


def with_rows(tree: PyTree, rows: np.ndarray, new: PyTree) -> PyTree:
    """Arrays in whose copies some rows are replaced.

    Args:
        tree: Arrays ``[K, ...]``.
        rows: Their numbers ``[R]``.
        new: Arrays ``[R, ...]``.
    """

    def replaced(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[rows] = y
        return x

    return jax.tree.map(replaced, tree, new)


def stacked(observations: list[PyTree]) -> PyTree:
    """Observations of single environments, side by side.

    Args:
        observations: What :attr:`Converter.read` made, or converted.
    """
    return jax.tree.map(lambda *x: np.stack(x), *observations)


class Watch:
    """Calls functions in a thread of its own, so that one that never returns can be given up."""

    def __init__(self, seconds: float):
        """Begins the thread.

        Args:
            seconds: How long a call may take; infinity: it is made in the caller's own thread.
        """
        self.seconds = seconds
        self.asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if math.isfinite(seconds):
            threading.Thread(target=self._serve, daemon=True).start()

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function`` returns or raises; TimeoutError if that takes too long."""
        if not math.isfinite(self.seconds):
            return function(*args)
        self.asked.put((function, args))
        try:
            result, error = self.answers.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {self.seconds:g} s") from None
        if error is not None:
            raise error
        return result

    def close(self) -> None:
        """Ends the thread, after the call that it is in."""
        self.asked.put(None)

    def _serve(self) -> None:
        while (job := self.asked.get()) is not None:
            function, args = job
            try:
                self.answers.put((function(*args), None))
            except BaseException as error:  # it is the caller's
                self.answers.put((None, error))
