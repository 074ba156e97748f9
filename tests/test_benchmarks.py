"""The files of ``benchmarks/``: results are whole, and pages say what the results say."""

import json
import pathlib
import sys

import gymnasium
import gymnax
import jax
import numpy as np
import pytest
from gymnax.environments.classic_control import acrobot

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))  # before a package "learning" of others

import breakout_plateaus  # noqa: E402
import changes  # noqa: E402
import learning  # noqa: E402
import learning_tables  # noqa: E402
import seeds_needed  # noqa: E402
import trust_region  # noqa: E402
import variants  # noqa: E402
from cells import CELLS, GROUPS, Cell  # noqa: E402
from questions import QUESTIONS  # noqa: E402

sys.path.remove(str(ROOT / "benchmarks"))

RESULTS = learning_tables.read()


@pytest.mark.parametrize("page", learning.PAGES, ids=lambda page: page.name)
def test_tables_of_learning_are_what_the_results_say(page):
    """If not: python benchmarks/learning.py --report."""
    text = page.read_text()
    assert learning_tables.filled(text, learning_tables.sections(RESULTS)) == text


def test_every_group_has_its_table_and_the_readme_its_summary():
    readme, benchmarks = (page.read_text() for page in learning.PAGES[:2])
    assert "<!-- learning: summary -->" in readme
    assert all(f"<!-- learning: {group} -->" in benchmarks for group in GROUPS)


def test_results_are_whole_and_of_a_cell():
    cells = {cell.name: cell for cell in CELLS}
    assert len(cells) == len(CELLS)
    assert RESULTS
    for name, result in RESULTS.items():
        returns = np.array(result["returns"])
        assert returns.shape == (result["seeds"], len(result["steps"])), name
        assert result["commit"], name
        assert result["versions"]["jax"], name
        assert result["hardware"], name
        assert result["experiment"]["algorithm"] == cells[name].algorithm, name
        assert result["experiment"]["env"] == cells[name].env, name
        assert result.get("last", 1) == cells[name].last, name


def test_published_figures_are_of_cells_and_have_sources():
    known = {(cell.label, cell.env.rpartition(":")[2]) for cell in CELLS}
    for env, figures in learning_tables.PUBLISHED["figures"].items():
        for label, of_source in figures.items():
            assert (label, env) in known
            assert of_source.keys() <= learning_tables.PUBLISHED["sources"].keys()


@pytest.mark.parametrize(
    ("table", "name"),
    [
        *((variants.table, f"variants/{question}") for question in QUESTIONS),
        (trust_region.table, "trust_region"),
        (breakout_plateaus.table, "breakout_plateaus"),
    ],
)
def test_tables_of_experiments_are_what_their_results_say(table, name):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if path.exists():  # not every question has been asked yet
        assert table(json.loads(path.read_text())["cells"]) == path.with_suffix(".md").read_text()


def test_a_row_says_iqm_worst_seed_and_maximum_of_the_last_evaluations():
    cell = Cell(group="mujoco", algorithm="trpo", env="envpool:Hopper-v5", target=1900, last=2)
    result = {"returns": [[90.0, 10.0, 30.0], [40.0, 10.0, 10.0]], "last": 2, "seeds": 2}
    result |= {"steps": [1, 2, 1_000_000], "commit": "0123456789abcdef"}
    result["seconds"] = {"compiling": 30.0, "training": 90.0}
    row = dict(learning_tables.columns(cell, result))
    assert row["steps"] == "1,000,000"
    assert row["IQM of the return [95 %]"] == "15.0 [10.0, 20.0]"
    assert row["worst seed"] == "10.0"
    assert row["maximum"] == "65.0"
    assert row["minutes"] == "2"
    assert row["wanted"] == "1900"
    assert row["published"].startswith("2046 (tianshou), ")
    assert row["commit"] == "0123456789"


def test_what_was_not_run_is_named():
    text = learning_tables.table("brax", {})
    assert text.strip().startswith("Not run: ppo_clip-hopper, trpo-hopper")


def test_the_options_that_others_call_it_by(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(learning, "measure", lambda *given: called.append(given) or {})
    monkeypatch.setattr(learning, "report", lambda: called.append("report"))
    monkeypatch.setattr(sys, "argv", ["learning.py", "--only", "no-cell"])
    assert learning.main() == 2
    assert "unknown cell 'no-cell'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["learning.py", "--report"])
    assert learning.main() == 0
    assert called == ["report"]


def test_measuring_writes_a_file_and_leaves_what_is_there(monkeypatch, tmp_path):
    monkeypatch.setattr(learning, "RESULTS", tmp_path)
    monkeypatch.setattr(learning, "report", lambda: None)
    monkeypatch.setattr(learning, "measure", lambda cell, seeds, seed: [cell.name, seeds, seed])
    words = ["learning.py", "--only", "ppo_clip-Hopper-v5", "--seed", "3"]
    monkeypatch.setattr(sys, "argv", words)
    assert learning.main() == 0
    (path,) = tmp_path.iterdir()
    assert json.loads(path.read_text()) == ["ppo_clip-Hopper-v5", 5, 3]
    path.write_text("7")
    assert learning.main() == 0
    assert path.read_text() == "7"
    monkeypatch.setattr(sys, "argv", [*words, "--force"])
    assert learning.main() == 0
    assert path.read_text() != "7"


def folder_of(path, returns):
    """Results by name, in a folder."""
    path.mkdir()
    for name, x in returns.items():
        result = {"returns": [[value] for value in x], "steps": [100]}
        (path / f"{name}.json").write_text(json.dumps(result))
    return path


def test_what_changed_by_more_than_chance_is_told(tmp_path, capsys):
    rng = np.random.default_rng(1)
    x, shifted, same = rng.normal(size=(3, 16)).tolist()
    up = [value + 3 for value in shifted]
    old = folder_of(tmp_path / "old", {"up": x, "down": up, "same": x, "equal": x, "gone": x})
    new = folder_of(tmp_path / "new", {"up": up, "down": x, "same": same, "equal": x, "new": x})
    assert changes.main(changes.Options(old=old, new=new)) == 1
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert lines["up"].endswith("better")
    assert lines["down"].endswith("WORSE")
    assert lines["same"].endswith("-")
    assert "3 cells measured anew, 1 the same, 1 gone, 1 new" in lines["3"]
    assert changes.main(changes.Options(old=old, new=old)) == 0


def test_p_values_are_uniform_where_nothing_changed():
    """And for two seeds of two, each of the 6 ways to draw them is as likely."""
    rng = np.random.default_rng(0)
    p = [changes.p_value(*rng.normal(size=(2, 8)), 200) for _ in range(300)]
    np.testing.assert_allclose(np.quantile(p, [0.05, 0.5]), [0.05, 0.5], atol=0.07)
    np.testing.assert_allclose(changes.p_value([0.0, 1.0], [5.0, 6.0], 10_000), 2 / 6, atol=0.02)


def test_holm_refuses_step_by_step():
    assert changes.holm([0.02, 0.01, 0.5], 0.05) == [True, True, False]
    assert changes.holm([0.03, 0.01, 0.04], 0.05) == [False, True, False]
    assert changes.holm([], 0.05) == []


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="holds no results"):
        changes.main(changes.Options(old=tmp_path, new=tmp_path))


def test_more_seeds_make_narrower_intervals_that_hold():
    returns = np.random.default_rng(0).normal(size=256)
    few, more = (seeds_needed.Spread(returns, count) for count in (5, 32))
    assert 0.3 < more.width / few.width < 0.6  # sqrt(5 / 32) is 0.4
    assert 0.75 < few.holds < 1
    assert more.holds > 0.9
    # Two means of n seeds are apart by less than 1.96 sqrt(2 / n) standard deviations of a seed.
    np.testing.assert_allclose(more.apart, 1.96 * 1.09 * np.sqrt(2 / 32), rtol=0.2)
    assert seeds_needed.Spread(returns[:8], 5).apart is None


def test_moments_are_the_rise_the_end_and_one_between():
    returns = np.array([[0.0, 1.0, 4.0, 9.0, 10.0, 10.0, 10.0]] * 2)
    assert seeds_needed.moments(returns) == [3, 4, 6]


def test_a_trust_region_is_described_by_the_steps_that_were_taken():
    cell = {"env": "X", "experiment": {"config": {"max_kl": 0.01}}, "steps": [1, 2]}
    cell |= {"accepted": [[1, 1], [1, 0]], "step_fraction": [[1, 0.8], [1, 0]]}
    cell |= {"kl": [[0.01, 0.005], [0.01, 0]], "cg_residual": [[0.1, 0.1], [0.1, 9.0]]}
    cell |= {"improvement": [[0.9, 0.5], [0.8, 0]], "expected_improvement": [[1, 1], [1, 0]]}
    cell["cg_iterations"] = [[10, 10], [10, 10]]
    row = trust_region.row(cell, slice(None), "all")
    assert row == "| X | all | 25.0% | 66.7% | 0.93 | 1.00 (0.55 - 1.00) | 0.80 | 0.100 |"


def test_acrobot_of_gymnax_is_that_of_gymnasium():
    """So that published returns on the one are comparable with ours on the other."""
    env, params = gymnax.make("Acrobot-v1")
    other = gymnasium.make("Acrobot-v1").unwrapped
    other.reset(seed=0)
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (50, 4)) * [3, 3, 4, 8]
    actions = rng.integers(3, size=50)
    names = ("joint_angle1", "joint_angle2", "velocity_1", "velocity_2")

    def step(state, action):
        start = acrobot.EnvState(**dict(zip(names, state, strict=True)), time=0)
        obs, _, reward, ended, _ = env.step_env(jax.random.key(0), start, action, params)
        return obs, reward, ended

    found = jax.vmap(step)(states.astype(np.float32), actions)
    for i, (state, action) in enumerate(zip(states, actions, strict=True)):
        other.state = state.copy()
        obs, reward, terminated, _, _ = other.step(int(action))
        np.testing.assert_allclose(found[0][i], obs, atol=1e-4)
        assert (float(found[1][i]), bool(found[2][i])) == (reward, terminated)
