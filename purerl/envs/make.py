"""The record of an environment, and :func:`make_env`, which makes one of what a user has."""

import functools
import inspect
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checks import by_path, described
from purerl.envs import families
from purerl.records import (
    ActionSpace,
    Box,
    Discrete,
    PyTree,
    action_mask,
    num_choices,
)

LANES = 8  # environments of the trial that make_env makes of a user's own
TRIAL = 1000  # its most steps

_checked: weakref.WeakSet[Callable[..., Any]] = weakref.WeakSet()  # their step functions


class Step(NamedTuple):
    """What one environment step gives.

    Attributes:
        obs: ``[*O]`` what to act on next: the first of a new episode, if one ended.
        next_obs: ``[*O]`` what the action led to, before any reset.
        reward: ``[]`` floating point.
        terminated: ``[]`` bool, the episode ended in a state after which nothing follows.
        truncated: ``[]`` bool, the episode was cut off, by a time limit for example.
    """

    obs: jax.Array
    next_obs: jax.Array
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class Pictures(NamedTuple):
    """How an environment is drawn, outside of JAX's transformations.

    Attributes:
        frames: ``(states) -> frames``: one uint8 ``[height, width, 3]`` for each state of a list.
        seconds: Of one step, by which a film runs as fast as the environment.
        html: ``(states) -> text``, a page that shows them; None where there is none.
    """

    frames: Callable[[list[PyTree]], Sequence[np.ndarray]]
    seconds: float = 0.05
    html: Callable[[list[PyTree]], str] | None = None


class Outside(NamedTuple):
    """How the host plays an environment that is not written in JAX.

    Attributes:
        make: ``(count, seeds [count]) -> player`` of so many environments, as
            :class:`purerl.host.players.player.Player` says.
        idle: Whether a player may spend steps on its own resets, which are then no transitions.
        notes: What a run tells its user of the environment, such as that numbers lose precision.
        filmed: ``(seed) -> (player of one, frame, seconds)`` with a function ``() -> frame``, uint8
            ``[height, width, 3]``, and the seconds of a step; None where there is no picture.
    """

    make: Callable[[int, np.ndarray], Any]
    idle: bool = False
    notes: tuple[str, ...] = ()
    filmed: Callable[[int], tuple[Any, Callable[[], np.ndarray], float]] | None = None


class Env(NamedTuple):
    """A single environment as two pure functions; loops ``vmap`` them.

    A new episode begins within ``step``: where one ends, ``obs`` and ``state`` are those of
    ``fresh``, a result of ``reset``, or, without it, of a reset drawn from ``key``. Rewards are
    floating point; ``state`` is a pytree of arrays whose shapes and dtypes no step changes. Extra
    arguments of a record of one's own may be left at their defaults.

    An observation is an array ``[*O]``, or a pytree of arrays, each floating point, or uint8: bytes
    stay bytes in a replay memory, and the default networks scale them by 1/255. One called
    ``action_mask``, bool ``[K]``, is no input of a network; it says which of K discrete actions are
    allowed (of a MultiDiscrete: of all its choices, one after the other), and each state allows at
    least one.

    Attributes:
        name: For messages.
        reset: ``(key) -> (obs [*O], state)``.
        step: ``(state, action, key, fresh=None) -> (Step, state)``.
        action_space: What ``step`` takes. A finite Box is [-1, 1], whatever the environment's own.
        obs_shape: ``O``; where an observation is a pytree, the same tree of shapes.
        max_episode_steps: Time limit in steps, after which an episode has ended; None if there is
            none, or it is not known.
        truncation_interval: No two truncations of an environment in fewer steps than this; 1 where
            nothing is known.
        obs_range: Smallest and largest value of observations that are integers or booleans, cast to
            floating point; None where they are real numbers.
        resets: Where :func:`purerl.unroll` has the resets from: ``"ahead"``, one for each step of a
            rollout, drawn in one batch (the fastest where a reset costs less than some
            microseconds); ``"due"``, one for each episode that ended, drawn when it ended;
            ``"own"``, none, since ``step`` does not look at ``fresh``.
        to_env_action: ``(action) -> action``, from ``action_space`` to the environment's own
            actions (clipped to its bounds), as ``step`` does it. A policy that plays the
            environment elsewhere needs it.
        pictures: How it is drawn; None where it cannot be.
        outside: Of an environment that the host plays, since it is not written in JAX: how. Its
            ``reset`` then tells shapes only, and its ``step`` raises.
    """

    name: str
    reset: Callable[[jax.Array], tuple[jax.Array, PyTree]]
    step: Callable[..., tuple[Step, PyTree]]
    action_space: ActionSpace
    obs_shape: PyTree
    max_episode_steps: int | None
    truncation_interval: int = 1
    obs_range: tuple[float, float] | None = None
    resets: Literal["ahead", "due", "own"] = "ahead"
    to_env_action: Callable[[jax.Array], jax.Array] = lambda action: action
    pictures: Pictures | None = None
    outside: Outside | None = None


def make_env(env: Any, /, **params: Any) -> Env:
    """An environment by its name, ``family:name`` or one of gymnax's, or of what a user has.

    Observations come as floating-point arrays (integers and booleans are cast, a discrete
    observation becomes one-hot) and rewards as floating-point scalars. Actions with finite bounds
    are [-1, 1] to a learner and scaled here; an action that is bounded on one side, or on none, is
    not scaled. Actions beyond the bounds are clipped to them here, and only here: a learner sees
    its Gaussian's own.

    The families are gymnax, Brax, MuJoCo Playground, Jumanji, Navix and Craftax, each imported when
    one of its environments is made; docs/environments.md says what they take.

    An object is of one of these families, or has ``default_params``, ``action_space(params)`` and
    ``observation_space(params)`` (objects like gymnax's or Gymnasium's ``Discrete`` and ``Box``),
    ``reset(key, params) -> (obs, state)``, and either gymnax's base class with its ``step_env``, or
    a ``step(key, state, action, params)`` of its own. That gives gymnax 1.0's six values ``(obs,
    state, reward, terminated, truncated, info)`` and begins again by itself: where an episode
    ended, ``obs`` and ``state`` are of a new one, and ``info["final_observation"]`` is always what
    the action led to. What is not a name is checked: shapes and dtypes by tracing, and where
    ``step`` begins again by itself, by some hundred random steps that new episodes begin, and that
    none exceeds the time limit.

    Args:
        env: A name out of :func:`purerl.list_envs`; an :class:`Env`; an object of one of the
            families, or with gymnax's interface; or a class or function that returns one of these.
        **params: Fields of the environment's parameters (``max_steps_in_episode=200``), or
            arguments of its constructor. With ``last_step=True`` of any environment the observation
            also holds the last action and reward: :func:`purerl.observe_last_step`.

    Returns:
        The environment as a record of pure functions.

    Raises:
        ValueError: If the name or a parameter is unknown, the family's package is not installed,
            the environment needs a download, or episodes do not begin again or exceed their
            limit.
        TypeError: If the object is of another kind, or a function of it returns something else than
            it should.

    Example:
        >>> import jax
        >>> env = make_env("CartPole-v1", max_steps_in_episode=200)
        >>> obs, state = env.reset(jax.random.key(0))
        >>> obs.shape, env.action_space, env.max_episode_steps
        ((4,), Discrete(num_actions=2), 200)
    """
    if params.pop("last_step", False):
        from purerl.envs.wrappers import observe_last_step

        return observe_last_step(make_env(env, **params))
    with jax.ensure_compile_time_eval():  # it may be called where a function is traced
        again: Any = None
        if inspect.isclass(env) or inspect.isroutine(env):
            accepted = inspect.signature(env).parameters
            given = {name: params.pop(name) for name in accepted if name in params}
            again = functools.partial(env, **given)
            env = again(**({"num_envs": 1} if "num_envs" in accepted else {}))
        own = isinstance(env, Env)
        if own and params:
            raise TypeError(f"{env.name} is an Env record, which has no parameters: {params}.")
        if not own:
            named = isinstance(env, str)
            env = _adapted(env, params, again)
            if named:  # the families' own are known to be right
                _checked.add(env.step)
        if env.step not in _checked:
            _check(env)
            if env.outside is None and (own or env.resets == "own"):
                _try_out(env)
            _checked.add(env.step)
        return env


def is_shape(x: Any) -> bool:
    """Whether a node of :attr:`Env.obs_shape` is the shape of an array.

    Args:
        x: A node.
    """
    return type(x) is tuple and all(isinstance(axis, int) for axis in x)


def _adapted(env: Any, params: dict[str, Any], again: Callable[..., Any] | None) -> Env:
    """An environment of a name, or of an object of a family, and of what made it."""
    with jax.numpy_rank_promotion("allow"):  # strictness is not for the code of packages
        if isinstance(env, str):
            family, name = families.split(env)
            return families.adapter(family).named(name, params)
        adapt = families.adapter(families.family_of(env)).adapt
        if "again" in inspect.signature(adapt).parameters:  # several of them are needed
            return adapt(env, params, again)
        return adapt(env, params)


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


def _check(env: Env) -> None:
    """Raises TypeError if ``reset`` or ``step``, traced, give what they should not."""
    name, space, key = env.name, env.action_space, jax.random.key(0)
    if not isinstance(space, ActionSpace):
        wanted = "a Discrete, MultiDiscrete or Box of purerl's"
        raise TypeError(f"{name}.action_space is {space!r}, wanted {wanted}.")
    before = values(f"{name}.reset", jax.eval_shape(env.reset, key), "(obs, state)")
    action = jax.eval_shape(lambda: _random_action(space, None, key))
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


def _random_action(space: ActionSpace, obs: PyTree, key: jax.Array) -> jax.Array:
    if isinstance(space, Box):
        return jnp.clip(jax.random.uniform(key, space.shape, minval=-1), space.low, space.high)
    counts = [space.num_actions] if isinstance(space, Discrete) else space.counts
    mask = action_mask(obs)
    score = jax.random.uniform(key, (sum(counts),))
    score = score if mask is None else jnp.where(mask, score, -1)
    chosen = [jnp.argmax(x) for x in jnp.split(score, np.cumsum(counts)[:-1])]
    action = jnp.stack(chosen).astype(jnp.int32)
    return action[0] if isinstance(space, Discrete) else action


def _try_out(env: Env) -> None:
    """Raises ValueError if new episodes do not begin, or are longer than the time limit."""
    limit = env.max_episode_steps
    length = min(limit or TRIAL // 4, TRIAL) + LANES

    def equal(x: PyTree, y: PyTree) -> jax.Array:
        same = functools.partial(jnp.array_equal, equal_nan=True)
        return jnp.stack(jax.tree.leaves(jax.tree.map(same, x, y))).all()

    def lane(starts: PyTree, start: PyTree, fresh: PyTree, key: jax.Array) -> Any:
        def step(carry, key):
            obs, state = carry
            action_key, step_key = jax.random.split(key)
            action = _random_action(env.action_space, obs, action_key)
            result, state = env.step(state, action, step_key, fresh)
            begins = jax.vmap(equal, (0, None))(starts[0], result.obs).any()
            goes_on = equal(result.obs, result.next_obs) & ~begins
            mask = action_mask(obs)
            legal = jnp.array(True) if mask is None else mask.any()
            done = result.terminated | result.truncated
            return (result.obs, state), (done, goes_on, legal)

        return jax.lax.scan(step, start, jax.random.split(key, length))[1]

    def play(key: jax.Array) -> Any:
        starts = jax.vmap(env.reset)(jax.random.split(key, LANES))
        others, keys = jax.tree.map(lambda x: x[::-1], starts), jax.random.split(key, LANES)
        return jax.vmap(lane, (None, 0, 0, 0))(starts, starts, others, keys)

    trial = jax.jit(play, compiler_options={"xla_backend_optimization_level": 0})  # it runs once
    done, goes_on, legal = map(np.asarray, trial(jax.random.key(0)))  # [LANES, length]
    if not legal.all():
        raise ValueError(f"{env.name}: in {_first(~legal)} action_mask allows no action.")
    spans = [np.diff(np.flatnonzero(row), prepend=-1, append=length) for row in done]
    first, later = np.array([x[0] for x in spans]), np.concatenate([x[1:-1] for x in spans])
    dead = len(later) >= LANES and np.all(later == 1) and np.all(first > 1)
    if dead or (done.sum() > 2 and goes_on[done].all()):
        raise ValueError(
            f"{env.name}.step goes on from the state in which an episode ended; give obs and state "
            "of a new episode there, as reset does, and what the action led to as next_obs."
        )
    if limit is not None and limit <= TRIAL and max(map(np.max, spans)) > limit:
        raise ValueError(
            f"{env.name}: an episode took more than {limit} steps, its time limit "
            "(max_steps_in_episode or max_episode_steps); let step truncate by that number."
        )


def _first(found: np.ndarray) -> str:
    lane, step = np.argwhere(found)[0]
    return f"the state before step {step} of episodes of random actions (lane {lane})"
