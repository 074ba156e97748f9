"""The only file that knows EnvPool, of which it uses the Gymnasium interface.

Left alone, EnvPool spends the step after an episode's end on its reset. Here the environments whose
episodes ended are reset by their numbers at once, so that each step is a transition.
"""

import functools
import warnings
from typing import Any

import envpool
import numpy as np

from purerl.config import suggest
from purerl.envs.record import Env
from purerl.host.players.player import (
    Converter,
    Moved,
    make_converter,
    played_env,
    rows_of,
    with_rows,
)
from purerl.records import PyTree


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return sorted(envpool.list_all_envs())


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of EnvPool's.

    Args:
        name: Out of :func:`list_envs`.
        params: Keyword arguments of ``envpool.make``, such as ``max_episode_steps``,
            ``num_threads`` or ``stack_num``.
    """
    if name not in envpool.list_all_envs():
        raise ValueError(f"unknown environment of envpool {name!r}. {suggest(name, list_envs())}")
    try:
        make = functools.partial(envpool.make, name, env_type="gymnasium", **params)
        one = make(num_envs=1)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"envpool.make({name!r}, **{params}) failed: {error}") from error
    space = _spaces(one)
    label, limit = f"envpool:{name}", one.config["max_episode_steps"]

    def player(count: int, seeds: np.ndarray) -> "Pool":
        pool = make(num_envs=count, seed=[int(seed) for seed in seeds])
        return Pool(pool, make_converter(label, *_spaces(pool)))

    return played_env(label, space, limit, player)


def _spaces(pool: Any) -> tuple[Any, Any]:
    """Of observations and actions; made when they are asked for first, and then kept."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bounds that lose digits; nothing a user can mend
        return pool.observation_space, pool.action_space


def adapt(env: Any, params: dict[str, Any]) -> Env:
    """Raises TypeError: an object of EnvPool's is of a fixed number, so only names are taken.

    Args:
        env: An object of EnvPool's.
        params: Of it.
    """
    raise TypeError("give a name, envpool:HalfCheetah-v5: a run makes as many as it needs.")


class Pool:
    """K environments of EnvPool's."""

    def __init__(self, pool: Any, convert: Converter):
        """Takes the pool over.

        Args:
            pool: Of EnvPool's, with the Gymnasium interface.
            convert: Between its spaces and a learner's.
        """
        self.pool, self.convert = pool, convert

    def reset(self) -> PyTree:
        """Begins an episode in each."""
        return self.convert.observe(self.pool.reset()[0])

    def step(self, action: np.ndarray, rows: np.ndarray | None = None) -> Moved:
        """As :class:`purerl.host.players.player.Player` says."""
        rows = np.arange(len(action)) if rows is None else rows
        got, reward, terminated, truncated, _ = self._sorted(
            self.pool.step(self.convert.act(action), rows)
        )
        done = terminated | truncated
        next_obs = obs = self.convert.observe(got)
        if done.any():
            ended = np.flatnonzero(done)
            first, _ = self._sorted(self.pool.reset(rows[ended]))
            obs = with_rows(obs, ended, self.convert.observe(first))
        valid = np.ones(len(rows), bool)
        return Moved(obs, next_obs, reward.astype(np.float64), terminated, truncated, valid)

    def _sorted(self, returned: tuple[Any, ...]) -> tuple[Any, ...]:
        """What EnvPool returned, in the order of the environments' numbers."""
        order = np.argsort(returned[-1]["env_id"], kind="stable")
        if (order == np.arange(len(order))).all():
            return returned
        return *(rows_of(x, order) for x in returned[:-1]), returned[-1]

    def close(self) -> None:
        """Frees the pool."""
        close = getattr(self.pool, "close", None)
        if close is not None:
            close()
