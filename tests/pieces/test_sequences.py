"""Rollouts as sequences, minibatches of them, and the values of their states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import purerl
from purerl.pieces import advantages, rows, sequences
from purerl.pieces.minibatches import minibatches
from purerl.policies.acting import apply_network
from purerl.records import OnPolicyBatch, Rollout, Sequences

STEPS, ENVS = 6, 4


class Sum:
    """The memory is the sum of what was seen in this episode; so is the value; the policy is even.

    Everything can be computed by hand.
    """

    def init_memory(self, obs):
        return jnp.zeros(len(obs))

    def init(self, key, obs, memory, start):
        return {"scale": jnp.ones(())}

    def apply(self, params, obs, memory, start):
        memory = jnp.where(start, 0.0, memory) + obs[:, 0]
        return purerl.Categorical(jnp.zeros((len(obs), 2))), params["scale"] * memory, memory


def numbers(*shape):
    """A different one for every step and environment, step * 100 + environment."""
    return jnp.arange(float(STEPS))[:, None] * 100 + jnp.arange(float(ENVS))[None]


def rollout(valid=None, seed=0):
    """Observations are numbers, and the memories those of a policy that saw them."""
    rng = np.random.default_rng(seed)
    obs = numbers()[..., None]
    ended = rng.uniform(size=(STEPS, ENVS)) < 0.3
    truncated = ended & (rng.uniform(size=ended.shape) < 0.5)
    step, memory = np.zeros((STEPS, ENVS), int), np.zeros((STEPS + 1, ENVS))
    step[0], memory[0] = 3, 1000
    keep = np.ones((STEPS, ENVS), bool) if valid is None else np.asarray(valid)
    count = step[0].copy()
    for t in range(STEPS):
        step[t] = count
        seen = np.where(count == 0, 0, memory[t]) + np.asarray(obs[t, :, 0])
        memory[t + 1] = np.where(keep[t], seen, memory[t])
        count = np.where(keep[t], np.where(ended[t], 0, count + 1), count)
    return Rollout(
        obs=obs,
        action=jnp.zeros((STEPS, ENVS), jnp.int32),
        log_prob=numbers(),
        reward=jnp.asarray(rng.normal(size=(STEPS, ENVS))),
        terminated=jnp.asarray(ended & ~truncated),
        truncated=jnp.asarray(truncated),
        next_obs=obs + 0.5,
        episode_step=jnp.asarray(step),
        valid=None if valid is None else jnp.asarray(valid),
        memory=jnp.asarray(memory),
    )


def by_hand(played):
    """V of each state, and of each observation before any reset, one number after the other."""
    value, after = np.zeros((2, STEPS, ENVS))
    for t in range(STEPS):
        for n in range(ENVS):
            before = 0 if played.episode_step[t, n] == 0 else played.memory[t, n]
            value[t, n] = before + played.obs[t, n, 0]
            after[t, n] = value[t, n] + played.next_obs[t, n, 0]
    return value, after


def test_values_are_with_the_memory_of_the_state(x64):
    """A final observation's is with that after its own step, whatever was reset."""
    played = rollout()
    assert played.truncated.any()
    value, next_value = advantages.values(Sum(), {"scale": jnp.ones(())}, played)
    wanted = by_hand(played)
    np.testing.assert_allclose(value, wanted[0])
    np.testing.assert_allclose(next_value, wanted[1])


@pytest.mark.parametrize("length", [None, 6, 3, 2, 1])
def test_all_fields_of_a_batch_are_in_one_order(length, x64):
    """The number seen, the log-probability (the same number), and the value recomputed."""
    played, network, params = rollout(), Sum(), {"scale": jnp.ones(())}
    settings = 0.9, 0.8, False, None, length
    batch = advantages.on_policy_batch(network, params, played, *settings)
    steps = length or STEPS
    assert batch.obs.start.shape == (steps, ENVS * STEPS // steps)
    np.testing.assert_array_equal(batch.obs.obs.reshape(-1), batch.log_prob)
    values = apply_network(network, params, batch.obs)[1]
    np.testing.assert_allclose(values, batch.value)
    np.testing.assert_array_equal(np.sort(batch.log_prob), np.sort(np.ravel(numbers())))
    if length in (None, STEPS):
        np.testing.assert_array_equal(batch.log_prob, np.ravel(numbers()))


def test_minibatches_are_whole_sequences(x64):
    played, network, params = rollout(), Sum(), {"scale": jnp.ones(())}
    batch = advantages.on_policy_batch(network, params, played, 0.9, 0.8, False, None, 3)
    parts = minibatches(jax.random.key(1), batch, 4)
    assert parts.obs.start.shape == (4, 3, 2)
    assert parts.value.shape == (4, 6)
    for i in range(4):
        part = jax.tree.map(lambda x, i=i: x[i], parts)
        np.testing.assert_array_equal(part.obs.obs.reshape(-1), part.log_prob)
        values = apply_network(network, params, part.obs)[1]
        np.testing.assert_allclose(values, part.value)
    np.testing.assert_array_equal(np.sort(parts.log_prob.ravel()), np.sort(np.ravel(numbers())))
    assert not np.array_equal(parts.log_prob, minibatches(jax.random.key(2), batch, 4).log_prob)
    plain = minibatches(jax.random.key(1), batch, 2, shuffle=False)
    np.testing.assert_array_equal(plain.obs.obs[0], batch.obs.obs[:, :4])


def test_invalid_rows_change_nothing(x64):
    """They stand after the valid ones, and gradients of these are those without them."""
    rng = np.random.default_rng(3)
    valid = rng.uniform(size=(STEPS, ENVS)) < 0.7
    played, network = rollout(valid), Sum()
    strange = played._replace(
        obs=jnp.where(valid[..., None], played.obs, jnp.nan),
        next_obs=jnp.where(valid[..., None], played.next_obs, jnp.nan),
    )

    def loss(params):
        filled = rows.filled(strange)
        obs = sequences.observations(network, filled)
        fields = sequences.samples(network, filled, (filled.log_prob, filled.valid))
        value = apply_network(network, params, obs)[1]
        return rows.mean(jnp.square(value), fields[1]), (value, *fields)

    params = {"scale": jnp.array(0.5)}
    gradient, (value, number, counted) = jax.grad(loss, has_aux=True)(params)
    wanted = dict(zip(np.ravel(numbers()), np.ravel(by_hand(played)[0]), strict=True))
    assert counted.sum() == valid.sum()
    for got, n in zip(value[counted], number[counted], strict=True):
        np.testing.assert_allclose(got, 0.5 * wanted[float(n)])
    squares = np.square([wanted[float(n)] for n in number[counted]])
    np.testing.assert_allclose(gradient["scale"], 2 * 0.5 * squares.mean())


def test_what_does_not_divide():
    batch = OnPolicyBatch(
        Sequences(jnp.zeros((STEPS, ENVS, 1)), jnp.zeros(ENVS), jnp.zeros((STEPS, ENVS), bool)),
        *[jnp.zeros(STEPS * ENVS)] * 5,
    )
    with pytest.raises(ValueError, match=r"4 sequences cannot be split into 3 equal minibatches"):
        minibatches(jax.random.key(0), batch, 3)
    with pytest.raises(
        ValueError, match=r"sequence_length=4 does not divide the rollout's 6 steps"
    ):
        sequences.observations(Sum(), rollout(), 4)
    with pytest.raises(ValueError, match=r"rollout\.memory has nothing, wanted leaves \[T \+ 1, N"):
        sequences.observations(Sum(), rollout()._replace(memory=None))
    with pytest.raises(ValueError, match=r"rollout\.memory has \[6\] rows"):
        sequences.states(Sum(), rollout()._replace(memory=jnp.zeros((STEPS, ENVS))))
