"""What adapters of families share: records of environments that do not begin again by themselves,
observations of any structure, leniency.
"""

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from purerl.config import check_integer, suggest
from purerl.envs import spaces
from purerl.envs.record import Env, Pictures, Step
from purerl.records import ACTION_MASK, ActionSpace, Box, PyTree


def make_record(
    name: str,
    reset: Callable[[jax.Array], tuple[Any, Any]],
    step: Callable[..., tuple[Any, ...]],
    action_space: ActionSpace,
    to_env_action: Callable[[jax.Array], jax.Array] = lambda action: action,
    *,
    limit: int | None,
    obs_range: tuple[float, float] | None = None,
    pictures: Pictures | None = None,
) -> Env:
    """An :class:`Env` that begins again where an episode ended, and casts what it gives.

    The functions get keys as arrays of integers, ``jax.random.PRNGKey``'s, which all families take.
    Resets are drawn when they are due: in all of these families one costs more than a step.

    Args:
        name: For messages.
        reset: ``(key) -> (obs, state)``.
        step: ``(state, action, key) -> (obs, state, reward, terminated, truncated)``.
        action_space: The learner's.
        to_env_action: From it to what ``step`` takes.
        limit: The time limit in steps, if there is one; ``step`` truncates by it.
        obs_range: As the record has it.
        pictures: How it is drawn.
    """

    @lenient
    def begin_whole(key):
        obs, state = reset(jax.random.key_data(key))
        return learner_obs(obs), fix_weak_types(state)

    def begin(key):
        obs, state = begin_whole(key)
        return obs, _without_empty(state)

    first, whole = jax.eval_shape(begin_whole, jax.random.key(0))

    @lenient
    def advance(state, action, key, fresh=None):
        if fresh is None:
            key, reset_key = jax.random.split(key)
            fresh = begin(reset_key)
        state = _with_empty(state, whole)
        outputs = step(state, to_env_action(action), jax.random.key_data(key))
        final, state, reward, terminated, truncated = outputs
        final, state = learner_obs(final), _without_empty(fix_weak_types(state))
        terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        done = terminated | truncated
        obs, state = jax.tree.map(functools.partial(jnp.where, done), fresh, (final, state))
        reward = jnp.asarray(reward, jnp.result_type(float))
        return Step(obs, final, reward, terminated, truncated), state

    shape = jax.tree.map(lambda x: x.shape, first)
    interval = 1 if limit is None else limit
    drawn = pictures and _of_states(pictures, lambda state: _with_empty(state, whole))
    space = action_space, shape, limit, interval, obs_range
    return Env(name, begin, advance, *space, "due", to_env_action, drawn)


def _without_empty(state: PyTree) -> PyTree:
    """None for each array without elements (MuJoCo has many): XLA shards those as it likes."""
    return jax.tree.map(lambda x: x if x.size else None, state)


def _with_empty(state: PyTree, whole: PyTree) -> PyTree:
    """The inverse, by the shapes of a whole state."""
    return jax.tree.map(lambda s, x: jnp.zeros(s.shape, s.dtype) if x is None else x, whole, state)


def _of_states(pictures: Pictures, inner: Callable[[PyTree], PyTree], repeat: int = 1) -> Pictures:
    """The same of states that hold what is drawn, one for each ``repeat`` steps."""

    def of(draw):
        return draw and (lambda states: draw([inner(state) for state in states]))

    return Pictures(of(pictures.frames), repeat * pictures.seconds, of(pictures.html))


def make_physics_record(
    name: str,
    env: Any,
    episode_length: int,
    action_repeat: int = 1,
    pictures: Pictures | None = None,
) -> Env:
    """An :class:`Env` of what Brax and Playground have: states with observation, reward and done.

    Args:
        name: For messages.
        env: With ``reset(key) -> state``, ``step(state, action) -> state`` and ``action_size``;
            actions in [-1, 1]; its ``done`` is termination.
        episode_length: The time limit in steps of ``env``.
        action_repeat: Steps of ``env`` with one action, which are one step of the record; rewards
            are added, and no step is made after an end.
        pictures: How states of ``env`` are drawn.
    """
    length = check_integer(name, "episode_length", episode_length)
    repeat = check_integer(name, "action_repeat", action_repeat)

    def reset(key):
        state = env.reset(key)
        return state.obs, (state, jnp.int32(0))

    def once(state, action):
        return env.step(jax.tree.map(lambda x: x, state), action)  # it writes to dictionaries

    def again(state, action):
        ended, after = state.done.astype(bool), once(state, action)
        after = after.replace(reward=state.reward + after.reward)
        return jax.tree.map(functools.partial(jnp.where, ended), state, after), None

    def step(state, action, key):
        del key
        state, time = once(state[0], action), state[1] + 1
        if repeat > 1:
            state = fix_weak_types(state)
            actions = jnp.broadcast_to(action, (repeat - 1, *action.shape))
            state, _ = jax.lax.scan(again, state, actions)
        return state.obs, (state, time), state.reward, state.done, time >= limit

    to_env_action, action_space = spaces.actions(name, Box((int(env.action_size),), -1.0, 1.0))
    limit = -(-length // repeat)
    drawn = pictures and _of_states(pictures, lambda state: state[0], repeat)
    actions = action_space, to_env_action
    return make_record(name, reset, step, *actions, limit=limit, pictures=drawn)


def view(model: Any) -> dict[str, Any]:
    """Size and camera of pictures: the first of a model's cameras, which follows what moves.

    Args:
        model: A ``mujoco.MjModel``.
    """
    camera = model.camera(0).name if model.ncam else None
    return {"height": 480, "width": 640, "camera": camera or None}


def check_params(name: str, params: dict[str, Any], known: Collection[str]) -> None:
    """Raises ValueError, with close matches, where an environment has no such parameter.

    Args:
        name: The environment, for the message.
        params: What was given.
        known: What it takes.
    """
    for key in params:
        if key not in known:
            raise ValueError(f"{name} has no parameter {key!r}. {suggest(key, sorted(known))}")


def learner_obs(raw: Any) -> PyTree:
    """An observation as a learner gets it: an array, or a dictionary of dictionaries and arrays.

    Named tuples and dataclasses become dictionaries by the names of their fields, and scalars
    vectors of one. Bytes stay bytes, an ``action_mask`` booleans; the rest becomes floating point.

    Args:
        raw: What the environment gives.
    """
    if hasattr(raw, "_asdict"):
        raw = raw._asdict()
    elif hasattr(raw, "__dataclass_fields__"):
        raw = {name: getattr(raw, name) for name in raw.__dataclass_fields__}
    if isinstance(raw, Mapping):
        return {
            name: jnp.asarray(x, bool) if name == ACTION_MASK else learner_obs(x)
            for name, x in raw.items()
        }
    raw = jnp.atleast_1d(raw)
    return raw if raw.dtype == jnp.uint8 else raw.astype(jnp.result_type(float))


def lenient(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function without a user's strictness about rank promotion, which is not for the code of
    environments.

    Args:
        function: Of an environment.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.numpy_rank_promotion("allow"):
            return function(*args, **kwargs)

    return wrapped


def fix_weak_types(state: PyTree) -> PyTree:
    """A state of one type each: weakly typed leaves (Python numbers in a reset) would make a scan's
    carry change its type.

    Args:
        state: Of an environment.
    """
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)), state)
