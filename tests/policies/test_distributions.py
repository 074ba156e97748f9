"""Distributions against distrax, scipy and samples, and in the corners of float32."""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from scipy import special, stats

from purerl.algorithms.a2c import A2CState
from purerl.policies.acting import make_ahead
from purerl.policies.adapters import NetworkFunctions
from purerl.policies.distributions import Categorical, DiagGaussian, MultiCategorical, forbid
from purerl.second_order.products import fisher_vector_product

B, K, D = 20, 5, 3


def categoricals(seed, count=1):
    rng = np.random.default_rng(seed)
    return [Categorical(jnp.asarray(2 * rng.normal(size=(B, K)))) for _ in range(count)]


def gaussians(seed, count=1):
    rng = np.random.default_rng(seed)
    parameters = [jnp.asarray(rng.normal(size=(2, B, D))) for _ in range(count)]
    return [DiagGaussian(mean, log_std) for mean, log_std in parameters]


@jax.jit
def everything(p, q, action):
    """All methods in one program, compiled once for each kind and precision."""
    return {
        "log_prob": p.log_prob(action),
        "entropy": p.entropy(),
        "kl": p.kl(q),
        "mode": p.mode(),
        "kl of itself": p.kl(p),
    }


def close(got, wanted, tolerance=1e-12):
    np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)


def test_categorical_equals_distrax(x64):
    distrax = oracles.optional("distrax")
    (p, q), action = categoricals(0, 2), jnp.arange(B) % K
    got = everything(p, q, action)
    with oracles.lenient():
        p_, q_ = distrax.Categorical(p.logits), distrax.Categorical(q.logits)
        close(got["log_prob"], p_.log_prob(action))
        close(got["entropy"], p_.entropy())
        close(got["kl"], p_.kl_divergence(q_))
        close(got["mode"], p_.mode())


def test_gaussian_equals_distrax(x64):
    distrax = oracles.optional("distrax")
    p, q, r = gaussians(1, 3)
    got = everything(p, q, r.mean)
    with oracles.lenient():
        p_, q_ = (distrax.MultivariateNormalDiag(d.mean, jnp.exp(d.log_std)) for d in (p, q))
        close(got["log_prob"], p_.log_prob(r.mean))
        close(got["entropy"], p_.entropy())
        close(got["kl"], p_.kl_divergence(q_))
        close(got["mode"], p_.mode())


def test_categorical_equals_scipy(x64):
    (p, q), action = categoricals(2, 2), jnp.arange(B) % K
    got = everything(p, q, action)
    p_, q_ = (special.softmax(d.logits, axis=1) for d in (p, q))
    close(got["entropy"], stats.entropy(p_, axis=1))
    close(got["kl"], stats.entropy(p_, q_, axis=1))
    close(got["log_prob"], np.log(p_[np.arange(B), action]))


def test_gaussian_equals_scipy(x64):
    p, r = gaussians(3, 2)
    got = everything(p, p, r.mean)
    law = stats.norm(np.asarray(p.mean), np.exp(np.asarray(p.log_std)))
    close(got["log_prob"], law.logpdf(np.asarray(r.mean)).sum(axis=1))
    close(got["entropy"], law.entropy().sum(axis=1))


def test_float32_equals_float64(x64):
    action = jnp.arange(B) % K
    for p, q, x in ((*categoricals(4, 2), action), (*gaussians(4, 2), gaussians(5)[0].mean)):
        narrow = jax.tree.map(lambda x: x.astype(jnp.float32), (p, q))
        x32 = x if x is action else x.astype(jnp.float32)
        got, wanted = everything(*narrow, x32), everything(p, q, x)
        for name in ("kl", "entropy", "log_prob"):
            assert got[name].dtype == jnp.float32
            close(got[name], wanted[name], 2e-5)


# A pair of Gaussians for which the two directions of the KL are far apart.
NARROW = DiagGaussian(jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.5, 1.0]])))
WIDE = DiagGaussian(jnp.array([[1.0, -1.0]]), jnp.log(jnp.array([[2.0, 1.5]])))


def as_it_is_misprinted(p, q):
    """KL(p || q) with the two variances exchanged, as lecture notes in circulation have it."""
    (s, t), (m, n) = np.exp([p.log_std, q.log_std]), (p.mean, q.mean)
    return 0.5 * np.sum(t**2 / s**2 + (m - n) ** 2 / s**2 - 1 + np.log(s**2 / t**2), axis=-1)


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (NARROW, WIDE),
        (WIDE, NARROW),
        (Categorical(jnp.array([[2.0, 0.0, -1.0]])), Categorical(jnp.array([[0.0, 0.5, 3.0]]))),
    ],
    ids=["narrow || wide", "wide || narrow", "categorical"],
)
def test_kl_has_the_direction_of_a_monte_carlo_mean(p, q, key):
    """KL(p || q) is the mean of log p - log q over samples of p; five standard errors apart from
    that the other direction is excluded, and so is the misprint."""
    n = 20_000

    @jax.jit
    def log_ratios(p, q):
        p, q = jax.tree.map(lambda x: jnp.repeat(x, n, axis=0), (p, q))
        sample = p.sample(key)
        return p.log_prob(sample) - q.log_prob(sample)

    difference = np.asarray(log_ratios(p, q))
    error = difference.std() / n**0.5
    estimate = difference.mean()
    assert abs(estimate - p.kl(q)[0]) < 4 * error
    assert abs(estimate - q.kl(p)[0]) > 5 * error
    if isinstance(p, DiagGaussian):
        assert abs(estimate - as_it_is_misprinted(p, q)[0]) > 5 * error
        close(as_it_is_misprinted(p, q), q.kl(p), 1e-5)  # it is the other direction


def test_kl_is_positive_and_zero_only_for_equals(x64):
    for p, q in (categoricals(5, 2), gaussians(5, 2)):
        action = p.mode()
        got = everything(p, q, action)
        assert jnp.all(got["kl"] > 0)
        assert jnp.all(got["kl of itself"] == 0)


def test_kl_keeps_its_digits_between_neighbours():
    """A KL of 1e-6, the size of a policy step, in float32; exp(x) - 1 would have no digit left."""
    p = DiagGaussian(jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    q = DiagGaussian(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-3))
    x = -2e-3
    np.testing.assert_allclose(p.kl(q), [0.5 * (np.expm1(x) - x)], rtol=1e-3)


# Logits of any size, and forbidden actions.
EXTREME = {
    "huge": jnp.array([[1e30, -1e30, 0.0], [-1e30, -1e30, -1e30]]),
    "as far apart as float32 holds": jnp.array([[1.6e38, -1.6e38, 0.0], [-3e38, -3e38, -3e38]]),
    "forbidden": jnp.array([[0.0, -jnp.inf, 1.0], [-jnp.inf, -jnp.inf, 2.0]]),
}


@pytest.mark.parametrize("logits", EXTREME.values(), ids=EXTREME.keys())
def test_extreme_logits_are_finite_with_their_gradients(logits):
    def total(logits):
        p = Categorical(logits)
        old = Categorical(jax.lax.stop_gradient(logits))
        likely = p.mode()
        return jnp.sum(p.entropy() + p.kl(old) + old.kl(p) + p.log_prob(likely))

    value, gradient = jax.jit(jax.value_and_grad(total))(logits)
    assert jnp.isfinite(value)
    assert jnp.all(jnp.isfinite(gradient))


def test_extreme_logits_have_the_right_numbers():
    huge, forbidden = (Categorical(EXTREME[name]) for name in ("huge", "forbidden"))
    close(huge.entropy(), [0.0, np.log(3)], 1e-6)
    p = 1 / (1 + np.e)
    close(forbidden.entropy(), [stats.entropy([p, 1 - p]), 0.0], 1e-6)
    assert forbidden.log_prob(jnp.array([1, 0])).tolist() == [-np.inf, -np.inf]
    assert huge.kl(huge).tolist() == forbidden.kl(forbidden).tolist() == [0.0, 0.0]


def test_forbidden_action_costs_an_infinite_kl_only_where_it_is_taken():
    allowed, forbidden = jnp.array([[0.0, 0.0]]), jnp.array([[0.0, -jnp.inf]])
    assert Categorical(allowed).kl(Categorical(forbidden)).tolist() == [np.inf]
    close(Categorical(forbidden).kl(Categorical(allowed)), [np.log(2)], 1e-6)


def test_forbidden_actions_are_never_sampled(key):
    logits = jnp.tile(EXTREME["forbidden"][:1], (1000, 1))
    assert set(Categorical(logits).sample(key).tolist()) == {0, 2}


@pytest.mark.parametrize("log_std", [-30.0, 30.0])
def test_extreme_scales_are_finite_with_their_gradients(log_std):
    def total(parameters):
        p = DiagGaussian(*parameters)
        old = jax.lax.stop_gradient(p)
        one = DiagGaussian(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
        action = old.mean + 2 * jnp.exp(old.log_std) + 1e5
        return jnp.sum(p.log_prob(action) + p.entropy() + p.kl(old) + old.kl(p) + p.kl(one))

    parameters = (jnp.ones((1, 2)), jnp.full((1, 2), log_std))
    value, gradient = jax.jit(jax.value_and_grad(total))(parameters)
    assert jnp.isfinite(value)
    assert all(jnp.all(jnp.isfinite(g)) for g in gradient)
    p = DiagGaussian(*parameters)
    close(p.entropy(), [2 * (log_std + 0.5 * np.log(2 * np.pi * np.e))], 1e-6)
    close(p.kl(p), [0.0])


def test_categorical_samples_have_its_probabilities(key):
    p = Categorical(jnp.array([1.0, 0.0, -2.0, 0.5]))
    n = 20_000
    actions = Categorical(jnp.tile(p.logits, (n, 1))).sample(key)
    assert actions.dtype == jnp.int32
    expected = n * np.asarray(jax.nn.softmax(p.logits), np.float64)
    counts = np.bincount(actions, minlength=4)
    assert oracles.chi_square_p(counts, expected * n / expected.sum()) > 1e-3


def test_gaussian_samples_have_its_law_and_no_correlation(key):
    mean, log_std = jnp.array([2.0, -1.0]), jnp.array([0.5, -1.0])
    n = 20_000
    many = DiagGaussian(jnp.tile(mean, (n, 1)), jnp.tile(log_std, (n, 1)))
    x = np.asarray(many.sample(key), np.float64)
    for i in range(2):
        law = stats.norm(float(mean[i]), float(jnp.exp(log_std[i])))
        assert stats.kstest(x[:, i], law.cdf).pvalue > 1e-3
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / n**0.5


def test_mode_maximizes_the_probability():
    (p,), (g,) = categoricals(6), gaussians(6)
    every = jnp.stack([p.log_prob(jnp.full(B, a)) for a in range(K)])
    np.testing.assert_array_equal(p.mode(), jnp.argmax(every, axis=0))
    assert p.mode().dtype == jnp.int32
    gradient = jax.grad(lambda a: jnp.sum(g.log_prob(a)))(g.mode())
    np.testing.assert_array_equal(gradient, jnp.zeros((B, D)))


@pytest.mark.parametrize("make", [categoricals, gaussians])
def test_pytree_under_jit_and_vmap(make, key):
    """vmap over the batch axis equals the batched methods; any number of batch axes works."""
    p, q = make(7, 2)
    action = p.sample(key)

    batched, mapped = everything(p, q, action), jax.vmap(everything)(p, q, action)
    fold = lambda t: jax.tree.map(lambda x: x.reshape(4, 5, *x.shape[1:]), t)  # noqa: E731
    folded = everything(fold(p), fold(q), fold(action))
    for name, a in batched.items():
        close(a, mapped[name], 1e-6)
        close(a, folded[name].reshape(a.shape), 1e-6)
    assert isinstance(jax.tree.map(lambda x: x[:1], p), type(p))


def test_log_probabilities_sum_to_one(x64):
    (p,) = categoricals(8)
    close(jnp.sum(jnp.exp(p.log_probs()), axis=-1), np.ones(B))
    each = jnp.stack([p.log_prob(jnp.full(B, a)) for a in range(K)], axis=-1)
    close(each, p.log_probs())


@pytest.mark.parametrize("make", [categoricals, gaussians])
def test_bfloat16_parameters_have_float32_numbers(make, key):
    """Samples too: bfloat16 has 256 numbers between 1 and 2."""
    p, q = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make(9, 2))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (p, q))
    action = p.sample(key)
    np.testing.assert_array_equal(action, wide[0].sample(key))
    got, wanted = everything(p, q, action), everything(*wide, action)
    for name in got:
        assert got[name].dtype == wanted[name].dtype
        close(got[name], wanted[name], 1e-6)


class Five(NamedTuple):
    """A distribution with the five methods of the protocol, and no more."""

    logits: jax.Array

    def sample(self, key):
        return Categorical(self.logits).sample(key)

    def log_prob(self, action):
        return Categorical(self.logits).log_prob(action)


@pytest.mark.parametrize("kind", [Five, Categorical])
def test_a_distribution_is_drawn_ahead_by_noise_if_it_has_that_else_by_keys(kind):
    """Either way each step has numbers of its own, and the policy's log-probabilities."""
    network = NetworkFunctions(
        lambda key, obs: obs[0], lambda params, obs: (kind(obs * params[None]), 0)
    )
    ahead, obs = make_ahead(network), jnp.ones((50, 3))
    state = A2CState(jnp.array([0.1, 0.2, 0.3]), ())
    noise = ahead.noise(state, obs, jax.random.key(0), 4)
    assert noise.shape == ((4,) if kind is Five else (4, 50, 3))
    (first, policy), (second, _) = (ahead.act(state, obs, row, progress=0.5) for row in noise[:2])
    assert set(np.unique(first)) == {0, 1, 2}
    assert np.any(first != second)
    if kind is Five:
        np.testing.assert_array_equal(first, policy.sample(noise[0]))
    wanted = jax.nn.log_softmax(state.params)[first]
    np.testing.assert_allclose(ahead.log_prob(policy, first), wanted, rtol=1e-6)


def _product(logits, counts):
    """All actions of a MultiCategorical with their probabilities, by enumeration in float64."""
    parts, start = [], 0
    for n in counts:
        x = np.asarray(logits[start : start + n], np.float64)
        parts.append(np.exp(x - x.max()) / np.exp(x - x.max()).sum())
        start += n
    actions = list(itertools.product(*[range(n) for n in counts]))
    return actions, np.array(
        [math.prod(p[a] for p, a in zip(parts, x, strict=True)) for x in actions]
    )


@pytest.mark.parametrize("masked", [False, True])
def test_several_choices_against_enumeration(masked, x64):
    counts, rng = (3, 2, 4), np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 9))
    mask = np.array([1, 0, 1, 1, 1, 0, 1, 1, 0], bool) if masked else np.ones(9, bool)
    policy, other = (
        forbid(MultiCategorical.of(jnp.asarray(x)[None], counts), mask[None], counts)
        for x in (logits, others)
    )
    actions, p = _product(np.where(mask, logits, -np.inf), counts)
    _, q = _product(np.where(mask, others, -np.inf), counts)
    got = [float(jnp.exp(policy.log_prob(jnp.array([a])))[0]) for a in actions]
    np.testing.assert_allclose(got, p, rtol=1e-12, atol=1e-15)
    on = p > 0
    np.testing.assert_allclose(policy.entropy(), -np.sum(p[on] * np.log(p[on])), rtol=1e-12)
    np.testing.assert_allclose(policy.kl(other), np.sum(p[on] * np.log(p[on] / q[on])), rtol=1e-12)
    assert tuple(policy.mode()[0].tolist()) == actions[np.argmax(p)]


def test_a_masked_policy_has_the_fisher_matrix_of_its_legal_actions(x64):
    counts, mask = (3, 2), np.array([1, 0, 1, 1, 1], bool)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=5))

    def policy(x, obs):
        return forbid(MultiCategorical.of(x[None], counts), mask[None], counts)

    product = fisher_vector_product(policy, logits, jnp.zeros((1, 1)))
    got = jax.vmap(product)(jnp.eye(5))
    actions, p = _product(np.where(mask, logits, -np.inf), counts)
    scores = jax.vmap(jax.grad(lambda x, a: policy(x, None).log_prob(a[None])[0]), (None, 0))
    legal = np.array(actions)[p > 0]
    s = np.asarray(scores(logits, jnp.asarray(legal)))
    np.testing.assert_allclose(got, (s.T * p[p > 0]) @ s, atol=1e-12)
    assert not np.any(got[1])  # of the forbidden action
