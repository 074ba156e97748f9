"""usage: purerl COMMAND ...

  purerl train ALGORITHM ENV [options]   train many seeds at once, write a run folder
                                         (purerl train ALGORITHM ENV --help: all options)
  purerl train --resume RUN [--steps N]  go on with a run that was interrupted, or extend it
                                         (purerl train --resume RUN --help: what can be changed)
  purerl sweep ALGORITHM ENV --grid NAME=VALUE,VALUE ... [options]
                                         train every combination, rank them in a table
  purerl sweep --resume SWEEP            go on with a sweep that was interrupted
  purerl evaluate RUN [options]          play more episodes with a run's policies
  purerl plot RUN [RUN ...] [--out PNG]  learning curves of runs and sweeps in one picture
  purerl list                            algorithms and environments
  purerl --version

ALGORITHM and ENV are names that purerl list shows, or import paths package.module:object, which are
also looked for in the current directory.

On several hosts, start the same command on each, with --distributed (TPU pods, Slurm and Open MPI
tell JAX who takes part) or --distributed HOST:PORT,HOSTS,INDEX.
"""

import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Why a run ended early: in words, and as the status of the process.
WHY: dict[Any, str] = {"SIGINT": "interrupted; ", "SIGTERM": "terminated; ", "failure": "failed; "}
STATUS: dict[Any, int] = {"SIGINT": 130, "SIGTERM": 143, "failure": 1}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: As on the command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0; 1 if a run was stopped because a seed failed, all seeds failed, or something
        could not be written; 2 for bad input (one line; with PURERL_TRACEBACK=1 set, the whole
        traceback); 130 after Ctrl-C; 143 after SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        import purerl

        print(f"purerl {purerl.__version__}")
        return 0
    if os.getcwd() not in sys.path:  # for import paths
        sys.path.insert(0, os.getcwd())
    try:
        if name not in COMMANDS:
            from purerl.config import suggest

            raise ValueError(f"unknown command {name!r}. {suggest(name, COMMANDS)}")
        return COMMANDS[name](_distributed(rest))
    except (ValueError, TypeError, OverflowError, OSError) as error:
        if os.environ.get("PURERL_TRACEBACK"):
            raise
        print(f"purerl {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"purerl {name}: interrupted", file=sys.stderr)
        return 130


def _distributed(arguments: list[str]) -> list[str]:
    """Joins the other hosts, before anything computes; what is left of the arguments."""
    words = [i for i, word in enumerate(arguments) if word.partition("=")[0] == "--distributed"]
    if not words:
        return arguments
    import jax

    (i,) = words
    where = arguments[i].partition("=")[2]
    rest = arguments[:i] + arguments[i + 1 :]
    if not where and rest[i:] and not rest[i].startswith("-"):
        where = rest.pop(i)
    if not where:
        jax.distributed.initialize()
        return rest
    try:
        address, hosts, index = where.split(",")
        jax.distributed.initialize(address, int(hosts), int(index))
    except ValueError as error:
        raise ValueError(
            f"got --distributed {where}, wanted HOST:PORT,HOSTS,INDEX, such as 10.0.0.1:1234,2,0 "
            f"({error})."
        ) from None
    return rest


def _train(words: list[str]) -> int:
    from purerl.host.command_line import ResumeOptions, RunOptions, driven
    from purerl.host.runs import resume, run

    def summary(result: Any) -> str:
        return result.summary()

    begun = _options("train", words, RunOptions(), ResumeOptions)
    if begun is None:
        return 0
    experiment, chosen, out = begun
    if experiment is None:
        more = {} if chosen.steps is None else {"steps": chosen.steps}
        return _report("train", lambda: resume(out, **more, **driven(chosen)), out, summary)
    return _report("train", lambda: run(experiment, **_numbers(chosen, out)), out, summary)


def _sweep(words: list[str]) -> int:
    from purerl.host import command_line
    from purerl.host.sweep.parts import resume_sweep, sweep
    from purerl.host.sweep.points import samples

    def table(result: Any) -> str:
        seconds = " | ".join(f"{x:.1f} s {what}" for what, x in result.seconds.items())
        return f"{result.table(chosen.top)}\n{seconds}"

    resumes = command_line.ResumeSweepOptions
    begun = _options("sweep", words, command_line.SweepOptions(), resumes)
    if begun is None:
        return 0
    experiment, chosen, out = begun
    if experiment is None:
        driven = command_line.driven(chosen)
        return _report("sweep", lambda: resume_sweep(out, **driven), out, table)
    if bool(chosen.grid) == bool(chosen.sample):
        raise ValueError(
            "got --grid and --sample, or neither, wanted one of them: "
            "--grid learning_rate=1e-4,1e-3 clip=0.1,0.2."
        )
    values: Any = command_line.grid_values(chosen.grid)
    if chosen.sample:
        ranges = command_line.sample_ranges(chosen.sample)
        values = samples(chosen.samples, chosen.seed, **ranges)
    options = _numbers(chosen, out)
    return _report("sweep", lambda: sweep(experiment, values, **options), out, table)


def _options(command: str, words: list[str], begins: Any, resumes: Any) -> Any:
    """The experiment (None if a run goes on as it was begun), the other options, and the folder;
    None after a help.
    """
    from purerl.host import command_line
    from purerl.host.experiment import make_experiment
    from purerl.training.seeds import use_all_cores

    use_all_cores()  # before anything computes: making an environment does
    names, options = command_line.positional(words)
    wants_help = bool({"-h", "--help"} & set(options))
    folder = command_line.resumed(options)
    if not names and folder is not None:
        default = command_line.begun_with(folder, resumes)
        read = ["--help"] if wants_help else options  # also where the folder is missing
        (chosen,) = command_line.parse(f"purerl {command}", read, default)
        return None, chosen, chosen.resume
    if len(names) != 2:
        if wants_help:
            print(__doc__, end="")
            return None
        raise ValueError(
            f"got {' '.join(names) or 'no names'} before the options, wanted an algorithm and an "
            f"environment: purerl {command} ppo_clip CartPole-v1 --seeds 4 (purerl list shows "
            "both)."
        )
    made = make_experiment(*names, **command_line.brought(options))
    program = f"purerl {command} {' '.join(names)}"
    loop, config, chosen = command_line.parse(program, options, made.loop, made.config, begins)
    if chosen.resume is not None and chosen.out is not None:
        raise ValueError("got --resume and --out, wanted one of them: both name the folder.")
    out = chosen.resume or chosen.out or _new_folder(command, *names)
    return made.replace(**vars(loop), **vars(config)), chosen, out


def _numbers(chosen: Any, out: pathlib.Path) -> dict[str, Any]:
    """Arguments that ``run`` and ``sweep`` share."""
    from purerl.host.command_line import driven

    return {
        "out": out,
        "resume": chosen.resume is not None,
        **{name: getattr(chosen, name) for name in ("seeds", "seed", "overwrite")},
        **driven(chosen),
    }


def _report(
    command: str, train: Callable[[], Any], out: pathlib.Path, shown: Callable[[Any], str]
) -> int:
    """Prints what comes of a run or sweep; its exit status."""
    import jax

    from purerl.host.options import Terminated

    try:
        with warnings.catch_warnings():  # it is printed below the result
            warnings.filterwarnings("ignore", "not everything could be written", RuntimeWarning)
            result = train()
    except Terminated as end:
        if end.result is None:  # nothing was begun yet
            raise
        result = end.result
    if jax.process_index() == 0:
        print(shown(result))
        print(f"{WHY.get(result.stopped, '')}written to {out}")
        if result.trouble:
            print(f"not everything could be written: {result.trouble}; mend that, then resume it")
        if result.stopped == "failure":
            print(
                f"go on with the other seeds: purerl {command} --resume {out} --on-failure "
                "continue; or begin another one with other numbers"
            )
        elif result.stopped:
            print(f"go on with: purerl {command} --resume {out}")
    return STATUS.get(result.stopped, 1 if result.trouble or result.failed.all() else 0)


def _evaluate(
    run: pathlib.Path,
    *,
    episodes: int = 128,
    point: str = "best",
    seed: int = 0,
    greedy: bool = True,
) -> int:
    """Plays more episodes with the policies of a run, or of a point of a sweep.

    Args:
        run: Folder of the run or sweep.
        episodes: Episodes of each seed.
        point: Of a sweep: number of the point in its table, or best.
        seed: Random seed of the episodes.
        greedy: Act by the policy's most probable action instead of samples.
    """
    from purerl.host.report.aggregate import iqm, iqm_interval
    from purerl.host.store.policy import evaluate_run

    which: Any = int(point) if point.isdigit() else point
    evaluation = evaluate_run(run, point=which, episodes=episodes, seed=seed, greedy=greedy)
    returns = evaluation.mean_return
    for number, (value, length) in enumerate(zip(returns, evaluation.mean_length, strict=True)):
        print(f"seed {number}: return {value:.2f}, length {length:.1f}")
    low, high = iqm_interval(returns)
    print(
        f"return {iqm(returns):.2f} (IQM of {len(returns)} seeds, {episodes} episodes each, "
        f"95 % interval {low:.2f} to {high:.2f})"
    )
    return 0


def _plot(
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
    from purerl.host.report.plotting import plot_curves, save_plot

    if not runs:
        raise ValueError("got no names, wanted run folders: purerl plot RUN [RUN ...].")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; choose another --out, or give --overwrite.")
    found = [_curves(path, top) for path in runs]
    envs = sorted({env for env, _ in found})
    curves: dict[str, Any] = {}
    for path, (env, of_folder) in zip(runs, found, strict=True):
        for label, curve in of_folder.items():
            label = label if len(envs) == 1 else f"{label} {env}"
            curves[label if label not in curves else f"{label} [{path}]"] = curve
    save_plot(plot_curves(curves, ", ".join(envs)), out)
    print(f"written to {out}")
    return 0


def _curves(path: pathlib.Path, top: int) -> tuple[str, dict[str, Any]]:
    """The environment and the curves, by label, of a run or sweep."""
    from purerl.host.brought import short_name
    from purerl.host.store.folder import RunFolder, read_run
    from purerl.host.sweep.result import load_sweep

    config = RunFolder(path).read_config()
    if "experiments" not in config:
        label = short_name(read_run(RunFolder(path))["algorithm"])
        return short_name(config["env"]), {label: RunFolder(path).read_curve()}
    if not (curves := load_sweep(path).curves(top)):
        raise ValueError(f"{path}: nothing was evaluated yet, so there is no curve.")
    return short_name(config["experiments"][0]["env"]), curves


def _list(words: list[str]) -> int:
    from purerl.algorithms import ALGORITHMS
    from purerl.envs.make import list_envs

    if words:
        raise ValueError(f"got {' '.join(words)}, wanted nothing after 'list'.")
    print("algorithms:", *ALGORITHMS, sep="\n  ")
    print("environments:", *list_envs(), sep="\n  ")
    return 0


def _function(function: Callable[..., int]) -> Callable[[list[str]], int]:
    """A command whose options are the arguments of a function."""

    def command(words: list[str]) -> int:
        import tyro

        program = f"purerl {function.__name__[1:]}"
        positional = (tyro.conf.PositionalRequiredArgs,)
        return tyro.cli(function, prog=program, args=words, config=positional)

    return command


def _new_folder(command: str, *names: str) -> pathlib.Path:
    """A name below ``runs/`` that does not exist yet."""
    import jax

    if jax.process_count() > 1:
        raise ValueError("several hosts need one folder that all of them see: give --out FOLDER.")
    kind = [] if command == "train" else [command]
    words = [name.rpartition(":")[2] for name in names]
    base = "-".join([*kind, *words, time.strftime("%Y%m%d-%H%M%S")])
    folders = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(path for name in folders if not (path := pathlib.Path("runs") / name).exists())


COMMANDS = {
    "train": _train,
    "sweep": _sweep,
    "evaluate": _function(_evaluate),
    "plot": _function(_plot),
    "list": _list,
}
