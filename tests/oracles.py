"""Slow and obvious NumPy versions of formulas, random data for them, and the independent libraries.

The sums are written out from their definitions, not as the recursions that purerl uses, and run in
float64. Functions have the names and arguments of those in ``purerl.returns``.
"""

import contextlib
import importlib
import warnings
from typing import NamedTuple

import jax
import numpy as np
import pytest


@contextlib.contextmanager
def lenient():
    """Our strictness is not for other people's code."""
    with warnings.catch_warnings(), jax.numpy_rank_promotion("allow"):
        warnings.simplefilter("ignore")
        yield


def optional(name):
    """An independent library, or a skip that says why."""
    with lenient():
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"the oracle {name} cannot be imported: {error}", allow_module_level=True)


class Transitions(NamedTuple):
    """Random data of a rollout."""

    reward: np.ndarray
    value: np.ndarray
    next_value: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray

    def cast(self, dtype):
        """The same with floats of another precision."""
        floats = [x.astype(dtype) for x in self[:3]]
        return Transitions(*floats, self.terminated, self.truncated)


def random_transitions(seed, shape, ends=0.15):
    """Normal rewards and values; each flag is set at random, both at once too."""
    rng = np.random.default_rng(seed)
    floats = [rng.normal(size=shape) for _ in range(3)]
    return Transitions(*floats, rng.random(shape) < ends, rng.random(shape) < ends)


def estimate(module, name, data, gamma=0.97, lam=0.9, n=4):
    """Calls one of the estimators, of purerl.returns or of this module, on the same data."""
    function = getattr(module, name)
    flags = (data.terminated, data.truncated)
    if name in ("return_to_go", "discounted_return"):
        return function(data.reward, *flags, gamma, data.next_value)
    if name == "n_step_return":
        return function(data.reward, data.next_value, *flags, gamma, n)
    if name == "lambda_return":
        return function(data.reward, data.next_value, *flags, gamma, lam)
    return function(data.reward, data.value, data.next_value, *flags, gamma, lam)


def _columns(function):
    """A function of [T] arrays, for [T, N] ones too."""

    def of_any(*args, **kwargs):
        if np.ndim(args[0]) == 1:
            return function(*args, **kwargs)
        columns = [
            function(*(a[:, i] if np.ndim(a) else a for a in args), **kwargs)
            for i in range(args[0].shape[1])
        ]
        return np.stack(columns, axis=1)

    return of_any


def _horizon(t, terminated, truncated):
    """Number of steps from t to the end of its episode or of the data."""
    for k in range(t, len(terminated)):
        if terminated[k] or truncated[k]:
            return k - t + 1
    return len(terminated) - t


def _n_step(t, n, reward, next_value, terminated, gamma):
    """n rewards from t on, and the bootstrap after them unless that step terminated."""
    total = sum(gamma**k * reward[t + k] for k in range(n))
    return total + (0.0 if terminated[t + n - 1] else gamma**n * next_value[t + n - 1])


@_columns
def n_step_return(reward, next_value, terminated, truncated, gamma, n):
    steps = [min(n, _horizon(t, terminated, truncated)) for t in range(len(reward))]
    return np.array(
        [_n_step(t, m, reward, next_value, terminated, gamma) for t, m in enumerate(steps)]
    )


@_columns
def return_to_go(reward, terminated, truncated, gamma, next_value):
    return n_step_return(reward, next_value, terminated, truncated, gamma, len(reward))


@_columns
def discounted_return(reward, terminated, truncated, gamma, next_value):
    to_go = return_to_go(reward, terminated, truncated, gamma, next_value)
    result, start = [], 0
    for t in range(len(reward)):
        result.append(to_go[start])
        if terminated[t] or truncated[t]:
            start = t + 1
    return np.array(result)


@_columns
def lambda_return(reward, next_value, terminated, truncated, gamma, lam):
    """The forward view: a weighted mean of all n-step returns."""
    result = []
    for t in range(len(reward)):
        last = _horizon(t, terminated, truncated)
        weights = [(1 - lam) * lam ** (n - 1) for n in range(1, last)] + [lam ** (last - 1)]
        returns = [_n_step(t, n, reward, next_value, terminated, gamma) for n in range(1, last + 1)]
        result.append(np.dot(weights, returns))
    return np.array(result)


@_columns
def td_error(reward, value, next_value, terminated, gamma):
    bootstrap = [0.0 if end else v for v, end in zip(next_value, terminated, strict=True)]
    return reward + gamma * np.array(bootstrap) - value


@_columns
def gae(reward, value, next_value, terminated, truncated, gamma, lam):
    """The sum of (gamma lambda)^l times TD errors, to the end of the episode."""
    delta = td_error(reward, value, next_value, terminated, gamma)
    return np.array(
        [
            sum(
                (gamma * lam) ** k * delta[t + k] for k in range(_horizon(t, terminated, truncated))
            )
            for t in range(len(reward))
        ]
    )


def chi_square_p(counts, expected=None):
    """p-value of observed counts against expected ones (uniform if None)."""
    from scipy import stats

    return stats.chisquare(np.ravel(counts), expected).pvalue
