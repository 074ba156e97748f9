"""Checkpoints: a run that was cut is bitwise the run that was not; what is damaged says so."""

import gc
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from run_folders import final

import purerl
from purerl.cli import main
from purerl.host.chunks import Session
from purerl.host.programs import Driver
from purerl.host.store.checkpoint import Checkpoints

TINY = purerl.NetworkConfig(hidden_sizes=(8,))
LOOP = {"num_envs": 4, "evaluations": 2, "evaluation_episodes": 4, "normalize_obs": True}
ON = LOOP | {"steps": 640, "rollout_length": 16, "normalize_reward": True}
OFF = LOOP | {"steps": 400, "warmup": 100, "capacity": 150, "batch_size": 16, "target_every": 7}
RUNS = {
    "ppo_clip": ("ppo_clip", ON | {"num_epochs": 2, "num_minibatches": 2}),
    "ppo_penalty": ("ppo_penalty", ON | {"num_epochs": 2, "num_minibatches": 2}),
    "a2c": ("a2c", ON),
    "trpo": ("trpo", ON | {"cg_iterations": 3}),
    "npg": ("npg", ON | {"cg_iterations": 3}),
    "acktr": ("acktr", ON | {"stats_every": 2, "inverse_every": 3, "cold_start": 2}),
    "policy_gradient": ("policy_gradient", ON),
    "dqn": ("dqn", OFF | {"double": True, "n_step": 2}),
    "dqn prioritized": ("dqn", OFF | {"prioritized": True, "dueling": True}),
}


def make(name, **changes):
    algorithm, numbers = RUNS[name]
    numbers = {"network": TINY} | numbers | changes
    return purerl.make_experiment(algorithm, "CartPole-v1", **numbers)


@pytest.fixture
def interrupt(monkeypatch):
    """Makes a run get a signal when it begins its n-th chunk, of one iteration each."""
    monkeypatch.setattr(Session, "_calibrate", lambda self, *_: setattr(self, "chunk", 1))

    def at(chunk, number=signal.SIGINT):
        advance, begun = Driver.advance, []

        def advance_and_interrupt(self, iterations):
            begun.append(iterations)
            if len(begun) == chunk:
                os.kill(os.getpid(), number)
            return advance(self, iterations)

        monkeypatch.setattr(Driver, "advance", advance_and_interrupt)
        return lambda: monkeypatch.setattr(Driver, "advance", advance)

    return at


def count_iterations(monkeypatch):
    """The iterations that are trained from now on, chunk by chunk."""
    advance, trained = Driver.advance, []

    def advance_and_count(self, iterations):
        trained.append(iterations)
        return advance(self, iterations)

    monkeypatch.setattr(Driver, "advance", advance_and_count)
    return trained


@pytest.fixture
def compiled_once(monkeypatch):
    """Sessions of one test share their programs, to save time."""
    compile_program, shared = Driver.compile, []

    def compile_or_share(self):
        if not shared:
            compile_program(self)
            shared.append((self._begin, self.program, self._evaluate))
        self._begin, self.program, self._evaluate = shared[0]

    monkeypatch.setattr(Driver, "compile", compile_or_share)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.usefixtures("compiled_once")
def test_resumed_is_bitwise_uninterrupted(name, tmp_path, interrupt, monkeypatch):
    options = {"seeds": 2, "progress": False}
    whole = purerl.run(make(name), out=tmp_path / "whole", **options)
    undo = interrupt(4)  # in the middle of a row of the log
    cut = purerl.run(make(name), out=tmp_path / "cut", **options)
    assert (cut.stopped, len(cut.steps)) == ("SIGINT", 0)
    undo()
    interrupt(2, signal.SIGTERM)
    with pytest.raises(purerl.Terminated) as terminated:  # a script that trains more ends too
        purerl.resume(tmp_path / "cut", progress=False)
    assert (terminated.value.code, terminated.value.result.stopped) == (143, "SIGTERM")
    undo()
    trained = count_iterations(monkeypatch)
    result = purerl.resume(tmp_path / "cut", progress=False)
    assert result.stopped is None
    assert 0 < sum(trained) < whole.state.clock.iteration  # it went on, and did not begin again
    assert final(tmp_path / "cut") == final(tmp_path / "whole")
    for a, b in zip(jax.tree.leaves(result.state), jax.tree.leaves(whole.state), strict=True):
        if jax.numpy.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(result.returns, whole.returns)


def test_a_run_in_chunks_is_the_pure_function(tmp_path):
    """Whatever the length of the chunks."""
    experiment = make("ppo_clip")
    pure = jax.jit(purerl.vectorize(experiment.build().train))
    expected = pure(jax.random.split(jax.random.key(3), 2))
    for seconds in (1e-9, 100.0):
        result = purerl.run(experiment, seeds=2, seed=3, progress=False, chunk_seconds=seconds)
        for a, b in zip(
            jax.tree.leaves(result.state.learner),
            jax.tree.leaves(expected.state.learner),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)


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
    assert kept == [6, 8, 10]
    checkpoints = Checkpoints(trained / "best", keep=None)
    [iteration] = checkpoints.iterations()
    host = checkpoints.read_host(iteration)
    checkpoints.close()
    iqms = purerl.iqm(np.array(final(trained)[0]["returns"]).T)
    assert host["iteration"] == 2 * (1 + int(np.argmax(iqms)))


def test_a_finished_run_is_not_run_again(trained, monkeypatch):
    monkeypatch.setattr(Driver, "compile", lambda self: pytest.fail("compiled"))
    before = final(trained)
    result = purerl.resume(trained, progress=False)
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


def test_resuming_with_other_versions_must_be_asked_for(copied, monkeypatch):
    module = sys.modules["purerl.host.store.retention"]
    now = module.environment()
    other = now | {"versions": now["versions"] | {"jax": "0.0.1"}}
    monkeypatch.setattr(module, "environment", lambda: other)
    message = rf"versions.jax is '{jax.__version__}' there, '0.0.1' here.*--inexact"
    with pytest.raises(ValueError, match=message):
        purerl.resume(copied, progress=False)
    assert purerl.resume(copied, progress=False, inexact=True).returns.shape == (3, 5)


def test_what_the_bits_depend_on_is_compared(copied, monkeypatch):
    """Versions are not all: another way to draw random numbers, an edited file."""
    message = r"threefry_partitionable is True there, False here"
    with jax.threefry_partitionable(False), pytest.raises(ValueError, match=message):
        purerl.resume(copied, progress=False)
    monkeypatch.setattr(sys.modules["purerl.host.store.provenance"], "_source", lambda: "other")
    with pytest.raises(ValueError, match=r"source is '[0-9a-f]{8}' there, 'other' here"):
        purerl.resume(copied, progress=False)


def test_passing_trouble_is_not_called_damage(copied, monkeypatch):
    """Nobody is told to give up a checkpoint that may be whole."""
    manager = Checkpoints(copied / "checkpoints", keep=None)._manager.__class__
    for error in (OSError(116, "Stale file handle"), ValueError("UNAVAILABLE: try again")):

        def restore(self, *args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(manager, "restore", restore)
        with pytest.raises(OSError, match=r"/10 cannot be read: .*(Stale|UNAVAILABLE)"):
            purerl.resume(copied, progress=False)


def test_a_checkpoint_of_another_format(copied):
    [path] = (copied / "checkpoints" / "10").rglob("host/metadata")
    host = json.loads(path.read_text())
    path.write_text(json.dumps(host | {"format": 99}))
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
    [path] = (copied / "checkpoints" / "10").rglob("host/metadata")
    host = json.loads(path.read_text())
    host["checksums"][1] += 1
    path.write_text(json.dumps(host))
    with pytest.raises(ValueError, match=r"the checksums of seeds 1 are wrong"):
        purerl.resume(copied, progress=False)


def test_arrays_of_another_shape_are_named(copied, monkeypatch):
    other = make("ppo_clip", evaluations=5, network=purerl.NetworkConfig(hidden_sizes=(9,)))
    monkeypatch.setattr(sys.modules["purerl.host.store.retention"], "check_same", lambda *_: None)
    monkeypatch.setattr(sys.modules["purerl.host.runs"], "check_same", lambda *_: None)
    message = r"\['bias'\] is float32\[3, 8\], wanted float32\[3, 9\]; and 5 more"
    with pytest.raises(ValueError, match=message):
        purerl.run(other, seeds=3, out=copied, resume=True, progress=False)


def test_a_run_killed_before_its_first_checkpoint_begins_again(copied):
    expected = final(copied)
    shutil.rmtree(copied / "checkpoints")
    with (copied / "evaluations.csv").open("a") as file:
        file.write("0,12,3")  # half a row
    purerl.resume(copied, progress=False)
    assert final(copied) == expected


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


def test_killed_while_it_writes_a_checkpoint(tmp_path, monkeypatch):
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
    out, tests = tmp_path / "killed", pathlib.Path(__file__).parents[1]
    environment = os.environ | {
        "PYTHONPATH": f"{tests.parent}:{tests}:{tests / 'host'}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    process = subprocess.Popen([sys.executable, "-c", code, str(out)], env=environment)
    checkpoints = out / "checkpoints"
    while process.poll() is None and not (
        [x for x in checkpoints.glob("*") if x.name.isdigit()] and list(checkpoints.glob("*tmp*"))
    ):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert not (out / "learning_curve.png").exists()  # it was not finished
    trained = count_iterations(monkeypatch)
    purerl.resume(out, progress=False)
    assert sum(trained) < 300
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
    shutil.rmtree(copied / "best")
    with pytest.raises(FileNotFoundError, match="--keep-best"):
        purerl.load_policy(copied, checkpoint="best")
    shutil.rmtree(copied / "checkpoints")
    with pytest.raises(FileNotFoundError, match="resume it"):
        purerl.load_policy(copied)
