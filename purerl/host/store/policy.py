"""Policies and evaluations from the folder of a run or of a sweep."""

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from purerl.config import check_choice
from purerl.host.acting import Policy
from purerl.host.compilation import cached_programs, compiler_options
from purerl.host.devices import is_key
from purerl.host.experiment import Experiment
from purerl.host.players.driver import evaluate_played
from purerl.host.store.checkpoint import Checkpoints
from purerl.host.store.folder import RunFolder, check_run, read_run
from purerl.host.sweep.result import load_sweep, sweep_parts
from purerl.records import Clock, PyTree, is_clock
from purerl.training.evaluation import Evaluation
from purerl.training.seeds import take_seeds, use_all_cores, vectorize
from purerl.training.state import TrainState


def load_policy(
    path: str | pathlib.Path,
    seed: int | str = "best",
    *,
    point: int | str = "best",
    checkpoint: str = "newest",
    greedy: bool = True,
    **given: Any,
) -> Policy:
    """A policy that a run or a sweep learned, for use anywhere.

    Args:
        path: The folder of the run or sweep.
        seed: Which of its seeds (of a sweep: of the point's), or ``best``: the one with the highest
            return in the last evaluation before the checkpoint.
        point: Of a sweep: which of its points, by their number in the table, or ``best``: the first
            of the ranking, which is by the newest checkpoints.
        checkpoint: ``newest``, or ``best``: the one that ``keep_best`` kept.
        greedy: Act by the policy's mode; else by samples, which need a key.
        **given: ``algorithm``, ``env``, ``network``, where the run was begun with objects. The code
            that it names by import paths is imported.

    Returns:
        ``policy(obs, key=None) -> action``, for one raw observation ``[*O]`` or many ``[N, *O]``,
        as the environment itself gives them or as ``make_env`` does (where both fit, whole numbers
        are the environment's own); the run's normalization is applied to them, frozen. Actions are
        what the environment takes, as NumPy's numbers and arrays; under a JAX transformation they
        are traced. A policy with a memory keeps it from call to call: ``policy.reset()`` where an
        episode begins, or ``policy.reset(ended)`` with a bool ``[N]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If there is no such seed or point, or the checkpoint is damaged or of another
            version.

    Example:
        >>> import tempfile, purerl
        >>> folder = f"{tempfile.mkdtemp()}/run"
        >>> sizes = dict(steps=2000, evaluations=1, seeds=2)
        >>> _ = purerl.run("a2c", "CartPole-v1", **sizes, out=folder, progress=False)
        >>> policy = load_policy(folder, seed=1)
        >>> policy([0.0, 0.1, 0.0, 0.1]) in (0, 1), policy([[0.0] * 4] * 3).shape
        (True, (3,))
        >>> evaluate_run(folder, episodes=4).mean_return.shape
        (2,)
    """
    experiment, state = load_seed(path, seed, point, checkpoint, given)
    return make_policy(experiment, state, 0, greedy=greedy)


def load_seed(
    path: str | pathlib.Path,
    seed: int | str,
    point: int | str,
    checkpoint: str,
    given: dict[str, Any],
) -> tuple[Experiment, TrainState]:
    """The experiment of a run or point, and learner and normalizer of one seed, ``[1, ...]``.

    Args:
        path: As :func:`load_policy` takes it, as the others.
        seed: Which of its seeds.
        point: Of a sweep.
        checkpoint: ``newest`` or ``best``.
        given: Objects that the run was begun with.
    """
    check_choice("load_policy: unknown checkpoint", checkpoint, ("newest", "best"))
    folder = RunFolder(path)
    experiment, learned, returns = _learned_seeds(folder, point, checkpoint, given)
    number = best_seed(str(path), seed, folder.read_config()["seeds"], returns)
    return experiment, _together(folder, learned, [number])


def make_policy(
    experiment: Experiment, state: TrainState, seed: int, *, greedy: bool = True
) -> Policy:
    """The policy of one seed; see :func:`load_policy`.

    Args:
        experiment: What was trained.
        state: Learners and normalizers ``[S, ...]``.
        seed: Which of them.
        greedy: Act by the policy's mode; else by samples, which need a key.
    """
    normalizer, learner = take_seeds((state.normalizer, state.learner), seed)
    algorithm, env = experiment.parts()

    @jax.jit
    def step(obs: jax.Array, key: jax.Array, *remembered: PyTree) -> Any:
        given = dict(zip(("memory", "start"), remembered, strict=False))
        seen = normalizer.observe(obs, experiment.loop)
        action, extras = algorithm.act(learner, seen, key, greedy=greedy, progress=1.0, **given)
        action = jax.vmap(env.to_env_action)(action)
        return (action, extras["memory"]) if remembered else action

    return Policy(step, env, greedy, getattr(algorithm, "init_memory", None))


def evaluate_run(
    path: str | pathlib.Path,
    *,
    point: int | str = "best",
    episodes: int = 128,
    seed: int = 0,
    greedy: bool = True,
    cache: str = "",
    **given: Any,
) -> Evaluation:
    """Plays episodes with the policies of a run's newest checkpoint, or of a sweep's point.

    Args:
        path: The folder of the run or sweep.
        point: Of a sweep: which of its points, as :func:`load_policy` takes it.
        episodes: Of each seed.
        seed: Random seed of the episodes.
        greedy: Act by the policy's mode; else by samples.
        cache: Folder of compiled programs, or "off"; see :func:`purerl.cached_programs`.
        **given: As :func:`load_policy` takes them.

    Returns:
        An evaluation with leaves ``[S]``.

    Raises:
        FileNotFoundError: If the folder holds no run, or one without a checkpoint.
        ValueError: If the run is of a version whose fields this one does not know.
    """
    use_all_cores()
    with cached_programs(cache):
        return _evaluate(RunFolder(path), point, episodes, seed, greedy, given)


def _evaluate(
    folder: RunFolder, point: int | str, episodes: int, seed: int, greedy: bool, given: Any
) -> Evaluation:
    experiment, learned, _ = _learned_seeds(folder, point, "newest", given)
    seeds = folder.read_config()["seeds"]
    state = _together(folder, learned, range(seeds))
    asked = experiment.replace(evaluation_episodes=episodes, greedy_evaluation=greedy)
    keys = jax.random.split(jax.random.key(seed), seeds)
    state = state._replace(clock=Clock(jnp.int32(0)), key=keys)
    if experiment.environment.outside is not None:
        return evaluate_played(asked, state)
    evaluate = jax.jit(vectorize(asked.build().evaluate)).lower(state)
    return jax.device_get(evaluate.compile(compiler_options("once"))(state))


def best_seed(where: str, seed: int | str, seeds: int, returns: Mapping[int, float]) -> int:
    """The number of a seed, or of the one with the highest return; NaN is the lowest.

    Args:
        where: Whose seeds they are, for the message.
        seed: A number, or ``best``.
        seeds: S.
        returns: Of the last evaluation, by seed.

    Raises:
        ValueError: If there is no such seed, or nothing was evaluated.
    """
    if seed != "best":
        return _number("seed", seed, seeds)
    if not returns:
        raise ValueError(
            f"{where} was not evaluated, so no seed is the best; give a number, 0 to {seeds - 1}."
        )
    return max(returns, key=lambda s: -np.inf if np.isnan(returns[s]) else returns[s])


def _learned_seeds(
    folder: RunFolder, point: int | str, checkpoint: str, given: dict[str, Any]
) -> tuple[Experiment, dict[int, TrainState], dict[int, float]]:
    """The experiment of a run or point; by seed learners ``[1, ...]`` and last returns.

    A point's seeds may be in several parts of the sweep, and not all of them trained yet.
    """
    config = folder.read_config()
    if "experiments" in config:
        number, parts = _parts_of_point(folder, config, point)
        experiment = Experiment.from_json(config["experiments"][number], **given)
    elif point != "best":
        raise ValueError(f"{folder.path} is no sweep, so it has no point {point!r}.")
    else:
        parts = [(folder, {seed: seed for seed in range(read_run(folder)["seeds"])})]
        experiment = Experiment.from_json(config, **given)
    learned: dict[int, TrainState] = {}
    returns: dict[int, float] = {}
    for part, rows in parts:
        _, state, host = load_learned(part, checkpoint, **given)
        learned |= {seed: take_seeds(state, [row]) for seed, row in rows.items()}
        if host["returns"]:
            returns |= {seed: host["returns"][-1][row] for seed, row in rows.items()}
    return experiment, learned, returns


def _parts_of_point(
    folder: RunFolder, config: dict[str, Any], point: int | str
) -> tuple[int, list[tuple[RunFolder, dict[int, int]]]]:
    """Number of a sweep's point; and the parts that have seeds of it, with their rows by seed."""
    result, seeds = load_sweep(folder.path), config["seeds"]
    if point == "best":
        ranked = result.ranked()
        if not ranked:
            raise ValueError(f"{folder.path}: nothing was evaluated, so no point is the best.")
        point = ranked[0]["point"]
    number, parts = _number("point", point, len(result.points)), []
    for part in sweep_parts(folder):
        there = part.read_config()
        first, last = there["rows"]
        rows = [row for row in range(first, last) if there["points"][row // seeds] == number]
        if rows and part.iterations():
            parts.append((part, {row % seeds: row - first for row in rows}))
    return number, parts


def _together(folder: RunFolder, learned: dict[int, TrainState], seeds: Sequence[int]) -> Any:
    """The learners of some seeds as one state ``[S, ...]``."""
    if missing := [seed for seed in seeds if seed not in learned]:
        raise FileNotFoundError(
            f"{folder.path}: the sweep was stopped before it came to seed {missing[0]} of this "
            "point; resume it."
        )

    def joined(*x: Any) -> Any:
        if is_clock(x[0]):
            return x[0]
        return jnp.concatenate(x) if is_key(x[0]) else np.concatenate(x)

    return jax.tree.map(joined, *[learned[seed] for seed in seeds], is_leaf=is_clock)


def _number(name: str, x: Any, count: int) -> int:
    if not isinstance(x, int | np.integer) or not 0 <= x < count:
        raise ValueError(f"load_policy: got {name}={x!r}, wanted 'best' or 0 to {count - 1}.")
    return int(x)


def load_learned(
    folder: RunFolder, which: str = "newest", **given: Any
) -> tuple[Experiment, TrainState, dict[str, Any]]:
    """A run's experiment, and learners, normalizers and host data of one of its checkpoints.

    Args:
        folder: A run's, or that of a part of a sweep.
        which: The ``newest`` checkpoint, or the ``best``.
        **given: Objects that the run was begun with.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If it is damaged, or of another run or version.
    """
    experiment = Experiment.from_json(folder.read_config(), **given)
    with contextlib.closing(Checkpoints(folder.path)) as checkpoints:
        iteration = checkpoints.find(which)
        if iteration is None:
            stopped = "the run was stopped before its first one; resume it"
            why = stopped if which == "newest" else "it was run without --keep-best"
            raise FileNotFoundError(f"{checkpoints.path} has no {which} checkpoint: {why}.")
        host = checkpoints.read_host(iteration)
        check_run(experiment.to_json(), host["run"], str(checkpoints.path))
        template = (learned_shapes(experiment, len(host["failed"])),)
        place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        places = jax.tree.map(lambda _: place, template)
        (state,), host = checkpoints.restore(iteration, template, places)
        return experiment, jax.device_get(state), host


def learned_shapes(experiment: Experiment, seeds: int) -> TrainState:
    """Shapes and dtypes ``[S, ...]`` of learners and normalizers; all else is None.

    Args:
        experiment: What is trained.
        seeds: S.
    """
    train = experiment.build()
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), seeds))
    return jax.jit(vectorize(lambda key: learned_part(train.init(key)))).eval_shape(keys)


def learned_part(state: TrainState) -> TrainState:
    """Learner and normalizer of a state: all that acting needs; the other fields are None.

    Args:
        state: Of one seed or many.
    """
    return TrainState(None, None, state.learner, None, state.normalizer, None)  # type: ignore
