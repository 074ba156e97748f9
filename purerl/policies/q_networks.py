"""Default networks of action values, of flax.linen's ``nn.Dense`` alone."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from purerl.policies.distributions import Distribution, forbid_values
from purerl.policies.networks import (
    MLP,
    NetworkConfig,
    PolicyHead,
    Torso,
    dense,
    features_of,
    refuse_memory,
)
from purerl.records import ActionSpace, Box, Discrete, MultiDiscrete, PyTree, action_mask


def _refuse_shared(config: NetworkConfig) -> None:
    if config.shared:
        raise ValueError(
            "shared=True is for an actor and a state value; a network of action values has no "
            "trunk to share, so leave it out of its NetworkConfig."
        )


def beside_action(
    space: Box | MultiDiscrete, inputs: jax.Array, action: jax.Array | None
) -> jax.Array:
    """Inputs of a Q critic with the action beside them, ``[B, F]``.

    Args:
        space: Of the actions; the choices of a MultiDiscrete become one-hot.
        inputs: ``[B, ...]``.
        action: ``[B, D]``; None where only the shapes matter: initialization, and acting.
    """
    if action is None:
        dtype = jnp.int32 if isinstance(space, MultiDiscrete) else inputs.dtype
        action = jnp.zeros((len(inputs), *space.shape), dtype)
    if isinstance(space, MultiDiscrete):
        choices = [jax.nn.one_hot(action[:, i], n) for i, n in enumerate(space.counts)]
        action = jnp.concatenate(choices, axis=-1)
    return jnp.concatenate([inputs.reshape(len(inputs), -1), action], axis=-1)


class ActorQCritic(nn.Module):
    """Policy and action value Q(s, a), with separate trunks.

    The call returns ``(distribution [B], q [B])``. For discrete actions Q has one output an action
    (``action=None`` returns them all, ``[B, K]``); for others Q takes the action as input (the
    choices of a MultiDiscrete one-hot), after the convolution where there is one.

    Attributes:
        action_space: What the policy is over.
        config: Sizes, activation, initial weights.

    Raises:
        ValueError: If a shared trunk is asked for.
    """

    action_space: ActionSpace
    config: NetworkConfig = NetworkConfig()

    @nn.compact
    def __call__(
        self, obs: PyTree, action: jax.Array | None = None
    ) -> tuple[Distribution, jax.Array]:
        """``[B, *O]`` and perhaps actions ``[B, *A]`` to ``(distribution, q)``."""
        _refuse_shared(self.config)
        refuse_memory(self.config)
        config, space, mask = self.config, self.action_space, action_mask(obs)
        features = Torso(config, name="actor")(obs)
        distribution = PolicyHead(space, config, name="policy_head")(features, mask)
        orthogonal = config.orthogonal_init
        if isinstance(space, Discrete):
            features = Torso(config, name="critic")(obs)
            q = dense(space.num_actions, 1.0, orthogonal, name="q_head")(features)
            if action is not None:
                q = jnp.take_along_axis(q, action[:, None], axis=-1)[:, 0]
            return distribution, q
        pair = beside_action(space, features_of(config, obs), action)
        q = dense(1, 1.0, orthogonal, name="q_head")(MLP(config, name="critic")(pair))
        return distribution, q[:, 0]


class QNetwork(nn.Module):
    r"""Action values for discrete actions; ``dueling`` splits them into value and advantages.

    Of actions that an ``action_mask`` forbids they are -inf.

    .. math::
        q(s, a) = v(s) + A(s, a) - \tfrac1K \sum_{a'} A(s, a').

    Each of the two streams has the last hidden layer to itself, as in the paper.

    Attributes:
        action_space: Discrete, K actions.
        config: Sizes, activation, initial weights.
        dueling: Whether value and advantages have streams of their own.

    References:
        Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9.

    Raises:
        ValueError: If a shared trunk is asked for.
    """

    action_space: Discrete
    config: NetworkConfig = NetworkConfig()
    dueling: bool = False

    @nn.compact
    def __call__(self, obs: PyTree) -> jax.Array:
        """``[B, *O] -> [B, K]``."""
        _refuse_shared(self.config)
        refuse_memory(self.config)
        return forbid_values(self._values(obs), action_mask(obs))

    def _values(self, obs: PyTree) -> jax.Array:
        count, orthogonal = self.action_space.num_actions, self.config.orthogonal_init
        if not self.dueling:
            return dense(count, 1.0, orthogonal, name="q_head")(
                Torso(self.config, name="torso")(obs)
            )
        sizes = self.config.hidden_sizes
        config, streams = (
            dataclasses.replace(self.config, hidden_sizes=part) for part in (sizes[:-1], sizes[-1:])
        )
        features = Torso(config, name="torso")(obs)
        value = dense(1, 1.0, orthogonal, name="value_head")(MLP(streams, name="value")(features))
        advantage = dense(count, 1.0, orthogonal, name="advantage_head")(
            MLP(streams, name="advantage")(features)
        )
        return value + advantage - jnp.mean(advantage, axis=-1, keepdims=True)
