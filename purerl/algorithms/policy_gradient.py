r"""The policy gradient with six estimators of the return; REINFORCE among them.

Document 002, section "REINFORCE", lists what may stand for :math:`\Psi_t` in

.. math::
    \nabla_\theta J \approx E\left[\sum_t \Psi_t \nabla_\theta \log \pi_\theta(a_t|s_t)\right]

(GAE, eq. 1, has the same list). ``config.estimator`` picks one:

================  ==============================================================  ==============
estimator         :math:`\Psi_t`                                                  critic
================  ==============================================================  ==============
total_return      :math:`\sum_{k \ge 0} \gamma^k r_k`                             none
return_to_go      :math:`G_t = \sum_{k \ge t} \gamma^{k-t} r_k` (REINFORCE)       none
baseline          :math:`G_t - V(s_t)` (REINFORCE with baseline)                  V, on :math:`G_t`
q_critic          :math:`Q(s_t, a_t)`                                             Q
advantage         GAE, or :math:`Q(s_t, a_t) - E_{a \sim \pi} Q(s_t, a)`          V, or Q
td_error          :math:`r_t + \gamma V(s_{t+1}) - V(s_t)`                        V, on TD(0)
================  ==============================================================  ==============

Without a critic nothing can stand for the rest of an unfinished episode: these two estimators take
each environment's first episode after a reset, whole, and no other, since the episodes that happen
to end within a fixed number of steps are the short ones. With a critic, episodes go on from rollout
to rollout, and its value continues what the rollout cuts off.

Q is regressed on :math:`r + \gamma E_{a' \sim \pi} Q(s', a')`, the expectation over the policy:
exact for discrete actions, over samples for Box actions.

Differs from:
    Document 002 gives :math:`E[\sum_t G_t \nabla \log \pi]` as the gradient of the discounted
    objective; that has another factor :math:`\gamma^t` (``discount_states``). It is off by default:
    with it, late states hardly count, and in practice the factor is left out everywhere.
    total_return needs no such factor: its discount counts from the episode's start.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_action_space, check_rollout
from purerl.config import (
    Config,
    Number,
    Schedule,
    choice,
    count,
    number,
    part,
    switch,
)
from purerl.pieces.advantages import explained_variance, flatten_time, values
from purerl.pieces.gradient import (
    OptimizerName,
    gradient_step,
    keep_if_finite,
    make_optimizer,
)
from purerl.pieces.losses import entropy_loss, policy_gradient_loss, value_loss
from purerl.pieces.returns import discounted_return, gae, return_to_go
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import apply_network, default_network, init_params, make_act
from purerl.policies.networks import ActorQCritic, NetworkConfig
from purerl.records import ActionSpace, Discrete, Info, OnPolicyAlgorithm, PyTree, Rollout

Estimator = Literal["total_return", "return_to_go", "baseline", "q_critic", "advantage", "td_error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(Config):
    """Configuration of :func:`policy_gradient`."""

    estimator: Estimator = choice(
        "baseline", Estimator, "What stands for Psi; see the module's table."
    )
    advantage: Literal["gae", "q_minus_v"] = choice(
        "gae", Literal["gae", "q_minus_v"], "Which advantage, for estimator 'advantage'."
    )
    learning_rate: Schedule = number(2e-3, "(0, inf)", "Step size.", schedule=True)
    learning_rate_schedule: Shape = choice("constant", Shape, "How it falls to 0 at the run's end.")
    optimizer: OptimizerName = choice("adam", OptimizerName, "adam, rmsprop or sgd.")
    optimizer_eps: Number = number(
        1e-5, "(0, inf)", "Added to the root of the mean squared gradient."
    )
    max_grad_norm: Number | None = number(
        None,
        "(0, inf)",
        "Global gradient norm is clipped to this; None: not clipped. Without a critic the "
        "loss is a sum over each episode's steps, with one a mean over steps.",
        optional=True,
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    gae_lambda: Number = number(0.95, "[0, 1]", "GAE's lambda.")
    discount_states: bool = switch(
        False, "Weigh step t of an episode by gamma^t, as the discounted objective has it."
    )
    normalize_weight: bool = switch(
        True,
        "Bring Psi to mean 0 and standard deviation 1 over the rollout's samples. A constant "
        "baseline and a scale, but estimated from the same samples.",
    )
    value_coef: Number = number(0.5, "[0, inf)", "Weight of the critic's loss.")
    entropy_coef: Schedule = number(0.0, "[0, inf)", "Weight of the entropy bonus.", schedule=True)
    entropy_coef_schedule: Shape = choice("linear", Shape, "How it falls to 0 at the run's end.")
    q_samples: int = count(8, "Actions that estimate an expectation of Q over a Gaussian policy.")
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")

    @property
    def critic(self) -> Literal["none", "v", "q"]:
        """Which critic the estimator needs."""
        if self.estimator in ("total_return", "return_to_go"):
            return "none"
        if self.estimator == "q_critic":
            return "q"
        return "q" if (self.estimator, self.advantage) == ("advantage", "q_minus_v") else "v"


class PolicyGradientState(NamedTuple):
    """What the policy gradient learns."""

    params: PyTree
    opt_state: Any


class PolicyGradientBatch(NamedTuple):
    """Samples of a rollout, with everything that is constant in the loss."""

    obs: jax.Array  # [B, *O]
    action: jax.Array  # [B, *A]
    weight: jax.Array  # [B] Psi
    target: jax.Array  # [B] what the critic is regressed on; zero without one
    share: jax.Array  # [B] how much a sample counts in the mean


def policy_gradient(
    config: PolicyGradientConfig, action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """The policy gradient: one gradient step a rollout.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; with a Q critic
            ``(obs, action=None) -> (distribution, q)`` as
            :class:`purerl.policies.networks.ActorQCritic`, which is the default there.

    Returns:
        The algorithm. ``update``'s info: ``loss``, ``policy_loss``, ``entropy``, ``finite``, and
        with a critic ``value_loss`` and ``explained_variance``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> reinforce = policy_gradient(
        ...     PolicyGradientConfig(estimator="return_to_go"), env.action_space
        ... )
        >>> reinforce.whole_episodes
        True
    """
    if config.critic == "q" and network is None:
        check_action_space(action_space)
        network = ActorQCritic(action_space, config.network)
    network = default_network(action_space, config.network, network)
    optimizer = make_optimizer(
        config.optimizer, eps=config.optimizer_eps, max_grad_norm=config.max_grad_norm
    )

    def init(obs: jax.Array, key: jax.Array) -> PolicyGradientState:
        params = init_params(network, action_space, obs, key, q=config.critic == "q")
        return PolicyGradientState(params, optimizer.init(params))

    def update(
        state: PolicyGradientState,
        rollout: Rollout,
        key: jax.Array,
        *,
        progress: float | jax.Array = 0.0,
    ) -> tuple[PolicyGradientState, Info]:
        check_rollout(rollout, action_space)
        batch = make_batch(network, config, state.params, rollout, key, action_space)
        loss = make_loss(network, config, progress=progress)
        gradient, info = jax.grad(loss, has_aux=True)(state.params, batch)
        learning_rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        learned = gradient_step(optimizer, gradient, state.opt_state, state.params, learning_rate)
        state, finite = keep_if_finite(PolicyGradientState(*learned), state)
        return state, info | {"finite": finite}

    whole_episodes = config.critic == "none"
    return OnPolicyAlgorithm(init, make_act(network), update, whole_episodes, config.gamma)


def estimate(
    network: Any,
    config: PolicyGradientConfig,
    params: PyTree,
    rollout: Rollout,
    key: jax.Array,
    action_space: ActionSpace,
) -> tuple[jax.Array, jax.Array]:
    """Psi and the critic's target, as the module's table has them.

    Args:
        network: Flax module; see :func:`policy_gradient`.
        config: Hyper-parameters.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``.
        key: PRNG key, for the expectation of Q over a Gaussian policy.
        action_space: Of the environment.

    Returns:
        ``(weight [T, N], target [T, N])``.
    """
    reward, flags = rollout.reward, (rollout.terminated, rollout.truncated)
    gamma = config.gamma
    if config.critic == "none":
        returns = discounted_return if config.estimator == "total_return" else return_to_go
        return returns(reward, *flags, gamma), jnp.zeros_like(reward)

    goes_on = 1 - rollout.terminated.astype(reward.dtype)
    if config.critic == "q":
        now, then = jax.random.split(key)
        expected = lambda obs, key: expected_q(  # noqa: E731
            network, params, flatten_time(obs), key, action_space, config.q_samples
        ).reshape(reward.shape)
        obs, action = flatten_time((rollout.obs, rollout.action))
        q = apply_network(network, params, obs, action)[1].reshape(reward.shape)
        target = reward + gamma * goes_on * expected(rollout.next_obs, then)
        if config.estimator == "q_critic":
            return q, target
        return q - expected(rollout.obs, now), target

    value, next_value = values(network, params, rollout)
    if config.estimator == "td_error":
        target = reward + gamma * goes_on * next_value
        return target - value, target
    lam = 1.0 if config.estimator == "baseline" else config.gae_lambda
    advantage = gae(reward, value, next_value, *flags, gamma, lam)
    return advantage, advantage + value


def expected_q(
    network: Any,
    params: PyTree,
    obs: jax.Array,
    key: jax.Array,
    action_space: ActionSpace,
    samples: int,
) -> jax.Array:
    r""":math:`E_{a \sim \pi(\cdot|s)} Q(s, a)`: a sum over discrete actions, else a sample mean.

    Args:
        network: Flax module ``(obs, action=None) -> (distribution, q)``.
        params: Its parameters.
        obs: ``[B, *O]``.
        key: PRNG key.
        action_space: Of the environment.
        samples: How many actions a sample mean takes.

    Returns:
        ``[B]``.
    """
    distribution, q = apply_network(network, params, obs)
    if isinstance(action_space, Discrete):
        actions = jnp.broadcast_to(jnp.arange(q.shape[-1])[:, None], q.shape[::-1])
        log_probs = jax.vmap(distribution.log_prob)(actions)  # [K, B]
        return jnp.sum(jnp.exp(log_probs).T * q, axis=-1)

    def of_sample(key):
        return apply_network(network, params, obs, distribution.sample(key))[1]

    return jnp.mean(jax.vmap(of_sample)(jax.random.split(key, samples)), axis=0)


def make_batch(
    network: Any,
    config: PolicyGradientConfig,
    params: PyTree,
    rollout: Rollout,
    key: jax.Array,
    action_space: ActionSpace,
) -> PolicyGradientBatch:
    """A rollout as samples for the loss.

    Args:
        network: Flax module; see :func:`policy_gradient`.
        config: Hyper-parameters.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``.
        key: PRNG key.
        action_space: Of the environment.

    Returns:
        Samples ``[T * N]``.
    """
    weight, target = estimate(network, config, params, rollout, key, action_space)
    share = jnp.ones_like(weight)
    if config.critic == "none":
        # Each first episode is a sum over its steps, and the mean is over episodes.
        share = first_episode(rollout.terminated | rollout.truncated).astype(weight.dtype)
    if config.normalize_weight:
        mean = jnp.average(weight, weights=share)
        std = jnp.sqrt(jnp.average(jnp.square(weight - mean), weights=share))
        weight = (weight - mean) / (std + 1e-8)
    if config.discount_states and config.estimator != "total_return":
        weight = weight * config.gamma ** rollout.episode_step.astype(weight.dtype)
    if config.critic == "none":
        share = share * share.shape[0]
    return PolicyGradientBatch(*flatten_time((rollout.obs, rollout.action, weight, target, share)))


def first_episode(done: jax.Array) -> jax.Array:
    """Which steps belong to each environment's first episode.

    Args:
        done: Terminated or truncated, bool ``[T, N]``.

    Returns:
        bool ``[T, N]``.
    """
    ended_before = jnp.cumsum(done, axis=0) - done
    return ended_before == 0


def make_loss(
    network: Any, config: PolicyGradientConfig, *, progress: float | jax.Array = 0.0
) -> Callable[[PyTree, PolicyGradientBatch], tuple[jax.Array, Info]]:
    """``loss(params, batch) -> (scalar, info)``, whose gradient is the negative policy gradient.

    Args:
        network: Flax module; see :func:`policy_gradient`.
        config: Hyper-parameters.
        progress: Finished fraction of the run, for the annealed entropy coefficient.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(params: PyTree, batch: PolicyGradientBatch) -> tuple[jax.Array, Info]:
        action = (batch.action,) if config.critic == "q" else ()
        distribution, value = network.apply(params, batch.obs, *action)
        mean = lambda x: jnp.mean(batch.share * x)  # noqa: E731
        policy = mean(policy_gradient_loss(distribution.log_prob(batch.action), batch.weight))
        entropy = mean(distribution.entropy())
        total = policy + entropy_coef * entropy_loss(entropy)
        entropy_per_step = jnp.average(distribution.entropy(), weights=batch.share)
        info = {"policy_loss": policy, "entropy": entropy_per_step}
        if config.critic != "none":
            info["value_loss"] = mean(value_loss(value, batch.target))
            info["explained_variance"] = explained_variance(value, batch.target)
            total += config.value_coef * info["value_loss"]
        return total, info | {"loss": total}

    return loss
