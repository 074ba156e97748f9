"""Equations of a jaxpr: the program that one calls, the axes of a product's operands."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax.extend import core

from purerl.policies.networks import MATRIX_PRODUCT

Shape = tuple[int, ...]


def walk(jaxpr: core.Jaxpr, consts: Iterable, arguments: Iterable, apply: Callable) -> list[Any]:
    """A program's results, whatever its values are: arrays, or what is known of them.

    Args:
        jaxpr: The program.
        consts: Values of its constants.
        arguments: Values of its arguments.
        apply: ``(i, equation, operands) -> results`` of its i-th equation.
    """
    env = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *arguments), strict=True))
    read = lambda v: v.val if isinstance(v, core.Literal) else env[v]  # noqa: E731
    for i, equation in enumerate(jaxpr.eqns):
        with equation.ctx.manager:
            results = apply(i, equation, [read(v) for v in equation.invars])
        env.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def inner_program(equation: core.JaxprEqn) -> tuple[Any, Sequence[Any]] | None:
    """The program that an equation calls with its operands, and its constants; None: it calls none.

    Args:
        equation: Such as a jit, a remat, a scan, or a function with a custom derivative. One that
            is known as a product counts as an operation.
    """
    called = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "scan"}
    called |= {"custom_jvp_call", "custom_vjp_call"}
    if equation.primitive.name not in called or is_product(equation):
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


def is_product(equation: core.JaxprEqn) -> bool:
    """Whether it is a matrix product or a convolution.

    Args:
        equation: Of any kind.
    """
    convolution = equation.primitive.name == "conv_general_dilated"
    return convolution or dimension_numbers(equation) is not None


class Axes(NamedTuple):
    """How a product's operands meet.

    Attributes:
        rows: Axes of the weight that are summed over; of a kernel, its pixels', then its channels'.
        columns: Axes of the weight that are left.
        inputs: Axes of the input: those that are in the result, as in ``places``; then those that
            are summed over, as in ``rows``. Of a convolution only the batch's.
        places: Axes of the result that are not of features; of a convolution, the batch's is first.
        features: Axes of the result that are ``columns``.
    """

    rows: Shape
    columns: Shape
    inputs: Shape
    places: Shape
    features: Shape


def product_axes(equation: core.JaxprEqn, weight: int) -> Axes:
    """The axes of a matrix product, or of a convolution.

    Args:
        equation: The product.
        weight: Which operand the weight is.
    """
    if (numbers := dimension_numbers(equation)) is None:
        of_input, kernel, (batch, features, *pixels) = equation.params["dimension_numbers"]
        rows, places = (*kernel[2:], kernel[1]), (batch, *pixels)
        return Axes(rows, kernel[:1], of_input[:1], places, (features,))
    summed, batched = numbers
    free = [
        tuple(i for i in range(len(shape_of(v))) if i not in (*summed[side], *batched[side]))
        for side, v in enumerate(equation.invars)
    ]
    start = len(batched[0]) + weight * len(free[0])
    features = range(start, start + len(free[weight]))
    result = range(len(shape_of(equation.outvars[0])))
    return Axes(
        rows=tuple(summed[weight]),
        columns=free[weight],
        inputs=(*batched[1 - weight], *free[1 - weight], *summed[1 - weight]),
        places=tuple(i for i in result if i not in features),
        features=tuple(features),
    )
