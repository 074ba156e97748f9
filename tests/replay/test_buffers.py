"""The replay buffers against Python lists, NumPy and statistics; and what their programs copy."""

import collections
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import purerl
from purerl.replay import tree as priority_tree
from purerl.replay.buffers import prioritized, uniform

ITEM = {"x": jnp.zeros(2), "n": jnp.int32(0)}


def items(start, count):
    """Numbered items: x is (n, -n)."""
    n = jnp.arange(start, start + count)
    return {"x": jnp.stack([n, -n], axis=1).astype(jnp.result_type(float)), "n": n}


def filled(replay, count):
    return jax.jit(replay.add)(replay.init(ITEM), items(0, count))


def fast(replay):
    """The same with compiled functions."""
    return replay._replace(
        add=jax.jit(replay.add),
        sample=jax.jit(replay.sample, static_argnums=2),
        update_priorities=jax.jit(replay.update_priorities),
    )


def with_priorities(powers, **kw):
    """A buffer whose p^alpha are these numbers."""
    replay = fast(prioritized(len(powers), alpha=1.0, eps=0.0, **kw))
    state = filled(replay, len(powers))
    return replay, replay.update_priorities(state, jnp.arange(len(powers)), jnp.asarray(powers))


def levels_by_hand(leaves):
    """Sums and minima of every four, up to the top."""
    level, sums, minima = np.asarray(leaves), [], []
    least = np.where(level > 0, level, np.inf)
    while not sums or len(level) > 4:
        level, least = level.reshape(-1, 4).sum(1), least.reshape(-1, 4).min(1)
        pad = -len(level) % 4
        level, least = np.pad(level, (0, pad)), np.pad(least, (0, pad), constant_values=np.inf)
        sums.append(level)
        minima.append(least)
    return sums, minima


def assert_tree_is_consistent(tree, rtol=1e-5):
    for nodes, sums, minima in zip(tree.nodes, *levels_by_hand(tree.leaves), strict=True):
        np.testing.assert_allclose(nodes[:, 0], sums, rtol=rtol)
        np.testing.assert_array_equal(nodes[:, 1], minima)


# Against a Python list.

JITTED = {}


def jitted(kind, capacity):
    """Each buffer's functions are compiled once."""
    if (kind, capacity) not in JITTED:
        replay = uniform(capacity) if kind == "uniform" else prioritized(capacity, eps=0.01)
        JITTED[kind, capacity] = fast(replay)
    return JITTED[kind, capacity]


class Buffer(RuleBasedStateMachine):
    """Adding, wrapping, drawing and updating, in any order and size."""

    @initialize(
        kind=st.sampled_from(["uniform", "prioritized"]), capacity=st.sampled_from([1, 5, 18])
    )
    def start(self, kind, capacity):
        self.kind, self.capacity = kind, capacity
        self.replay = jitted(kind, capacity)
        self.state = self.replay.init(ITEM)
        self.held = [None] * capacity  # (number, p^alpha)
        self.next, self.added, self.largest = 0, 0, 1.0

    @rule(data=st.data())
    def add(self, data):
        count = data.draw(st.integers(1, min(self.capacity, 7)))
        self.state = self.replay.add(self.state, items(self.added, count))
        for number in range(self.added, self.added + count):
            self.held[self.next] = [number, self.largest]
            self.next = (self.next + 1) % self.capacity
        self.added += count

    @precondition(lambda self: self.added)
    @rule(seed=st.integers(0, 2**31 - 1))
    def sample(self, seed):
        sample = self.replay.sample(self.state, jax.random.key(seed), 8)
        drawn = [self.held[i] for i in np.asarray(sample.indices)]
        assert None not in drawn
        weights = np.ones(8)
        if self.kind == "prioritized":
            least = min(power for _, power in filter(None, self.held))
            weights = np.array([(least / power) ** 0.4 for _, power in drawn])
        np.testing.assert_allclose(sample.weight, weights, rtol=1e-4)

    @precondition(lambda self: self.added)
    @rule(data=st.data())
    def update(self, data):
        size = min(self.added, self.capacity)
        place = st.integers(0, size - 1)
        error = st.floats(-100, 100, width=32) | st.sampled_from([np.nan, np.inf])
        pairs = data.draw(st.lists(st.tuples(place, error), min_size=4, max_size=4))
        index, errors = (np.array(x) for x in zip(*pairs, strict=True))
        state = self.replay.update_priorities(
            self.state, jnp.array(index), jnp.array(errors, jnp.float32)
        )
        self.state = state
        if self.kind == "uniform":
            return
        least = min(power for _, power in filter(None, self.held))
        power = (np.abs(errors) + 0.01) ** 0.6
        power = [p if np.isfinite(p) else least for p in power]
        for i in set(index):
            self.held[i][1] = max(p for j, p in zip(index, power, strict=True) if j == i)
        self.largest = max(self.largest, *power)

    @invariant()
    def equals_the_list(self):
        if not hasattr(self, "held"):
            return
        cursor = self.state.cursor
        assert (cursor.next, cursor.size) == (self.next, min(self.added, self.capacity))
        held = {i: pair for i, pair in enumerate(self.held) if pair is not None}
        numbers = np.array([number for number, _ in held.values()], int)
        places = np.array(list(held), int)
        np.testing.assert_array_equal(np.asarray(self.state.items["n"])[places], numbers)
        np.testing.assert_array_equal(np.asarray(self.state.items["x"])[places, 1], -numbers)
        if self.kind == "prioritized":
            leaves = np.zeros(len(self.state.tree.leaves))
            leaves[places] = [power for _, power in held.values()]
            np.testing.assert_allclose(self.state.tree.leaves, leaves, rtol=1e-5)
            assert_tree_is_consistent(self.state.tree)


TestBuffer = Buffer.TestCase
TestBuffer.settings = hypothesis.settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


# Priorities.


@pytest.mark.parametrize("capacity", [1, 3, 4, 5, 16, 17, 300])
def test_leaves_sums_minima_and_probabilities(capacity, x64):
    rng = np.random.default_rng(capacity)
    replay = fast(prioritized(capacity, alpha=0.6, eps=0.01))
    state = filled(replay, capacity)
    error = rng.normal(size=capacity) * 10 ** rng.uniform(-3, 3, size=capacity)
    order = rng.permutation(capacity)
    state = replay.update_priorities(state, jnp.array(order), jnp.array(error[order]))
    power = (np.abs(error) + 0.01) ** 0.6  # once, not twice
    np.testing.assert_allclose(state.tree.leaves[:capacity], power, rtol=1e-12)
    assert not state.tree.leaves[capacity:].any()
    assert_tree_is_consistent(state.tree, rtol=1e-12)
    np.testing.assert_allclose(state.tree.total, power.sum(), rtol=1e-12)
    np.testing.assert_allclose(state.tree.least, power.min(), rtol=1e-12)
    # Fractions at the middle of each item's part of the sum draw that item: P(i) is its length.
    edges = np.concatenate([[0], np.cumsum(power)]) / power.sum()
    for shift in (1e-9, 0.5, 1 - 1e-9):
        point = edges[:-1] + shift * (power / power.sum())
        drawn = jax.jit(priority_tree.draw)(state.tree, jnp.array(point), jnp.zeros(capacity))
        np.testing.assert_array_equal(drawn, np.arange(capacity))


def test_probabilities_and_weights_are_the_papers(x64):
    """P(i) = p_i^alpha / sum, w_i = (N P(i))^-beta / max w, from the definitions."""
    error = np.array([3.0, -0.5, 0.0, 1.0, -2.0, 0.1])
    replay = fast(prioritized(8, alpha=0.7, beta=0.5, eps=1e-3))
    state = filled(replay, 6)
    state = replay.update_priorities(state, jnp.arange(6), jnp.array(error))
    p = np.abs(error) + 1e-3
    probability = p**0.7 / (p**0.7).sum()
    for progress, beta in ((0.0, 0.5), (0.5, 0.75), (1.0, 1.0)):
        sample = replay.sample(state, jax.random.key(0), 64, progress=progress)
        weight = (6 * probability) ** -beta
        wanted = (weight / weight.max())[np.asarray(sample.indices)]
        np.testing.assert_allclose(sample.weight, wanted, rtol=1e-12)
        assert len(set(np.asarray(sample.indices))) > 3


def test_weights_by_hand():
    """Powers 4, 1, 1: the weight of the first is (1/4)^beta, of the others 1."""
    replay, state = with_priorities([4.0, 1.0, 1.0], beta=0.5)
    sample = replay.sample(state, jax.random.key(0), 6)
    assert sample.indices.tolist() == [0, 0, 0, 0, 1, 2]
    assert sample.weight.tolist() == [0.5] * 4 + [1.0] * 2
    sample = replay.sample(state, jax.random.key(0), 6, progress=1.0)
    assert sample.weight.tolist() == [0.25] * 4 + [1.0] * 2


def test_alpha_zero_is_uniform():
    replay = prioritized(5, alpha=0.0)
    state = replay.update_priorities(filled(replay, 5), jnp.arange(5), 10.0 ** jnp.arange(5))
    assert state.tree.leaves[:5].tolist() == [1.0] * 5
    assert replay.sample(state, jax.random.key(0), 5).weight.tolist() == [1.0] * 5


def test_new_items_get_the_largest_priority_so_far():
    replay, state = with_priorities([3.0, 1.0, 2.0])
    state = replay.update_priorities(state, jnp.array([0]), jnp.array([0.5]))  # 3 is gone
    state = replay.add(state, items(3, 1))
    assert state.tree.leaves.tolist() == [3.0, 1.0, 2.0, 0.0]


def test_the_largest_of_duplicates_counts_whatever_their_order():
    for order in ([0, 1, 2], [1, 2, 0], [2, 0, 1]):
        replay, state = with_priorities([9.0, 9.0])
        error = jnp.array([1.0, -3.0, 2.0])[jnp.array(order)]
        state = replay.update_priorities(state, jnp.ones(3, jnp.int32), error)
        assert state.tree.leaves.tolist() == [9.0, 3.0, 0.0, 0.0]


@pytest.mark.parametrize("error", [np.nan, np.inf, -np.inf])
def test_an_item_whose_error_is_not_finite_rests(error):
    """At the smallest priority, also where its own was the largest."""
    replay, state = with_priorities([7.0, 5.0, 1.5])
    state = replay.update_priorities(state, jnp.array([0, 1]), jnp.array([error, 3.0]))
    assert state.tree.leaves.tolist() == [1.5, 3.0, 1.5, 0.0]
    assert state.tree.largest == 7.0


def test_bad_transitions_are_drawn_no_more_often_than_by_uniform_replay():
    """One in twenty has a NaN for its error, and is drawn again only by the way."""
    replay = prioritized(200)
    bad = jnp.arange(200) % 20 == 3

    @jax.jit
    def draws(state, key):
        def step(state, key):
            draw_key, error_key = jax.random.split(key)
            index = replay.sample(state, draw_key, 8).indices
            error = jnp.where(bad[index], jnp.nan, jax.random.normal(error_key, (8,)))
            return replay.update_priorities(state, index, error), jnp.any(bad[index])

        return jax.lax.scan(step, state, jax.random.split(key, 1000))

    state, refused = draws(filled(replay, 200), jax.random.key(0))
    assert np.isfinite(state.tree.leaves).all()
    assert jnp.mean(refused[200:]) < 1 - 0.95**8  # the share of uniform draws


# Drawing.


def test_draws_have_the_probabilities_of_the_leaves():
    """Chi-square over 39 items, 4800 draws, some of them very improbable."""
    power = np.random.default_rng(0).uniform(0.05, 3.0, size=39) ** 2
    replay, state = with_priorities(power)
    sample = jax.jit(lambda key: replay.sample(state, key, 48).indices)
    drawn = np.concatenate([sample(key) for key in jax.random.split(jax.random.key(1), 100)])
    count = np.bincount(drawn, minlength=39)
    expected = power / power.sum() * len(drawn)
    # Strata make the counts more even than independent draws, so the test is two-sided only there.
    assert scipy.stats.chisquare(count, expected).pvalue > 0.001


def test_independent_draws_have_the_right_spread_too():
    """With one draw a batch there are no strata: the p-values of many tests are uniform."""
    power = np.random.default_rng(1).uniform(0.5, 3.0, size=20)
    replay, state = with_priorities(power)
    keys = jax.random.split(jax.random.key(2), 40_000)
    drawn = jax.jit(jax.vmap(lambda key: replay.sample(state, key, 1).indices[0]))(keys)
    counts = np.stack([np.bincount(d, minlength=20) for d in np.asarray(drawn).reshape(40, -1)])
    p = [scipy.stats.chisquare(c, power / power.sum() * c.sum()).pvalue for c in counts]
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.001


def test_uniform_draws_are_uniform():
    replay = uniform(50)
    state = filled(replay, 37)
    keys = jax.random.split(jax.random.key(0), 100)
    drawn = jax.vmap(lambda key: replay.sample(state, key, 37).indices)(keys)
    assert scipy.stats.chisquare(np.bincount(np.ravel(drawn), minlength=37)).pvalue > 0.001
    assert np.max(drawn) == 36


def test_one_draw_out_of_each_part_of_the_sum():
    replay, state = with_priorities(np.ones(64))
    for seed in range(5):
        sample = replay.sample(state, jax.random.key(seed), 64)
        assert sample.indices.tolist() == list(range(64))


def test_no_empty_place_is_ever_drawn_in_float32():
    """A million places, of which some are empty, and a million updates over six decades; then the
    fractions where rounding errors are worst: both ends, and the edges of every node.
    """
    capacity, size = 10**6, 10**4
    replay = prioritized(capacity, alpha=1.0, eps=1e-6)

    @jax.jit
    def run(key):
        state = replay.init(jnp.int8(0))
        for _ in range(9):
            state = replay.add(state, jnp.zeros(capacity // 10, jnp.int8))

        def step(state, key):
            sample_key, error_key = jax.random.split(key)
            sample = replay.sample(state, sample_key, size)
            error = 10.0 ** jax.random.uniform(error_key, (size,), minval=-3, maxval=3)
            return replay.update_priorities(state, sample.indices, error), sample.indices.max()

        return jax.lax.scan(step, state, jax.random.split(key, capacity // size))

    state, largest = run(jax.random.key(0))
    assert largest.max() < capacity * 9 // 10
    edges = np.cumsum(np.asarray(state.tree.nodes[2][:, 0], np.float64)).astype(np.float32)
    fraction = np.concatenate(
        [[0, 1, np.nextafter(np.float32(1), np.float32(0))], edges / edges[-1]]
    )
    fraction = np.clip(fraction, 0, 1).astype(np.float32)
    for fine in (0.0, 1.0):
        drawn = jax.jit(priority_tree.draw)(state.tree, fraction, jnp.full(len(fraction), fine))
        assert (np.asarray(state.tree.leaves)[np.asarray(drawn)] > 0).all()
    assert_tree_is_consistent(state.tree)


def draws_of_whole_nodes(tree, place, nodes, height):
    """How often each item of some nodes at a height is drawn, by points spread evenly over
    ``fraction``, where they are all that float32 has, and ``fine``.
    """
    size, per_point = len(tree.leaves), 32
    count = 4**height * nodes
    first = place // count * count
    bits = np.arange(2**24 * (first - 2000) // size, 2**24 * (first + count + 2000) // size)
    fraction = (bits / 2**24 * size / np.sum(tree.leaves > 0)).astype(np.float32)
    shift = np.arange(len(bits))[:, None] * 0.618034 % 1
    fine = (np.arange(per_point)[None] + shift).ravel() / per_point
    fraction = np.repeat(fraction, per_point)
    drawn = np.asarray(jax.jit(priority_tree.draw)(tree, fraction, fine.astype(np.float32)))
    return np.bincount(drawn, minlength=size)[first : first + count]


def test_a_million_equal_items_are_equally_probable_in_float32():
    """Each within 2 %, whatever the compiler rounds; see priority_tree.draw."""
    capacity = 10**6
    tree = priority_tree.empty_tree(capacity)
    tree = jax.jit(priority_tree.set_leaves)(tree, jnp.arange(capacity), jnp.ones(capacity))
    for place in (524_288, 950_000):
        count = draws_of_whole_nodes(tree, place, nodes=4, height=4)
        np.testing.assert_allclose(count, 2**24 / capacity * 32, rtol=0.02)


def test_large_trees_draw_by_priority_below_the_level_of_the_fine_number():
    """Chi-square over classes of items in a tree of eight levels."""
    capacity = 40_000
    power = jnp.array([1.0, 4.0, 0.25, 2.0, 8.0])[jnp.arange(capacity) * 7 % 5]
    replay, state = with_priorities(power)
    assert len(state.tree.nodes) == 7  # of eight levels the last two are drawn by the fine number
    sample = jax.jit(lambda key: replay.sample(state, key, 20_000).indices)
    count = np.bincount(np.ravel([sample(jax.random.key(i)) for i in range(5)]) * 7 % 5)
    expected = np.array([1.0, 4.0, 0.25, 2.0, 8.0]) / 15.25 * 100_000
    assert scipy.stats.chisquare(count, expected).pvalue > 0.001
    places = np.asarray(sample(jax.random.key(5)))
    assert abs(np.bincount(places // 4000) - 2000).max() <= 2  # one out of each part of the sum


# What programs copy.

BIG = 50_021  # a prime: no other array of the program has its size
# As users compile: of the fast emitters' programs (conftest.py) the writes in place are not seen.
AS_USERS = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 10) else {}


def big_operations(program, size):
    """Operations of a compiled program whose result is as large as the buffer, by name, except
    those that move nothing (what names a buffer) and writes in place.
    """
    found, where = collections.Counter(), None
    nothing = ("parameter", "get-tuple-element", "bitcast", "tuple", "while", "constant")
    for line in program.as_text().splitlines():
        if header := re.match(r"^(?:ENTRY )?%?(\S+) \(.*\{$", line):
            where = header[1]
        match = re.match(r"\s*(?:ROOT )?%?\S+ = (\S+) ([\w-]+)\(", line)
        if match is None or match[2] in nothing or "scatter" in where:
            continue
        shapes = [
            np.prod([int(d) for d in s.split(",")]) for s in re.findall(r"\[([\d,]+)\]", match[1])
        ]
        if max(shapes, default=0) >= size and "wrapped_scatter" not in line:
            found[match[2]] += 1
    return found


def loop(kind, interval=500, **kw):
    env = purerl.make_env("CartPole-v1")._replace(truncation_interval=interval)
    config = purerl.DQNConfig(
        prioritized=kind == "prioritized",
        capacity=BIG,
        batch_size=8,
        network=purerl.NetworkConfig(hidden_sizes=(8,)),
        **kw,
    )
    algorithm = purerl.dqn(config, env.action_space)
    return purerl.make_train(algorithm, env, 2000, num_envs=4, warmup=100, updates=2, evaluations=2)


@pytest.mark.parametrize("seeds", [0, 3, 4], ids=["jit", "vmap", "vmap on two devices"])
@pytest.mark.parametrize(
    ("kind", "interval"), [("uniform", 500), ("prioritized", 500), ("uniform", 1)]
)
def test_nothing_as_large_as_the_buffer_is_copied_or_selected(kind, interval, seeds):
    """In the compiled program of a run that goes on: act, add, draw, update, under scan."""
    train = loop(kind, interval, n_step=2)
    advance = lambda state: train.advance(state, 7)  # noqa: E731
    if seeds:
        keys = jax.random.split(jax.random.key(0), seeds)
        state = jax.eval_shape(purerl.vectorize(train.init), keys)
        advance = purerl.vectorize(advance)
    else:
        state = jax.eval_shape(train.init, jax.random.key(0))
    program = jax.jit(advance, donate_argnums=0).lower(state).compile(AS_USERS)
    assert not big_operations(program, BIG // 4)


def test_the_test_of_copies_finds_them():
    """The control: a buffer whose cursor is batched, and one that a select keeps."""
    replay = prioritized(BIG)
    state = filled(replay, 10)

    def kept_by_a_select(state, new):
        added = replay.add(state, new)
        return jax.tree.map(lambda x, y: jnp.where(new["n"][0] > 3, x, y), added, state)

    program = (
        jax.jit(kept_by_a_select, donate_argnums=0).lower(state, items(0, 4)).compile(AS_USERS)
    )
    assert big_operations(program, BIG // 4)
    kept = jax.jit(replay.add, donate_argnums=0).lower(state, items(0, 4)).compile(AS_USERS)
    assert not big_operations(kept, BIG // 4)


def test_the_cursor_stays_unbatched_in_a_run_that_goes_on():
    train = loop("prioritized")
    keys = jax.random.split(jax.random.key(0), 3)
    state = jax.eval_shape(purerl.vectorize(train.init), keys)
    for _ in range(2):
        assert state.replay.steps.iteration.shape == ()
        replay = state.replay.replay
        assert replay.cursor.next.shape == replay.cursor.size.shape == ()
        assert replay.items.words[0].shape[:2] == (3, BIG)
        assert state.learner.clock.iteration.shape == ()
        state, _ = jax.eval_shape(purerl.vectorize(lambda s: train.advance(s, 1)), state)


def operations(function, *args):
    return len(jax.make_jaxpr(function)(*args).jaxpr.eqns)


def test_cost_of_drawing_and_updating_is_logarithmic():
    """Four times the capacity is one more level, and each level the same work."""
    counts = []
    for capacity in (4**4, 4**5, 4**6):
        replay = prioritized(capacity)
        state = jax.eval_shape(replay.init, ITEM)
        index, error = jnp.zeros(8, jnp.int32), jnp.zeros(8)
        draw = operations(lambda s, r=replay: r.sample(s, jax.random.key(0), 8), state)
        counts.append((draw, operations(replay.update_priorities, state, index, error)))
    steps = np.diff(counts, axis=0)
    assert (steps[0] == steps[1]).all()
    assert (steps > 0).all()


# Bad input.


@pytest.mark.parametrize("build", [uniform, prioritized])
@pytest.mark.parametrize("capacity", [0, -1, 1.5, True])
def test_bad_capacity(build, capacity):
    with pytest.raises(ValueError, match=f"{build.__name__}: capacity={capacity}"):
        build(capacity)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("alpha", -0.1),
        ("alpha", 1.1),
        ("beta", -0.1),
        ("beta", 1.1),
        ("eps", -1.0),
        ("alpha", np.nan),
    ],
)
def test_bad_exponents(field, value):
    with pytest.raises(ValueError, match=f"prioritized: {field}={value} is out of range"):
        prioritized(10, **{field: value})


@pytest.mark.parametrize("build", [uniform, prioritized])
def test_items_that_cannot_be_added(build):
    replay = build(4)
    state = replay.init(ITEM)
    with pytest.raises(ValueError, match="add got 5 items at once, wanted at most the capacity, 4"):
        replay.add(state, items(0, 5))
    with pytest.raises(ValueError, match=r"leading axes \[\(2,\), \(3,\)\], wanted \[N, ...\]"):
        replay.add(state, {"x": jnp.zeros((2, 2)), "n": jnp.zeros(3, jnp.int32)})
    with pytest.raises(ValueError, match=r"give a single item an axis: x\[None\]"):
        replay.add(state, ITEM)
