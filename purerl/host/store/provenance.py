"""Where a number comes from: versions, commit, hardware."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import zlib
from typing import Any

import jax
import numpy as np

from purerl.host.compilation import about_cpu
from purerl.host.devices import Shard, from_hosts

PACKAGES = ("purerl", "jax", "jaxlib", "flax", "optax", "gymnax", "numpy", "scipy")
FLAGS = (  # of JAX
    "enable_x64",
    "default_matmul_precision",
    "default_prng_impl",
    "threefry_partitionable",
)
HERE = pathlib.Path(__file__)


def provenance() -> dict[str, Any]:
    """Versions, commit and hardware, as JSON-ready values."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "commit": commit(),
        "hardware": {
            "devices": [device.device_kind for device in jax.devices()],
            "platform": jax.default_backend(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
        },
    }


def circumstances(shard: Shard) -> dict[str, Any]:
    """What the last bits of a run depend on besides its configuration, as JSON-ready values.

    All hosts call it, and get the same.

    Args:
        shard: What is spread over the devices.
    """
    devices = jax.devices()
    kind = _cpu_model() if devices[0].platform == "cpu" else devices[0].device_kind
    told = from_hosts(np.frombuffer(kind.encode()[:64].ljust(64), np.uint8))
    kinds = sorted({bytes(row).decode(errors="replace").strip() for row in told})
    return {
        "versions": _versions(),
        "source": source(),
        **{name: getattr(jax.config, f"jax_{name}") for name in FLAGS},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "devices": f"{len(devices)} x {', '.join(kinds)}",
        "shard": shard,
    }


def source() -> str:
    """CRC-32 of purerl's own files: an edited checkout is another version."""
    folder, crc = HERE.parents[2], 0
    for path in sorted(folder.rglob("*.py")):
        crc = zlib.crc32(path.relative_to(folder).as_posix().encode() + path.read_bytes(), crc)
    return f"{crc:08x}"


def commit() -> str | None:
    """The commit purerl runs from, with "-dirty" after changes; None outside a git checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(HERE))  # not installed below another project's
        return git("describe", "--always", "--abbrev=40", "--dirty")
    except (OSError, subprocess.CalledProcessError):
        return None


def _versions() -> dict[str, str | None]:
    found = importlib.metadata.distributions  # purerl itself may be on the path only
    return {name: next((x.version for x in found(name=name)), None) for name in PACKAGES}


def _cpu_model() -> str:
    return about_cpu("model name") or platform.processor() or platform.machine()
