"""Environments: the one file that knows gymnax.

gymnax is imported where it is used: importing it computes with JAX, which fixes the number of
devices, and then ``use_all_cores`` would come too late for everyone who imports purerl first.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.config import suggest
from purerl.records import ActionSpace, Box, Discrete, PyTree

NEEDS_DOWNLOAD = {
    "MNISTBandit-bsuite": "it downloads the MNIST images when it is made; give a gymnax object of "
    "it, made by yourself, to make_env instead of the name"
}


class Step(NamedTuple):
    """What one environment step gives."""

    obs: jax.Array  # [*O] what to act on next: after a reset, if the episode ended
    next_obs: jax.Array  # [*O] what the action led to, before any reset
    reward: jax.Array  # []
    terminated: jax.Array  # [] bool
    truncated: jax.Array  # [] bool


class Env(NamedTuple):
    """A single environment as two pure functions; loops ``vmap`` them.

    ``step(state, action, key, fresh)`` goes on from ``fresh``, a result of ``reset``, if the
    episode ends; without it, from a reset of its own. A loop draws the resets of many steps at
    once: random numbers cost far less in one long array than in many short ones.
    """

    name: str
    reset: Callable[[jax.Array], tuple[jax.Array, PyTree]]  # (key) -> (obs, state)
    step: Callable[..., tuple[Step, PyTree]]  # (state, action, key, fresh=None) -> (step, state)
    action_space: ActionSpace
    obs_shape: tuple[int, ...]
    max_episode_steps: int | None  # the time limit, where it is known
    truncation_interval: int = 1  # no two truncations in fewer steps; 1 where nothing is known


def list_envs() -> list[str]:
    """Names that :func:`make_env` takes."""
    import gymnax

    return [name for name in gymnax.registered_envs if name not in NEEDS_DOWNLOAD]


def make_env(env: Any, **params: Any) -> Env:
    """An environment by its gymnax name, or from an object with gymnax's interface.

    Observations come as floating-point arrays (integers and booleans are cast, a discrete
    observation becomes one-hot) and rewards as floating-point scalars. Actions for a Box are
    clipped to its bounds here, and only here: a learner sees the Gaussian's own, unclipped ones.

    Args:
        env: A name out of :func:`list_envs`, or an object with ``reset(key, params)``,
            ``step(key, state, action, params)`` giving gymnax 1.0's six values,
            ``default_params``, ``action_space(params)`` and ``observation_space(params)``.
        **params: Fields of the environment's parameters (``max_steps_in_episode=200``), or
            arguments of its constructor.

    Raises:
        ValueError: If the name or a parameter is unknown, or the environment needs a download.
        TypeError: If the object lacks gymnax's interface, or its spaces are not supported.

    Example:
        >>> import jax
        >>> env = make_env("CartPole-v1", max_steps_in_episode=200)
        >>> obs, state = env.reset(jax.random.key(0))
        >>> obs.shape, env.action_space, env.max_episode_steps
        ((4,), Discrete(num_actions=2), 200)
    """
    if isinstance(env, str):
        name = env
        env, params = _construct(name, params)
    else:
        name = getattr(env, "name", type(env).__name__)
    for attribute in ("reset", "step", "default_params", "action_space", "observation_space"):
        if not hasattr(env, attribute):
            raise TypeError(
                f"{name} has no attribute {attribute!r}; make_env takes a name out of list_envs() "
                "or an object with the interface of gymnax.environments.environment.Environment."
            )
    env_params = _replace(name, env.default_params, params)
    action_space = _action_space(name, env.action_space(env_params))
    convert, obs_shape = _observation(name, env.observation_space(env_params))

    advance = _without_reset(env) if _resets_as_gymnax_does(env) else None

    @_lenient
    def reset(key):
        obs, state = env.reset(key, env_params)
        return convert(obs), _fix_weak_types(state)

    @_lenient
    def step(state, action, key, fresh=None):
        if isinstance(action_space, Box):
            action = jnp.clip(action, action_space.low, action_space.high)
        if advance is None:  # an environment with a way of its own to begin again
            obs, state, *rest = env.step(key, state, action, env_params)
            if len(rest) != 4 or "final_observation" not in rest[-1]:
                raise TypeError(
                    f"{name}.step gives {len(rest) + 2} values, wanted gymnax 1.0's six (obs, "
                    "state, reward, terminated, truncated, info), with "
                    "info['final_observation']."
                )
            result = _step(convert, obs, rest[-1]["final_observation"], *rest[:3])
            return result, _fix_weak_types(state)
        if fresh is None:
            key, reset_key = jax.random.split(key)
            fresh = reset(reset_key)
        obs, state, *rest = advance(key, state, action, env_params)
        result = _step(convert, obs, obs, *rest)
        done = result.terminated | result.truncated
        obs, state = jax.tree.map(
            lambda new, old: jnp.where(done, new, old), fresh, (result.obs, _fix_weak_types(state))
        )
        return result._replace(obs=obs), state

    limit = getattr(env_params, "max_steps_in_episode", None)
    limit = None if limit is None else int(limit)
    interval = max(limit, 1) if limit is not None and _only_truncates_at_limit(env) else 1
    return Env(name, reset, step, action_space, obs_shape, limit, interval)


def _lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """A user's strictness about rank promotion is not for the code of environments."""

    @functools.wraps(function)
    def lenient(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return lenient


def _resets_as_gymnax_does(env: Any) -> bool:
    from gymnax.environments.environment import Environment

    return getattr(type(env), "step", None) is Environment.step


def _only_truncates_at_limit(env: Any) -> bool:
    from gymnax.environments.environment import Environment

    gymnaxs = _resets_as_gymnax_does(env)
    return gymnaxs and type(env).is_truncated is Environment.is_truncated


def _without_reset(env: Any) -> Callable[..., Any]:
    """The ``step`` of gymnax up to where it would begin a new episode."""

    def advance(key, state, action, env_params):
        obs, state, reward, terminated, _ = env.step_env(key, state, action, env_params)
        return obs, state, reward, terminated, env.is_truncated(state, env_params)

    return advance


def _step(
    convert: Callable[[Any], jax.Array],
    obs: Any,
    next_obs: Any,
    reward: Any,
    terminated: Any,
    truncated: Any,
) -> Step:
    """A step with the shapes and dtypes that it promises."""
    return Step(
        convert(obs),
        convert(next_obs),
        jnp.asarray(reward, jnp.result_type(float)).reshape(()),
        jnp.asarray(terminated, bool).reshape(()),
        jnp.asarray(truncated, bool).reshape(()),
    )


def _construct(name: str, params: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The gymnax object, and the parameters that its constructor did not take."""
    import gymnax

    if name in NEEDS_DOWNLOAD:
        raise ValueError(f"{name} is left out: {NEEDS_DOWNLOAD[name]}.")
    if name not in gymnax.registered_envs:
        raise ValueError(f"unknown environment {name!r}. {suggest(name, list_envs())}")
    env = gymnax.make(name)[0]
    accepted = inspect.signature(type(env)).parameters
    own = {key: value for key, value in params.items() if key in accepted}
    if own:
        env = gymnax.make(name, **own)[0]
    return env, {key: value for key, value in params.items() if key not in own}


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


def _action_space(name: str, space: Any) -> ActionSpace:
    from gymnax.environments import spaces

    if isinstance(space, spaces.Discrete):
        return Discrete(int(space.n))
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape)
        low, high = (jnp.broadcast_to(jnp.asarray(b), shape) for b in (space.low, space.high))
        return Box(shape, low, high)
    raise TypeError(
        f"{name} has actions of {type(space).__name__}; Discrete and Box are supported, so "
        "flatten the action inside the environment."
    )


def _observation(name: str, space: Any) -> tuple[Callable[[Any], jax.Array], tuple[int, ...]]:
    """A function that makes observations floating point, and their shape."""
    from gymnax.environments import spaces

    real = jnp.result_type(float)
    if isinstance(space, spaces.Discrete):
        return lambda obs: jax.nn.one_hot(obs, space.n, dtype=real), (int(space.n),)
    if isinstance(space, spaces.Box):
        shape = tuple(space.shape) or (1,)
        return lambda obs: jnp.asarray(obs, real).reshape(shape), shape
    raise TypeError(
        f"{name} has observations of {type(space).__name__}; Discrete and Box are supported, so "
        "concatenate the parts inside the environment."
    )


def _fix_weak_types(state: PyTree) -> PyTree:
    """Weakly typed leaves (Python numbers in a reset) would make a scan's carry change its type."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
