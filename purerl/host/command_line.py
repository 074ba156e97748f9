"""The options of the command line, and how they are read."""

import ast
import dataclasses
import pathlib
from typing import Any, Literal

from purerl.host import options as run_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveOptions(run_options.RunOptions):
    """How a run is driven; none of it changes a number of the run."""

    writers: tuple[Literal["csv", "jsonl", "tensorboard", "wandb"], ...] = ("csv",)
    """Where rows go."""
    resume: pathlib.Path | None = None
    """Go on with the run in this folder; given names and options, they must be the run's, and one
    that is not there yet is begun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(DriveOptions):
    """How many seeds, where to write, and how a run is driven."""

    seeds: int = 16
    """Seeds trained side by side."""
    seed: int = 0
    """The random number that all seeds are derived from."""
    out: pathlib.Path | None = None
    """Folder of the run; by default a new one below runs/."""
    overwrite: bool = False
    """Delete the run that is in --out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What is printed of a sweep."""

    top: int | None = None
    """Rows of the table that are printed; all by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions, TableOptions):
    """What is swept, how many seeds, where to write, and how it is driven."""

    seeds: int = 4
    """Seeds of each point."""
    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,... for fields of the options above; all combinations are trained."""
    sample: tuple[str, ...] = ()
    """NAME=LOW:HIGH or NAME=LOW:HIGH:log, instead of a grid."""
    samples: int = 16
    """Random points, with --sample."""


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


def positional(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The names at the front, and the options after them.

    Args:
        arguments: What follows the command.
    """
    first = next((i for i, a in enumerate(arguments) if a.startswith("-")), len(arguments))
    return arguments[:first], arguments[first:]


def parse(program: str, options: list[str], *defaults: Any) -> tuple[Any, ...]:
    """Fills in dataclasses from options that are named as their fields.

    Args:
        program: Shown in the help.
        options: Words of the command line.
        *defaults: An instance of each dataclass.
    """
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


def numbered(chosen: RunOptions) -> dict[str, Any]:
    """Arguments that ``run`` and ``sweep`` share, but for the folder.

    Args:
        chosen: Options that were read.
    """
    return {
        "seeds": chosen.seeds,
        "seed": chosen.seed,
        "overwrite": chosen.overwrite,
        "resume": chosen.resume is not None,
        **driven(chosen),
    }


def driven(chosen: run_options.RunOptions) -> dict[str, Any]:
    """The options that are ``run``'s own.

    Args:
        chosen: Options that were read.
    """
    return {f.name: getattr(chosen, f.name) for f in dataclasses.fields(run_options.RunOptions)}


def begun_with(options: list[str]) -> DriveOptions:
    """The options that the run after ``--resume`` was begun with, as defaults.

    Args:
        options: Words of the command line, ``--resume`` among them.
    """
    from purerl.host.store.folder import RunFolder

    word = next(i for i, x in enumerate(options) if x.partition("=")[0] == "--resume")
    path = options[word].partition("=")[2] or " ".join(options[word + 1 : word + 2])
    if path in ("", "-h", "--help"):
        return DriveOptions()
    return DriveOptions.of(RunFolder(path).read_config().get("options", {}))


def grid_values(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Values by name, from NAME=VALUE,VALUE.

    Python's literals, or words: 1e-3,1e-2 or True,False or (64,64),(128,128) or tanh,relu.

    Args:
        texts: One a name.
    """
    values: dict[str, list[Any]] = {}
    for name, text in map(_named, texts):
        try:
            values[name] = list(ast.literal_eval(f"[{text}]"))
        except (ValueError, SyntaxError):
            values[name] = [word.strip() for word in text.split(",")]
    return values


def sample_ranges(texts: tuple[str, ...]) -> dict[str, Any]:
    """Ranges by name, from NAME=LOW:HIGH or NAME=LOW:HIGH:log.

    Args:
        texts: One a name.
    """
    ranges = {}
    for name, text in map(_named, texts):
        low, *rest = text.split(":")
        try:
            ranges[name] = (float(low), float(rest[0]), *rest[1:])
        except (ValueError, IndexError):
            wanted = f"{name}=LOW:HIGH or LOW:HIGH:log"
            raise ValueError(f"got {name}={text}, wanted {wanted}.") from None
    return ranges


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"got {text!r}, wanted NAME=VALUE,VALUE or NAME=LOW:HIGH.")
    return name.replace("-", "_"), value
