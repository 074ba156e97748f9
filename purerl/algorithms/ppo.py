r"""Proximal policy optimization (PPO), with a clipped or with a KL-penalized surrogate.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (the paper), algorithm 1. One
update of either variant:

1. Advantages and targets of the rollout, under the old parameters (eqs. 11-12).
2. Some epochs of minibatch gradient steps on eq. 9: the surrogate (PPO-Clip: eq. 7, PPO-Penalty:
   eq. 8), the value loss and the entropy together. With ``value_epochs``, the surrogate and the
   entropy alone, and afterwards so many epochs on the value loss, as TRPO fits its critic.
3. PPO-Penalty: the coefficient beta follows the KL divergence that the update made (section 4).
"""

import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_rollout
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import advantages, gradient, losses
from purerl.pieces.rows import mean
from purerl.policies import acting, networks
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout

Normalization = Literal["minibatch", "batch", "none"]


class PPOState(NamedTuple):
    """State of PPO.

    Attributes:
        params: The network's parameters.
        opt_state: State of Adam.
        value_opt_state: State of the Adam of the separate value epochs; () without them.
        beta: Penalty coefficient of PPO-Penalty, ``[]``; () in PPO-Clip.
    """

    params: PyTree
    opt_state: Any
    value_opt_state: Any
    beta: Any


def make_loss(
    network: Any, config: "PPOConfig", *, beta: Number = 0.0, progress: Number = 0.0
) -> losses.Loss:
    r"""``loss(params, batch) -> (scalar, info)``: the negative of the paper's eq. 9.

    .. math::
        \text{PPO-Clip (eq. 7):}\quad & L = \hat{\mathbb E}\big[
        \min(\ell \hat A, clip(\ell, 1 - \epsilon, 1 + \epsilon) \hat A)\big] \\
        \text{PPO-Penalty (eq. 8):}\quad & L = \hat{\mathbb E}\big[
        \ell \hat A - \beta \, KL(\pi_{old}(\cdot|s) \| \pi_\theta(\cdot|s))\big] \\
        \text{eq. 9:}\quad & L - c_1 \hat{\mathbb E}\big[\tfrac12 (V(s) - \hat G)^2\big]
        + c_2 \hat{\mathbb E}\big[H(\pi_\theta(\cdot|s))\big]

    with :math:`\ell = \pi_\theta(a|s) / \pi_{old}(a|s)`; without the value term where
    ``config.value_epochs`` fits the value separately.

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        config: Of PPO-Clip or of PPO-Penalty, which decides the surrogate.
        beta: Penalty coefficient of eq. 8. The batch must then hold the old ``distribution``.
        progress: Finished fraction of the run, which clip and entropy coefficient follow.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        distribution, value = acting.apply_network(network, params, batch.obs)
        log_prob, advantage = distribution.log_prob(batch.action), batch.advantage
        if config.normalize_advantage == "minibatch":
            advantage = advantages.standardize(advantage, batch.valid)
        info = {}
        if isinstance(config, PPOClipConfig):
            clip = scheduled(config.clip, config.clip_schedule, progress)
            each = losses.clipped_surrogate_loss(log_prob, batch.log_prob, advantage, clip)
            outside = jnp.abs(jnp.exp(log_prob - batch.log_prob) - 1) > clip
            info["clip_fraction"] = mean(outside.astype(log_prob.dtype), batch.valid)
        else:
            kl = batch.distribution.kl(distribution)
            each = losses.surrogate_loss(log_prob, batch.log_prob, advantage) + beta * kl
        policy, entropy = (mean(x, batch.valid) for x in (each, distribution.entropy()))
        total = policy - entropy_coef * entropy
        info |= {"policy_loss": policy, "entropy": entropy}
        info["kl"] = mean(losses.approximate_kl(log_prob, batch.log_prob), batch.valid)
        if not config.value_epochs:
            info["value_loss"] = losses.critic_loss(value, batch, config.clip_value)
            total += config.value_coef * info["value_loss"]
        return total, info | {"loss": total}

    return loss


def adapt_beta(beta: Number, kl: Number, target: Number) -> jax.Array:
    """The penalty coefficient for the next update (paper, section 4).

    Args:
        beta: Coefficient of this update.
        kl: Its mean KL(old || new), in nats.
        target: d_targ.

    Returns:
        ``beta / 2`` if ``kl < target / 1.5``, ``2 * beta`` if ``kl > 1.5 * target``, else ``beta``;
        kept within [1e-6, 1e6], since it could not come back from 0 or infinity.

    Example:
        >>> float(adapt_beta(1.0, 0.02, 0.01)), float(adapt_beta(1.0, 0.001, 0.01))
        (2.0, 0.5)
    """
    beta = jnp.where(kl < target / 1.5, beta / 2, jnp.where(kl > 1.5 * target, beta * 2, beta))
    return jnp.clip(beta, 1e-6, 1e6)


def _make_algorithm(
    config: "PPOConfig", action_space: ActionSpace, network: Any
) -> OnPolicyAlgorithm:
    network = acting.default_network(action_space, config.network, network)
    memory = acting.make_init_memory(network)
    if config.sequence_length is not None and memory is None:
        raise ValueError(
            f"{type(config).__name__}: sequence_length={config.sequence_length} is for networks "
            "with a memory; leave it out, or set memory of the NetworkConfig."
        )
    optimizer = gradient.make_optimizer(
        "adam", eps=config.adam_eps, max_grad_norm=config.max_grad_norm
    )

    def init(obs: jax.Array, key: jax.Array) -> PPOState:
        params = acting.init_params(network, action_space, obs, key)
        opt_state = optimizer.init(params)
        beta: Any = ()
        if isinstance(config, PPOPenaltyConfig):
            beta = jnp.asarray(config.initial_beta, jnp.result_type(float))
        # Not the same twice: a state that is donated has each array once.
        critics = optimizer.init(params) if config.value_epochs else ()
        return PPOState(params, opt_state, critics, beta)

    def policy(params: PyTree, obs: Any) -> Any:
        return acting.apply_network(network, params, obs)[0]

    def update(
        state: PPOState, rollout: Rollout, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[PPOState, Info]:
        check_rollout(rollout, action_space)
        count, normalization = config.num_minibatches, config.normalize_advantage
        if normalization == "minibatch" and rollout.reward.size == count and memory is None:
            raise ValueError(
                f"num_minibatches={count} leaves minibatches of one sample, whose normalized "
                'advantage is always 0; choose fewer, or normalize_advantage="batch".'
            )
        # 1. Advantages and targets, under the old parameters.
        settings = config.gamma, config.gae_lambda, normalization == "batch", None
        length = config.sequence_length
        batch = advantages.on_policy_batch(network, state.params, rollout, *settings, length)
        if isinstance(config, PPOPenaltyConfig):
            batch = batch._replace(distribution=policy(state.params, batch.obs))
        # 2. Epochs of minibatch steps on eq. 9; with value epochs, its value term afterwards.
        policy_key, value_key = jax.random.split(key)
        fit = functools.partial(
            gradient.fit,
            optimizer=optimizer,
            learning_rate=scheduled(config.learning_rate, config.learning_rate_schedule, progress),
            num_minibatches=config.num_minibatches,
            shuffle=config.shuffle,
            max_kl=config.max_kl,
        )
        loss = make_loss(network, config, beta=state.beta, progress=progress)
        params, opt_state, info = fit(
            loss, state.params, state.opt_state, batch, policy_key, num_epochs=config.num_epochs
        )
        value_opt_state, beta = state.value_opt_state, state.beta
        if config.value_epochs:
            loss = losses.make_critic_loss(network, config.clip_value)
            params, value_opt_state, value_info = fit(
                loss, params, value_opt_state, batch, value_key, num_epochs=config.value_epochs
            )
            info |= value_info
        # 3. The penalty coefficient follows the KL divergence of the whole update.
        if isinstance(config, PPOPenaltyConfig):
            kl = mean(batch.distribution.kl(policy(params, batch.obs)), batch.valid)
            beta = adapt_beta(beta, kl, config.target_kl)
            info |= {"kl_after": kl, "beta": beta}
        new = PPOState(params, opt_state, value_opt_state, beta)
        state, finite = gradient.keep_if_finite(new, state)
        explained = advantages.explained_variance(batch.value, batch.target, batch.valid)
        info["explained_variance"] = explained
        return state, info | {"finite": finite}

    act, ahead = acting.make_act(network), acting.make_ahead(network)
    return OnPolicyAlgorithm(init, act, update, gamma=config.gamma, ahead=ahead, init_memory=memory)


def ppo_clip(
    config: "PPOClipConfig", action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """PPO with the clipped surrogate (the paper's eq. 7).

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. Learning rate, clip and entropy coefficient follow ``update``'s ``progress``,
        the finished fraction of the run. Its info: ``loss``, ``policy_loss``, ``value_loss``,
        ``entropy``, ``kl`` (the estimate (l - 1) - log l), ``clip_fraction``,
        ``explained_variance``, ``finite``.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = ppo_clip(PPOClipConfig(clip=0.1), env.action_space)
        >>> obs = jax.numpy.zeros((8, 4))
        >>> state = algorithm.init(obs, jax.random.key(0))
        >>> action, extras = algorithm.act(state, obs, jax.random.key(1))
        >>> action.shape, extras["log_prob"].shape
        ((8,), (8,))
    """
    check_kind("ppo_clip", config, PPOClipConfig)
    return _make_algorithm(config, action_space, network)


def ppo_penalty(
    config: "PPOPenaltyConfig", action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """PPO with an adaptive KL penalty (the paper's eq. 8).

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm, as :func:`ppo_clip` gives. ``update``'s info has no ``clip_fraction``, but
        ``beta`` (after the update) and ``kl_after`` (exact, of the whole update).

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("Pendulum-v1")
        >>> algorithm = ppo_penalty(PPOPenaltyConfig(target_kl=0.02), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 3)), jax.random.key(0))
        >>> float(state.beta)
        1.0
    """
    check_kind("ppo_penalty", config, PPOPenaltyConfig)
    return _make_algorithm(config, action_space, network)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """Fields that PPO-Clip and PPO-Penalty share."""

    learning_rate: Schedule = field(3e-4, "Adam's step size.", "(0, inf)")
    learning_rate_schedule: Shape = field("linear", "How it falls to 0 at the run's end.")
    adam_eps: Number = field(1e-5, "Adam's epsilon.", "(0, inf)")
    max_grad_norm: Number | None = gradient.norm_bound(0.5)
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    gae_lambda: Number = field(0.95, "GAE's lambda.", "[0, 1]")
    normalize_advantage: Normalization = field(
        "minibatch", "Samples whose advantages get mean 0, standard deviation 1."
    )
    num_epochs: int = field(4, "Passes over a rollout's samples.")
    num_minibatches: int = field(
        4, "Minibatches a pass; must divide a rollout's samples; with a memory, its sequences."
    )
    sequence_length: int | None = field(
        None,
        "With a memory: steps that gradients go back through, at most; must divide rollout_length. "
        "None: a sequence is all that an environment did in a rollout.",
    )
    shuffle: bool = field(True, "New minibatches at random in each pass.")
    value_epochs: int = field(
        0, "Separate passes over the value loss, after the policy's; 0: one loss.", "[0, inf)"
    )
    value_coef: Number = field(0.5, "c1 of eq. 9; unused with value_epochs.", "[0, inf)")
    clip_value: Number | None = field(
        None, "Bound on the value's change; None: plain squared error.", "(0, inf)"
    )
    entropy_coef: Schedule = field(0.0, "c2 of eq. 9.", "[0, inf)")
    entropy_coef_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")
    max_kl: Number | None = field(
        None, "Approximate KL (nats) of an epoch that is the last one.", "(0, inf)"
    )
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOClipConfig(PPOConfig):
    """Configuration of :func:`ppo_clip`."""

    clip: Schedule = field(0.2, "Epsilon of eq. 7.", "(0, 1]")
    clip_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOPenaltyConfig(PPOConfig):
    """Configuration of :func:`ppo_penalty`."""

    target_kl: Number = field(0.01, "d_targ of section 4: KL of an update, nats.", "(0, inf)")
    initial_beta: Number = field(1.0, "First value of the penalty coefficient.", "(0, inf)")
