"""The options of the command line, and how they are read."""

import ast
import dataclasses
import itertools
import pathlib
from typing import Any, Literal

from purerl.config import Config, count, switch
from purerl.host import options as run_options


@dataclasses.dataclass(frozen=True, kw_only=True)
class DriveOptions(run_options.RunOptions):
    """How a run is driven; none of it changes a number of the run."""

    writers: tuple[Literal["csv", "jsonl", "tensorboard", "wandb"], ...] = dataclasses.field(
        default=("csv",), metadata=run_options.RunOptions.__dataclass_fields__["writers"].metadata
    )
    resume: pathlib.Path | None = None
    """Go on with the run in this folder; given names and options, they must be the run's, and one
    that is not there yet is begun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeOptions(DriveOptions):
    """What can be changed when a run is resumed; by default it is as it was begun."""

    steps: int | None = count(
        None,
        "Extend the run to so many environment steps of each seed; schedules follow the length.",
        optional=True,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BroughtOptions(Config):
    """What is brought to a run."""

    network: str | None = None
    """Import path package.module:function of a function of the action space that gives a network,
    instead of the default one."""
    env_params: tuple[str, ...] = ()
    """KEY=VALUE ..., parameters of the environment, or arguments of what makes it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(DriveOptions, BroughtOptions):
    """How many seeds, where to write, and how a run is driven."""

    seeds: int = count(16, "Seeds trained side by side.")
    seed: int = count(0, "The random number that all seeds are derived from.", least=0)
    out: pathlib.Path | None = None
    """Folder of the run; by default a new one below runs/."""
    overwrite: bool = switch(False, "Delete the run that is in --out.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableOptions(Config):
    """What is printed of a sweep."""

    top: int | None = count(None, "Rows of the table; all by default.", optional=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeSweepOptions(DriveOptions, TableOptions):
    """What can be changed when a sweep is resumed; by default it is as it was begun."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(RunOptions, TableOptions):
    """What is swept, how many seeds, where to write, and how it is driven."""

    seeds: int = count(4, "Seeds of each point.")
    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,... for fields of the options above; all combinations are trained."""
    sample: tuple[str, ...] = ()
    """NAME=LOW:HIGH or NAME=LOW:HIGH:log, instead of a grid."""
    samples: int = count(16, "Random points, with --sample.")


def positional(words: list[str]) -> tuple[list[str], list[str]]:
    """The names at the front, and the options after them.

    Args:
        words: What follows the command.
    """
    first = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return words[:first], words[first:]


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


def brought(options: list[str]) -> dict[str, Any]:
    """The network and the environment's parameters, which are needed before other options are read.

    Args:
        options: Words of the command line.
    """
    import tyro

    words = [word for word in options if word not in ("-h", "--help")]
    chosen, _ = tyro.cli(BroughtOptions, args=words, return_unknown_args=True)
    params = {name: _values(text) for name, text in map(_named, chosen.env_params)}
    values = {name: x[0] if len(x) == 1 else tuple(x) for name, x in params.items()}
    return {"network": chosen.network, "env_params": values}


def driven(chosen: run_options.RunOptions) -> dict[str, Any]:
    """The options that are ``run``'s own.

    Args:
        chosen: Options that were read.
    """
    return {f.name: getattr(chosen, f.name) for f in dataclasses.fields(run_options.RunOptions)}


def resumed(options: list[str]) -> str | None:
    """The folder after ``--resume``; empty if it is missing, None without the option.

    Args:
        options: Words of the command line.
    """
    for word, after in itertools.pairwise([*options, ""]):
        name, equals, value = word.partition("=")
        if name == "--resume":
            return value if equals else "" if after.startswith("-") else after
    return None


def begun_with(folder: str, kind: type[DriveOptions]) -> Any:
    """The options that the run in a folder was begun with, as defaults.

    Args:
        folder: The run's; empty: the general defaults.
        kind: What is read.
    """
    from purerl.host.store.folder import RunFolder

    return kind.of(RunFolder(folder).read_config().get("options", {}) if folder else {})


def grid_values(texts: tuple[str, ...]) -> dict[str, list[Any]]:
    """Values by name, from NAME=VALUE,VALUE.

    Python's literals, or words: 1e-3,1e-2 or True,False or (64,64),(128,128) or tanh,relu.

    Args:
        texts: One a name.
    """
    return {name: _values(text) for name, text in map(_named, texts)}


def sample_ranges(texts: tuple[str, ...]) -> dict[str, Any]:
    """Ranges by name, from NAME=LOW:HIGH or NAME=LOW:HIGH:log.

    Args:
        texts: One a name.
    """
    ranges = {}
    for name, text in map(_named, texts):
        try:
            low, high, *kind = text.split(":")
            ranges[name] = (float(low), float(high), *kind)
        except ValueError:
            wanted = f"{name}=LOW:HIGH or LOW:HIGH:log"
            raise ValueError(f"got {name}={text}, wanted {wanted}.") from None
    return ranges


def _values(text: str) -> list[Any]:
    try:
        return list(ast.literal_eval(f"[{text}]"))
    except (ValueError, SyntaxError):
        return [word.strip() for word in text.split(",")]


def _named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"got {text!r}, wanted NAME=VALUE,VALUE or NAME=LOW:HIGH.")
    return name.replace("-", "_"), value
