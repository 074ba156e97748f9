"""Equations of a jaxpr: the program that one calls, the axes of a product's operands."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core

from purerl.policies.networks import MATRIX_PRODUCT

Shape = tuple[int, ...]


def inner_program(equation: core.JaxprEqn) -> tuple[Any, Sequence[Any]] | None:
    """The program that an equation calls with its operands, and its constants; None: it calls none.

    Args:
        equation: Such as a jit, a remat, a scan, or a function with a custom derivative.
    """
    called = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "scan"}
    if equation.primitive.name not in called | {"custom_jvp_call", "custom_vjp_call"}:
        return None
    program = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return getattr(program, "jaxpr", program), getattr(program, "consts", ())


def scan_operands(equation: core.JaxprEqn) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many, after them, its carry.

    Args:
        equation: A scan.
    """
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()  # since JAX 0.11
    return len(consts), len(carry)


def shape_of(variable: Any) -> Shape:
    """Of a program's value.

    Args:
        variable: The program's name for it.
    """
    return variable.aval.shape


def dimension_numbers(equation: core.JaxprEqn) -> Any:
    """``((contracted of lhs, of rhs), (batched of lhs, of rhs))`` of a matrix product, else None.

    Args:
        equation: Of any kind.
    """
    if equation.primitive.name == "dot_general":
        return equation.params["dimension_numbers"]
    if equation.params.get("name") == MATRIX_PRODUCT:
        return ((len(shape_of(equation.invars[0])) - 1,), (0,)), ((), ())
    return None


class Axes(NamedTuple):
    """How a product's operands meet.

    Attributes:
        rows: Axes of the weight that are summed over; of a kernel, its pixels', then its channels'.
        columns: Axes of the weight that are left.
        others: The input's axes that are left, in the order of the result's.
        summed: The input's axes that are summed over, in the order of ``rows``.
        features: Axes of the result that are the weight's columns.
    """

    rows: Shape
    columns: Shape
    others: Shape
    summed: Shape
    features: Shape


def product_axes(equation: core.JaxprEqn, weight: int) -> Axes:
    """The axes of a matrix product, or of a convolution.

    Args:
        equation: The product.
        weight: Which operand the weight is.
    """
    if (numbers := dimension_numbers(equation)) is None:
        of_input, kernel, result = equation.params["dimension_numbers"]
        place = {result[i]: of_input[i] for i in range(len(result)) if i != 1}
        others = tuple(place[i] for i in sorted(place))
        return Axes((*kernel[2:], kernel[1]), kernel[:1], others, (of_input[1],), (result[1],))
    summed, batched = numbers
    free = [
        tuple(i for i in range(len(shape_of(v))) if i not in (*summed[side], *batched[side]))
        for side, v in enumerate(equation.invars)
    ]
    start = len(batched[0]) + weight * len(free[0])
    return Axes(
        rows=tuple(summed[weight]),
        columns=free[weight],
        others=(*batched[1 - weight], *free[1 - weight]),
        summed=tuple(summed[1 - weight]),
        features=tuple(range(start, start + len(free[weight]))),
    )
