"""The only file that knows Brax. What ends an episode in Brax itself is termination; its time limit
is counted here, since Brax has it in a wrapper that replaces the flag of the environment.
"""

import functools
import inspect
from typing import Any

import brax.envs
import jax
from brax.envs.base import PipelineEnv

from purerl.config import check_choice
from purerl.envs.episodes import check_params, make_physics_record, view
from purerl.envs.record import Env, Pictures

# Its time limit, and steps with one action: what brax.envs.create takes besides, and its defaults.
OURS = {"episode_length": 1000, "action_repeat": 1}


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return sorted(brax.envs._envs)


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Brax's.

    Args:
        name: Out of :func:`list_envs`.
        params: :data:`OURS`, and arguments of its constructor, such as ``backend``
            ("generalized", "spring", "positional", "mjx").
    """
    check_choice("unknown environment of brax", name, list_envs())
    check_params(f"brax:{name}", params, _options(brax.envs._envs[name]))
    own = {key: value for key, value in params.items() if key not in OURS}
    env = _construct(name, jax.config.read("jax_enable_x64"), **own)
    return adapt(env, {key: params[key] for key in params if key in OURS}, f"brax:{name}")


def _options(cls: type) -> set[str]:
    """What a constructor takes, and what it hands on to PipelineEnv's."""
    accepted = {*inspect.signature(cls).parameters, *inspect.signature(PipelineEnv).parameters}
    return (accepted | OURS.keys()) - {"sys", "kwargs"}


@functools.lru_cache(maxsize=64)
def _construct(name: str, x64: bool, **own: Any) -> Any:
    del x64  # the object holds arrays of the default float type
    return brax.envs.get_environment(name, **own)


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object of Brax's.

    Args:
        env: A ``brax.envs.Env`` without wrappers.
        params: :data:`OURS`.
        name: Its name; that of its class by default.
    """
    name = name or type(env).__name__
    check_params(name, params, OURS)
    length, repeat = (OURS | params).values()
    return make_physics_record(name, env, length, repeat, _pictures(env))


def _pictures(env: Any) -> Pictures | None:
    """Drawn by MuJoCo, or as a page; None for what has no bodies."""
    if not hasattr(env, "sys"):
        return None

    def frames(states):
        return env.render([state.pipeline_state for state in states], **view(env.sys.mj_model))

    def page(states):
        from brax.io import html

        poses = [state.pipeline_state for state in states]
        return html.render(env.sys.tree_replace({"opt.timestep": env.dt}), poses)

    return Pictures(frames, float(env.dt), page)
