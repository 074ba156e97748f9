"""The only file that knows gymnax. Importing it computes with JAX, which fixes the number of
devices; so it is imported when an environment is made.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

from purerl.config import check_choice, see, suggest
from purerl.envs import spaces
from purerl.envs.deferred import defer
from purerl.envs.episodes import fix_weak_types, lenient
from purerl.envs.gymnax_pictures import pictures
from purerl.envs.record import Env, Step
from purerl.envs.trial import values
from purerl.threefry import takes_either

_PARTS = tuple(f"gymnax.environments.{part}" for part in ("bsuite", "classic_control", "minatar"))
defer("gymnax", "gymnax.environments", *_PARTS)
import gymnax  # noqa: E402
from gymnax.environments.environment import Environment  # noqa: E402

# Made without the rest of gymnax; a test compares them with what its registry gives.
CLASSES = {
    "CartPole-v1": "classic_control.cartpole:CartPole",
    "Pendulum-v1": "classic_control.pendulum:Pendulum",
    "Acrobot-v1": "classic_control.acrobot:Acrobot",
    "MountainCar-v0": "classic_control.mountain_car:MountainCar",
    "MountainCarContinuous-v0": "classic_control.continuous_mountain_car:ContinuousMountainCar",
    "Asterix-MinAtar": "minatar.asterix:MinAsterix",
    "Breakout-MinAtar": "minatar.breakout:MinBreakout",
    "Freeway-MinAtar": "minatar.freeway:MinFreeway",
    "Seaquest-MinAtar": "minatar.seaquest:MinSeaquest",
    "SpaceInvaders-MinAtar": "minatar.space_invaders:MinSpaceInvaders",
    "Catch-bsuite": "bsuite.catch:Catch",
    "DeepSea-bsuite": "bsuite.deep_sea:DeepSea",
    "MemoryChain-bsuite": "bsuite.memory_chain:MemoryChain",
    "UmbrellaChain-bsuite": "bsuite.umbrella_chain:UmbrellaChain",
    "DiscountingChain-bsuite": "bsuite.discounting_chain:DiscountingChain",
    "SimpleBandit-bsuite": "bsuite.bandit:SimpleBandit",
}
NEEDS_DOWNLOAD = "MNISTBandit-bsuite"
FIVE = "(obs, state, reward, terminated, info)"
SIX = "(obs, state, reward, terminated, truncated, info with 'final_observation')"


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return [name for name in gymnax.registered_envs if name != NEEDS_DOWNLOAD]


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of gymnax's.

    Args:
        name: Out of :func:`list_envs`.
        params: Fields of its parameters, or arguments of its constructor.
    """
    if name == NEEDS_DOWNLOAD:
        raise ValueError(f"{name} downloads the MNIST images; give a gymnax object of it.")
    if name not in CLASSES and name not in list_envs():
        if name in gymnasium.registry:
            raise ValueError(
                f"unknown environment {name!r} of gymnax. Did you mean gymnasium:{name}? The host "
                f"plays it. {see('environments.md')}"
            )
        check_choice("unknown environment", name, list_envs())
    x64 = jax.config.read("jax_enable_x64")
    accepted = inspect.signature(type(_construct(name, x64))).parameters
    own = {key: value for key, value in params.items() if key in accepted}
    rest = {key: value for key, value in params.items() if key not in own}
    return adapt(_construct(name, x64, **own), rest, name)


@functools.lru_cache(maxsize=64)
def _construct(name: str, x64: bool, **own: Any) -> Any:
    del x64  # the object may hold arrays of the default float type
    cls = _class_of(name)
    return gymnax.make(name, **own)[0] if cls is None else cls(**own)


def _class_of(name: str) -> Any:
    """Out of ``CLASSES``; None: it is not there, or in a later gymnax elsewhere."""
    if name not in CLASSES:
        return None
    module, _, cls = CLASSES[name].partition(":")
    try:
        return getattr(importlib.import_module(f"gymnax.environments.{module}"), cls)
    except (ImportError, AttributeError):
        return None


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object with gymnax's interface.

    Args:
        env: The object.
        params: Fields of its parameters.
        name: Its name; what it calls itself by default.
    """
    name = str(name or getattr(env, "name", type(env).__name__))
    for attribute in ("reset", "step", "default_params", "action_space", "observation_space"):
        if not hasattr(env, attribute):
            raise TypeError(
                f"{name} has no attribute {attribute!r}; make_env takes a name out of list_envs(), "
                "an Env, or an object like gymnax's (those of Gymnasium are no pure functions)."
            )
    env_params = _replace(name, env.default_params, params)
    raw_to_env, action_space = spaces.actions(name, env.action_space(env_params))
    to_env_action = lenient(raw_to_env)
    of_gymnax = getattr(type(env), "step", None) is Environment.step
    raw_step = (_step_of_gymnax if of_gymnax else _step_of_its_own)(name, env, env_params)

    @lenient
    def raw_reset(key):
        return values(f"{name}.reset", env.reset(key, env_params), "(obs, state)")

    def reset(key):
        obs, state = raw_reset(key)
        return seen.convert(f"{name}.reset", obs), fix_weak_types(state)

    @lenient
    def step(state, action, key, fresh=None):
        action = to_env_action(action)
        if of_gymnax and fresh is None:
            key, reset_key = jax.random.split(key)
            fresh = reset(reset_key)
        obs, final, state, reward, terminated, truncated = raw_step(state, action, key)
        obs, final = (seen.convert(f"{name}.step", x) for x in (obs, final))
        state, reward = fix_weak_types(state), jnp.asarray(reward, jnp.result_type(float))
        terminated, truncated = jnp.asarray(terminated), jnp.asarray(truncated)
        if of_gymnax:
            done = terminated | truncated
            obs, state = jax.tree.map(functools.partial(jnp.where, done), fresh, (obs, state))
        return Step(obs, final, reward, terminated, truncated), state

    raw_obs, _ = jax.eval_shape(raw_reset, jax.random.key(0))
    space = env.observation_space(env_params)
    seen = spaces.observations(name, space)
    obs_range = seen.range
    if hasattr(space, "low") and obs_range is None and _whole_numbers(name, raw_obs):
        obs_range = float(np.min(space.low)), float(np.max(space.high))
    limit = getattr(env_params, "max_steps_in_episode", None)
    limit = None if limit is None else int(limit)
    only_limit = of_gymnax and type(env).is_truncated is Environment.is_truncated
    interval = max(limit, 1) if limit is not None and only_limit else 1
    resets: Any = "auto" if of_gymnax else "own"
    about = action_space, seen.shape, limit, interval, obs_range, resets, to_env_action
    # Tests draw with all of these. A wrapper of gymnax's may hold an environment of others.
    if type(env).__module__.startswith("gymnax.environments."):
        reset, step = takes_either(reset), takes_either(step)
    drawn, observe = pictures(env, env_params), spaces.observer(space)
    return Env(name, reset, step, *about, drawn, observe=observe)


def _step_of_gymnax(name: str, env: Any, params: Any) -> Callable[..., Any]:
    """One step without a reset: observation, final observation, state, reward, both flags."""

    def step(state, action, key):
        got = env.step_env(key, state, action, params)
        obs, state, reward, terminated, _ = values(f"{name}.step_env", got, FIVE)
        return obs, obs, state, reward, terminated, env.is_truncated(state, params)

    return step


def _step_of_its_own(name: str, env: Any, params: Any) -> Callable[..., Any]:
    """The same of an environment that resets itself, so that observation and state may be new."""

    def step(state, action, key):
        got = env.step(key, state, action, params)
        obs, state, reward, terminated, truncated, info = values(f"{name}.step", got, SIX)
        if "final_observation" not in info:
            raise TypeError(f"{name}.step gives no info['final_observation'], wanted {SIX}.")
        return obs, info["final_observation"], state, reward, terminated, truncated

    return step


def _replace(name: str, env_params: Any, changes: dict[str, Any]) -> Any:
    known = getattr(env_params, "__dataclass_fields__", {})
    for key in changes:
        if key not in known:
            kind = f"a field of its {type(env_params).__name__}"
            raise ValueError(f"{name} has no parameter {key!r}, {kind}. {suggest(key, known)}")
    return dataclasses.replace(env_params, **changes) if changes else env_params


def _whole_numbers(name: str, raw: Any) -> bool:
    """Whether observations are whole numbers, whatever their space says."""
    if name.endswith("-MinAtar"):  # booleans, which gymnax casts
        return True
    kind = getattr(raw, "dtype", np.float32)
    return not jnp.issubdtype(kind, jnp.floating) and kind != np.uint8
