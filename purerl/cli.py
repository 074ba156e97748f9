"""The command line: ``purerl train | sweep | evaluate | plot | list``.

The options of ``train`` are the fields of the loop's and of the algorithm's configuration, with
this environment's defaults; there is no second list of them.
"""

import os
import pathlib
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from purerl.host import options as run_options
from purerl.host.command_line import (
    EvaluateOptions,
    PlotOptions,
    RunOptions,
    SweepOptions,
    TableOptions,
    begun_with,
    driven,
    grid_values,
    numbered,
    parse,
    positional,
    sample_ranges,
)

USAGE = """\
usage: purerl COMMAND ...

  purerl train ALGORITHM ENV [options]   train many seeds at once, write a run folder
                                         (purerl train ALGORITHM ENV --help: all options)
  purerl train --resume RUN              go on with a run that was interrupted
  purerl sweep ALGORITHM ENV --grid NAME=VALUE,VALUE ... [options]
                                         train every combination, rank them in a table
  purerl sweep --resume SWEEP            go on with a sweep that was interrupted
  purerl evaluate RUN [options]          play more episodes with a run's policies
  purerl plot RUN [RUN ...] [--out PNG]  learning curves of several runs in one picture
  purerl list                            algorithms and environments

On several hosts, start the same command on each, with --distributed (TPU pods, Slurm and Open MPI
tell JAX who takes part) or --distributed HOST:PORT,HOSTS,INDEX.
"""


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
    commands = {
        "train": _train,
        "sweep": _sweep,
        "evaluate": _evaluate,
        "plot": _plot,
        "list": _list,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in commands:
            from purerl.config import suggest

            raise ValueError(f"unknown command {name!r}. {suggest(name, commands)}")
        return commands[name](_distributed(rest))
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


def _train(arguments: list[str]) -> int:
    from purerl.host.runs import resume, run
    from purerl.training.seeds import use_all_cores

    use_all_cores()  # before anything computes: making an environment does
    names, options = positional(arguments)
    if not names and _resumes(options):
        (drive,) = parse("purerl train", options, begun_with(options))
        return _report(lambda: resume(drive.resume, **driven(drive)), drive.resume)
    parsed = _experiment("train", names, options, RunOptions())
    if parsed is None:
        return 0
    experiment, chosen = parsed
    out = chosen.resume or chosen.out or _new_folder(*names)
    return _report(lambda: run(experiment, out=out, **numbered(chosen)), out)


def _sweep(arguments: list[str]) -> int:
    from purerl.host.sweep.parts import resume_sweep, sweep
    from purerl.host.sweep.points import samples
    from purerl.training.seeds import use_all_cores

    use_all_cores()
    names, options = positional(arguments)
    if not names and _resumes(options):
        drive, show = parse("purerl sweep", options, begun_with(options), TableOptions())
        ranked = _result(lambda: resume_sweep(drive.resume, **driven(drive)))
        return _report_sweep(ranked, drive.resume, show.top)
    parsed = _experiment("sweep", names, options, SweepOptions())
    if parsed is None:
        return 0
    experiment, chosen = parsed
    if bool(chosen.grid) == bool(chosen.sample):
        raise ValueError(
            "got --grid and --sample, or neither, wanted one of them: "
            "--grid learning_rate=1e-4,1e-3 clip=0.1,0.2."
        )
    values: Any = grid_values(chosen.grid)
    if chosen.sample:
        values = samples(chosen.samples, chosen.seed, **sample_ranges(chosen.sample))
    out = chosen.resume or chosen.out or _new_folder("sweep", *names)
    ranked = _result(lambda: sweep(experiment.replace, values, out=out, **numbered(chosen)))
    return _report_sweep(ranked, out, chosen.top)


def _resumes(options: list[str]) -> bool:
    return any(option.partition("=")[0] == "--resume" for option in options)


def _experiment(command: str, names: list[str], options: list[str], default: Any) -> Any:
    """The experiment that names and options give, and the other options; None after a help."""
    from purerl.algorithms import ALGORITHMS
    from purerl.config import check_choice
    from purerl.host.experiment import Experiment, make_experiment

    if len(names) != 2:
        if {"-h", "--help"} & set(options):
            print(USAGE, end="")
            return None
        raise ValueError(
            f"got {' '.join(names) or 'no names'} before the options, wanted an algorithm and an "
            f"environment: purerl {command} ppo_clip CartPole-v1 --seeds 4 (purerl list shows "
            "both)."
        )
    check_choice(command, "algorithm", names[0], ALGORITHMS)
    _check_env(names[1])
    made = make_experiment(*names)
    loop, config, chosen = parse(
        f"purerl {command} {' '.join(names)}", options, made.loop, made.config, default
    )
    if chosen.resume is not None and chosen.out is not None:
        raise ValueError("got --resume and --out, wanted one of them: both name the folder.")
    return Experiment(algorithm=names[0], env=names[1], config=config, loop=loop), chosen


def _report(train: Callable[[], Any], out: pathlib.Path) -> int:
    """Prints what comes of a run; its exit status."""
    import jax

    result = _result(train)
    if jax.process_index() == 0:
        print(result.summary())
        print(f"{WHY.get(result.stopped, '')}written to {out}")
        if result.trouble:
            print(f"not everything could be written: {result.trouble}; mend that, then resume it")
        if result.stopped == "failure":
            print(
                f"go on with the other seeds: purerl train --resume {out} --on-failure continue; "
                "or begin another run with other numbers"
            )
        elif result.stopped:
            print(f"go on with: purerl train --resume {out}")
    return STATUS.get(result.stopped, 1 if result.trouble or result.failed.all() else 0)


def _report_sweep(result: Any, out: pathlib.Path, top: int | None) -> int:
    """Prints what comes of a sweep; its exit status."""
    import jax

    if jax.process_index() == 0:
        print(result.table(top))
        print(" | ".join(f"{x:.1f} s {what}" for what, x in result.seconds.items()))
        print(f"{WHY.get(result.stopped, '')}written to {out}")
        if result.trouble:
            print(f"not everything could be written: {result.trouble}; mend that, then resume it")
        if result.stopped:
            print(f"go on with: purerl sweep --resume {out}")
    return STATUS.get(result.stopped, 1 if result.trouble else 0)


def _result(train: Callable[[], Any]) -> Any:
    """What a run or sweep came to, if it was terminated until then."""
    try:
        with warnings.catch_warnings():  # it is printed below the result
            warnings.filterwarnings("ignore", "not everything could be written", RuntimeWarning)
            return train()
    except run_options.Terminated as end:
        if end.result is None:  # nothing was begun yet
            raise
        return end.result


def _evaluate(arguments: list[str]) -> int:
    from purerl.host.report.aggregate import iqm, iqm_interval
    from purerl.host.store.policy import evaluate_run

    names, options = positional(arguments)
    if len(names) != 1 and not {"-h", "--help"} & set(options):
        raise ValueError(f"got {len(names)} names, wanted one run folder: purerl evaluate RUN.")
    (chosen,) = parse("purerl evaluate RUN", options, EvaluateOptions())
    evaluation = evaluate_run(
        names[0], episodes=chosen.episodes, seed=chosen.seed, greedy=chosen.greedy
    )
    returns = evaluation.mean_return
    for seed, (value, length) in enumerate(zip(returns, evaluation.mean_length, strict=True)):
        print(f"seed {seed}: return {value:.2f}, length {length:.1f}")
    low, high = iqm_interval(returns)
    print(
        f"return {iqm(returns):.2f} (IQM of {len(returns)} seeds, {chosen.episodes} episodes each, "
        f"95 % interval {low:.2f} to {high:.2f})"
    )
    return 0


def _plot(arguments: list[str]) -> int:
    from purerl.host.report.plotting import plot_curves, save_plot
    from purerl.host.store.folder import RunFolder
    from purerl.host.store.policy import read_run

    names, options = positional(arguments)
    if not names and not {"-h", "--help"} & set(options):
        raise ValueError(
            "got no names before the options, wanted run folders: purerl plot RUN [RUN ...]."
        )
    (chosen,) = parse("purerl plot RUN [RUN ...]", options, PlotOptions())
    if chosen.out.exists() and not chosen.overwrite:
        raise FileExistsError(f"{chosen.out} exists; choose another --out, or give --overwrite.")
    folders = [RunFolder(name) for name in names]
    configs = [read_run(folder) for folder in folders]
    envs = {config["env"] for config in configs}
    curves = {}
    for folder, config in zip(folders, configs, strict=True):
        label = config["algorithm"] if len(envs) == 1 else f"{config['algorithm']} {config['env']}"
        label = label if label not in curves else f"{label} [{folder.path.name}]"
        curves[label] = folder.read_curve()
    save_plot(plot_curves(curves, ", ".join(sorted(envs))), chosen.out)
    print(f"written to {chosen.out}")
    return 0


def _list(arguments: list[str]) -> int:
    from purerl.algorithms import ALGORITHMS
    from purerl.envs.make import list_envs

    if arguments:
        raise ValueError(f"got {' '.join(arguments)}, wanted nothing after 'list'.")
    print("algorithms:", *ALGORITHMS, sep="\n  ")
    print("environments:", *list_envs(), sep="\n  ")
    return 0


def _check_env(name: str) -> None:
    from purerl.envs.make import make_env

    make_env(name)


def _new_folder(*names: str) -> pathlib.Path:
    """A name below ``runs/`` that does not exist yet."""
    import jax

    if jax.process_count() > 1:
        raise ValueError("several hosts need one folder that all of them see: give --out FOLDER.")
    base = "-".join([*names, time.strftime("%Y%m%d-%H%M%S")])
    folders = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(path for name in folders if not (path := pathlib.Path("runs") / name).exists())
