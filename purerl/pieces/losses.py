r"""The losses, one equation each.

Each equation is one number a sample, ``[B]``, to be *minimized*; the caller takes the mean, so that
masks and importance weights need no second version of it. ``critic_loss`` and ``actor_critic_loss``
are such means. Gradients flow through what is computed from the parameters (``log_prob``,
``value``); everything else is treated as constant.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purerl.config import Number
from purerl.pieces.rows import mean
from purerl.policies.acting import apply_network
from purerl.records import Info, OnPolicyBatch, PyTree

Loss = Callable[[PyTree, Any], tuple[jax.Array, Info]]  # (params, batch) -> (scalar, info)

stop = jax.lax.stop_gradient


def policy_gradient_loss(log_prob: jax.Array, weight: jax.Array) -> jax.Array:
    r""":math:`-\log \pi_\theta(a|s) \, \Psi`, whose gradient is the policy gradient's negative.

    Args:
        log_prob: :math:`\log \pi_\theta(a|s)`, ``[B]``.
        weight: :math:`\Psi`, an estimate of return or advantage, ``[B]``; constant.

    Returns:
        ``[B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> policy_gradient_loss(jnp.array([-2.0]), jnp.array([3.0])).tolist()
        [6.0]

    References:
        Williams 1992; the weights are those of GAE's eq. 1.
    """
    return -log_prob * stop(weight)


def value_loss(value: jax.Array, target: jax.Array) -> jax.Array:
    r""":math:`\tfrac12 (V_\phi(s) - \hat G)^2`.

    The target is constant, so a target that holds :math:`V_\phi(s')` gives the semi-gradient.

    Args:
        value: :math:`V_\phi(s)`, ``[B]``.
        target: :math:`\hat G`, ``[B]``; constant.

    Returns:
        ``[B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> value_loss(jnp.array([1.0]), jnp.array([3.0])).tolist()
        [2.0]
    """
    return 0.5 * jnp.square(value - stop(target))


def clipped_value_loss(
    value: jax.Array, old_value: jax.Array, target: jax.Array, clip: Number
) -> jax.Array:
    r""":math:`\tfrac12 \max\{(V - \hat G)^2, (V_{old} + clip(V - V_{old}, \pm c) - \hat G)^2\}`.

    Args:
        value: :math:`V_\phi(s)`, ``[B]``.
        old_value: :math:`V_{\phi_{old}}(s)`, ``[B]``; constant.
        target: :math:`\hat G`, ``[B]``; constant.
        clip: :math:`c`, in the unit of the values.

    Returns:
        ``[B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> clipped_value_loss(jnp.array([2.0]), jnp.array([0.0]), jnp.array([2.0]), 0.5).tolist()
        [1.125]

    References:
        Not in the PPO paper; detail 9 of Huang et al. 2022, "The 37 Implementation Details of PPO".
    """
    clipped = stop(old_value) + jnp.clip(value - stop(old_value), -clip, clip)
    return jnp.maximum(value_loss(value, target), value_loss(clipped, target))


def critic_loss(value: jax.Array, batch: OnPolicyBatch, clip: Number | None = None) -> jax.Array:
    r"""The mean of :func:`value_loss`, or of :func:`clipped_value_loss`, over a batch.

    Args:
        value: :math:`V_\phi(s)`, ``[B]``.
        batch: ``[B]``.
        clip: None: not clipped.
    """
    if clip is None:
        return mean(value_loss(value, batch.target), batch.valid)
    return mean(clipped_value_loss(value, batch.value, batch.target, clip), batch.valid)


def make_critic_loss(network: Any, clip: Number | None = None) -> Loss:
    """``loss(params, batch) -> (scalar, info)``: :func:`critic_loss`, to fit the critic alone.

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        clip: As in :func:`critic_loss`.
    """

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        loss = critic_loss(apply_network(network, params, batch.obs)[1], batch, clip)
        return loss, {"value_loss": loss}

    return loss


MAX_LOG_RATIO = 40.0  # exp(40) = 2e17, whose square is finite in float32 too


def probability_ratio(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    r""":math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`, at most exp(40).

    Beyond the bound it is constant, so that its gradient is 0 instead of infinite.

    Args:
        log_prob: :math:`\log \pi_\theta(a|s)`, ``[B]``.
        old_log_prob: :math:`\log \pi_{old}(a|s)`, ``[B]``; constant.

    Returns:
        ``[B]``.
    """
    return jnp.exp(jnp.minimum(log_prob - stop(old_log_prob), MAX_LOG_RATIO))


def surrogate_loss(log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array) -> jax.Array:
    r""":math:`-\ell A`, with :math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`.

    Args:
        log_prob: :math:`\log \pi_\theta(a|s)`, ``[B]``.
        old_log_prob: :math:`\log \pi_{old}(a|s)`, ``[B]``; constant.
        advantage: ``[B]``; constant.

    Returns:
        ``[B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> surrogate_loss(jnp.log(jnp.array([2.0])), jnp.zeros(1), jnp.array([3.0])).tolist()
        [-6.0]

    References:
        Schulman et al. 2015 (TRPO), eq. 14. Between its mean and the change of the return there is
        a factor 1 / (1 - gamma), which a maximization does not see.
    """
    return -probability_ratio(log_prob, old_log_prob) * stop(advantage)


def clipped_surrogate_loss(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, clip: Number
) -> jax.Array:
    r""":math:`-\min(\ell A, clip(\ell, 1 - \epsilon, 1 + \epsilon) A)`, with
    :math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`.

    Args:
        log_prob: :math:`\log \pi_\theta(a|s)`, ``[B]``.
        old_log_prob: :math:`\log \pi_{old}(a|s)`, ``[B]``; constant.
        advantage: ``[B]``; constant.
        clip: :math:`\epsilon` > 0, without unit.

    Returns:
        ``[B]``.

    Example:
        >>> import jax.numpy as jnp
        >>> log_prob, zero = jnp.log(jnp.array([2.0, 2.0])), jnp.zeros(2)
        >>> clipped_surrogate_loss(log_prob, zero, jnp.array([1.0, -1.0]), 0.25).tolist()
        [-1.25, 2.0]

    References:
        Schulman et al. 2017 (PPO), eq. 7.
    """
    ratio = probability_ratio(log_prob, old_log_prob)
    advantage = stop(advantage)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def q_target(reward: jax.Array, discount: jax.Array, next_q: jax.Array) -> jax.Array:
    r""":math:`y = r + d \max_{a'} q(s', a'; \theta^-)`.

    Args:
        reward: :math:`r`, ``[B]``.
        discount: :math:`d`, ``[B]``: gamma, and zero where s' is terminal.
        next_q: :math:`q(s', \cdot; \theta^-)` of the target network, ``[B, K]``.

    Returns:
        ``[B]``, constant: no gradient goes through it.

    Example:
        >>> import jax.numpy as jnp
        >>> q_target(jnp.ones(1), jnp.full(1, 0.5), jnp.array([[2.0, 4.0]])).tolist()
        [3.0]

    References:
        Mnih et al. 2015, "Human-level control through deep reinforcement learning", algorithm 1.
    """
    return _bootstrap(reward, discount, jnp.max(next_q, axis=-1))


def double_q_target(
    reward: jax.Array, discount: jax.Array, next_q: jax.Array, selector: jax.Array
) -> jax.Array:
    r""":math:`y = r + d \, q(s', \arg\max_{a'} q(s', a'; \theta); \theta^-)`.

    Args:
        reward: :math:`r`, ``[B]``.
        discount: :math:`d`, ``[B]``: gamma, and zero where s' is terminal.
        next_q: :math:`q(s', \cdot; \theta^-)` of the target network, ``[B, K]``.
        selector: :math:`q(s', \cdot; \theta)` of the online network, ``[B, K]``: it only selects.

    Returns:
        ``[B]``, constant: no gradient goes through it.

    Example:
        >>> import jax.numpy as jnp
        >>> next_q, selector = jnp.array([[2.0, 4.0]]), jnp.array([[1.0, 0.0]])
        >>> double_q_target(jnp.ones(1), jnp.full(1, 0.5), next_q, selector).tolist()
        [2.0]

    References:
        van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", eq. 4.
    """
    return _bootstrap(reward, discount, taken(next_q, jnp.argmax(selector, axis=-1)))


def _bootstrap(reward: jax.Array, discount: jax.Array, value: jax.Array) -> jax.Array:
    """Where nothing follows, the value of what was observed last may be anything, NaN too."""
    return stop(reward + discount * jnp.where(discount == 0, 0, value))


def taken(q: jax.Array, action: jax.Array) -> jax.Array:
    """``q[b, action[b]]``, as a masked sum: its gradient is no scatter.

    Args:
        q: ``[B, K]``.
        action: ``[B]`` integer.

    Returns:
        ``[B]``.
    """
    place = jnp.arange(q.shape[-1])[None]
    return jnp.sum(jnp.where(action[:, None] == place, q, 0), axis=-1)


def actor_critic_loss(
    distribution: Any,
    value: jax.Array,
    batch: OnPolicyBatch,
    value_coef: Number,
    entropy_coef: Number,
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
    policy = mean(policy_gradient_loss(log_prob, batch.advantage), batch.valid)
    critic = critic_loss(value, batch)
    entropy = mean(distribution.entropy(), batch.valid)
    total = policy + value_coef * critic - entropy_coef * entropy
    info = {"loss": total, "policy_loss": policy, "value_loss": critic, "entropy": entropy}
    return total, info


def approximate_kl(log_prob: jax.Array, old_log_prob: jax.Array) -> jax.Array:
    r"""An unbiased estimate of :math:`KL(\pi_{old} \| \pi_\theta)` that is never negative.

    :math:`(\ell - 1) - \log \ell` with :math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`, at most
    exp(40).

    Args:
        log_prob: ``[B]``, of actions drawn from the old policy.
        old_log_prob: ``[B]``.

    Returns:
        ``[B]``, in nats.

    References:
        Schulman 2020, "Approximating KL Divergence", the estimator k3.
    """
    log_ratio = jnp.minimum(log_prob - old_log_prob, MAX_LOG_RATIO)
    return jnp.expm1(log_ratio) - log_ratio
