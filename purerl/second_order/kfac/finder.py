"""Which products of a program are layers: parameters followed through its jaxpr, nothing computed.

Each value of the program is a constant, a :class:`View` of one parameter, what is :class:`Made` of
parameters alone otherwise, or :class:`Data`, which depends on the input.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core, source_info_util

from purerl.second_order.kfac.equations import (
    Axes,
    Shape,
    dimension_numbers,
    inner_program,
    product_axes,
    scan_operands,
    shape_of,
)

Step = tuple[str, tuple[int, ...]]  # "reshape" or "transpose", and its argument
Path = tuple[int, ...]  # index of an equation, then of one in its inner program, and so on


class View(NamedTuple):
    """One parameter, its entries in another order, perhaps repeated along new axes.

    Attributes:
        name: Of the parameter.
        steps: From it to an array without axes of size 1.
        axes: Of that array, for each axis of the value; None: repeated, or of size 1.
    """

    name: str
    steps: tuple[Step, ...]
    axes: tuple[int | None, ...]


class Made(NamedTuple):
    """What is computed of parameters alone, and is no view of one."""

    names: frozenset[str]
    where: str


class Data(NamedTuple):
    """What depends on the input.

    Attributes:
        before: Where samples share an axis with something that varies slower, how often they
            repeat in it; None: not known.
        product: Whose result this is, up to the order of its axes; None: of none.
        features: The axes of that result's features.
    """

    before: int | None = 1
    product: int | None = None
    features: Shape = ()


class Product(NamedTuple):
    """An equation that multiplies a weight with what depends on the input.

    Attributes:
        path: Of the equation.
        turns: Lengths of the scans that it is within.
        weight: Which operand the weight is, 0 or 1.
        batch: Place of the axis of samples among the result's axes without the features.
        before: See :class:`Data`.
        locations: Of a sample, at all turns.
    """

    path: Path
    turns: Shape
    weight: int
    batch: int
    before: int
    locations: int


class Use(NamedTuple):
    """One use of a parameter together with the input.

    Attributes:
        kind: ``product``, ``bias`` (of a product), ``bad`` (a product that is no layer) or
            ``other`` (of another operation, such as the scale of a LayerNorm).
        where: In the source.
        product: Index of the product, of the first two.
        steps: From the parameter to the matrix ``[d, k]``, or to the bias ``[k]``.
        shape: ``(d, k)`` or ``(k,)``.
        reason: Of a bad one.
    """

    kind: str
    where: str
    product: int = -1
    steps: tuple[Step, ...] = ()
    shape: Shape = ()
    reason: str = ""


@dataclasses.dataclass
class Finder:
    """Follows the parameters through a program.

    Attributes:
        samples: Size of the axis of samples, of which other axes are no multiples.
        products: In the order of the program.
        uses: Of each parameter.
    """

    samples: int
    products: list[Product] = dataclasses.field(default_factory=list)
    uses: dict[str, list[Use]] = dataclasses.field(default_factory=dict)

    def run(
        self, jaxpr: core.Jaxpr, kinds: Sequence[Any], path: Path = (), turns: Shape = ()
    ) -> list[Any]:
        """The kinds of a program's results.

        Args:
            jaxpr: The program.
            kinds: Of its arguments; None: a constant.
            path: To it.
            turns: Lengths of the scans around it.
        """
        env = dict(zip(jaxpr.invars, kinds, strict=True))
        variables = [v for e in jaxpr.eqns for v in e.invars] + list(jaxpr.outvars)
        uses = Counter(v for v in variables if not isinstance(v, core.Literal))

        def read(v):
            return None if isinstance(v, core.Literal) else env.get(v)

        for i, equation in enumerate(jaxpr.eqns):
            operands = [read(v) for v in equation.invars]
            results = self._equation(equation, operands, (*path, i), turns)
            for v, kind in zip(equation.outvars, results, strict=True):
                if isinstance(kind, Data) and uses[v] != 1:  # what else uses it misses the bias
                    kind = Data(kind.before)
                env[v] = kind
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, equation, kinds, path, turns) -> list[Any]:
        data = [kind for kind in kinds if isinstance(kind, Data)]
        weights = [kind for kind in kinds if isinstance(kind, View | Made)]
        name, count = equation.primitive.name, len(equation.outvars)
        if not data and (not weights or name == "stop_gradient"):
            return [None] * count
        if dimension_numbers(equation) is not None or name == "conv_general_dilated":
            if data and weights:
                return [self._product(equation, kinds, path, turns)]
        elif name == "scan":
            return self._scan(equation, kinds, path, turns)
        elif (program := inner_program(equation)) is not None:
            return self.run(program[0], kinds, path, turns)
        elif len(kinds) == 1 and (moved := self._moved(equation, kinds[0])) is not None:
            return [moved]
        elif name in ("add", "add_any") and data and weights and self._bias(equation, kinds):
            return [Data(data[0].before)]
        if not data:
            return [Made(frozenset().union(*map(_names, weights)), _where(equation))] * count
        inside = name in ("cond", "while")
        for weight in weights:
            self._refuse(weight, equation, f"it is used within lax.{name}" if inside else "")
        return [Data(self._before(equation, kinds, v)) for v in equation.outvars]

    def _refuse(self, weight: View | Made, equation: Any, reason: str) -> None:
        """Notes a use that is no layer; without a reason one that needs none."""
        use = Use("bad" if reason else "other", _where(equation), reason=reason)
        for name in _names(weight):
            self.uses.setdefault(name, []).append(use)

    def _moved(self, equation: Any, kind: Any) -> Any:
        """The operand with its axes elsewhere; None: the equation does something else."""
        name, params = equation.primitive.name, equation.params
        old, new = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
        if name in ("convert_element_type", "copy", "copy_p", "reduce_precision"):
            where: list[int | None] = list(range(len(old)))
        elif name == "transpose":
            where = [params["permutation"].index(i) for i in range(len(old))]
        elif name == "broadcast_in_dim":
            axes = params["broadcast_dimensions"]
            where = [j if old[i] == new[j] else None for i, j in enumerate(axes)]
        elif name in ("reshape", "squeeze"):
            where = _kept_axes(old, new)
        else:
            return None
        if isinstance(kind, View):
            return _moved_view(kind, old, new, where, _where(equation))
        return self._moved_data(kind, old, new, where) if isinstance(kind, Data) else kind

    def _moved_data(self, kind: Data, old: Shape, new: Shape, where: list[int | None]) -> Data:
        features = [where[i] for i in kind.features if old[i] > 1]
        before, axis, found = kind.before, self._shared(old), self._shared(new)
        if len(axis) == len(found) == 1 and before is not None:
            slower, outside = math.prod(old[: axis[0]]) * before, math.prod(new[: found[0]])
            before = slower // outside if slower % outside == 0 else None
        if kind.product is None or None in features:
            return Data(before)
        return Data(before, kind.product, tuple(j for j in features if j is not None))

    def _shared(self, shape: Shape) -> list[int]:
        """The axes along which samples are."""
        return [i for i, n in enumerate(shape) if n and n % self.samples == 0]

    def _before(self, equation: Any, kinds: Sequence[Any], result: Any) -> int | None:
        """Of a result: that of the operand which has the same axis of samples."""
        shape = shape_of(result)
        sizes = {shape[i] for i in self._shared(shape)}
        if sizes <= {self.samples}:
            return 1
        for v, kind in zip(equation.invars, kinds, strict=True):
            if isinstance(kind, Data) and sizes <= set(shape_of(v)):
                return kind.before
        return None

    def _product(self, equation: Any, kinds: Sequence[Any], path: Path, turns: Shape) -> Data:
        weight = next(i for i, kind in enumerate(kinds) if isinstance(kind, View | Made))
        view, inputs = kinds[weight], shape_of(equation.invars[1 - weight])
        axes = product_axes(equation, weight)
        before = self._before(equation, kinds, equation.outvars[0])
        batch = [n for n, i in enumerate(axes.others) if i in self._shared(inputs)]
        if reason := self._unfit(equation, view, weight, axes):
            self._refuse(view, equation, reason)
            return Data(before)
        if len(batch) != 1 or before is None or {*axes.summed} & {*self._shared(inputs)}:
            shape = ", ".join("B" if n == self.samples else str(n) for n in inputs)
            reason = f"it is multiplied with [{shape}], in which samples have no axis of their own"
            self._refuse(view, equation, reason)
            return Data(before)
        size = shape_of(equation.invars[weight])
        size = tuple(math.prod(size[i] for i in part) for part in (axes.rows, axes.columns))
        order = tuple(view.axes[i] for i in (*axes.rows, *axes.columns) if view.axes[i] is not None)
        steps = (*view.steps, ("transpose", order), ("reshape", size))
        use = Use("product", _where(equation), len(self.products), steps, size)
        self.uses.setdefault(view.name, []).append(use)
        result = shape_of(equation.outvars[0])
        places = [n for i, n in enumerate(result) if i not in axes.features]
        locations = math.prod((*turns, *places)) // self.samples
        self.products.append(Product(path, turns, weight, batch[0], before, locations))
        return Data(before, use.product, axes.features)

    def _unfit(self, equation: Any, view: View | Made, weight: int, axes: Axes) -> str:
        """Why an operand is not one matrix for all locations; empty: it is."""
        shape, options = shape_of(equation.invars[weight]), equation.params
        if isinstance(view, Made):
            return f"it is not multiplied as it is, but what is made of it at {view.where}"
        if options.get("feature_group_count", 1) * options.get("batch_group_count", 1) > 1:
            return "it is the kernel of a convolution with groups"
        one = [i for i in (*axes.rows, *axes.columns) if view.axes[i] is not None or shape[i] == 1]
        if len(one) < len(axes.rows + axes.columns) or any(
            axis is not None for i, axis in enumerate(view.axes) if i not in one
        ):
            return "it is many matrices, each for another part of the input"
        return ""

    def _bias(self, equation: Any, kinds: Sequence[Any]) -> bool:
        """Whether a parameter is added to a product's features, one entry to each; notes it."""
        data = next(kind for kind in kinds if isinstance(kind, Data))
        view = next(kind for kind in kinds if not isinstance(kind, Data))
        if data.product is None or not isinstance(view, View):
            return False
        shape = shape_of(equation.outvars[0])
        axes = [view.axes[i] for i in data.features if shape[i] > 1]
        if None in axes or len(axes) != sum(axis is not None for axis in view.axes):
            return False
        size = (math.prod(shape[i] for i in data.features),)
        steps = (
            *view.steps,
            ("transpose", tuple(x for x in axes if x is not None)),
            ("reshape", size),
        )
        use = Use("bias", _where(equation), data.product, steps, size)
        self.uses.setdefault(view.name, []).append(use)
        return True

    def _scan(self, equation: Any, kinds: Sequence[Any], path: Path, turns: Shape) -> list[Any]:
        """The body's kinds, those of its carry joined over the turns."""
        program, _ = inner_program(equation)  # type: ignore[misc]
        consts, carry = scan_operands(equation)
        state = list(kinds[consts : consts + carry])
        slices = [_sliced(kind, _where(equation)) for kind in kinds[consts + carry :]]
        turns = (*turns, equation.params["length"])
        while True:
            before = list(self.products), {name: list(uses) for name, uses in self.uses.items()}
            results = self.run(program, [*kinds[:consts], *state, *slices], path, turns)
            joined = [_join(*pair) for pair in zip(state, results, strict=False)]
            if joined == state:
                stacked = [_sliced(kind, _where(equation)) for kind in results[carry:]]
                return [_sliced(k, "") if isinstance(k, Data) else k for k in state] + stacked
            state, (self.products, self.uses) = joined, before


def _kept_axes(old: Shape, new: Shape) -> list[int | None]:
    """Where a reshape leaves each axis; None: it is merged, split or of size 1."""
    places = {(math.prod(new[:j]), n): j for j, n in enumerate(new) if n > 1}
    return [places.get((math.prod(old[:i]), n)) for i, n in enumerate(old)]


def _moved_view(
    view: View, old: Shape, new: Shape, where: list[int | None], source: str
) -> View | Made:
    kept = {i: axis for i, axis in enumerate(view.axes) if axis is not None}
    axes: list[int | None] = [None] * len(new)
    if all(where[i] is not None for i in kept):
        for i, axis in kept.items():
            axes[where[i]] = axis  # type: ignore[index]
        return view._replace(axes=tuple(axes))
    if any(n > 1 and i not in kept for i, n in enumerate(old)):
        return Made(frozenset({view.name}), source)
    squeezed = tuple(n for n in new if n > 1)
    for axis, j in enumerate(j for j, n in enumerate(new) if n > 1):
        axes[j] = axis
    steps = (*view.steps, ("transpose", tuple(kept.values())), ("reshape", squeezed))
    return View(view.name, steps, tuple(axes))


def _names(kind: View | Made) -> frozenset[str]:
    return kind.names if isinstance(kind, Made) else frozenset({kind.name})


def _sliced(kind: Any, where: str) -> Any:
    """What a scan's body sees of a stack, or leaves in one."""
    if isinstance(kind, View):
        return Made(frozenset({kind.name}), where)
    return Data(kind.before) if isinstance(kind, Data) else kind


def _join(one: Any, other: Any) -> Any:
    """A kind that covers both."""
    if one == other or other is None:
        return one
    if one is None and not isinstance(other, Data):
        return _sliced(other, "a scan's carry")
    befores = {kind.before for kind in (one, other) if isinstance(kind, Data)}
    if befores:
        return Data(befores.pop() if len(befores) == 1 else None)
    return Made(_names(one) | _names(other), "a scan's carry")


def _where(equation: core.JaxprEqn) -> str:
    """The line of the source that made an equation, where JAX knows it."""
    return source_info_util.summarize(equation.source_info)
