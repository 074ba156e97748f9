r"""The policy gradient with six estimators of the return; REINFORCE among them.

One update is one gradient step along

.. math::
    \nabla_\theta J \approx E\left[\sum_t \Psi_t \nabla_\theta \log \pi_\theta(a_t|s_t)\right]

(Schulman et al. 2016, GAE, eq. 1, which lists what may stand for :math:`\Psi_t`), for which
``config.estimator`` picks

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
exact for Discrete actions, over samples for others (expected Sarsa; Sutton and Barto 2018,
eq. 6.9).

The gradient of the discounted objective has another factor :math:`\gamma^t` (Sutton and Barto,
section 13.3; ``discount_states``), off by default: with it late states hardly count. total_return
needs no such factor: its discount counts from the episode's start.
"""

import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_rollout
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import advantages, gradient, losses, returns, rows, sequences
from purerl.policies import acting, memory as memories, networks, q_networks
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, PyTree, Rollout, flatten_time
from purerl.threefry import as_others_draw

Estimator = Literal["total_return", "return_to_go", "baseline", "q_critic", "advantage", "td_error"]
Advantage = Literal["gae", "q_minus_v"]


class PolicyGradientState(NamedTuple):
    """State of the policy gradient.

    Attributes:
        params: The network's parameters.
        opt_state: State of the optimizer.
    """

    params: PyTree
    opt_state: Any


class PolicyGradientBatch(NamedTuple):
    """Samples of a rollout, with everything that is constant in the loss.

    Attributes:
        obs: ``[B, *O]``, or :class:`purerl.Sequences` for a network with a memory.
        action: ``[B, *A]``.
        weight: Psi, ``[B]``.
        target: What the critic is regressed on, ``[B]``; zero without one.
        share: How much a sample counts in the mean, ``[B]``.
    """

    obs: jax.Array
    action: jax.Array
    weight: jax.Array
    target: jax.Array
    share: jax.Array


def estimate(
    network: Any, config: "PolicyGradientConfig", params: PyTree, rollout: Rollout, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Psi and the critic's target, by the table in the module's docstring.

    Args:
        network: See :func:`policy_gradient`.
        config: Hyper-parameters.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``.
        key: PRNG key, for the expectation of Q over a Gaussian policy.

    Returns:
        ``(weight [T, N], target [T, N])``.
    """
    reward, flags = rollout.reward, (rollout.terminated, rollout.truncated)
    gamma = config.gamma
    if config.critic == "none":
        total = config.estimator == "total_return"
        of_rewards = returns.discounted_return if total else returns.return_to_go
        return of_rewards(reward, *flags, gamma), jnp.zeros_like(reward)

    def one_step(next_value: jax.Array) -> jax.Array:
        return reward + jnp.where(rollout.terminated, 0.0, gamma * next_value)

    if config.critic == "q":

        def expected(obs: PyTree, key: jax.Array) -> jax.Array:
            q = expected_q(network, params, obs, key, config.q_samples)
            return q.reshape(reward.shape)

        now, then = jax.random.split(key)
        obs, next_obs = sequences.states(network, rollout)
        action = flatten_time(rollout.action)
        q = acting.apply_network(network, params, obs, action)[1].reshape(reward.shape)
        baseline = 0.0 if config.estimator == "q_critic" else expected(obs, now)
        return q - baseline, one_step(expected(next_obs, then))

    value, next_value = advantages.values(network, params, rollout)
    if config.estimator == "td_error":
        target = one_step(next_value)
        return target - value, target
    lam = 1.0 if config.estimator == "baseline" else config.gae_lambda
    advantage = returns.gae(reward, value, next_value, *flags, gamma, lam)
    return advantage, advantage + value


def expected_q(
    network: Any, params: PyTree, obs: PyTree, key: jax.Array, samples: int
) -> jax.Array:
    r""":math:`E_{a \sim \pi(\cdot|s)} Q(s, a)`: a sum over discrete actions, else a sample mean.

    Args:
        network: ``(obs, action=None) -> (distribution, q)``.
        params: Its parameters.
        obs: ``[B, *O]``, or sequences of so many.
        key: PRNG key.
        samples: How many actions a sample mean takes.

    Returns:
        ``[B]``.
    """
    distribution, q = acting.apply_network(network, params, obs)
    if q.ndim == 2:  # of every discrete action
        actions = jnp.broadcast_to(jnp.arange(q.shape[-1])[:, None], q.shape[::-1])
        log_probs = jax.vmap(distribution.log_prob)(actions)  # [K, B]
        return jnp.sum(jnp.exp(log_probs).T * q, axis=-1)

    def of_sample(key):
        action = distribution.sample(as_others_draw(distribution, key))
        return acting.apply_network(network, params, obs, action)[1]

    return jnp.mean(jax.vmap(of_sample)(jax.random.split(key, samples)), axis=0)


def make_batch(
    network: Any, config: "PolicyGradientConfig", params: PyTree, rollout: Rollout, key: jax.Array
) -> PolicyGradientBatch:
    """A rollout as samples for the loss.

    Args:
        network: See :func:`policy_gradient`.
        config: Hyper-parameters.
        params: The parameters that collected the rollout.
        rollout: ``[T, N]``.
        key: PRNG key.

    Returns:
        Samples ``[T * N]``.
    """
    rollout = rows.filled(jax.tree.map(jnp.asarray, rollout))
    weight, target = estimate(network, config, params, rollout, key)
    counted = jnp.ones(weight.shape, bool) if rollout.valid is None else rollout.valid
    if config.critic == "none":
        counted &= first_episode(rollout.terminated | rollout.truncated)
    share, weight = counted.astype(weight.dtype), jnp.where(counted, weight, 0.0)
    if config.normalize_weight:
        weight = advantages.standardize(weight, share)
    if config.discount_states and config.estimator != "total_return":
        weight = weight * config.gamma ** rollout.episode_step.astype(weight.dtype)
    # Without a critic a sum over each episode's steps, a mean over episodes.
    share = share * (len(share) if config.critic == "none" else rows.share(rollout.valid))
    fields = sequences.samples(network, rollout, (rollout.action, weight, target, share))
    return PolicyGradientBatch(sequences.observations(network, rollout), *fields)


def first_episode(done: jax.Array) -> jax.Array:
    """Which steps ``[T, N]`` belong to each environment's first episode.

    Args:
        done: Terminated or truncated, bool ``[T, N]``.
    """
    ended_before = jnp.cumsum(done, axis=0) - done
    return ended_before == 0


def make_loss(
    network: Any, config: "PolicyGradientConfig", *, progress: Number = 0.0
) -> losses.Loss:
    r"""``loss(params, batch) -> (scalar, info)``, whose gradient is the negative policy gradient.

    Without a critic a sum over each episode's steps, a mean over episodes; else a mean over steps:

    .. math::
        -\Psi \log \pi_\theta(a|s) + c_1 \tfrac12 (V(s) - \hat G)^2
        - c_2 H(\pi_\theta(\cdot|s)).

    Args:
        network: See :func:`policy_gradient`.
        config: Hyper-parameters.
        progress: Finished fraction of the run, which the entropy coefficient follows.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(params: PyTree, batch: PolicyGradientBatch) -> tuple[jax.Array, Info]:
        def mean(x: jax.Array) -> jax.Array:
            return jnp.mean(batch.share * x)

        action = (batch.action,) if config.critic == "q" else ()
        distribution, value = acting.apply_network(network, params, batch.obs, *action)
        log_prob, entropy = distribution.log_prob(batch.action), distribution.entropy()
        policy = mean(losses.policy_gradient_loss(log_prob, batch.weight))
        total = policy - entropy_coef * mean(entropy)
        info = {"policy_loss": policy, "entropy": jnp.average(entropy, weights=batch.share)}
        if config.critic != "none":
            info["value_loss"] = mean(losses.value_loss(value, batch.target))
            explained = advantages.explained_variance(value, batch.target, batch.share > 0)
            info["explained_variance"] = explained
            total += config.value_coef * info["value_loss"]
        return total, info | {"loss": total}

    return loss


def policy_gradient(
    config: "PolicyGradientConfig", action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """The policy gradient: one gradient step a rollout.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; with a Q critic
            ``(obs, action=None) -> (distribution, q)`` as
            :class:`purerl.ActorQCritic`, which is the default there. Or one with
            a memory, :class:`purerl.RecurrentNetwork`, and the action last.

    Returns:
        The algorithm. Learning rate and entropy coefficient follow ``update``'s ``progress``, the
        finished fraction of the run. Its info: ``loss``, ``policy_loss``, ``entropy``, ``finite``,
        and with a critic ``value_loss`` and ``explained_variance``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> reinforce = policy_gradient(
        ...     PolicyGradientConfig(estimator="return_to_go"), env.action_space
        ... )
        >>> reinforce.whole_episodes
        True
    """
    check_kind("policy_gradient", config, PolicyGradientConfig)
    if config.critic == "q" and network is None:
        remembers = config.network.memory != "none"
        default = memories.RecurrentActorQCritic if remembers else q_networks.ActorQCritic
        network = default(action_space, config.network)
    network = acting.default_network(action_space, config.network, network)
    optimizer = gradient.make_optimizer(
        config.optimizer, eps=config.optimizer_eps, max_grad_norm=config.max_grad_norm
    )

    def init(obs: jax.Array, key: jax.Array) -> PolicyGradientState:
        params = acting.init_params(network, action_space, obs, key, q=config.critic == "q")
        return PolicyGradientState(params, optimizer.init(params))

    def update(
        state: PolicyGradientState, rollout: Rollout, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[PolicyGradientState, Info]:
        check_rollout(rollout, action_space)
        # 1. Psi and the critic's target.
        batch = make_batch(network, config, state.params, rollout, key)
        # 2. One gradient step.
        loss = make_loss(network, config, progress=progress)
        grads, info = jax.grad(loss, has_aux=True)(state.params, batch)
        rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        learned = gradient.gradient_step(optimizer, grads, state.opt_state, state.params, rate)
        state, finite = gradient.keep_if_finite(PolicyGradientState(*learned), state)
        return state, info | {"finite": finite}

    whole_episodes = config.critic == "none"
    act, ahead = acting.make_act(network), acting.make_ahead(network)
    memory = acting.make_init_memory(network)
    return OnPolicyAlgorithm(init, act, update, whole_episodes, config.gamma, ahead, memory)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyGradientConfig(Config):
    """Configuration of :func:`policy_gradient`."""

    estimator: Estimator = field("baseline", "What stands for Psi; see the table.")
    advantage: Advantage = field("gae", "Which one, for estimator 'advantage'.")
    learning_rate: Schedule = field(2e-3, "Step size.", "(0, inf)")
    learning_rate_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")
    optimizer: gradient.OptimizerName = field("adam", "The optimizer.")
    optimizer_eps: Number = field(1e-5, "Added to the root of the squared gradient.", "(0, inf)")
    max_grad_norm: Number | None = gradient.norm_bound(None)
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    gae_lambda: Number = field(0.95, "GAE's lambda, for estimator 'advantage'.", "[0, 1]")
    discount_states: bool = field(False, "Weigh step t of an episode by gamma^t.")
    normalize_weight: bool = field(True, "Standardize Psi over the rollout's samples.")
    value_coef: Number = field(0.5, "Weight of the critic's loss.", "[0, inf)")
    entropy_coef: Schedule = field(0.0, "Weight of the entropy bonus.", "[0, inf)")
    entropy_coef_schedule: Shape = field("linear", "How it falls to 0 at the run's end.")
    q_samples: int = field(8, "Actions that estimate an expectation of Q that is not Discrete's.")
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")

    @property
    def critic(self) -> Literal["none", "v", "q"]:
        """Which critic the estimator needs."""
        if self.estimator in ("total_return", "return_to_go"):
            return "none"
        return "q" if self.estimator == "q_critic" or self.advantage == "q_minus_v" else "v"

    def check(self) -> None:
        """Refuses ``advantage='q_minus_v'`` with an estimator that does not use it."""
        if self.advantage == "q_minus_v" and self.estimator != "advantage":
            raise ValueError(
                f"PolicyGradientConfig: advantage='q_minus_v' does nothing with "
                f"estimator={self.estimator!r}; set estimator='advantage'."
            )
