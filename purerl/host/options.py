"""How a run is driven, and what can end it early."""

import dataclasses
import enum
import signal
from typing import Any, Literal, Self

from purerl.config import Config, field, suggest
from purerl.host.devices import Shard
from purerl.host.report.writers import Writer, make_writers

Stopped = Literal["SIGINT", "SIGTERM", "failure", "hook"]
OnFailure = Literal["continue", "stop"]


class Stop(enum.Enum):
    """What an ``on_row`` function returns to end a run: ``purerl.STOP``."""

    STOP = "stop"


STOP = Stop.STOP


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with status 143; ``result`` is what was done until then.

    Attributes:
        result: What :func:`purerl.run` or :func:`purerl.sweep` would have returned.
    """

    def __init__(self, result: Any = None):
        super().__init__(128 + signal.SIGTERM)
        self.result = result


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """How a run is driven; none of it changes a number of the run."""

    progress: bool = field(True, "Show a progress bar.")
    chunk_seconds: float = field(
        2.0, "Wall time of a chunk, about; Ctrl-C takes effect after one or two.", "(0, 3600]"
    )
    checkpoint_seconds: float = field(300.0, "Wall time between two checkpoints.", "[0, inf)")
    keep: int = field(2, "The newest checkpoints that are kept.")
    keep_best: bool = field(False, "Also keep that of the evaluation with the highest IQM.")
    writers: tuple[str | Writer, ...] = field(
        ("csv",), "Where rows go: csv, jsonl, tensorboard, wandb, or writers of your own."
    )
    on_failure: OnFailure = field("continue", "Go on without a non-finite seed, or stop the run.")
    shard: Shard = field("seeds", "What is spread over the devices; environments: of each seed.")
    env_seconds: float = field(
        60.0, "That a step of environments which the host plays may take.", "(0, inf]"
    )
    overlap: bool = field(
        False, "Off-policy, where the host plays: step while the device learns, an update behind."
    )
    cache: str = field(
        "", "Folder of compiled programs, or off; by default PURERL_CACHE, or the user's cache."
    )
    inexact: bool = field(False, "Resume although versions or devices differ; equal to rounding.")

    def check(self) -> None:
        """Raises ValueError if the name of a writer is unknown."""
        make_writers(self.writers)

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
        for name in options:
            if name not in cls.specs:
                raise TypeError(f"run has no option {name!r}. {suggest(name, cls.specs)}")
        return cls(**options)
