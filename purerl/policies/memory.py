"""Networks with a memory: what they are applied to, and the default ones.

Such a network is :class:`purerl.RecurrentNetwork`. One step of it is ``apply``; in updates it is
applied to whole :class:`purerl.Sequences`, through which gradients pass (and products with second
derivatives, too) but not beyond their beginnings.
"""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.policies.cells import make_cell, unroll_cell
from purerl.policies.distributions import Distribution
from purerl.policies.networks import (
    MLP,
    NetworkConfig,
    PolicyHead,
    Torso,
    dense,
)
from purerl.policies.q_networks import beside_action
from purerl.records import (
    ActionSpace,
    Discrete,
    PyTree,
    Sequences,
    action_mask,
    flatten_time,
    num_rows,
)


def has_memory(network: Any) -> bool:
    """Whether a network is a :class:`purerl.RecurrentNetwork`.

    Args:
        network: Any.
    """
    return getattr(network, "init_memory", None) is not None


def apply_sequences(network: Any, params: PyTree, inputs: Sequences, *args: PyTree) -> Any:
    """The outputs ``[B]`` of a network with a memory: ``(distribution, value)``.

    Args:
        network: :class:`purerl.RecurrentNetwork`.
        params: Its parameters.
        inputs: ``B = T * n`` observations.
        *args: What the network takes besides (actions), leaves ``[B, ...]``.
    """
    lead = inputs.start.shape
    args = jax.tree.map(lambda x: x.reshape(*lead, *x.shape[1:]), args)
    unroll = getattr(network, "unroll", None)
    if lead[0] == 1:  # one step: no loop
        first = jax.tree.map(lambda x: x[0], (inputs.obs, inputs.start, args))
        return tuple(network.apply(params, first[0], inputs.memory, first[1], *first[2])[:2])
    if unroll is not None:
        outputs = unroll(params, inputs.obs, inputs.memory, inputs.start, *args)[:2]
        return tuple(flatten_time(outputs))

    def step(memory: PyTree, row: Any) -> Any:
        obs, start, args = row
        *outputs, memory = network.apply(params, obs, memory, start, *args)
        return memory, tuple(outputs)

    rows = inputs.obs, inputs.start, args
    return flatten_time(jax.lax.scan(step, inputs.memory, rows)[1])


class Recurrent(nn.Module):
    """A trunk and a recurrent cell after it, over sequences."""

    config: NetworkConfig

    @nn.compact
    def __call__(self, obs: PyTree, memory: PyTree, start: jax.Array) -> tuple[jax.Array, PyTree]:
        """``[T, n, *O]`` to features ``[T * n, memory_size]``, and the memory after them."""
        # The trunk sees all steps at once; only the cell goes from step to step.
        features = Torso(self.config, name="torso")(flatten_time(obs))
        features = features.reshape(*start.shape, -1)

        cell = make_cell(self.config, name="cell")
        if self.is_initializing():
            cell(memory, features[0])
        memory, out = unroll_cell(
            self.config.memory, cell.variables["params"], memory, features, start
        )
        return flatten_time(out), memory


def keep_longer(params: PyTree, span: int, key: jax.Array) -> PyTree:
    r"""Parameters whose cells begin with gates that keep their state for some steps.

    A gate at :math:`\sigma(b)` keeps a state for about :math:`1 + e^b` steps, so that with b = 0 a
    gradient through 30 steps is too small to be found among the noise. The biases become
    :math:`b = \log U(1, span - 1)` for the GRU's update gate and the LSTM's forget gate, and -b for
    the LSTM's input gate.

    Args:
        params: With flax's cells in it, each called ``cell``.
        span: Most steps.
        key: PRNG key.

    References:
        Tallec and Ollivier 2018, "Can recurrent neural networks warp time?", eq. 16 (chrono
        initialization).
    """

    def one(path: Any, x: jax.Array) -> jax.Array:
        *_, cell, gate, kind = ("", "", *(getattr(part, "key", "") for part in path))
        sign = {"iz": 1, "hf": 1, "hi": -1}.get(gate) if (cell, kind) == ("cell", "bias") else None
        if sign is None:
            return x
        # The gates of one cell share their numbers.
        own = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path[:-2]).encode()))
        return sign * jnp.log(jax.random.uniform(own, x.shape, x.dtype, 1, max(span - 1, 1)))

    return jax.tree_util.tree_map_with_path(one, params)


class RecurrentActorCritic(nn.Module):
    """Policy and state value, each with a memory of its own, or with a shared trunk and memory.

    A :class:`purerl.RecurrentNetwork`: hidden layers, a GRU or LSTM cell of flax's, and the heads.

    Attributes:
        action_space: What the policy is over.
        config: Sizes, activation, and which memory.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> config = purerl.NetworkConfig(memory="gru", memory_size=32)
        >>> network = RecurrentActorCritic(purerl.Discrete(2), config)
        >>> obs, start = jnp.zeros((8, 4)), jnp.ones(8, bool)
        >>> memory = network.init_memory(obs)
        >>> params = network.init(jax.random.key(0), obs, memory, start)
        >>> policy, value, memory = network.apply(params, obs, memory, start)
        >>> {name: x.shape for name, x in memory.items()}
        {'actor': (8, 32), 'critic': (8, 32)}
    """

    action_space: ActionSpace
    config: NetworkConfig

    @nn.nowrap
    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Parameters, for what the call takes; with ``memory_span``, see :func:`keep_longer`."""
        params, span = super().init(rngs, *args, **kwargs), self.config.memory_span
        return params if span is None else keep_longer(params, span, rngs)

    def __call__(
        self, obs: PyTree, memory: PyTree, start: jax.Array, *args: Any
    ) -> tuple[Distribution, jax.Array, PyTree]:
        """One step, ``[B, *O]``: ``(distribution [B], value [B], memory)``."""
        obs, start = jax.tree.map(lambda x: x[None], (obs, start))
        return self.steps(obs, memory, start, *args)

    @nn.compact
    def steps(
        self, obs: PyTree, memory: PyTree, start: jax.Array
    ) -> tuple[Distribution, jax.Array, PyTree]:
        """``[T, n, *O]``; distribution and value are ``[T * n]``."""
        distribution, features, memory = self._policy(obs, memory, start)
        value = dense(1, 1.0, self.config.orthogonal_init, name="value_head")(features)
        return distribution, value[:, 0], memory

    def _policy(self, obs: PyTree, memory: PyTree, start: jax.Array) -> Any:
        """The policy, the critic's features ``[T * n, memory_size]``, and the memory."""
        after, features = {}, []
        for name in memory:  # of actor and critic, or of both in one
            out, after[name] = Recurrent(self.config, name=name)(obs, memory[name], start)
            features.append(out)
        head = PolicyHead(self.action_space, self.config, name="policy_head")
        return head(features[0], action_mask(flatten_time(obs))), features[-1], after

    @nn.nowrap
    def unroll(
        self, params: PyTree, obs: PyTree, memory: PyTree, start: jax.Array, *args: Any
    ) -> tuple[Distribution, jax.Array, PyTree]:
        """All steps of sequences ``[T, n, *O]``; see :class:`purerl.RecurrentNetwork`."""
        args = flatten_time(args)
        *outputs, memory = self.apply(params, obs, memory, start, *args, method="steps")
        outputs = jax.tree.map(lambda x: x.reshape(*start.shape, *x.shape[1:]), outputs)
        return (*outputs, memory)

    @nn.nowrap
    def init_memory(self, obs: PyTree) -> PyTree:
        """The empty memory, for observations ``[B, *O]``."""
        size = num_rows(obs), self.config.memory_size
        empty = make_cell(self.config).initialize_carry(jax.random.key(0), size)
        names = ("torso",) if self.config.shared else ("actor", "critic")
        return dict.fromkeys(names, empty)


class RecurrentActorQCritic(RecurrentActorCritic):
    """Policy and action value Q(h, a), each with a memory h of its own.

    For discrete actions Q has one output an action (``action=None`` returns them all, ``[B, K]``);
    for others it has hidden layers after memory and action.

    Attributes:
        action_space: What the policy is over.
        config: Sizes, activation, and which memory.

    Raises:
        ValueError: If a shared trunk is asked for.
    """

    @nn.compact
    def steps(
        self, obs: PyTree, memory: PyTree, start: jax.Array, action: jax.Array | None = None
    ) -> tuple[Distribution, jax.Array, PyTree]:
        """``[T, n, *O]`` and perhaps actions ``[T * n, *A]``; the outputs are ``[T * n]``."""
        if self.config.shared:
            raise ValueError("shared=True is for an actor and a state value; leave it out here.")
        distribution, features, memory = self._policy(obs, memory, start)
        orthogonal = self.config.orthogonal_init
        if isinstance(self.action_space, Discrete):
            q = dense(self.action_space.num_actions, 1.0, orthogonal, name="q_head")(features)
            if action is not None:
                q = jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
            return distribution, q, memory
        pair = beside_action(self.action_space, features, action)
        pair = MLP(self.config, name="q_layers")(pair)
        return distribution, dense(1, 1.0, orthogonal, name="q_head")(pair)[:, 0], memory
