"""Runs of algorithms brought as records: what they hold and say ends in checkpoints and the log."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from run_folders import read_rows

import purerl

SIZES = {"steps": 64, "num_envs": 4, "rollout_length": 8, "evaluations": 2}
SIZES |= {"evaluation_episodes": 2, "max_episode_steps": 8}
QUIET = {"seeds": 2, "progress": False}


def drawing(state, info=None):
    """Plays at random, and learns nothing.

    Args:
        state: What it holds, a function of a key.
        info: What its update says.
    """

    def act(state, obs, key, *, greedy=False, progress=1.0):
        return jax.random.randint(key, (len(obs),), 0, 2), {"log_prob": jnp.zeros(len(obs))}

    def update(state, rollout, key, *, progress=0.0):
        return state, {"finite": jnp.array(True)} | (info or {})

    return purerl.OnPolicyAlgorithm(lambda obs, key: state(key), act, update, gamma=0.9)


def made(algorithm, **changes):
    return purerl.make_experiment(algorithm, "CartPole-v1", **SIZES, **changes)


@pytest.mark.parametrize(
    "state", [lambda key: (), lambda key: {"key": key, "x": jnp.zeros(2)}], ids=["none", "a key"]
)
def test_whatever_a_learner_holds_is_kept_resumed_and_begun_with(state, tmp_path):
    algorithm = drawing(state)
    stop = lambda row: purerl.STOP  # noqa: E731
    cut = purerl.run(made(algorithm), out=tmp_path / "cut", on_row=stop, **QUIET)
    assert cut.stopped == "hook"
    result = purerl.resume(tmp_path / "cut", algorithm=algorithm, progress=False)
    whole = purerl.run(made(algorithm), **QUIET)
    np.testing.assert_array_equal(result.returns, whole.returns)

    evaluation = purerl.evaluate_run(tmp_path / "cut", episodes=2, algorithm=algorithm)
    assert evaluation.mean_return.shape == (2,)
    for policy in (purerl.load_policy(tmp_path / "cut", algorithm=algorithm), result.policy(1)):
        assert policy(np.zeros((3, 4))).shape == (3,)

    # The object that is trained is the one that the other run was begun with.
    warm = purerl.run(made(algorithm), start_from=tmp_path / "cut", **QUIET)
    assert warm.returns.shape == whole.returns.shape


@pytest.mark.parametrize(
    ("info", "column"),
    [({"return": 1.0}, "return"), ({"step": 3.5, "seed": 9.0}, "seed, step")],
)
def test_an_info_that_is_called_like_a_column_is_refused(info, column):
    with pytest.raises(ValueError, match=f"has {column}, which the log has a column of already"):
        purerl.run(made(drawing(lambda key: (), info)), **QUIET)


@pytest.mark.parametrize(
    "rows", [[{"first": 1}, {"second": 2}], [None, {"late": 1}], [{"a": 1, "b": 2}, {"a": 1}]]
)
def test_the_columns_of_a_hook_are_the_same_at_each_row(rows):
    answers = iter(rows)
    with pytest.raises(ValueError, match="a log has the same columns at each row"):
        purerl.run(made(drawing(lambda key: ())), on_row=lambda row: next(answers), **QUIET)


def test_columns_of_a_hook_that_is_not_given_again_are_nan(tmp_path, capsys):
    algorithm = drawing(lambda key: ())
    answers = iter([{"b": 1, "a": 2}, purerl.STOP])
    options = {"out": tmp_path / "run", "on_row": lambda row: next(answers)}
    experiment = made(algorithm).replace(evaluations=4, steps=128)
    assert purerl.run(experiment, **options, **QUIET).stopped == "hook"
    purerl.resume(tmp_path / "run", algorithm=algorithm, progress=True)
    assert "on_row is not given again, so b, a will be NaN" in capsys.readouterr().err
    rows = read_rows(tmp_path / "run")
    assert [(row["b"], row["a"]) for row in rows[::2]] == [("1", "2")] + [("nan", "nan")] * 3


def test_what_begins_again_may_have_other_columns(tmp_path):
    """It was killed before its first checkpoint, and has a header with a hook's column."""
    run = tmp_path / "run"
    algorithm = drawing(lambda key: ())
    purerl.run(made(algorithm), out=run, on_row=lambda row: {"mine": 1}, **QUIET)
    for checkpoint in (run / "checkpoints").iterdir():
        for file in sorted(checkpoint.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        checkpoint.rmdir()
    purerl.resume(run, algorithm=algorithm, progress=False)
    rows = read_rows(run)
    assert len(rows) == 4
    assert "mine" not in rows[0]
