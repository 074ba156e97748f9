"""How much of the machine others used meanwhile: a busy neighbour makes any benchmark worthless."""

import os
import resource
import time
from pathlib import Path

STAT = Path("/proc/stat")


class Watch:
    """Counts from its making the processor time that was not our children's.

    Example:
        >>> watch = Watch()
        >>> others = watch.others()  # None where the system does not tell
        >>> others is None or others > -0.5
        True
    """

    def __init__(self):
        self._start = _now()

    def others(self) -> float | None:
        """Cores kept busy by others, on average since this watch was made (finished children)."""
        now = _now()
        if self._start is None or now is None:
            return None
        busy, ours, clock = (after - before for before, after in zip(self._start, now, strict=True))
        return (busy - ours) / clock if clock else 0.0


def _now() -> tuple[float, float, float] | None:
    """Processor seconds of everyone, of this process and its children, and the time."""
    if not STAT.is_file():
        return None
    user, nice, system, _idle, _wait, *rest = map(int, STAT.read_text().split("\n")[0].split()[1:9])
    busy = (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return busy, sum(u.ru_utime + u.ru_stime for u in usages), time.monotonic()
