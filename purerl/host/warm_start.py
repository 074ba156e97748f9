"""Learners of another run that a run begins with."""

import pathlib
from typing import Any

import jax
import numpy as np

from purerl.checks import described
from purerl.host.devices import gathered
from purerl.host.experiment import PARTS, Experiment
from purerl.host.store.arrays import by_name, checksums
from purerl.host.store.folder import RunFolder, differences
from purerl.host.store.policy import learned_part, learned_shapes, load_learned
from purerl.training.seeds import take_seeds
from purerl.training.state import TrainState


def learned_of(
    start_from: Any,
    experiment: Experiment,
    seeds: int,
    folder: RunFolder | None,
    config: dict[str, Any] | None,
) -> tuple[TrainState | None, dict[str, Any] | None]:
    """Learners and normalizers of another run, one for each seed, and what is recorded of them.

    Args:
        start_from: The folder of a run, or its result; of as many seeds, or of one for all.
        experiment: What is to be trained; its learner must have the same structure.
        seeds: S.
        folder: Of the run that begins with them.
        config: What is in that folder, if the run is resumed; without a checkpoint it begins with
            the same again.

    Raises:
        ValueError: If the numbers of seeds or the structures do not fit.
        TypeError: If ``start_from`` is neither.
    """
    recorded = config["start_from"] if config else None
    if start_from is None and recorded and folder and not folder.iterations():
        start_from = recorded["path"]
        if start_from is None:
            raise ValueError(
                f"{folder.path} has no checkpoint yet and was begun with a result in memory; give "
                "it again (start_from=...)."
            )
    if start_from is None:
        return None, recorded
    path = None
    if isinstance(start_from, str | pathlib.Path):
        path = str(RunFolder(start_from).path.resolve())
        begun = RunFolder(start_from).read_config()
        # An object that no import path names is the one that is trained here, or does not fit.
        objects = [name for name in PARTS if isinstance(begun.get(name), dict)]
        given = {name: getattr(experiment, name) for name in objects}
        _, state, _ = load_learned(RunFolder(start_from), **given)
    elif isinstance(getattr(start_from, "state", None), TrainState):
        state = jax.device_get(gathered(learned_part(start_from.state)))
    else:
        raise TypeError(
            f"start_from is a {type(start_from).__name__}, wanted the folder of a run, or its "
            "RunResult."
        )
    found = max((len(x) for x in jax.tree.leaves(state) if x.ndim), default=seeds)
    if found not in (1, seeds):
        raise ValueError(
            f"start_from has {found} seeds, wanted {seeds}, or one for all; take some with "
            "purerl.take_seeds, or ask for as many."
        )
    if found != seeds:
        state = take_seeds(state, np.zeros(seeds, int))
    here, there = (described(by_name(x)) for x in (learned_shapes(experiment, seeds), state))
    if told := differences(there, here):
        raise ValueError(
            f"start_from has another learner: {told}; give the same algorithm, network, "
            "observations and normalize_obs."
        )
    return state, {"path": path, "checksums": checksums((state.learner, state.normalizer))}
