"""Films: which frames they have, what is refused, and the pictures of gymnax's environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import purerl
from purerl.cli import main
from purerl.envs import Env, Step
from purerl.envs.record import Pictures
from purerl.host import play as films

LENGTH, BRIGHTER = 5, 40


def counter(pictures=True, page=True):
    """Counts its steps, to five; state number i is a picture of brightness 40 i, and a letter."""

    def reset(key):
        return jnp.zeros(1), jnp.int32(0)

    def step(state, action, key, fresh=None):
        time, start = state + 1, reset(key) if fresh is None else fresh
        truncated = time >= LENGTH
        obs = jnp.where(truncated, start[0], time[None].astype(float))
        state = jnp.where(truncated, start[1], time)
        reward = jnp.float32(2.0)
        return Step(obs, time[None].astype(float), reward, jnp.array(False), truncated), state

    def frames(states):
        return [np.full((60, 80, 3), BRIGHTER * int(state), np.uint8) for state in states]

    def html(states):
        return "".join("abcde"[int(state)] for state in states)

    drawn = Pictures(frames, 0.02, html if page else None) if pictures else None
    return Env("counter", reset, step, purerl.Discrete(2), (1,), LENGTH, pictures=drawn)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("play") / "run"
    sizes = {"num_envs": 2, "rollout_length": 4, "steps": 16, "evaluations": 1}
    options = {"evaluation_episodes": 2, "hidden_sizes": (2,), "progress": False}
    purerl.run("a2c", counter(), seeds=2, out=folder, **sizes, **options)
    return folder


def test_a_film_shows_each_episode_from_its_first_state_on(run, tmp_path):
    """A GIF's frame lasts 40 ms at least: of states that are 20 ms apart, each second one."""
    out = tmp_path / "film.gif"
    assert purerl.play(run, out, episodes=2, env=counter()) == [10.0, 10.0]
    seen = []
    with Image.open(out) as film:
        assert film.size == (320, 240)  # enlarged
        for number in range(film.n_frames):
            film.seek(number)
            assert film.info["duration"] == 40
            seen.append(np.asarray(film.convert("RGB")).mean() / BRIGHTER)
    np.testing.assert_allclose(seen, [0, 2, 4] * 2, atol=0.1)


def test_other_kinds_of_film(run, tmp_path):
    page = tmp_path / "film.html"
    returns = purerl.play(run, page, seed=1, max_steps=3, greedy=False, env=counter())
    assert (returns, page.read_text()) == ([6.0], "abc")
    pytest.importorskip("av")
    imageio = pytest.importorskip("imageio.v3")
    films.write_film([np.zeros((65, 64, 3), np.uint8)] * 5, tmp_path / "film.mp4", 0.1)
    assert imageio.imread(tmp_path / "film.mp4", plugin="pyav").shape == (5, 260, 256, 3)


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("film.avi", {}, r"unknown kind of file '.avi'. Did you mean .gif"),
        ("film.gif", {"episodes": 0}, "episodes=0 is out of range"),
        ("film.gif", {"seed": 7}, "got seed=7, wanted 'best' or 0 to 1"),
        ("film.gif", {"env": counter(pictures=False)}, "counter has no picture"),
        ("film.html", {"env": counter(page=False)}, "counter has no page; give a file that ends"),
    ],
)
def test_what_is_refused(run, tmp_path, out, options, message):
    with pytest.raises(ValueError, match=message):
        purerl.play(run, tmp_path / out, **{"env": counter()} | options)
    assert not (tmp_path / out).exists()


def test_a_film_is_not_overwritten_silently(run, tmp_path, capsys):
    out = tmp_path / "film.gif"
    out.write_text("precious")
    with pytest.raises(FileExistsError, match=r"film.gif exists; choose another file"):
        purerl.play(run, out, env=counter())
    assert main(["play", str(run), "--out", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert purerl.play(run, out, env=counter(), overwrite=True) == [10.0]


def test_the_command(run, tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(films, "play", lambda *words, **named: calls.append(named) or [1.5])
    words = ["--seed", "1", "--episodes", "3", "--random-seed", "4", "--out", "film.html"]
    assert main(["play", str(run), *words]) == 0
    assert (calls[0]["seed"], calls[0]["episodes"], calls[0]["random_seed"]) == (1, 3, 4)
    assert calls[0]["point"] == "best"
    printed = capsys.readouterr().out
    assert "episode 0: return 1.50" in printed
    assert "film.html, a page that loads scripts from the network" in printed


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of pygame's and seaborn's imports
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Catch-bsuite"])
def test_pictures_of_gymnax(name):
    if name.endswith("v1"):
        pytest.importorskip("pygame")
    env = purerl.make_env(name)
    states = [jax.jit(env.reset)(jax.random.key(i))[1] for i in range(2)]
    if name == "CartPole-v1":
        states[1] = states[1].replace(theta=jnp.float32(0.2))
    first, second = env.pictures.frames(states)
    assert (first.dtype, first.shape) == (np.uint8, second.shape)
    assert first.ndim == 3
    assert first.shape[2] == 3
    assert np.any(first != second)


def test_what_gymnax_has_no_picture_of():
    assert purerl.make_env("UmbrellaChain-bsuite").pictures is None
