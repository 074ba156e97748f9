"""The only file that knows Gymnasium: its environments one by one, or as vectors of any kind."""

import functools
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from purerl.config import check_choice, suggest
from purerl.envs.record import Env
from purerl.host.players.player import (
    Moved,
    PlayedError,
    make_converter,
    played_env,
    rows_of,
    stacked,
    with_rows,
)
from purerl.records import PyTree

# How many environments are stepped: one after the other in this process, each in a process of its
# own, or by the vector that is registered for the environment.
MODES = ("sync", "async", "vector_entry_point")


def list_envs() -> list[str]:
    """Names that :func:`named` takes, without those that Gymnasium keeps to say where they went."""

    def is_there(entry: Any) -> bool:
        return not getattr(entry, "__module__", "").startswith("gymnasium.")

    return sorted(name for name, spec in gymnasium.registry.items() if is_there(spec.entry_point))


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Gymnasium's.

    Args:
        name: Out of :func:`list_envs`.
        params: ``vectorization`` (one of :data:`MODES`; ``sync`` by default), and keyword arguments
            of ``gymnasium.make``.
    """
    if name not in gymnasium.registry:
        near = suggest(name, list_envs())
        raise ValueError(f"unknown environment of gymnasium {name!r}. {near}")
    params = dict(params)
    mode = params.pop("vectorization", "sync")
    check_choice("unknown vectorization", mode, MODES)
    one = _opened(name, params)
    limit, space = one.spec.max_episode_steps, (one.observation_space, one.action_space)
    drawn = "rgb_array" in one.metadata.get("render_modes", ())
    one.close()
    make_one = functools.partial(gymnasium.make, name, **params)
    label = f"gymnasium:{name}"
    if mode == "sync":
        filmed = functools.partial(_filmed, label, make_one) if drawn else None
        return _of_single(label, space, limit, make_one, filmed)

    def make_vector(num_envs: int) -> VectorEnv:
        if mode == "async":
            # No fork of a process in which JAX has threads: it may wait for ever.
            return gymnasium.vector.AsyncVectorEnv(
                [make_one] * num_envs,
                autoreset_mode=AutoresetMode.SAME_STEP,
                context="forkserver",
            )
        return gymnasium.make_vec(name, num_envs, vectorization_mode=mode, **params)

    return _of_vector(label, make_vector, limit)


def adapt(env: Any, params: dict[str, Any], again: Callable[..., Any] | None = None) -> Env:
    """An environment of an object of Gymnasium's.

    Args:
        env: A ``gymnasium.Env`` or a ``VectorEnv``.
        params: None: they are arguments of what makes it.
        again: The function or class that made it, with its arguments bound: a run needs several.
            That of a ``VectorEnv`` takes ``num_envs``.
    """
    name = _name(env)
    if params:
        raise TypeError(f"{name} is an object, which has no parameters: {sorted(params)}.")
    if isinstance(env, VectorEnv):
        if again is None:
            raise TypeError(
                f"{name} is a vector of {env.num_envs} environments, and a run needs others; give "
                "the function that makes it, which takes num_envs."
            )
        env.close()
        limit = env.spec.max_episode_steps if env.spec else None
        return _of_vector(name, again, limit)
    spec = env.spec
    if again is None and spec is None:
        raise TypeError(
            f"{name} is one environment, and a run needs several; give the function or class that "
            "makes it."
        )
    space, limit = (env.observation_space, env.action_space), spec and spec.max_episode_steps
    make_one: Any = functools.partial(gymnasium.make, spec) if again is None else again
    return _of_single(name, space, limit, make_one)


def _name(env: Any) -> str:
    return env.spec.id if env.spec else type(getattr(env, "unwrapped", env)).__name__


def _opened(name: str, params: dict[str, Any]) -> Any:
    try:
        return gymnasium.make(name, **params)
    except gymnasium.error.DependencyNotInstalled as error:
        advice = ": pip install 'purerl[mujoco]'" if "mujoco" in str(error).lower() else ""
        raise ValueError(f"{name} needs a package that is missing{advice} ({error})") from error
    except (TypeError, gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"gymnasium.make({name!r}, **{params}) failed: {error}") from error


def _of_single(
    name: str,
    space: tuple[Any, Any],
    limit: int | None,
    make_one: Callable[..., Any],
    filmed: Any = None,
) -> Env:
    def make(count: int, seeds: np.ndarray) -> "Singles":
        return Singles(name, make_one, seeds)

    return played_env(name, space, limit, make, filmed=filmed)


def _filmed(name: str, make_one: Callable[..., Any], seed: int) -> Any:
    """One environment whose picture can be asked for."""
    env = make_one(render_mode="rgb_array")
    seconds = 1 / env.metadata.get("render_fps", 30)
    return Singles(name, lambda: env, np.array([seed])), env.render, seconds


def _of_vector(name: str, make_vector: Callable[..., VectorEnv], limit: int | None) -> Env:
    like = make_vector(num_envs=1)
    space: tuple[Any, Any] = like.single_observation_space, like.single_action_space
    idle = _autoreset(like) is AutoresetMode.NEXT_STEP
    like.close()

    def make(count: int, seeds: np.ndarray) -> "Vector":
        return Vector(name, make_vector(num_envs=count), seeds)

    return played_env(name, space, limit, make, idle=idle)


def _autoreset(env: VectorEnv) -> AutoresetMode:
    mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
    return AutoresetMode(mode)


class Singles:
    """Environments one after the other, each reset by itself when its episode has ended."""

    def __init__(self, name: str, make_one: Callable[[], Any], seeds: np.ndarray):
        """Makes them.

        Args:
            name: For messages.
            make_one: Makes one.
            seeds: Of each, ``[K]``.
        """
        self.name, self.seeds = name, [int(seed) for seed in seeds]
        self.envs = [make_one() for _ in self.seeds]
        first = self.envs[0]
        self.convert = make_converter(name, first.observation_space, first.action_space)

    def reset(self) -> PyTree:
        """Begins an episode in each; the first one by its seed."""
        seeds, self.seeds = self.seeds, [None] * len(self.seeds)  # type: ignore[list-item]
        raw = [self._begin(row, seed=seed) for row, seed in enumerate(seeds)]
        return self.convert.observe(stacked(raw))

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> Moved:
        """As :class:`purerl.host.players.player.Player` says."""
        rows = np.arange(len(self.envs)) if rows is None else rows
        raw, after, rewards, flags = self.convert.act(action), [], [], []
        begun: dict[int, Any] = {}  # what new episodes begin with, by the place among the rows
        for place, row in enumerate(rows):
            got = self._call(row, self.envs[row].step, raw[place])
            obs, reward, *ends = self._call(row, self._told, got)
            after.append(obs)
            rewards.append(reward)
            flags.append(ends)
            if any(ends):
                begun[place] = self._begin(row)
        next_obs = obs = self.convert.observe(stacked(after))
        if begun:
            obs = self.convert.observe(stacked([begun.get(i, x) for i, x in enumerate(after)]))
        terminated, truncated = np.array(flags, bool).T
        reward = np.array(rewards, np.float64)
        return Moved(obs, next_obs, reward, terminated, truncated, np.ones(len(rows), bool))

    def close(self) -> None:
        """Closes each."""
        for env in self.envs:
            env.close()

    def _begin(self, row: int, **kwargs: Any) -> PyTree:
        raw, _ = self._call(row, self.envs[row].reset, **kwargs)
        return self._call(row, self.convert.read, raw)

    def _told(self, got: tuple[Any, ...]) -> tuple[PyTree, float, bool, bool]:
        """What a step returned; numbers may come as arrays of one."""
        obs, reward, terminated, truncated, _ = got
        if not isinstance(reward, float):
            if np.size(reward) != 1:
                raise ValueError(f"a reward of shape {np.shape(reward)}, wanted one number")
            reward = np.asarray(reward, np.float64).item()
        return self.convert.read(obs), reward, bool(terminated), bool(truncated)

    def _call(self, row: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            failed = PlayedError(f"{self.name} raised {type(error).__name__}: {error}")
            failed.row = row
            raise failed from error


class Vector:
    """A vector of Gymnasium's, whatever it does when an episode ends.

    ``SAME_STEP`` gives the first observation of the new episode at once, and the last of the old
    one besides. ``NEXT_STEP`` gives the last one, and spends the next step on the reset: that is no
    transition. ``DISABLED`` waits to be reset, which is done here at once.
    """

    def __init__(self, name: str, env: VectorEnv, seeds: np.ndarray):
        """Takes the vector over.

        Args:
            name: For messages.
            env: K environments.
            seeds: Of each, ``[K]``.
        """
        self.name, self.env, self.mode = name, env, _autoreset(env)
        self.seeds: Any = [int(seed) for seed in seeds]
        spaces = env.single_observation_space, env.single_action_space
        self.convert = make_converter(name, *spaces)
        self.resets = np.zeros(env.num_envs, bool)  # whose next step is spent on a reset

    def reset(self) -> PyTree:
        """Begins an episode in each; the first one by its seed."""
        seeds, self.seeds = self.seeds, None
        self.resets[:] = False
        return self.convert.observe(self.env.reset(seed=seeds)[0])

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> Moved:
        """As :class:`purerl.host.players.player.Player` says; all are stepped."""
        count = self.env.num_envs
        if rows is not None:
            action, given = np.zeros((count, *action.shape[1:]), action.dtype), action
            action[rows] = given
        valid = ~self.resets
        raw = self.convert.act(action)
        got, reward, terminated, truncated, info = self.env.step(raw)
        done = terminated | truncated
        obs = next_obs = self.convert.observe(got)
        if done.any() and self.mode is AutoresetMode.SAME_STEP:
            next_obs = self._with_last(obs, info["final_obs"], done)
        if done.any() and self.mode is AutoresetMode.DISABLED:
            again, _ = self.env.reset(options={"reset_mask": done.copy()})
            obs = self.convert.observe(again)
        if self.mode is AutoresetMode.NEXT_STEP:
            self.resets = done.copy()
        moved = Moved(obs, next_obs, np.asarray(reward, np.float64), terminated, truncated, valid)
        return moved if rows is None else rows_of(moved, rows)

    def close(self) -> None:
        """Closes the vector."""
        self.env.close()

    def _with_last(self, obs: PyTree, final: Any, done: np.ndarray) -> PyTree:
        """Observations, with the last ones of the episodes that ended."""
        rows = np.flatnonzero(done)
        last = stacked([self.convert.read(final[row]) for row in rows])
        return with_rows(obs, rows, self.convert.observe(last))
