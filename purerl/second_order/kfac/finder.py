"""Which products of a program are layers: parameters followed through its jaxpr, nothing computed.

Each value of the program is a constant, a :class:`Weight`, which is made of parameters alone, or
:class:`Data`, which depends on the input. From where its entries come is the value's layout: sizes
and strides, which transpositions, reshapes and broadcasts rearrange.
"""

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import core, source_info_util

from purerl.second_order.kfac.equations import (
    Shape,
    inner_program,
    is_product,
    product_axes,
    scan_operands,
    shape_of,
    walk,
)

# Sizes and strides of the parts that an axis is made of, slowest first; an entry's indices times
# the strides add up to its place in a flat array, and stride 0 repeats entries. A matrix [2, 3] has
# the axes ((2, 3),) and ((3, 1),); its transpose, flattened, one of two parts: ((3, 1), (2, 3)).
Axis = tuple[tuple[int, int], ...]
Layout = tuple[Axis, ...]
Path = tuple[int, ...]  # index of an equation, then of one in its inner program, and so on

SAMPLE = -1  # stride of the samples, told by its sign from those of features
MOVES = {"transpose", "broadcast_in_dim", "reshape", "squeeze"}
MOVES |= {"convert_element_type", "copy", "copy_p", "reduce_precision"}


class Weight(NamedTuple):
    """What is made of parameters alone.

    Attributes:
        names: Of the parameters.
        layout: Places of the entries in the one parameter that this is a view of, flattened. None:
            it is computed.
        where: The line of the source that computes it.
    """

    names: frozenset[str]
    layout: Layout | None
    where: str = ""


class Data(NamedTuple):
    """What depends on the input.

    Attributes:
        layout: A part of stride ``SAMPLE`` is the samples; parts of positive strides are a
            product's features, and their strides those of the features' numbers.
        product: The path of that product; None: this is no product's result.
    """

    layout: Layout = ()
    product: Path | None = None


class Use(NamedTuple):
    """One use of a parameter together with the input.

    Attributes:
        kind: ``product``, ``bias`` (of a product) or ``other``, such as the scale of a LayerNorm.
        layout: Places in the flattened parameter of the matrix ``[d, k]``, or of the bias ``[k]``.
        path: Of the product: to its equation, and at last which operand the weight is.
        turns: Lengths of the scans that the product is within.
        places: Shape of the product's result without its features, split such that samples have an
            axis of their own; that one's size is ``SAMPLE`` here, for any number of samples.
        reason: Why K-FAC cannot factor the parameter; empty: this use does not forbid it.
        where: The line of the source.
    """

    kind: str
    layout: Layout = ()
    path: Path = ()
    turns: Shape = ()
    places: Shape = ()
    reason: str = ""
    where: str = ""


class Finder:
    """Follows the parameters through a program.

    Attributes:
        samples: Size of the axis of samples, of which other axes are no multiples.
        uses: Of each parameter, by the paths of the equations.
        readers: Of each product's result, paths of the equations that do more than move it; the
            caller of the program is ``()``.
    """

    def __init__(self, samples: int):
        self.samples = samples
        self.uses: dict[str, dict[Path, Use]] = defaultdict(dict)
        self.readers: dict[Path | None, set[Path]] = defaultdict(set)

    def run(self, jaxpr: core.Jaxpr, kinds: Sequence[Any], path: Path, turns: Shape) -> list[Any]:
        """The kinds of a program's results.

        Args:
            jaxpr: The program.
            kinds: Of its arguments; None: a constant.
            path: To it.
            turns: Lengths of the scans around it.
        """
        consts = [None] * len(jaxpr.constvars)
        return walk(jaxpr, consts, kinds, lambda i, e, of: self._equation(e, of, (*path, i), turns))

    def made(self, equation: Any, path: Path, variable: Any, *kinds: Any) -> Any:
        """The kind of what is computed of some kinds.

        Args:
            equation: That computes it.
            path: Of the equation.
            variable: The program's name for it, whose axes tell by their sizes where samples are.
            kinds: Of the operands. An axis as long as one with samples has them in that order.
        """
        names = frozenset[str]().union(*(kind.names for kind in kinds if isinstance(kind, Weight)))
        data = [kind for kind in kinds if isinstance(kind, Data)]
        if not data:
            return Weight(names, None, _where(equation)) if names else None
        axes: dict[int, Axis] = {self.samples: ((self.samples, SAMPLE),)}
        for kind in data:
            self.readers[kind.product].add(path)
            for axis in kind.layout:
                if any(stride < 0 for _, stride in axis):
                    plain = tuple((n, min(stride, 0)) for n, stride in axis)
                    axes.setdefault(math.prod(n for n, _ in axis), plain)
        return Data(tuple(axes.get(n, ((n, 0),)) for n in shape_of(variable)))

    def _equation(self, equation: Any, kinds: list[Any], path: Path, turns: Shape) -> list[Any]:
        data = [kind for kind in kinds if isinstance(kind, Data)]
        weights = [kind for kind in kinds if isinstance(kind, Weight)]
        name = equation.primitive.name
        if not data and (not weights or name == "stop_gradient"):
            return [None] * len(equation.outvars)
        if name == "scan":
            return self._scan(equation, kinds, path, turns)
        if (program := inner_program(equation)) is not None:
            return self.run(program[0], kinds, path, turns)
        if name in MOVES and (moved := _moved(equation, kinds[0])):
            return [moved]
        results = [self.made(equation, path, v, *kinds) for v in equation.outvars]
        for weight in weights if data else ():
            if is_product(equation):
                use, *results = self._product(equation, kinds, results[0], path, turns)
            elif name in ("add", "add_any") and weight.layout is not None:
                use = _bias(weight.layout, data[0], shape_of(equation.outvars[0]))
            else:
                inside = name in ("cond", "while")
                use = Use("other", reason=f"it is used within lax.{name}" if inside else "")
            for each in weight.names:
                self.uses[each][path] = use._replace(where=_where(equation))
        return results

    def _product(self, equation, kinds, result, path, turns) -> tuple[Use, Data]:
        """The use of a weight in a product, and the kind of the result: ``result`` if refused."""
        operand = int(isinstance(kinds[1], Weight))
        weight, data, options = kinds[operand], kinds[1 - operand], equation.params
        sizes, inputs = (shape_of(equation.invars[i]) for i in (operand, 1 - operand))
        axes = product_axes(equation, operand)
        matrix = (*axes.rows, *axes.columns)
        marked: dict[int, Axis] = {
            i: ((n, 0),) for i, n in enumerate(shape_of(equation.outvars[0]))
        }
        for i, j in zip(axes.places, axes.inputs, strict=False):
            marked[i] = tuple((n, min(stride, 0)) for n, stride in data.layout[j])
        places = tuple(SAMPLE if stride else n for i in axes.places for n, stride in marked[i])
        parts = itertools.chain(*data.layout)
        samples = [(n, stride) for n, stride in parts if stride < 0 or n % self.samples == 0]
        if weight.layout is None:
            reason = f"it is not multiplied as it is, but what is made of it at {weight.where}"
        elif options.get("feature_group_count", 1) * options.get("batch_group_count", 1) > 1:
            reason = "it is the kernel of a convolution with groups"
        elif any((i in matrix) != (s > 0) for i, axis in enumerate(weight.layout) for _, s in axis):
            reason = "it is many matrices, each for another part of the input"
        elif samples != [(self.samples, SAMPLE)] or SAMPLE not in places:
            names = ", ".join("B" if n == self.samples else str(n) for n in inputs)
            reason = f"it is multiplied with [{names}], in which samples have no axis of their own"
        else:
            d, k = (math.prod(sizes[i] for i in part) for part in (axes.rows, axes.columns))
            layout = regroup((weight.layout[i] for i in matrix), (d, k))
            features = regroup([((k, 1),)], [sizes[i] for i in axes.columns])
            marked |= zip(axes.features, features, strict=True)
            use = Use("product", layout, (*path, operand), turns, places)
            return use, Data(tuple(marked.values()), use.path)
        return Use("other", reason=reason), result

    def _scan(self, equation: Any, kinds: list[Any], path: Path, turns: Shape) -> list[Any]:
        """The body's kinds, those of its carry joined over the turns."""
        program, _ = inner_program(equation)  # type: ignore[misc]
        consts, carry = scan_operands(equation)
        split, turns = consts + carry, (*turns, equation.params["length"])
        made = functools.partial(self.made, equation, path)
        join = lambda v, one, other: one if one == other else made(v, one, other)  # noqa: E731
        slices = list(map(made, program.invars[split:], kinds[split:]))

        def run(finder, state):
            return finder.run(program, [*kinds[:consts], *state, *slices], path, turns)

        state, joined = kinds[consts:split], None
        while joined != state:  # by other finders: these uses are of some turns only
            results = run(Finder(self.samples), state)
            joined, state = state, list(map(join, equation.outvars, state, results))
        results = run(self, state)
        return [*state, *map(made, equation.outvars[carry:], results[carry:])]


def _bias(layout: Layout, data: Data, shape: Shape) -> Use:
    """The use of a parameter that is added to data: a bias, if each feature has one entry of it."""
    parts = [part for axis in data.layout for part in axis]
    axes = regroup(_repeated(layout, range(len(layout)), shape), [n for n, _ in parts])
    met = [(s, axis) for (_, s), axis in zip(parts, axes or (), strict=False)]
    if axes is None or any((s > 0) != (t > 0) for s, axis in met for _, t in axis):
        return Use("other")
    features = [axis for s, axis in sorted(met, reverse=True) if s > 0]
    return Use("bias", (tuple(itertools.chain(*features)),), data.product or ())


def _repeated(layout: Layout, axes: Sequence[int], shape: Shape) -> Layout:
    """The layout of an array that is broadcast to a shape, where its axes become these."""
    kept = dict(zip(axes, layout, strict=True))
    return tuple(kept.get(i) or ((n, 0),) for i, n in enumerate(shape))


def _moved(equation: Any, kind: Any) -> Any:
    """The kind of an operand whose entries are rearranged; None: no layout describes it."""
    layout, params, shape = kind.layout, equation.params, shape_of(equation.outvars[0])
    if layout is None:
        return kind
    if "permutation" in params:
        layout = [layout[i] for i in params["permutation"]]
    if "broadcast_dimensions" in params:
        layout = _repeated(layout, params["broadcast_dimensions"], shape)
    layout = regroup(layout, shape)
    return None if layout is None else kind._replace(layout=layout)


def regroup(layout: Iterable[Axis], shape: Sequence[int]) -> Any:
    """The layout of an array that is reshaped.

    Args:
        layout: Of the array, with any axes.
        shape: The new one; axes after the array's last entry repeat it.

    Returns:
        The layout, its parts merged where they can be, so that equal ones compare equal; None: an
        axis would cut a part where it cannot be divided.

    Example:
        >>> regroup([((6, 1),)], (2, 3)), regroup([((2, 3),), ((3, 1),)], (6,))
        ((((2, 3),), ((3, 1),)), (((6, 1),),))
    """
    parts: list[tuple[int, int]] = []
    for size, stride in itertools.chain(*layout):
        if parts and parts[-1][1] == size * stride:
            parts[-1] = parts[-1][0] * size, stride
        elif size > 1:
            parts.append((size, stride))
    axes = []
    for n in shape:
        axis = []
        while n > 1:
            size, stride = parts.pop(0) if parts else (n, 0)
            taken = math.gcd(n, size)
            if taken < min(n, size):
                return None
            axis.append((taken, stride * (size // taken)))
            if size > taken:
                parts.insert(0, (size // taken, stride))
            n //= taken
        axes.append(tuple(axis))
    return None if parts else tuple(axes)


def _where(equation: core.JaxprEqn) -> str:
    """The line of the source that made an equation, where JAX knows it."""
    return source_info_util.summarize(equation.source_info)
