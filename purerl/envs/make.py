""":func:`make_env`, which makes an environment's record of what a user has."""

import functools
import inspect
import weakref
from collections.abc import Callable
from typing import Any

import jax

from purerl.envs import families
from purerl.envs.record import Env
from purerl.envs.trial import check_record, try_out

# Of the records that are known to be right: step, reset, and what the check depends on besides.
_right: list[tuple[weakref.ref[Any], weakref.ref[Any], tuple[Any, ...]]] = []


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
            families, or with gymnax's interface; or a class, function or ``functools.partial`` that
            returns one of these.
        **params: Fields of the environment's parameters (``max_steps_in_episode=200``), or
            arguments of its constructor, which gets all if it has ``**kwargs``. With
            ``last_step=True`` of any environment the observation also holds the last action and
            reward: :func:`purerl.observe_last_step`.

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
        if inspect.isclass(env) or inspect.isroutine(env) or isinstance(env, functools.partial):
            accepted = inspect.signature(env).parameters
            every = any(x.kind is inspect.Parameter.VAR_KEYWORD for x in accepted.values())
            names = [*params] if every else [name for name in accepted if name in params]
            again = functools.partial(env, **{name: params.pop(name) for name in names})
            env = again(**({"num_envs": 1} if "num_envs" in accepted else {}))
        own = isinstance(env, Env)
        if own and params:
            raise TypeError(f"{env.name} is an Env record, which has no parameters: {params}.")
        if not own:
            named = isinstance(env, str)
            env = _adapted(env, params, again)
            if named:  # the families' own are known to be right
                _remember(env)
        if not _is_right(env):
            check_record(env)
            if env.outside is None and (own or env.resets == "own"):
                try_out(env)
            _remember(env)
        return env


def _remember(env: Env) -> None:
    _right.append((weakref.ref(env.step), weakref.ref(env.reset), _checked_fields(env)))


def _is_right(env: Env) -> bool:
    """Whether the same functions and fields were checked; functions need not be hashable."""
    _right[:] = [known for known in _right if known[0]() is not None]
    fields = _checked_fields(env)
    return any(s() is env.step and r() is env.reset and x == fields for s, r, x in _right)


def _checked_fields(env: Env) -> tuple[Any, ...]:
    return env.action_space, env.obs_shape, env.max_episode_steps, env.resets


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
