"""What algorithms with an actor-critic network share: initialization, acting, advantages."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax.errors import ScopeParamShapeError

from purerl.distributions import Categorical, DiagGaussian
from purerl.losses import entropy_loss, policy_gradient_loss, value_loss
from purerl.networks import ActorCritic, NetworkConfig
from purerl.returns import gae
from purerl.types import ActionSpace, Box, Discrete, Info, OnPolicyBatch, PyTree, Rollout
from purerl.validation import check_action_space


def default_network(action_space: ActionSpace, config: NetworkConfig, network: Any = None) -> Any:
    """The network to use: the user's, if there is one, else the default one.

    Args:
        action_space: Of the environment.
        config: Of the default network.
        network: A flax module ``obs [B, *O] -> (distribution, value [B])``, or None.
    """
    check_action_space(action_space)
    return ActorCritic(action_space, config) if network is None else network


def apply_network(network: Any, params: PyTree, obs: jax.Array, *args: Any) -> Any:
    """``network.apply`` with a message that names the observations if their shape is wrong.

    Args:
        network: A flax module for ``[B, *O]``.
        params: Its parameters.
        obs: ``[B, *O]``.
        *args: Passed on.

    Raises:
        ValueError: If the parameters are for observations of another shape.
    """
    try:
        return network.apply(params, obs, *args)
    except ScopeParamShapeError as error:
        raise ValueError(
            f"obs has shape {obs.shape}, but the parameters were made for observations of another "
            f"shape; give observations [B, *O] as given to init. ({error})"
        ) from error


def check_policy(distribution: Any, action_space: ActionSpace) -> None:
    """Raises TypeError if a known distribution does not fit the action space.

    Args:
        distribution: What the network returned.
        action_space: Of the environment.
    """
    if isinstance(distribution, DiagGaussian) and not isinstance(action_space, Box):
        raise TypeError(
            "the network returns a DiagGaussian, but the actions are Discrete; return a "
            "Categorical, or choose an environment with Box actions."
        )
    if isinstance(distribution, Categorical) and not isinstance(action_space, Discrete):
        raise TypeError(
            "the network returns a Categorical, but the actions are a Box; return a DiagGaussian, "
            "or choose an environment with Discrete actions."
        )


def init_params(network: Any, action_space: ActionSpace, obs: jax.Array, key: jax.Array) -> PyTree:
    """Parameters of a network.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value)``.
        action_space: Of the environment; the distribution is checked against it.
        obs: ``[N, *O]``.
        key: PRNG key.

    Raises:
        TypeError: If the network's distribution does not fit the action space.
    """
    (distribution, _), params = network.init_with_output(key, obs)
    check_policy(distribution, action_space)
    return params


def make_act(network: Any) -> Callable[..., Any]:
    """An algorithm's ``act``, for states with a field ``params``.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value)``.
    """

    def act(state, obs, key, *, greedy=False, progress=0.0):
        distribution, _ = apply_network(network, state.params, obs)
        action = distribution.mode() if greedy else distribution.sample(key)
        return action, {"log_prob": distribution.log_prob(action)}

    return act


def flatten_time(tree: PyTree) -> PyTree:
    """``[T, N, ...]`` to ``[T * N, ...]``, for every leaf.

    Args:
        tree: Arrays ``[T, N, ...]``.
    """
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def values(network: Any, params: PyTree, rollout: Rollout) -> tuple[jax.Array, jax.Array]:
    """V(s_t) and V(s_{t+1}) of a rollout, the latter before any reset.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value [B])``.
        params: Its parameters.
        rollout: ``[T, N]``.

    Returns:
        ``(value [T, N], next_value [T, N])``.
    """
    lead = rollout.reward.shape
    obs, next_obs = flatten_time((rollout.obs, rollout.next_obs))
    value = apply_network(network, params, obs)[1]
    next_value = apply_network(network, params, next_obs)[1]
    return value.reshape(lead), next_value.reshape(lead)


def advantage_batch(
    network: Any,
    params: PyTree,
    rollout: Rollout,
    gamma: float | jax.Array,
    gae_lambda: float | jax.Array,
) -> OnPolicyBatch:
    """A rollout as samples, with GAE advantages and lambda-returns as the critic's targets.

    Args:
        network: A flax module ``obs [B, *O] -> (distribution, value [B])``.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``.
        gamma: Discount factor.
        gae_lambda: GAE's lambda.

    Returns:
        Samples ``[T * N]``.
    """
    value, next_value = values(network, params, rollout)
    advantage = gae(
        rollout.reward,
        value,
        next_value,
        rollout.terminated,
        rollout.truncated,
        gamma,
        gae_lambda,
    )
    return OnPolicyBatch(
        *flatten_time(
            (rollout.obs, rollout.action, rollout.log_prob, value, advantage, advantage + value)
        )
    )


def actor_critic_loss(
    distribution: Any,
    value: jax.Array,
    batch: OnPolicyBatch,
    value_coef: float | jax.Array,
    entropy_coef: float | jax.Array,
) -> tuple[jax.Array, Info]:
    r"""The mean of :math:`-\log \pi(a|s) \hat A + c_1 \tfrac12 (V(s) - \hat G)^2 - c_2 H(\pi)`.

    Args:
        distribution: :math:`\pi(\cdot|s)`, ``[B]``.
        value: V(s), ``[B]``.
        batch: ``[B]``.
        value_coef: c1.
        entropy_coef: c2.

    Returns:
        ``(loss, info)``; info has the terms: ``policy_loss``, ``value_loss``, ``entropy``.
    """
    log_prob = distribution.log_prob(batch.action)
    policy = jnp.mean(policy_gradient_loss(log_prob, batch.advantage))
    critic = jnp.mean(value_loss(value, batch.target))
    entropy = jnp.mean(distribution.entropy())
    total = policy + value_coef * critic + entropy_coef * entropy_loss(entropy)
    info = {"loss": total, "policy_loss": policy, "value_loss": critic, "entropy": entropy}
    return total, info


def standardize(x: jax.Array, eps: float = 1e-8) -> jax.Array:
    """Mean 0 and (population) standard deviation 1.

    Args:
        x: ``[B]``.
        eps: Added to the standard deviation.
    """
    x = x - jnp.mean(x)
    # Again, since of equal numbers the first mean may leave a rounding error, large beside eps.
    x = x - jnp.mean(x)
    return x / (jnp.std(x) + eps)


def approximate_kl(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    r"""An unbiased estimate of :math:`KL(\pi_{old} \| \pi_\theta)` that is never negative.

    :math:`(\ell - 1) - \log \ell` with :math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`.

    Args:
        log_prob: ``[B]``, of actions drawn from the old policy.
        old_log_prob: ``[B]``.

    Returns:
        ``[B]``, in nats.

    References:
        Schulman 2020, "Approximating KL Divergence", the estimator k3.
    """
    log_ratio = log_prob - old_log_prob
    return jnp.expm1(log_ratio) - log_ratio


def explained_variance(value: jax.Array, target: jax.Array) -> jax.Array:
    """1 - var(target - value) / var(target): 1 for a perfect critic, 0 for a constant one.

    Args:
        value: ``[B]``.
        target: ``[B]``.
    """
    return 1 - jnp.var(target - value) / jnp.var(target)
