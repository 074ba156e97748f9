"""States whose ``action_mask`` allows no action: nothing that a policy says of them has a meaning.

The gradients of what an update computes there are finite, so that no other guard would see it.
"""

from typing import Any

import jax
import jax.numpy as jnp

from purerl.pieces.gradient import keep_if_finite
from purerl.records import (
    ActionSpace,
    Info,
    OffPolicyBatch,
    PyTree,
    Rollout,
    action_mask,
    allows_choice,
)


def without_choice(data: Rollout | OffPolicyBatch, space: ActionSpace) -> jax.Array | None:
    """Where an action had to be chosen and none was allowed, bool; None without an action mask.

    Args:
        data: A rollout ``[T, N]``; or a batch ``[B]``, in which one has to be chosen in
            ``next_obs`` too, where its value counts.
        space: Of the actions.
    """
    mask = action_mask(data.obs)
    if mask is None:
        return None
    none = ~allows_choice(mask, space)
    if isinstance(data, OffPolicyBatch):
        after: Any = action_mask(data.next_obs)
        return (none | (~allows_choice(after, space) & (data.discount != 0))) & (data.weight > 0)
    return none if data.valid is None else none & data.valid


def refuse_without_choice(
    before: PyTree,
    learner: PyTree,
    info: Info,
    data: Rollout | OffPolicyBatch,
    space: ActionSpace,
) -> tuple[PyTree, Info]:
    """An update, refused where a state of its data allows no action.

    Args:
        before: The algorithm's state before it.
        learner: After it.
        info: Of it.
        data: That it learned from.
        space: Of the actions.

    Returns:
        ``(learner, info)``; with an action mask, info has ``no_legal_action``, the share of states.
    """
    none = without_choice(data, space)
    if none is None:
        return learner, info
    learner, kept = keep_if_finite(learner, before, also=~none.any())
    share = jnp.mean(none, dtype=jnp.result_type(float))
    return learner, info | {"finite": info["finite"] & kept, "no_legal_action": share}
