r"""ACKTR: actor-critic with a Kronecker-factored trust region.

Wu et al. 2017, "Scalable trust-region method for deep reinforcement learning using
Kronecker-factored approximation". The loss is A2C's; an update of a rollout is

1. the gradient :math:`\nabla_\theta L`;
2. the Kronecker factors of the Fisher matrix :math:`\hat F`, into moving averages (section 3.1);
3. the direction :math:`\Delta = \hat F^{-1} \nabla_\theta L`, by an inverse of some updates' age;
4. a step within the trust region (section 3.3), or a moving average of such steps:

.. math::
    \theta \leftarrow \theta - \eta \, \Delta, \qquad
    \eta = \min\left(\eta_{max}, \sqrt{\frac{\delta}{\Delta^T \hat F \Delta}}\right)

F is the Fisher matrix of the policy and of the critic, taken as a Gaussian around V(s), of actions
and returns from the model: the rollout's actions are, returns are drawn here.

Actor and critic with nothing in common have a trust region each. The Gaussian's sigma then cancels
out of the critic's direction and only sets how far it may go: the size of the rollout's errors, so
that the critic's steps do not depend on the unit of the rewards. With a shared trunk sigma (1, as
in the paper) weighs the two against each other, in one joint Fisher matrix and trust region.

Differs from:
    The constants are those of OpenAI baselines but for its momentum, 0.9: without, learning is
    faster on CartPole, Acrobot and Pendulum (benchmarks/kl_clip.py). Drawn returns are one standard
    deviation off, with a random sign, instead of normal: the Fisher matrix is the same, its
    estimate has less noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl.checks import check_rollout
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import advantages, gradient, losses
from purerl.pieces.rows import mean
from purerl.policies import acting, networks
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout
from purerl.second_order import kfac
from purerl.threefry import as_others_draw

FisherActions = Literal["taken", "sampled"]
TRUST = {kfac.ALL: "trust", "actor": "trust", "critic": "critic_trust"}  # in the info, by region


class ACKTRState(NamedTuple):
    """State of ACKTR.

    Attributes:
        params: Of the network.
        opt_state: K-FAC's state, and the momentum's.
        learning_rate: ``[]``, eta_max, as ``target_kl`` adapts it.
    """

    params: PyTree
    opt_state: Any
    learning_rate: jax.Array


def make_loss(network: Any, config: "ACKTRConfig", *, progress: Number = 0.0) -> losses.Loss:
    r"""``loss(params, batch) -> (scalar, info)``; :math:`\sigma` counts with a shared trunk only.

    .. math::
        \frac1B \sum_b \Big[-\log \pi(a_b|s_b) \hat A_b
        + \frac{c_1}{2 \sigma^2} (V(s_b) - \hat G_b)^2 - c_2 H(\pi(\cdot|s_b))\Big]

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        progress: Finished fraction of the run, for the entropy coefficient's schedule.
    """

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        shared = _trust_regions(network, params, batch.obs) == kfac.ALL
        return _loss(config, network.apply(params, batch.obs), batch, shared, progress)

    return loss


def _loss(
    config: "ACKTRConfig", output: Any, batch: OnPolicyBatch, shared: bool, progress: Number
) -> tuple[jax.Array, Info]:
    """The same loss as a function of the network's output ``(distribution, value)``."""
    entropy_coef = scheduled(config.entropy_coef, config.entropy_coef_schedule, progress)
    value_coef = config.value_coef / _joint_variance(config, shared)
    distribution, value = output
    return losses.actor_critic_loss(distribution, value, batch, value_coef, entropy_coef)


def score(
    output: Any,
    variance: jax.Array,
    key: jax.Array,
    action: jax.Array | None = None,
    valid: jax.Array | None = None,
) -> tuple[Any, jax.Array]:
    r"""Gradient, with respect to the outputs, of the log-likelihood
    :math:`\sum_b \log \pi(a_b|s_b) + \log N(t_b; V(s_b), \sigma^2)`, at a and t from the model.

    Args:
        output: ``(distribution, value)``, ``[B]``.
        variance: Of the critic's Gaussian, ``[]``.
        key: PRNG key.
        action: ``[B]``, drawn from the distribution; None: drawn here.
        valid: Which samples count, bool ``[B]``; None: all.

    Returns:
        Cotangents of ``(distribution, value)``.
    """
    distribution, value = output
    action_key, sign_key = jax.random.split(key)
    if action is None:
        action = distribution.sample(as_others_draw(distribution, action_key))
    of_policy = jax.grad(lambda d: jnp.sum(d.log_prob(action), where=valid))(distribution)
    sign = jax.random.rademacher(sign_key, value.shape, value.dtype)
    sign = sign if valid is None else sign * valid
    return of_policy, (sign / jnp.sqrt(variance)).astype(value.dtype)


def _joint_variance(config: "ACKTRConfig", shared: bool) -> jax.Array:
    """sigma^2 in Fisher matrix and loss; 1 without a shared trunk, where it cancels out."""
    # Constant: a batch of a much smaller variance would stay long in the factors' averages.
    std = config.critic_std if shared and config.critic_std is not None else 1.0
    return jnp.square(jnp.asarray(std, jnp.result_type(float)))


def _critic_bound(config: "ACKTRConfig", batch: OnPolicyBatch) -> Number | None:
    """KL clip of a separate critic, times sigma^2, since its Fisher matrix is that of N(V, 1)."""
    if config.critic_kl_clip is None:
        return None
    if config.critic_std is not None:
        return config.critic_kl_clip * jnp.square(config.critic_std)
    error = mean(jnp.square(batch.target - batch.value), batch.valid)
    return config.critic_kl_clip * jnp.maximum(error, 1e-8)


def _trust_regions(network: Any, params: PyTree, obs: jax.Array) -> PyTree:
    """``actor`` or ``critic`` for each parameter; ``all`` if both outputs depend on one of them."""
    apply = jax.jit(lambda p: network.apply(p, obs))  # traced once for both
    of_actor = kfac.reaching(lambda p: apply(p)[0], params)
    of_critic = kfac.reaching(lambda p: apply(p)[1], params)
    if any(jax.tree.leaves(jax.tree.map(lambda a, c: a and c, of_actor, of_critic))):
        return kfac.ALL
    return jax.tree.map(lambda a: "actor" if a else "critic", of_actor)


def _optimizer(
    config: "ACKTRConfig",
    layers: Sequence[kfac.Layer],
    regions: PyTree,
    bound: Number | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC, with ``bound`` as the KL clip of a separate critic, followed by momentum."""
    kl_clip = {kfac.ALL: config.kl_clip, "actor": config.kl_clip, "critic": bound}
    natural = kfac.scale_by_kfac(
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
    return optax.chain(natural, optax.ema(config.momentum, debias=False))


def _adapt(config: "ACKTRConfig", learning_rate: jax.Array, kl: jax.Array) -> jax.Array:
    """The next eta_max, after a step of this KL divergence; OpenAI baselines, ``acktr_cont``."""
    if config.target_kl is None:
        return learning_rate
    smaller, larger = kl > 2 * config.target_kl, kl < config.target_kl / 2
    factor = jnp.where(smaller, 1 / 1.5, jnp.where(larger, 1.5, 1.0))
    return jnp.clip(learning_rate * factor, 1e-8, 1.0).astype(learning_rate.dtype)


def acktr(
    config: "ACKTRConfig", action_space: ActionSpace, network: Any = None
) -> OnPolicyAlgorithm:
    """Actor-critic with a Kronecker-factored trust region.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``, whose weights are of matrix products
            or convolutions; by default :class:`purerl.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info: ``loss``, ``policy_loss``, ``value_loss``, ``entropy``,
        ``explained_variance``, ``kl`` (old || new), ``learning_rate`` (eta_max at this update),
        ``trust`` and, without a shared trunk, ``critic_trust`` (what the KL clip multiplied the
        last step by), ``damping``, ``condition`` (of the worst damped block), ``finite``. ``init``
        raises ValueError if the network has a weight that K-FAC cannot factor.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = acktr(ACKTRConfig(), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> [factor.shape for factor in state.opt_state[0].factors.a[:3]]
        [(5, 5), (65, 65), (5, 5)]
    """
    check_kind("acktr", config, ACKTRConfig)
    acting.check_memoryless("acktr", config.network, network)
    network = acting.default_network(action_space, config.network, network)

    def init(obs: jax.Array, key: jax.Array) -> ACKTRState:
        params = acting.init_params(network, action_space, obs, key)
        layers = kfac.find_layers(network.apply, params, obs)
        optimizer = _optimizer(config, layers, _trust_regions(network, params, obs))
        rate = scheduled(config.learning_rate, "constant", 0.0)
        return ACKTRState(params, optimizer.init(params), jnp.asarray(rate, jnp.result_type(float)))

    def update(
        state: ACKTRState, rollout: Rollout, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[ACKTRState, Info]:
        check_rollout(rollout, action_space)
        settings = config.gamma, config.gae_lambda, config.normalize_advantage
        batch = advantages.on_policy_batch(network, state.params, rollout, *settings)
        layers = kfac.find_layers(network.apply, state.params, batch.obs)
        regions = _trust_regions(network, state.params, batch.obs)
        shared = regions == kfac.ALL

        # 1. The gradient.
        tapped = kfac.tap(network.apply, layers, state.params, batch.obs)
        slope_of = jax.grad(_loss, argnums=1, has_aux=True)
        slope, info = slope_of(config, tapped.output, batch, shared, progress)
        grads, _ = tapped.pullback(slope)

        # 2. The factors, where they are due.
        def some_steps(x: jax.Array) -> jax.Array:
            by_step = x.reshape(*rollout.reward.shape, *x.shape[1:])
            return by_step[:: config.stats_stride].reshape(-1, *x.shape[1:])

        some_obs, some_valid = jax.tree.map(some_steps, (batch.obs, batch.valid))

        def statistics(basis: kfac.Inverse | None = None) -> kfac.Factors:
            some = tapped
            if config.stats_stride > 1:
                some = kfac.tap(network.apply, layers, state.params, some_obs)
            taken = some_steps(batch.action) if config.fisher_actions == "taken" else None
            variance = _joint_variance(config, shared)
            of_output = score(some.output, variance, key, taken, some_valid)
            return kfac.fisher_factors(layers, some, of_output, some_valid, basis=basis)

        # 3. and 4. The direction, and the step within the trust regions.
        rate: Number = state.learning_rate
        if config.target_kl is None:
            rate = scheduled(config.learning_rate, config.learning_rate_schedule, progress)
        optimizer = _optimizer(config, layers, regions, _critic_bound(config, batch))
        params, (natural, momentum) = gradient.gradient_step(
            optimizer, grads, state.opt_state, state.params, rate, statistics=statistics
        )
        old = jax.tree.map(some_steps, tapped.output[0])
        kl = mean(old.kl(network.apply(params, some_obs)[0]), some_valid)
        warm = natural.clock.iteration > config.cold_start
        eta = jnp.where(warm, _adapt(config, state.learning_rate, kl), state.learning_rate)

        # K-FAC's own state is large, and takes nothing in that is not finite.
        before = state.params, state.opt_state[1], state.learning_rate
        (params, momentum, eta), finite = gradient.keep_if_finite((params, momentum, eta), before)
        explained = advantages.explained_variance(batch.value, batch.target, batch.valid)
        return ACKTRState(params, (natural, momentum), eta), {
            **info,
            **{TRUST[region]: x for region, x in natural.trust.items()},
            "explained_variance": explained,
            "kl": kl,
            "learning_rate": jnp.asarray(rate, eta.dtype),
            "damping": jnp.asarray(config.damping, eta.dtype),
            "condition": natural.inverse.condition,
            "finite": finite,
        }

    act, ahead = acting.make_act(network), acting.make_ahead(network)
    return OnPolicyAlgorithm(init, act, update, gamma=config.gamma, ahead=ahead)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ACKTRConfig(Config):
    """Configuration of :func:`acktr`.

    After a step of more than twice ``target_kl`` eta_max is divided by 1.5, after less than half of
    it multiplied, within [1e-8, 1]; this needs a ``kl_clip`` of more than four times it and a
    constant learning rate. Without a ``critic_std`` sigma is the root of the rollout's mean squared
    error, or with a shared trunk 1.
    """

    learning_rate: Schedule = field(0.25, "eta_max.", "(0, inf)")
    learning_rate_schedule: Shape = field("linear", "How it falls to 0 at the run's end.")
    target_kl: Number | None = field(None, "KL of a step that eta_max adapts to.", "(0, inf)")
    momentum: Number = field(0.0, "Weight of the past in the moving average of steps.", "[0, 1)")
    kl_clip: Number = field(0.001, "Twice the largest predicted KL of a step, in nats.", "(0, inf)")
    critic_kl_clip: Number | None = field(0.01, "Of a separate critic; None: none.", "(0, inf)")
    critic_std: Number | None = field(None, "sigma, in units of the return.", "(0, inf)")
    damping: Number = field(0.01, "epsilon, added to the Fisher matrix's diagonal.", "(0, inf)")
    damping_kind: kfac.DampingKind = field(
        "factored",
        "eigenbasis: to F; factored: to each factor, as the paper; ekfac: to a measured diagonal.",
    )
    decay: Number = field(0.99, "Decay of the factors' moving averages.", "[0, 1)")
    stats_every: int = field(1, "Updates between two measurements of the factors.")
    stats_stride: int = field(4, "Every so many-th step measures the factors, and the info's KL.")
    inverse_every: int = field(10, "Updates between two inversions of the factors.")
    cold_start: int = field(10, "First updates, which follow the plain gradient.", "[0, inf)")
    cold_max_norm: Number = field(0.5, "Largest gradient norm of the cold start.", "(0, inf)")
    fisher_actions: FisherActions = field("taken", "By the rollout, or drawn anew.")
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    gae_lambda: Number = field(1.0, "GAE's lambda; 1, as in the paper: n-step returns.", "[0, 1]")
    normalize_advantage: bool = field(False, "Standardize the advantages of a rollout.")
    value_coef: Number = field(0.5, "c1, weight of the value loss.", "[0, inf)")
    entropy_coef: Schedule = field(0.0, "c2, weight of the entropy.", "[0, inf)")
    entropy_coef_schedule: Shape = field("constant", "How it falls to 0 at the run's end.")
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")

    def check(self) -> None:
        """Refuses a ``target_kl`` beyond ``kl_clip``, or with an annealed learning rate."""
        if self.target_kl is None:
            return
        if self.learning_rate_schedule != "constant" or callable(self.learning_rate):
            raise ValueError(
                "ACKTRConfig: target_kl adapts the learning rate; set "
                'learning_rate_schedule="constant" and a number for learning_rate.'
            )
        least = 4 * self.target_kl
        if not isinstance(self.kl_clip + least, jax.core.Tracer) and self.kl_clip <= least:
            raise ValueError(
                f"ACKTRConfig: kl_clip={self.kl_clip} predicts no KL above twice "
                f"target_kl={self.target_kl}, so eta_max would only grow; set it above {least}."
            )
