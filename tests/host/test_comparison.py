"""``purerl compare``: what it reads, what it says, what it refuses."""

import functools
import json
import types

import numpy as np
import pytest

import purerl
from purerl.cli import main
from purerl.host.curves import read_curves
from purerl.host.report.aggregate import task_iqm
from purerl.host.result import RunResult

STEPS = [100, 200, 400]


def result_file(folder, algorithm, env, returns, **others):
    """As ``benchmarks/learning.py`` writes them."""
    path = folder / f"{algorithm}-{env}.json"
    data = {
        "name": f"{algorithm}-{env}",
        "experiment": {"env": env},
        "steps": STEPS[: len(returns[0])],
        "returns": returns,
        "steps_per_second": 50.0,
    }
    path.write_text(json.dumps(data | others))
    return path


def run_folder(folder, algorithm, env, returns):
    """As ``purerl.run`` writes them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"algorithm": algorithm, "env": env}))
    rows = ["step,seed,return,seconds"]
    for i, step in enumerate(STEPS[: len(returns[0])]):
        rows += [f"{step},{seed},{x[i]},{step / 10}" for seed, x in enumerate(returns)]
    (folder / "evaluations.csv").write_text("\n".join(rows))
    return folder


def in_memory(algorithm, env, returns):
    steps, returns = np.array(STEPS[: len(returns[0])]), np.array(returns)
    loop = types.SimpleNamespace(max_episode_steps=None)
    experiment = types.SimpleNamespace(algorithm=algorithm, env=env, env_params={}, loop=loop)
    failed = np.zeros(len(returns), bool)
    return RunResult(None, steps, returns, failed, {}, 20.0, experiment=experiment)


LOW, HIGH = [[0.0, 1.0], [1.0, 2.0], [0.0, 5.0]], [[0.0, 4.0], [0.0, 9.0], [2.0, 6.0], [1.0, 7.0]]


@pytest.fixture
def four(tmp_path):
    """Two algorithms on two tasks."""
    return [
        result_file(tmp_path, "a", "X", LOW),
        run_folder(tmp_path / "run", "b", "X", HIGH),
        result_file(tmp_path, "a", "Y", [[0.0, -10.0], [0.0, -30.0]]),
        in_memory("b", "Y", [[0.0, -20.0], [0.0, -20.0]]),
    ]


def test_files_folders_and_results_are_compared_on_the_same_tasks(four):
    compared = purerl.compare(*four)
    assert compared.tasks == ["X", "Y"]
    assert compared.ranges == {"X": (1.0, 9.0), "Y": (-30.0, -10.0)}
    np.testing.assert_allclose(compared.scores("a")[0], [0, 1 / 8, 1 / 2])
    np.testing.assert_allclose(compared.scores("a")[1], [1, 0])
    np.testing.assert_allclose(compared.scores("b")[0], np.array([3, 8, 5, 6]) / 8)
    # On X, of 12 pairs a wins one (5 against 4); on Y one of two: the mean of both.
    np.testing.assert_allclose(compared.improvements()[0, 1, 0], (1 / 12 + 1 / 2) / 2)
    np.testing.assert_allclose(compared.improvements()[1, 0, 0], (11 / 12 + 1 / 2) / 2)
    for name, seconds in (("a", [6, 12]), ("b", [10, 20])):
        np.testing.assert_allclose(compared.curves[name]["X"].seconds, seconds)
    np.testing.assert_allclose(compared.curves["b"]["Y"].seconds, [10, 20])


def test_the_table_says_iqm_interval_ends_and_who_is_better(four):
    text = repr(purerl.compare(*four, ranges={"X": (0.0, 10.0)}))
    low, high = purerl.iqm_interval([1.0, 2.0, 5.0])
    line = next(line for line in text.splitlines() if line.startswith("a ") and "200" in line)
    assert f"2.67 [{low:.2f}, {high:.2f}]" in line
    assert line.split()[1:3] == ["200", "3"]
    assert line.split()[-2:] == ["1.00", "5.00"]
    assert f"{task_iqm([[0.1, 0.2, 0.5], [1, 0]]):.3f} [" in text
    pair = text.split("better  than  probability")[1].splitlines()[1]  # the better one first
    assert pair.split()[:3] == ["b", "a", "0.71"]
    assert "scores 0 to 1 are returns of 0.00 to 10.0 on X, -30.0 to -10.0 on Y" in text


def test_scores_of_a_task_on_which_all_are_equal_are_1(tmp_path):
    files = [result_file(tmp_path, name, "X", [[0.0, 5.0], [1.0, 5.0]]) for name in "ab"]
    np.testing.assert_array_equal(purerl.compare(*files).scores("b"), [[1.0, 1.0]])


def test_steps_and_last_choose_the_evaluations(tmp_path):
    returns = np.array([[0.0, 2.0, 9.0], [1.0, 4.0, 9.0]])
    files = [
        result_file(tmp_path, name, "X", (returns + i).tolist(), last=2)
        for i, name in enumerate("ab")
    ]
    results = lambda **options: purerl.compare(*files, **options).curves["a"]["X"].results()  # noqa: E731
    np.testing.assert_array_equal(results(), [5.5, 6.5])
    np.testing.assert_array_equal(results(last=1), [9, 9])
    np.testing.assert_array_equal(results(steps=399), [1, 2.5])
    np.testing.assert_array_equal(results(steps=200, last=1), [2, 4])
    np.testing.assert_allclose(purerl.compare(*files, steps=200).curves["a"]["X"].seconds, [4, 8])


def test_seeds_that_are_not_finite_are_kept_as_the_lowest_and_said(tmp_path):
    nan, inf = float("nan"), float("inf")
    files = [
        result_file(tmp_path, "a", "X", [[1.0, nan], [1.0, 5.0], [1.0, inf]]),
        result_file(tmp_path, "b", "X", [[-3.0, 4.0], [1.0, 6.0]]),
    ]
    compared = purerl.compare(*files)
    np.testing.assert_array_equal(compared.curves["a"]["X"].results(), [-3, 5, -3])
    assert "a on X: 2 of 3 seeds not finite; they count as -3.00, the lowest" in repr(compared)


def test_what_only_some_have_and_different_lengths_are_said(tmp_path):
    files = [result_file(tmp_path, "a", env, LOW) for env in "XY"]
    files += [result_file(tmp_path, "b", "X", [[1.0, 2.0, 3.0]] * 2)]
    text = repr(purerl.compare(*files))
    assert "left out, for not all have them: Y" in text
    assert "steps differ on X: 200 to 400; steps=200 compares all after as many" in text


def test_the_command_writes_table_and_pictures(tmp_path, capsys):
    files = [result_file(tmp_path, name, "X", LOW) for name in "ab"]
    words = ["compare", *map(str, files), "--out", str(tmp_path / "out"), "--ranges", "X=0:10"]
    assert main(words) == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        *("table.txt", "steps.png", "seconds.png", "profiles.png", "improvements.png")
    }
    assert (out / "table.txt").read_text() in capsys.readouterr().out
    assert main(words) == 2
    assert "exists; choose another --out, or give --overwrite" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert main([*words, "--overwrite", "--ranges", "X=1"]) == 2
    assert "got 'X=1', wanted TASK=LOW:HIGH" in capsys.readouterr().err


def test_pictures_show_what_was_compared(four):
    compared = purerl.compare(*four)
    parts = compared.plot_seconds().axes
    assert [axes.get_title() for axes in parts] == ["X", "Y"]
    np.testing.assert_allclose(parts[0].lines[1].get_xdata(), [10, 20])
    np.testing.assert_allclose(parts[0].lines[1].get_ydata(), [0.5, 6.5])
    (axes,) = compared.plot_profiles().axes
    along, fraction = axes.lines[0].get_data()
    assert fraction[np.searchsorted(along, 0.05)] == pytest.approx((2 / 3 + 1 / 2) / 2)
    matrix = compared.plot_improvements().axes[0]
    assert [text.get_text() for text in matrix.texts][1].startswith("0.29")


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ([], {}, "got nothing, wanted at least two algorithms"),
        ([("a", "X", LOW)], {}, "got a, wanted at least two algorithms"),
        ([("a", "X", LOW), ("b", "Y", LOW)], {}, r"no task is common to all \(a: X; b: Y\)"),
        ([("a", "X", LOW), ("b", "X", LOW[:1])], {}, r"b on X has 1 seed\(s\), wanted at least 2"),
        ([("a", "X", LOW), ("b", "X", LOW)], {"steps": 99}, "a on X has 0 evaluations up to 99"),
        ([("a", "X", LOW), ("b", "X", LOW)], {"last": 3}, "2 evaluations, wanted the last 3"),
        ([("a", "X", LOW), ("b", "X", LOW)], {"last": 0}, "2 evaluations, wanted the last 0"),
        (
            [("a", "X", LOW), ("b", "X", LOW)],
            {"ranges": {"X": (2.0, 2.0)}},
            "range 2.0:2.0 for X, wanted LOW < HIGH",
        ),
        ([(name, "X", [[float("nan")]] * 2) for name in "ab"], {}, "on X no return is finite"),
    ],
)
def test_what_cannot_be_compared_is_refused(files, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        purerl.compare(*[result_file(tmp_path, *file) for file in files], **options)


def test_what_is_no_run_and_no_result_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run"):
        purerl.compare(tmp_path, tmp_path)
    other = tmp_path / "other.json"
    other.write_text('{"name": "a"}')
    with pytest.raises(ValueError, match=r"no result of .*: it has no experiment, steps"):
        purerl.compare(other)
    other.write_text("[1]")
    with pytest.raises(ValueError, match="it is no object"):
        purerl.compare(other)
    other.write_text("{")
    with pytest.raises(ValueError, match="no JSON"):
        purerl.compare(other)


def test_two_runs_of_one_algorithm_are_told_apart_by_their_folder(tmp_path):
    runs = [run_folder(tmp_path / name, "a", "X", LOW) for name in ("one", "two")]
    assert [*purerl.compare(*runs).curves] == ["a", f"a [{runs[1]}]"]


def test_results_in_memory_are_told_apart_by_a_number():
    results = [in_memory("a", "X", LOW) for _ in range(3)]
    assert [*purerl.compare(*results, {"b": {"X": (STEPS[:2], LOW)}}).curves] == [
        *("a", "a [2]", "a [3]", "b")
    ]


def test_curves_from_elsewhere_have_no_seconds():
    compared = purerl.compare({name: {"X": (STEPS[:2], LOW)} for name in "ab"})
    assert compared.curves["a"]["X"].seconds is None
    (axes,) = compared.plot_seconds().axes
    assert [text.get_text() for text in axes.texts] == ["seconds not known"]
    assert len(compared.plot_steps().axes[0].lines) == 2


def test_an_environment_of_other_parameters_is_another_task(tmp_path):
    """CartPole-v1 of 50 steps has other returns, wherever they are read from."""
    asked = {"env": "X", "env_params": {"goal": [3, 4]}, "loop": {"max_episode_steps": 50}}
    file = result_file(tmp_path, "a", "X", LOW, experiment=asked)
    folder = run_folder(tmp_path / "run", "b", "X", LOW)
    (folder / "config.json").write_text(json.dumps({"algorithm": "b"} | asked))
    result = in_memory("c", "X", LOW)
    result.experiment.env_params = {"goal": (3, 4)}
    result.experiment.loop.max_episode_steps = 50
    plain = in_memory("a", "X", LOW)
    curves = read_curves((file, folder, result, plain), 1)
    tasks = {name: [*of] for name, of in curves.items()}
    named = "X (goal=[3, 4], max_episode_steps=50)"
    assert tasks == {"a": [named, "X"], "b": [named], "c": [named]}


def test_each_point_of_a_sweep_is_on_the_task_that_it_was_trained_on(tmp_path):
    sizes = {"steps": 64, "num_envs": 4, "rollout_length": 8, "hidden_sizes": (4,)}
    sizes |= {"evaluations": 1, "evaluation_episodes": 2}
    made = functools.partial(purerl.make_experiment, "a2c", "CartPole-v1", **sizes)
    limits = [{"max_steps_in_episode": 5}, {"max_steps_in_episode": 20}]
    options = {"seeds": 2, "out": tmp_path / "sweep", "progress": False}
    result = purerl.sweep(made, {"env_params": limits}, **options)
    curves = read_curves((tmp_path / "sweep",), 2)
    tasks = {label: list(of) for label, of in curves.items()}
    assert len(tasks) == 2
    for label, (task,) in tasks.items():
        limit = 5 if label.startswith("a2c 0:") else 20
        assert task == f"CartPole-v1 (max_steps_in_episode={limit})"
        np.testing.assert_array_equal(curves[label][task].returns, result.returns[int(limit == 20)])
    with pytest.raises(ValueError, match="no task is common to all"):
        purerl.compare(tmp_path / "sweep", top=2)
    with pytest.raises(TypeError, match="a SweepResult does not say what was trained; give"):
        purerl.compare(result)
