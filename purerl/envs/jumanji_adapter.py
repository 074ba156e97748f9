"""The only file that knows Jumanji. A last step with discount zero is termination, one with another
discount truncation; several agents are one learner, whose reward is the sum of theirs.
"""

import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import jumanji
import numpy as np
from jumanji import registration, specs

from purerl.config import check_choice
from purerl.envs import spaces
from purerl.envs.episodes import check_params, make_record
from purerl.envs.record import Env, Pictures
from purerl.records import ActionSpace, Box, Discrete, MultiDiscrete

NEEDS_DOWNLOAD = "Sokoban-v0"


def list_envs() -> list[str]:
    """Names that :func:`named` takes."""
    return sorted(jumanji.registered_environments() - {NEEDS_DOWNLOAD})


def named(name: str, params: dict[str, Any]) -> Env:
    """An environment of Jumanji's.

    Args:
        name: Out of :func:`list_envs`.
        params: Arguments of its constructor, such as ``time_limit`` or ``generator``.
    """
    if name == NEEDS_DOWNLOAD and "generator" not in params:
        raise ValueError(
            f"jumanji:{name} downloads its levels; give it generator=, an object such as "
            "jumanji.environments.routing.sokoban.generator.SimpleSolveGenerator()."
        )
    check_choice("unknown environment of jumanji", name, jumanji.registered_environments())
    constructor = registration.load(registration._REGISTRY[name].entry_point)
    check_params(f"jumanji:{name}", params, inspect.signature(constructor).parameters)
    return adapt(jumanji.make(name, **params), {}, f"jumanji:{name}")


def adapt(env: Any, params: dict[str, Any], name: str | None = None) -> Env:
    """An environment of an object of Jumanji's.

    Args:
        env: A ``jumanji.Environment``.
        params: There are none; its constructor has them.
        name: Its name; that of its class by default.
    """
    name = name or type(env).__name__
    check_params(name, params, ["what its constructor takes"])
    obs = jax.eval_shape(env.reset, jax.random.PRNGKey(0))[1].observation
    masked = getattr(obs, "action_mask", None)
    to_env_action, action_space = _actions(env.action_spec, getattr(masked, "shape", ()))

    def flat(obs):
        return obs if masked is None else obs._replace(action_mask=jnp.ravel(obs.action_mask))

    def reset(key):
        state, timestep = env.reset(key)
        return flat(timestep.observation), state

    def step(state, action, key):
        del key  # its state has one
        state, after = env.step(state, action)
        goes_on = jnp.max(after.discount) > 0
        flags = after.last() & ~goes_on, after.last() & goes_on
        return flat(after.observation), state, jnp.sum(after.reward), *flags

    limit = getattr(env, "time_limit", None)
    limit = None if limit is None else int(limit)
    drawn = Pictures(_frames(env), seconds=0.2) if hasattr(env, "_viewer") else None
    about = action_space, to_env_action
    return make_record(name, reset, step, *about, limit=limit, pictures=drawn)


def _frames(env: Any) -> Callable[[list[Any]], list[np.ndarray]]:
    """By its viewer, which otherwise opens a window."""

    def frames(states):
        viewer = env._viewer
        viewer._display, viewer.figure_size = viewer._display_rgb_array, (5.0, 5.0)
        drawn = [np.array(viewer.render(state))[..., :3] for state in states]
        viewer.close()
        return drawn

    return frames


def _actions(spec: Any, mask: tuple[int, ...]) -> tuple[Callable[[Any], Any], ActionSpace]:
    """A function from a learner's actions to the environment's, and the learner's space.

    Args:
        spec: What it says of its actions.
        mask: The shape of ``action_mask``: ``()`` without one.
    """
    if isinstance(spec, specs.DiscreteArray):
        return lambda action: action, Discrete(int(spec.num_values))
    shape = tuple(spec.shape)
    if jnp.issubdtype(spec.dtype, jnp.floating):
        bounds = (np.broadcast_to(x, shape) for x in (spec.minimum, spec.maximum))
        return spaces.actions("jumanji", Box(shape, *bounds))
    largest = np.ravel(np.broadcast_to(spec.maximum, shape))
    counts = tuple(int(x) + 1 for x in largest)
    if mask == counts:  # a mask of combinations, so that each of them is one action

        def combination(action):
            return jnp.stack(jnp.unravel_index(action, counts)).astype(spec.dtype)

        return combination, Discrete(math.prod(counts))
    if mask:  # [components, K]; MultiCVRP's maximum is one too large
        counts = (mask[1],) * mask[0]
    return lambda action: action.reshape(shape).astype(spec.dtype), MultiDiscrete(counts)
