"""A learned policy for use anywhere: NumPy's observations in, the environment's actions out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.checks import shape_of
from purerl.envs.record import Env
from purerl.records import PyTree, action_mask, allows_choice, num_rows


class Policy:
    """A learned policy; ``purerl.load_policy`` and ``RunResult.policy`` make one.

    A policy with a memory keeps it from call to call: the first call begins an episode in each
    environment, and so does the next one after :meth:`reset`.

    Attributes:
        init_memory: ``(obs [N, *O]) -> memory``; None without one.
        step: The pure function, for use in JAX's transformations: ``(obs [N, *O], key) -> action``;
            with a memory ``(obs, key, memory, start [N]) -> (action, memory)``. It takes
            observations as ``make_env`` gives them.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        env: Env,
        greedy: bool,
        init_memory: Callable[[jax.Array], PyTree] | None = None,
    ):
        self.step, self.init_memory = step, init_memory
        self._env, self._greedy = env, greedy
        self._memory: PyTree = None  # None: of no environment yet
        self._start = np.ones(0, bool)

    def reset(self, ended: Any = None) -> None:
        """The next call is the first of an episode; without a memory that makes no difference.

        Args:
            ended: bool ``[N]``: of which environments; None: of all, whose number may change.
        """
        if ended is None:
            self._memory = None
        elif self._memory is not None:
            ended = np.asarray(ended, bool)
            if ended.shape != self._start.shape:
                raise ValueError(
                    f"policy.reset: ended has shape {ended.shape}, wanted {self._start.shape}: one "
                    "for each environment of the last call; None resets all."
                )
            self._start = self._start | ended

    def __call__(self, obs: Any, key: jax.Array | None = None) -> Any:
        """Actions for one raw observation ``[*O]`` or many ``[N, *O]``.

        Args:
            obs: As the environment itself gives them (a Discrete's whole numbers, a Dict, lists for
                arrays), or as ``make_env`` does (one-hot). Where both fit, such as 16 numbers of a
                Discrete of 16, whole numbers are the environment's own: 16 observations.
            key: PRNG key, for sampled actions.
        """
        obs, one = _batch_of(self._env, obs)
        if key is None and not self._greedy:
            raise ValueError("policy: a sampled action needs a key: policy(obs, key).")
        key = jax.random.key(0) if key is None else key
        if self.init_memory is None:
            action = self.step(obs, key)
        else:
            action = self._remember(obs, key, self.init_memory)
        action = action[0] if one else action
        return action if isinstance(action, jax.core.Tracer) else np.asarray(action)[()]

    def _remember(self, obs: PyTree, key: jax.Array, init_memory: Any) -> jax.Array:
        """Acts with the memory, and keeps the one after it."""
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((obs, key))):
            raise TypeError(
                "policy: it keeps a memory from call to call, which a traced function cannot do; "
                "use policy.step(obs, key, memory, start), with policy.init_memory(obs) to begin."
            )
        count = num_rows(obs)
        if self._memory is None:
            self._memory, self._start = init_memory(obs), np.ones(count, bool)
        if count != len(self._start):
            raise ValueError(
                f"policy: obs are of {count} environments, and it remembers "
                f"{len(self._start)}; call policy.reset() where others begin."
            )
        action, self._memory = self.step(obs, key, self._memory, jnp.asarray(self._start))
        self._start = np.zeros(count, bool)
        return action


def _batch_of(env: Env, obs: Any) -> tuple[PyTree, bool]:
    """Observations ``[N, *O]`` in the dtypes that a learner sees; and whether it was one alone."""
    like = jax.eval_shape(env.reset, jax.random.key(0))[0]
    leaves = jax.tree.leaves(obs)
    floating = all(jnp.issubdtype(getattr(x, "dtype", type(x)), jnp.floating) for x in leaves)
    errors = []
    for read in (_seen, _own) if floating else (_own, _seen):
        try:
            obs, one = read(env, like, obs)
            break
        except (TypeError, ValueError) as error:
            errors.append(f"{error}")
    else:
        raise ValueError("policy: " + " ".join(filter(None, errors)))
    mask = action_mask(obs)
    if mask is None or isinstance(mask, jax.core.Tracer):
        return obs, one
    if len(dead := np.flatnonzero(~allows_choice(np.asarray(mask), env.action_space))):
        raise ValueError(f"policy: action_mask allows no action in observation {dead[0]}.")
    return obs, one


def _own(env: Env, like: PyTree, obs: Any) -> tuple[PyTree, bool]:
    """The same of observations as the environment itself gives them."""
    if env.observe is None:
        raise ValueError
    try:
        seen, one = env.observe(obs), True
    except (TypeError, ValueError) as error:
        try:
            seen, one = env.observe(obs, many=True), False
        except (TypeError, ValueError):
            raise ValueError(f"As the environment itself gives it: {error}") from error
    seen = jax.tree.map(lambda leaf, x: x.astype(leaf.dtype), like, seen)
    return jax.tree.map(lambda x: x[None], seen) if one else seen, one


def _seen(env: Env, like: PyTree, obs: Any) -> tuple[PyTree, bool]:
    """The same of observations as the record gives them."""
    try:
        obs = jax.tree.map(lambda leaf, x: jnp.asarray(x, leaf.dtype), like, obs)
    except (ValueError, TypeError) as error:
        raise ValueError(f"obs is not of shape {shape_of(like)}: {error}") from error
    shapes, wanted = shape_of(obs), shape_of(like)
    if shapes == wanted:
        return jax.tree.map(lambda x: x[None], obs), True
    if jax.tree.map(lambda x: x.shape[1:], obs) != wanted:
        many = jax.tree.map(lambda x: ("N", *x.shape), like)
        raise ValueError(f"obs has shape {shapes}, wanted {wanted} or a batch {many}.")
    return obs, False
