r"""Trust region policy optimization, and the natural policy gradient, which is its first half.

Schulman et al. 2015, "Trust Region Policy Optimization" (the paper); Kakade 2001, "A Natural Policy
Gradient". With the surrogate L (the paper's eq. 14, with advantages) and the mean KL divergence

.. math::
    L(\theta) = \hat{\mathbb E}\Big[\frac{\pi_\theta(a|s)}{\pi_{\theta_k}(a|s)} \hat A\Big], \quad
    \bar D(\theta) = \hat{\mathbb E}\big[KL(\pi_{\theta_k}(\cdot|s) \| \pi_\theta(\cdot|s))\big]

an update solves "maximize L within :math:`\bar D \le \delta`" approximately (appendix C):

1. :math:`g = \nabla L(\theta_k)`;
2. :math:`x \approx (F + c I)^{-1} g`, with :math:`F = \nabla^2 \bar D(\theta_k)` as products, by
   conjugate gradient; or exactly, with F estimated by the scores of the batch's own actions;
3. the full step :math:`\sqrt{2 \delta / x^\top (F + c I) x} \; x`, which solves the problem with L
   linear and :math:`\bar D` quadratic;
4. TRPO: :math:`\alpha^j` times the full step, with the smallest j that improves L and keeps
   :math:`\bar D \le \delta`; none of them does: no step. Natural policy gradient: the full step.
5. The critic is fitted to the rollout's lambda-returns, by minibatches of Adam.

Steps 1 to 4 are :func:`make_policy_step`: a pure function ``(params, batch) -> (params, info)``.

Differs from:
    The paper has no damping c, without which F is singular (the softmax does not see a constant
    added to its logits). Lecture notes in circulation print -H for F, or H inverted under the root
    of step 3; F is the Hessian of KL(old || new) itself, without a minus.

    sb3-contrib 2.9 constrains KL(new || old) in its line search, starts conjugate gradient from
    small random numbers and stops it at an absolute residual, divides advantages by the sample
    standard deviation, takes a Gaussian's KL as the mean over the action's dimensions, and has no
    1/2 in the critic's loss; otherwise a whole update is the same (tests compare them). OpenAI
    baselines accepts a KL of 1.5 times the bound.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from purerl.checks import check_rollout, check_samples
from purerl.config import Config, Number, Schedule, Shape, check_kind, field, scheduled
from purerl.pieces import advantages, gradient, losses
from purerl.pieces.rows import mean
from purerl.policies import acting, networks
from purerl.records import ActionSpace, Info, OnPolicyAlgorithm, OnPolicyBatch, PyTree, Rollout
from purerl.second_order.conjugate_gradient import CGResult, CGStop, conjugate_gradient
from purerl.second_order.line_search import backtracking_line_search
from purerl.second_order.products import Policy, fisher_vector_product
from purerl.second_order.sample_space import policy_scores, solve_by_samples

Solver = Literal["cg", "samples"]


class TRPOState(NamedTuple):
    """State of TRPO and of the natural policy gradient.

    Attributes:
        params: Of the network.
        critic_opt_state: Adam's, of the critic's fit; the policy's step has no state.
    """

    params: PyTree
    critic_opt_state: Any


def make_surrogate(network: Any) -> Callable[[PyTree, OnPolicyBatch], jax.Array]:
    r"""``surrogate(params, batch) -> L``, to be maximized.

    .. math::
        L(\theta) = \frac1B \sum_b \frac{\pi_\theta(a_b|s_b)}{\pi_{\theta_k}(a_b|s_b)} \hat A_b

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.

    References:
        Schulman et al. 2015, eq. 14.
    """

    def surrogate(params: PyTree, batch: OnPolicyBatch) -> jax.Array:
        distribution, _ = acting.apply_network(network, params, batch.obs)
        log_prob = distribution.log_prob(batch.action)
        each = losses.surrogate_loss(log_prob, batch.log_prob, batch.advantage)
        return -mean(each, batch.valid)

    return surrogate


def make_policy_step(
    network: Any, config: "NPGConfig"
) -> Callable[[PyTree, OnPolicyBatch], tuple[PyTree, Info]]:
    r"""``policy_step(params, batch) -> (params, info)``: the module's steps 1 to 4.

    A pure function. Of the batch it reads ``obs``, ``action``, ``log_prob`` and ``advantage``; the
    old policy is that of ``params``. Parameters that the policy does not depend on (a separate
    critic's) come back bit for bit; so do all, where the step is refused.

    Args:
        network: ``obs [B, *O] -> (distribution, value [B])``.
        config: A :class:`TRPOConfig`, or an :class:`NPGConfig` for the step without line search.

    Returns:
        The step. Its info: ``kl`` (mean KL(old || new), nats), ``expected_improvement`` (of L, by
        its gradient) and ``improvement``, ``cg_residual`` (relative), ``cg_iterations`` (by
        samples 0), ``step_fraction`` (:math:`\alpha^j`), ``accepted``, ``finite`` (gradient and
        solution). Of a refused step the first three and the fraction are 0.

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
    surrogate = make_surrogate(network)
    search: dict[str, Any] = dict(bound=jnp.inf, least_improvement=-jnp.inf, max_tries=1)
    if isinstance(config, TRPOConfig):
        search = dict(
            bound=config.max_kl, factor=config.backtrack_factor, max_tries=config.backtrack_steps
        )

    def policy(params: PyTree, obs: jax.Array) -> Any:
        return acting.apply_network(network, params, obs)[0]

    def policy_step(params: PyTree, batch: OnPolicyBatch) -> tuple[PyTree, Info]:
        check_samples(batch)
        batch = jax.tree.map(jnp.asarray, batch)

        # 1. The gradient.
        objective, g = jax.value_and_grad(surrogate)(params, batch)
        g = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), g)

        # 2. The direction.
        solution = _solve(policy, config, params, batch, g)

        # 3. The full step. (F + c I) x = g - residual: its length needs no further product.
        product = optax.tree.sub(g, solution.residual)
        step, multiplier = trust_region_step(solution.x, product, config.max_kl)

        # 4. The line search.
        old = policy(params, batch.obs)

        def evaluate(params: PyTree) -> tuple[jax.Array, jax.Array]:
            return surrogate(params, batch), mean(old.kl(policy(params, batch.obs)), batch.valid)

        # A step of zero is refused: nothing exceeds inf, nor, without a line search, inf - inf.
        objective = jnp.where(multiplier > 0, objective, jnp.inf)
        found = backtracking_line_search(evaluate, params, step, objective=objective, **search)

        norm = optax.tree.norm(g)
        expected = found.fraction * optax.tree.vdot(g, step)
        return found.params, {
            "kl": found.constraint,
            "expected_improvement": jnp.where(found.accepted, expected, 0.0),
            "improvement": found.improvement,
            "cg_residual": jnp.where(norm == 0, 0.0, solution.residual_norm / norm),
            "cg_iterations": solution.iterations,
            "step_fraction": found.fraction,
            "accepted": found.accepted,
            "finite": gradient.all_finite(g) & (solution.reason != CGStop.NON_FINITE),
        }

    return policy_step


def _solve(
    policy: Policy, config: "NPGConfig", params: PyTree, batch: OnPolicyBatch, g: PyTree
) -> CGResult:
    """(F + c I)^-1 g: by products with F, or by the scores of the batch's actions."""
    if config.solver == "samples":
        samples = batch.obs, batch.action, batch.valid, config.fisher_fraction
        return solve_by_samples(policy_scores(policy, params, *samples), g, config.damping)
    fisher = fisher_vector_product(
        policy, params, batch.obs, fraction=config.fisher_fraction, valid=batch.valid
    )
    return conjugate_gradient(
        fisher,
        g,
        tolerance=config.cg_tolerance,
        max_iterations=config.cg_iterations,
        damping=config.damping,
    )


def trust_region_step(x: PyTree, product: PyTree, max_kl: Number) -> tuple[PyTree, jax.Array]:
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
        The step (zero where :math:`x^\top A x` is not positive), and the constraint's Lagrange
        multiplier :math:`\lambda`, ``[]``.

    Example:
        >>> import jax.numpy as jnp
        >>> step, multiplier = trust_region_step(jnp.array([2.0]), jnp.array([4.0]), 1.0)
        >>> step.tolist(), float(multiplier)
        ([1.0], 2.0)

    References:
        Schulman et al. 2015, appendix C, by the Karush-Kuhn-Tucker conditions of the problem.
    """
    curvature = optax.tree.vdot(x, product)
    multiplier = jnp.sqrt(jnp.maximum(curvature, 0) / (2 * max_kl))
    scale = jnp.where(multiplier > 0, 1 / multiplier, 0)
    return optax.tree.scale(scale, x), multiplier


def _build(config: "NPGConfig", action_space: ActionSpace, network: Any) -> OnPolicyAlgorithm:
    network = acting.default_network(action_space, config.network, network)
    policy_step = make_policy_step(network, config)
    critic_loss = losses.make_critic_loss(network)
    optimizer = gradient.make_optimizer("adam", eps=config.adam_eps)

    def init(obs: jax.Array, key: jax.Array) -> TRPOState:
        params = acting.init_params(network, action_space, obs, key)
        return TRPOState(params, optimizer.init(params))

    def update(
        state: TRPOState, rollout: Rollout, key: jax.Array, *, progress: Number = 0.0
    ) -> tuple[TRPOState, Info]:
        check_rollout(rollout, action_space)
        settings = config.gamma, config.gae_lambda, config.normalize_advantage
        batch = advantages.on_policy_batch(network, state.params, rollout, *settings)
        # Steps 1 to 4.
        params, info = policy_step(state.params, batch)
        # Step 5.
        shape = config.critic_learning_rate_schedule
        *learned, of_critic = gradient.fit(
            critic_loss,
            params,
            state.critic_opt_state,
            batch,
            key,
            optimizer=optimizer,
            learning_rate=scheduled(config.critic_learning_rate, shape, progress),
            num_epochs=config.critic_epochs,
            num_minibatches=config.critic_minibatches,
        )
        new, finite = gradient.keep_if_finite(TRPOState(*learned), state, also=info["finite"])
        info |= of_critic
        entropy = acting.apply_network(network, state.params, batch.obs)[0].entropy()
        info["entropy"] = mean(entropy, batch.valid)
        explained = advantages.explained_variance(batch.value, batch.target, batch.valid)
        info["explained_variance"] = explained
        return new, info | {"accepted": info["accepted"] & finite, "finite": finite}

    act, ahead = acting.make_act(network), acting.make_ahead(network)
    memory = acting.make_init_memory(network)
    return OnPolicyAlgorithm(init, act, update, gamma=config.gamma, ahead=ahead, init_memory=memory)


def trpo(config: "TRPOConfig", action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Trust region policy optimization (the module's steps 1 to 5).

    With separate networks the constraint covers all that happens to the policy. With a shared
    trunk the critic's fit that follows moves the trunk, and the policy with it, without any bound.

    With a memory gradient and Fisher matrix go through the unrolled network. The bound on the KL
    divergence holds for the rollout's sequences, the old memories at their beginnings given; what
    the new parameters would have remembered there is another thing, without a bound.

    Args:
        config: Hyper-parameters.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; by default an ``ActorCritic``.

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
    check_kind("trpo", config, TRPOConfig)
    return _build(config, action_space, network)


def npg(config: "NPGConfig", action_space: ActionSpace, network: Any = None) -> OnPolicyAlgorithm:
    """Natural policy gradient: TRPO's full step, always taken.

    The step length is that of a quadratic model of the KL, so ``max_kl`` is met about, not kept.

    Args:
        config: Hyper-parameters; no :class:`TRPOConfig`.
        action_space: Of the environment.
        network: ``obs [B, *O] -> (distribution, value [B])``; None: :class:`purerl.ActorCritic`.

    Returns:
        The algorithm, with the info of :func:`trpo`.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = npg(NPGConfig(max_kl=0.005), env.action_space)
        >>> state = algorithm.init(jax.numpy.zeros((8, 4)), jax.random.key(0))
        >>> algorithm.act(state, jax.numpy.zeros((8, 4)), jax.random.key(1))[0].shape
        (8,)

    References:
        Kakade 2001; Rajeswaran et al. 2017, "Towards Generalization and Simplicity in Continuous
        Control", eq. 5, for the length of the step.
    """
    check_kind("npg", config, NPGConfig)
    if isinstance(config, TRPOConfig):
        raise TypeError("npg got a TRPOConfig, but has no line search; give an NPGConfig.")
    return _build(config, action_space, network)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NPGConfig(Config):
    """Configuration of :func:`npg`."""

    max_kl: Number = field(0.01, "delta, wanted mean KL(old || new) in nats.", "(0, inf)")
    damping: Number = field(0.1, "c, added to the Fisher matrix's diagonal.", "[0, inf)")
    solver: Solver = field("cg", "Conjugate gradient with F, or a solve with the samples' scores.")
    cg_iterations: int = field(10, "Largest number of Fisher-vector products in a step.")
    cg_tolerance: Number = field(
        1e-6, "Residual at which conjugate gradient stops, relative to the gradient.", "[0, inf)"
    )
    fisher_fraction: float = field(
        1.0, "Share of the samples that the Fisher matrix is taken over.", "(0, 1]"
    )
    normalize_advantage: bool = field(True, "Standardize the advantages of a rollout.")
    gamma: Number = field(0.99, "Discount factor.", "[0, 1]")
    gae_lambda: Number = field(0.95, "GAE's lambda.", "[0, 1]")
    critic_learning_rate: Schedule = field(1e-3, "Adam's step size.", "(0, inf)")
    critic_learning_rate_schedule: Shape = field("constant", "How it falls to 0.")
    critic_epochs: int = field(10, "Passes of the critic over a rollout's samples.")
    critic_minibatches: int = field(
        8, "Minibatches a pass; must divide a rollout's samples; with a memory, its environments."
    )
    adam_eps: Number = field(1e-5, "Adam's epsilon.", "(0, inf)")
    network: networks.NetworkConfig = field(networks.NetworkConfig(), "Of the default network.")

    def check(self) -> None:
        """Refuses to solve by samples without damping."""
        damped = isinstance(self.damping, jax.core.Tracer) or self.damping > 0
        if self.solver == "samples" and not damped:
            raise ValueError(
                f'{type(self).__name__}: solver="samples" needs a damping above 0, got '
                f"{self.damping}: the samples' scores alone leave directions without curvature."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TRPOConfig(NPGConfig):
    """Configuration of :func:`trpo`; ``max_kl`` is a bound here."""

    backtrack_factor: Number = field(0.8, "alpha, by which a refused step shrinks.", "(0, 1)")
    backtrack_steps: int = field(10, "Largest number of points that the line search tries.")
