"""Evaluates the integer expressions that name dimensions: ``1 + height*width``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping


class _UnknownError(Exception):
    """A part that cannot be evaluated."""


def _power(base: int, exponent: int) -> int:
    """Sizes are polynomials of low degree; anything else would take forever."""
    if not 0 <= exponent <= 8:
        raise _UnknownError
    return int(base**exponent)


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: _power,
}
_FUNCTIONS: dict[str, Callable[..., int]] = {"min": min, "max": max}


def evaluate(text: str, names: Mapping[str, int]) -> int | None:
    """Value of an expression of integers, names, ``+ - * // **``, min and max.

    None when it holds an unknown name or anything else: nothing is ever executed.
    """
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, names)
    except (SyntaxError, ZeroDivisionError, _UnknownError):
        return None


def _value(node: ast.expr, names: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(number)):
            return number
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id=name), args=list(arguments)) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, names) for argument in arguments))
        case _:
            raise _UnknownError


__all__ = ["evaluate"]
