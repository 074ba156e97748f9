"""A whole run as pure functions of a key, from an algorithm, an environment and sizes."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from purerl.checks import check_key
from purerl.config import suggest
from purerl.envs.make import make_env
from purerl.envs.record import Env
from purerl.pieces.gradient import all_finite
from purerl.pieces.packing import make_packing, packed_scan
from purerl.records import Clock, OffPolicyAlgorithm, OnPolicyAlgorithm
from purerl.threefry import as_others_take, rolled, unrolled
from purerl.training import off_policy, on_policy, state as states
from purerl.training.evaluation import Evaluation, evaluate
from purerl.training.sizes import LoopConfig, OffPolicyLoopConfig, OnPolicyLoopConfig
from purerl.training.state import Metrics, Totals, Train, TrainResult, TrainState

_EVALUATION = 2**32 - 1  # folded into the run's key: no iteration has this number


def make_train(
    algorithm: OnPolicyAlgorithm | OffPolicyAlgorithm,
    env: Any,
    steps: int = LoopConfig.steps,
    **sizes: Any,
) -> Train:
    """A whole run as pure functions.

    Iteration i uses the key ``fold_in(key, i)`` and nothing outside the state, and evaluation has
    keys of its own. So within one compiled program a run is the same bits wherever it is cut and
    resumed (``accumulate``, which takes any number of iterations); another program of the same run
    (``train``, ``advance`` of another length, another JAX) is equal to rounding, for XLA may fuse
    it differently.

    An on-policy iteration is a rollout of ``num_envs * rollout_length`` steps and one update of the
    algorithm. An off-policy one adds that many transitions to the replay buffer and makes
    ``updates`` updates, each with a batch of its own; before the first, ``init`` acts for
    ``warmup`` steps as at the start of the run (DQN: at random, where its epsilon starts at 1). The
    buffer holds raw observations; they are normalized when they are drawn.

    Args:
        algorithm: An on-policy or an off-policy algorithm.
        env: Environment: an :class:`Env`, or what :func:`make_env` takes.
        steps: Environment steps, over all ``num_envs``; rounded up to whole iterations.
        **sizes: Fields of :class:`OnPolicyLoopConfig` or :class:`OffPolicyLoopConfig`, whose help
            says what they are.

    Returns:
        The run as functions: ``init``, ``advance``, ``evaluate``, ``train`` and others.

    Raises:
        TypeError: If ``algorithm`` is none, or a size is unknown to its kind.
        ValueError: If a size is out of range or does not fit the others.

    Example:
        >>> import jax, purerl
        >>> env = purerl.make_env("CartPole-v1")
        >>> algorithm = purerl.ppo_clip(purerl.PPOClipConfig(), env.action_space)
        >>> train = make_train(algorithm, env, 4000, num_envs=4, evaluations=2)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> result = jax.jit(purerl.vectorize(train.train))(keys)
        >>> result.curve.step[0].tolist(), result.curve.evaluation.mean_return.shape
        ([2048, 4096], (2, 2))
        >>> dqn = purerl.dqn(purerl.DQNConfig(prioritized=True), env.action_space)
        >>> make_train(dqn, env, 4000, warmup=2000).iterations
        250
    """
    config = _sizes(algorithm, {"steps": steps} | sizes)
    env = make_env(env)
    if config.evaluations:
        config.episode_limit(env)
    own = any(callable(x) and not str(x.__module__).startswith("purerl.") for x in algorithm)
    # What is not of this package sees JAX's keys alone: an algorithm of one's own has the run to
    # itself, and a key that an environment's state holds is of the run's kind outside of it.
    drawing = (lambda tree: tree) if own else unrolled
    reset, step = (as_others_take(function, drawing) for function in (env.reset, env.step))
    env = env._replace(reset=reset, step=step)
    regime: Any = off_policy if isinstance(algorithm, OffPolicyAlgorithm) else on_policy
    loop = regime.make_loop(algorithm, env, config)
    if own and not isinstance(jnp.zeros(()), jax.core.Tracer):  # else it is traced anyway
        jax.eval_shape(lambda: loop.iterate(loop.init(jax.random.key(0))))
        _check_greedy(algorithm, env, config, loop)
    train = _assemble(algorithm, env, config, loop, drawing)
    return train if env.outside is None else train._replace(**_refusals(env))


def _check_greedy(algorithm: Any, env: Env, sizes: LoopConfig, loop: states.Loop) -> None:
    """Raises what :func:`states.play` does unless ``act`` does what evaluation asks of it."""
    taken = inspect.signature(algorithm.act).parameters.values()
    if not any(x.name == "greedy" or x.kind is x.VAR_KEYWORD for x in taken):
        raise TypeError(
            "the algorithm's act takes no greedy, by which evaluation and policies act; wanted "
            "act(state, obs, key, *, greedy=False, progress=1.0)."
        )
    best = algorithm._replace(act=functools.partial(algorithm.act, greedy=True), ahead=None)
    key = jax.random.key(0)
    try:
        jax.eval_shape(lambda: states.play(best, env, sizes, loop.init(key), key, 1, 1.0))
    except (TypeError, ValueError) as error:
        if type(error) not in (TypeError, ValueError):  # JAX's own take other arguments
            raise
        raise type(error)(f"with greedy=True, as in evaluation: {error}") from error


def _sizes(algorithm: Any, sizes: dict[str, Any]) -> Any:
    """The sizes of a run of this algorithm's kind."""
    on, off = OnPolicyLoopConfig, OffPolicyLoopConfig
    kinds: dict[type, Any] = {OnPolicyAlgorithm: (on, off), OffPolicyAlgorithm: (off, on)}
    if type(algorithm) not in kinds:
        raise TypeError(
            f"make_train: algorithm is a {type(algorithm).__name__}, wanted an OnPolicyAlgorithm "
            "or OffPolicyAlgorithm, and the environment after it: purerl.ppo_clip(config, "
            "env.action_space) is one; purerl.run takes names."
        )
    config, other = kinds[type(algorithm)]
    for name in (name for name in sizes if name not in config.specs):
        why = f". {suggest(name, config.specs)}"
        if name in other.specs:
            why = f": it is one of {other.__name__}, and this is no algorithm of that kind."
        raise TypeError(f"make_train: {config.__name__} has no size {name!r}{why}")
    return config(**sizes)


def _assemble(
    algorithm: Any, env: Env, sizes: LoopConfig, loop: states.Loop, drawing: Callable[[Any], Any]
) -> Train:
    """The functions of a run, from its start and one iteration; ``drawing`` keys as these draw."""
    real = jnp.result_type(float)
    evaluate_at = sizes.evaluate_at
    episodes, limit = sizes.episodes(env), sizes.max_episode_steps

    def init(key: jax.Array) -> TrainState:
        check_key(key)
        return rolled(loop.init(drawing(key)))

    @jax.jit  # traced once for all functions that call it; XLA inlines it
    def iterate(state: TrainState) -> tuple[TrainState, Metrics]:
        return rolled(loop.iterate(drawing(state)))

    def advance(state: TrainState, iterations: int) -> tuple[TrainState, Metrics]:
        return packed_scan(lambda state, _: iterate(state), state, None, iterations)

    def totals(state: TrainState) -> Totals:
        metrics = jax.eval_shape(iterate, state)[1]
        info = {name: x for name, x in metrics.info.items() if name != "finite"}
        sums = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.result_type(x, real)), info)
        none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), metrics.episodes)
        return Totals(none, sums)

    def accumulate(state: TrainState, totals: Totals, count: Clock) -> tuple[TrainState, Totals]:
        carried = make_packing((state, totals), 0)

        def step(_, carry):
            state, totals = carried.unpack(carry)
            state, metrics = iterate(state)
            return carried.pack((state, totals.plus(metrics)))

        first = carried.pack((state, totals))
        return carried.unpack(jax.lax.fori_loop(0, count.iteration, step, first))

    def evaluate_state(state: TrainState) -> Evaluation:
        state = drawing(state)

        def policy(obs, key, *remembered):
            obs, given = state.normalizer.observe(obs, sizes), {"greedy": sizes.greedy_evaluation}
            given |= dict(zip(("memory", "start"), remembered, strict=False))
            action, extras = algorithm.act(state.learner, obs, key, progress=1.0, **given)
            return (action, extras["memory"]) if remembered else action

        key = jax.random.fold_in(state.key, _EVALUATION)
        key = jax.random.fold_in(key, state.clock.iteration)
        memory = getattr(algorithm, "init_memory", None)
        return evaluate(policy, env, key, episodes=episodes, max_steps=limit, init_memory=memory)

    def failed(state: TrainState) -> jax.Array:
        return (state.refused > 0) | ~all_finite((state.learner, state.normalizer))

    def iterate_and_evaluate(state, _):
        state, metrics = iterate(state)
        # The clock is unbatched under vectorize: a real branch.
        due = jnp.any(state.clock.iteration == jnp.array(evaluate_at))
        seen = state._replace(replay=None)  # a buffer stays out of the branch
        evaluation = jax.lax.cond(due, evaluate_state, lambda _: _empty_evaluation(real), seen)
        return state, (metrics, evaluation)

    def train(key: jax.Array) -> TrainResult:
        if evaluate_at:
            length = sizes.iterations
            state, (metrics, seen) = packed_scan(iterate_and_evaluate, init(key), None, length)
            seen = jax.tree.map(lambda x: x[jnp.array(evaluate_at) - 1], seen)
        else:
            state, metrics = advance(init(key), sizes.iterations)
            seen = jax.tree.map(lambda x: jnp.zeros(0, x.dtype), _empty_evaluation(real))
        # Constants: XLA of JAX 0.11 crashes where arrays of no elements are computed.
        step = jnp.array([sizes.step(i) for i in evaluate_at], jnp.int32)
        return TrainResult(state, metrics, states.LearningCurve(step, seen), failed(state))

    return Train(
        *(init, advance, totals, accumulate, evaluate_state, train, failed),
        iterations=sizes.iterations,
        steps_per_iteration=sizes.steps_per_iteration,
        evaluate_at=evaluate_at,
        steps=sizes.step(sizes.iterations),
        warmup_steps=sizes.warmup_steps,
        evaluation_episodes=episodes,
        evaluation_share=sizes.evaluation_share(env),
        loop=loop,
    )


def _refusals(env: Env) -> dict[str, Any]:
    """What of a run cannot be a pure function where the host plays the environment."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"{env.name} is not written in JAX, so no jitted function can play it: purerl.run, "
            "sweep and the command line do, from the host."
        )

    return dict.fromkeys(("advance", "accumulate", "evaluate", "train"), refuse)


def _empty_evaluation(dtype: Any) -> Evaluation:
    nan = jnp.full((), jnp.nan, dtype)
    return Evaluation(nan, nan, jnp.zeros((), jnp.int32))
