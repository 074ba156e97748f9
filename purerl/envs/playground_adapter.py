"""The only file that knows MuJoCo Playground. What ends an episode in an environment is termination
(in the DM control suite: numbers that are not finite); its time limit, which Playground has in
Brax's wrapper, is counted here.
"""

import functools
import json
from typing import Any

import jax
from mujoco_playground import dm_control_suite, registry
from mujoco_playground._src.mjx_env import MENAGERIE_PATH

from purerl.config import check_choice
from purerl.envs.episodes import check_params, make_physics_record, view
from purerl.envs.record import Env, Pictures


def list_envs() -> list[str]:
    """Names that :func:`named` takes: those whose models are there."""
    return list(registry.ALL_ENVS if MENAGERIE_PATH.exists() else dm_control_suite.ALL_ENVS)


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Playground's.

    Args:
        name: Out of :func:`list_envs`.
        params: Entries of its configuration, nested ones by ``"reward_config.scales.pose"``. Its
            ``impl`` is ``"jax"`` by default, which runs everywhere; Playground's own default,
            ``"warp"``, needs an NVIDIA GPU.
    """
    if name in registry.ALL_ENVS and name not in list_envs():
        load = f"from mujoco_playground import registry; registry.load('{name}')"
        raise ValueError(
            f"playground:{name} needs the models of MuJoCo Menagerie, which Playground downloads "
            f'when it loads such an environment first; do that once: python -c "{load}".'
        )
    check_choice("unknown environment of playground", name, list_envs())
    known = _flat(registry.get_default_config(name).to_dict())
    check_params(f"playground:{name}", params, known)
    changes = {"impl": "jax"} if "impl" in known else {}
    env = _construct(name, jax.config.read("jax_enable_x64"), json.dumps(changes | params))
    return adapt(env, {}, f"playground:{name}")


def _flat(config: dict[str, Any], prefix: str = "") -> set[str]:
    """The names of all entries of a nested configuration."""
    inner = {name: x for name, x in config.items() if isinstance(x, dict)}
    names = {prefix + name for name in config if name not in inner}
    return names.union(*(_flat(x, f"{prefix}{name}.") for name, x in inner.items()))


@functools.lru_cache(maxsize=64)
def _construct(name: str, x64: bool, changes: str) -> Any:
    del x64  # the object holds arrays of the default float type
    return registry.load(name, config_overrides=json.loads(changes))


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object of Playground's.

    Args:
        env: A ``mujoco_playground.MjxEnv`` without wrappers.
        params: There are none; its configuration has them.
        name: Its name; that of its class by default.
    """
    name = name or type(env).__name__
    check_params(name, params, ["its configuration"])
    config = env._config
    sizes = config.episode_length, config.get("action_repeat", 1)

    def frames(states):
        return env.render(states, **view(env.mj_model))

    return make_physics_record(name, env, *sizes, Pictures(frames, float(env.dt)))
