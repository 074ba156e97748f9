"""Films of a run's policy in its environment: GIF, MP4, or a page where the family makes one."""

import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.config import check_choice, check_integer
from purerl.host.experiment import Experiment
from purerl.host.store.policy import load_seed
from purerl.records import PyTree
from purerl.training.seeds import take_seeds
from purerl.training.state import TrainState

FORMATS = (".gif", ".mp4", ".html")
SHOWN = 0.04  # seconds of a frame at least: of faster environments some steps are left out
SMALLEST = 240  # pixels of a picture's height; smaller ones are enlarged by a whole number


class Episode(NamedTuple):
    """One that was played.

    Attributes:
        states: Of the environment, one before each step.
        total: Its undiscounted return.
    """

    states: list[PyTree]
    total: float


def play(
    path: str | pathlib.Path,
    out: str | pathlib.Path = "play.gif",
    *,
    seed: int | str = "best",
    episodes: int = 1,
    random_seed: int = 0,
    point: int | str = "best",
    checkpoint: str = "newest",
    greedy: bool = True,
    max_steps: int = 1000,
    overwrite: bool = False,
    **given: Any,
) -> list[float]:
    """Plays episodes with a policy that a run or a sweep learned, and writes a film of them.

    Without a screen on Linux, MuJoCo draws by EGL: where ``MUJOCO_GL`` is not set, it is set here,
    which helps if MuJoCo is not imported yet.

    Args:
        path: The folder of the run or sweep.
        out: Where to: ``.gif``; ``.mp4``, which needs the extra ``play``; for Brax also ``.html``,
            a page that loads its scripts from the network when it is opened.
        seed: Which of its seeds, or ``best``, as :func:`purerl.load_policy` takes it.
        episodes: How many, one after the other.
        random_seed: Random seed of the episodes.
        point: Of a sweep: number of the point in its table, or ``best``.
        checkpoint: ``newest``, or ``best``.
        greedy: Act by the policy's mode; else by samples.
        max_steps: Steps after which an episode is left, if it has not ended.
        overwrite: Replace ``out`` if it exists.
        **given: As :func:`purerl.load_policy` takes them.

    Returns:
        The undiscounted return of each episode.

    Raises:
        FileExistsError: If ``out`` exists.
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If the environment has no picture, or a number is out of range.
    """
    out = pathlib.Path(out)
    check_choice("play: unknown kind of file", out.suffix, FORMATS)
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another file, or give overwrite=True.")
    if out.suffix == ".mp4" and importlib.util.find_spec("av") is None:
        raise ValueError(f"{out}: MP4 needs imageio with PyAV: pip install 'purerl[play]'.")
    check_integer("play", "episodes", episodes)
    check_integer("play", "max_steps", max_steps)
    _draw_without_screen()
    experiment, state = load_seed(path, seed, point, checkpoint, given)
    env = experiment.environment
    if env.outside is not None:
        keys = jax.random.split(jax.random.key(random_seed), episodes)
        return _film_outside(experiment, state, keys, greedy, max_steps, out)
    pictures = env.pictures
    if pictures is None:
        raise ValueError(f"{env.name} has no picture, so there is no film of it.")
    if out.suffix == ".html" and pictures.html is None:
        raise ValueError(f"{env.name} has no page; give a file that ends in .gif or .mp4.")
    keys = jax.random.split(jax.random.key(random_seed), episodes)
    played = [*_play(experiment, state, keys, greedy, max_steps)]
    states = [one for episode in played for one in episode.states]
    if pictures.html and out.suffix == ".html":
        out.write_text(pictures.html(states))
    else:
        stride = max(1, round(SHOWN / pictures.seconds))
        shown = [s for episode in played for s in _every(episode.states, stride)]
        write_film(pictures.frames(shown), out, stride * pictures.seconds)
    return [episode.total for episode in played]


def _draw_without_screen() -> None:
    """Tells MuJoCo and SDL (pygame's) to look for no screen where there is none, nor for sound."""
    settings = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_AUDIODRIVER": "dummy"}
    screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not screen:
        settings |= {"MUJOCO_GL": "egl", "SDL_VIDEODRIVER": "dummy"}
    for name, value in settings.items():
        os.environ.setdefault(name, value)


class _Actor:
    """Acts in one environment by the only seed of a state, and remembers what its network does."""

    def __init__(self, experiment: Experiment, state: TrainState, greedy: bool):
        normalizer, learner = take_seeds((state.normalizer, state.learner), 0)
        algorithm, _ = experiment.parts()
        self.init_memory = getattr(algorithm, "init_memory", None)
        self.remembered: dict[str, Any] = {}

        @jax.jit
        def act(obs: PyTree, key: jax.Array, remembered: dict[str, Any]) -> Any:
            seen = normalizer.observe(obs, experiment.loop)
            how = {"greedy": greedy, "progress": 1.0, **remembered}
            action, after = algorithm.act(learner, seen, key, **how)
            return action, after.get("memory")

        self.act = act

    def begin(self, obs: PyTree) -> None:
        """An episode begins with observations ``[1, *O]``."""
        if self.init_memory is not None:
            self.remembered = {"memory": self.init_memory(obs), "start": jnp.ones(1, bool)}

    def __call__(self, obs: PyTree, key: jax.Array) -> jax.Array:
        """An action ``[1, *A]`` for observations ``[1, *O]``."""
        action, memory = self.act(obs, key, self.remembered)
        if self.remembered:
            self.remembered = {"memory": memory, "start": jnp.zeros(1, bool)}
        return action


def _play(
    experiment: Experiment, state: TrainState, keys: jax.Array, greedy: bool, max_steps: int
) -> Iterator[Episode]:
    """An episode a key, by the only seed of a state."""
    env, actor = experiment.environment, _Actor(experiment, state, greedy)
    reset, step = jax.jit(env.reset), jax.jit(env.step)
    for key in keys:
        reset_key, key = jax.random.split(key)
        obs, env_state = reset(reset_key)
        one = jax.tree.map(lambda x: x[None], obs)
        actor.begin(one)
        states, total = [], 0.0
        for number in range(max_steps):
            states.append(env_state)
            act_key, env_key = jax.random.split(jax.random.fold_in(key, number))
            result, env_state = step(env_state, actor(one, act_key)[0], env_key)
            one, total = jax.tree.map(lambda x: x[None], result.obs), total + float(result.reward)
            if result.terminated or result.truncated:
                break
        yield Episode(states, total)


def _film_outside(
    experiment: Experiment,
    state: TrainState,
    keys: jax.Array,
    greedy: bool,
    max_steps: int,
    out: pathlib.Path,
) -> list[float]:
    """The same of an environment that the host plays, which draws itself."""
    env = experiment.environment
    filmed = env.outside and env.outside.filmed
    if not filmed:
        raise ValueError(
            f"{env.name} has no picture, so there is no film of it; Gymnasium's environments, by "
            "their names and stepped in this process, mostly have one."
        )
    if out.suffix == ".html":
        raise ValueError(f"{env.name} has no page; give a file that ends in .gif or .mp4.")
    actor, frames, totals, shown = _Actor(experiment, state, greedy), [], [], 0.0
    for key in keys:
        player, frame, seconds = filmed(int(jax.random.randint(key, (), 0, 2**31 - 1)))
        stride = max(1, round(SHOWN / seconds))
        shown, obs, total = stride * seconds, player.reset(), 0.0
        actor.begin(obs)
        for number in range(max_steps):
            if number % stride == 0:
                frames.append(frame())
            moved = player.step(np.asarray(actor(obs, jax.random.fold_in(key, number))))
            obs, total = moved.obs, total + float(moved.reward[0])
            if moved.terminated[0] or moved.truncated[0]:
                break
        player.close()
        totals.append(total)
    write_film(frames, out, shown)
    return totals


def _every(states: list[PyTree], stride: int) -> list[PyTree]:
    """One of ``stride`` states, and the last one."""
    last = [] if (len(states) - 1) % stride == 0 else states[-1:]
    return states[::stride] + last


def write_film(frames: Sequence[np.ndarray], out: pathlib.Path, seconds: float) -> None:
    """Writes frames as a GIF or MP4.

    Args:
        frames: uint8 ``[height, width, 3]``; small ones are enlarged.
        out: Where to; its suffix says which.
        seconds: Of a frame.
    """
    scale = max(1, round(SMALLEST / frames[0].shape[0]))
    large = (np.repeat(np.repeat(frame, scale, axis=0), scale, axis=1) for frame in frames)
    if out.suffix == ".mp4":
        import imageio.v3

        height, width = (size // 2 * 2 for size in scale * np.array(frames[0].shape[:2]))  # even
        film = np.stack([frame[:height, :width] for frame in large])
        imageio.v3.imwrite(out, film, plugin="pyav", codec="libx264", fps=round(1 / seconds))
        return
    from PIL import Image

    first, *others = (Image.fromarray(frame) for frame in large)
    first.save(out, save_all=True, append_images=others, duration=1000 * seconds, loop=0)
