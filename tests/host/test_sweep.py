"""Sweeps: what shares a program, what is split, what is resumed, and who wins."""

import csv
import functools
import gc
import json
import shutil
import signal
import sys

import jax
import numpy as np
import optax
import pytest
from run_folders import read_rows

import purerl
from purerl.cli import main
from purerl.host.report import frame
from purerl.host.resources import fitting
from purerl.host.sweep.parts import largest
from purerl.host.sweep.points import described, grid, make_groups

# All sweeps that are trained here have four rows of this size, so that they share one program.
SMALL = {
    "steps": 256,
    "num_envs": 4,
    "rollout_length": 16,
    "evaluations": 2,
    "evaluation_episodes": 4,
    "hidden_sizes": (8,),
}
make = functools.partial(purerl.make_experiment, "a2c", "CartPole-v1", **SMALL)
RATES = [1e-3, 1e-2]
VALUES = {"learning_rate": RATES, "hidden_sizes": [(8,), (8, 8)]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid that needs two programs."""
    out = tmp_path_factory.mktemp("sweeps") / "small"
    return out, purerl.sweep(make, VALUES, seeds=2, out=out, progress=False)


def made_up(**changes):
    """A result of three points, of which the last one has only half of its evaluations."""
    values = {
        "points": [{"clip": 0.1}, {"clip": 0.2}, {"clip": 0.3}],
        "steps": np.array([[9, 18], [9, 18], [9, -1]]),
        "returns": np.array([[[1.0, 1.0]], [[2.0, 2.0]], [[3.0, np.nan]]]),
        "failed": np.zeros((3, 1), bool),
        "finished": np.array([True, True, False]),
        "seconds": {},
        "compilations": 1,
    }
    return purerl.SweepResult(**(values | changes))


def test_grid_is_every_combination():
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]


def test_samples_are_uniform_or_log_uniform():
    points = purerl.samples(4000, a=(1e-4, 1.0, "log"), b=(2.0, 4.0))
    a, b = (np.array([point[name] for point in points]) for name in "ab")
    assert a.min() >= 1e-4
    assert a.max() <= 1
    np.testing.assert_allclose([np.log10(a).mean(), b.mean()], [-2, 3], atol=0.06)
    np.testing.assert_allclose(np.log10(a).std(), 4 / 12**0.5, rtol=0.05)
    for bad in ((1.0, 0.5), (0.0, 1.0, "log"), (1.0, 2.0, "exp")):
        with pytest.raises(ValueError, match="is no range"):
            purerl.samples(3, a=bad)


def test_points_share_a_program_where_their_differences_can_be_traced():
    points = grid({"learning_rate": RATES, "gamma": [0.9, 0.99], "rollout_length": [8, 16]})
    groups = make_groups([make(**point) for point in points])
    assert [len(group.points) for group in groups] == [4, 4]
    assert {tuple(group.values) for group in groups} == {("learning_rate", "gamma")}
    networks = [{"hidden_sizes": (8,)}, {"hidden_sizes": (9,)}, {"activation": "relu"}]
    assert len(make_groups([make(**point) for point in networks])) == 3
    optional = [make(max_grad_norm=x) for x in (None, 0.5, 1.0)]  # without a clip: other shapes
    assert [len(group.points) for group in make_groups(optional)] == [1, 2]


def small_network(space):
    return purerl.ActorCritic(space)


def test_points_may_vary_what_is_brought(tmp_path):
    """By its import path, or by a name and a number."""
    object_, other = (lambda space: purerl.ActorCritic(space) for _ in range(2))
    networks = [small_network, object_, other, object_, None, purerl.NetworkConfig()]
    told = [point["network"] for point in described([{"network": x} for x in networks])]
    assert told[:5] == [f"{__name__}:small_network", *(f"<lambda> {i}" for i in (0, 1, 0)), None]
    assert told[5]["hidden_sizes"] == [64, 64]
    params = {"env_params": {"f": small_network}}
    assert described([params]) == [{"env_params": {"f": {"$function": told[0]}}}]
    (tmp_path / "taken").touch()
    with pytest.raises(FileExistsError):  # all that is told was told
        purerl.sweep(make, {"network": [small_network, object_]}, out=tmp_path)


def test_schedules_are_swept_as_a_number_times_a_shape():
    points = grid({"learning_rate": RATES, "learning_rate_schedule": ["linear", "cosine"]})
    groups = make_groups([make(**point) for point in points])
    assert [group.points for group in groups] == [[0, 2], [1, 3]]
    assert [group.values for group in groups] == [{"learning_rate": RATES}] * 2


def test_functions_of_progress_share_a_program_only_where_they_are_one():
    """Two of the same values at the five points that are recorded may differ between them."""
    one = optax.linear_schedule(1e-3, 1e-4, 1)
    other = lambda p: one(p) * (1 + np.sin(np.pi * 4 * p) ** 2 * (p - 0.5))  # noqa: E731
    experiments = [make(learning_rate=x, gamma=y) for x, y in ((one, 0.9), (one, 0.8), (other, 1))]
    assert [group.points for group in make_groups(experiments)] == [[0, 1], [2]]


def test_points_may_vary_the_environment():
    anywhere = functools.partial(purerl.make_experiment, "a2c", **SMALL)
    points = grid({"env": ["CartPole-v1", "Acrobot-v1"], "learning_rate": RATES})
    groups = make_groups([anywhere(**point) for point in points])
    assert [group.points for group in groups] == [[0, 1], [2, 3]]
    assert [group.experiment.env for group in groups] == ["CartPole-v1", "Acrobot-v1"]


def test_a_point_is_the_run_with_its_numbers(swept):
    """Same keys; to rounding, since more are trained side by side."""
    _, result = swept
    assert result.compilations == 2
    assert result.returns.shape == (4, 2, 2)
    alone = purerl.run(make(**result.points[2]), seeds=2, progress=False)
    np.testing.assert_array_equal(result.steps[2], alone.steps)
    np.testing.assert_allclose(result.returns[2], alone.returns, rtol=0.1)
    assert len(np.unique(result.returns.reshape(4, -1), axis=0)) == 4


def test_the_table_is_ranked_by_iqm(swept):
    out, result = swept
    rows = result.ranked()
    assert [row["iqm"] for row in rows] == sorted((row["iqm"] for row in rows), reverse=True)
    assert all(row["low"] <= row["iqm"] <= row["high"] for row in rows)
    *lines, alike = result.table().splitlines()
    overlap = sum(row["high"] >= rows[0]["low"] for row in rows)
    assert alike.startswith(f"{overlap} of these rows are not told apart")
    assert lines[0].split()[:4] == ["rank", "point", "learning_rate", "hidden_sizes"]
    assert [line.split()[0] for line in lines[1:]] == list("1234")
    assert len({len(line) for line in lines}) == 1
    assert len(result.table(top=2).splitlines()) == 4
    assert len(result.table(top=1).splitlines()) == 2  # with itself there is nothing to tell
    with (out / "sweep.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["iqm"]) for row in written] == [row["iqm"] for row in rows]
    assert all(result.points[row["point"]].items() <= row.items() for row in rows)


def test_rows_have_the_hyper_parameters(swept):
    out, result = swept
    for part in sorted(out.glob("group-*/rows-*")):
        rows = read_rows(part)
        assert [*rows[0]][:5] == ["point", "learning_rate", "hidden_sizes", "seed", "step"]
        for row in rows:
            point = result.points[int(row["point"])]
            assert float(row["learning_rate"]) == point["learning_rate"]
            assert row["hidden_sizes"] == str(point["hidden_sizes"])


def test_a_sweep_is_read_from_its_folder(swept):
    out, result = swept
    read = purerl.load_sweep(out)
    assert read.ranked() == result.ranked()
    assert read.points == result.points
    np.testing.assert_array_equal(read.returns, result.returns)
    np.testing.assert_array_equal(read.steps, result.steps)
    np.testing.assert_array_equal(read.failed, result.failed)
    assert read.compilations == result.compilations
    for what, seconds in read.seconds.items():  # the last checkpoint is a little before the end
        assert 0 < seconds <= result.seconds[what]
    assert read.finished.all()
    with pytest.raises(FileNotFoundError, match="is no sweep"):
        purerl.load_sweep(next(out.glob("group-000/rows-*")))


def test_a_result_is_a_table_of_seeds_and_evaluations():
    result = made_up()
    columns = frame.evaluations(result.points, result.steps, result.returns, result.failed)
    assert {name: column.tolist() for name, column in columns.items()} == {
        "point": [0, 0, 1, 1, 2],
        "clip": [0.1, 0.1, 0.2, 0.2, 0.3],
        "seed": [0] * 5,
        "step": [9, 18, 9, 18, 9],
        "return": [1.0, 1.0, 2.0, 2.0, 3.0],
        "failed": [False] * 5,
    }
    returns, failed = np.array([[[1.0], [2.0]]]), np.array([[False, True]])
    one = frame.evaluations([{}], np.array([[9]]), returns, failed)
    assert {name: column.tolist() for name, column in one.items()} == {
        "seed": [0, 1],
        "step": [9, 9],
        "return": [1.0, 2.0],
        "failed": [False, True],
    }
    points = [{"widths": (8,)}, {"widths": (8, 8), "clip": 0.1}]
    mixed = frame.point_columns(points, np.array([1, 0]))
    assert {name: column.tolist() for name, column in mixed.items()} == {
        "point": [1, 0],
        "widths": [(8, 8), (8,)],
        "clip": [0.1, None],
    }


def test_a_result_as_a_data_frame():
    pytest.importorskip("pandas")
    table = made_up().to_pandas()
    assert table.groupby("clip")["return"].max().tolist() == [1.0, 2.0, 3.0]
    assert table.dtypes["step"] == np.int64


def test_a_data_frame_needs_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="which is not installed: pip install pandas"):
        made_up().to_pandas()


def test_the_policies_of_a_sweep(swept, tmp_path):
    """Each is the one that was evaluated: played again, it has the same return."""
    out, result = swept
    env = purerl.make_env("CartPole-v1")
    for point, seed in ((0, 0), (3, 1)):  # of both programs
        policy = purerl.load_policy(out, seed, point=point)
        key = jax.random.split(jax.random.split(jax.random.key(0), 2)[seed], 3)[0]
        key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), 4)
        played = purerl.evaluate(lambda obs, key, p=policy: p(obs), env, key, episodes=4)
        np.testing.assert_allclose(played.mean_return, result.returns[point, seed, -1], rtol=1e-6)
    best = result.ranked()[0]["point"]
    seed = int(np.argmax(result.returns[best, :, -1]))
    obs = jax.random.normal(jax.random.key(1), (200, 4))
    chosen = purerl.load_policy(out, seed, point=best)(obs)
    np.testing.assert_array_equal(purerl.load_policy(out)(obs), chosen)
    with pytest.raises(ValueError, match=r"got point=4, wanted 'best' or 0 to 3"):
        purerl.load_policy(out, point=4)
    with pytest.raises(ValueError, match=r"got seed=2, wanted 'best' or 0 to 1"):
        purerl.load_policy(out, 2, point=0)
    part = next(out.glob("group-000/rows-*"))
    for function in (purerl.load_policy, purerl.evaluate_run, purerl.resume):
        with pytest.raises(ValueError, match="is a sweep, or a part of one"):
            function(part)


def test_a_seed_that_fails_is_counted_and_harms_no_other(swept, tmp_path, capsys):
    """A rate that overflows, beside one that does not; the other one is bitwise unaffected."""
    good, out = swept[0] / "group-000", tmp_path / "bad"
    bad = purerl.sweep(make, {"learning_rate": [1e-3, 1e38]}, seeds=2, out=out)
    rows = {}
    for name, group in (("good", good), ("bad", out / "group-000")):
        [part] = group.iterdir()
        read = read_rows(part)
        point = read[0]["point"]
        rows[name] = [row | {"seconds": "", "hidden_sizes": ""} for row in read]
        rows[name] = [row for row in rows[name] if row["point"] == point]
    assert rows["bad"] == rows["good"]
    assert len(rows["good"]) == 4
    shown = capsys.readouterr().err
    assert "point/seed 1/0, 1/1: an update was not finite by step" in shown
    assert "2 failed (point/seed 1/0, 1/1)" in shown
    assert bad.failed.tolist() == [[False, False], [True, True]]
    assert [row["failed"] for row in bad.ranked() if row["learning_rate"] > 1] == [2]
    stopped = purerl.sweep(
        make, {"learning_rate": [1e-3, 1e38]}, seeds=2, progress=False, on_failure="stop"
    )
    assert stopped.stopped == "failure"


def test_a_sweep_is_resumed(swept, tmp_path):
    """Stopped between its two programs; what is finished is not trained again."""
    out, whole = swept
    options = {"seeds": 2, "out": tmp_path / "cut", "progress": False}
    seen = []

    def stop_at_the_end(rows):
        seen.append({name: rows[name].tolist() for name in ("point", "learning_rate", "seed")})
        return purerl.STOP if rows["step"][0] == 256 else {"tenfold": 10 * rows["return"]}

    cut = purerl.sweep(make, VALUES, on_row=stop_at_the_end, **options)
    assert (cut.stopped, cut.compilations) == ("hook", 1)
    rates = [1e-3, 1e-3, 1e-2, 1e-2]
    assert seen == [{"point": [0, 0, 2, 2], "learning_rate": rates, "seed": [0, 1, 0, 1]}] * 2
    assert cut.finished.tolist() == [True, False, True, False]
    assert (cut.steps[1] < 0).all()
    assert np.isnan(cut.returns[1]).all()
    result = purerl.resume_sweep(tmp_path / "cut")
    assert result.compilations == 1
    np.testing.assert_array_equal(result.returns, whole.returns)
    assert (tmp_path / "cut" / "sweep.csv").read_text() == (out / "sweep.csv").read_text()
    again = purerl.sweep(make, VALUES, resume=True, **options)
    assert again.compilations == 0
    np.testing.assert_array_equal(again.returns, whole.returns)
    with pytest.raises(ValueError, match=r"is another run: seeds is 2 there, 3 here"):
        purerl.sweep(make, VALUES, resume=True, **(options | {"seeds": 3}))
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        purerl.sweep(make, VALUES, **options)


def test_ctrl_c_while_a_later_program_is_compiled_loses_no_point_before():
    """Without a folder they would be gone."""
    trained = []

    class Interrupting:
        """A network during whose compilation, after another point, Ctrl-C is pressed."""

        def __init__(self, space):
            self.network = small_network(space)
            self.init = self.network.init

        def apply(self, params, obs):
            if trained:
                signal.raise_signal(signal.SIGINT)
            return self.network.apply(params, obs)

    values = {"network": [small_network, Interrupting]}
    result = purerl.sweep(make, values, seeds=2, progress=False, on_row=trained.append)
    assert (result.stopped, result.finished.tolist()) == ("SIGINT", [True, False])
    assert np.isfinite(result.returns[0]).all()


def test_overwriting_loses_nothing_before_the_new_sweep_trains(swept, tmp_path):
    """Numbers of NumPy are Python's; what cannot be described or does not fit deletes nothing; and
    what was finished before counts for nothing.
    """
    copy = shutil.copytree(swept[0], tmp_path / "copy")
    options = {"seeds": 2, "out": copy, "overwrite": True, "progress": False}
    for bad in ({"learning_rate": [-1.0]}, {"gamma": [0.9, {1, 2}]}):
        with pytest.raises((ValueError, TypeError)):
            purerl.sweep(make, bad, **options)
    with pytest.raises(ValueError, match="one seed a device needs about"):
        purerl.sweep(make, {"learning_rate": RATES}, memory_bytes=1000, **options)
    assert (purerl.load_sweep(copy).returns == swept[1].returns).all()
    rates = {"learning_rate": np.array(RATES, np.float32)}
    again = purerl.sweep(make, rates, **(options | {"seed": np.int64(0)}))
    assert again.compilations == 1
    assert json.loads((copy / "config.json").read_text())["seed"] == 0
    assert purerl.load_sweep(copy).points == [
        {"learning_rate": float(x)} for x in rates.popitem()[1]
    ]
    assert len(purerl.load_sweep(copy).points) == 2


def test_points_with_values_of_different_names():
    result = made_up(points=[{"learning_rate": 1e-3}, {"gamma": 0.9}, {}])
    names = {"point", "learning_rate", "gamma", "step", "iqm", "low", "high", "min", "failed"}
    assert {frozenset(row) for row in result.ranked()} == {frozenset(names)}
    assert len(result.table().splitlines()) == 5


def test_points_of_several_tasks_are_ranked_one_task_after_another():
    points = [{"env": "A", "clip": 0.1}, {"env": "B", "clip": 0.1}, {"env": "A", "clip": 0.2}]
    result = made_up(points=points, finished=np.ones(3, bool))
    assert [row["point"] for row in result.ranked()] == [2, 0, 1]  # though B's return is 2, A's 1
    assert "2 tasks" in result.table()
    assert "2 tasks" not in made_up().table()


def test_no_column_hides_a_swept_number():
    result = made_up(points=[{"low": x, "step": x} for x in (0.1, 0.2, 0.3)])
    assert [row["swept_low"] for row in result.ranked()] == [0.2, 0.1, 0.3]
    assert "swept_low" in result.table()
    columns = frame.evaluations(result.points, result.steps, result.returns, result.failed)
    assert columns["swept_step"].tolist() == [0.1, 0.1, 0.2, 0.2, 0.3]
    assert columns["step"].tolist() == [9, 18, 9, 18, 9]


def test_a_sweep_that_was_stopped_ranks_what_is_finished_first():
    result = made_up(stopped="SIGINT")
    assert [row["clip"] for row in result.ranked()] == [0.2, 0.1, 0.3]
    assert [row["step"] for row in result.ranked()] == [18, 18, 9]
    assert [row["iqm"] for row in result.ranked()] == [2.0, 1.0, 3.0]
    assert [*result.curves()] == ["1: clip=0.2", "0: clip=0.1", "2: clip=0.3"]
    steps, returns = result.curves()["2: clip=0.3"]
    assert (steps.tolist(), returns.tolist()) == ([9], [[3.0]])
    less = result._replace(steps=np.array([[9, 18], [9, 18], [-1, -1]]))
    assert less.table().splitlines()[-1] == "1 of 3 points were not evaluated yet"
    nothing = result._replace(steps=np.full((3, 0), -1), returns=np.zeros((3, 1, 0)))
    assert repr(nothing) == "nothing was evaluated yet"
    whole = result._replace(finished=np.ones(3, bool))  # trained for different numbers of steps
    assert [row["clip"] for row in whole.ranked()] == [0.3, 0.2, 0.1]
    assert "step" not in whole.ranked()[0]
    failed = whole._replace(returns=whole.returns * np.array([1, np.nan, 1])[:, None, None])
    assert [row["clip"] for row in failed.ranked()] == [0.3, 0.1, 0.2]  # NaN is the worst


def test_of_equal_iqms_the_higher_interval_is_first():
    returns = np.array([[0.0, 2, 2, 2, 2, 4], [1, 2, 2, 2, 2, 3], [0, 2, 2, 2, 2, 9]])[..., None]
    result = made_up(
        steps=np.full((3, 1), 9),
        returns=returns,
        failed=np.zeros((3, 6), bool),
        finished=np.ones(3, bool),
    )
    assert {row["iqm"] for row in result.ranked()} == {2.0}
    assert result.ranked()[0]["point"] == 1


def test_a_sweep_of_an_object_is_resumed_when_it_is_given_again(tmp_path):
    env = purerl.make_env("CartPole-v1")
    options = {"seeds": 2, "progress": False, "out": tmp_path / "sweep"}
    first = purerl.sweep("a2c", env, grid={"learning_rate": RATES}, **options, **SMALL)
    with pytest.raises(ValueError, match=r"give it again \(env="):
        purerl.resume_sweep(tmp_path / "sweep")
    again = purerl.resume_sweep(tmp_path / "sweep", env=env)
    assert again.compilations == 0
    np.testing.assert_array_equal(again.returns, first.returns)


def test_what_cannot_be_sharded_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"num_envs=3 cannot be shared evenly by 2 devices"):
        purerl.sweep(make, {"num_envs": [4, 3]}, out=tmp_path / "x", shard="environments")
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_not_resumed_with_other_versions(swept, tmp_path):
    out, whole = swept
    copy = shutil.copytree(out, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["circumstances"]["source"] = "other"
    (copy / "config.json").write_text(json.dumps(config))
    options = {"seeds": 2, "out": copy, "resume": True, "progress": False}
    with pytest.raises(ValueError, match=r"source is 'other' there.* the sweep would not be"):
        purerl.sweep(make, VALUES, **options)
    again = purerl.sweep(make, VALUES, inexact=True, **options)
    np.testing.assert_array_equal(again.returns, whole.returns)


def test_what_does_not_fit_is_trained_in_parts(swept, tmp_path):
    """Of a program of four rows two fit; of the first part nothing is kept."""
    values, living = {"learning_rate": RATES}, []

    def look(rows):
        gc.collect()
        living.append(sum(x.nbytes for x in jax.live_arrays()))

    out = tmp_path / "parts"
    options = {"seeds": 2, "progress": False, "on_row": look}
    with pytest.raises(ValueError, match="one seed a device needs about") as error:
        purerl.sweep(make, values, out=out, memory_bytes=1, **options)
    of_a_seed = float(str(error.value).split("needs about ")[1].split()[0])
    parts = purerl.sweep(make, values, out=out, memory_bytes=int(2.8 * of_a_seed), **options)
    assert parts.compilations == 2  # one to see what fits; both parts share the other
    assert sorted(path.name for path in (out / "group-000").iterdir()) == [
        "rows-000000-000002",
        "rows-000002-000004",
    ]
    assert living[2] < living[0] + 2000
    np.testing.assert_allclose(parts.returns, swept[1].returns[::2], rtol=0.1)


@pytest.mark.parametrize(
    ("rows", "all_rows", "needed", "there", "devices", "wanted"),
    [
        (10, 10, 100.0, 100.0, 1, 10),  # just fits
        (10, 10, 101.0, 100.0, 1, 5),  # nine would, but two parts of five are more even
        (12, 12, 300.0, 100.0, 2, 4),
        (10, 10, 100.0, 59.0, 2, 4),  # a multiple of the devices: 4, 4, 2
        (4, 10, 100.0, 100.0, 1, 4),  # the compiler took four
    ],
)
def test_parts_are_as_few_and_even_as_fit(rows, all_rows, needed, there, devices, wanted):
    assert fitting(rows, all_rows, needed, there, devices) == wanted


def test_what_the_compiler_refuses_is_halved():
    """As a TPU's does with what is larger than its memory."""
    tried = []

    def compiled(rows):
        tried.append(rows)
        if rows > 4:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ran out of memory")
        return rows

    assert largest(compiled, 10, 2) == 4
    assert tried == [10, 6, 4]
    with pytest.raises(jax.errors.JaxRuntimeError):
        largest(lambda rows: compiled(rows + 100), 10, 2)
    with pytest.raises(ZeroDivisionError):
        largest(lambda rows: rows / 0, 10, 2)


def test_a_sweep_says_what_it_takes():
    with pytest.raises(TypeError, match="wanted a function or an experiment"):
        purerl.sweep("ppo_clip", "CartPole-v1")
    with pytest.raises(ValueError, match="sweep got no points"):
        purerl.sweep(make, [])
    with pytest.raises(ValueError, match="give out, and no overwrite"):
        purerl.sweep(make, VALUES, resume=True)
    for values in ({"learning_rate": 1e-3}, {"activation": "relu"}, {"hidden_sizes": {}}):
        with pytest.raises(
            TypeError, match=r"sweep: the values of \w+ are .*, wanted a list; .*\["
        ):
            purerl.sweep(make, values)
    with pytest.raises(ValueError, match="sweep: memory_bytes='8 GB' is no integer"):
        purerl.sweep(make, VALUES, memory_bytes="8 GB")
    with pytest.raises(ValueError, match=r"unknown memory 'grue'. Did you mean gru"):
        purerl.sweep("a2c", "CartPole-v1", grid={"gamma": [0.9]}, memory="grue")


def test_an_algorithm_by_name_with_a_grid(swept):
    """Points name all that differs from the defaults, the environment if it is not given."""
    points = [SMALL | {"learning_rate": rate, "env": "CartPole-v1"} for rate in RATES]
    result = purerl.sweep(
        functools.partial(purerl.make_experiment, "a2c"), points, seeds=2, progress=False
    )
    np.testing.assert_array_equal(result.returns, swept[1].returns[::2])
    rates = {"learning_rate": RATES}
    again = purerl.sweep("a2c", "CartPole-v1", grid=rates, seeds=2, progress=False, **SMALL)
    np.testing.assert_array_equal(again.returns, result.returns)


COMMAND = ["sweep", "a2c", "CartPole-v1", "--steps", "256", "--num-envs", "4", "--no-progress"]
COMMAND += ["--rollout-length", "16", "--evaluations", "2", "--evaluation-episodes", "4"]
COMMAND += ["--hidden-sizes", "8", "--seeds", "2"]


def test_sweep_from_the_command_line(swept, tmp_path, capsys):
    out = tmp_path / "sweep"
    words = ["--grid", "learning-rate=1e-3,1e-2", "--out", str(out)]
    assert main([*COMMAND, *words]) == 0
    printed = capsys.readouterr().out
    assert "return (IQM) [range]" in printed  # of two seeds
    np.testing.assert_array_equal(purerl.load_sweep(out).returns, swept[1].returns[::2])
    assert main([*COMMAND, *words[:-2], "--resume", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == printed.splitlines()[:3]
    assert main(["sweep", f"--resume={out}", "--top", "1"]) == 0
    best = [line.split() for line in capsys.readouterr().out.splitlines()[:2]]
    assert best == [line.split() for line in printed.splitlines()[:2]]  # columns may be narrower
    assert main(["sweep", "--resume", str(out / "group-000"), "--top", "1"]) == 2
    assert "is no run" in capsys.readouterr().err


def test_a_sweep_is_plotted_and_evaluated(swept, tmp_path, capsys):
    out, result = swept
    assert main(["plot", str(out), "--out", str(tmp_path / "x.png")]) == 0
    assert (tmp_path / "x.png").stat().st_size > 5000
    figure = purerl.plot_curves(result.curves(top=3))
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(labels) == 3
    assert labels[0].startswith(f"{result.ranked()[0]['point']}: learning_rate=0.0")
    capsys.readouterr()
    assert main(["evaluate", str(out), "--point", "1", "--episodes", "4"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("seed 0: return ")
    assert "IQM of 2 seeds, 4 episodes each" in printed


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], "wanted one of them: --grid"),
        (["--grid", "learning_rate"], "wanted NAME=VALUE"),
        (["--grid", "learnin_rate=1"], "Did you mean learning_rate"),
        (["--grid", "gamma=0.9,1.5"], "gamma=1.5 is out of range"),
        (["--sample", "gamma=0.9"], "wanted gamma=LOW:HIGH"),
        (["--sample", "gamma=0.9:0.1"], "is no range"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_sweeps_say_what_was_wanted(words, wanted, capsys, tmp_path):
    assert main([*COMMAND, *words, "--out", str(tmp_path / "sweep")]) == 2
    assert wanted in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())
