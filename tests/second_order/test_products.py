"""Hessian- and Fisher-vector products against dense matrices, finite differences and sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import purerl
from purerl import Box, Discrete, NetworkConfig
from purerl.second_order.products import subsample

SPACES = {"categorical": Discrete(3), "gaussian": Box((2,))}
EACH_SPACE = pytest.mark.parametrize("space", SPACES)


def problem(space, samples=7, seed=0, shared=False):
    """A small network away from its initialization, as ``(policy, params, obs)``."""
    config = NetworkConfig(hidden_sizes=(4,), shared=shared)
    network = purerl.ActorCritic(SPACES[space], config)
    obs = jax.random.normal(jax.random.key(seed), (samples, 3))
    params = network.init(jax.random.key(seed + 1), obs)
    flat, unravel = ravel_pytree(params)
    params = unravel(flat + 0.5 * jax.random.normal(jax.random.key(seed + 2), flat.shape))
    return lambda params, obs: network.apply(params, obs)[0], params, obs


def dense(product, params):
    """The matrix of a product."""
    flat, unravel = ravel_pytree(params)
    columns = [ravel_pytree(product(unravel(e)))[0] for e in np.eye(flat.size)]
    return np.stack(columns, axis=1)


def mean_kl(policy, params, obs, reverse=False):
    """KL(old || new) as a function of the flat new parameters."""
    unravel, old = ravel_pytree(params)[1], policy(params, obs)

    def of_new(flat):
        new = policy(unravel(flat), obs)
        return jnp.mean(new.kl(old) if reverse else old.kl(new))

    return of_new


def random_like(params, seed=5):
    flat, unravel = ravel_pytree(params)
    return unravel(jnp.array(np.random.default_rng(seed).normal(size=flat.size)))


def rosenbrock(x):
    return 100 * (x["b"] - x["a"] ** 2).sum() ** 2 + jnp.sum((1 - x["a"]) ** 4)


def differentiate(f, x, v, h):
    """Central differences of order 8."""
    weights = {1: 4 / 5, 2: -1 / 5, 3: 4 / 105, 4: -1 / 280}
    return sum(w * (f(x + k * h * v) - f(x - k * h * v)) for k, w in weights.items()) / h


def test_hvp_is_the_hessian_times_v(x64):
    x = {"a": jnp.array([0.3, -1.2]), "b": jnp.array([0.7, 0.1])}
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-0.5, 3.0])}
    flat, unravel = ravel_pytree(x)
    hessian = jax.hessian(lambda flat: rosenbrock(unravel(flat)))(flat)
    got = ravel_pytree(purerl.hvp(rosenbrock, x, v))[0]
    np.testing.assert_allclose(got, hessian @ ravel_pytree(v)[0], rtol=1e-12)


def test_hvp_is_the_difference_of_gradients(x64):
    x = {"a": jnp.array([0.3, -1.2]), "b": jnp.array([0.7, 0.1])}
    v = {"a": jnp.array([1.0, 2.0]), "b": jnp.array([-0.5, 3.0])}
    flat, unravel = ravel_pytree(x)
    gradient = jax.grad(lambda flat: rosenbrock(unravel(flat)))
    difference = differentiate(gradient, flat, ravel_pytree(v)[0], 1e-2)
    got = ravel_pytree(purerl.hvp(rosenbrock, x, v))[0]
    np.testing.assert_allclose(got, difference, rtol=1e-10)


@EACH_SPACE
def test_fisher_is_the_hessian_of_the_kl_in_both_directions(space, x64):
    policy, params, obs = problem(space)
    fisher = dense(purerl.fisher_vector_product(policy, params, obs), params)
    flat = ravel_pytree(params)[0]
    for reverse in (False, True):
        hessian = jax.hessian(mean_kl(policy, params, obs, reverse))(flat)
        np.testing.assert_allclose(fisher, hessian, atol=1e-13)
    assert np.abs(fisher).max() > 0.1


@EACH_SPACE
def test_fisher_is_hvp_of_the_mean_kl(space, x64):
    policy, params, obs = problem(space)
    flat, unravel = ravel_pytree(params)
    v = random_like(params)
    wanted = purerl.hvp(mean_kl(policy, params, obs), flat, ravel_pytree(v)[0])
    got = purerl.fisher_vector_product(policy, params, obs)(v)
    np.testing.assert_allclose(ravel_pytree(got)[0], wanted, atol=1e-13)
    assert jax.tree.structure(got) == jax.tree.structure(unravel(flat))


@EACH_SPACE
def test_fisher_is_the_difference_of_the_kl_gradients(space, x64):
    policy, params, obs = problem(space)
    flat, v = ravel_pytree(params)[0], ravel_pytree(random_like(params))[0]
    gradient = jax.grad(mean_kl(policy, params, obs))
    np.testing.assert_allclose(gradient(flat), 0, atol=1e-15)
    difference = differentiate(gradient, flat, v, 5e-3)
    product = purerl.fisher_vector_product(policy, params, obs)
    got = ravel_pytree(product(random_like(params)))[0]
    np.testing.assert_allclose(got, difference, atol=1e-10)


def test_fisher_is_the_expected_outer_product_of_scores(x64):
    """Summed over all actions under the policy; with a plus sign."""
    policy, params, obs = problem("categorical")
    flat, unravel = ravel_pytree(params)
    wanted = 0.0
    for o in obs:
        probabilities = jax.nn.softmax(policy(params, o[None]).logits)[0]
        for action, p in enumerate(probabilities):

            def log_prob(q, o=o, action=action):
                return policy(unravel(q), o[None]).log_probs()[0, action]

            score = jax.grad(log_prob)(flat)
            wanted += p * np.outer(score, score) / len(obs)
    fisher = dense(purerl.fisher_vector_product(policy, params, obs), params)
    np.testing.assert_allclose(fisher, wanted, atol=1e-14)


def test_fisher_of_a_gaussian_in_closed_form(x64):
    """J^T diag(1 / sigma^2, 2) J."""
    policy, params, obs = problem("gaussian")
    flat, unravel = ravel_pytree(params)
    mean = jax.jacobian(lambda q: policy(unravel(q), obs).mean)(flat)
    log_std = jax.jacobian(lambda q: policy(unravel(q), obs).log_std)(flat)
    precision = np.exp(-2 * policy(params, obs).log_std)
    wanted = np.einsum("bdi,bd,bdj->ij", mean, precision, mean)
    wanted = (wanted + 2 * np.einsum("bdi,bdj->ij", log_std, log_std)) / len(obs)
    fisher = dense(purerl.fisher_vector_product(policy, params, obs), params)
    np.testing.assert_allclose(fisher, wanted, atol=1e-13)


@EACH_SPACE
def test_fisher_is_symmetric_and_not_negative(space, x64):
    policy, params, obs = problem(space)
    fisher = dense(purerl.fisher_vector_product(policy, params, obs), params)
    np.testing.assert_allclose(fisher, fisher.T, atol=1e-15)
    assert np.linalg.eigvalsh(fisher).min() > -1e-14


def test_softmax_makes_the_fisher_singular(x64):
    """A constant added to all logits changes nothing: without damping there is no inverse."""
    policy, params, obs = problem("categorical")
    zero = jax.tree.map(jnp.zeros_like, params)
    v = {"params": zero["params"] | {"policy_head": {"Dense_0": {"bias": jnp.ones(3)}}}}
    v["params"]["policy_head"]["Dense_0"]["kernel"] = jnp.zeros((4, 3))
    product = purerl.fisher_vector_product(policy, params, obs)(v)
    np.testing.assert_allclose(ravel_pytree(product)[0], 0, atol=1e-15)


@EACH_SPACE
def test_a_critic_of_its_own_is_not_in_the_fisher(space):
    policy, params, obs = problem(space)
    product = purerl.fisher_vector_product(policy, params, obs)(random_like(params))["params"]
    for part in ("critic", "value_head"):
        assert not np.any(ravel_pytree(product[part])[0])
    assert np.any(ravel_pytree(product["actor"])[0])


@EACH_SPACE
def test_fisher_in_float32(space):
    policy, params, obs = problem(space)
    flat = ravel_pytree(params)[0]
    hessian = jax.hessian(mean_kl(policy, params, obs))(flat)
    fisher = dense(purerl.fisher_vector_product(policy, params, obs), params)
    np.testing.assert_allclose(fisher, hessian, atol=1e-5)


@pytest.mark.parametrize("what", ["hvp", "product"])
def test_sixteen_at_once(what, x64):
    """Equal to sixteen alone; one of NaN touches none of the others."""
    policy = problem("categorical")[0]
    cases = [problem("categorical", seed=seed)[1:] for seed in range(16)]
    cases[4] = jax.tree.map(lambda x: x * jnp.nan, cases[4])

    def one(params, obs):
        if what == "hvp":
            loss = lambda p: jnp.mean(policy(p, obs).log_probs()[:, 0])  # noqa: E731
            return purerl.hvp(loss, params, random_like(params))
        return purerl.fisher_vector_product(policy, params, obs)(random_like(params))

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *cases)
    many, alone = jax.jit(jax.vmap(one))(*stacked), jax.jit(one)
    for i, case in enumerate(cases):
        got = ravel_pytree(jax.tree.map(lambda x, i=i: x[i], many))[0]
        if i != 4:
            np.testing.assert_allclose(got, ravel_pytree(alone(*case))[0], atol=1e-13)
        assert np.isfinite(got).all() == (i != 4)


class Masked(NamedTuple):
    """A distribution of a user's own, with a leaf that has no derivative."""

    logits: jax.Array
    allowed: jax.Array  # bool

    def kl(self, other):
        p, q = (purerl.Categorical(jnp.where(d.allowed, d.logits, -jnp.inf)) for d in (self, other))
        return p.kl(q)


def test_distribution_with_a_boolean_leaf(x64):
    """And a forbidden action, whose logit is -inf: finite all the same."""
    policy, params, obs = problem("categorical")
    allowed = jnp.ones((len(obs), 3), bool).at[:, 2].set(False)
    masked = lambda p, o: Masked(policy(p, o).logits, allowed[: len(o)])  # noqa: E731
    two = lambda p, o: purerl.Categorical(policy(p, o).logits[:, :2])  # noqa: E731
    got, wanted = (
        dense(purerl.fisher_vector_product(f, params, obs), params) for f in (masked, two)
    )
    np.testing.assert_allclose(got, wanted, atol=1e-15)


def test_the_network_is_linearized_once_for_all_products():
    """No tanh within the loop that multiplies."""
    policy, params, obs = problem("categorical")

    def solve(params, obs):
        product = purerl.fisher_vector_product(policy, params, obs)
        return jax.lax.fori_loop(0, 3, lambda i, v: product(v), params)

    jaxpr = jax.make_jaxpr(solve)(params, obs)
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name in ("scan", "while"))
    inside = str(loop.params["jaxpr" if loop.primitive.name == "scan" else "body_jaxpr"])
    assert "tanh" not in inside
    assert "tanh" in str(jaxpr)


# A share of the samples.


def test_a_fraction_is_the_fisher_of_those_samples(x64):
    policy, params, obs = problem("categorical", samples=20)
    product = purerl.fisher_vector_product(policy, params, obs, fraction=0.25)
    chosen = subsample(obs, 0.25)
    assert chosen.shape == (5, 3)
    wanted = purerl.fisher_vector_product(policy, params, chosen)
    np.testing.assert_allclose(dense(product, params), dense(wanted, params), atol=1e-16)


@pytest.mark.parametrize("size", [1, 2, 3, 10, 64, 1000, 2048, 2047])
@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 0.9, 1.0])
def test_a_fraction_has_no_sample_twice(size, fraction):
    index = np.asarray(subsample(jnp.arange(size), fraction))
    assert len(set(index.tolist())) == len(index) == max(1, round(fraction * size))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_a_fraction_is_spread_over_time_and_environments(fraction):
    """Samples [T * N]: every environment and every tenth of the time has about its share."""
    steps, envs = 128, 8
    index = np.asarray(subsample(jnp.arange(steps * envs), fraction))
    of_env = np.bincount(index % envs, minlength=envs) / (steps * fraction)
    of_time = np.bincount(index // (envs * 16), minlength=8) / (16 * envs * fraction)
    np.testing.assert_allclose(of_env, 1, atol=0.25)
    np.testing.assert_allclose(of_time, 1, atol=0.25)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_fractions_out_of_range(fraction):
    policy, params, obs = problem("categorical")
    with pytest.raises(ValueError, match=r"fraction=.* is out of range; set it within \(0, 1\]"):
        purerl.fisher_vector_product(policy, params, obs, fraction=fraction)
