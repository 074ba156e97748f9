"""A run's folder: what is there is not lost, and what cannot be read is refused in words."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint
import pytest
from run_folders import NotedDriver, driven, final

import purerl
from purerl.cli import main
from purerl.host.store.folder import CONFIG, PART, REPLACED, RunFolder

SIZES = {"steps": 64, "num_envs": 2, "rollout_length": 8, "evaluations": 1}
SIZES |= {"evaluation_episodes": 2, "hidden_sizes": (4,)}


def train(out, base=NotedDriver, **options):
    """A tiny run, compiled once."""
    around = driven(share=__name__, base=base)
    options = SIZES | {"seeds": 1, "progress": False, "driver": around} | options
    return purerl.run("a2c", "CartPole-v1", out=out, **options)


@pytest.fixture
def trained(tmp_path):
    train(tmp_path / "run")
    return tmp_path / "run"


def test_scalars_of_numpy_and_jax_are_stored_as_pythons(trained):
    """Fault A2."""
    scalars = {"learning_rate": np.float32(1e-3), "entropy_coef": jax.numpy.float32(0.5)}
    scalars |= {"steps": np.int64(64), "normalize_obs": np.bool_(True), "seed": np.int32(3)}
    scalars |= {"chunk_seconds": np.float32(0.5), "keep": np.int16(2), "seeds": np.int64(1)}
    train(trained, overwrite=True, driver=driven(), **scalars)
    config = json.loads((trained / CONFIG).read_text())
    assert config["config"]["learning_rate"] == pytest.approx(1e-3)
    assert (config["loop"]["steps"], config["seed"], config["options"]["keep"]) == (64, 3, 2)
    assert config["loop"]["normalize_obs"] is True


def test_a_run_is_not_lost_where_its_successor_does_not_begin(trained):
    """Fault A2: neither where it cannot be described, nor where it does not compile."""

    class Refuses(NotedDriver):
        def compile(self):
            raise RuntimeError("out of memory")

    before = final(trained)
    with pytest.raises(RuntimeError, match="out of memory"):
        train(trained, overwrite=True, base=Refuses)
    with pytest.raises(ValueError, match="chunk_seconds"):
        train(trained, overwrite=True, chunk_seconds=-1)
    with pytest.raises(ValueError, match="is no integer"):
        train(trained, overwrite=True, steps=64.5)
    with pytest.raises(TypeError, match="not JSON serializable"):
        RunFolder(trained).create({"x": object()}, {})
    assert final(trained) == before


def test_a_run_that_was_being_overwritten_is_put_back(trained):
    """A process that is killed at any step of that loses neither run."""
    before = final(trained)
    replaced = trained / REPLACED
    replaced.mkdir()
    for path in trained.iterdir():
        if path != replaced:
            path.rename(replaced / path.name)
    (trained / PART).write_text("{")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        train(trained)
    assert final(trained) == before
    assert not replaced.exists()
    train(trained, overwrite=True, seed=1)
    assert final(trained) != before
    assert not replaced.exists()


def test_names_that_checkpoints_could_not_be_read_from_are_refused(tmp_path):
    """Fault A3: Orbax takes them for patterns."""
    with pytest.raises(ValueError, match=r"acktr\[full\] has \[ in its name"):
        train(tmp_path / "acktr[full]")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_without_its_manifest_is_not_written(tmp_path, monkeypatch):
    """Fault A3: it counts as written when that has been seen."""
    wait = orbax.checkpoint.CheckpointManager.wait_until_finished

    def lose(self):
        wait(self)
        for path in pathlib.Path(self.directory).glob("*/state/manifest.ocdbt"):
            path.unlink()

    monkeypatch.setattr(orbax.checkpoint.CheckpointManager, "wait_until_finished", lose)
    with pytest.warns(RuntimeWarning, match="manifest.ocdbt is missing"):
        result = train(tmp_path / "run")
    assert "manifest.ocdbt is missing" in result.trouble
    assert not RunFolder(tmp_path / "run").iterations()


def test_the_home_directory_is_meant_by_a_tilde(tmp_path, monkeypatch):
    """Fault C12."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    train("~/run")
    assert (tmp_path / "run" / CONFIG).exists()
    assert purerl.load_run("~/run").returns.shape == (1, 1)
    assert not (tmp_path / "~").exists()


@pytest.fixture
def old(trained, tmp_path):
    """The folder of a run as version 0.1.0 at d770a70 wrote it."""
    path = pathlib.Path(shutil.copytree(trained, tmp_path / "old"))
    config = json.loads((path / CONFIG).read_text())
    del config["format"], config["network"], config["start_from"]
    for part in ("loop", "config"):
        config[part] = {k: x for k, x in config[part].items() if not k.endswith("_schedule")}
    config["loop"]["total_steps"] = config["loop"].pop("steps")
    config["config"]["anneal_learning_rate"] = True
    (path / CONFIG).write_text(json.dumps(config))
    return path


def test_of_an_older_run_the_evaluations_are_read_and_all_else_is_refused(old, tmp_path, capsys):
    steps, returns = RunFolder(old).read_curve()
    assert (steps.tolist(), returns.shape) == ([64], (1, 1))
    assert main(["plot", str(old), "--out", str(tmp_path / "x.png")]) == 0
    before = sorted(os.walk(old))
    wanted = "has the format 1, this version of purerl reads format 3"
    for read in (purerl.load_policy, purerl.load_run, purerl.evaluate_run, purerl.resume):
        with pytest.raises(ValueError, match=wanted):
            read(old)
    with pytest.raises(ValueError, match="has the format 1"):
        train(old, resume=True)
    assert main(["evaluate", str(old)]) == 2
    assert wanted in capsys.readouterr().err
    assert sorted(os.walk(old)) == before


def test_a_run_of_the_format_before_is_refused(trained):
    """It had its best checkpoint in a folder of its own."""
    config = json.loads((trained / CONFIG).read_text())
    (trained / CONFIG).write_text(json.dumps(config | {"format": 2}))
    for read in (purerl.load_policy, purerl.load_run, purerl.resume):
        with pytest.raises(ValueError, match="has the format 2, this version of purerl reads"):
            read(trained)


def test_a_table_has_a_row_for_each_seed_and_evaluation(trained):
    pytest.importorskip("pandas")
    table = purerl.load_run(trained).to_pandas()
    assert len(table) == 1
    assert {"seed", "step", "return", "learning_rate", "num_envs", "env"} <= set(table.columns)
    assert table["algorithm"][0] == "a2c"


def test_policies_give_what_gymnasium_takes(trained, tmp_path):
    """Fault C14: one observation, one action; many, many."""
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=0)
    policy = purerl.load_policy(trained, 0)
    env.step(policy(obs))
    assert policy(np.stack([obs, obs])).shape == (2,)
    sizes = {k: x for k, x in SIZES.items() if k != "steps"} | {"steps": 32}
    pendulum = purerl.run("a2c", "Pendulum-v1", seeds=1, progress=False, **sizes)
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    action = pendulum.policy(0, greedy=False)(obs, jax.random.key(3))
    assert env.action_space.contains(action)
    env.step(action)
