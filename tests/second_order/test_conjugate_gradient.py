"""Conjugate gradient against direct solves and other implementations; how it stops; under vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl import CGStop

N = 20


def matrix(seed=0, n=N, condition=100.0):
    """Symmetric positive definite, of a known condition number."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    return q @ np.diag(np.geomspace(1.0, condition, n)) @ q.T, rng.normal(size=n)


def solve(a, b, **kwargs):
    return purerl.conjugate_gradient(lambda v: jnp.asarray(a) @ v, jnp.asarray(b), **kwargs)


def textbook(a, b, iterations, damping=0.0, m=None):
    """The recursion, line by line; m is a matrix."""
    a = a + damping * np.eye(len(b))
    m = np.eye(len(b)) if m is None else m
    x, r = np.zeros_like(b), b.copy()
    p = m @ r
    for _ in range(iterations):
        alpha = (r @ m @ r) / (p @ a @ p)
        x, new = x + alpha * p, r - alpha * (a @ p)
        p = m @ new + (new @ m @ new) / (r @ m @ r) * p
        r = new
    return x, r


def test_solution_is_that_of_a_direct_solve(x64):
    a, b = matrix()
    result = solve(a, b, tolerance=1e-12, max_iterations=10 * N)
    np.testing.assert_allclose(result.x, np.linalg.solve(a, b), rtol=1e-9)
    assert result.reason == CGStop.CONVERGED
    assert result.residual_norm <= 1e-12 * np.linalg.norm(b)
    np.testing.assert_allclose(result.residual, b - a @ result.x, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 5, 10])
def test_same_as_jax_after_the_same_number_of_iterations(k, x64):
    a, b = matrix()
    wanted, _ = jax.scipy.sparse.linalg.cg(
        lambda v: jnp.asarray(a) @ v, jnp.asarray(b), tol=0.0, atol=0.0, maxiter=k
    )
    result = solve(a, b, tolerance=0.0, max_iterations=k)
    np.testing.assert_allclose(result.x, wanted, rtol=1e-10)
    assert result.iterations == k
    assert result.reason == CGStop.MAX_ITERATIONS
    np.testing.assert_allclose(result.residual_norm, np.linalg.norm(b - a @ wanted), rtol=1e-10)


def test_at_most_as_many_iterations_as_eigenvalues(x64):
    """Exact in n steps; in three, where there are three distinct eigenvalues."""
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(N, N)))
    a = q @ np.diag(np.repeat([1.0, 3.0, 50.0], [5, 5, 10])) @ q.T
    result = solve(a, matrix()[1], tolerance=1e-10, max_iterations=N)
    assert result.iterations == 3
    assert result.reason == CGStop.CONVERGED


def test_damping_is_added_to_the_diagonal_once(x64):
    a, b = matrix()
    result = solve(a, b, tolerance=1e-12, max_iterations=10 * N, damping=0.7)
    np.testing.assert_allclose(result.x, np.linalg.solve(a + 0.7 * np.eye(N), b), rtol=1e-10)
    np.testing.assert_allclose(result.residual, b - a @ result.x - 0.7 * result.x, atol=1e-11)


def test_a_pytree_is_its_flat_vector(x64):
    a, b = matrix()
    split = lambda v: {"one": v[:8].reshape(2, 4), "two": (v[8:],)}  # noqa: E731
    join = lambda t: jnp.concatenate([t["one"].ravel(), t["two"][0]])  # noqa: E731
    result = purerl.conjugate_gradient(
        lambda t: split(jnp.asarray(a) @ join(t)), split(jnp.asarray(b)), max_iterations=7
    )
    wanted = solve(a, b, max_iterations=7)
    np.testing.assert_allclose(join(result.x), wanted.x, rtol=1e-12)
    np.testing.assert_allclose(result.residual_norm, wanted.residual_norm, rtol=1e-10)


def test_tolerance_is_relative(x64):
    a, b = matrix()
    counts = {int(solve(a, s * b, tolerance=1e-4, max_iterations=99).iterations) for s in (1, 1e-9)}
    assert len(counts) == 1
    assert counts.pop() < 99


def test_where_it_starts(x64):
    a, b = matrix()
    exact = np.linalg.solve(a, b)
    at_end = solve(a, b, x0=jnp.asarray(exact), tolerance=1e-9)
    assert at_end.iterations == 0
    np.testing.assert_array_equal(at_end.x, exact)
    nearby = solve(
        a, b, x0=jnp.asarray(exact + 1e-3), damping=0.5, tolerance=1e-12, max_iterations=99
    )
    np.testing.assert_allclose(nearby.x, np.linalg.solve(a + 0.5 * np.eye(N), b), rtol=1e-9)


def test_start_of_another_dtype(x64):
    result = purerl.conjugate_gradient(lambda v: 2 * v, jnp.ones(2), x0=jnp.array([1, 2]))
    np.testing.assert_allclose(result.x, 0.5, rtol=1e-12)


def test_start_and_product_of_another_shape():
    a, b = matrix()
    with pytest.raises(ValueError, match=r"x0 has shapes \(3,\), wanted those of b, \(20,\)"):
        solve(a, b, x0=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"matvec's product has shapes \(1,\), wanted those of b"):
        purerl.conjugate_gradient(lambda v: v[:1], jnp.asarray(b))


def test_right_hand_side_of_integers():
    with pytest.raises(ValueError, match=r"b has leaves of dtype \['int32'\], wanted floating"):
        purerl.conjugate_gradient(lambda v: 2 * v, jnp.array([1, 2]))


def test_preconditioner_in_another_precision():
    b = jnp.ones(3, jnp.bfloat16)
    result = purerl.conjugate_gradient(
        lambda v: 2 * v, b, preconditioner=lambda r: r.astype(jnp.float32) / 2, tolerance=1e-2
    )
    assert result.x.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(result.x, np.float32), 0.5, rtol=1e-2)


# Preconditioning.


@pytest.mark.parametrize("k", [1, 3, 8])
def test_preconditioned_recursion(k, x64):
    a, b = matrix()
    m = np.linalg.inv(matrix(seed=9)[0])
    result = solve(
        a,
        b,
        preconditioner=lambda r: jnp.asarray(m) @ r,
        tolerance=0.0,
        max_iterations=k,
        damping=0.3,
    )
    x, r = textbook(a, b, k, damping=0.3, m=m)
    np.testing.assert_allclose(result.x, x, rtol=1e-9)
    np.testing.assert_allclose(result.residual_norm, np.linalg.norm(r), rtol=1e-9)


def test_the_inverse_as_preconditioner_needs_one_iteration(x64):
    a, b = matrix(condition=1e6)
    inverse = jnp.asarray(np.linalg.inv(a))
    result = solve(a, b, preconditioner=lambda r: inverse @ r, tolerance=1e-6)
    assert result.iterations == 1
    np.testing.assert_allclose(a @ result.x, b, rtol=1e-6)


def test_the_diagonal_as_preconditioner_needs_fewer(x64):
    """Badly scaled features: the same residual after a fraction of the products."""
    a, b = matrix(condition=5.0)
    scale = np.geomspace(1e-2, 1e2, N)
    a = a * scale[:, None] * scale
    diagonal = jnp.asarray(np.diag(a))
    options = {"tolerance": 1e-6, "max_iterations": 2000}
    plain = solve(a, b, **options)
    better = solve(a, b, preconditioner=lambda r: r / diagonal, **options)
    assert better.reason == CGStop.CONVERGED
    assert better.residual_norm <= 1e-6 * np.linalg.norm(b)
    assert 3 * better.iterations < plain.iterations


# How it stops.


def test_right_hand_side_of_zero():
    result = solve(matrix()[0], np.zeros(N))
    assert result.reason == CGStop.CONVERGED
    assert result.iterations == 0
    assert not np.any(result.x)


def test_negative_curvature(x64):
    """Stops at the last good point: with eigenvalues 1 and -1 the first step is not made."""
    a = np.diag([1.0, -1.0])
    result = solve(a, np.array([1.0, 2.0]))
    assert result.reason == CGStop.NON_POSITIVE_CURVATURE
    assert result.iterations == 0
    assert not np.any(result.x)
    later = solve(np.diag([1.0, 2.0, -0.1]), np.array([1.0, 1.0, 0.1]), tolerance=0.0)
    assert later.reason == CGStop.NON_POSITIVE_CURVATURE
    assert later.iterations > 0
    x, _ = textbook(np.diag([1.0, 2.0, -0.1]), np.array([1.0, 1.0, 0.1]), int(later.iterations))
    np.testing.assert_allclose(later.x, x, rtol=1e-12)


def test_singular_matrix_with_a_solution_and_without(x64):
    a = np.diag([1.0, 2.0, 0.0])
    solvable = solve(a, np.array([1.0, 1.0, 0.0]))
    assert solvable.reason == CGStop.CONVERGED
    np.testing.assert_allclose(solvable.x, [1.0, 0.5, 0.0], atol=1e-12)
    nothing = solve(a, np.array([0.0, 0.0, 1.0]))
    assert nothing.reason == CGStop.NON_POSITIVE_CURVATURE
    assert not np.any(nothing.x)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_right_hand_side(bad):
    result = solve(matrix()[0], np.array([bad] + [1.0] * (N - 1)))
    assert result.reason == CGStop.NON_FINITE
    assert result.iterations == 0
    assert not np.any(result.x)


def test_non_finite_product_keeps_the_last_good_point(x64):
    """The product breaks on the small directions of the last iterations."""
    a, b = matrix(condition=10.0)
    options = {"tolerance": 1e-9, "max_iterations": 50}
    product = lambda v: jnp.where(jnp.linalg.norm(v) > 1e-3, 1, jnp.nan) * (a @ v)  # noqa: E731
    result = purerl.conjugate_gradient(product, jnp.asarray(b), **options)
    assert result.reason == CGStop.NON_FINITE
    assert result.iterations > 3
    wanted = solve(a, b, tolerance=0.0, max_iterations=int(result.iterations))
    np.testing.assert_allclose(result.x, wanted.x, rtol=1e-12)


def test_overflow(x64):
    with jax.enable_x64(False):
        result = solve(
            np.float32(1e-30) * np.eye(2, dtype=np.float32), np.full(2, 1e10, np.float32)
        )
    assert result.reason == CGStop.NON_FINITE
    assert not np.any(result.x)


# Under vmap.


def systems():
    """Easy, hard, singular, indefinite, NaN, zero; and ten more."""
    a = np.stack([matrix(seed, condition=10.0 ** (seed % 5))[0] for seed in range(16)])
    b = np.stack([matrix(seed)[1] for seed in range(16)])
    a[2] = np.diag([0.0] * 10 + [1.0] * 10)
    a[3] = np.diag([-1.0] * 10 + [1.0] * 10)
    a[4, 0, 0] = np.nan
    b[5] = 0.0
    b[6, 3] = np.inf
    return a, b


@pytest.mark.trains  # the singular one grows by what is rounded
def test_sixteen_systems_at_once_are_sixteen_alone(x64):
    a, b = systems()
    options = {"tolerance": 1e-8, "max_iterations": 30}
    many = jax.jit(jax.vmap(lambda a, b: solve(a, b, **options)))(a, b)
    alone = jax.jit(lambda a, b: solve(a, b, **options))
    reasons = set()
    for i in range(16):
        one = alone(a[i], b[i])
        assert many.reason[i] == one.reason
        assert many.iterations[i] == one.iterations
        np.testing.assert_allclose(many.x[i], one.x, rtol=1e-6, atol=1e-12)
        reasons.add(int(one.reason))
    assert reasons == set(CGStop)
    assert np.isfinite(many.x).all()


def test_a_finished_system_is_frozen_bit_for_bit(x64):
    """The easy one's numbers do not depend on how long its neighbours run, or on what they meet."""
    easy, hard, broken = matrix(1, condition=2.0), matrix(2, condition=1e8), matrix(3)
    broken[0][0, 0] = np.nan
    both = jax.jit(jax.vmap(lambda a, b: solve(a, b, tolerance=1e-6, max_iterations=500)))
    twice = both(*(np.stack(x) for x in zip(easy, easy, strict=True)))
    for neighbour in (hard, broken):
        mixed = both(*(np.stack(x) for x in zip(easy, neighbour, strict=True)))
        for got, wanted in zip(jax.tree.leaves(mixed), jax.tree.leaves(twice), strict=True):
            np.testing.assert_array_equal(got[0], wanted[0])
    assert twice.iterations[0] < 30


# Bad input.


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tolerance", -1e-3, r"tolerance=-0.001 is out of range; set it within \[0, inf\)"),
        ("damping", -0.1, "damping=-0.1 is out of range"),
        ("damping", float("nan"), "damping=nan is out of range"),
        ("max_iterations", 0, "max_iterations=0 is out of range"),
        ("max_iterations", 2.5, "max_iterations=2.5 is no integer"),
    ],
)
def test_arguments_out_of_range(name, value, message):
    with pytest.raises(ValueError, match=message):
        solve(*matrix(), **{name: value})
