"""The only file that knows gymnax. Importing gymnax takes seconds, and computes with JAX, which
fixes the number of devices; so it is imported when an environment is made.
"""

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
from gymnax.environments.environment import Environment

from purerl.config import suggest
from purerl.envs.make import Env, Step, values
from purerl.records import ActionSpace, Box, Discrete, PyTree

NEEDS_DOWNLOAD = {
    "MNISTBandit-bsuite": "it downloads the MNIST images when it is made; give a gymnax object of "
    "it, made by yourself, to make_env instead of the name"
}
SIX = "(obs, state, reward, terminated, truncated, info with 'final_observation')"


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return [name for name in gymnax.registered_envs if name not in NEEDS_DOWNLOAD]


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of gymnax's.

    Args:
        name: Out of :func:`list_envs`.
        params: Fields of its parameters, or arguments of its constructor.
    """
    if name in NEEDS_DOWNLOAD:
        raise ValueError(f"{name} is left out: {NEEDS_DOWNLOAD[name]}.")
    if name not in gymnax.registered_envs:
        raise ValueError(f"unknown environment {name!r}. {suggest(name, list_envs())}")
    x64 = jax.config.read("jax_enable_x64")
    accepted = inspect.signature(type(_construct(name, x64))).parameters
    own = {key: value for key, value in params.items() if key in accepted}
    rest = {key: value for key, value in params.items() if key not in own}
    return adapt(_construct(name, x64, **own), rest, name)


@functools.lru_cache(maxsize=64)
def _construct(name: str, x64: bool, **own: Any) -> Any:
    del x64  # the object may hold arrays of the default float type
    return gymnax.make(name, **own)[0]


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object with gymnax's interface.

    Args:
        env: The object.
        params: Fields of its parameters.
        name: Its name; what it calls itself by default.
    """
    name = name or getattr(env, "name", type(env).__name__)
    for attribute in ("reset", "step", "default_params", "action_space", "observation_space"):
        if not hasattr(env, attribute):
            raise TypeError(
                f"{name} has no attribute {attribute!r}; make_env takes a name out of list_envs(), "
                "an Env record, or an object with the interface of gymnax's Environment. "
                "(Environments of Gymnasium are no pure functions, so they do not fit.)"
            )
    env_params = _replace(name, env.default_params, params)
    to_env_action, action_space = _actions(name, env.action_space(env_params))
    of_gymnax = getattr(type(env), "step", None) is Environment.step

    @_lenient
    def reset(key):
        obs, state = values(f"{name}.reset", env.reset(key, env_params), "(obs, state)")
        return convert(obs), _fix_weak_types(state)

    @_lenient
    def step(state, action, key, fresh=None):
        action = to_env_action(action)
        if not of_gymnax:  # it begins again by itself
            got = values(f"{name}.step", env.step(key, state, action, env_params), SIX)
            obs, state, reward, terminated, truncated, info = got
            if "final_observation" not in info:
                raise TypeError(f"{name}.step gives no final_observation, wanted {SIX}.")
            final = convert(info["final_observation"])
            return _step(convert(obs), final, reward, terminated, truncated), _fix_weak_types(state)
        if fresh is None:
            key, reset_key = jax.random.split(key)
            fresh = reset(reset_key)
        got = env.step_env(key, state, action, env_params)
        obs, state, reward, terminated, _ = values(
            f"{name}.step_env", got, "(obs, state, reward, terminated, info)"
        )
        result = _step(
            convert(obs), convert(obs), reward, terminated, env.is_truncated(state, env_params)
        )
        done = result.terminated | result.truncated
        obs, state = jax.tree.map(
            lambda new, old: jnp.where(done, new, old), fresh, (result.obs, _fix_weak_types(state))
        )
        return result._replace(obs=obs), state

    raw = jax.eval_shape(_lenient(env.reset), jax.random.key(0), env_params)
    raw = values(f"{name}.reset", raw, "(obs, state)")
    convert, obs_shape, obs_range = _observations(name, env.observation_space(env_params), raw[0])
    limit = getattr(env_params, "max_steps_in_episode", None)
    limit = None if limit is None else int(limit)
    only_limit = of_gymnax and type(env).is_truncated is Environment.is_truncated
    return Env(
        name,
        reset,
        step,
        action_space,
        obs_shape,
        limit,
        truncation_interval=max(limit, 1) if limit is not None and only_limit else 1,
        obs_range=obs_range,
        resets=os.environ.get("RESETS", "ahead") if of_gymnax else "own",
        to_env_action=to_env_action,
    )


def _lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's strictness about rank promotion is not for the code of environments."""

    @functools.wraps(function)
    def lenient(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return lenient


def _step(obs: Any, final: Any, reward: Any, terminated: Any, truncated: Any) -> Step:
    """A step; Python numbers in it become arrays, rewards floating point."""
    reward = jnp.asarray(reward, jnp.result_type(float))
    return Step(obs, final, reward, jnp.asarray(terminated), jnp.asarray(truncated))


def _replace(name: str, env_params: Any, changes: dict[str, Any]) -> Any:
    if not changes:
        return env_params
    if not dataclasses.is_dataclass(env_params) or isinstance(env_params, type):
        raise TypeError(
            f"{name}'s default_params are a {type(env_params).__name__}, wanted a dataclass to "
            "change fields of; make them a flax.struct.dataclass, as gymnax has them."
        )
    known = [field.name for field in dataclasses.fields(env_params)]
    for key in changes:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}. {suggest(key, known)}")
    return dataclasses.replace(env_params, **changes)


def _actions(name: str, space: Any) -> tuple[Callable[[Any], Any], ActionSpace]:
    """A function from a learner's actions to the environment's, and the learner's space."""
    if type(space).__name__ == "Discrete" and getattr(space, "start", 0) == 0:
        return lambda action: action, Discrete(int(space.n))
    if type(space).__name__ != "Box" or not jnp.issubdtype(space.dtype, jnp.floating):
        raise TypeError(
            f"{name} has actions of {space}; Discrete from 0 and Box of floating-point numbers are "
            "supported, so convert the action inside the environment."
        )
    shape = tuple(space.shape)
    low, high = (np.broadcast_to(np.asarray(b), shape) for b in (space.low, space.high))
    finite = np.isfinite(low) & np.isfinite(high)
    middle, half = np.where(finite, low / 2 + high / 2, 0), np.where(finite, high / 2 - low / 2, 1)

    def to_env_action(action):
        real = jnp.result_type(float)
        scaled = jnp.asarray(middle, real) + action * jnp.asarray(half, real)
        return jnp.clip(scaled, jnp.asarray(low, real), jnp.asarray(high, real))

    return to_env_action, Box(shape, np.where(finite, -1, low), np.where(finite, 1, high))


def _observations(name: str, space: Any, raw: Any) -> tuple[Callable[[Any], jax.Array], Any, Any]:
    """A function that makes observations floating point, their shape, and the range of integers."""
    real = jnp.result_type(float)
    if type(space).__name__ == "Discrete" and getattr(space, "start", 0) == 0:
        return lambda obs: jax.nn.one_hot(obs, space.n, dtype=real), (int(space.n),), (0.0, 1.0)
    if type(space).__name__ != "Box":
        raise TypeError(
            f"{name} has observations of {space}; Discrete from 0 and Box are supported, so "
            "concatenate the parts inside the environment."
        )
    shape = tuple(space.shape) or (1,)

    def convert(obs):
        obs = jnp.asarray(obs, real)
        return obs.reshape(1) if obs.shape == () else obs

    # MinAtar's are booleans that gymnax casts.
    counts = name.endswith("-MinAtar") or any(
        not jnp.issubdtype(x.dtype, jnp.floating) for x in (raw, space)
    )
    low, high = float(np.min(space.low)), float(np.max(space.high))
    return convert, shape, (low, high) if counts else None


def _fix_weak_types(state: PyTree) -> PyTree:
    """Weakly typed leaves (Python numbers in a reset) would make a scan's carry change its type."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
