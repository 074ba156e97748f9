"""How a run is driven, and what can end it early."""

import dataclasses
import signal
from typing import Any, Literal, Self

from purerl.config import check_choice, check_integer, check_range, suggest
from purerl.host.devices import Shard
from purerl.host.report.writers import Writer, make_writers

Stopped = Literal["SIGINT", "SIGTERM", "failure"]


class Terminated(SystemExit):
    """Ends the process after a SIGTERM, with status 143; ``result`` is what was done until then."""

    def __init__(self, result: Any = None):
        super().__init__(128 + signal.SIGTERM)
        self.result = result


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run is driven; none of it changes a number of the run."""

    progress: bool = True
    """Show a progress bar."""
    chunk_seconds: float = 2.0
    """Wall time of a chunk, about: between two looks at the progress; Ctrl-C waits for two."""
    checkpoint_seconds: float = 300.0
    """Wall time between two checkpoints; there is always one at the end."""
    keep: int = 2
    """The newest checkpoints that are kept."""
    keep_best: bool = False
    """Also keep the checkpoint of the evaluation with the highest IQM."""
    writers: tuple[str | Writer, ...] = ("csv",)
    """Where rows go: csv, jsonl, tensorboard, wandb, or writers of your own."""
    on_failure: Literal["continue", "stop"] = "continue"
    """When a seed becomes non-finite: go on with the others, or stop the run."""
    shard: Shard = "seeds"
    """Spread whole seeds over the devices, or the environments of each seed."""
    inexact: bool = False
    """Resume although versions or devices differ; the numbers are then equal to rounding only."""

    def __post_init__(self):
        check_range("run", "chunk_seconds", self.chunk_seconds, "(0, 3600]")
        check_range("run", "checkpoint_seconds", self.checkpoint_seconds, "[0, inf)")
        check_integer("run", "keep", self.keep, 1)
        check_choice("run", "on_failure", self.on_failure, ("continue", "stop"))
        check_choice("run", "shard", self.shard, ("seeds", "environments"))
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
        names = [field.name for field in dataclasses.fields(cls)]
        for name in options:
            if name not in names:
                raise TypeError(f"run has no option {name!r}. {suggest(name, names)}")
        chosen: dict[str, Any] = {**options}
        if "writers" in chosen:
            chosen["writers"] = tuple(chosen["writers"])
        return cls(**chosen)
