"""The host side: runs, folders, the command line."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

import purerl
from purerl.cli import main
from purerl.host.resources import memory_bytes
from purerl.host.store.folder import RunFolder

SMALL = [
    *("--steps", "512", "--num-envs", "4", "--rollout-length", "32", "--evaluations", "2"),
    *("--evaluation-episodes", "4", "--num-epochs", "1", "--num-minibatches", "1"),
    *("--hidden-sizes", "8", "--no-progress"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small finished run, by the command line."""
    out = tmp_path_factory.mktemp("runs") / "small"
    status = main(["train", "ppo_clip", "CartPole-v1", *SMALL, "--seeds", "3", "--out", str(out)])
    assert status == 0
    return out


def failure(capsys, *arguments):
    """Exit status 2 and what was printed."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as error:  # tyro's own errors
        status = error.code
    assert status == 2
    output = capsys.readouterr()
    return " ".join((output.out + output.err).split())


def test_run_folder_holds_config_rows_learner_and_plot(trained):
    config = json.loads((trained / "config.json").read_text())
    assert (config["algorithm"], config["env"], config["seeds"]) == ("ppo_clip", "CartPole-v1", 3)
    assert config["config"]["num_epochs"] == 1
    assert config["config"]["network"]["hidden_sizes"] == [8]
    assert config["versions"]["jax"] == jax.__version__
    assert {"commit", "hardware"} <= set(config)
    with (trained / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["step"]) for row in rows] == [
        (str(seed), str(step)) for step in (256, 512) for seed in range(3)
    ]
    assert all(float(row["return"]) == float(row["length"]) for row in rows)  # CartPole: 1 a step
    assert {"train_return", "refused", "entropy", "kl"} <= set(rows[0])
    assert (trained / "learning_curve.png").stat().st_size > 5000
    assert [path.name for path in (trained / "checkpoints").iterdir()] == ["4"]
    assert not list(trained.rglob("*.part"))


def test_experiment_survives_json(trained):
    config = json.loads((trained / "config.json").read_text())
    experiment = purerl.Experiment.from_json(config)
    assert json.loads(json.dumps(experiment.to_json())).items() <= config.items()
    assert experiment.config.network.hidden_sizes == (8,)


def test_run_is_the_pure_function(trained):
    """The host's chunks and separate evaluations change no number."""
    experiment = purerl.Experiment.from_json(json.loads((trained / "config.json").read_text()))
    train = experiment.build()
    keys = jax.random.split(jax.random.key(0), 3)
    result = jax.jit(purerl.vectorize(train.train))(keys)
    steps, returns = RunFolder(trained).read_curve()
    np.testing.assert_array_equal(steps, result.curve.step[0])
    np.testing.assert_allclose(returns, result.curve.evaluation.mean_return, rtol=1e-5)


def test_evaluate_plays_the_saved_policies(trained, capsys):
    assert main(["evaluate", str(trained), "--episodes", "4"]) == 0
    printed = capsys.readouterr().out
    assert "seed 2: return" in printed
    assert "IQM of 3 seeds, 4 episodes each" in printed
    evaluation = purerl.evaluate_run(trained, episodes=64)
    _, returns = RunFolder(trained).read_curve()
    assert np.all(np.abs(evaluation.mean_return - returns[:, -1]) < 0.8 * returns[:, -1])


def test_plot_writes_one_picture_of_several_runs(trained, tmp_path, capsys):
    picture = tmp_path / "both.png"
    arguments = ["plot", str(trained), str(trained), "--out", str(picture)]
    assert main(arguments) == 0
    assert picture.stat().st_size > 5000
    assert "exists" in failure(capsys, *arguments)
    assert main([*arguments, "--overwrite"]) == 0


OFF_POLICY = [
    *("--steps", "400", "--num-envs", "4", "--warmup", "200", "--capacity", "300"),
    *("--batch-size", "16", "--evaluations", "2", "--evaluation-episodes", "4"),
    *("--hidden-sizes", "8", "--seeds", "2", "--no-progress"),
]


def test_off_policy_run_with_every_switch(tmp_path, capsys):
    """Trained, evaluated and plotted by the command line."""
    out = tmp_path / "dqn"
    switches = ["--double", "--dueling", "--prioritized", "--n-step", "2", "--updates", "2"]
    train = ["train", "dqn", "CartPole-v1", *OFF_POLICY, *switches, "--out", str(out)]
    assert main(train) == 0
    experiment = purerl.Experiment.from_json(json.loads((out / "config.json").read_text()))
    assert experiment.config.double
    assert experiment.loop.updates == 2
    with (out / "evaluations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows[::2]] == [300, 400]
    assert {"loss", "q", "td_error"} <= set(rows[0])
    assert main(["evaluate", str(out), "--episodes", "4"]) == 0
    assert main(["plot", str(out), "--out", str(tmp_path / "plot.png")]) == 0
    assert "IQM of 2 seeds" in capsys.readouterr().out


def test_a_buffer_larger_than_the_memory(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.modules["purerl.host.resources"], "memory_bytes", lambda: 10_000_000)
    train = ("train", "dqn", "CartPole-v1", "--seeds", "4", "--out", tmp_path / "run")
    message = failure(capsys, *train, "--capacity", "1000000")
    assert "replay buffers of 4 seeds need 99.3 MiB, and as much again while" in message
    assert "written, but there are 9.5 MiB; set capacity to 48,017 or less" in message
    assert not (tmp_path / "run").exists()


def test_memory_is_that_of_the_devices_or_the_host():
    assert 2**28 < memory_bytes() < 2**50


def test_list_names_algorithms_and_environments(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in (*purerl.ALGORITHMS, "CartPole-v1", "Breakout-MinAtar"):
        assert name in printed


def test_existing_folder_is_not_overwritten_silently(trained, tmp_path, capsys):
    before = (trained / "evaluations.csv").read_bytes()
    message = failure(capsys, "train", "ppo_clip", "CartPole-v1", *SMALL, "--out", trained)
    assert "exists and is not empty" in message
    assert "--overwrite" in message
    assert (trained / "evaluations.csv").read_bytes() == before
    (tmp_path / "precious.txt").write_text("mine")
    arguments = ("train", "ppo_clip", "CartPole-v1", *SMALL, "--out", tmp_path, "--overwrite")
    assert "holds no run" in failure(capsys, *arguments)
    assert (tmp_path / "precious.txt").exists()


def test_overwrite_replaces_a_run(tmp_path):
    out = tmp_path / "run"
    arguments = ["train", "a2c", "CartPole-v1", "--steps", "64", "--num-envs", "2", "--seeds", "1"]
    arguments += ["--rollout-length", "8", "--evaluations", "1", "--evaluation-episodes", "2"]
    arguments += ["--hidden-sizes", "8", "--no-progress", "--out", str(out)]
    assert main(arguments) == 0
    assert main([*arguments, "--overwrite"]) == 0
    assert len((out / "evaluations.csv").read_text().splitlines()) == 2


def test_folder_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    train = ("train", "ppo_clip", "CartPole-v1", *SMALL, "--out")
    assert "is a file" in failure(capsys, *train, tmp_path / "file")
    assert "cannot be written" in failure(capsys, *train, tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["trian"], "Did you mean train"),
        (["train", "ppo_clp", "CartPole-v1"], "Did you mean ppo_clip"),
        (["train", "ppo_clip", "CartPole"], "CartPole-v1"),
        (["train", "ppo_clip"], "wanted an algorithm and an environment"),
        (["train", "ppo_clip", "CartPole-v1", "--learing-rate", "1"], "--learning-rate"),
        (["train", "ppo_clip", "CartPole-v1", "--seeds", "0"], "seeds=0 is out of range"),
        (["train", "ppo_clip", "CartPole-v1", "--steps", "10"], "less than one iteration"),
        (["train", "ppo_clip", "CartPole-v1", "--gamma", "1.5"], "gamma=1.5 is out of range"),
        (["train", "ppo_clip", "CartPole-v1", "--clip", "-1"], "clip=-1.0 is out of range"),
        (["train", "ppo_clip", "CartPole-v1", "--num-minibatches", "7"], "7 equal minibatches"),
        (["train", "ppo_clip", "MNISTBandit-bsuite"], "download"),
        (["train", "dqn", "Pendulum-v1"], "choose an environment with Discrete actions"),
        (["train", "dqn", "CartPole-v1", "--capacity", "10"], "capacity=10 is less than batch"),
        (["train", "dqn", "CartPole-v1", "--warmup", "9"], "warmup=9 is less than batch_size"),
        (["train", "dqn", "CartPole-v1", "--alpha", "2"], "alpha=2.0 is out of range"),
        (["train", "dqn", "CartPole-v1", "--beta", "-1"], "beta=-1.0 is out of range"),
        (["train", "dqn", "CartPole-v1", "--epsilon-end", "7"], "epsilon_end=7.0 is out of range"),
        (["evaluate", "no-such-run"], "is no run"),
        (["plot"], "wanted run folders"),
        (["plot", "no-such-run"], "is no run"),
        (["list", "brax", "navix"], "wanted nothing or one family"),
        (["list", "gymnasiun"], "Did you mean gymnasium"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_bad_input_says_what_was_wanted(arguments, wanted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert wanted in failure(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def test_options_have_this_environments_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "ppo_clip", "CartPole-v1", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--clip FLOAT" in text
    assert "(default: 100000)" in text


def test_unknown_change_of_an_experiment_lists_close_matches():
    with pytest.raises(ValueError, match=r"no option 'learnin_rate'. Did you mean learning_rate"):
        purerl.make_experiment("ppo_clip", "CartPole-v1", learnin_rate=1.0)


def test_config_of_another_version_says_which_field():
    data = purerl.make_experiment("a2c", "CartPole-v1").to_json()
    data["config"]["warp"] = 9
    with pytest.raises(ValueError, match=r"A2CConfig.warp, which this version of purerl"):
        purerl.Experiment.from_json(data)


def interrupted_run(out, awaited, **changes):
    """A run far too long, that gets a SIGINT as soon as a file is there."""
    experiment = purerl.make_experiment(
        "a2c",
        "CartPole-v1",
        evaluation_episodes=2,
        num_envs=2,
        rollout_length=8,
        network=purerl.NetworkConfig(hidden_sizes=(8,)),
        **changes,
    )

    def interrupt():
        while not (out / awaited).exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    result = purerl.run(experiment, seeds=2, out=out, progress=False)
    thread.join()
    assert result.stopped == "SIGINT"
    assert np.isfinite(purerl.evaluate_run(out, episodes=2).mean_return).all()
    return result


def test_ctrl_c_keeps_what_was_done(tmp_path):
    out = tmp_path / "long"
    result = interrupted_run(out, "evaluations.csv", steps=10_000_000, evaluations=10_000)
    steps, returns = RunFolder(out).read_curve()
    np.testing.assert_array_equal(steps, result.steps)
    assert returns.shape == (2, len(steps))
    assert 0 < len(steps) < 10_000
    assert (out / "learning_curve.png").exists()


def test_ctrl_c_before_the_first_evaluation_keeps_the_learner(tmp_path):
    out = tmp_path / "unevaluated"
    interrupted_run(out, "config.json", steps=10_000_000, evaluations=0)
    assert list((out / "checkpoints").iterdir())


TRUST_REGION = {
    "max_kl": 0.02,
    "damping": 0.05,
    "cg_iterations": 4,
    "cg_tolerance": 1e-3,
    "fisher_fraction": 0.5,
    "normalize_advantage": False,
    "gamma": 0.98,
    "gae_lambda": 0.9,
    "critic_learning_rate": 0.01,
    "critic_learning_rate_schedule": "linear",
    "critic_epochs": 2,
    "critic_minibatches": 1,
    "adam_eps": 1e-6,
    "solver": "samples",
}
LINE_SEARCH = {"backtrack_factor": 0.5, "backtrack_steps": 3}
ACKTR = {
    "learning_rate": 0.1,
    "learning_rate_schedule": "constant",
    "target_kl": 0.001,
    "momentum": 0.5,
    "kl_clip": 0.005,
    "critic_kl_clip": 0.02,
    "critic_std": 2.0,
    "damping": 0.1,
    "damping_kind": "eigenbasis",
    "decay": 0.9,
    "stats_every": 2,
    "stats_stride": 2,
    "inverse_every": 3,
    "cold_start": 1,
    "cold_max_norm": 1.0,
    "fisher_actions": "sampled",
    "gamma": 0.9,
    "gae_lambda": 0.5,
    "normalize_advantage": True,
    "value_coef": 0.25,
    "entropy_coef": 0.01,
    "entropy_coef_schedule": "linear",
}


@pytest.mark.parametrize(
    ("name", "options"),
    [("trpo", TRUST_REGION | LINE_SEARCH), ("npg", TRUST_REGION), ("acktr", ACKTR)],
    ids=["trpo", "npg", "acktr"],
)
def test_every_option_of_a_second_order_algorithm_from_the_command_line(name, options, tmp_path):
    fields = set(purerl.ALGORITHMS[name].config.specs)
    assert set(options) == fields - {"network"}
    words = []
    for field, value in options.items():
        dashed = field.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{dashed}" if value else f"--no-{dashed}")
        else:
            words += [f"--{dashed}", str(value)]
    of_ppo = SMALL.index("--num-epochs")
    small = SMALL[:of_ppo] + SMALL[of_ppo + 4 :]
    arguments = ["train", name, "CartPole-v1", *small, *words, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--seeds", "1"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert {field: config[field] for field in options} == options


def test_trpo_from_the_command_line(tmp_path, capsys):
    """With options of the loop, of the algorithm and of the network, and what comes after."""
    of_ppo = SMALL.index("--num-epochs")
    small = SMALL[:of_ppo] + SMALL[of_ppo + 4 :]
    out = tmp_path / "trpo"
    options = [
        *("--normalize-obs", "--normalize-reward", "--max-kl", "0.02", "--cg-iterations", "4"),
        *("--critic-minibatches", "1", "--backtrack-factor", "0.5", "--shared", "--seeds", "2"),
    ]
    assert main(["train", "trpo", "CartPole-v1", *small, *options, "--out", str(out)]) == 0
    config = json.loads((out / "config.json").read_text())["config"]
    assert (config["max_kl"], config["cg_iterations"]) == (0.02, 4)
    assert config["network"]["shared"]
    assert main(["evaluate", str(out), "--episodes", "4"]) == 0
    assert main(["plot", str(out), "--out", str(tmp_path / "plot.png")]) == 0
    for option, value in (("--max-kl", "0"), ("--damping", "-1"), ("--backtrack-factor", "1")):
        arguments = ("train", "trpo", "CartPole-v1", option, value)
        name = option.removeprefix("--").replace("-", "_")
        assert f"{name}={float(value)} is out of range" in failure(capsys, *arguments)


def test_failed_seeds_are_named_in_the_summary():
    result = purerl.RunResult(
        state=None,
        steps=np.array([10]),
        returns=np.ones((4, 1)),
        failed=np.array([False, True, False, True]),
        seconds={"compiling": 1.0, "training": 2.0, "evaluating": 3.0},
        steps_per_second=20.0,
    )
    assert "2 failed seeds: 1, 3" in result.summary()


@pytest.mark.parametrize(
    "code",
    [
        "import purerl; purerl.use_all_cores()",
        "import contextlib; from purerl.cli import main\n"
        "with contextlib.suppress(SystemExit): main("
        "['train', 'ppo_clip', 'CartPole-v1', '--steps', '1'])",
    ],
    ids=["import", "command line"],
)
def test_all_cores_are_used(code):
    """What computes with JAX before use_all_cores() fixes the number of devices at one."""
    code += "\nimport jax, os; assert jax.device_count() == len(os.sched_getaffinity(0))"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    root = pathlib.Path(purerl.__file__).parent.parent
    environment["PYTHONPATH"] = str(root)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
