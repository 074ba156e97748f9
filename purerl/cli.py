"""The command line: ``purerl train | evaluate | plot | list``.

The options of ``train`` are the fields of the loop's and of the algorithm's configuration, with
this environment's defaults; there is no second list of them.
"""

import dataclasses
import os
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

USAGE = """\
usage: purerl COMMAND ...

  purerl train ALGORITHM ENV [options]   train many seeds at once, write a run folder
                                         (purerl train ALGORITHM ENV --help: all options)
  purerl evaluate RUN [options]          play more episodes with a run's policies
  purerl plot RUN [RUN ...] [--out PNG]  learning curves of several runs in one picture
  purerl list                            algorithms and environments
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How many seeds, and where to write."""

    seeds: int = 16
    """Seeds trained side by side."""
    seed: int = 0
    """The random number that all seeds are derived from."""
    out: pathlib.Path | None = None
    """Folder of the run; by default a new one below runs/."""
    overwrite: bool = False
    """Delete the run that is in --out."""
    progress: bool = True
    """Show a progress bar."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """How to evaluate."""

    episodes: int = 128
    """Episodes of each seed."""
    seed: int = 0
    """Random seed of the episodes."""
    greedy: bool = True
    """Act by the policy's most probable action instead of samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlotOptions:
    """Where to write."""

    out: pathlib.Path = pathlib.Path("learning_curves.png")
    """The picture."""
    overwrite: bool = False
    """Replace the picture if it exists."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: As on the command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0, 2 for bad input (one line; with PURERL_TRACEBACK=1 set, the whole
        traceback), 130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    commands = {"train": _train, "evaluate": _evaluate, "plot": _plot, "list": _list}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    name, *rest = arguments
    try:
        if name not in commands:
            from purerl.validation import suggest

            raise ValueError(f"unknown command {name!r}. {suggest(name, commands)}")
        return commands[name](rest)
    except (ValueError, TypeError, OverflowError, OSError) as error:
        if os.environ.get("PURERL_TRACEBACK"):
            raise
        print(f"purerl {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"purerl {name}: interrupted", file=sys.stderr)
        return 130


def _train(arguments: list[str]) -> int:
    from purerl.algorithms import ALGORITHMS
    from purerl.experiment import Experiment, make_experiment
    from purerl.run import run
    from purerl.train.vectorize import use_all_cores
    from purerl.validation import check_choice

    use_all_cores()  # before anything computes: making an environment does
    names, options = _positional(arguments)
    if len(names) != 2:
        if {"-h", "--help"} & set(options):
            print(USAGE, end="")
            return 0
        raise ValueError(
            f"got {' '.join(names) or 'no names'} before the options, wanted an algorithm and an "
            "environment: purerl train ppo_clip CartPole-v1 --seeds 4 (purerl list shows both)."
        )
    check_choice("train", "algorithm", names[0], ALGORITHMS)
    _check_env(names[1])
    default = make_experiment(*names)
    loop, config, chosen = _parse(
        f"purerl train {names[0]} {names[1]}", options, default.loop, default.config, RunOptions()
    )
    experiment = Experiment(algorithm=names[0], env=names[1], config=config, loop=loop)
    out = chosen.out or _new_folder(names[0], names[1])
    result = run(
        experiment,
        seeds=chosen.seeds,
        seed=chosen.seed,
        out=out,
        overwrite=chosen.overwrite,
        progress=chosen.progress,
    )
    print(result.summary())
    print(f"{'interrupted; ' if result.interrupted else ''}written to {out}")
    return 130 if result.interrupted else 0


def _evaluate(arguments: list[str]) -> int:
    from purerl.run import evaluate_run
    from purerl.statistics import iqm, iqm_interval

    names, options = _positional(arguments)
    if len(names) != 1 and not {"-h", "--help"} & set(options):
        raise ValueError(f"got {len(names)} names, wanted one run folder: purerl evaluate RUN.")
    (chosen,) = _parse("purerl evaluate RUN", options, EvaluateOptions())
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
    from purerl.logging import RunFolder
    from purerl.plotting import plot_curves, save_plot

    names, options = _positional(arguments)
    if not names and not {"-h", "--help"} & set(options):
        raise ValueError(
            "got no names before the options, wanted run folders: purerl plot RUN [RUN ...]."
        )
    (chosen,) = _parse("purerl plot RUN [RUN ...]", options, PlotOptions())
    if chosen.out.exists() and not chosen.overwrite:
        raise FileExistsError(f"{chosen.out} exists; choose another --out, or give --overwrite.")
    folders = [RunFolder(name) for name in names]
    configs = [folder.read_config() for folder in folders]
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
    from purerl.envs import list_envs

    if arguments:
        raise ValueError(f"got {' '.join(arguments)}, wanted nothing after 'list'.")
    print("algorithms:", *ALGORITHMS, sep="\n  ")
    print("environments:", *list_envs(), sep="\n  ")
    return 0


def _positional(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The names at the front, and the options after them."""
    first = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return arguments[:first], arguments[first:]


def _check_env(name: str) -> None:
    from purerl.envs import make_env

    make_env(name)


def _new_folder(algorithm: str, env: str) -> pathlib.Path:
    """A name below ``runs/`` that does not exist yet."""
    base = f"{algorithm}-{env}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [base, *(f"{base}-{i}" for i in range(2, 1000))]
    return next(path for name in names if not (path := pathlib.Path("runs") / name).exists())


def _parse(program: str, options: list[str], *defaults: Any) -> tuple[Any, ...]:
    """Fills in dataclasses from options that are named as their fields."""
    import jax
    import tyro

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def swept(info):
        """A field that a sweep may give a tracer is a number on the command line."""
        members = getattr(info.type, "__args__", ())
        if jax.Array not in members:
            return None
        optional = type(None) in members

        def read(words):
            return None if optional and words[0] == "None" else float(words[0])

        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar="FLOAT|None" if optional else "FLOAT",
            instance_from_str=read,
            is_instance=lambda x: isinstance(x, float | int) or (optional and x is None),
            str_from_instance=lambda x: [str(x)],
        )

    fields: list[Any] = [
        (type(default).__name__, type(default), dataclasses.field(default=default))
        for default in defaults
    ]
    chosen: Any = tyro.cli(
        dataclasses.make_dataclass("Options", fields, frozen=True),
        prog=program,
        description="",
        args=options,
        registry=registry,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    return tuple(getattr(chosen, type(default).__name__) for default in defaults)
