"""The command line: how words become runs, and what it says."""

import importlib.metadata
import pathlib
import subprocess
import sys
import types

import numpy as np
import pytest

import purerl
from purerl.cli import main
from purerl.host import command_line
from purerl.host.players.player import PlayedError

SMALL = [
    *("--steps", "64", "--num-envs", "2", "--rollout-length", "8", "--evaluations", "1"),
    *("--evaluation-episodes", "2", "--seeds", "2", "--no-progress"),
]
BROUGHT = """
import flax.linen as nn
import purerl


def own(action_space, *, network=None, rate: float = 7e-4, shape="linear", widths=(8,)):
    config = purerl.A2CConfig(learning_rate=rate, learning_rate_schedule=shape)
    network = network or purerl.ActorCritic(action_space, purerl.NetworkConfig(hidden_sizes=widths))
    return purerl.a2c(config, action_space, network)


def made(length=20):
    return purerl.make_env("CartPole-v1", max_steps_in_episode=length)


class Net(nn.Module):
    actions: int

    @nn.compact
    def __call__(self, obs):
        x = nn.tanh(nn.Dense(4)(obs))
        return purerl.Categorical(nn.Dense(self.actions)(x)), nn.Dense(1)(x)[:, 0]


def net(action_space):
    return Net(action_space.num_actions)
"""


@pytest.fixture
def seen(monkeypatch):
    """What the functions that train are given; nothing is trained."""
    calls = []

    result = types.SimpleNamespace(
        stopped=None,
        trouble=None,
        seconds={},
        failed=np.zeros(1),
        summary=lambda: "trained",
        table=lambda top: f"the first {top}",
    )

    def noted(*positional, **named):
        calls.append((*positional, named))
        return result

    for module, name in (("runs", "run"), ("runs", "resume"), ("sweep.parts", "sweep")):
        monkeypatch.setattr(f"purerl.host.{module}.{name}", noted)
    monkeypatch.setattr("purerl.host.sweep.parts.resume_sweep", noted)
    return calls


@pytest.fixture
def begun(tmp_path):
    """A folder with what a run was begun with."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text('{"options": {"keep": 7, "writers": ["jsonl"]}}')
    return folder


def test_options_become_the_numbers_of_an_experiment(seen, tmp_path):
    words = [*SMALL, "--learning_rate", "1e-2", "--learning-rate-schedule=cosine", "--clip=0.1"]
    words += ["--hidden-sizes", "8", "9", "--out", str(tmp_path / "x"), "--keep=3"]
    assert main(["train", "ppo_clip", "CartPole-v1", *words]) == 0
    ((experiment, options),) = seen
    wanted = purerl.make_experiment(
        *("ppo_clip", "CartPole-v1"), steps=64, num_envs=2, rollout_length=8, evaluations=1,
        evaluation_episodes=2, learning_rate=1e-2, learning_rate_schedule="cosine", clip=0.1,
        hidden_sizes=(8, 9),
    )  # fmt: skip
    assert experiment.to_json() == wanted.to_json()
    assert (options["seeds"], options["keep"], options["progress"]) == (2, 3, False)
    assert (options["out"], options["resume"]) == (tmp_path / "x", False)


@pytest.mark.parametrize("spelling", ["--resume PATH", "--resume=PATH"])
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_each_spelling_of_resume(seen, begun, command, spelling):
    """Options that are not given are those that the run was begun with."""
    words = spelling.replace("PATH", str(begun)).split(" ")
    for given in ([*words, "--checkpoint_seconds", "9"], ["--checkpoint-seconds=9", *words]):
        assert main([command, *given]) == 0
        path, options = seen.pop()
        assert path == begun
        assert (options["keep"], options["checkpoint_seconds"]) == (7, 9.0)
        assert tuple(options["writers"]) == ("jsonl",)
        assert options.get("steps") is None


def test_a_run_is_extended(seen, begun):
    assert main(["train", "--resume", str(begun), "--steps", "200000"]) == 0
    assert seen[0][1]["steps"] == 200_000


def test_resuming_with_names_begins_what_is_not_there(seen, tmp_path):
    words = ["train", "a2c", "CartPole-v1", *SMALL]
    assert main([*words, f"--resume={tmp_path / 'x'}"]) == 0
    assert seen[0][1]["resume"]
    assert seen[0][1]["out"] == tmp_path / "x"
    assert main([*words, f"--resume={tmp_path / 'x'}", "--out", "y"]) == 2


@pytest.mark.parametrize("where", [[], ["RUN"]])
def test_help_of_resume_lists_what_can_be_changed(where, begun, capsys):
    words = [str(begun) for _ in where]
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", *words, "--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--steps" in shown
    assert "--on-failure" in shown
    assert f"(default: {7 if where else 2})" in shown


def test_help_shows_ranges_and_this_environments_defaults(capsys):
    with pytest.raises(SystemExit):
        main(["train", "dqn", "CartPole-v1", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert f"--gamma FLOAT {purerl.DQNConfig.specs['gamma'].text()}" in shown
    for option in ("--resume", "--network", "--env-params", "--keep-best", "--hidden-sizes"):
        assert option in shown, option
    assert "function of progress" in shown


def test_what_is_brought_is_named_by_import_paths(seen, tmp_path, monkeypatch):
    """Modules of the current directory; options of the algorithm are options of the command."""
    (tmp_path / "brought_by_cli.py").write_text(BROUGHT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    names = ["brought_by_cli:own", "brought_by_cli:made"]
    words = ["--rate=1e-3", "--shape", "cosine", "--network", "brought_by_cli:net"]
    words += ["--env-params", "length=30", *SMALL]
    assert main(["train", *names, *words]) == 0
    experiment, options = seen.pop()
    data = experiment.to_json()
    assert [data["algorithm"], data["env"], data["network"]] == [*names, "brought_by_cli:net"]
    assert data["env_params"] == {"length": 30}
    assert experiment.parts()[1].max_episode_steps == 30
    assert (experiment.config.rate, experiment.config.shape) == (1e-3, "cosine")
    assert options["out"].name.startswith("own-made-")
    assert main(["sweep", *names, "--grid", "rate=1e-3,1e-2", "widths=(4,),(8, 8)", *SMALL]) == 0
    experiment, values, options = seen.pop()
    assert values == {"rate": [1e-3, 1e-2], "widths": [(4,), (8, 8)]}
    assert experiment.replace(widths=(8, 8)).config.widths == (8, 8)
    assert options["out"].name.startswith("sweep-own-made-")


def test_parameters_of_the_environment_are_literals_words_or_tuples():
    words = [
        "--steps",
        "9",
        "--env-params",
        "a=3",
        "b-c=1.5",
        "d=sand",
        "e=1,2",
        "f=True",
        "--help",
    ]
    params = {"a": 3, "b_c": 1.5, "d": "sand", "e": (1, 2), "f": True}
    first = command_line.read_first(words)
    assert first.env_params == params
    assert (first.network, first.resume, first.help) == (None, None, True)


def test_random_points_and_words_of_a_grid(seen):
    command = ["sweep", "a2c", "CartPole-v1", *SMALL]
    assert main([*command, "--sample", "learning-rate=1e-4:1e-2:log", "--samples", "3"]) == 0
    _, points, _ = seen.pop()
    assert len(points) == 3
    assert all(1e-4 < point["learning_rate"] < 1e-2 for point in points)
    words = ["activation=tanh,relu", "normalize_obs=True,False", "learning_rate_schedule=cosine"]
    assert main([*command, "--grid", *words]) == 0
    assert seen.pop()[1] == {
        "activation": ["tanh", "relu"],
        "normalize_obs": [True, False],
        "learning_rate_schedule": ["cosine"],
    }


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["train", "a2c", "CartPole-v1", "--env-params", "length"], "wanted NAME=VALUE"),
        (["train", "no_such_module:f", "CartPole-v1"], "cannot be imported"),
        (["train", "purerl.algorithms.a2c:a2cc", "CartPole-v1"], "Did you mean a2c"),
        (["train", "--resume", "nowhere"], "is no run"),
        (["sweep", "--resume=nowhere"], "is no run"),
        (["evaluate", "nowhere", "--point", "1"], "is no run"),
        (["sweep", "a2c"], "wanted an algorithm and an environment"),
        (["lst"], "Did you mean list"),
        (["train", "a2cc", "CartPole-v1"], "purerl train: unknown algorithm 'a2cc'. Did you mean"),
        (["train", "a2c", "CartPole-v1", "--gamma", "1.5"], "gamma=1.5 is out of range; set it"),
        (["train", "a2c", "CartPole-v1", "--hidden-sizes", "0"], "hidden_sizes=0 is out of range"),
        (["train", "a2c", "CartPole-v1", "--steps", "9"], "less than one iteration"),
        (
            ["train", "a2c", "CartPole-v1", "--lr", "1"],
            "no option --lr. Did you mean --learning-rate",
        ),
        (["train", "a2c", "CartPole-v1", "--gama=1"], "no option --gama. Did you mean --gamma"),
        (["train", "a2c", "CartPole-v1", "--seeds", "0"], "seeds=0 is out of range"),
        (["train", "a2c", "CartPole-v1", "--keep", "0"], "keep=0 is out of range"),
        (["train", "a2c", "CartPole-v1", "--writers", "csvs"], "Did you mean csv"),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else None,
)
def test_errors_are_one_line(words, wanted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert wanted in shown
    assert shown.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("inside", "line"), [("jnp.zeros(3) + jnp.zeros(2)", 6), ("purerl.Discrete(0)", 6)]
)
def test_an_error_in_the_users_own_code_says_where(inside, line, capsys, tmp_path, monkeypatch):
    source = ["import jax.numpy as jnp", "import purerl", "", "", "def awr(action_space):"]
    name = f"own_{abs(hash(inside))}"
    (tmp_path / f"{name}.py").write_text("\n".join([*source, f"    return {inside}", ""]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["train", f"{name}:awr", "CartPole-v1"]) == 2
    shown = capsys.readouterr().err
    assert f"({tmp_path / name}.py, line {line}; PURERL_TRACEBACK=1 shows" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("source", "wanted", "line"),
    [
        ("def awr(space)\n    pass", "cannot be imported: SyntaxError: expected ':'", 1),
        ("x = 1\nx['a']", "cannot be imported: TypeError: 'int' object is not subs", 2),
        ("import jax\nraise RuntimeError('a\\nb')", "imported: RuntimeError: a b; mend own_", 2),
        ("def awr(action_space):\n    return {}['a']", "train: KeyError: 'a' (", 2),
    ],
)
def test_any_error_of_the_users_own_code_is_one_line(source, wanted, line, capsys, tmp_path):
    name = f"own_{abs(hash(source))}"
    (tmp_path / f"{name}.py").write_text(f"{source}\n")
    sys.path.insert(0, str(tmp_path))
    try:
        assert main(["train", f"{name}:awr", "CartPole-v1"]) == 2
    finally:
        sys.path.remove(str(tmp_path))
    shown = capsys.readouterr().err
    assert wanted in shown
    assert f"({tmp_path / name}.py, line {line}; PURERL_TRACEBACK=1 shows" in shown
    assert shown.count("\n") == 1


def test_an_environment_that_fails_while_it_is_played_is_one_line(seen, capsys, monkeypatch):
    def fail(*args, **options):
        raise PlayedError("environment 0 of seed 1 failed at step 3")

    monkeypatch.setattr("purerl.host.runs.run", fail)
    assert main(["train", "a2c", "CartPole-v1", *SMALL]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("purerl train: environment 0 of seed 1 failed at step 3")
    assert shown.count("\n") == 1
    monkeypatch.setattr("purerl.host.runs.run", lambda *args, **options: 1 / 0)
    monkeypatch.setenv("PURERL_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["train", "a2c", "CartPole-v1", *SMALL])


@pytest.mark.parametrize(
    ("stopped", "failed", "trouble", "status"),
    [
        (None, False, None, 0),
        (None, True, None, 1),
        (None, False, "disk full", 1),
        ("SIGINT", False, None, 130),
        ("SIGTERM", False, None, 143),
        ("failure", False, None, 1),
    ],
)
def test_exit_status_and_how_to_go_on(stopped, failed, trouble, status, begun, monkeypatch, capsys):
    result = purerl.SweepResult(
        *([{}], *[np.zeros((1, 0)), np.zeros((1, 1, 0)), np.zeros((1, 1)) + failed]),
        *(np.zeros(1), {}, 0, stopped, trouble),
    )

    def resumed(path, **options):
        if stopped == "SIGTERM":
            raise purerl.Terminated(result)
        return result

    monkeypatch.setattr("purerl.host.sweep.parts.resume_sweep", resumed)
    assert main(["sweep", "--resume", str(begun)]) == status
    shown = capsys.readouterr().out
    assert (f"purerl sweep --resume {begun}" in shown) == bool(stopped)
    assert ("disk full" in shown) == bool(trouble)


def test_curves_of_several_runs_have_different_labels(monkeypatch, tmp_path):
    """By environment where there are several, and by folder where that is not enough."""
    seen = []
    monkeypatch.setattr(
        "purerl.host.report.plotting.plot_curves", lambda *given: seen.append(given)
    )
    monkeypatch.setattr("purerl.host.report.plotting.save_plot", lambda *given: None)
    names = {"a": "CartPole-v1", "b": "CartPole-v1", "c": "Acrobot-v1"}
    for name, env in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(f'{{"algorithm": "a2c", "env": "{env}"}}')
        (tmp_path / name / "evaluations.csv").write_text("seed,step,return\n0,10,1.0\n")
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "a", "b"]) == 0
    assert main(["plot", "a", "b", "c"]) == 0
    assert [[*curves] for curves, _ in seen] == [
        ["a2c", "a2c [b]"],
        ["a2c CartPole-v1", "a2c CartPole-v1 [b]", "a2c Acrobot-v1"],
    ]
    assert [title for _, title in seen] == ["CartPole-v1", "Acrobot-v1, CartPole-v1"]
    (tmp_path / "learning_curves.png").write_text("")
    assert main(["plot", "a"]) == 2
    assert main(["plot", "a", "--overwrite"]) == 0


def test_usage_version_and_module(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "purerl train --resume RUN [--steps N]" in capsys.readouterr().out
    assert main(["--version"]) == 0
    version = importlib.metadata.version("purerl")
    assert capsys.readouterr().out == f"purerl {version}\n"
    assert purerl.__version__ == version
    done = subprocess.run(
        [sys.executable, "-m", "purerl", "--version"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(purerl.__file__).parent.parent,
    )
    assert done.stdout == f"purerl {version}\n"
    for command in ("train", "sweep"):
        assert main([command, "--help"]) == 0
