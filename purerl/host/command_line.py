"""The options of the command line, and how they are read."""

import argparse
import ast
import dataclasses
import pathlib
import typing
from typing import Any

import tyro

from purerl.config import Config, suggest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """What is brought to a run or sweep, how many seeds it has, and where it is written."""

    network: str | None = None
    """Import path package.module:function of a function of the action space that gives a network,
    instead of the default one."""
    env_params: tuple[str, ...] = ()
    """KEY=VALUE ..., parameters of the environment, or arguments of what makes it."""
    seeds: int = 16
    """Seeds trained side by side; of a sweep, for each point."""
    seed: int = 0
    """The random number that all seeds are derived from."""
    out: pathlib.Path | None = None
    """Folder of the run; by default a new one below runs/."""
    overwrite: bool = False
    """Delete the run that is in --out."""
    resume: pathlib.Path | None = None
    """Go on with the run in this folder, which must be this one; if there is none, begin it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """The points of a sweep."""

    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE,... for fields of the options above; all combinations are trained."""
    sample: tuple[str, ...] = ()
    """NAME=LOW:HIGH or NAME=LOW:HIGH:log, instead of a grid."""
    samples: int = 16
    """Random points, with --sample."""
    top: int | None = None
    """Rows of the table; all by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeRun:
    """What else can be changed when a run is resumed."""

    resume: pathlib.Path
    """Folder of the run."""
    steps: int | None = None
    """Extend the run to so many environment steps of each seed; schedules follow the length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumeSweep:
    """What else can be changed when a sweep is resumed."""

    resume: pathlib.Path
    """Folder of the sweep."""
    top: int | None = None
    """Rows of the table; all by default."""


def read_first(words: list[str]) -> argparse.Namespace:
    """What decides which other options there are.

    Args:
        words: Words of the command line, from the first option on.

    Returns:
        ``resume`` (None without that option, empty without a folder), ``network``, ``env_params``
        by name, and ``help``.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--resume", nargs="?", const="")
    parser.add_argument("--network", nargs="?")
    parser.add_argument("--env-params", "--env_params", nargs="*", default=[])
    parser.add_argument("--help", "-h", action="store_true")
    first, _ = parser.parse_known_args(words)
    params = values_by_name(first.env_params)
    first.env_params = {name: x[0] if len(x) == 1 else tuple(x) for name, x in params.items()}
    return first


def read(program: str, words: list[str], *defaults: Any) -> dict[str, Any]:
    """Values by name.

    Args:
        program: Shown in the help.
        words: Of the command line; options are named as the fields.
        *defaults: Configurations, and instances or classes of the dataclasses above.
    """
    options = _dataclass("Options", {type(x).__name__: _words_for(x) for x in defaults})
    _check_names(words, options)
    how = (tyro.conf.OmitArgPrefixes, tyro.conf.EnumChoicesFromValues)
    return _flat(tyro.cli(options, prog=program, description="", args=words, config=how))


def _check_names(words: list[str], options: Any) -> None:
    """Raises ValueError, with those that are close, for an option that there is not."""
    known = [*_names(options), "help", "tyro_print_completion", "tyro_write_completion"]
    for word in words:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word[:2] == "--" and name and name.removeprefix("no_") not in known:
            near = suggest(name, known, lambda x: f"--{x.replace('_', '-')}")
            raise ValueError(f"there is no option {word.partition('=')[0]}. {near}")


def _names(options: Any) -> list[str]:
    """Names of all fields, also of those within others."""
    names = []
    for one in dataclasses.fields(options):
        kind = getattr(one.type, "__origin__", one.type)  # without its annotations
        names += _names(kind) if dataclasses.is_dataclass(kind) else [one.name]
    return names


def _words_for(default: Any) -> tuple[Any, Any]:
    """A type whose fields can be written as words, and its default.

    The fields of a configuration are checked by the configuration alone, so a value out of range is
    one line of ours and not tyro's.
    """
    if isinstance(default, type):
        return default, dataclasses.MISSING
    if not isinstance(default, Config):
        return type(default), default
    fields = {}
    for name, spec in default.specs.items():
        kind, value = spec.kind, getattr(default, name)
        if isinstance(value, Config):
            kind, value = _words_for(value)
        kind = tuple[kind, ...] if spec.several else kind  # type: ignore[valid-type]
        kind = kind | None if spec.optional else kind
        fields[name] = typing.Annotated[kind, tyro.conf.arg(help=spec.text())], value
    made = _dataclass(type(default).__name__, fields)
    return made, made()


def _dataclass(name: str, fields: dict[str, tuple[Any, Any]]) -> Any:
    declared = [(field, kind, dataclasses.field(default=x)) for field, (kind, x) in fields.items()]
    return dataclasses.make_dataclass(name, declared, frozen=True, kw_only=True)


def _flat(chosen: Any) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, x in vars(chosen).items():
        values |= _flat(x) if dataclasses.is_dataclass(x) else {name: x}
    return values


def values_by_name(texts: list[str]) -> dict[str, list[Any]]:
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


def score_ranges(texts: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    """Ranges of returns by task, from TASK=LOW:HIGH.

    Args:
        texts: One a task.
    """
    ranges = {}
    for text in texts:
        task, _, ends = text.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            raise ValueError(f"got {text!r}, wanted TASK=LOW:HIGH, both numbers.") from None
        ranges[task] = low, high
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
