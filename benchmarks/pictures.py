"""The pictures of the command line in README.md, from commands that really run.

python benchmarks/pictures.py            # a minute; writes results/progress.svg and sweep.svg
"""

import dataclasses
import fcntl
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

import tyro
from record import result_files
from rich.console import Console
from rich.text import Text

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH = 118
TRAIN = "purerl train ppo_clip CartPole-v1 --seeds 16 --steps 300000 --out runs/long"
RESUME = "purerl train --resume runs/long"
SWEEP = (
    "purerl sweep ppo_clip CartPole-v1 --steps 50000 --seeds 4 "
    "--grid learning_rate=1e-4,3e-4,1e-3,1e-1 clip=0.1,0.2 --out runs/sweep"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the pictures."""

    output: Path = RESULTS
    """Folder they go to."""
    force: bool = False
    """Whether to overwrite them."""


def typed(command: str, folder: Path, interrupt_at: float | None = None) -> list[str]:
    """What a terminal shows of a command, line by line; Ctrl-C after a part of the progress."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, WIDTH, 0, 0))
    program = "import sys; from purerl.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *shlex.split(command)[1:]],
        cwd=folder,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"COLUMNS": str(WIDTH), "TF_CPP_MIN_LOG_LEVEL": "3"},
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the terminal is closed
            break
        if not data:
            break
        shown += data
        percent = [int(x) for x in re.findall(rb"(\d+)%\|", shown)]
        if interrupt_at is not None and percent and percent[-1] >= interrupt_at:
            os.killpg(process.pid, signal.SIGINT)
            interrupt_at = None
        time.sleep(0.005)
    process.wait()
    text = shown.decode(errors="replace").replace("\r\n", "\n")
    lines = [line.split("\r")[-1].rstrip() for line in text.split("\n")]
    return [f"$ {command}", *(line for line in lines if line)]


def draw(lines: list[str], title: str, path: Path) -> None:
    """Lines of a terminal as SVG."""
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere)
        for line in lines:
            console.print(Text(line, style="bold" if line.startswith("$") else ""))
        path.write_text(console.export_svg(title=title))


def main(options: Options) -> None:
    """Runs, draws and writes."""
    (progress,) = result_files(options.output / "progress", (".svg",), options.force)
    (sweep,) = result_files(options.output / "sweep", (".svg",), options.force)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        lines = [*typed(TRAIN, runs, interrupt_at=40), "", *typed(RESUME, runs)]
        draw(lines, "interrupted, and resumed", progress)
        draw(typed(SWEEP, runs), "a sweep", sweep)


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
