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
  purerl compare RUN RUN [RUN ...]       algorithms beside one another: a table, and pictures of it
  purerl play RUN [--out GIF]            a film of a run's policy in its environment
  purerl list                            algorithms and environments
  purerl --version

ALGORITHM and ENV are names that purerl list shows, or import paths package.module:object, which are
also looked for in the current directory.

On several hosts, start the same command on each, with --distributed (TPU pods, Slurm and Open MPI
tell JAX who takes part) or --distributed HOST:PORT,HOSTS,INDEX.
"""

import argparse
import os
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: As on the command line; ``sys.argv[1:]`` by default.

    Returns:
        Exit status: 0; 1 if a run was stopped because a seed failed, all seeds failed, or something
        could not be written; 2 for bad input, or an error in the user's own code (one line; with
        PURERL_TRACEBACK=1 set, the whole traceback); 130 after Ctrl-C; 143 after SIGTERM.
    """
    name, *words = list(sys.argv[1:] if arguments is None else arguments) or [""]
    last = words[0] if name in ("train", "sweep") and words else name
    if last in ("", "-h", "--help"):
        print(__doc__, end="")
        return 0 if name else 2
    if name == "--version":
        import purerl

        print(f"purerl {purerl.__version__}")
        return 0
    if os.getcwd() not in sys.path:  # for import paths
        sys.path.insert(0, os.getcwd())
    try:
        words = _distributed(words)
        from purerl.config import check_choice
        from purerl.host.commands import COMMANDS

        check_choice("unknown command", name, COMMANDS)
        return COMMANDS[name](words)
    except KeyboardInterrupt:
        print(f"purerl {name}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        place = _place(error)
        if os.environ.get("PURERL_TRACEBACK") or not (place or _is_told(error)):
            raise
        kind = "" if _is_told(error) else f"{type(error).__name__}: "
        print(f"purerl {name}: {kind}{' '.join(str(error).split())}{place}", file=sys.stderr)
        return 2


def _is_told(error: Exception) -> bool:
    """Whether it is of the kinds that say what was wrong with the input."""
    from purerl.host.players.player import PlayedError

    return isinstance(error, ValueError | TypeError | OverflowError | OSError | PlayedError)


def _place(error: BaseException | None) -> str:
    """The line of the user's own code that led to an error, or to its cause, if one did."""
    import pathlib
    import sysconfig
    import traceback

    paths = sysconfig.get_paths()
    libraries = [pathlib.Path(paths[kind]) for kind in ("stdlib", "purelib", "platlib")]
    others = [pathlib.Path(__file__).parent, *libraries]
    places: list[tuple[str | None, int | None]] = []  # the innermost last
    while error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places += [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError):
            places.append((error.filename, error.lineno))
        error = error.__cause__
    for name, line in reversed(places):
        path = pathlib.Path(name or "")
        if path.is_file() and not any(path.is_relative_to(other) for other in others):
            return f" ({path}, line {line}; PURERL_TRACEBACK=1 shows the way to it)"
    return ""


def _distributed(words: list[str]) -> list[str]:
    """Joins the other hosts, before anything computes; what is left of the words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--distributed", nargs="?", const="")
    found, rest = parser.parse_known_args(words)
    if found.distributed is None:
        return words
    import jax

    if not found.distributed:
        jax.distributed.initialize()
        return rest
    try:
        address, hosts, index = found.distributed.split(",")
        jax.distributed.initialize(address, int(hosts), int(index))
    except ValueError as error:
        raise ValueError(
            f"got --distributed {found.distributed}, wanted HOST:PORT,HOSTS,INDEX, such as "
            f"10.0.0.1:1234,2,0 ({error})."
        ) from None
    return rest
