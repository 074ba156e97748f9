"""Schedules: numbers that follow the finished fraction of the run."""

from typing import Literal

import jax.numpy as jnp

from purerl.config import Number, Schedule

Shape = Literal["constant", "linear", "cosine"]


def scheduled(value: Schedule, shape: Shape, progress: Number) -> Number:
    r"""A number's value at a point of the run.

    .. math::
        \text{constant: } x, \qquad \text{linear: } x (1 - p), \qquad
        \text{cosine: } \tfrac12 x (1 + \cos \pi p)

    Args:
        value: :math:`x` at the run's beginning, which a sweep may vary; or a function of progress,
            such as ``optax.linear_schedule(1e-3, 1e-4, 1)``, and then the shape says nothing.
        shape: How it falls to zero at the run's end, or does not.
        progress: p, the finished fraction of the run, in [0, 1].

    Example:
        >>> scheduled(0.5, "linear", 0.25), float(scheduled(0.5, "cosine", 0.5).round(3))
        (0.375, 0.25)
    """
    if callable(value):
        return value(progress)
    if shape == "linear":
        return value * (1.0 - progress)
    if shape == "cosine":
        return value * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return value
