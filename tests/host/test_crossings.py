"""The host's functions, each crossed with every algorithm."""

import csv

import jax
import numpy as np
import pytest
from run_folders import NotedDriver, driven, final

import purerl
from purerl.cli import main

LOOP = {"num_envs": 4, "evaluations": 2, "evaluation_episodes": 2, "normalize_obs": True}
ON = LOOP | {"steps": 256, "rollout_length": 16}
OFF = LOOP | {"steps": 160, "warmup": 32, "capacity": 64, "batch_size": 16, "rollout_length": 4}
NUMBERS = {
    "ppo_clip": ON | {"num_epochs": 2, "num_minibatches": 2},
    "ppo_penalty": ON | {"num_epochs": 2, "num_minibatches": 2},
    "a2c": ON,
    "trpo": ON | {"cg_iterations": 2, "critic_epochs": 1},
    "npg": ON | {"cg_iterations": 2, "critic_epochs": 1},
    "acktr": ON | {"inverse_every": 2, "cold_start": 1},
    "policy_gradient": ON,
    "dqn": OFF,
}
OBS = np.array([0.01, 0.02, 0.03, 0.04])
assert set(NUMBERS) == set(purerl.ALGORITHMS)
MEMORY = {"memory": "gru", "memory_size": 4, "sequence_length": 8}
NUMBERS["ppo_clip memory"] = NUMBERS["ppo_clip"] | MEMORY


@pytest.fixture(scope="module", params=NUMBERS)
def case(request, tmp_path_factory):
    """A run of each algorithm that was stopped in its middle and resumed, beside a whole one."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    algorithm = name.split()[0]
    numbers = {"hidden_sizes": (4,)} | NUMBERS[name]
    experiment = purerl.make_experiment(algorithm, "CartPole-v1", **numbers)
    options = {"seeds": 2, "progress": False}
    whole = purerl.run(
        experiment, out=folder / "whole", driver=driven(share=(__name__, name)), **options
    )
    cut = driven(at=2, share=(__name__, name))
    stopped = purerl.run(experiment, out=folder / "cut", driver=cut, **options)
    assert stopped.stopped == "SIGINT"
    resumed = purerl.resume(folder / "cut", driver=driven(share=(__name__, name)), progress=False)
    yield name, folder, experiment, whole, resumed
    NotedDriver.programs_of.clear()


def test_a_run_that_was_stopped_and_resumed_has_the_bytes_of_a_whole_one(case):
    _, folder, _, whole, resumed = case
    assert resumed.stopped is None
    assert final(folder / "cut") == final(folder / "whole")
    np.testing.assert_array_equal(resumed.returns, whole.returns)


def test_policies_of_the_folder_and_of_the_result_are_the_same(case):
    _, folder, _, whole, _ = case
    for seed in ("best", 0, 1):
        loaded, own = purerl.load_policy(folder / "whole", seed), whole.policy(seed)
        many = np.linspace(-0.1, 0.1, 20).reshape(5, 4)
        np.testing.assert_array_equal(loaded(many), own(many))
        loaded.reset()
        action = loaded(OBS)
        assert isinstance(action, np.integer)  # as Gymnasium takes it
        assert action in (0, 1)
    one = jax.tree.leaves(purerl.take_seeds(whole.state.learner, 1))
    assert len(one) == len(jax.tree.leaves(whole.state.learner))


def test_a_run_is_read_without_training(case):
    name, folder, experiment, whole, _ = case
    found = purerl.load_run(folder / "whole")
    np.testing.assert_array_equal(found.steps, whole.steps)
    np.testing.assert_array_equal(found.returns, whole.returns)
    assert found.experiment == experiment
    assert found.config["algorithm"] == name.split()[0]
    assert len(repr(found)) < 400
    assert found.policy(0)(OBS) == whole.policy(0)(OBS)


def test_evaluate(case, capsys):
    _, folder, *_ = case
    assert main(["evaluate", str(folder / "whole"), "--episodes", "2"]) == 0
    assert "IQM of 2 seeds, 2 episodes each" in capsys.readouterr().out


def test_plot(case, tmp_path):
    _, folder, *_ = case
    assert main(["plot", str(folder / "whole"), "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 5000


def test_extended_runs_go_on_from_where_they_were(case):
    """The evaluations until then stay; the rest of the schedule follows the new length."""
    _, folder, experiment, whole, _ = case
    steps = int(whole.steps[-1])
    longer = purerl.resume(folder / "cut", steps=2 * steps, progress=False)
    np.testing.assert_array_equal(longer.steps[:2], whole.steps)
    np.testing.assert_array_equal(longer.returns[:, :2], whole.returns)
    assert longer.steps[-1] >= 2 * steps
    assert longer.experiment == experiment.replace(steps=2 * steps)
    with (folder / "cut" / "evaluations.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(longer.steps)
    again = purerl.resume(folder / "cut", progress=False)  # it is the longer run now
    np.testing.assert_array_equal(again.returns, longer.returns)
    with pytest.raises(ValueError, match=rf"steps={steps} is less than the run's {2 * steps}"):
        purerl.resume(folder / "cut", steps=steps)


def test_a_run_begins_warm_from_anothers_learner(case):
    """Before its first update it acts as the other did at its end."""
    name, folder, experiment, whole, _ = case
    begun = []

    def first(row):
        begun.append(row)
        return purerl.STOP

    warm = purerl.run(
        experiment,
        start_from=folder / "whole",
        on_row=first,
        seeds=2,
        out=folder / "warm",
        overwrite=(folder / "warm").exists(),
        driver=driven(share=(__name__, name)),
        progress=False,
    )
    assert warm.stopped == "hook"
    assert len(warm.steps) == len(begun) == 1
    recorded = purerl.load_run(folder / "warm").config["start_from"]
    assert recorded["path"] == str(folder / "whole")
    assert recorded["checksums"] == final(folder / "whole")[0]["policy_checksums"]
    changed = [
        float(np.max(np.abs(np.asarray(a, float) - np.asarray(b, float))))
        for a, b in zip(
            jax.tree.leaves(warm.state.learner), jax.tree.leaves(whole.state.learner), strict=True
        )
    ]
    assert max(changed) > 0  # it was trained
    with pytest.raises(ValueError, match="start_from has 2 seeds, wanted 3"):
        purerl.run(experiment, start_from=whole, seeds=3, progress=False)


def test_sweep(case, tmp_path):
    _, _, experiment, *_ = case
    swept = {"gamma": [0.9, 0.99]}
    result = purerl.sweep(experiment, swept, seeds=1, out=tmp_path, progress=False)
    assert len(result.ranked()) == 2
    assert result.compilations == 1
    assert purerl.load_policy(tmp_path, point=1)(OBS) in (0, 1)
    assert purerl.evaluate_run(tmp_path, point=0, episodes=2).mean_return.shape == (1,)
