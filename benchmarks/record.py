"""What the benchmarks' result files have in common."""

import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from purerl.host.store.provenance import provenance

PRIVATE = ("cache", "output", "force")  # options that name a folder, or do not change the result


def result_files(output: Path, suffixes: Sequence[str], force: bool) -> list[Path]:
    """Result files beside one another, in a folder that exists.

    Ends the program, before anything is measured, if results would be lost.
    """
    files = [output.with_suffix(suffix) for suffix in suffixes]
    present = [file.name for file in files if file.exists()]
    if present and not force:
        raise SystemExit(f"{', '.join(present)} exist(s) already: give --force or another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    return files


def circumstances(benchmark: str, options: Any) -> dict[str, Any]:
    """Where, when and of what the measurements are taken; nothing that names a folder."""
    settings = dataclasses.asdict(options)
    return {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **provenance(),
        "options": {name: x for name, x in settings.items() if name not in PRIVATE},
    }
