"""Checkpoints: a run that was cut is bitwise the run that was not; what is damaged says so."""

import gc
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import orbax.checkpoint
import pytest
from run_folders import NotedDriver, child_environment, driven, final, read_rows

import purerl
from purerl.cli import main
from purerl.host.store.checkpoint import read_host
from purerl.host.store.folder import RunFolder

TINY = purerl.NetworkConfig(hidden_sizes=(8,))
LOOP = {"num_envs": 4, "evaluations": 2, "evaluation_episodes": 4, "normalize_obs": True}
ON = LOOP | {"steps": 640, "rollout_length": 16, "normalize_reward": True}
OFF = LOOP | {"steps": 400, "warmup": 100, "capacity": 150, "batch_size": 16, "target_every": 7}
RUNS = {
    "ppo_clip": ("ppo_clip", ON | {"num_epochs": 2, "num_minibatches": 2}),
    "a2c": ("a2c", ON),
    "dqn prioritized": ("dqn", OFF | {"prioritized": True, "dueling": True}),
}


def make(name, **changes):
    algorithm, numbers = RUNS[name]
    numbers = {"network": TINY} | numbers | changes
    return purerl.make_experiment(algorithm, "CartPole-v1", **numbers)


@pytest.mark.parametrize("name", ["ppo_clip", "dqn prioritized"])
def test_resumed_is_bitwise_uninterrupted(name, tmp_path):
    """test_crossings.py does it with every algorithm, and compares less."""
    options = {"seeds": 2, "progress": False}
    share = __name__, name
    driver = driven(share=share)
    whole = purerl.run(make(name), out=tmp_path / "whole", driver=driver, **options)
    driver = driven(share=share, at=4)  # in the middle of a row of the log
    cut = purerl.run(make(name), out=tmp_path / "cut", driver=driver, **options)
    assert (cut.stopped, len(cut.steps)) == ("SIGINT", 0)
    driver = driven(share=share, at=2, number=signal.SIGTERM)
    with pytest.raises(purerl.Terminated) as terminated:  # a script that trains more ends too
        purerl.resume(tmp_path / "cut", progress=False, driver=driver)
    assert (terminated.value.code, terminated.value.result.stopped) == (143, "SIGTERM")
    driver = driven(share=share)
    result = purerl.resume(tmp_path / "cut", progress=False, driver=driver)
    assert result.stopped is None
    trained = sum(driver.chunks)
    assert 0 < trained < whole.state.clock.iteration  # it went on, and did not begin again
    assert final(tmp_path / "cut") == final(tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(whole.state), strict=True):
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(result.returns, whole.returns)


def test_a_run_in_chunks_is_the_pure_function(tmp_path):
    """Whatever the length of the chunks: the same bits; and the pure function's to rounding, which
    is another program.
    """
    experiment = make("ppo_clip")
    pure = jax.jit(purerl.vectorize(experiment.build().train))
    expected = pure(jax.random.split(jax.random.key(3), 2))
    short, long = (
        purerl.run(experiment, seeds=2, seed=3, progress=False, chunk_seconds=seconds)
        for seconds in (1e-9, 100.0)
    )
    chex.assert_trees_all_equal(short.state.learner, long.state.learner)
    chex.assert_trees_all_close(short.state.learner, expected.state.learner, rtol=1e-3, atol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with a checkpoint at every row, the newest three kept, and the best."""
    out = tmp_path_factory.mktemp("runs") / "small"
    options = {"checkpoint_seconds": 0.0, "keep": 3, "keep_best": True, "writers": ("csv", "jsonl")}
    experiment = make("ppo_clip", evaluations=5)
    purerl.run(experiment, seeds=3, out=out, progress=False, chunk_seconds=100.0, **options)
    return out


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of it, to be damaged."""
    return pathlib.Path(shutil.copytree(trained, tmp_path / "copy"))


def test_the_newest_and_the_best_checkpoints_are_kept(trained):
    kept = sorted(int(path.name) for path in (trained / "checkpoints").iterdir())
    best = 2 * (1 + int(np.argmax(purerl.iqm(np.array(final(trained)[0]["returns"]).T))))
    assert kept == sorted({best, 6, 8, 10})
    host = read_host(RunFolder(trained), "best")
    assert host is not None
    assert host["iteration"] == best


def test_a_finished_run_is_not_run_again(trained):
    class Compiles(NotedDriver):
        def compile(self):
            pytest.fail("compiled")

    before = final(trained)
    result = purerl.resume(trained, progress=False, driver=driven(base=Compiles))
    assert result.returns.shape == (3, 5)
    assert final(trained) == before


def test_resuming_another_run_names_the_fields(copied, capsys):
    with pytest.raises(ValueError, match=r"config.clip is 0.2 there, 0.3 here"):
        purerl.run(make("ppo_clip", evaluations=5, clip=0.3), seeds=3, out=copied, resume=True)
    with pytest.raises(ValueError, match=r"seeds is 3 there, 4 here"):
        purerl.run(make("ppo_clip", evaluations=5), seeds=4, out=copied, resume=True)
    train = ["train", "ppo_clip", "CartPole-v1", "--resume", str(copied), "--no-progress"]
    assert main(train) == 2
    assert "loop.evaluations is 5 there, 20 here, and 6 more" in capsys.readouterr().err
    config = json.loads((copied / "config.json").read_text())
    config["config"]["clip"] = 0.4  # another config beside the same checkpoints
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.clip is 0.2 there, 0.4 here"):
        purerl.resume(copied, progress=False)


def test_an_interrupted_run_is_extended_to_what_the_longer_one_is(tmp_path, capsys):
    """Where nothing is annealed; also the sums of the log that was in the middle of a row."""
    changes = {"learning_rate_schedule": "constant"}
    options = {"seeds": 2, "progress": False}
    cut = driven(at=4)
    out = tmp_path / "cut"
    purerl.run(make("a2c", **changes), out=out, driver=cut, **options)
    longer = make("a2c", steps=1280, **changes)
    share = __name__, "longer"
    whole = purerl.run(longer, out=tmp_path / "whole", driver=driven(share=share), **options)
    found = purerl.resume(out, steps=1280, progress=True, driver=driven(share=share))
    told = "extended from 640 to 1,280 steps; progress of the new length"
    assert told in capsys.readouterr().err
    assert found.experiment == longer
    for a, b in zip(
        jax.tree.leaves(found.state.learner), jax.tree.leaves(whole.state.learner), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    ended = [
        sum(int(row["train_episodes"]) for row in read_rows(folder))
        for folder in (out, tmp_path / "whole")
    ]
    assert ended[0] == ended[1]
    with pytest.raises(ValueError, match=r"steps=64 is less than the run's 1280"):
        purerl.resume(out, steps=64)


def change_checkpoint(folder, change):
    """Changes what the newest checkpoint says of itself."""
    [path] = (folder / "checkpoints" / "10").rglob("host/metadata")
    host = json.loads(path.read_text())
    change(host)
    path.write_text(json.dumps(host))


def test_resuming_with_other_versions_must_be_asked_for(copied):
    change_checkpoint(copied, lambda host: host["circumstances"]["versions"].update(jax="0.0.1"))
    message = rf"versions.jax is '0.0.1' there, '{jax.__version__}' here.*--inexact"
    with pytest.raises(ValueError, match=message):
        purerl.resume(copied, progress=False)
    assert purerl.resume(copied, progress=False, inexact=True).returns.shape == (3, 5)


def test_what_the_bits_depend_on_is_compared(copied):
    """Versions are not all: another way to draw random numbers, an edited file."""
    message = r"threefry_partitionable is True there, False here"
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match=message):
        purerl.resume(copied, progress=False)
    change_checkpoint(copied, lambda host: host["circumstances"].update(source="other"))
    with pytest.raises(ValueError, match=r"source is 'other' there, '[0-9a-f]{8}' here"):
        purerl.resume(copied, progress=False)


def test_passing_trouble_is_not_called_damage(copied, monkeypatch):
    """Nobody is told to give up a checkpoint that may be whole."""
    for error in (OSError(116, "Stale file handle"), ValueError("UNAVAILABLE: try again")):

        def restore(self, *args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "restore", restore)
        with pytest.raises(OSError, match=r"/\d+ cannot be read: .*(Stale|UNAVAILABLE)"):
            purerl.resume(copied, progress=False)


def test_a_checkpoint_of_another_format(copied):
    change_checkpoint(copied, lambda host: host.update(format=99))
    with pytest.raises(ValueError, match=r"has the format 99, this version of purerl reads"):
        purerl.resume(copied, progress=False)


def arrays(folder):
    """The files that hold the arrays of the newest checkpoint."""
    files = [path for path in (folder / "checkpoints" / "10").rglob("*") if path.is_file()]
    return sorted((f for f in files if "/d/" in str(f)), key=lambda file: file.stat().st_size)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.unlink(),
        flip,
    ],
    ids=["torn", "missing", "flipped bit"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_named(damage, copied):
    expected = final(copied)
    for path in arrays(copied):  # which of them are read is Orbax's affair
        damage(path)
    with pytest.raises(ValueError, match=r"10 is damaged .*move that folder away .*checkpoints/8"):
        purerl.resume(copied, progress=False)
    gc.collect()  # Orbax leaves coroutines behind; they are to end here, not in another test
    shutil.rmtree(copied / "checkpoints" / "10")
    purerl.resume(copied, progress=False)  # as it says
    assert final(copied) == expected


def test_wrong_numbers_in_a_whole_checkpoint_are_found_by_their_checksums(copied):
    """By who resumes it, and by who takes a policy out of it."""

    def change(host):
        host["checksums"][1] += 1
        host["policy_checksums"][2] += 1

    change_checkpoint(copied, change)
    with pytest.raises(ValueError, match=r"the checksums of seeds 1 are wrong"):
        purerl.resume(copied, progress=False)
    with pytest.raises(ValueError, match=r"the checksums of seeds 2 are wrong"):
        purerl.load_policy(copied, 0)
    with pytest.raises(ValueError, match=r"the checksums of seeds 2 are wrong"):
        purerl.load_run(copied)


def test_arrays_of_another_shape_are_named(copied):
    """Of a checkpoint that says it is of this run."""

    def wider(run):
        run["config"]["network"]["hidden_sizes"] = [9]
        return run

    change_checkpoint(copied, lambda host: wider(host["run"]))
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(wider(config)))
    message = r"\['bias'\] is float32\[3, 8\] there, float32\[3, 9\] here, .* and \d+ more"
    with pytest.raises(ValueError, match=message):
        purerl.resume(copied, progress=False)


def test_a_seed_that_failed_is_known_when_its_run_is_read_or_goes_on(copied):
    """Also where what failed is no longer seen in the state."""
    change_checkpoint(copied, lambda host: host.update(failed=[False, True, False]))
    assert purerl.load_run(copied).failed.tolist() == [False, True, False]
    assert purerl.resume(copied, progress=False).failed.tolist() == [False, True, False]


def test_a_seed_without_a_finite_return_is_not_the_best(copied):
    def change(host):
        host["returns"][-1] = [float("nan"), 1.0, 2.0]

    change_checkpoint(copied, change)
    many = np.random.default_rng(0).normal(size=(200, 4))
    best, second = (purerl.load_policy(copied, seed)(many) for seed in ("best", 2))
    np.testing.assert_array_equal(best, second)
    assert not np.array_equal(best, purerl.load_policy(copied, 0)(many))
    np.testing.assert_array_equal(best, purerl.load_run(copied).policy()(many))


def test_the_best_evaluation_so_far_is_known_to_a_run_that_goes_on(copied):
    """A worse one does not take its place."""
    kept = copied / "checkpoints" / "6"
    [path] = kept.rglob("metrics/metrics")
    path.write_text(json.dumps({"iqm": 1e6}))  # what no later evaluation beats
    purerl.resume(copied, steps=2 * 640, progress=False)
    host = read_host(RunFolder(copied), "best")
    assert host is not None
    assert host["iteration"] == 6
    assert kept.exists()


def test_a_run_killed_before_its_first_checkpoint_begins_again(copied, capsys):
    expected = final(copied)
    shutil.rmtree(copied / "checkpoints")
    with (copied / "evaluations.csv").open("a") as file:
        file.write("0,12,3")  # half a row
    purerl.resume(copied, progress=False)
    assert "no checkpoint yet: the run begins again" in capsys.readouterr().err
    assert final(copied) == expected


def test_a_run_says_from_which_step_it_goes_on(copied, capsys):
    at = purerl.load_run(copied).steps[-1]
    purerl.resume(copied, steps=2 * 640, progress=True)
    assert f"resumed at step {at:,} of each seed" in capsys.readouterr().err


def test_resume_begins_what_is_not_there_yet(tmp_path):
    """One command line for a job that may be restarted."""
    out = str(tmp_path / "run")
    command = ["train", "a2c", "CartPole-v1", "--steps", "64", "--num-envs", "2", "--seeds", "1"]
    command += ["--rollout-length", "8", "--evaluations", "1", "--evaluation-episodes", "2"]
    command += ["--hidden-sizes", "8", "--no-progress", "--resume", out]
    assert main(command) == 0
    before = final(tmp_path / "run")
    assert main(command) == 0
    assert main(["train", "--resume", out, "--no-progress"]) == 0
    assert final(tmp_path / "run") == before


def test_resume_without_a_run(tmp_path, capsys):
    assert main(["train", "--resume", str(tmp_path / "nothing")]) == 2
    assert "is no run" in capsys.readouterr().err
    with pytest.raises(ValueError, match="give out"):
        purerl.run(make("a2c"), resume=True)


def test_killed_while_it_writes_a_checkpoint(tmp_path):
    """SIGKILL, to a process of its own; benchmarks/kill.py does it many times."""
    code = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.devices()
import purerl, test_resume
experiment = test_resume.make("ppo_clip", steps=64 * 300)
options = {"checkpoint_seconds": 0.0, "chunk_seconds": 0.02, "progress": False}
purerl.run(experiment, seeds=2, out=sys.argv[1], **options)
"""
    out, environment = tmp_path / "killed", child_environment()
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], env=environment)
    checkpoints = out / "checkpoints"
    while process.poll() is None and not (
        [x for x in checkpoints.glob("*") if x.name.isdigit()] and list(checkpoints.glob("*tmp*"))
    ):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (out / "learning_curve.png").exists()  # it was not finished
    driver = driven(chunk=0)
    purerl.resume(out, progress=False, driver=driver, checkpoint_seconds=300.0)
    assert sum(driver.chunks) < 300
    experiment = make("ppo_clip", steps=64 * 300)
    purerl.run(experiment, seeds=2, out=tmp_path / "whole", progress=False)
    assert final(out) == final(tmp_path / "whole")


def test_a_policy_for_use_anywhere(trained):
    policy = purerl.load_policy(trained)
    env = purerl.make_env("CartPole-v1")
    obs, _ = env.reset(jax.random.key(0))
    action = policy(obs)
    assert action.shape == ()
    assert policy(np.zeros((5, 4))).shape == (5,)
    assert policy([0.0, 0.1, 0.0, 0.1]).shape == ()
    best = int(np.argmax(final(trained)[0]["returns"][-1]))
    others = [purerl.load_policy(trained, seed) for seed in range(3)]
    many = jax.random.normal(jax.random.key(1), (200, 4))
    actions = [np.asarray(other(many)) for other in others]
    np.testing.assert_array_equal(policy(many), actions[best])
    assert not all(np.array_equal(actions[0], x) for x in actions[1:])
    sampled = purerl.load_policy(trained, greedy=False)
    assert sampled(many, jax.random.key(2)).shape == (200,)
    with pytest.raises(ValueError, match="needs a key"):
        sampled(many)
    with pytest.raises(ValueError, match=r"shape \(3,\), wanted \(4,\)"):
        policy(np.zeros(3))
    with pytest.raises(ValueError, match="wanted 'best' or 0 to 2"):
        purerl.load_policy(trained, 3)
    assert purerl.load_policy(trained, checkpoint="best")(obs).shape == ()


def test_a_policy_applies_the_runs_normalization(trained):
    """It acts as the evaluation does."""
    evaluation = purerl.evaluate_run(trained, episodes=64, seed=5)
    policy = purerl.load_policy(trained, 1)
    env = purerl.make_env("CartPole-v1")
    key = jax.random.split(jax.random.key(5), 3)[1]
    key = jax.random.fold_in(jax.random.fold_in(key, 2**32 - 1), 0)
    played = purerl.evaluate(lambda obs, key: policy(obs), env, key, episodes=64)
    np.testing.assert_allclose(played.mean_return, evaluation.mean_return[1], rtol=1e-6)


def test_no_policy_without_a_checkpoint(trained, copied):
    with pytest.raises(FileNotFoundError, match="is no run"):
        purerl.load_policy(copied / "checkpoints")
    for path in (copied / "checkpoints").glob("*/metrics"):
        shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="--keep-best"):
        purerl.load_policy(copied, checkpoint="best")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(FileNotFoundError, match="resume it"):
        purerl.load_policy(copied)
