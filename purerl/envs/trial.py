"""Checks of the environments that users bring: by tracing them, and by playing them at random."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checks import by_path, described
from purerl.config import check_integer
from purerl.envs.record import Env, Step, is_shape
from purerl.records import (
    ActionSpace,
    Box,
    Discrete,
    PyTree,
    action_mask,
    allows_choice,
    num_choices,
)

LANES = 8  # environments of the trial
TRIAL = 1000  # its most steps


def values(where: str, got: Any, wanted: str) -> Any:
    """The values that a function of an environment returned; TypeError if they are others.

    Args:
        where: The function, for the message.
        got: What it returned.
        wanted: What it should return: ``"(obs, state)"``.
    """
    if not isinstance(got, tuple) or len(got) != wanted.count(",") + 1:
        what = f"{len(got)} values" if isinstance(got, tuple) else f"a {type(got).__name__}"
        raise TypeError(f"{where} gives {what}, wanted {wanted}.")
    return got


def check_array(where: str, got: Any, shape: tuple[int, ...], kind: Any = None) -> None:
    """Raises TypeError unless an array is of this shape and kind.

    Args:
        where: What it is, for the message.
        got: The array.
        shape: The shape that it should have.
        kind: ``jnp.floating`` or ``jnp.bool_``; anything by default.
    """
    if jnp.shape(got) != shape:
        raise TypeError(f"{where} has shape {jnp.shape(got)}, wanted {shape}.")
    if kind and not jnp.issubdtype(got.dtype, kind):
        raise TypeError(f"{where} is {got.dtype}, wanted {kind.__name__.strip('_')}; cast it.")


def check_record(env: Env) -> None:
    """Raises TypeError or ValueError if a field is not what it should be, or if ``reset`` or
    ``step``, traced, give what they should not.

    Args:
        env: The record.
    """
    _check_fields(env)
    name, space, key = env.name, env.action_space, jax.random.key(0)
    before = values(f"{name}.reset", jax.eval_shape(env.reset, key), "(obs, state)")
    action = jax.eval_shape(lambda: random_action(space, None, key))
    outputs = jax.eval_shape(env.step, before[1], action, key, before)
    step, state = values(f"{name}.step", outputs, "(Step, state)")
    if not isinstance(step, Step):
        raise TypeError(f"{name}.step gives a {type(step).__name__} first, wanted a Step.")
    _check_obs(env, "reset: obs", before[0])
    for field, got in step._asdict().items():
        if field.endswith("obs"):
            _check_obs(env, f"step: {field}", got)
            continue
        kind = jnp.bool_ if field in ("terminated", "truncated") else jnp.floating
        check_array(f"{name}.step: {field}", got, (), kind)
    pairs = before, (step.obs, state)
    was, now = (described(by_path({"obs": x, "state": y})) for x, y in pairs)
    for leaf in was | now:
        if was.get(leaf) != now.get(leaf):
            both = f"{was.get(leaf)} after reset and {now.get(leaf)} after step"
            raise TypeError(f"{name}: {leaf} is {both}; cast it in one of them.")


def _check_fields(env: Env) -> None:
    """Raises TypeError or ValueError if a field that is no function is not what it should be."""
    name, space = env.name, env.action_space
    if not isinstance(space, ActionSpace):
        wanted = "a Discrete, MultiDiscrete or Box of purerl's"
        raise TypeError(f"{name}.action_space is {space!r}, wanted {wanted}.")
    if isinstance(space, Box):
        finite = np.isfinite(space.low) & np.isfinite(space.high)
        if np.any(finite & ((space.low != -1) | (space.high != 1))):
            raise ValueError(
                f"{name}.action_space is {space!r}, wanted [-1, 1] where it is finite: give "
                "Box(shape, -1, 1), and let step scale an action, "
                "low + (jnp.clip(action, -1, 1) + 1) / 2 * (high - low)."
            )
    if env.max_episode_steps is not None:
        check_integer(name, "max_episode_steps", env.max_episode_steps)
    for shape in jax.tree.leaves(env.obs_shape, is_leaf=is_shape):
        if not is_shape(shape):
            raise TypeError(
                f"{name}.obs_shape is {env.obs_shape!r}, wanted a tuple of integers, (4,), or a "
                "dictionary or tuple of such tuples."
            )


def _check_obs(env: Env, where: str, obs: Any) -> None:
    """Raises TypeError unless an observation has the record's shapes, and dtypes that fit."""
    got: Any = jax.tree.structure(obs)
    wanted = jax.tree.structure(env.obs_shape, is_leaf=is_shape)
    if got != wanted:
        raise TypeError(f"{env.name}.{where} is {got}, wanted {wanted}, that of obs_shape.")
    mask, shapes = action_mask(obs), jax.tree.leaves(env.obs_shape, is_leaf=is_shape)
    for (path, x), shape in zip(jax.tree.leaves_with_path(obs), shapes, strict=True):
        at = f"{env.name}.{where}{jax.tree_util.keystr(path)}"
        kind: Any = jnp.bool_ if x is mask else None if x.dtype == jnp.uint8 else jnp.floating
        check_array(at, x, shape, kind)
    count = num_choices(env.action_space)
    if mask is not None and mask.shape != (count,):
        raise TypeError(
            f"{env.name}.{where}: action_mask has shape {mask.shape}, wanted ({count},), a bool "
            f"for each action of {env.action_space}."
        )


def random_action(space: ActionSpace, obs: PyTree, key: jax.Array) -> jax.Array:
    """An action drawn evenly, of those that an ``action_mask`` allows.

    Args:
        space: Of the environment.
        obs: ``[*O]``; None where nothing is forbidden.
        key: PRNG key.
    """
    if isinstance(space, Box):
        return jnp.clip(jax.random.uniform(key, space.shape, minval=-1), space.low, space.high)
    counts = [space.num_actions] if isinstance(space, Discrete) else space.counts
    mask = action_mask(obs)
    score = jax.random.uniform(key, (sum(counts),))
    score = score if mask is None else jnp.where(mask, score, -1)
    chosen = [jnp.argmax(x) for x in jnp.split(score, np.cumsum(counts)[:-1])]
    action = jnp.stack(chosen).astype(jnp.int32)
    return action[0] if isinstance(space, Discrete) else action


class Trial(NamedTuple):
    """What happened in some environments that were played at random, ``[LANES, length]`` each.

    Attributes:
        terminated: As ``step`` tells.
        truncated: As ``step`` tells.
        legal: Whether the mask of the observation before allowed an action.
        start: Whether ``next_obs`` is what an episode may begin with.
        repeated: Whether ``obs`` is ``next_obs``.
        ahead: Whether ``next_obs`` is the observation of ``fresh``.
        begun: Whether a leaf of observation and state is that of ``fresh``, ``[..., leaves]``.
        varied: Whether the lane began otherwise than the first one, ``[LANES]``.
    """

    terminated: Any
    truncated: Any
    legal: Any
    start: Any
    repeated: Any
    ahead: Any
    begun: Any
    varied: Any


def try_out(env: Env) -> None:
    """Raises ValueError if new episodes do not begin, or are longer than the time limit, or if what
    an episode ended with is lost.

    Args:
        env: The record, which is played at random for some hundred steps.
    """
    limit = env.max_episode_steps
    length = min(limit or TRIAL // 4, TRIAL) + LANES
    play = functools.partial(_play, env, length)
    program = jax.jit(play, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    trial = Trial(*map(np.asarray, program(jax.random.key(0))))
    if not trial.legal.all():
        raise ValueError(f"{env.name}: in {_first(~trial.legal)} action_mask allows no action.")
    done = trial.terminated | trial.truncated
    spans = [np.diff(np.flatnonzero(row), prepend=-1, append=length) for row in done]
    _check_begun(env, trial, done, spans)
    if limit is not None and limit <= TRIAL and max(map(np.max, spans)) > limit:
        raise ValueError(
            f"{env.name}: an episode took more than {limit} steps, its time limit "
            "(max_steps_in_episode or max_episode_steps); let step truncate by that number."
        )


def _check_begun(env: Env, trial: Trial, done: np.ndarray, spans: list[np.ndarray]) -> None:
    """Raises ValueError unless a new episode begins where one ended."""
    first, later = np.array([x[0] for x in spans]), np.concatenate([x[1:-1] for x in spans])
    dead = len(later) >= LANES and np.all(later == 1) and np.all(first > 1)
    cut = np.maximum.accumulate(trial.truncated, 1)[:, :-1]  # steps after the first truncation
    timeless = cut.sum() >= 4 * LANES and done[:, 1:][cut].all() and done.mean() < 0.5
    # Where no episode begins, so that the next observation tells whether one began.
    elsewhere = done & ~trial.start
    same = elsewhere.sum() > 2 and trial.repeated[elsewhere].all() and not done.all()
    cuts = (
        trial.truncated & ~trial.terminated
    )  # what a terminated episode led to, nobody learns from
    ahead = trial.varied.any() and cuts.sum() > 2 and trial.ahead[cuts].all()
    wrong = dead or timeless or same or ahead
    shapes = jax.eval_shape(env.reset, jax.random.key(0))
    leaves = by_path(dict(zip(("obs", "state"), shapes, strict=True)))
    taken = trial.begun[done].all(axis=0) | (env.resets == "own")
    missed = [name for name, right in zip(leaves, taken, strict=True) if not right]
    if missed and not (wrong and len(missed) == len(leaves)):
        raise ValueError(
            f"{env.name}.step: where an episode ends, {', '.join(missed)} must be what fresh has, "
            "where that is given; else rollouts differ between CPUs and accelerators. What resets "
            'itself in another way says so by resets="own".'
        )
    if wrong:
        what = "takes next_obs from the episode that begins"
        if not ahead:
            what = "goes on from the state in which an episode ended"
        raise ValueError(
            f"{env.name}.step {what}; give obs and state of a new episode there, as reset does, "
            "and what the action led to as next_obs."
        )


def _play(env: Env, length: int, key: jax.Array) -> tuple[Any, ...]:
    """Fields of a :class:`Trial`."""

    def each(x: PyTree, y: PyTree) -> jax.Array:
        return jnp.stack(jax.tree.leaves(jax.tree.map(_same, x, y)))

    def equal(x: PyTree, y: PyTree) -> jax.Array:
        return each(x, y).all()

    def lane(starts: PyTree, start: PyTree, fresh: PyTree, key: jax.Array) -> Any:
        def step(carry, key):
            obs, state = carry
            action_key, step_key = jax.random.split(key)
            action = random_action(env.action_space, obs, action_key)
            result, state = env.step(state, action, step_key, fresh)
            mask = action_mask(obs)
            told = (
                *(result.terminated, result.truncated),
                jnp.array(True) if mask is None else allows_choice(mask, env.action_space),
                jax.vmap(equal, (0, None))(starts[0], result.next_obs).any(),
                *(equal(result.obs, result.next_obs), equal(fresh[0], result.next_obs)),
                each((result.obs, state), fresh),
            )
            return (result.obs, state), told

        return jax.lax.scan(step, start, jax.random.split(key, length))[1]

    starts = jax.vmap(env.reset)(jax.random.split(key, LANES))
    others, keys = jax.tree.map(lambda x: x[::-1], starts), jax.random.split(key, LANES)
    told = jax.vmap(lane, (None, 0, 0, 0))(starts, starts, others, keys)
    first = jax.tree.map(lambda x: x[0], starts[0])
    return *told, ~jax.vmap(equal, (0, None))(starts[0], first)


def _same(x: jax.Array, y: jax.Array) -> jax.Array:
    """Whether two leaves are equal, NaN to NaN too."""
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x, y = jax.random.key_data(x), jax.random.key_data(y)
    return jnp.all((x == y) | ((x != x) & (y != y)))


def _first(found: np.ndarray) -> str:
    lane, step = np.argwhere(found)[0]
    return f"the state before step {step} of episodes of random actions (lane {lane})"
