r"""Proximal policy optimization, with a clipped or with a KL-penalized surrogate.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (the paper); algorithms 5.23 and
5.24 of document 001. Both algorithms are the same loop around another loss:

1. advantages and targets of the rollout, under the old parameters (paper, eqs. 11-12);
2. some epochs of minibatch gradient steps on the surrogate (eq. 7 or 8), the value loss and the
   entropy (eq. 9), all together; or, as algorithm 5.24 has it, on the surrogate first and on the
   value loss afterwards (``value_epochs``);
3. PPO-Penalty: the penalty coefficient follows the KL divergence that came of it (section 4).

Differs from:
    Algorithm 5.23 of document 001 has lost a branch of the rule for the coefficient, and document
    002 prints the same threshold twice; here are both, d < d_targ / 1.5 and d > 1.5 d_targ. Both
    leave the immediate reward out of the advantage (t' > t) or rescale it; here t' >= t.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import check_rollout
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
from purerl.pieces.advantages import advantage_batch, explained_variance, standardize
from purerl.pieces.gradient import fit, keep_if_finite, make_optimizer
from purerl.pieces.losses import (
    approximate_kl,
    clipped_surrogate_loss,
    clipped_value_loss,
    entropy_loss,
    kl_penalized_surrogate_loss,
    value_loss,
)
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import default_network, init_params, make_act
from purerl.policies.networks import NetworkConfig
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout

Normalization = Literal["minibatch", "batch", "none"]
Loss = Callable[..., tuple[jax.Array, Info]]  # (params, batch) -> (loss, info)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOConfig(Config):
    """What PPO-Clip and PPO-Penalty share."""

    learning_rate: Schedule = number(3e-4, "(0, inf)", "Adam's step size.", schedule=True)
    learning_rate_schedule: Shape = choice("linear", Shape, "How it falls to 0 at the run's end.")
    adam_eps: Number = number(1e-5, "(0, inf)", "Adam's epsilon.")
    max_grad_norm: Number | None = number(
        0.5,
        "(0, inf)",
        "Global gradient norm is clipped to this; None: not clipped.",
        optional=True,
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    gae_lambda: Number = number(0.95, "[0, 1]", "GAE's lambda.")
    normalize_advantage: Normalization = choice(
        "minibatch",
        Normalization,
        "Over which samples advantages are brought to mean 0 and standard deviation 1.",
    )
    num_epochs: int = count(4, "Passes over a rollout's samples.")
    num_minibatches: int = count(4, "Minibatches a pass; must divide the samples of a rollout.")
    shuffle: bool = switch(True, "New minibatches at random in each pass.")
    value_epochs: int = count(
        0,
        "0: one loss for policy and value. Above: so many passes over the value loss alone, "
        "after the policy's, with an Adam of its own (algorithm 5.24).",
        least=0,
    )
    value_coef: Number = number(
        0.5, "[0, inf)", "c1 of eq. 9; unused with value_epochs, whose loss is the value's alone."
    )
    clip_value: Number | None = number(
        None,
        "(0, inf)",
        "Clips the change of the value too; None: plain squared error.",
        optional=True,
    )
    entropy_coef: Schedule = number(0.0, "[0, inf)", "c2 of eq. 9.", schedule=True)
    max_kl: Number | None = number(
        None,
        "(0, inf)",
        "After an epoch with more approximate KL than this (nats) the rollout's other epochs "
        "do nothing; None: never.",
        optional=True,
    )
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOClipConfig(PPOConfig):
    """Configuration of :func:`ppo_clip`."""

    clip: Schedule = number(0.2, "(0, 1]", "Epsilon of eq. 7, in (0, 1].", schedule=True)
    clip_schedule: Shape = choice("constant", Shape, "How it falls to 0 at the run's end.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PPOPenaltyConfig(PPOConfig):
    """Configuration of :func:`ppo_penalty`."""

    target_kl: Number = number(
        0.01, "(0, inf)", "d_targ of section 4: the wished KL(old || new) of one update, in nats."
    )
    initial_beta: Number = number(
        1.0, "(0, inf)", "The penalty coefficient's first value; it adapts quickly."
    )


class PPOState(NamedTuple):
    """What PPO-Clip learns."""

    params: PyTree
    opt_state: Any
    value_opt_state: Any  # of the separate value epochs; () without them


class PPOPenaltyState(NamedTuple):
    """What PPO-Penalty learns."""

    params: PyTree
    opt_state: Any
    value_opt_state: Any  # of the separate value epochs; () without them
    beta: jax.Array  # [] penalty coefficient


def ppo_clip(
    config: PPOClipConfig, action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """PPO with the clipped surrogate (eq. 7; algorithm 5.24).

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info: ``loss``, ``policy_loss``, ``value_loss``, ``entropy``,
        ``kl`` (the estimate (l - 1) - log l), ``clip_fraction``, ``explained_variance``,
        ``finite``.

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
    network = default_network(action_space, config.network, network)

    def init(obs: jax.Array, key: jax.Array) -> PPOState:
        params = init_params(network, action_space, obs, key)
        return PPOState(params, *_init_optimizers(config, params))

    def update(
        state: PPOState, rollout: Rollout, key: jax.Array, *, progress: float | jax.Array = 0.0
    ) -> tuple[PPOState, Info]:
        batch = make_batch(network, config, state.params, rollout, action_space)
        loss = make_clip_loss(network, config, progress=progress)
        learned, info = _fit(network, config, loss, state[:3], batch, key, progress)
        state, finite = keep_if_finite(PPOState(*learned), state)
        return state, info | {"finite": finite}

    return OnPolicyAlgorithm(init, make_act(network), update, gamma=config.gamma)


def ppo_penalty(
    config: PPOPenaltyConfig, action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """PPO with an adaptive KL penalty (eq. 8; algorithm 5.23 corrected).

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info is that of :func:`ppo_clip` without ``clip_fraction``, and
        ``beta`` (after the update) and ``kl_after`` (exact, of the whole update).

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("Pendulum-v1")
        >>> algorithm = ppo_penalty(PPOPenaltyConfig(target_kl=0.02), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 3)), jax.random.key(0))
        >>> float(state.beta)
        1.0
    """
    network = default_network(action_space, config.network, network)

    def init(obs: jax.Array, key: jax.Array) -> PPOPenaltyState:
        params = init_params(network, action_space, obs, key)
        beta = jnp.asarray(config.initial_beta, jnp.result_type(float))
        return PPOPenaltyState(params, *_init_optimizers(config, params), beta)

    def update(
        state: PPOPenaltyState,
        rollout: Rollout,
        key: jax.Array,
        *,
        progress: float | jax.Array = 0.0,
    ) -> tuple[PPOPenaltyState, Info]:
        batch = make_batch(network, config, state.params, rollout, action_space)
        old, _ = network.apply(state.params, batch.obs)
        batch = batch._replace(distribution=old)
        loss = make_penalty_loss(network, config, state.beta)
        learned, info = _fit(network, config, loss, state[:3], batch, key, progress)
        new, _ = network.apply(learned[0], batch.obs)
        kl = jnp.mean(old.kl(new))
        beta = adapt_beta(state.beta, kl, config.target_kl)
        state, finite = keep_if_finite(PPOPenaltyState(*learned, beta), state)
        return state, info | {"beta": state.beta, "kl_after": kl, "finite": finite}

    return OnPolicyAlgorithm(init, make_act(network), update, gamma=config.gamma)


def adapt_beta(beta: jax.Array, kl: jax.Array, target: float | jax.Array) -> jax.Array:
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


def make_clip_loss(
    network: Any, config: PPOClipConfig, *, progress: float | jax.Array = 0.0
) -> Loss:
    """``loss(params, batch) -> (scalar, info)``: the negative of eq. 9, with eq. 7 as surrogate.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        progress: Finished fraction of the run, for the annealed clip.
    """
    clip = scheduled(config.clip, config.clip_schedule, progress)

    def surrogate(distribution, log_prob, batch, advantage):
        loss = clipped_surrogate_loss(log_prob, batch.log_prob, advantage, clip)
        outside = jnp.abs(jnp.exp(log_prob - batch.log_prob) - 1) > clip
        return loss, {"clip_fraction": jnp.mean(outside)}

    return _make_loss(network, config, surrogate)


def make_penalty_loss(network: Any, config: PPOPenaltyConfig, beta: float | jax.Array) -> Loss:
    """``loss(params, batch) -> (scalar, info)``: the negative of eq. 9, with eq. 8 as surrogate.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        beta: Penalty coefficient. The batch must hold the old ``distribution``.
    """

    def surrogate(distribution, log_prob, batch, advantage):
        kl = batch.distribution.kl(distribution)
        return kl_penalized_surrogate_loss(log_prob, batch.log_prob, advantage, kl, beta), {}

    return _make_loss(network, config, surrogate)


def _make_loss(network: Any, config: PPOConfig, surrogate: Callable[..., Any]) -> Loss:
    """Eq. 9 around a surrogate; with separate value epochs, without its value term."""

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        distribution, value = network.apply(params, batch.obs)
        log_prob = distribution.log_prob(batch.action)
        advantage = batch.advantage
        if config.normalize_advantage == "minibatch":
            advantage = standardize(advantage)
        policy, info = surrogate(distribution, log_prob, batch, advantage)
        policy, entropy = jnp.mean(policy), jnp.mean(distribution.entropy())
        total = policy + config.entropy_coef * entropy_loss(entropy)
        info |= {"policy_loss": policy, "entropy": entropy}
        info["kl"] = jnp.mean(approximate_kl(log_prob, batch.log_prob))
        if not config.value_epochs:
            info["value_loss"] = _value_loss(config, value, batch)
            total += config.value_coef * info["value_loss"]
        return total, info | {"loss": total}

    return loss


def make_value_loss(network: Any, config: PPOConfig) -> Loss:
    """``loss(params, batch) -> (scalar, info)``: the value loss alone, for separate value epochs.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
    """

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        value = _value_loss(config, network.apply(params, batch.obs)[1], batch)
        return value, {"value_loss": value}

    return loss


def _value_loss(config: PPOConfig, value: jax.Array, batch: OnPolicyBatch) -> jax.Array:
    if config.clip_value is None:
        return jnp.mean(value_loss(value, batch.target))
    return jnp.mean(clipped_value_loss(value, batch.value, batch.target, config.clip_value))


def make_batch(
    network: Any,
    config: PPOConfig,
    params: PyTree,
    rollout: Rollout,
    action_space: ActionSpace,
) -> OnPolicyBatch:
    """A rollout as samples with advantages and targets, under the parameters that collected it.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        params: Old parameters.
        rollout: ``[T, N]``.
        action_space: What the rollout's actions are checked against.

    Returns:
        Samples ``[T * N]``.
    """
    check_rollout(rollout, action_space)
    if config.normalize_advantage == "minibatch" and rollout.reward.size == config.num_minibatches:
        raise ValueError(
            f"num_minibatches={config.num_minibatches} leaves minibatches of one sample, whose "
            'normalized advantage is always 0; choose fewer, or normalize_advantage="batch".'
        )
    batch = advantage_batch(network, params, rollout, config.gamma, config.gae_lambda)
    if config.normalize_advantage == "batch":
        batch = batch._replace(advantage=standardize(batch.advantage))
    return batch


def _init_optimizers(config: PPOConfig, params: PyTree) -> tuple[Any, Any]:
    opt_state = _optimizer(config).init(params)
    return opt_state, (opt_state if config.value_epochs else ())


def _optimizer(config: PPOConfig) -> Any:
    return make_optimizer("adam", eps=config.adam_eps, max_grad_norm=config.max_grad_norm)


def _fit(
    network: Any,
    config: PPOConfig,
    loss: Loss,
    learned: tuple[PyTree, Any, Any],
    batch: OnPolicyBatch,
    key: jax.Array,
    progress: float | jax.Array,
) -> tuple[tuple[PyTree, Any, Any], Info]:
    """Step 2 of the module's docstring: all epochs on one batch."""
    params, opt_state, value_opt_state = learned
    learning_rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
    fit_batch = functools.partial(
        fit,
        optimizer=_optimizer(config),
        learning_rate=learning_rate,
        num_minibatches=config.num_minibatches,
        shuffle=config.shuffle,
        max_kl=config.max_kl,
    )
    policy_key, value_key = jax.random.split(key)
    params, opt_state, info = fit_batch(
        loss, params, opt_state, batch, policy_key, num_epochs=config.num_epochs
    )
    if config.value_epochs:
        critic_loss = make_value_loss(network, config)
        params, value_opt_state, value_info = fit_batch(
            critic_loss, params, value_opt_state, batch, value_key, num_epochs=config.value_epochs
        )
        info |= value_info
    info["explained_variance"] = explained_variance(batch.value, batch.target)
    return (params, opt_state, value_opt_state), info
