"""A learned policy for use anywhere: NumPy's observations in, the environment's actions out."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.records import PyTree


class Policy:
    """A learned policy; ``purerl.load_policy`` and ``RunResult.policy`` make one.

    A policy with a memory keeps it from call to call: the first call begins an episode in each
    environment, and so does the next one after :meth:`reset`.

    Attributes:
        init_memory: ``(obs [N, *O]) -> memory``; None without one.
        step: The pure function, for use in JAX's transformations: ``(obs [N, *O], key) -> action``;
            with a memory ``(obs, key, memory, start [N]) -> (action, memory)``.
    """

    def __init__(
        self,
        step: Callable[..., Any],
        obs_shape: tuple[int, ...],
        greedy: bool,
        init_memory: Callable[[jax.Array], PyTree] | None = None,
    ):
        self.step, self.init_memory = step, init_memory
        self._obs_shape, self._greedy = obs_shape, greedy
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
            obs: As the environment gives them.
            key: PRNG key, for sampled actions.
        """
        obs = jnp.asarray(obs, float)
        one = obs.shape == self._obs_shape
        if not one and obs.shape[1:] != self._obs_shape:
            raise ValueError(
                f"policy: obs has shape {obs.shape}, wanted {self._obs_shape} or a batch "
                f"(N, {', '.join(map(str, self._obs_shape))})."
            )
        if key is None and not self._greedy:
            raise ValueError("policy: a sampled action needs a key: policy(obs, key).")
        many = obs[None] if one else obs
        key = jax.random.key(0) if key is None else key
        if self.init_memory is None:
            action = self.step(many, key)
        else:
            action = self._remember(many, key, self.init_memory)
        action = action[0] if one else action
        return action if isinstance(action, jax.core.Tracer) else np.asarray(action)[()]

    def _remember(self, obs: jax.Array, key: jax.Array, init_memory: Any) -> jax.Array:
        """Acts with the memory, and keeps the one after it."""
        if any(isinstance(x, jax.core.Tracer) for x in (obs, key)):
            raise TypeError(
                "policy: it keeps a memory from call to call, which a traced function cannot do; "
                "use policy.step(obs, key, memory, start), with policy.init_memory(obs) to begin."
            )
        if self._memory is None:
            self._memory, self._start = init_memory(obs), np.ones(len(obs), bool)
        if len(obs) != len(self._start):
            raise ValueError(
                f"policy: obs are of {len(obs)} environments, and it remembers "
                f"{len(self._start)}; call policy.reset() where others begin."
            )
        action, self._memory = self.step(obs, key, self._memory, jnp.asarray(self._start))
        self._start = np.zeros(len(obs), bool)
        return action
