"""Expressions of a configuration, such as ``sqrt(pt_j1**2 + mass_j1**2)``: parsed by formulate, evaluated with numpy.

Both spellings that formulate parses are taken, NumExpr's and TTreeFormula's. Only the operators and functions listed
here are known; no text is evaluated as Python.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import formulate
import numpy as np
import numpy.typing as npt
from formulate.AST import AST, BinaryOperator, Call, Literal, Symbol, UnaryOperator

from drapes_hep.errors import ConfigError

__all__ = ["FUNCTIONS", "evaluate", "parse_expression", "variables"]

FloatArray = npt.NDArray[np.float64]

_LONGEST = 1000
"""Characters of an expression: its tree is walked by recursion."""

_UNARY: Mapping[str, Callable[..., Any]] = {"pos": np.positive, "neg": np.negative, "inv": np.logical_not}
_BINARY: Mapping[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "mod": np.mod,
    "pow": np.power,
    "lt": np.less,
    "gt": np.greater,
    "lte": np.less_equal,
    "gte": np.greater_equal,
    "eq": np.equal,
    "neq": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
}
_ONE = (
    *("sqrt", "exp", "expm1", "log", "log10", "log2", "log1p", "ceil", "floor"),
    *("sin", "cos", "tan", "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh"),
)
FUNCTIONS: Mapping[str, tuple[int, Callable[..., Any]]] = {
    **{name: (1, getattr(np, name)) for name in _ONE},
    "abs": (1, np.abs),
    "pow": (2, np.power),
    "arctan2": (2, np.arctan2),
    "tmath_min": (2, np.minimum),
    "tmath_max": (2, np.maximum),
    "where": (3, np.where),
}
"""Functions by formulate's names, with the number of their arguments."""

_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "exp1": math.e, "true": 1.0, "false": 0.0}
_SHOWN = {"tmath_min": "TMath::Min", "tmath_max": "TMath::Max", "xor": "^", "multi_out": ":"}


@functools.lru_cache(256)
def parse_expression(text: str) -> AST:
    """Parse an expression.

    Parameters
    ----------
    text : str

    Returns
    -------
    AST
        Of operators, functions and constants that :func:`evaluate` knows.

    Raises
    ------
    ConfigError
        It cannot be parsed, is too long, or holds something else.
    """
    if len(text) > _LONGEST:
        raise ConfigError(f"an expression of {len(text)} characters; at most {_LONGEST}")
    try:
        try:
            tree = formulate.from_numexpr(text)
        except (formulate.ParseError, ValueError, SyntaxError):
            tree = formulate.from_root(text)
    except (formulate.ParseError, ValueError, SyntaxError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^~")]
        raise ConfigError(f"'{text}' cannot be parsed ({lines[0] if lines else 'it is empty'})") from None
    _check(tree, text)
    return tree


def _check(tree: AST, text: str) -> None:
    """Refuse what :func:`evaluate` does not know."""

    def refuse(what: str) -> None:
        raise ConfigError(f"'{text}': {what}")

    if isinstance(tree, BinaryOperator):
        if tree.operator == "xor":
            refuse("'^' is ambiguous: write ** for a power")
        if tree.operator not in _BINARY:
            refuse(f"unknown operator '{_SHOWN.get(tree.operator, tree.operator)}'")
    elif isinstance(tree, UnaryOperator):
        if tree.operator not in _UNARY:
            refuse(f"unknown operator '{tree.operator}'")
    elif isinstance(tree, Call):
        function = _SHOWN.get(tree.function, tree.function)
        if tree.function not in FUNCTIONS:
            functions = ", ".join(_SHOWN.get(name, name) for name in FUNCTIONS)
            refuse(f"unknown function '{function}'; available: {functions}")
        arity = FUNCTIONS[tree.function][0]
        if len(tree.arguments) != arity:
            refuse(f"{function} takes {arity} argument{'s' if arity > 1 else ''}, not {len(tree.arguments)}")
    elif isinstance(tree, Symbol):
        if tree.name in tree.named_constants and tree.name not in _CONSTANTS:
            refuse(f"unknown constant '{tree.name}'; available: {', '.join(_CONSTANTS)}")
    elif not isinstance(tree, Literal):
        refuse("brackets are not supported: columns hold one number per event")
    for child in _children(tree):
        _check(child, text)


def _children(tree: AST) -> tuple[AST, ...]:
    if isinstance(tree, BinaryOperator):
        return tree.left, tree.right
    if isinstance(tree, UnaryOperator):
        return (tree.operand,)
    return tree.arguments if isinstance(tree, Call) else ()


def variables(text: str) -> tuple[str, ...]:
    """Return the columns that an expression names, in the order in which it does; raises ConfigError."""
    return tuple(parse_expression(text).variables)


def evaluate(text: str, column: Callable[[str], FloatArray], length: int) -> FloatArray:
    """Evaluate an expression.

    Parameters
    ----------
    text : str
    column : callable
        A name to its values, shape (n,).
    length : int
        n.

    Returns
    -------
    array of float64, shape (n,)
        NaN where the result is not a finite number.

    Raises
    ------
    ConfigError
        As :func:`parse_expression` and ``column``.
    """

    def value(tree: Any) -> FloatArray:
        if isinstance(tree, Literal):
            return np.asarray(tree.value, dtype=np.float64)
        if isinstance(tree, Symbol):
            constant = tree.name in tree.named_constants
            return np.asarray(_CONSTANTS[tree.name], dtype=np.float64) if constant else column(tree.name)
        values = [value(child) for child in _children(tree)]
        if isinstance(tree, BinaryOperator):
            result = _BINARY[tree.operator](*values)
        elif isinstance(tree, UnaryOperator):
            result = _UNARY[tree.operator](*values)
        else:
            result = FUNCTIONS[tree.function][1](*values)
        # a comparison is 0 or 1: numpy would add two booleans to one
        return np.asarray(result, dtype=np.float64)

    with np.errstate(all="ignore"):
        result = value(parse_expression(text))
    return np.where(np.isfinite(result), result, np.nan) * np.ones(length)
