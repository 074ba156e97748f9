"""EKFAC: the Fisher's diagonal in the Kronecker eigenbasis, beside dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_capture import NETWORKS
from test_kfac import (
    B,
    Net,
    exact_blocks,
    exact_factors,
    flat,
    made,
    normal,
    same,
    softmax_curvature,
)

from purerl.second_order.kfac import (
    Factors,
    find_layers,
    fisher_factors,
    invert_eigenbasis,
    invert_ekfac,
    precondition,
    scale_by_kfac,
    tap,
)
from purerl.second_order.kfac.factors import rotate
from purerl.second_order.kfac.layers import from_matrices, to_matrices


def basis_of(block):
    return np.kron(block.vectors_a, block.vectors_g)


def frobenius(a, b):
    return float(jnp.linalg.norm(a - b))


def test_moments_are_the_diagonal_of_the_exact_fisher_matrix(x64):
    """Expected over the actions; and the block is nearer to the exact one than K-FAC's."""
    network = Net((6, 5, 3))
    params, obs, layers = made(network)
    factors = exact_factors(network, params, obs, layers)
    basis = invert_eigenbasis(factors, 0.1)
    tapped = tap(network.apply, layers, params, obs)
    policy = jax.nn.softmax(tapped.output)
    moments = 0
    for action in range(3):
        score = jax.nn.one_hot(jnp.full(B, action), 3) - policy
        score = score * jnp.sqrt(policy[:, action])[:, None]
        of_action = fisher_factors(layers, tapped, score, basis=basis).moments
        moments = jax.tree.map(jnp.add, of_action, moments) if action else of_action
    blocks = exact_blocks(network, params, obs, layers, softmax_curvature(tapped.output))
    for block, moment, one, a, g in zip(
        blocks, moments, basis.layers, factors.a, factors.g, strict=True
    ):
        u = basis_of(one)
        np.testing.assert_allclose(jnp.ravel(moment), np.diag(u.T @ block @ u), atol=1e-12)
        ekfac = u @ np.diag(np.ravel(moment)) @ u.T
        assert frobenius(ekfac, block) < 0.99 * frobenius(jnp.kron(a, g), block)


@pytest.mark.parametrize("name", ["of_a_gru_under_scan", "of_attention"])
def test_moments_of_a_weight_with_many_locations(name, x64):
    """A sample's gradient is the sum over its locations, before it is squared."""
    with jax.numpy_rank_promotion("allow"):
        network, params, obs, *_ = NETWORKS[name]()
        layers = find_layers(network, params, obs)
        tapped = tap(network, layers, params, obs)
        score = normal(*tapped.output.shape, seed=3)
        basis = invert_eigenbasis(fisher_factors(layers, tapped, score), 0.1)
        moments = fisher_factors(layers, tapped, score, basis=basis).moments

        def of_sample(x, score):
            return jax.grad(lambda p: jnp.sum(network(p, x[None])[0] * score))(params)

        scores = jax.jit(jax.vmap(of_sample))(obs, score)
        matrices = [
            to_matrices(layers, jax.tree.map(lambda x, b=b: x[b], scores))[0] for b in range(B)
        ]
    for i, (moment, block) in enumerate(zip(moments, basis.layers, strict=True)):
        u = basis_of(block)
        wanted = sum(np.square(u.T @ np.ravel(matrices[b][i])) for b in range(B)) / B
        np.testing.assert_allclose(np.ravel(moment), wanted, atol=1e-12)


def test_moments_are_rotated_into_another_basis(x64):
    params, _, layers = made(Net())
    square = lambda n, seed: (lambda x: x @ x.T)(normal(n, n, seed=seed))  # noqa: E731
    one, other = (
        Factors(
            tuple(square(layer.rows, seed) for layer in layers),
            tuple(square(layer.outputs, seed + 1) for layer in layers),
            {},
            tuple(jnp.square(normal(layer.rows, layer.outputs)) for layer in layers),
        )
        for seed in (1, 7)
    )
    old, new = invert_eigenbasis(one, 0.1), invert_eigenbasis(other, 0.1)
    for moment, rotated, u, v in zip(
        one.moments, rotate(one, old, new).moments, old.layers, new.layers, strict=True
    ):
        u, v = basis_of(u), basis_of(v)
        wanted = np.diag(v.T @ u @ np.diag(np.ravel(moment)) @ u.T @ v)
        np.testing.assert_allclose(np.ravel(rotated), wanted, atol=1e-12)
        np.testing.assert_allclose(rotated.sum(), moment.sum())
    gradient = from_matrices(layers, [jnp.ones((x.rows, x.outputs)) for x in layers], {}, params)
    natural = precondition(layers, invert_ekfac(one, 0.1, old), gradient)
    for got, moment, u in zip(
        to_matrices(layers, natural)[0], one.moments, old.layers, strict=True
    ):
        u = basis_of(u)
        block = u @ np.diag(np.ravel(moment)) @ u.T + 0.1 * np.eye(len(u))
        np.testing.assert_allclose(np.ravel(got), np.linalg.solve(block, np.ones(len(u))))


def test_whole_updates_by_hand(x64):
    """The basis every second update, the moments at each, in the basis in use."""
    params, obs, layers = made(Net())
    kfac = scale_by_kfac(
        layers,
        decay=0.8,
        inverse_every=2,
        cold_start=0,
        kl_clip=None,
        damping=0.1,
        damping_kind="ekfac",
    )
    tapped = tap(Net().apply, layers, params, obs)
    state, factors, weight = kfac.init(params), None, 0.0
    basis = state.inverse
    for i in range(4):
        score, gradient = normal(B, 3, seed=i), jax.tree.map(lambda p: normal(*p.shape), params)
        natural, state = kfac.update(
            gradient,
            state,
            statistics=lambda basis: fisher_factors(layers, tapped, score, basis=basis),  # noqa: B023
            learning_rate=0.1,
        )
        new = fisher_factors(layers, tapped, score, basis=basis)
        factors = jax.tree.map(jnp.zeros_like, new) if factors is None else factors
        factors = jax.tree.map(lambda s, x: 0.8 * s + 0.2 * x, factors, new)
        weight = 0.8 * weight + 0.2
        if i % 2 == 0:
            before, basis = (
                basis,
                invert_eigenbasis(jax.tree.map(lambda s, w=weight: s / w, factors), 0.1),
            )
            factors = rotate(factors, before, basis)
            if i == 0:  # begins with K-FAC's own diagonal
                first = (weight * (1 / block.reciprocal - 0.1) for block in basis.layers)
                factors = factors._replace(moments=tuple(first))
        wanted = []
        for g, moment, block in zip(
            to_matrices(layers, gradient)[0], factors.moments, basis.layers, strict=True
        ):
            u = basis_of(block)
            dense = u @ np.diag(np.ravel(moment) / weight + 0.1) @ u.T
            wanted.append(np.linalg.solve(dense, np.ravel(g)).reshape(g.shape))
        got, _ = to_matrices(layers, natural)
        jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-10), list(got), wanted)


def test_statistics_that_are_not_finite_leave_the_curvature_as_it_was():
    params, obs, layers = made(Net())
    tapped = tap(Net().apply, layers, params, obs)
    kfac = scale_by_kfac(layers, cold_start=0, inverse_every=1, damping_kind="ekfac")
    gradient = jax.tree.map(lambda p: normal(*p.shape, seed=5), params)
    score = normal(B, 3, seed=1)

    def update(state, spoil, gradient=gradient):
        def statistics(basis):
            factors = fisher_factors(layers, tapped, score, basis=basis)
            return factors._replace(moments=tuple(spoil(m) for m in factors.moments))

        return kfac.update(gradient, state, statistics=statistics, learning_rate=0.1)

    _, before = update(kfac.init(params), lambda m: m)
    natural, after = update(before, lambda m: m.at[0, 0].set(jnp.nan))
    kept = lambda state: (state.factors.a, state.factors.g, state.factors.rest, state.weight)  # noqa: E731
    assert same(kept(after), kept(before))
    for new, old in zip(after.factors.moments, before.factors.moments, strict=True):
        np.testing.assert_allclose(new, old, rtol=1e-4)  # in the basis of the same factors again
    assert np.isfinite(flat((natural, after))).all()
    bad = jax.tree.map(lambda x: x.at[(0,) * x.ndim].set(jnp.nan), gradient)
    _, refused = update(before, lambda m: m, bad)
    assert same((refused.factors, refused.weight), (before.factors, before.weight))
    assert same(refused.inverse, before.inverse)
