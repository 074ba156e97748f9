"""What the commands of ``purerl`` do; each returns the exit status of the process."""

import functools
import itertools
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import tyro

from purerl.algorithms import ALGORITHMS
from purerl.envs import families
from purerl.host import command_line, comparison, play as films, runs
from purerl.host.brought import short_name
from purerl.host.experiment import make_experiment
from purerl.host.options import RunOptions, Terminated
from purerl.host.report import aggregate, plotting
from purerl.host.store.folder import RunFolder, read_run
from purerl.host.store.policy import evaluate_run
from purerl.host.sweep import parts, points
from purerl.host.sweep.result import load_sweep
from purerl.training.seeds import use_all_cores

# Why a run ended early: in words, and as the status of the process.
ENDS: dict[Any, tuple[str, int]] = {
    "SIGINT": ("interrupted; ", 130),
    "SIGTERM": ("terminated; ", 143),
    "failure": ("failed; ", 1),
}


def train(words: list[str]) -> int:
    """``purerl train``.

    Args:
        words: What follows the command, as for the others.
    """
    start = [command_line.Start()]
    experiment, out, options = _options("train", words, start, command_line.ResumeRun)
    if experiment is None:
        job = functools.partial(runs.resume, out, **options)
    else:
        job = functools.partial(runs.run, experiment, out=out, **options)
    return _report("train", job, out, lambda result: result.summary())


def sweep(words: list[str]) -> int:
    """``purerl sweep``.

    Args:
        words: What follows the command.
    """
    start = [command_line.Start(seeds=4), command_line.Points()]
    experiment, out, options = _options("sweep", words, start, command_line.ResumeSweep)
    top = options.pop("top")
    if experiment is None:
        job = functools.partial(parts.resume_sweep, out, **options)
    else:
        grid, sample, count = (options.pop(name) for name in ("grid", "sample", "samples"))
        if bool(grid) == bool(sample):
            raise ValueError("wanted one of them: --grid clip=0.1,0.2 or --sample clip=0.1:0.3.")
        values: Any = command_line.values_by_name(grid)
        if sample:
            ranges = command_line.sample_ranges(sample)
            values = points.samples(count, options["seed"], **ranges)
        job = functools.partial(parts.sweep, experiment, values, out=out, **options)

    def table(result: Any) -> str:
        seconds = " | ".join(f"{x:.1f} s {what}" for what, x in result.seconds.items())
        return f"{result.table(top)}\n{seconds}"

    return _report("sweep", job, out, table)


def _options(command: str, words: list[str], begins: list[Any], resumes: type) -> Any:
    """The experiment (None if a run goes on as it was begun), its folder, and the other options."""
    use_all_cores()  # before anything computes: making an environment does
    names = [*itertools.takewhile(lambda word: not word.startswith("-"), words)]
    words = words[len(names) :]
    first = command_line.read_first(words)
    if not names and first.resume is not None:
        begun = RunFolder(first.resume).read_config().get("options", {}) if first.resume else {}
        words = ["--help"] if first.help else words  # also where the folder is missing
        options = command_line.read(f"purerl {command}", words, RunOptions.of(begun), resumes)
        return None, options.pop("resume"), options
    if len(names) != 2:
        raise ValueError(
            f"got {' '.join(names) or 'no names'} before the options, wanted an algorithm and an "
            f"environment: purerl {command} ppo_clip CartPole-v1 --seeds 4 (see purerl list)."
        )
    made = make_experiment(*names, network=first.network, env_params=first.env_params)
    program = " ".join(["purerl", command, *names])
    options = command_line.read(program, words, made.loop, made.config, RunOptions(), *begins)
    del options["network"], options["env_params"]  # the experiment has them
    numbers = {name: options.pop(name) for name in made.options() if name in options}
    resume, out = options["resume"], options.pop("out")
    if resume is not None and out is not None:
        raise ValueError("got --resume and --out, wanted one of them: both name the folder.")
    options["resume"] = resume is not None
    return made.replace(**numbers), resume or out or _new_folder(command, *names), options


def _new_folder(command: str, *names: str) -> pathlib.Path:
    """A name below ``runs/`` that does not exist yet."""
    if jax.process_count() > 1:
        raise ValueError("several hosts need one folder that all of them see: give --out FOLDER.")
    words = [] if command == "train" else [command]
    words += [short_name(name).replace(":", "-") for name in names] + [
        time.strftime("%Y%m%d-%H%M%S")
    ]
    base = pathlib.Path("runs") / "-".join(words)
    others = (base.with_name(f"{base.name}-{i}") for i in itertools.count(2))
    return next(path for path in itertools.chain([base], others) if not path.exists())


def _report(
    command: str, job: Callable[[], Any], out: pathlib.Path, shown: Callable[[Any], str]
) -> int:
    """Runs it and prints what comes of it; the exit status."""
    try:
        with warnings.catch_warnings():  # it is printed below the result
            warnings.filterwarnings("ignore", "not everything could be written", RuntimeWarning)
            result = job()
    except Terminated as end:
        if end.result is None:  # nothing was begun yet
            raise
        result = end.result
    nothing_left = result.trouble or result.failed.all()
    why, status = ENDS.get(result.stopped, ("", 1 if nothing_left else 0))
    if jax.process_index() == 0:
        print(f"{shown(result)}\n{why}written to {out}")
        if result.trouble:
            print(f"not everything could be written: {result.trouble}; mend that, then resume it")
        if result.stopped:
            others = " --on-failure continue" if result.stopped == "failure" else ""
            print(f"go on with: purerl {command} --resume {out}{others}")
    return status


def evaluate(
    run: pathlib.Path,
    *,
    episodes: int = 128,
    point: str = "best",
    seed: int = 0,
    greedy: bool = True,
    cache: str = "",
) -> int:
    """Plays more episodes with the policies of a run, or of a point of a sweep.

    Args:
        run: Folder of the run or sweep.
        episodes: Episodes of each seed.
        point: Of a sweep: number of the point in its table, or best.
        seed: Random seed of the episodes.
        greedy: Act by the policy's most probable action instead of samples.
        cache: Folder of compiled programs, or off; by default PURERL_CACHE, or the user's cache.
    """
    which: Any = int(point) if point.isdigit() else point
    asked: Any = {"episodes": episodes, "seed": seed, "greedy": greedy, "cache": cache}
    evaluation = evaluate_run(run, point=which, **asked)
    returns = evaluation.mean_return
    for number, (value, length) in enumerate(zip(returns, evaluation.mean_length, strict=True)):
        print(f"seed {number}: return {value:.2f}, length {length:.1f}")
    low, high = aggregate.iqm_interval(returns)
    print(
        f"return {aggregate.iqm(returns):.2f} (IQM of {len(returns)} seeds, {episodes} episodes "
        f"each, {aggregate.coverage(len(returns))} {low:.2f} to {high:.2f})"
    )
    return 0


def plot(
    runs: tuple[pathlib.Path, ...],
    *,
    out: pathlib.Path = pathlib.Path("learning_curves.png"),
    overwrite: bool = False,
    top: int = 8,
) -> int:
    """Draws the learning curves of runs, and of the best points of sweeps, into one picture.

    Args:
        runs: Folders of runs and sweeps.
        out: The picture.
        overwrite: Replace the picture if it exists.
        top: Of a sweep: how many points, the best first.
    """
    if not runs:
        raise ValueError("got no names, wanted run folders: purerl plot RUN [RUN ...].")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another --out, or give --overwrite.")
    found = [(path, *_curves(path, top)) for path in runs]
    envs = sorted({env for _, env, _ in found})
    curves: dict[str, Any] = {}
    for path, env, of_folder in found:
        for label, curve in of_folder.items():
            label = label if len(envs) == 1 else f"{label} {env}"
            curves[label if label not in curves else f"{label} [{path}]"] = curve
    plotting.save_plot(plotting.plot_curves(curves, ", ".join(envs)), out)
    print(f"written to {out}")
    return 0


def compare(
    sources: tuple[pathlib.Path, ...],
    *,
    out: pathlib.Path = pathlib.Path("comparison"),
    overwrite: bool = False,
    steps: int | None = None,
    last: int | None = None,
    ranges: tuple[str, ...] = (),
    top: int = 3,
) -> int:
    """Compares algorithms on the tasks that all of them have: a table, and pictures of it.

    Args:
        sources: Folders of runs and sweeps, and files of results of benchmarks/learning.py.
        out: Folder of the table and the pictures.
        overwrite: Replace them if the folder exists.
        steps: Compare after so many environment steps; by default each at its own end.
        last: How many of the last evaluations a seed's result is the mean of; by default what a
            file of results says, else 1.
        ranges: TASK=LOW:HIGH, the returns whose scores are 0 and 1; by default the lowest and the
            highest result of a seed.
        top: Of a sweep: how many points, the best first.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another --out, or give --overwrite.")
    given = command_line.score_ranges(ranges)
    found = comparison.compare(*sources, steps=steps, last=last, ranges=given, top=top)
    print(found.table())
    found.save(out)
    print(f"written to {out}")
    return 0


def play(
    run: pathlib.Path,
    *,
    out: pathlib.Path = pathlib.Path("play.gif"),
    seed: str = "best",
    episodes: int = 1,
    random_seed: int = 0,
    point: str = "best",
    checkpoint: str = "newest",
    greedy: bool = True,
    max_steps: int = 1000,
    overwrite: bool = False,
) -> int:
    """Writes a film of the policy of a run, or of a point of a sweep, in its environment.

    Args:
        run: Folder of the run or sweep.
        out: The film: .gif or .mp4; for Brax also .html.
        seed: Which of the run's seeds: a number, or best.
        episodes: How many, one after the other.
        random_seed: Random seed of the episodes.
        point: Of a sweep: number of the point in its table, or best.
        checkpoint: Which of the run's checkpoints: newest, or best.
        greedy: Act by the policy's most probable action instead of samples.
        max_steps: Steps after which an episode is left, if it has not ended.
        overwrite: Replace the film if it exists.
    """
    chosen: dict[str, Any] = {"seed": seed, "point": point}
    chosen = {name: int(x) if x.isdigit() else x for name, x in chosen.items()}
    returns = films.play(
        run,
        out,
        **chosen,
        episodes=episodes,
        random_seed=random_seed,
        checkpoint=checkpoint,
        greedy=greedy,
        max_steps=max_steps,
        overwrite=overwrite,
    )
    for number, value in enumerate(returns):
        print(f"episode {number}: return {value:.2f}")
    network = ", a page that loads scripts from the network when it is opened"
    print(f"written to {out}{network if out.suffix == '.html' else ''}")
    return 0


def _curves(path: pathlib.Path, top: int) -> tuple[str, dict[str, Any]]:
    """The environment and the curves, by label, of a run or sweep."""
    folder = RunFolder(path)
    config = folder.read_config()
    if "experiments" not in config:
        label = short_name(read_run(folder)["algorithm"])
        return short_name(config["env"]), {label: folder.read_curve()}
    if not (curves := load_sweep(path).curves(top)):
        raise ValueError(f"{path}: nothing was evaluated yet, so there is no curve.")
    names = dict.fromkeys(short_name(made["env"]) for made in config["experiments"])
    return ", ".join(names), curves


MANY = 100  # names of a family, which are then not all printed


def list_names(words: list[str]) -> int:
    """``purerl list``.

    Args:
        words: Perhaps the name of a family of environments, all of whose names are wanted.
    """
    if len(words) > 1:
        raise ValueError(f"got {' '.join(words)}, wanted nothing or one family after 'list'.")
    if words:
        print(*families.list_envs(words[0]), sep="\n")
        return 0
    print("algorithms:", *ALGORITHMS, sep="\n  ")
    print("environments:")
    for name, family in families.FAMILIES.items():
        if not families.is_installed(name):
            print(f"  not installed: {name} (pip install 'purerl[{family.extra}]')")
        elif len(names := families.list_envs(name)) > MANY:
            print(f"  {names[0]} and {len(names) - 1} others: purerl list {name}")
        else:
            print(*(f"  {one}" for one in names), sep="\n")
    return 0


def _by_arguments(function: Callable[..., int]) -> Callable[[list[str]], int]:
    """A command whose options are the arguments of a function."""

    def command(words: list[str]) -> int:
        positional = (tyro.conf.PositionalRequiredArgs,)
        return tyro.cli(function, prog=f"purerl {function.__name__}", args=words, config=positional)

    return command


COMMANDS = {
    "train": train,
    "sweep": sweep,
    "evaluate": _by_arguments(evaluate),
    "plot": _by_arguments(plot),
    "compare": _by_arguments(compare),
    "play": _by_arguments(play),
    "list": list_names,
}
