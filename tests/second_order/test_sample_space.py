"""The natural gradient by samples, beside dense matrices and conjugate gradient to convergence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from test_capture import NETWORKS
from test_kfac import normal

import purerl
from purerl.algorithms import trpo
from purerl.policies import acting
from purerl.second_order.conjugate_gradient import conjugate_gradient
from purerl.second_order.products import subsample
from purerl.second_order.sample_space import (
    policy_scores,
    score_matrix,
    solve_by_samples,
    transform_advantages,
)

B, T, OBS, HIDDEN = 12, 4, 3, 5


def mlp():
    """An ActorCritic, whose critic has no scores, with a log-std, that no weight claims."""
    network = purerl.ActorCritic(purerl.Box((2,)), purerl.NetworkConfig(hidden_sizes=(6, 5)))
    x = {"obs": normal(B, OBS), "action": normal(B, 2, seed=1)}
    params = network.init(jax.random.key(0), x["obs"])
    return lambda p, x: network.apply(p, x["obs"])[0].log_prob(x["action"]), params, x


def convolution():
    config = purerl.NetworkConfig(hidden_sizes=(5,), conv_features=3)
    network = purerl.ActorCritic(purerl.Discrete(3), config)
    x = {"obs": normal(B, 5, 5, 2), "action": jnp.arange(B) % 3}
    params = network.init(jax.random.key(0), x["obs"])
    return lambda p, x: network.apply(p, x["obs"])[0].log_prob(x["action"]), params, x


def recurrent():
    """A sequence's scores depend on its earlier observations; a start that is learned."""
    shapes = {"in": (OBS, HIDDEN), "back": (HIDDEN, HIDDEN), "out": (HIDDEN, 3), "start": (HIDDEN,)}
    params = {name: normal(*shape, seed=len(name)) for name, shape in shapes.items()}

    def log_prob(p, x):
        def turn(h, now):
            obs, action = now
            h = jnp.tanh(obs @ p["in"] + h @ p["back"])
            return h, purerl.Categorical(h @ p["out"]).log_prob(action)

        start = jnp.broadcast_to(p["start"], (len(x["obs"]), HIDDEN))
        turns = x["obs"].swapaxes(0, 1), x["action"].T
        return jax.lax.scan(turn, start, turns)[1].T

    return (
        log_prob,
        params,
        {"obs": normal(B, T, OBS), "action": jnp.arange(B * T).reshape(B, T) % 3},
    )


def unfit():
    """A matrix that no Kronecker product describes."""
    params = {"w": normal(OBS, OBS), "v": normal(OBS, 3)}

    def log_prob(p, x):
        hidden = jnp.tanh(x["obs"] @ jnp.tril(p["w"]))
        return purerl.Categorical(hidden @ p["v"]).log_prob(x["action"])

    return log_prob, params, {"obs": normal(B, OBS), "action": jnp.arange(B) % 3}


POLICIES = {f.__name__: f for f in (mlp, convolution, recurrent, unfit)}


def dense_scores(log_prob, params, x):
    flat, tree_of = ravel_pytree(params)
    jacobian = jax.jacrev(lambda p: jnp.ravel(log_prob(tree_of(p), x)))
    return jax.jit(jacobian)(flat), tree_of


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", POLICIES)
def test_the_step_is_that_of_conjugate_gradient_carried_to_convergence(name, masked, x64):
    log_prob, params, x = POLICIES[name]()
    shape = jax.eval_shape(log_prob, params, x).shape
    valid = jnp.arange(np.prod(shape)).reshape(shape) % 3 != 0 if masked else None
    matrix, tree_of = dense_scores(log_prob, params, x)
    if masked:
        matrix = matrix * valid.reshape(-1, 1)
    count, damping = (int(valid.sum()) if masked else len(matrix)), 0.01
    g = tree_of(normal(matrix.shape[1], seed=3))

    @jax.jit
    def solve(params, x):
        scores = score_matrix(log_prob, params, x, valid)
        return scores.gram, solve_by_samples(scores, g, damping)

    gram, got = solve(params, x)
    np.testing.assert_allclose(gram, matrix @ matrix.T, atol=1e-11)
    product = lambda v: tree_of(matrix.T @ (matrix @ ravel_pytree(v)[0]) / count)  # noqa: E731
    wanted = conjugate_gradient(product, g, damping=damping, max_iterations=2000, tolerance=1e-12).x
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got.x, wanted)
    dense = matrix.T @ matrix / count + damping * np.eye(matrix.shape[1])
    solution = np.linalg.solve(dense, ravel_pytree(g)[0])
    np.testing.assert_allclose(ravel_pytree(got.x)[0], solution, atol=1e-9)
    assert got.residual_norm < 1e-9

    # Advantages that are transformed: of a gradient that is made of the same scores.
    advantage = normal(len(matrix), seed=4) * (valid.reshape(-1) if masked else 1)
    scores = score_matrix(log_prob, params, x, valid)
    natural = scores.pull(transform_advantages(scores, advantage, damping))
    natural = ravel_pytree(natural)[0] / count
    wanted = np.linalg.solve(dense, matrix.T @ advantage / count)
    np.testing.assert_allclose(natural, wanted, atol=1e-9)


def test_damping_must_be_positive():
    log_prob, params, x = unfit()
    with pytest.raises(ValueError, match=r"solve_by_samples: damping"):
        solve_by_samples(score_matrix(log_prob, params, x), params, 0.0)
    with pytest.raises(ValueError, match=r'solver="samples" needs a damping above 0'):
        purerl.TRPOConfig(solver="samples", damping=0.0)
    with pytest.raises(ValueError, match=r"solver"):
        purerl.TRPOConfig(solver="inverse")


@pytest.mark.parametrize(
    ("kind", "fraction"),
    [(purerl.NPGConfig, 1.0), (purerl.NPGConfig, 0.5), (purerl.TRPOConfig, 1.0)],
)
def test_trpo_by_samples(kind, fraction, x64):
    """The whole policy step, beside one made of dense matrices."""
    network = purerl.ActorCritic(purerl.Box((2,)), purerl.NetworkConfig(hidden_sizes=(6,)))
    obs = normal(B, OBS)
    params = network.init(jax.random.key(0), obs)
    policy = network.apply(params, obs)[0]
    action = policy.sample(jax.random.key(1))
    advantage = normal(B, seed=2)
    batch = purerl.OnPolicyBatch(obs, action, policy.log_prob(action), None, advantage, None)
    config = kind(solver="samples", fisher_fraction=fraction, damping=0.02, max_kl=1e-6)
    step = jax.jit(trpo.make_policy_step(network, config))
    new, info = step(params, batch)
    assert info["accepted"]
    assert info["finite"]
    assert info["cg_residual"] < 1e-9

    log_prob = lambda p, x: network.apply(p, x["obs"])[0].log_prob(x["action"])  # noqa: E731
    matrix, _ = dense_scores(log_prob, params, {"obs": obs, "action": action})
    flat, _ = ravel_pytree(params)
    g = matrix.T @ advantage / B
    rows = subsample(matrix, fraction)
    dense = rows.T @ rows / len(rows) + 0.02 * np.eye(len(flat))
    x = np.linalg.solve(dense, g)
    wanted = x * np.sqrt(2 * 1e-6 / (x @ g)) * info["step_fraction"]
    np.testing.assert_allclose(ravel_pytree(new)[0] - flat, wanted, atol=1e-9)


def test_rows_that_are_none_leave_no_trace(x64):
    network = purerl.ActorCritic(purerl.Discrete(3), purerl.NetworkConfig(hidden_sizes=(6,)))
    obs, action = normal(B, OBS), jnp.arange(B) % 3
    params = network.init(jax.random.key(0), obs)
    old = network.apply(params, obs)[0].log_prob(action)
    batch = purerl.OnPolicyBatch(obs, action, old, None, normal(B, seed=2), None)
    step = trpo.make_policy_step(network, purerl.NPGConfig(solver="samples"))
    wanted, _ = step(params, batch)
    longer = jax.tree.map(lambda x: jnp.concatenate([x, x[:3]]), batch)
    got, _ = step(params, longer._replace(valid=jnp.arange(B + 3) < B))
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, atol=1e-10), got, wanted)


def test_an_embedding_and_attention(x64):
    """Weights with three axes and many locations, and parameters of no layer."""
    with jax.numpy_rank_promotion("allow"):
        network, params, obs, *_ = NETWORKS["of_attention"]()
        action = jnp.arange(len(obs)) % 4
        log_prob = lambda p, x: purerl.Categorical(network(p, x[0])).log_prob(x[1])  # noqa: E731
        matrix, _ = dense_scores(log_prob, params, (obs, action))
        gram = jax.jit(lambda p: score_matrix(log_prob, p, (obs, action)).gram)(params)
    np.testing.assert_allclose(gram, matrix @ matrix.T, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_scores_of_a_policy_with_a_memory(masked, x64):
    """Flax's GRU, through an episode's end, beside the Jacobian of all log-probabilities."""
    config = purerl.NetworkConfig(hidden_sizes=(4,), memory="gru", memory_size=3)
    network = purerl.RecurrentActorCritic(purerl.Discrete(3), config)
    steps, count, damping = 3, 2, 0.02
    start = jnp.zeros((steps, count), bool).at[0].set(True).at[1, 1].set(True)
    first = normal(count, OBS)
    memory = jax.tree.map(lambda x: x.astype(float), network.init_memory(first))
    params = network.init(jax.random.key(0), first, memory, start[0])
    obs = purerl.Sequences(normal(steps, count, OBS), memory, start)
    action = jnp.arange(steps * count) % 3
    valid = jnp.arange(steps * count) != 3 if masked else None

    def policy(p, x):
        return acting.apply_network(network, p, x)[0]

    log_prob = lambda p, x: policy(p, x).log_prob(action)  # noqa: E731
    matrix, tree_of = dense_scores(log_prob, params, obs)
    matrix = matrix if valid is None else matrix * valid[:, None]
    total = steps * count - masked
    g = tree_of(normal(matrix.shape[1], seed=3))
    scores = jax.jit(lambda p: policy_scores(policy, p, obs, action, valid).gram)(params)
    order = np.arange(steps * count).reshape(steps, count).T.reshape(-1)  # by sequence
    np.testing.assert_allclose(scores, (matrix @ matrix.T)[np.ix_(order, order)], atol=1e-11)
    got = solve_by_samples(policy_scores(policy, params, obs, action, valid), g, damping).x
    dense = matrix.T @ matrix / total + damping * np.eye(matrix.shape[1])
    wanted = np.linalg.solve(dense, ravel_pytree(g)[0])
    np.testing.assert_allclose(ravel_pytree(got)[0], wanted, atol=1e-8)
