"""The only file that knows Craftax. Its flag merges death and victory with the time limit: here the
first is termination (the flag under a limit that is never reached), the second truncation.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from craftax.craftax_env import make_craftax_env_from_name

from purerl.config import check_choice
from purerl.envs.episodes import check_params, make_record
from purerl.envs.record import Env, Pictures
from purerl.records import Discrete

NAMES = ["Craftax-Symbolic-v1", "Craftax-Classic-Symbolic-v1"]
PIXELS = ["Craftax-Pixels-v1", "Craftax-Classic-Pixels-v1"]
TILE = 16  # pixels of a tile in a picture
NEVER = int(np.iinfo(np.int32).max)


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return NAMES + PIXELS


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Craftax's.

    Args:
        name: Out of :func:`list_envs`.
        params: Fields of its parameters, such as ``max_timesteps``, the time limit.
    """
    check_choice("unknown environment of craftax", name, list_envs())
    return adapt(_construct(name), params, f"craftax:{name}")


@functools.lru_cache
def _construct(name: str) -> Any:
    return make_craftax_env_from_name(name, auto_reset=False)


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object of Craftax's.

    Args:
        env: One without a reset of its own (``...NoAutoReset``).
        params: Fields of its parameters.
        name: Its name; what it calls itself by default.
    """
    name = name or env.name
    default = env.default_params
    check_params(name, params, vars(default))
    env_params = default.replace(**params)
    endless = env_params.replace(max_timesteps=NEVER)

    def reset(key):
        return env.reset_env(key, endless)

    def step(state, action, key):
        obs, state, reward, terminated, _ = env.step_env(key, state, action, endless)
        return obs, state, reward, terminated, state.timestep >= env_params.max_timesteps

    actions = Discrete(int(env.num_actions))
    limit, drawn = int(env_params.max_timesteps), Pictures(_frames(env), seconds=0.2)
    return make_record(name, reset, step, actions, limit=limit, pictures=drawn)


def _frames(env: Any) -> Callable[[list[Any]], list[np.ndarray]]:
    """By the renderer of the game that it is a variant of."""
    package = type(env).__module__.rpartition(".envs.")[0]

    def frames(states):
        renderer = importlib.import_module(f"{package}.renderer")
        draw = jax.jit(renderer.make_craftax_pixel_renderer(TILE))
        return [np.asarray(draw(state)).astype(np.uint8) for state in states]

    return frames
