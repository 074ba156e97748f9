"""What preconditioners save: iterations of conjugate gradient to a residual.

    python benchmarks/preconditioners.py    # some minutes; it only counts, the machine may be busy

The damped Fisher matrix of a policy, plain and preconditioned with its diagonal and with K-FAC's
factors of the same batch (damped in the eigenbasis):

* "units": policies at random whose observations come in units from 1e-2 to 1e2 (the first layer's
  weights the other way round, so that the policy is that of standardized observations);
* "met": the problems that TRPO meets on its way, at its preset on Pendulum after some iterations,
  with its damping and with less, on every fourth sample of the batch.

In float64, where rounding does not end the plain iteration early; the residual is that of the
solution itself.
"""

import dataclasses
import functools
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from record import circumstances, result_files

import purerl
from purerl.second_order.kfac.factors import fisher_factors, invert_eigenbasis
from purerl.second_order.kfac.layers import find_layers
from purerl.second_order.kfac.tapping import tap
from purerl.second_order.kfac.transform import precondition

HERE = Path(__file__).resolve().parent
RESIDUALS = (1e-1, 1e-2, 1e-3)
PRECONDITIONERS = ("plain", "diagonal Fisher", "K-FAC")
MET_ENV, MET_AFTER, MET_DAMPINGS = "Pendulum-v1", (5, 50), (0.1, 1e-3)
MET_STRIDE = 4  # of the batch every so many-th sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the benchmark."""

    problems: int = 8
    """Problems of each kind."""
    output: Path = HERE / "results" / "preconditioners.json"
    """Result file; picture and table go beside it."""
    force: bool = False
    """Whether to overwrite the result files."""


def fisher_diagonal(policy, params, obs):
    """The diagonal of the matrix of ``purerl.fisher_vector_product``, exactly."""
    import jax
    import jax.numpy as jnp
    from jax.flatten_util import ravel_pytree

    def of_one(observation):
        distribution = policy(params, observation[None])
        z, unravel = ravel_pytree(distribution)
        curvature = jax.hessian(lambda z: jnp.sum(distribution.kl(unravel(z))))(z)
        jacobian = jax.jacrev(lambda p: ravel_pytree(policy(p, observation[None]))[0])(params)
        return jax.tree.map(lambda j: jnp.einsum("i...,ij,j...->...", j, curvature, j), jacobian)

    # In chunks: a Jacobian for every sample at once could be far larger than the network.
    diagonals = jax.lax.map(of_one, obs, batch_size=64)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), diagonals)


def iterations_needed(network, params, obs, b, action, tolerance, damping, preconditioner: str):
    """Of conjugate gradient on (F + damping I) x = b, and the residual of the solution itself."""
    import jax
    import jax.numpy as jnp
    import optax

    def policy(params, obs):
        return network.apply(params, obs)[0]

    product = purerl.fisher_vector_product(policy, params, obs)

    def divide():
        diagonal = fisher_diagonal(policy, params, obs)
        return lambda r: jax.tree.map(lambda x, d: x / (d + damping), r, diagonal)

    def kronecker():
        layers = find_layers(network.apply, params, obs)
        tapped = tap(network.apply, layers, params, obs)
        distribution, value = tapped.output
        score = jax.grad(lambda d: jnp.sum(d.log_prob(action)))(distribution)
        factors = fisher_factors(layers, tapped, (score, jnp.zeros_like(value)))
        inverse = invert_eigenbasis(factors, damping)
        return lambda r: precondition(layers, inverse, r)

    made = {"plain": lambda: None, "diagonal Fisher": divide, "K-FAC": kronecker}[preconditioner]()
    result = purerl.conjugate_gradient(
        product,
        b,
        tolerance=tolerance,
        max_iterations=5000,
        damping=damping,
        preconditioner=made,
    )
    left = jax.tree.map(lambda p, x: p + damping * x, product(result.x), result.x)
    return result.iterations, optax.tree.norm(optax.tree.sub(b, left)) / optax.tree.norm(b)


def compare_preconditioners(solve: Callable[..., Any], problems: Any) -> dict[str, Any]:
    """Iterations to each relative residual, ``[problem][residual]``, with each preconditioner."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    found = {}
    for name in PRECONDITIONERS:
        run = functools.partial(solve, preconditioner=name)
        run = jax.vmap(jax.vmap(run, in_axes=(None, 0)), in_axes=(0, None))
        iterations, residuals = jax.jit(run)(problems, jnp.array(RESIDUALS))
        if not np.all(residuals <= 1.01 * np.array(RESIDUALS)):
            raise RuntimeError(f"{name}: a residual was not reached: {residuals}")
        found[name] = np.asarray(iterations).tolist()
    return found


def measure_units(options: Options) -> dict[str, Any]:
    """Random policies whose observations come in different units."""
    import jax
    import jax.numpy as jnp

    damping, features = 1e-3, 8
    # Not the small first head of the orthogonal initialization, beside which the damping is large.
    config = purerl.NetworkConfig(hidden_sizes=(32,), orthogonal_init=False)
    network = purerl.ActorCritic(purerl.Discrete(3), config)

    def solve(key, tolerance, preconditioner):
        obs_key, init_key, weight_key, action_key = jax.random.split(key, 4)
        obs = jax.random.normal(obs_key, (512, features))
        params = network.init(init_key, obs)
        # The same policy of the same observations, measured in other units.
        scale = jnp.geomspace(1e-2, 1e2, features)
        first = params["params"]["actor"]["MLP_0"]["Dense_0"]
        first["kernel"] = first["kernel"] / scale[:, None]
        obs = scale * obs
        weight = jax.random.normal(weight_key, (512, 3))
        b = jax.grad(lambda p: jnp.mean(network.apply(p, obs)[0].log_probs() * weight))(params)
        action = network.apply(params, obs)[0].sample(action_key)
        return iterations_needed(
            network, params, obs, b, action, tolerance, damping, preconditioner
        )

    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), options.problems)
        return {"damping": damping, "iterations": compare_preconditioners(solve, keys)}


def measure_met(options: Options) -> list[dict[str, Any]]:
    """The surrogate's gradient, on the batches of runs of TRPO after some iterations."""
    import jax
    import jax.numpy as jnp

    from purerl.pieces import rollout as rollouts
    from purerl.pieces.advantages import on_policy_batch

    experiment = purerl.make_experiment("trpo", MET_ENV)
    train, env, config = experiment.build(), purerl.make_env(MET_ENV), experiment.config
    algorithm = purerl.trpo(config, env.action_space)
    network = purerl.ActorCritic(env.action_space, config.network)

    def problem(state, key):
        observe = lambda obs: state.normalizer.observe(obs, experiment.loop)  # noqa: E731
        act = lambda obs, key: algorithm.act(state.learner, observe(obs), key)  # noqa: E731
        length = experiment.loop.rollout_length
        _, rollout, _ = rollouts.unroll(act, env, state.actors, key, length)
        seen = {name: observe(getattr(rollout, name)) for name in ("obs", "next_obs")}
        params = state.learner.params
        rollout = rollout._replace(**seen)
        batch = on_policy_batch(
            network, params, rollout, config.gamma, config.gae_lambda, normalize=True
        )
        return params, jax.tree.map(lambda x: x[::MET_STRIDE], batch)

    def solve(problem, tolerance, preconditioner, damping):
        params, batch = problem

        def surrogate(params):
            log_prob = network.apply(params, batch.obs)[0].log_prob(batch.action)
            return -jnp.mean(jnp.exp(log_prob - batch.log_prob) * batch.advantage)

        b = jax.grad(surrogate)(params)
        return iterations_needed(
            network, params, batch.obs, b, batch.action, tolerance, damping, preconditioner
        )

    keys = jax.random.split(jax.random.key(0), options.problems)
    states, done, cells = jax.jit(jax.vmap(train.init))(keys), 0, []
    for after in MET_AFTER:
        advance = functools.partial(train.advance, iterations=after - done)
        states, done = jax.jit(jax.vmap(advance))(states)[0], after
        problems = jax.jit(jax.vmap(problem))(states, keys)
        with jax.enable_x64(True):
            wide = jax.tree.map(
                lambda x: x.astype(float) if x.dtype == jnp.float32 else x, problems
            )
            for damping in MET_DAMPINGS:
                at = functools.partial(solve, damping=damping)
                found = compare_preconditioners(at, wide)
                cells.append({"after": after, "damping": damping, "iterations": found})
    return cells


def table(found: dict[str, Any], first: str = "relative residual") -> str:
    """Median (lowest - highest) number of iterations."""
    rows = [f"| {first} | {' | '.join(PRECONDITIONERS)} |", "|---" * (1 + len(found)) + "|"]
    for i, residual in enumerate(RESIDUALS):
        texts = []
        for name in PRECONDITIONERS:
            counts = sorted(problem[i] for problem in found[name])
            texts.append(f"{statistics.median(counts):g} ({counts[0]} - {counts[-1]})")
        rows.append(f"| {residual:g} | {' | '.join(texts)} |")
    return "\n".join(rows)


def plot(record: dict[str, Any], path: Path) -> None:
    """Iterations against the residual: units, then what TRPO meets last, at each damping."""
    from matplotlib.figure import Figure

    last = [cell for cell in record["met"] if cell["after"] == MET_AFTER[-1]]
    panels = [("observations in different units, damping 0.001", record["units"]["iterations"])]
    panels += [(f"TRPO on {MET_ENV}, damping {c['damping']:g}", c["iterations"]) for c in last]
    figure = Figure(figsize=(4.2 * len(panels), 4.2), layout="constrained")
    for axes, (title, found) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        for name in PRECONDITIONERS:
            counts = list(zip(*found[name], strict=True))
            medians = [statistics.median(c) for c in counts]
            (line,) = axes.loglog(RESIDUALS, medians, "o-", label=name)
            low, high = [min(c) for c in counts], [max(c) for c in counts]
            axes.fill_between(RESIDUALS, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.set(xlabel="relative residual", ylabel="iterations", title=title)
        axes.invert_xaxis()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=100)


def main(options: Options) -> None:
    """Measures, prints and writes."""
    files = result_files(options.output, (".json", ".md", ".png"), options.force)
    purerl.use_all_cores()
    record = {
        **circumstances("preconditioners", options),
        "residuals": RESIDUALS,
        "units": measure_units(options),
        "met": measure_met(options),
    }
    tables = [table(record["units"]["iterations"], "units; relative residual")]
    for cell in record["met"]:
        title = f"{MET_ENV}, after {cell['after']} iterations, damping {cell['damping']:g}"
        tables.append(table(cell["iterations"], title))
    files[0].write_text(json.dumps(record, indent=1) + "\n")
    files[1].write_text("\n\n".join(tables) + "\n")
    plot(record, files[2])
    print("\n\n".join(tables))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
