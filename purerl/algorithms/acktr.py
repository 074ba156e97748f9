r"""ACKTR: actor-critic with a Kronecker-factored trust region.

Wu et al. 2017, "Scalable trust-region method for deep reinforcement learning using
Kronecker-factored approximation". A2C's gradient, one a rollout, but the step is

.. math::
    \theta \leftarrow \theta - \eta \, \hat F^{-1} \nabla_\theta L, \qquad
    \eta = \min\left(\eta_{max}, \sqrt{\frac{\delta}{\Delta^T \hat F \Delta}}\right), \qquad
    \Delta = \hat F^{-1} \nabla_\theta L,

where F is the Fisher information of the policy and of the critic, taken as a Gaussian around V(s).
It is a true Fisher, of actions and returns drawn from the model: the actions of the rollout are
(they are used for one update only), the returns are drawn here.

Actor and critic with nothing in common have a trust region each. The Gaussian's standard deviation
then cancels out of the critic's direction and only sets how far it may go: with the size of the
rollout's errors for it, the critic's steps do not depend on the unit of the rewards. With a shared
trunk the two outputs are drawn independently, the standard deviation (1, as in the paper) weighs
them against each other, and there is one joint Fisher and one trust region.

Differs from:
    Documents 000 and 001 (section 5.9) end in the middle of the inverse: the expectation of the
    product, damping, the critic and the size of the step are the paper's and, for the constants,
    OpenAI baselines'. Drawn returns are one standard deviation off, with a random sign, instead of
    normal: the Fisher is the same, its estimate has less noise.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

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
from purerl.pieces.gradient import gradient_step, keep_if_finite
from purerl.pieces.losses import actor_critic_loss
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import default_network, init_params, make_act
from purerl.policies.networks import NetworkConfig
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout
from purerl.second_order.kfac.factors import Factors, fisher_factors
from purerl.second_order.kfac.layers import Layer, find_layers, reaching, tap
from purerl.second_order.kfac.transform import ALL, DampingKind, scale_by_kfac

FisherActions = Literal["taken", "sampled"]
TRUST = {ALL: "trust", "actor": "trust", "critic": "critic_trust"}  # in the info, by region


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACKTRConfig(Config):
    """Configuration of :func:`acktr`."""

    learning_rate: Schedule = number(
        0.25, "(0, inf)", "eta_max, the largest step size.", schedule=True
    )
    learning_rate_schedule: Shape = choice("linear", Shape, "How it falls to 0 at the run's end.")
    target_kl: Number | None = number(
        None,
        "(0, inf)",
        "If given, eta_max is divided by 1.5 after a step with more than twice this KL "
        "(nats), and multiplied by 1.5 after one with less than half of it, within [1e-8, 1]. "
        "Needs a kl_clip above four times it, which would otherwise decide, and no annealing.",
        optional=True,
    )
    momentum: Number = number(
        0.9, "[0, 1)", "Weight of the past in the moving average of steps, in [0, 1)."
    )
    kl_clip: Number = number(
        0.001,
        "(0, inf)",
        "delta: a step's eta^2 Delta^T F Delta is at most this, which predicts a KL of half "
        "of it, by the averaged blocks and without what momentum adds.",
    )
    critic_kl_clip: Number | None = number(
        0.01,
        "(0, inf)",
        "The same for a critic that shares nothing with the actor; None: no bound.",
        optional=True,
    )
    critic_std: Number | None = number(
        None,
        "(0, inf)",
        "sigma of the critic's Gaussian N(V, sigma^2), in units of return; None: the root of "
        "the rollout's mean squared error, or with a shared trunk 1, as in the paper.",
        optional=True,
    )
    damping: Number = number(0.01, "(0, inf)", "epsilon, added to the Fisher's diagonal.")
    damping_kind: DampingKind = choice(
        "factored",
        DampingKind,
        "factored: the root of epsilon, split by pi, to each factor, as in the paper; "
        "eigenbasis: epsilon to the whole, as in OpenAI baselines, which takes several times "
        "as long to invert.",
    )
    decay: Number = number(0.99, "[0, 1)", "Of the factors' moving averages, in [0, 1).")
    stats_every: int = count(1, "Updates between two measurements of the factors.")
    stats_stride: int = count(
        4,
        "Of the rollout's steps, every so many-th is used for the factors, and for the info's "
        "KL. At 4 an update takes two thirds of the time that it takes at 1, and CartPole, "
        "Acrobot and Pendulum are learned in as many steps.",
    )
    inverse_every: int = count(10, "Updates between two inversions of the factors.")
    cold_start: int = count(
        10,
        "So many first updates go along the plain gradient, while factors are measured.",
        least=0,
    )
    cold_max_norm: Number = number(
        0.5, "(0, inf)", "Global norm to which the gradient is clipped during the cold start."
    )
    fisher_actions: FisherActions = choice(
        "taken",
        FisherActions,
        "Whose scores make the Fisher: the rollout's actions, or ones drawn anew.",
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    gae_lambda: Number = number(
        1.0, "[0, 1]", "GAE's lambda; 1: n-step returns to the rollout's end, as in the paper."
    )
    normalize_advantage: bool = switch(
        False, "Bring a rollout's advantages to mean 0 and standard deviation 1."
    )
    value_coef: Number = number(0.5, "[0, inf)", "Weight of the value loss.")
    entropy_coef: Schedule = number(0.0, "[0, inf)", "Weight of the entropy.", schedule=True)
    entropy_coef_schedule: Shape = choice("constant", Shape, "How it falls to 0 at the run's end.")
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")


class ACKTRState(NamedTuple):
    """What ACKTR learns."""

    params: PyTree
    opt_state: Any  # (KfacState, the momentum's)
    learning_rate: jax.Array  # [] eta_max, before annealing; it changes where a KL is desired


def acktr(config: ACKTRConfig, action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """ACKTR.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])`` with Dense or Conv layers;
            by default :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info: ``loss``, ``policy_loss``, ``value_loss``, ``entropy``,
        ``explained_variance``, ``kl`` (measured, old || new, over the steps that the factors are
        measured on), ``learning_rate`` (eta_max, annealed), ``trust`` (what the KL clip multiplied
        the actor's step by; 1 during the cold start) and ``critic_trust`` (the same without a
        shared trunk), ``damping``, ``condition`` (of the worst damped block of the last inversion;
        1 before the first), ``finite``.

    Raises:
        ValueError: By ``init``, if the network has no layer that K-FAC can factor, or a matrix that
            belongs to no such layer.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = acktr(ACKTRConfig(), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> [factor.shape for factor in state.opt_state[0].factors.a[:3]]
        [(5, 5), (65, 65), (5, 5)]
    """
    network = default_network(action_space, config.network, network)

    def init(obs: jax.Array, key: jax.Array) -> ACKTRState:
        params = init_params(network, action_space, obs, key)
        layers = find_layers(network, params, obs)
        regions = trust_regions(network, params, obs)
        opt_state = make_optimizer(config, layers, regions, jnp.ones(())).init(params)
        return ACKTRState(
            params, opt_state, jnp.asarray(config.learning_rate, jnp.result_type(float))
        )

    def update(
        state: ACKTRState, rollout: Rollout, key: jax.Array, *, progress: float | jax.Array = 0.0
    ) -> tuple[ACKTRState, Info]:
        check_rollout(rollout, action_space)
        batch = make_batch(network, config, state.params, rollout)
        layers = find_layers(network, state.params, batch.obs)
        tapped = tap(network, layers, state.params, batch.obs)

        regions = trust_regions(network, state.params, batch.obs)
        shared = regions is None
        output_loss = make_output_loss(config, shared, progress=progress)
        slope, info = jax.grad(output_loss, has_aux=True)(tapped.output, batch)
        gradient, _ = tapped.pullback(slope)

        def some_steps(x: jax.Array) -> jax.Array:
            by_step = x.reshape(*rollout.reward.shape, *x.shape[1:])
            return by_step[:: config.stats_stride].reshape(-1, *x.shape[1:])

        some_obs = some_steps(batch.obs)

        def statistics() -> Factors:
            some = tapped
            if config.stats_stride > 1:
                some = tap(network, layers, state.params, some_obs)
            taken = some_steps(batch.action) if config.fisher_actions == "taken" else None
            of_output = score(some.output, joint_variance(config, shared), key, taken)
            return fisher_factors(layers, some, of_output)

        learning_rate = scheduled(state.learning_rate, config.learning_rate_schedule, progress)
        params, opt_state = gradient_step(
            make_optimizer(config, layers, regions, critic_variance(config, batch)),
            gradient,
            state.opt_state,
            state.params,
            learning_rate,
            statistics=statistics,
        )
        old = jax.tree.map(some_steps, tapped.output[0])
        kl = jnp.mean(old.kl(network.apply(params, some_obs)[0]))
        kfac, momentum = opt_state
        warm = kfac.clock.iteration > config.cold_start
        rate = jnp.where(warm, adapt(config, state.learning_rate, kl), state.learning_rate)
        learned = params, momentum, rate
        before = state.params, state.opt_state[1], state.learning_rate
        # K-FAC's own state is large, and takes nothing in that is not finite.
        (params, momentum, rate), finite = keep_if_finite(learned, before)
        info |= {
            "explained_variance": explained_variance(batch.value, batch.target),
            "kl": kl,
            "learning_rate": learning_rate,
            **{TRUST[region]: x for region, x in kfac.trust.items()},
            "damping": jnp.asarray(config.damping, kl.dtype),
            "condition": kfac.inverse.condition,
        }
        return ACKTRState(params, (kfac, momentum), rate), info | {"finite": finite}

    return OnPolicyAlgorithm(init, make_act(network), update, gamma=config.gamma)


def trust_regions(network: Any, params: PyTree, obs: jax.Array) -> PyTree | None:
    """Which parameters are the actor's and which the critic's, by the network's structure.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        params: The network's; only their shapes matter.
        obs: ``[B, *O]``; only the shape matters.

    Returns:
        Labels shaped like the parameters; None if there is a parameter that both depend on.
    """
    of_actor = reaching(lambda p: network.apply(p, obs)[0], params)
    of_critic = reaching(lambda p: network.apply(p, obs)[1], params)
    if any(jax.tree.leaves(jax.tree.map(lambda a, c: a and c, of_actor, of_critic))):
        return None
    return jax.tree.map(lambda a: "actor" if a else "critic", of_actor)


def make_optimizer(
    config: ACKTRConfig, layers: tuple[Layer, ...], regions: PyTree | None, variance: jax.Array
) -> optax.GradientTransformationExtraArgs:
    """K-FAC within a trust region for each part of the network, then momentum.

    Args:
        config: Hyper-parameters.
        layers: The network's, as :func:`find_layers` gives them.
        regions: :func:`trust_regions`.
        variance: :func:`critic_variance`, ``[]``.
    """
    kl_clip: Any = config.kl_clip
    if regions is not None:
        # The Fisher of N(V, 1) is sigma^2 times that of N(V, sigma^2), and so is the bound on it.
        bound = None if config.critic_kl_clip is None else config.critic_kl_clip * variance
        kl_clip = {"actor": config.kl_clip, "critic": bound}
    kfac = scale_by_kfac(
        layers,
        damping=config.damping,
        damping_kind=config.damping_kind,
        decay=config.decay,
        stats_every=config.stats_every,
        inverse_every=config.inverse_every,
        cold_start=config.cold_start,
        cold_max_norm=config.cold_max_norm,
        kl_clip=kl_clip,
        regions=regions,
    )
    return optax.chain(kfac, optax.ema(config.momentum, debias=False))


def make_batch(
    network: Any, config: ACKTRConfig, params: PyTree, rollout: Rollout
) -> OnPolicyBatch:
    """A rollout as samples with advantages and targets, under the current parameters.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        params: Parameters that collected the rollout.
        rollout: ``[T, N]``.

    Returns:
        Samples ``[T * N]``.
    """
    batch = advantage_batch(network, params, rollout, config.gamma, config.gae_lambda)
    if config.normalize_advantage:
        batch = batch._replace(advantage=standardize(batch.advantage))
    return batch


def critic_variance(config: ACKTRConfig, batch: OnPolicyBatch) -> jax.Array:
    """Of the Gaussian around V, by which the trust region of a separate critic is measured.

    Args:
        config: Hyper-parameters.
        batch: ``[B]``.
    """
    if config.critic_std is not None:
        return jnp.square(jnp.asarray(config.critic_std, batch.value.dtype))
    return jnp.maximum(jnp.mean(jnp.square(batch.target - batch.value)), 1e-8)


def joint_variance(config: ACKTRConfig, shared: bool) -> jax.Array:
    """Of the Gaussian in the Fisher and in the loss, constant: the factors are averages over many
    updates, and one with a much smaller variance would stay in them for long.

    Args:
        config: Hyper-parameters.
        shared: Whether actor and critic have parameters in common. If not, 1, see above.
    """
    std = config.critic_std if shared and config.critic_std is not None else 1.0
    return jnp.square(jnp.asarray(std, jnp.result_type(float)))


def make_output_loss(
    config: ACKTRConfig, shared: bool, *, progress: float | jax.Array = 0.0
) -> Callable[[Any, OnPolicyBatch], tuple[jax.Array, Info]]:
    """``loss((distribution, value), batch) -> (scalar, info)``, the loss of the network's output.

    Args:
        config: Hyper-parameters.
        shared: Whether actor and critic have parameters in common.
        progress: Finished fraction of the run, for the annealed entropy coefficient.
    """
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)

    def loss(output: Any, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        distribution, value = output
        # The value loss over the variance is the Gaussian's negative log-likelihood.
        value_coef = config.value_coef / joint_variance(config, shared)
        return actor_critic_loss(distribution, value, batch, value_coef, entropy_coef)

    return loss


def make_loss(
    network: Any, config: ACKTRConfig, *, progress: float | jax.Array = 0.0
) -> Callable[[PyTree, OnPolicyBatch], tuple[jax.Array, Info]]:
    """``loss(params, batch) -> (scalar, info)``: the same loss of the parameters.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        progress: Finished fraction of the run, for the annealed entropy coefficient.
    """

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        shared = trust_regions(network, params, batch.obs) is None
        of_output = make_output_loss(config, shared, progress=progress)
        return of_output(network.apply(params, batch.obs), batch)

    return loss


def score(
    output: Any,
    variance: jax.Array,
    key: jax.Array,
    action: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    r"""Gradient, with respect to the outputs, of the log-likelihood
    :math:`\sum_b \log \pi(a_b|s_b) + \log N(t_b; V(s_b), \sigma^2)`, at a and t from the model.

    Args:
        output: ``(distribution, value)``, ``[B]``.
        variance: Of the critic's Gaussian, ``[]``.
        key: PRNG key.
        action: ``[B]``, drawn from the distribution; None: drawn here.

    Returns:
        Cotangents of ``(distribution, value)``.
    """
    distribution, value = output
    action_key, sign_key = jax.random.split(key)
    if action is None:
        action = distribution.sample(action_key)
    of_policy = jax.grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)
    sign = jax.random.rademacher(sign_key, value.shape, value.dtype)
    return of_policy, sign / jnp.sqrt(variance)


def adapt(config: ACKTRConfig, learning_rate: jax.Array, kl: jax.Array) -> jax.Array:
    """The next eta_max, after a step of this KL divergence.

    Args:
        config: Hyper-parameters.
        learning_rate: The last one.
        kl: In nats.

    References:
        OpenAI baselines, ``acktr_cont``.
    """
    if config.target_kl is None:
        return learning_rate
    smaller, larger = kl > 2 * config.target_kl, kl < config.target_kl / 2
    factor = jnp.where(smaller, 1 / 1.5, jnp.where(larger, 1.5, 1.0))
    return jnp.clip(learning_rate * factor, 1e-8, 1.0)
