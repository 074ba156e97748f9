r"""Trust region policy optimization, and the natural policy gradient, which is its first half.

Schulman et al. 2015, "Trust Region Policy Optimization" (the paper); Kakade 2001, "A Natural Policy
Gradient"; algorithm 5.22 of document 001. With the surrogate L and the mean KL divergence

.. math::
    L(\theta) = \hat{\mathbb E}\Big[\frac{\pi_\theta(a|s)}{\pi_{\theta_k}(a|s)} \hat A\Big], \quad
    \bar D(\theta) = \hat{\mathbb E}\big[KL(\pi_{\theta_k}(\cdot|s) \| \pi_\theta(\cdot|s))\big]

an update solves "maximize L within :math:`\bar D \le \delta`" approximately:

1. :math:`g = \nabla L(\theta_k)`, and :math:`F = \nabla^2 \bar D(\theta_k)` as products;
2. :math:`x \approx (F + c I)^{-1} g` by conjugate gradient;
3. the full step :math:`\sqrt{2 \delta / x^\top (F + c I) x} \; x`, which solves the problem with L
   linear and :math:`\bar D` quadratic;
4. TRPO: :math:`\alpha^j` times the full step, with the smallest j that improves L and keeps
   :math:`\bar D \le \delta`; none of them does: no step. Natural policy gradient: the full step.
5. The critic is fitted to the rollout's lambda-returns, by minibatches of Adam.

Steps 1 to 4 are :func:`make_policy_step`: pure functions ``(params, batch) -> (params, info)``
without a memory.

Differs from:
    Documents 000, 003 and 004 misprint single formulas of step 3 (no step size; H inverted; j from
    1) and the sign or the arguments of H; F here is the Hessian of KL(old || new), which is the
    Fisher matrix, without a minus. No document has the damping c, without which F is singular (the
    softmax does not see a constant added to its logits). Document 002 fits the critic to one-step
    targets, once; here as in OpenAI baselines and sb3-contrib to lambda-returns, for some epochs.

    sb3-contrib 2.9 constrains KL(new || old) in its line search, starts conjugate gradient from
    small random numbers instead of zero, divides advantages by the sample standard deviation, takes
    a Gaussian's KL as the mean over the action's dimensions (so with d of them it bounds KL / d),
    stops conjugate gradient at an absolute residual, and its critic's loss has no 1/2; otherwise a
    whole update is the same one (``tests/test_trpo.py`` compares them). OpenAI baselines accepts a
    KL of up to 1.5 times the bound; here the bound is one.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl.checks import check_on_policy_batch, check_rollout
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
from purerl.pieces.gradient import all_finite, fit, keep_if_finite, make_optimizer
from purerl.pieces.losses import surrogate_loss, value_loss
from purerl.pieces.schedules import Shape, scheduled
from purerl.policies.acting import apply_network, default_network, init_params, make_act
from purerl.policies.networks import NetworkConfig
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout
from purerl.second_order.conjugate_gradient import CGStop, conjugate_gradient
from purerl.second_order.line_search import LineSearchResult, backtracking_line_search
from purerl.second_order.products import fisher_vector_product

PolicyStep = Callable[[PyTree, OnPolicyBatch], tuple[PyTree, Info]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NPGConfig(Config):
    """Configuration of :func:`npg`."""

    max_kl: Number = number(
        0.01, "(0, inf)", "delta, the wished mean KL(old || new) of an update, in nats."
    )
    damping: Number = number(0.1, "[0, inf)", "c, added to the Fisher matrix's diagonal.")
    cg_iterations: int = count(
        10, "Conjugate gradient makes at most so many Fisher-vector products."
    )
    cg_tolerance: Number = number(
        1e-6,
        "[0, inf)",
        "Conjugate gradient stops at this residual, relative to the gradient's norm.",
    )
    fisher_fraction: float = number(
        1.0, "(0, 1]", "Share of the samples that the Fisher matrix is taken over.", swept=False
    )
    normalize_advantage: bool = switch(
        True, "Bring a rollout's advantages to mean 0 and standard deviation 1."
    )
    gamma: Number = number(0.99, "[0, 1]", "Discount factor.")
    gae_lambda: Number = number(0.95, "[0, 1]", "GAE's lambda.")
    critic_learning_rate: Schedule = number(
        1e-3, "(0, inf)", "Adam's step size for the critic.", schedule=True
    )
    critic_learning_rate_schedule: Shape = choice(
        "constant", Shape, "How it falls to 0 at the run's end."
    )
    critic_epochs: int = count(10, "Passes of the critic over a rollout's samples.")
    critic_minibatches: int = count(8, "Minibatches a pass; must divide the samples of a rollout.")
    adam_eps: Number = number(1e-5, "(0, inf)", "Adam's epsilon.")
    network: NetworkConfig = part(NetworkConfig(), "Shape of the default network.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPOConfig(NPGConfig):
    """Configuration of :func:`trpo`; ``max_kl`` is a bound here."""

    backtrack_factor: Number = number(0.8, "(0, 1)", "alpha, in (0, 1).")
    backtrack_steps: int = count(10, "Number of points tried at most.")


class TRPOState(NamedTuple):
    """What TRPO and the natural policy gradient learn."""

    params: PyTree
    critic_opt_state: Any  # the policy's step has none


def trpo(config: TRPOConfig, action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Trust region policy optimization (the module's steps 1 to 5).

    With separate networks the constraint covers all that happens to the policy. With a shared
    trunk (``NetworkConfig(shared=True)``) it covers the policy's step, trunk included; the critic's
    fit that follows moves the trunk, and the policy with it, without any bound.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm. ``update``'s info is that of :func:`make_policy_step`, and ``entropy`` (of
        the old policy), ``value_loss``, ``explained_variance``. Where ``finite`` is False, by the
        policy's step or the critic's fit, the whole update is refused.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = trpo(TRPOConfig(max_kl=0.02), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> sorted(state.params["params"])
        ['actor', 'critic', 'policy_head', 'value_head']
    """
    return _make_algorithm(config, action_space, network)


def npg(config: NPGConfig, action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Natural policy gradient: TRPO's full step, always taken.

    The step length is that of a quadratic model of the KL, so ``max_kl`` is met about, not kept.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``; by default
            :class:`purerl.policies.networks.ActorCritic`.

    Returns:
        The algorithm, with the info of :func:`trpo`.

    Example:
        >>> import purerl
        >>> algorithm = npg(NPGConfig(), purerl.Discrete(2))
        >>> algorithm.whole_episodes
        False

    References:
        Kakade 2001; the step length normalized as in Rajeswaran et al. 2017, "Towards
        Generalization and Simplicity in Continuous Control", eq. 5.
    """
    if isinstance(config, TRPOConfig):
        raise TypeError("npg got a TRPOConfig, but has no line search; give an NPGConfig.")
    return _make_algorithm(config, action_space, network)


def make_policy_step(network: Any, config: NPGConfig) -> PolicyStep:
    r"""``policy_step(params, batch) -> (params, info)``: the module's steps 1 to 4.

    A pure function without a memory. Of the batch it reads ``obs``, ``action``, ``log_prob`` and
    ``advantage``; the old policy is that of ``params``. Parameters that the policy does not depend
    on (a separate critic's) come back as they were, bit for bit; so do all, where the step is
    refused.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: A :class:`TRPOConfig`, or an :class:`NPGConfig` for the step without line search.

    Returns:
        The step. Its info: ``kl`` (mean KL(old || new), nats), ``expected_improvement`` (of L, by
        its gradient) and ``improvement`` (what came), ``cg_residual`` (relative),
        ``cg_iterations``, ``step_fraction`` (:math:`\alpha^j`), ``accepted``, ``finite`` (gradient
        and conjugate gradient). Of a refused step the first three and the fraction are 0.

    Raises:
        ValueError: If a field of the batch has another shape than one row a sample.

    Example:
        >>> import jax, jax.numpy as jnp, purerl
        >>> network = purerl.ActorCritic(purerl.Discrete(2))
        >>> obs = jax.random.normal(jax.random.key(0), (64, 4))
        >>> params = network.init(jax.random.key(1), obs)
        >>> action = jnp.zeros(64, jnp.int32)
        >>> batch = purerl.OnPolicyBatch(
        ...     obs, action, network.apply(params, obs)[0].log_prob(action), None, obs[:, 0], None
        ... )
        >>> params, info = jax.jit(make_policy_step(network, TRPOConfig()))(params, batch)
        >>> bool(info["accepted"]), bool(info["kl"] <= 0.01)
        (True, True)
    """

    def policy(params: PyTree, obs: jax.Array) -> Any:
        return apply_network(network, params, obs)[0]

    def surrogate(params: PyTree, batch: OnPolicyBatch) -> jax.Array:
        log_prob = policy(params, batch.obs).log_prob(batch.action)
        return -jnp.mean(surrogate_loss(log_prob, batch.log_prob, batch.advantage))

    def policy_step(params: PyTree, batch: OnPolicyBatch) -> tuple[PyTree, Info]:
        check_on_policy_batch(batch)
        objective, gradient = jax.value_and_grad(surrogate)(params, batch)
        fisher = fisher_vector_product(policy, params, batch.obs, fraction=config.fisher_fraction)
        solution = conjugate_gradient(
            fisher,
            gradient,
            tolerance=config.cg_tolerance,
            max_iterations=config.cg_iterations,
            damping=config.damping,
        )
        # (F + c I) x = g - residual: the step's length needs no further product.
        product = optax.tree.sub(gradient, solution.residual)
        step, multiplier = trust_region_step(solution.x, product, config.max_kl)
        objective = jnp.where(multiplier > 0, objective, jnp.inf)  # a step of zero is refused
        old = policy(params, batch.obs)

        def evaluate(params: PyTree) -> tuple[jax.Array, jax.Array]:
            return surrogate(params, batch), jnp.mean(old.kl(policy(params, batch.obs)))

        if isinstance(config, TRPOConfig):
            found = backtracking_line_search(
                evaluate,
                params,
                step,
                objective=objective,
                bound=config.max_kl,
                factor=config.backtrack_factor,
                max_tries=config.backtrack_steps,
            )
        else:
            found = _full_step(evaluate, params, step, objective)
        norm = optax.tree.norm(gradient)
        expected = found.fraction * optax.tree.vdot(gradient, step)
        info = {
            "kl": found.constraint,
            "expected_improvement": jnp.where(found.accepted, expected, 0.0),
            "improvement": found.improvement,
            "cg_residual": jnp.where(norm == 0, 0.0, solution.residual_norm / norm),
            "cg_iterations": solution.iterations,
            "step_fraction": found.fraction,
            "accepted": found.accepted,
            "finite": all_finite(gradient) & (solution.reason != CGStop.NON_FINITE),
        }
        return found.params, info

    return policy_step


def trust_region_step(
    x: PyTree, product: PyTree, max_kl: float | jax.Array
) -> tuple[PyTree, jax.Array]:
    r"""The :math:`\Delta` that maximizes :math:`g^\top \Delta` within
    :math:`\tfrac12 \Delta^\top A \Delta \le \delta`.

    .. math::
        \Delta = \frac{x}{\lambda}, \quad \lambda = \sqrt{\frac{x^\top A x}{2 \delta}}, \quad
        x = A^{-1} g

    Args:
        x: :math:`A^{-1} g`, or an approximation, whose direction is then taken up to the bound.
        product: :math:`A x`.
        max_kl: :math:`\delta`.

    Returns:
        The step, and the constraint's Lagrange multiplier :math:`\lambda`, ``[]``. Where
        :math:`x^\top A x` is not positive, a step of zero.

    Example:
        >>> import jax.numpy as jnp
        >>> step, multiplier = trust_region_step(jnp.array([2.0]), jnp.array([4.0]), 1.0)
        >>> step.tolist(), float(multiplier)
        ([1.0], 2.0)

    References:
        Document 001, eq. 5.33; documents 002 and 003, where it is derived by the KKT conditions.

    Differs from:
        Document 003 has H inverted under the root, in one of three places, and takes the multiplier
        for positive because the constraint is active, from which only >= 0 follows; it is positive
        where g is not 0.
    """
    curvature = optax.tree.vdot(x, product)
    multiplier = jnp.sqrt(jnp.maximum(curvature, 0) / (2 * max_kl))
    scale = jnp.where(multiplier > 0, 1 / multiplier, 0)
    return optax.tree.scale(scale, x), multiplier


def make_batch(
    network: Any,
    config: NPGConfig,
    params: PyTree,
    rollout: Rollout,
) -> OnPolicyBatch:
    """A rollout as samples with advantages and targets, under the parameters that collected it.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
        config: Hyper-parameters.
        params: Old parameters.
        rollout: ``[T, N]``.

    Returns:
        Samples ``[T * N]``.
    """
    batch = advantage_batch(network, params, rollout, config.gamma, config.gae_lambda)
    if config.normalize_advantage:
        batch = batch._replace(advantage=standardize(batch.advantage))
    return batch


def make_critic_loss(
    network: Any,
) -> Callable[[PyTree, OnPolicyBatch], tuple[jax.Array, Info]]:
    """``loss(params, batch) -> (scalar, info)``: the critic's, step 5.

    Args:
        network: Flax module ``obs [B, *O] -> (distribution, value [B])``.
    """

    def loss(params: PyTree, batch: OnPolicyBatch) -> tuple[jax.Array, Info]:
        mean = jnp.mean(value_loss(network.apply(params, batch.obs)[1], batch.target))
        return mean, {"value_loss": mean}

    return loss


def _full_step(evaluate, params: PyTree, step: PyTree, objective: jax.Array) -> LineSearchResult:
    """The natural policy gradient's step as the result of a search that tried one point."""
    point = optax.tree.add(params, step)
    value, kl = evaluate(point)
    accepted = all_finite((step, kl, value, objective))
    return LineSearchResult(
        params=jax.tree.map(lambda new, old: jnp.where(accepted, new, old), point, params),
        accepted=accepted,
        fraction=accepted.astype(kl.dtype),
        improvement=jnp.where(accepted, value - objective, 0.0),
        constraint=jnp.where(accepted, kl, 0.0),
        tries=jnp.ones((), jnp.int32),
    )


def _make_algorithm(
    config: NPGConfig, action_space: ActionSpace, network: Any
) -> OnPolicyAlgorithm:
    network = default_network(action_space, config.network, network)
    policy_step = make_policy_step(network, config)
    critic_optimizer = make_optimizer("adam", eps=config.adam_eps)

    def init(obs: jax.Array, key: jax.Array) -> TRPOState:
        params = init_params(network, action_space, obs, key)
        return TRPOState(params, critic_optimizer.init(params))

    def update(
        state: TRPOState, rollout: Rollout, key: jax.Array, *, progress: float | jax.Array = 0.0
    ) -> tuple[TRPOState, Info]:
        check_rollout(rollout, action_space)
        batch = make_batch(network, config, state.params, rollout)
        params, info = policy_step(state.params, batch)
        rate = scheduled(
            config.critic_learning_rate, config.critic_learning_rate_schedule, progress
        )
        *learned, critic_info = fit(
            make_critic_loss(network),
            params,
            state.critic_opt_state,
            batch,
            key,
            optimizer=critic_optimizer,
            learning_rate=rate,
            num_epochs=config.critic_epochs,
            num_minibatches=config.critic_minibatches,
        )
        new, finite = keep_if_finite(TRPOState(*learned), state, also=info["finite"])
        old, _ = network.apply(state.params, batch.obs)
        more = {
            "entropy": jnp.mean(old.entropy()),
            "explained_variance": explained_variance(batch.value, batch.target),
            "accepted": info["accepted"] & finite,
            "finite": finite,
        }
        return new, info | critic_info | more

    return OnPolicyAlgorithm(init, make_act(network), update, gamma=config.gamma)
