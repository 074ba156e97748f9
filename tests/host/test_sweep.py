"""Sweeps: what shares a program, what is split, what is resumed, and who wins."""

import csv
import functools
import gc
import shutil
import sys

import jax
import numpy as np
import pytest
from run_folders import read_rows

import purerl
from purerl.cli import main
from purerl.host.programs import Driver
from purerl.host.sweep.points import grid, make_groups

SMALL = {
    "steps": 256,
    "num_envs": 4,
    "rollout_length": 16,
    "evaluations": 2,
    "evaluation_episodes": 4,
    "hidden_sizes": (8,),
}
make = functools.partial(purerl.make_experiment, "a2c", "CartPole-v1", **SMALL)
RATES = [1e-4, 1e-3, 1e-2]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid that needs two programs."""
    out = tmp_path_factory.mktemp("sweeps") / "small"
    values = {"learning_rate": RATES, "normalize_obs": [False, True]}
    return out, purerl.sweep(make, values, seeds=2, out=out, progress=False)


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
    assert [len(group.points) for group in groups] == [6, 6]
    assert {tuple(group.values) for group in groups} == {("learning_rate", "gamma")}
    networks = [{"hidden_sizes": (8,)}, {"hidden_sizes": (9,)}, {"activation": "relu"}]
    assert len(make_groups([make(**point) for point in networks])) == 3
    optional = [make(max_grad_norm=x) for x in (None, 0.5, 1.0)]  # without a clip: other shapes
    assert [len(group.points) for group in make_groups(optional)] == [1, 2]


def test_a_point_is_the_run_with_its_numbers(swept):
    """Same keys; to rounding, since more are trained side by side."""
    _, result = swept
    assert result.compilations == 2
    alone = purerl.run(make(**result.points[3]), seeds=2, progress=False)
    np.testing.assert_array_equal(result.steps[3], alone.steps)
    np.testing.assert_allclose(result.returns[3], alone.returns, rtol=0.1)
    assert len({tuple(map(tuple, x)) for x in np.array(result.returns)}) == 6


def test_the_table_is_ranked_by_iqm(swept):
    out, result = swept
    rows = result.ranked()
    assert [row["iqm"] for row in rows] == sorted((row["iqm"] for row in rows), reverse=True)
    assert all(row["low"] <= row["iqm"] <= row["high"] for row in rows)
    lines = result.table().splitlines()
    assert lines[0].split()[:4] == ["rank", "point", "learning_rate", "normalize_obs"]
    assert [line.split()[0] for line in lines[1:]] == list("123456")
    assert len(result.table(top=2).splitlines()) == 3
    with (out / "sweep.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [float(row["iqm"]) for row in written] == [row["iqm"] for row in rows]
    assert all(result.points[row["point"]].items() <= row.items() for row in rows)


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


def test_the_policies_of_a_sweep(swept, tmp_path):
    """Each is the one that was evaluated: played again, it has the same return."""
    out, result = swept
    env = purerl.make_env("CartPole-v1")
    for point, seed in ((0, 0), (3, 1), (4, 0), (5, 1)):  # of both programs
        policy = purerl.load_policy(out, seed, point=point)
        key = jax.random.split(jax.random.split(jax.random.key(0), 2)[seed], 3)[0]
        key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), 4)
        played = purerl.evaluate(lambda obs, key, p=policy: p(obs), env, key, episodes=4)
        np.testing.assert_allclose(played.mean_return, result.returns[point][seed, -1], rtol=1e-6)
    best = result.ranked()[0]["point"]
    seed = int(np.argmax(result.returns[best][:, -1]))
    obs = jax.random.normal(jax.random.key(1), (200, 4))
    chosen = purerl.load_policy(out, seed, point=best)(obs)
    np.testing.assert_array_equal(purerl.load_policy(out)(obs), chosen)
    with pytest.raises(ValueError, match=r"got point=6, wanted 'best' or 0 to 5"):
        purerl.load_policy(out, point=6)
    with pytest.raises(ValueError, match=r"got seed=2, wanted 'best' or 0 to 1"):
        purerl.load_policy(out, 2, point=0)
    part = next(out.glob("group-000/rows-*"))
    assert main(["plot", str(out), "--out", str(tmp_path / "x.png")]) == 2
    for function in (purerl.load_policy, purerl.evaluate_run, purerl.resume):
        with pytest.raises(ValueError, match="is a sweep, or a part of one"):
            function(part)
    experiment = make(steps=128)
    purerl.run(experiment, seeds=1, out=tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="is no sweep, so it has no point 1"):
        purerl.load_policy(tmp_path / "run", point=1)


def test_a_seed_that_fails_is_counted_and_harms_no_other(tmp_path, capsys):
    """A rate that overflows, beside one that does not; the other one is bitwise unaffected."""
    rows = {}
    for name, rates in (("good", [1e-3, 1e-2]), ("bad", [1e-3, 1e38])):
        out = tmp_path / name
        bad = purerl.sweep(make, {"learning_rate": rates}, seeds=2, out=out)
        [part] = (out / "group-000").iterdir()
        read = read_rows(part)
        assert [(row["point"], row["seed"]) for row in read[:4]] == [
            *zip("0011", "0101", strict=True)
        ]
        rows[name] = [row | {"seconds": ""} for row in read if row["point"] == "0"]
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


def test_a_sweep_is_resumed(swept, tmp_path, monkeypatch):
    """Stopped between its two programs; what is finished is not trained again."""
    out, whole = swept
    compile_program, compiled = Driver.compile, []

    def compile_once(self):
        if self.program is None and compiled:
            raise MemoryError("as if it were killed")
        compiled.append(1)
        compile_program(self)

    monkeypatch.setattr(Driver, "compile", compile_once)
    values = {"learning_rate": RATES, "normalize_obs": [False, True]}
    options = {"seeds": 2, "out": tmp_path / "cut", "progress": False}
    with pytest.raises(MemoryError):
        purerl.sweep(make, values, **options)
    monkeypatch.setattr(Driver, "compile", compile_program)
    result = purerl.resume_sweep(tmp_path / "cut")
    assert result.compilations == 1
    np.testing.assert_array_equal(result.returns, whole.returns)
    assert (tmp_path / "cut" / "sweep.csv").read_text() == (out / "sweep.csv").read_text()
    again = purerl.sweep(make, values, resume=True, **options)
    assert again.compilations == 0
    np.testing.assert_array_equal(again.returns, whole.returns)
    with pytest.raises(ValueError, match=r"is another run: seeds is 2 there, 3 here"):
        purerl.sweep(make, values, resume=True, **(options | {"seeds": 3}))
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        purerl.sweep(make, values, **options)


def test_points_with_values_of_different_names():
    points = [{"learning_rate": 1e-3}, {"gamma": 0.9}]
    result = purerl.sweep(make, points, seeds=1, progress=False)
    assert {tuple(row) for row in result.ranked()} == {
        ("point", "learning_rate", "gamma", "iqm", "low", "high", "min", "failed")
    }
    assert len(result.table().splitlines()) == 3


def test_a_sweep_that_was_stopped_ranks_what_is_finished_first():
    names = {"points": [{"a": 1}, {"a": 2}, {"a": 3}], "failed": np.zeros((3, 1), bool)}
    steps, returns = [np.array([9]), np.array([9]), np.array([3])], [[[1.0]], [[2.0]], [[3.0]]]
    result = purerl.SweepResult(
        **names,
        steps=steps,
        returns=[np.array(x) for x in returns],
        finished=np.array([True, True, False]),
        seconds={},
        compilations=1,
        stopped="SIGINT",
    )
    assert [row["a"] for row in result.ranked()] == [2, 1, 3]
    assert [row["step"] for row in result.ranked()] == [9, 9, 3]
    less = result._replace(returns=[*result.returns[:2], np.zeros((1, 0))])
    assert less.table().splitlines()[-1] == "1 of 3 points were not evaluated yet"
    whole = result._replace(finished=np.ones(3, bool))  # trained for different numbers of steps
    assert [row["a"] for row in whole.ranked()] == [3, 2, 1]
    assert "step" not in whole.ranked()[0]


def test_what_cannot_be_sharded_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(Driver, "compile", lambda self: pytest.fail("compiled"))
    with pytest.raises(ValueError, match=r"num_envs=3 cannot be shared evenly by 2 devices"):
        purerl.sweep(make, {"num_envs": [4, 3]}, out=tmp_path / "x", shard="environments")
    assert not list(tmp_path.iterdir())


def test_a_sweep_is_not_resumed_with_other_versions(swept, tmp_path, monkeypatch):
    out, whole = swept
    copy = shutil.copytree(out, tmp_path / "copy")
    monkeypatch.setattr(sys.modules["purerl.host.store.provenance"], "_source", lambda: "other")
    values = {"learning_rate": RATES, "normalize_obs": [False, True]}
    options = {"seeds": 2, "out": copy, "resume": True, "progress": False}
    with pytest.raises(ValueError, match=r"source is .* 'other' here; the sweep would not be"):
        purerl.sweep(make, values, **options)
    again = purerl.sweep(make, values, inexact=True, **options)
    np.testing.assert_array_equal(again.returns, whole.returns)


def test_what_does_not_fit_is_trained_in_parts(tmp_path, monkeypatch):
    module = sys.modules["purerl.host.sweep.parts"]
    values = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3]}
    whole = purerl.sweep(make, values, seeds=2, progress=False)
    driver_bytes = []
    program_bytes = Driver.program_bytes

    def remember(self):
        driver_bytes.append(program_bytes(self))
        return driver_bytes[-1]

    monkeypatch.setattr(Driver, "program_bytes", remember)
    half = lambda: 0.6 * driver_bytes[0] * jax.device_count() / module.SPARE  # noqa: E731
    monkeypatch.setattr(module, "memory_bytes", half)
    out = tmp_path / "parts"
    living = []
    start = Driver.start

    def look_and_start(self):
        gc.collect()
        living.append(sum(x.nbytes for x in jax.live_arrays()))
        start(self)

    monkeypatch.setattr(Driver, "start", look_and_start)
    parts = purerl.sweep(make, values, seeds=2, out=out, progress=False)
    assert driver_bytes[0] > 10_000
    assert living[1] < living[0] + 2000  # of the first part nothing is kept
    assert parts.compilations == 2  # one to see what fits; both parts share the other
    assert sorted(path.name for path in (out / "group-000").iterdir()) == [
        "rows-000000-000004",
        "rows-000004-000008",
    ]
    np.testing.assert_allclose(parts.returns, whole.returns, rtol=0.1)
    monkeypatch.setattr(module, "memory_bytes", lambda: 1000)
    with pytest.raises(ValueError, match="one seed a device needs about"):
        purerl.sweep(make, values, seeds=2, progress=False)


def test_what_the_compiler_refuses_is_halved(tmp_path, monkeypatch):
    """As a TPU's does with what is larger than its memory."""
    compile_program, refused = Driver.compile, []

    def compile_small(self):
        if self.seeds > 4:
            refused.append(self.seeds)
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ran out of memory")
        begun = self.program is not None
        compile_program(self)
        self.seconds["compiling"] += 0 if begun else 1000

    monkeypatch.setattr(Driver, "compile", compile_small)
    values = {"learning_rate": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2]}
    result = purerl.sweep(make, values, seeds=2, out=tmp_path / "halves", progress=False)
    assert refused == [10, 6]
    assert result.seconds["compiling"] // 1000 == result.compilations == 2
    assert [path.name for path in sorted((tmp_path / "halves" / "group-000").iterdir())] == [
        "rows-000000-000004",
        "rows-000004-000008",
        "rows-000008-000010",
    ]
    assert np.isfinite(result.returns).all()
    monkeypatch.setattr(Driver, "compile", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        purerl.sweep(make, values, seeds=2, progress=False)


COMMAND = ["sweep", "a2c", "CartPole-v1", "--steps", "128", "--num-envs", "4", "--no-progress"]
COMMAND += ["--rollout-length", "16", "--evaluations", "1", "--evaluation-episodes", "2"]
COMMAND += ["--hidden-sizes", "8", "--seeds", "2"]


def test_sweep_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "sweep"
    words = ["--grid", "learning-rate=1e-3,1e-2", "gamma=0.9,0.99", "--out", str(out)]
    assert main([*COMMAND, *words]) == 0
    printed = capsys.readouterr().out
    assert "return (IQM) [95 %]" in printed
    assert len([line for line in printed.splitlines() if " 0.99 " in line]) == 2
    assert main([*COMMAND, *words[:-2], "--resume", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[:5] == printed.splitlines()[:5]
    assert main(["sweep", "--resume", str(out), "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == printed.splitlines()[:2]
    assert main(["sweep", "--resume", str(out / "group-000"), "--top", "1"]) == 2
    assert "is no run" in capsys.readouterr().err


def test_random_points_and_switches_from_the_command_line(tmp_path, monkeypatch):
    """What is handed to the function."""
    seen = []
    monkeypatch.setattr(
        sys.modules["purerl.host.sweep.parts"], "sweep", lambda *x, **_: seen.append(x)
    )
    sample = ["--sample", "learning_rate=1e-4:1e-2:log", "--samples", "3"]
    grid = ["--grid", "activation=tanh,relu", "hidden_sizes=(8,),(9,9)", "normalize_obs=True,False"]
    for words in (sample, grid):
        with pytest.raises(AttributeError):  # there is no result
            main([*COMMAND, *words, "--out", str(tmp_path / "sweep")])
    (_, points), (make, values) = seen
    assert len(points) == 3
    assert all(1e-4 < point["learning_rate"] < 1e-2 for point in points)
    assert values == {
        "activation": ["tanh", "relu"],
        "hidden_sizes": [(8,), (9, 9)],
        "normalize_obs": [True, False],
    }
    assert make(hidden_sizes=(9, 9)).config.network.hidden_sizes == (9, 9)


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
