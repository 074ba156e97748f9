"""Policies with a memory in environments that the host plays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_players

import purerl

GRU = purerl.NetworkConfig(hidden_sizes=(4,), memory="gru", memory_size=4)


@pytest.mark.parametrize("name", ["singles", "NEXT_STEP"])
def test_a_played_rollout_holds_the_memories(name):
    """Step by step from the first one; a row that is no transition leaves it as it was."""
    driver, rollout, _ = test_players.played(test_players.MAKERS[name], network=GRU)
    driver.close()
    # The second rollout goes on from where the first ended, so one of the two rows is left out.
    half = rollout.reward.shape[1] // 2
    memory = jax.tree.map(lambda x: np.delete(x, half, axis=1), rollout.memory)
    jax.tree.map(
        lambda x: np.testing.assert_array_equal(x[:, half], x[:, half + 1]), rollout.memory
    )
    network = purerl.RecurrentActorCritic(purerl.Discrete(2), GRU)
    params = jax.tree.map(lambda x: x[0], driver.acting.learner.params)
    valid = np.ones(rollout.reward.shape, bool) if rollout.valid is None else rollout.valid
    assert (name == "NEXT_STEP") == (not valid.all())
    apply = jax.jit(network.apply)
    at = lambda t: jax.tree.map(lambda x: jnp.asarray(x[0, t]), memory)  # noqa: E731
    for t in range(2 * half):
        start = jnp.asarray(rollout.episode_step[0, t] == 0)
        *_, after = apply(params, jnp.asarray(rollout.obs[0, t], jnp.float32), at(t), start)
        kept = jnp.asarray(valid[0, t])[:, None]
        wanted = jax.tree.map(lambda x, y, kept=kept: jnp.where(kept, x, y), after, at(t))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), at(t + 1), wanted)
    assert (rollout.episode_step[0, 1:] == 0).any()


def test_a_run_with_a_memory_is_played_resumed_and_evaluated(tmp_path):
    options = {"steps": 256, "num_envs": 4, "rollout_length": 16, "evaluations": 2}
    options |= {"evaluation_episodes": 2, "num_minibatches": 2, "max_episode_steps": 30}
    experiment = purerl.make_experiment("ppo_clip", "gymnasium:CartPole-v1", network=GRU, **options)
    result = purerl.run(experiment, seeds=2, out=tmp_path / "run", progress=False)
    assert not result.failed.any()
    assert np.isfinite(result.returns).all()
    longer = purerl.resume(tmp_path / "run", steps=384, progress=False)
    assert longer.steps[-1] == 384
    policy = purerl.load_policy(tmp_path / "run")
    obs = np.array([0.01, 0.02, 0.03, 0.04])
    assert policy(obs) in (0, 1)
    memories = [policy._memory["actor"]]
    policy(obs)
    memories.append(policy._memory["actor"])
    assert not np.array_equal(*memories)
    policy.reset()
    policy(obs)
    np.testing.assert_array_equal(policy._memory["actor"], memories[0])
    assert purerl.evaluate_run(tmp_path / "run", episodes=2).mean_return.shape == (2,)
