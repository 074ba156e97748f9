"""State and results of a run; what its loops ask of an algorithm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from purerl.checks import by_path, described
from purerl.config import Number
from purerl.pieces import normalize as moments, rollout as rollouts
from purerl.records import Clock, Info, PyTree, Rollout, num_rows
from purerl.training.evaluation import Evaluation
from purerl.training.sizes import LoopConfig


class Normalizer(NamedTuple):
    """Running moments of observations and rewards.

    Attributes:
        obs: Of observations, ``[*O]``, where an array of them is of numbers, not of bytes or of a
            mask; None where they are not normalized.
        reward: The scale of rewards; None where they are not normalized.
    """

    obs: PyTree
    reward: moments.RewardScaler | None

    def observe(self, obs: PyTree, sizes: LoopConfig) -> PyTree:
        """Observations as the learner sees them, clipped as the sizes say."""
        return obs if self.obs is None else moments.normalize_obs(obs, self.obs, sizes.clip_obs)

    def merge(self, obs: PyTree, valid: jax.Array | None = None) -> "Normalizer":
        """With the moments of further observations ``[..., *O]``, those that are ``valid``."""
        if self.obs is None:
            return self
        return self._replace(obs=moments.merge_obs_moments(self.obs, obs, valid))


class TrainState(NamedTuple):
    """State of a run; nothing in it depends on the run's length.

    Attributes:
        clock: Iterations finished; unbatched under :func:`purerl.vectorize`.
        key: The run's key ``[]``; iteration i uses ``fold_in(key, i)``.
        learner: The algorithm's state.
        actors: The environments, in the middle of their episodes ``[N, ...]``.
        normalizer: Running moments of observations and rewards.
        refused: Updates that were not finite and therefore not made, ``[]`` int32.
        replay: The replay memory of an off-policy run; None in an on-policy one.
    """

    clock: Clock
    key: jax.Array
    learner: PyTree
    actors: rollouts.Actors
    normalizer: Normalizer
    refused: jax.Array
    replay: Any = None


class Metrics(NamedTuple):
    """Metrics of each of I iterations.

    Attributes:
        step: Environment steps finished, ``[I]``.
        episodes: Statistics of the training episodes that ended, ``[I]``; raw rewards.
        info: The algorithm's own, ``[I]`` each; off-policy the mean over an iteration's updates.
    """

    step: jax.Array
    episodes: rollouts.EpisodeStatistics
    info: Info


class Totals(NamedTuple):
    """Metrics summed over iterations; their size never grows, however many there are.

    Attributes:
        episodes: Statistics of the training episodes that ended, ``[]``.
        info: Sums of the algorithm's own, ``[]`` each, without ``finite``.
    """

    episodes: rollouts.EpisodeStatistics
    info: Info

    def plus(self, metrics: Metrics) -> "Totals":
        """With those of one more iteration."""
        more = Totals(metrics.episodes, {name: metrics.info[name] for name in self.info})
        return jax.tree.map(jnp.add, self, more)


class LearningCurve(NamedTuple):
    """The evaluations of a run.

    Attributes:
        step: Environment steps before each evaluation, ``[E]`` int32.
        evaluation: Their results, ``[E]`` each.
    """

    step: jax.Array
    evaluation: Evaluation


class TrainResult(NamedTuple):
    """A finished run.

    Attributes:
        state: Its last state.
        metrics: Of each iteration.
        curve: Its evaluations.
        failed: Whether an update was refused or something became non-finite, ``[]`` bool.
    """

    state: TrainState
    metrics: Metrics
    curve: LearningCurve
    failed: jax.Array


class Train(NamedTuple):
    """A whole training run, as pure functions of one seed; ``purerl.vectorize`` maps them.

    Attributes:
        init: ``(key) -> state``, before the first iteration.
        advance: ``(state, iterations) -> (state, metrics)``; ``iterations`` is static.
        totals: ``(state) -> totals``, zeros to begin a sum with.
        accumulate: ``(state, totals, clock) -> (state, totals)``: as many iterations as the Clock
            says, which may be traced.
        evaluate: ``(state) -> evaluation``; changes nothing.
        train: ``(key) -> result``: ``init``, then all iterations and evaluations.
        failed: ``(state) -> bool``: whether an update was refused or something is not finite.
        iterations: Of the whole run.
        steps_per_iteration: Environment steps of all N environments together.
        evaluate_at: The iterations after which ``train`` evaluates.
        steps: Environment steps of the whole run: ``warmup_steps`` and those of all iterations.
        warmup_steps: Environment steps that ``init`` takes.
        evaluation_episodes: Episodes of one evaluation.
        evaluation_share: Environment steps of all evaluations, at most, as a fraction of ``steps``.
        loop: Its parts, for what plays environments that are not written in JAX.
    """

    init: Callable[..., TrainState]
    advance: Callable[..., tuple[TrainState, Metrics]]
    totals: Callable[..., Totals]
    accumulate: Callable[..., tuple[TrainState, Totals]]
    evaluate: Callable[..., Evaluation]
    train: Callable[..., TrainResult]
    failed: Callable[..., jax.Array]
    iterations: int
    steps_per_iteration: int
    evaluate_at: tuple[int, ...]
    steps: int
    warmup_steps: int
    evaluation_episodes: int
    evaluation_share: float
    loop: "Loop"


class Played(NamedTuple):
    """What the environments did in one iteration, or before the first.

    Attributes:
        actors: Where they are.
        rollout: ``[T, N]``, raw.
        statistics: Of the episodes that ended.
    """

    actors: rollouts.Actors
    rollout: Rollout
    statistics: rollouts.EpisodeStatistics


class Loop(NamedTuple):
    """How a run starts, and one iteration of it, in two parts: playing and learning.

    Whoever plays environments that are not written in JAX does so between the others' calls.

    Attributes:
        start: ``(key) -> state``, before anything is played.
        warm_up: ``(state, key) -> played``, what is played before the first iteration; the key is
            the run's.
        begin: ``(state, played) -> state``, after that.
        play: ``(state) -> played``, of one iteration.
        learn: ``(state, played) -> (state, metrics)``, the rest of it.
        warm_up_length: T of what is played before the first iteration; 0: nothing.
    """

    start: Callable[[jax.Array], TrainState]
    warm_up: Callable[[TrainState, jax.Array], Played]
    begin: Callable[[TrainState, Played], TrainState]
    play: Callable[[TrainState], Played]
    learn: Callable[[TrainState, Played], tuple[TrainState, Metrics]]
    warm_up_length: int

    def init(self, key: jax.Array) -> TrainState:
        """State before the first iteration."""
        state = self.start(key)
        return self.begin(state, self.warm_up(state, key)) if self.warm_up_length else state

    def iterate(self, state: TrainState) -> tuple[TrainState, Metrics]:
        """One iteration."""
        return self.learn(state, self.play(state))


def start(algorithm: Any, env: Any, sizes: LoopConfig, key: jax.Array) -> TrainState:
    """State of a run before its first iteration.

    Args:
        algorithm: On-policy or off-policy.
        env: Environment.
        sizes: Of the run.
        key: The run's key.
    """
    run_key, reset_key, learner_key = jax.random.split(key, 3)
    actors = rollouts.reset(env, sizes.num_envs, reset_key)
    init_memory = getattr(algorithm, "init_memory", None)
    if init_memory is not None:
        actors = actors._replace(memory=init_memory(actors.obs))
    learner = algorithm.init(actors.obs, learner_key)
    real, reward = jnp.result_type(float), getattr(sizes, "normalize_reward", False)
    normalizer = Normalizer(
        moments.init_obs_moments(actors.obs) if sizes.normalize_obs else None,
        moments.init_reward_scaler(sizes.num_envs, real) if reward else None,
    )
    zero = jnp.zeros((), jnp.int32)
    return TrainState(Clock(zero), run_key, learner, actors, normalizer, jnp.zeros_like(zero))


_OWED = {
    "log_prob": "the log-probability of each action, and zeros where update does not need it",
    "finite": "a bool: False where the update was refused and the state kept",
    "td_error": "the new priorities, and zeros where replay is uniform",
}


def play(
    algorithm: Any,
    env: Any,
    sizes: LoopConfig,
    state: TrainState,
    key: jax.Array,
    length: int,
    progress: Number,
    *owed: str,
    first_only: bool = False,
) -> Played:
    """A run's algorithm acts for ``length`` steps; see :func:`purerl.unroll`.

    Args:
        algorithm: On-policy or off-policy.
        env: Environment.
        sizes: Of the run.
        state: With the learner, the actors, and the moments that observations are normalized with.
        key: PRNG key.
        length: T.
        progress: Finished fraction of the run.
        *owed: What the rollout needs of the extras of ``act``, each ``[N]``.
        first_only: As in :func:`purerl.unroll`.

    Raises:
        TypeError: If the algorithm's ``act`` returns other things than a loop needs.
        ValueError: If their shapes are others.
    """
    learner, ahead = state.learner, algorithm.ahead

    def observe(obs: PyTree) -> PyTree:
        return state.normalizer.observe(obs, sizes)

    def act(obs: PyTree, noise: PyTree, *remembered: PyTree) -> tuple[jax.Array, Info]:
        count, given = num_rows(obs), dict(zip(("memory", "start"), remembered, strict=False))
        if ahead is None:
            acted = algorithm.act(learner, observe(obs), noise, progress=progress, **given)
            _check_returned("act", ("action", "extras"), acted, dict.fromkeys(owed, (count,)))
            action, extras = acted
        else:  # the policy stands for the log-probability
            acted = ahead.act(learner, observe(obs), noise, progress=progress, **given)
            _check_tuple("ahead.act", ("action", "policy", *([*given][:1])), acted)
            action, extras = acted[0], dict(zip(("log_prob", "memory"), acted[1:], strict=False))
        if remembered:
            _check_memory(remembered[0], extras)
        wanted = (count, *getattr(env.action_space, "shape", ()))
        if jnp.shape(action) != wanted:
            raise ValueError(
                f"the algorithm's act returned actions of shape {jnp.shape(action)}, wanted "
                f"{wanted}: one of {env.action_space} for each of {count} environments."
            )
        kept = (*owed, "memory") if remembered else owed
        return action, {name: extras[name] for name in kept}

    noise = None
    if ahead is not None:
        noise_key, key = jax.random.split(key)
        noise = ahead.noise(learner, observe(state.actors.obs), noise_key, length)
    actors, rollout, statistics = rollouts.unroll(
        act, env, state.actors, key, length, first_only, noise
    )
    if ahead is not None and "log_prob" in owed:
        rollout = rollout._replace(log_prob=ahead.log_prob(rollout.log_prob, rollout.action))
    return Played(actors, rollout, statistics)


def checked_update(before: PyTree, updated: Any, **owed: tuple[int, ...]) -> Any:
    """Returns ``updated``, ``finite`` as an array; raises TypeError or ValueError unless it is what
    a loop needs.

    Args:
        before: The algorithm's state that it was given.
        updated: What it returned.
        **owed: Shapes of entries of its info, besides ``finite``.
    """
    _check_returned("update", ("state", "info"), updated, {"finite": ()} | owed)
    states = jax.eval_shape(lambda: (before, updated[0]))
    old, new = (described(by_path(state)) for state in states)
    changed = [
        f"{name} from {old.get(name, 'nothing')} to {new.get(name, 'nothing')}"
        for name in old | new
        if old.get(name) != new.get(name)
    ]
    if changed:
        raise ValueError(
            f"the algorithm's update changes its state: {'; '.join(changed[:3])}; return what init "
            "returns, with astype where an operation promotes."
        )
    finite = jnp.asarray(updated[1]["finite"])
    if finite.dtype != bool:  # of a number ~ is no "not"
        raise TypeError(
            f"the algorithm's update owes 'finite' as a bool, and it is {finite.dtype}: "
            f"{_OWED['finite']}; jnp.isfinite(...).all() is one."
        )
    return updated[0], updated[1] | {"finite": finite}


def _check_memory(before: PyTree, extras: Info) -> None:
    """Raises ValueError unless the memory after a step is there, and like the one before it."""
    kinds = [described(by_path(x)) for x in (extras.get("memory"), before)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the algorithm's act owes the memory after the step, as init_memory has it, in the "
            f"dict it returns: {kinds[1]}, and it is {kinds[0] or 'missing'}."
        )


def _check_tuple(who: str, parts: tuple[str, ...], returned: Any) -> None:
    if not (isinstance(returned, tuple) and len(returned) == len(parts)):
        what, wanted = type(returned).__name__, ", ".join(parts)
        raise TypeError(f"the algorithm's {who} returned a {what}, wanted ({wanted}).")


def _check_returned(
    who: str, parts: tuple[str, str], returned: Any, shapes: dict[str, Any]
) -> None:
    _check_tuple(who, parts, returned)
    if not isinstance(returned[1], dict):
        what = type(returned[1]).__name__
        wanted = f"({', '.join(parts)}): a dict"
        raise TypeError(f"the algorithm's {who} returned a {what} second, wanted {wanted}.")
    for name, shape in shapes.items():
        got = jnp.shape(returned[1][name]) if name in returned[1] else "missing"
        if got != shape:
            raise ValueError(
                f"the algorithm's {who} owes {name!r} of shape {shape} in the dict it returns, and "
                f"it is {got}: {_OWED[name]}."
            )
