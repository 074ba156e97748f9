"""K-FAC against dense matrices, loops over patches and numbers written out."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import purerl
from purerl import Clock
from purerl.policies.distributions import Categorical, DiagGaussian
from purerl.policies.networks import Conv, NetworkConfig
from purerl.second_order.kfac import (
    INVERT,
    Factors,
    clip_kl,
    find_layers,
    fisher_factors,
    precondition,
    reaching,
    scale_by_kfac,
    tap,
)
from purerl.second_order.kfac.factors import identity_factors
from purerl.second_order.kfac.layers import from_matrices, to_matrices

B = 8


class Net(nn.Module):
    """Dense layers, the last one linear."""

    widths: tuple[int, ...] = (6, 3)
    bias: bool = True

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths):
            dtype = jnp.result_type(float)
            x = nn.Dense(width, use_bias=self.bias, param_dtype=dtype, name=f"layer_{i}")(x)
            x = jnp.tanh(x) if i + 1 < len(self.widths) else x
        return x


def normal(*shape, seed=0):
    return jnp.array(np.random.default_rng(seed).normal(size=shape), jnp.result_type(float))


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def made(network, *shape, batch=B):
    obs = normal(batch, *(shape or (4,)))
    params = jax.eval_shape(network.init, jax.random.key(0), obs)
    params = jax.tree.map(lambda p: normal(*p.shape, seed=p.size) * 0.7, params)
    return params, obs, find_layers(network.apply, params, obs)


@functools.partial(jax.jit, static_argnums=(0, 3))
def exact_factors(network, params, obs, layers):
    """With the expectation over the actions of a softmax policy taken exactly."""
    tapped = tap(network.apply, layers, params, obs)
    policy = jax.nn.softmax(tapped.output)
    total = None
    for action in range(policy.shape[1]):
        # Factors are quadratic in the score: the root of the probability is its weight.
        score = (jax.nn.one_hot(jnp.full(len(obs), action), policy.shape[1]) - policy) * jnp.sqrt(
            policy[:, action]
        )[:, None]
        factors = fisher_factors(layers, tapped, score)
        total = (
            factors
            if total is None
            else Factors(
                factors.a, tuple(x + y for x, y in zip(total.g, factors.g, strict=True)), {}
            )
        )
    return total


@functools.partial(jax.jit, static_argnums=(0, 3))
def exact_blocks(network, params, obs, layers, curvature):
    """E[J^T H J] of each layer, from the Jacobian; `curvature` [B, K, K] is the output's."""

    def output(matrices, x):
        return network.apply(from_matrices(layers, matrices, {}, params), x[None])[0]

    matrices, _ = to_matrices(layers, params)
    jacobian = jax.vmap(jax.jacobian(output), (None, 0))(matrices, obs)
    blocks = []
    for j in jacobian:
        j = j.reshape(*j.shape[:2], -1)
        blocks.append(jnp.einsum("bki,bkl,blj->ij", j, curvature, j) / len(obs))
    return blocks


def softmax_curvature(logits):
    p = jax.nn.softmax(logits)
    return jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]


# Capture.


class Everything(nn.Module):
    """Convolutions of all kinds, a layer called twice, and parameters that belong to no layer."""

    @nn.compact
    def __call__(self, x):
        x = jnp.tanh(nn.Conv(3, (3, 2), strides=(2, 1), padding="SAME", param_dtype=x.dtype)(x))
        x = nn.Conv(2, (2, 2), padding="CIRCULAR", use_bias=False, param_dtype=x.dtype)(x)
        x = nn.LayerNorm(param_dtype=x.dtype)(x).reshape(len(x), -1, 4)
        again = nn.Dense(4, param_dtype=x.dtype, name="again")
        x = again(jnp.tanh(again(x)))
        log_std = self.param("log_std", nn.initializers.zeros, (2,), x.dtype)
        return nn.Dense(2, param_dtype=x.dtype)(x.reshape(len(x), -1)) * jnp.exp(log_std)[None]


@pytest.mark.parametrize("jit", [False, True])
def test_taps_change_nothing_and_their_products_are_the_gradient(jit, x64):
    """inputs^T (gradients of outputs), summed over samples and locations, for every layer."""
    network = Everything()
    params, obs, layers = made(network, 5, 4, 2)
    assert [layer[:5] for layer in layers] == [
        ("params/Conv_0/kernel", "params/Conv_0/bias", 12, 3, 12),
        ("params/Conv_1/kernel", None, 12, 2, 12),
        ("params/again/kernel", "params/again/bias", 4, 4, 12),
        ("params/Dense_0/kernel", "params/Dense_0/bias", 24, 2, 1),
    ]
    cotangent = normal(B, 2, seed=1)

    def run(params, obs):
        tapped = tap(network.apply, layers, params, obs)
        return tapped.output, tapped.inputs(), tapped.pullback(cotangent)

    output, inputs, (gradient, deltas) = (jax.jit(run) if jit else run)(params, obs)
    wanted, pullback = jax.vjp(lambda p: network.apply(p, obs), params)
    np.testing.assert_allclose(output, wanted, atol=1e-12)
    (wanted,) = pullback(cotangent)
    matrices, rest = to_matrices(layers, wanted)
    for layer, x, delta, matrix in zip(layers, inputs, deltas, matrices, strict=True):
        assert x.shape == (B, layer.locations, layer.rows)
        np.testing.assert_allclose(jnp.einsum("bli,blo->io", x, delta), matrix, atol=1e-12)
    assert sorted(rest) == [
        "params/LayerNorm_0/bias",
        "params/LayerNorm_0/scale",
        "params/log_std",
    ]
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-12), gradient, wanted)


def test_matrices_and_back_is_the_same_tree(x64):
    params, _, layers = made(Everything(), 5, 4, 2)
    back = from_matrices(layers, *to_matrices(layers, params), params)
    assert jax.tree.structure(back) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_conv_inputs_are_the_patches(x64):
    network = nn.Conv(2, (3, 3), padding="VALID", param_dtype=float)
    params, obs, layers = made(network, 6, 5, 2)
    (got,) = tap(network.apply, layers, params, obs).inputs()
    patches = [obs[:, i : i + 3, j : j + 3].reshape(B, -1) for i in range(4) for j in range(3)]
    np.testing.assert_allclose(got[..., :-1], jnp.stack(patches, axis=1), atol=1e-12)
    np.testing.assert_array_equal(got[..., -1], 1)


def test_reaching_tells_actor_from_critic():
    obs = jnp.zeros((2, 3))
    for shared in (False, True):
        config = NetworkConfig(hidden_sizes=(4,), shared=shared)
        network = purerl.ActorCritic(purerl.Box((2,)), config)
        params = network.init(jax.random.key(0), obs)
        of_actor = reaching(lambda p, n=network: n.apply(p, obs)[0], params)["params"]
        of_critic = reaching(lambda p, n=network: n.apply(p, obs)[1], params)["params"]
        assert of_actor["policy_head"]["log_std"]
        assert not of_critic["policy_head"]["log_std"]
        assert all(jax.tree.leaves(of_critic["value_head"]))
        assert not any(jax.tree.leaves(of_actor["value_head"]))
        if shared:
            assert all(jax.tree.leaves((of_actor["torso"], of_critic["torso"])))
        else:
            assert all(jax.tree.leaves((of_actor["actor"], of_critic["critic"])))
            assert not any(jax.tree.leaves((of_actor["critic"], of_critic["actor"])))


def both(p):
    return p["a"] * 2, p["b"] * 3


def custom_jvp(p):
    function = jax.custom_jvp(both)
    function.defjvp(lambda primals, tangents: (both(*primals), both(*tangents)))
    return function(p)


def custom_vjp(p):
    function = jax.custom_vjp(both)
    function.defvjp(lambda p: (both(p), None), lambda _, g: ({"a": g[0], "b": g[1], "c": 0.0},))
    return function(p)


def scan(p, mixed=False):
    def body(carry, x):
        a, b = carry
        return (a * p["a"] + b if mixed else a * p["a"], b * p["b"]), (a, b)

    return jax.lax.scan(body, (1.0, 1.0), jnp.arange(3.0))[0]


def cond(p):
    return jax.lax.cond(p["c"] > 0, lambda: (p["a"], p["b"]), lambda: (p["a"] * 2, 1.0))


def printed(p):
    jax.debug.print("{}", p["b"])
    return (p["a"],)


@pytest.mark.parametrize(
    ("function", "wanted"),
    [
        (jax.jit(both), "a"),
        (jax.checkpoint(both), "a"),
        (lambda p: jax.jit(lambda p: jax.checkpoint(jax.jit(both))(p))(p)[::-1], "b"),
        (custom_jvp, "a"),
        (custom_vjp, "a"),
        (scan, "a"),
        (lambda p: jax.jit(lambda p: scan(p)[::-1])(p), "b"),
        (lambda p: scan(p, mixed=True), "ab"),
        (lambda p: scan(p, mixed=True)[::-1], "b"),
        (cond, "a"),  # its predicate has no gradient
        (lambda p: (p["a"] * jax.lax.stop_gradient(p["b"]),), "a"),
        (printed, "a"),
        (lambda p: (jnp.linalg.solve(jnp.diag(jnp.stack([p["a"], p["b"]])), jnp.ones(2)),), "ab"),
        (lambda p: (1.0,), ""),
        (lambda p: (p["c"],), "c"),
    ],
)
def test_reaching_looks_into_what_is_called(function, wanted):
    params = {"a": 1.0, "b": 1.0, "c": 1.0}
    found = reaching(lambda p: function(p)[0], params)
    assert "".join(name for name, reaches in found.items() if reaches) == wanted


# Factors.


@pytest.mark.parametrize("bias", [True, False])
def test_one_sample_is_exact(bias, x64):
    """The block of every layer, also of the hidden ones."""
    network = Net((5, 6, 3), bias)
    params, obs, layers = made(network, batch=1)
    factors = exact_factors(network, params, obs, layers)
    curvature = softmax_curvature(network.apply(params, obs))
    blocks = exact_blocks(network, params, obs, layers, curvature)
    for a, g, block in zip(factors.a, factors.g, blocks, strict=True):
        assert jnp.abs(block).max() > 1e-3
        np.testing.assert_allclose(jnp.kron(a, g), block, atol=1e-12)


def test_many_samples_are_not(x64):
    """But A and G are the exact expectations, each on its own."""
    network = Net()
    params, obs, layers = made(network)
    factors = exact_factors(network, params, obs, layers)
    curvature = softmax_curvature(network.apply(params, obs))
    blocks = exact_blocks(network, params, obs, layers, curvature)
    assert jnp.abs(jnp.kron(factors.a[0], factors.g[0]) - blocks[0]).max() > 0.01

    tree = params["params"]
    hidden = np.tanh(np.asarray(obs @ tree["layer_0"]["kernel"]) + tree["layer_0"]["bias"][None])
    ones = np.ones((B, 1))
    for got, x in zip(factors.a, (obs, hidden), strict=True):
        x = np.concatenate([x, ones], axis=1)
        np.testing.assert_allclose(got, sum(np.outer(v, v) for v in x) / B, atol=1e-12)
    back = (1 - hidden**2)[:, :, None] * np.asarray(tree["layer_1"]["kernel"])
    wanted = np.einsum("bik,bkl,bjl->ij", back, curvature, back) / B
    np.testing.assert_allclose(factors.g[0], wanted, atol=1e-12)
    np.testing.assert_allclose(factors.g[1], curvature.mean(0), atol=1e-12)


def test_linear_network_with_gaussian_output_is_exact_for_many_samples(x64):
    class Linear(Net):
        @nn.compact
        def __call__(self, x):
            for i, width in enumerate(self.widths):
                x = nn.Dense(width, param_dtype=float, name=f"layer_{i}")(x)
            return x

    network = Linear()
    params, obs, layers = made(network)
    tapped = tap(network.apply, layers, params, obs)
    # E[score score^T] = I: one column of it after the other.
    parts = [fisher_factors(layers, tapped, jnp.tile(row, (B, 1))) for row in jnp.eye(3)]
    blocks = exact_blocks(network, params, obs, layers, jnp.tile(jnp.eye(3), (B, 1, 1)))
    for i, block in enumerate(blocks):
        g = sum(part.g[i] for part in parts)
        np.testing.assert_allclose(jnp.kron(parts[0].a[i], g), block, atol=1e-12)


def by_loops(x, delta):
    """A summed over patches, G averaged over them: the other way to divide by the locations."""
    batch, locations = x.shape[:2]
    a = sum(np.outer(v, v) for row in np.asarray(x) for v in row) / batch
    g = sum(np.outer(v, v) for row in np.asarray(delta) for v in row) / (batch * locations)
    return a, g


def test_convolution_against_explicit_patches(x64):
    """nn.Conv, and Dense on patches; the factors' product, which is all that counts."""
    conv, dense = nn.Conv(3, (3, 3), padding="VALID", param_dtype=float), Conv(3)
    params, obs, _ = made(conv, 6, 6, 2, batch=4)
    kernel, bias = params["params"]["kernel"], params["params"]["bias"]
    as_dense = {"params": {"Dense_0": {"kernel": kernel.reshape(18, 3), "bias": bias}}}
    output = conv.apply(params, obs)
    np.testing.assert_allclose(dense.apply(as_dense, obs), output, atol=1e-12)
    score = normal(*output.shape, seed=2)
    patches = jnp.stack(
        [obs[:, i : i + 3, j : j + 3].reshape(4, -1) for i in range(4) for j in range(4)], axis=1
    )
    patches = jnp.concatenate([patches, jnp.ones((4, 16, 1))], axis=2)
    wanted = jnp.kron(*by_loops(patches, score.reshape(4, 16, 3)))
    for network, tree in ((conv, params), (dense, as_dense)):
        found = find_layers(network.apply, tree, obs)
        (a,), (g,), *_ = fisher_factors(found, tap(network.apply, found, tree, obs), score)
        np.testing.assert_allclose(jnp.kron(a, g), wanted, atol=1e-12)
        assert a[-1, -1] == pytest.approx(1)


def test_one_pixel_image_is_a_dense_layer(x64):
    conv, dense = nn.Conv(3, (1, 1), param_dtype=float), Net((3,))
    params, obs, layers = made(dense)
    image = {"params": jax.tree.map(lambda p: p, params["params"]["layer_0"])}
    image["params"]["kernel"] = image["params"]["kernel"][None, None]
    pixels = obs[:, None, None]
    found = find_layers(conv.apply, image, pixels)
    score = normal(B, 3, seed=3)
    flat = fisher_factors(layers, tap(dense.apply, layers, params, obs), score)
    tapped = tap(conv.apply, found, image, pixels)
    folded = fisher_factors(found, tapped, score[:, None, None])
    np.testing.assert_allclose(flat.a[0], folded.a[0], atol=1e-12)
    np.testing.assert_allclose(flat.g[0], folded.g[0], atol=1e-12)


def test_sampled_factors_approach_the_exact_ones_as_the_root_of_the_number(x64):
    network = Net()
    params, obs, layers = made(network)
    exact = exact_factors(network, params, obs, layers)
    tapped = tap(network.apply, layers, params, obs)

    @functools.partial(jax.vmap, in_axes=0)
    def draw(key):
        policy = Categorical(tapped.output)
        action = policy.sample(key)
        (score,) = jax.grad(lambda d: jnp.sum(d.log_prob(action)))(policy)
        return fisher_factors(layers, tapped, score).g

    draws = jax.jit(draw)(jax.random.split(jax.random.key(1), 64 * 256))
    for got, wanted in zip(draws, exact.g, strict=True):
        errors = []
        for n in (4, 64):
            means = got.reshape(-1, n, *wanted.shape).mean(1)[:256]
            errors.append(jnp.sqrt(jnp.mean(jnp.square(means - wanted[None]))))
        assert float(jnp.log(errors[0] / errors[1]) / jnp.log(16)) == pytest.approx(0.5, abs=0.06)
        spread = got.std(0) / 128
        assert jnp.all(jnp.abs(got.mean(0) - wanted) < 4.5 * spread + 1e-12)


def test_parameters_of_no_layer_have_the_diagonal_in_expectation(x64):
    class Gaussian(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm(param_dtype=float)(x)
            mean = nn.Dense(2, param_dtype=float)(x)
            log_std = self.param("log_std", nn.initializers.zeros, (2,), float)
            return DiagGaussian(mean, jnp.broadcast_to(log_std, mean.shape))

    network = Gaussian()
    params, obs, layers = made(network)
    tapped = tap(network.apply, layers, params, obs)

    def draw(key):
        action = tapped.output.sample(key)
        score = jax.grad(lambda d: jnp.sum(d.log_prob(action)))(tapped.output)
        return fisher_factors(layers, tapped, score).rest

    draws = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2), 40_000))
    np.testing.assert_allclose(draws["params/log_std"].mean(0), 2.0, rtol=0.05)

    def mean(scale, x):
        changed = {"params": params["params"] | {"LayerNorm_0": scale}}
        return network.apply(changed, x[None]).mean[0]

    norm = params["params"]["LayerNorm_0"]
    jacobian = jax.vmap(jax.jacobian(mean), (None, 0))(norm, obs)
    precision = jnp.exp(-2 * params["params"]["log_std"])
    for name, j in jacobian.items():
        wanted = jnp.einsum("bki,k->i", j**2, precision) / B
        np.testing.assert_allclose(draws[f"params/LayerNorm_0/{name}"].mean(0), wanted, rtol=0.05)


# Inverses.


def random_factors(layers, params, seed=0):
    identity = identity_factors(layers, params)
    square = lambda m, i: (lambda x: x @ x.T / 3)(normal(len(m), 3, seed=seed + i))  # noqa: E731
    return Factors(
        tuple(square(m, i) for i, m in enumerate(identity.a)),
        tuple(10 * square(m, i + 50) for i, m in enumerate(identity.g)),
        {name: jnp.square(normal(*x.shape, seed=9)) for name, x in identity.rest.items()},
    )


def damped(kind, a, g, damping):
    if kind == "eigenbasis":
        return np.kron(a, g) + damping * np.eye(len(a) * len(g))
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    a = a + pi * np.sqrt(damping) * np.eye(len(a))
    return np.kron(a, g + np.sqrt(damping) / pi * np.eye(len(g)))


@pytest.mark.trains  # the condition is 1e4 and more: rounding as users have it
@pytest.mark.parametrize("damping", [0.01, 1e-4, 3.0])
@pytest.mark.parametrize("kind", INVERT)
def test_inverse_times_gradient_against_a_dense_solve(kind, damping, x64):
    params, _, layers = made(Everything(), 5, 4, 2)
    factors = random_factors(layers, params)
    gradient = jax.tree.map(lambda p: normal(*p.shape, seed=p.size), params)
    natural = jax.jit(lambda f, g: precondition(layers, INVERT[kind](f, damping), g))
    got, rest = to_matrices(layers, natural(factors, gradient))
    matrices, of_rest = to_matrices(layers, gradient)
    for matrix, a, g, x in zip(got, factors.a, factors.g, matrices, strict=True):
        wanted = np.linalg.solve(damped(kind, a, g, damping), np.ravel(x))
        np.testing.assert_allclose(np.ravel(matrix), wanted, rtol=1e-8, atol=1e-10)
    for name, x in of_rest.items():
        np.testing.assert_allclose(rest[name], x / (factors.rest[name] + damping), atol=1e-12)


def test_condition_number_is_of_the_worst_block(x64):
    params, _, layers = made(Net())
    factors = random_factors(layers, params)
    blocks = [damped("eigenbasis", a, g, 0.1) for a, g in zip(factors.a, factors.g, strict=True)]
    wanted = max(np.linalg.cond(block) for block in blocks)
    assert INVERT["eigenbasis"](factors, 0.1).condition == pytest.approx(wanted, rel=1e-9)
    blocks = [damped("factored", a, g, 0.1) for a, g in zip(factors.a, factors.g, strict=True)]
    wanted = max(np.linalg.cond(block, 1) for block in blocks)
    assert INVERT["factored"](factors, 0.1).condition == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("kind", INVERT)
@pytest.mark.parametrize("scale", [(0.0, 0.0), (1.0, 0.0), (1e8, 1.0), (1e-8, 1e-8), (1e6, 1e6)])
def test_inverses_stay_finite_in_float32(kind, scale):
    """Layers without gradients, and inputs of one hundred million times the usual square."""
    params, _, layers = made(Net((64, 3)), 64)
    factors = random_factors(layers, params)
    factors = Factors(*([scale[i] * m for m in factors[i]] for i in (0, 1)), {})
    gradient = jax.tree.map(jnp.ones_like, params)
    natural = jax.jit(lambda f, g: precondition(layers, INVERT[kind](f, 0.01), g))(
        factors, gradient
    )
    slope = jax.tree.map(lambda g, n: jnp.sum(g * n), gradient, natural)
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves(natural))
    assert sum(jax.tree.leaves(slope)) > 0


# The transformation.


def test_kl_clip_by_hand(x64):
    gradient = {"w": jnp.array([3.0, 4.0]), "v": jnp.array([1.0])}
    natural = {"w": jnp.array([1.0, 2.0]), "v": jnp.array([100.0])}
    # w: g n = 11, at eta = 0.5: 2.75. v: 100 and 25.
    scaled, trust = clip_kl(gradient, natural, 0.5, {"all": 0.111})
    assert trust["all"] == pytest.approx((0.111 / 27.75) ** 0.5)
    np.testing.assert_allclose(scaled["v"], 100 * trust["all"])
    for clip, wanted in ((0.11, 0.2), (2.75, 1.0), (99.0, 1.0)):
        regions = {"w": "one", "v": "two"}
        bounds = {"one": clip, "two": None}
        scaled, trust = clip_kl(gradient, natural, 0.5, bounds, regions)
        assert trust == {"one": pytest.approx(wanted), "two": 1}
        np.testing.assert_allclose(scaled["w"], wanted * natural["w"])
        np.testing.assert_array_equal(scaled["v"], natural["v"])
    nothing = jax.tree.map(jnp.zeros_like, gradient)
    scaled, trust = clip_kl(nothing, nothing, 0.5, {"all": 0.1})
    assert trust["all"] == 1
    np.testing.assert_array_equal(scaled["w"], 0)


@pytest.mark.parametrize(
    ("kl_clip", "regions"), [({"a": 1.0}, "all"), ({"a": 1.0}, {"w": "a", "v": "b"})]
)
def test_region_without_a_bound(kl_clip, regions):
    tree = {"w": jnp.ones(2), "v": jnp.ones(1)}
    with pytest.raises(ValueError, match=r"kl_clip is given for a, but the regions are also"):
        clip_kl(tree, tree, 0.1, kl_clip, regions)


def stepper(network=None, **options):
    """A transformation, and functions for its start and for one update with random numbers."""
    network = Net() if network is None else network
    params, obs, layers = made(network)
    transformation = scale_by_kfac(layers, **options)

    @jax.jit
    def of_batch(score):
        return fisher_factors(layers, tap(network.apply, layers, params, obs), score)

    @jax.jit
    def run(state, gradient, score):
        extra = {"statistics": lambda: of_batch(score), "learning_rate": 0.1}
        return transformation.update(gradient, state, params, **extra)

    def update(state, seed):
        gradient = jax.tree.map(lambda p: normal(*p.shape, seed=seed), params)
        return gradient, *run(state, gradient, normal(B, 3, seed=seed))

    return jax.jit(transformation.init)(params), update, layers, of_batch


def same(one, other):
    return all(
        np.array_equal(x, y)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("kind", INVERT)
def test_whole_update_by_hand(kind, x64):
    """Three updates: averages, an inversion at the first and the third, clip."""
    state, update, layers, of_batch = stepper(
        decay=0.8, inverse_every=2, cold_start=0, kl_clip=1e-4, damping=0.1, damping_kind=kind
    )
    sums, weight = None, 0.0
    for i in range(3):
        gradient, natural, state = update(state, seed=i)
        new = of_batch(normal(B, 3, seed=i))
        pairs = list(zip(new.a, new.g, strict=True))
        old = sums or [(0.0, 0.0)] * len(pairs)
        sums = [
            tuple(0.8 * o + 0.2 * n for o, n in zip(*two, strict=True))
            for two in zip(old, pairs, strict=True)
        ]
        weight = 0.8 * weight + 0.2
        if i != 1:
            blocks = [damped(kind, a / weight, g / weight, 0.1) for a, g in sums]
        g, _ = to_matrices(layers, gradient)
        n = [
            np.linalg.solve(m, np.ravel(x)).reshape(x.shape) for m, x in zip(blocks, g, strict=True)
        ]
        slope = sum((x * y).sum() for x, y in zip(g, n, strict=True))
        trust = min(1, np.sqrt(1e-4 / (0.1**2 * slope)))
        assert trust < 1
        assert state.trust["all"] == pytest.approx(trust, abs=1e-10)
        for got, wanted in zip(to_matrices(layers, natural)[0], n, strict=True):
            np.testing.assert_allclose(got, trust * wanted, atol=1e-10)


def test_intervals_and_cold_start():
    options = {"stats_every": 2, "inverse_every": 3, "cold_start": 2, "cold_max_norm": 0.5}
    state, update, *_ = stepper(**options)
    for i in range(9):
        gradient, natural, new = update(state, seed=i)
        assert same(new.factors, state.factors) == (i % 2 != 0), i
        assert same(new.inverse, state.inverse) == (i not in (2, 5, 8)), i
        assert new.clock.iteration == i + 1
        assert (new.trust["all"] == 1) == (i < 2), i  # a cold step is not scaled by it
        if i < 2:
            scale = 0.5 / norm(gradient)
            np.testing.assert_allclose(flat(natural), scale * flat(gradient), rtol=1e-5)
        state = new


@pytest.mark.parametrize("field", ["a", "g"])
def test_statistics_that_are_not_finite_are_not_taken_in(field):
    """With a gradient that is: the last inverse stays in use."""
    params, obs, layers = made(Net())
    tapped = tap(Net().apply, layers, params, obs)
    good = fisher_factors(layers, tapped, normal(B, 3, seed=1))
    bad = good._replace(**{field: tuple(m.at[0, 0].set(jnp.nan) for m in getattr(good, field))})
    kfac = scale_by_kfac(layers, cold_start=0, inverse_every=1)
    gradient = jax.tree.map(lambda p: normal(*p.shape, seed=5), params)
    update = lambda state, factors: kfac.update(  # noqa: E731
        gradient, state, statistics=lambda: factors, learning_rate=0.1
    )
    _, before = update(kfac.init(params), good)
    natural, after = update(before, bad)
    assert same((after.factors, after.weight), (before.factors, before.weight))
    assert after.clock.iteration == 2
    assert np.isfinite(flat(natural)).all()


def test_an_inverse_that_is_not_finite_is_not_taken_in():
    """Of factors that are finite, but whose damped product is not."""
    params, obs, layers = made(Net())
    tapped = tap(Net().apply, layers, params, obs)
    good = fisher_factors(layers, tapped, normal(B, 3, seed=1))
    huge = jax.tree.map(lambda x: jnp.full_like(x, 1e38), good)
    kfac = scale_by_kfac(layers, cold_start=0, inverse_every=1, decay=0.0)
    gradient = jax.tree.map(lambda p: normal(*p.shape, seed=5), params)
    update = lambda state, factors: kfac.update(  # noqa: E731
        gradient, state, statistics=lambda: factors, learning_rate=0.1
    )
    _, before = update(kfac.init(params), good)
    natural, after = update(before, huge)
    assert same(after.inverse, before.inverse)
    assert np.isfinite(flat(natural)).all()


def test_it_chains_with_other_transformations(x64):
    """Clipping before, momentum and a schedule after; the gradient is clipped as by hand."""
    params, obs, layers = made(Net())
    tapped = tap(Net().apply, layers, params, obs)
    gradient = jax.tree.map(lambda p: normal(*p.shape, seed=5), params)
    kfac = scale_by_kfac(layers, cold_start=0)
    extra = {
        "statistics": lambda: fisher_factors(layers, tapped, normal(B, 3, seed=1)),
        "learning_rate": 0.3,
    }
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        kfac,
        optax.ema(0.9, debias=False),
        optax.scale_by_learning_rate(optax.linear_schedule(0.3, 0.0, 10)),
    )

    @jax.jit
    def step(state):
        return optimizer.update(gradient, state, params, **extra)

    got, _ = step(optimizer.init(params))
    clipped = jax.tree.map(lambda g: g / norm(gradient), gradient)
    wanted, _ = kfac.update(clipped, kfac.init(params), **extra)
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, -0.03 * w, atol=1e-10), got, wanted)


def branches_around(primitive, function, *args):
    """How many loops of one turn or none each equation of a primitive is in, in a jaxpr."""

    def walk(jaxpr, depth):
        for equation in jaxpr.eqns:
            if equation.primitive.name == primitive:
                yield depth
            deeper = depth + (equation.primitive.name == "while")
            for inner in jax.tree.leaves(
                list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
            ):
                inner = getattr(inner, "jaxpr", inner)  # of a closed one
                if hasattr(inner, "eqns"):
                    yield from walk(inner, deeper)

    return list(walk(jax.make_jaxpr(function)(*args).jaxpr, 0))


@pytest.mark.parametrize(
    ("kind", "primitive"),
    [("eigenbasis", "eigh"), ("factored", "cholesky"), ("ekfac", "eigh")],
)
def test_branches_stay_branches_when_a_vmapped_run_is_resumed(kind, primitive):
    """Under vectorize, of a state that came back from a vectorized call."""
    params, obs, layers = made(Net())
    kfac = scale_by_kfac(layers, stats_every=2, inverse_every=5, damping_kind=kind)

    def start(scale):
        return kfac.init(jax.tree.map(lambda p: p * scale, params))

    def step(state, scale):
        tapped = tap(Net().apply, layers, jax.tree.map(lambda p: p * scale, params), obs)
        gradient, _ = tapped.pullback(tapped.output)

        # A sine marks where the statistics are measured.
        def statistics(basis=None):
            return fisher_factors(layers, tapped, jnp.sin(tapped.output), basis=basis)

        return kfac.update(gradient, state, statistics=statistics, learning_rate=0.1)[1]

    def advance(state, scale):
        return jax.lax.scan(lambda s, _: (step(s, scale), None), state, length=7)[0]

    scales = jnp.linspace(0.5, 1.0, 3)
    advance = purerl.vectorize(advance)
    states = jax.jit(advance)(jax.jit(purerl.vectorize(start))(scales), scales)
    assert states.clock.iteration == 7
    assert set(branches_around(primitive, advance, states, scales)) == {1}
    assert set(branches_around("sin", advance, states, scales)) == {1}
    # Even with a batched clock, of which a cond would run both branches at every step.
    batched = states._replace(clock=Clock(jnp.full(3, 7)))
    assert set(branches_around(primitive, jax.vmap(step), batched, scales)) == {1}
    assert set(branches_around("sin", jax.vmap(step), batched, scales)) == {1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("damping", 0.0),
        ("damping_kind", "tikhonov"),
        ("decay", 1.0),
        ("decay", -0.1),
        ("stats_every", 0),
        ("inverse_every", 0),
        ("cold_start", -1),
        ("cold_max_norm", 0.0),
        ("kl_clip", 0.0),
        ("kl_clip", {"actor": -1.0}),
    ],
)
def test_bad_numbers(field, value):
    _, _, layers = made(Net())
    with pytest.raises(ValueError, match=f"scale_by_kfac: .*{field}"):
        scale_by_kfac(layers, **{field: value})
