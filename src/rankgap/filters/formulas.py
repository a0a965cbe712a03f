"""A gain written as a formula in s.

A formula is parsed with `ast` and evaluated node by node. Nothing is passed to `eval`, and only the names below
are ever looked up.
"""

from __future__ import annotations

import ast
import functools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankgap.errors import UserError, unknown

LARGEST = torch.finfo(torch.float32).max  # filters run in float32
_LONGEST = 200  # characters; this also bounds the depth of the tree

_OPERATORS: dict[type[ast.operator], Callable[[Tensor, Tensor], Tensor]] = {
    ast.Add: torch.add,
    ast.Sub: torch.sub,
    ast.Mult: torch.mul,
    ast.Div: torch.div,
    ast.Pow: torch.pow,
}

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "exp": torch.exp,
    "log": torch.log,
    "log1p": torch.log1p,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}

_EXTREMES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"max": torch.maximum, "min": torch.minimum}


def is_expression(spec: str) -> bool:
    """Whether `spec` is meant as a formula: it is `s`, or it is not of the form NAME or NAME:VALUE."""
    return spec == "s" or re.fullmatch(r"\s*|[A-Za-z_]\w*(:.*)?", spec) is None


@dataclass(frozen=True, slots=True)
class Expression:
    """A gain as a formula: numbers, s, + - * / **, and log, log1p, exp, sqrt, tanh, min, max.

    It holds nothing but its text, so it can be pickled and compared.

    Args:
        text: the formula, such as "s/(s+0.1)".

    Example:
        >>> Expression("s/(s+1)")(torch.tensor([1.0, 3.0]))
        tensor([0.5000, 0.7500])
    """

    text: str

    def __call__(self, s: Tensor) -> Tensor:
        """The formula's value, elementwise, in the dtype of `s`.

        Raises:
            UserError: the text is not such a formula; the message says where it departs from one.
        """
        return _value(_tree(self.text), s, self.text).expand_as(s)


@functools.lru_cache(maxsize=256)
def _tree(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise UserError(f"a gain's formula has at most {_LONGEST} characters, but this one has {len(text)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parser's warnings about Python, such as on 1if
            return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise UserError(
            f"gain {text!r} cannot be read as a formula ({error}); expected one such as 's/(s+0.1)'"
        ) from error


def _value(node: ast.expr, s: Tensor, text: str) -> Tensor:
    match node:
        case ast.Name(id="s"):
            return s
        case ast.Name(id=name):
            raise unknown(f"name in gain {text!r}:", name, ["s", *_FUNCTIONS, *_EXTREMES])
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if abs(number) > LARGEST:  # an int may be too large for a float
                raise UserError(f"gain {text!r}: a number in it exceeds the largest float32, {LARGEST:.3g}")
            return torch.full((), float(number), dtype=s.dtype, device=s.device)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, s, text)
        case ast.BinOp(op=ast.BitXor()):
            raise UserError(f"gain {text!r}: write a power as **, not as ^")
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, s, text), _value(right, s, text))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            values = [_value(argument, s, text) for argument in arguments]
            if name in _FUNCTIONS and len(values) == 1:
                return _FUNCTIONS[name](values[0])
            if name in _EXTREMES and len(values) >= 2:
                return functools.reduce(_EXTREMES[name], values)
            if name not in (*_FUNCTIONS, *_EXTREMES):
                raise unknown(f"function in gain {text!r}:", name, [*_FUNCTIONS, *_EXTREMES])
            wanted = "one value" if name in _FUNCTIONS else "two or more values"
            raise UserError(f"gain {text!r}: {name} takes {wanted}, but got {len(values)}")
    raise UserError(
        f"gain {text!r}: {ast.unparse(node)!r} is not allowed; a formula may contain numbers, s, + - * / ** and "
        f"{', '.join([*_FUNCTIONS, *_EXTREMES])}"
    )
