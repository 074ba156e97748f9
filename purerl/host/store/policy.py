"""What the folder of a run, or of a sweep, is good for later: policies and evaluations."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from purerl.config import check_choice
from purerl.host.experiment import Experiment
from purerl.host.store.checkpoint import BEST, NEWEST, Checkpoints
from purerl.host.store.folder import RunFolder, check_same
from purerl.host.sweep.result import load_sweep, read_host, sweep_parts
from purerl.records import Box, Clock
from purerl.training.evaluation import Evaluation
from purerl.training.seeds import use_all_cores, vectorize
from purerl.training.state import TrainState


class _Row(NamedTuple):
    """Where a policy is: a run's folder, and its row of that run's arrays."""

    folder: RunFolder
    experiment: Experiment
    row: int


def load_policy(
    path: str | pathlib.Path,
    seed: int | str = "best",
    *,
    point: int | str = "best",
    checkpoint: str = "newest",
    greedy: bool = True,
) -> Callable[..., jax.Array]:
    """A policy that a run or a sweep learned, for use anywhere.

    Args:
        path: The folder of the run or sweep.
        seed: Which of its seeds (of a sweep: of the point's), or ``best``: the one with the highest
            return in the last evaluation before the checkpoint.
        point: Of a sweep: which of its points, by their number in the table, or ``best``: the first
            of the ranking, which is by the newest checkpoints.
        checkpoint: ``newest``, or ``best``: the one that ``keep_best`` kept.
        greedy: Act by the policy's mode; else by samples, which need a key.

    Returns:
        ``policy(obs, key=None) -> action``, jitted, for one raw observation ``[*O]`` or many
        ``[N, *O]``; the run's normalization is applied to them, frozen. Actions are what the
        environment takes.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If there is no such seed or point, or the checkpoint is damaged or of another
            version.
    """
    check_choice("load_policy", "checkpoint", checkpoint, ("newest", "best"))
    folder, which = RunFolder(path), NEWEST if checkpoint == "newest" else BEST
    config = folder.read_config()
    if "experiments" in config:
        folder, experiment, row = _row_of_sweep(folder, config, point, seed, which)
        state, _ = _load(folder, which)
    elif point != "best":
        raise ValueError(f"load_policy: {path} is no sweep, so it has no point {point!r}.")
    else:
        experiment = Experiment.from_json(read_run(folder))
        state, host = _load(folder, which)
        returns = dict(enumerate(host["returns"][-1])) if host["returns"] else {}
        row = _seed(path, seed, host["run"]["seeds"], returns)
    normalizer, learner = jax.tree.map(lambda x: x[row], (state.normalizer, state.learner))
    algorithm, env = experiment.parts()

    def policy(obs: jax.Array, key: jax.Array | None = None) -> jax.Array:
        obs = jnp.asarray(obs, float)
        one = obs.shape == env.obs_shape
        if obs.shape[-len(env.obs_shape) or obs.ndim :] != env.obs_shape or (
            obs.ndim > len(env.obs_shape) + 1
        ):
            raise ValueError(
                f"policy: obs has shape {obs.shape}, wanted {env.obs_shape} or a batch "
                f"(N, {', '.join(map(str, env.obs_shape))})."
            )
        if key is None and not greedy:
            raise ValueError("policy: a sampled action needs a key: policy(obs, key).")
        key = jax.random.key(0) if key is None else key
        many = normalizer.observe(obs[None] if one else obs)
        action, _ = algorithm.act(learner, many, key, greedy=greedy, progress=1.0)
        if isinstance(env.action_space, Box):
            action = jnp.clip(action, env.action_space.low, env.action_space.high)
        return action[0] if one else action

    return jax.jit(policy)


def evaluate_run(
    path: str | pathlib.Path, *, episodes: int = 128, seed: int = 0, greedy: bool = True
) -> Evaluation:
    """Plays episodes with the policies of a run's newest checkpoint.

    Args:
        path: The run's folder.
        episodes: Of each seed.
        seed: Random seed of the episodes.
        greedy: Act by the policy's mode; else by samples.

    Returns:
        An evaluation with leaves ``[S]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If the run is of a version whose fields this one does not know.
    """
    use_all_cores()
    folder = RunFolder(path)
    experiment = Experiment.from_json(read_run(folder))
    state, host = _load(folder, NEWEST)
    loop = dataclasses.replace(
        experiment.loop, evaluation_episodes=episodes, greedy_evaluation=greedy
    )
    train = dataclasses.replace(experiment, loop=loop).build()
    keys = jax.random.split(jax.random.key(seed), host["run"]["seeds"])
    state = state._replace(clock=Clock(jnp.int32(0)), key=keys)
    return jax.device_get(jax.jit(vectorize(train.evaluate))(state))


def read_run(folder: RunFolder) -> dict[str, Any]:
    """What the ``config.json`` of a run holds.

    Args:
        folder: The run's.

    Raises:
        FileNotFoundError: If it holds no run.
        ValueError: If it is a sweep's.
    """
    config = folder.read_config()
    if "points" in config:
        raise ValueError(
            f"{folder.path} is a sweep, or a part of one, wanted a run; go on with a sweep by "
            "purerl sweep --resume SWEEP, or purerl.resume_sweep; "
            "purerl.load_policy(SWEEP, point=...) gives its policies."
        )
    return config


def _seed(
    path: str | pathlib.Path, seed: int | str, seeds: int, returns: Mapping[int, float]
) -> int:
    """The number of a seed, or of the one with the highest return."""
    if seed != "best":
        return _number("seed", seed, seeds)
    if not returns:
        raise ValueError(
            f"{path} was not evaluated, so no seed is the best; give a number, 0 to {seeds - 1}."
        )
    return max(returns, key=lambda s: -np.inf if np.isnan(returns[s]) else returns[s])


def _row_of_sweep(
    folder: RunFolder, config: dict[str, Any], point: int | str, seed: int | str, which: str
) -> _Row:
    result = load_sweep(folder.path)
    if point == "best":
        ranked = result.ranked()
        if not ranked:
            raise ValueError(f"{folder.path}: nothing was evaluated, so no point is the best.")
        point = ranked[0]["point"]
    point, seeds = _number("point", point, len(result.points)), config["seeds"]
    found: dict[int, tuple[RunFolder, int]] = {}  # of each seed
    returns: dict[int, float] = {}
    for part in sweep_parts(folder):
        there = part.read_config()
        if point not in there["points"]:
            continue
        first, last = there["rows"]
        begin = there["points"].index(point) * seeds
        rows = range(max(first, begin), min(last, begin + seeds))
        found |= {row - begin: (part, row - first) for row in rows}
        host = read_host(part, which)
        if host is not None and host["returns"]:
            returns |= {row - begin: host["returns"][-1][row - first] for row in rows}
    seed = _seed(folder.path, seed, seeds, returns) if found else 0
    if seed not in found:
        raise FileNotFoundError(
            f"{folder.path}: the sweep was stopped before it came to point {point}, seed {seed}; "
            "resume it."
        )
    return _Row(found[seed][0], Experiment.from_json(config["experiments"][point]), found[seed][1])


def _number(name: str, x: Any, count: int) -> int:
    if not isinstance(x, int | np.integer) or not 0 <= x < count:
        raise ValueError(f"load_policy: got {name}={x!r}, wanted 'best' or 0 to {count - 1}.")
    return int(x)


def _load(folder: RunFolder, which: str) -> tuple[TrainState, dict[str, Any]]:
    """The learners and normalizers of a checkpoint, and what it says of itself."""
    experiment = Experiment.from_json(folder.read_config())
    if not (folder.path / which).is_dir():
        advice = "resume it" if which == NEWEST else "it was run without --keep-best"
        raise FileNotFoundError(f"{folder.path / which} is missing: no checkpoint; {advice}.")
    checkpoints = Checkpoints(folder.path / which, keep=None)
    try:
        iterations = checkpoints.iterations()
        if not iterations:
            raise FileNotFoundError(
                f"{folder.path / which} holds no checkpoint: the run was stopped before its "
                "first one; resume it."
            )
        host = checkpoints.read_host(iterations[-1])
        check_same(experiment.to_json(), host["run"], str(checkpoints.path))
        train = experiment.build()
        keys = jax.random.split(jax.random.key(0), len(host["failed"]))
        template = jax.jit(vectorize(lambda key: _policy_part(train.init(key)))).eval_shape(keys)
        state = checkpoints.restore_policy(iterations[-1], template)
    finally:
        checkpoints.close()
    return state, host


def _policy_part(state: TrainState) -> TrainState:
    """What of a state acting needs."""
    return TrainState(None, None, state.learner, None, state.normalizer, None)  # type: ignore
