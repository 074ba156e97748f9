"""What the documentation shows works as printed."""

import pathlib
import re

import jax
import jax.numpy as jnp
import nbformat
import pytest
from nbclient import NotebookClient

import purerl

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_of_the_readme_run():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    notebook, sweep, record = blocks[:3]
    names = {}
    exec(notebook.replace("50_000", "4_000").replace(", 16)", ", 4)"), names)
    assert names["result"].curve.evaluation.mean_return.shape[0] == 4
    exec(sweep.replace("50_000", "4_000"), names)
    assert names["results"].failed.tolist() == [False] * 4
    assert re.findall(r"algorithm\.(\w+)", record) == list(purerl.OnPolicyAlgorithm._fields[:3])


def test_second_order_block_of_the_readme_runs():
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (block,) = (block for block in blocks if "make_policy_step" in block)
    env = purerl.make_env("CartPole-v1")
    network = purerl.ActorCritic(env.action_space)
    obs = jax.random.normal(jax.random.key(0), (64, 4))
    params = network.init(jax.random.key(1), obs)
    policy = lambda params, obs: network.apply(params, obs)[0]  # noqa: E731
    action = policy(params, obs).sample(jax.random.key(2))
    log_prob = policy(params, obs).log_prob(action)
    names = {
        "purerl": purerl,
        "env": env,
        "params": params,
        "obs": obs,
        "policy": policy,
        "batch": purerl.OnPolicyBatch(obs, action, log_prob, None, obs[:, 0], None),
        "gradient": jax.tree.map(jnp.ones_like, params),
        "step": jax.tree.map(lambda x: 1e-3 * jnp.ones_like(x), params),
        "evaluate": lambda params: (policy(params, obs).log_probs()[:, 0].mean(), 0.0),
        "value": jnp.float32(-1e6),
    }
    exec(block, names)
    assert names["info"]["accepted"]
    (kfac,) = (block for block in blocks if "scale_by_kfac" in block)
    exec(kfac, names | {"network": network, "key": jax.random.key(3)})
    assert names["solution"].iterations > 0
    assert names["found"].accepted


def test_blocks_on_long_runs_of_the_readme_run(tmp_path, monkeypatch):
    """On a small run; and its sweep is smaller."""
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (policy,) = (block for block in blocks if "load_policy" in block)
    (sweep,) = (block for block in blocks if "purerl.sweep" in block)
    monkeypatch.chdir(tmp_path)
    names = {"purerl": purerl, "obs": jnp.zeros((3, 4))}
    exec(policy.replace("10_000_000", "4_000").replace("seeds=64", "seeds=2"), names)
    assert names["result"].returns.shape == (2, 20)
    assert names["action"].shape == (3,)
    assert names["result"].stopped is None
    changed = sweep.replace("50_000", "2_048").replace("seeds=4", "seeds=1")
    exec(changed.replace("[3e-4, 1e-3, 3e-3]", "[1e-3]"), names)
    assert len(names["result"].ranked()) == 2


def test_readme_has_two_commands_and_they_name_what_exists():
    commands = re.findall(r"```bash\n(python3 -m venv.*?)```", README, re.DOTALL)
    assert len(commands) == 2
    assert "purerl train ppo_clip CartPole-v1" in commands[0]
    assert README.index("<!-- test command -->") < README.index(commands[1])


def test_links_of_the_readme_point_to_files():
    for link in re.findall(r"\]\(([^)h#][^)]*)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_public_names_are_all_there_and_have_docstrings():
    for name in purerl.__all__:
        thing = getattr(purerl, name)
        assert thing.__doc__ or name in ("ALGORITHMS", "ActionSpace"), name


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ipynb")), ids=lambda p: p.name)
def test_notebook_runs_and_shows_its_pictures(path):
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 2


def test_quickstart_needs_at_most_15_lines_from_import_to_learning_curves():
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    lines = [line for line in first.source.splitlines() if line.strip()]
    assert len(lines) <= 15
    assert "plot_curves" in lines[-1]
