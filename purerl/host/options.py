"""How a run is driven, and what can end it early."""

import dataclasses
import enum
import signal
from typing import Any, Literal, Self

from purerl.config import Config, Spec, choice, count, number, suggest, switch
from purerl.host.devices import Shard
from purerl.host.report.writers import Writer, make_writers

Stopped = Literal["SIGINT", "SIGTERM", "failure", "hook"]
OnFailure = Literal["continue", "stop"]


class Stop(enum.Enum):
    """What an ``on_row`` function returns to end a run: ``purerl.STOP``."""

    STOP = "stop"


STOP = Stop.STOP


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with status 143; ``result`` is what was done until then."""

    def __init__(self, result: Any = None):
        super().__init__(128 + signal.SIGTERM)
        self.result = result


def _check_writers(where: str, name: str, value: Any) -> tuple[str | Writer, ...]:
    if isinstance(value, str):
        raise ValueError(f"{where}: {name}={value!r}, wanted several: {name}=({value!r},).")
    make_writers(tuple(value))
    return tuple(value)


_WRITERS = Spec(
    "Where rows go: csv, jsonl, tensorboard, wandb, or writers of your own.",
    "a tuple of names and purerl.Writer",
    _check_writers,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """How a run is driven; none of it changes a number of the run."""

    progress: bool = switch(True, "Show a progress bar.")
    chunk_seconds: float = number(
        2.0,
        "(0, 3600]",
        "Wall time of a chunk, about: between two looks at the progress; Ctrl-C waits for two.",
        swept=False,
    )
    checkpoint_seconds: float = number(
        300.0,
        "[0, inf)",
        "Wall time between two checkpoints; there is always one at the end.",
        swept=False,
    )
    keep: int = count(2, "The newest checkpoints that are kept.")
    keep_best: bool = switch(
        False, "Also keep the checkpoint of the evaluation with the highest IQM."
    )
    writers: tuple[str | Writer, ...] = dataclasses.field(
        default=("csv",), metadata={"spec": _WRITERS}
    )
    on_failure: OnFailure = choice(
        "continue",
        OnFailure,
        "When a seed becomes non-finite: go on with the others, or stop the run.",
    )
    shard: Shard = choice(
        "seeds", Shard, "Spread whole seeds over the devices, or the environments of each seed."
    )
    inexact: bool = switch(
        False, "Resume although versions or devices differ; equal to rounding only."
    )

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; writers that are no names are left out."""
        names = [writer for writer in self.writers if isinstance(writer, str)]
        return {**vars(self), "writers": names}

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Options out of a function's keyword arguments.

        Args:
            options: By name.

        Raises:
            TypeError: If a name is unknown.
            ValueError: If a value is out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                raise TypeError(f"run has no option {name!r}. {suggest(name, names)}")
        # Out of JSON it is a list.
        return cls(**options | {k: tuple(options[k]) for k in ("writers",) if k in options})
