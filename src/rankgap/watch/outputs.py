"""What a module's output holds: its tensors, and the views of a step in them.

A view is (N, D), or (B, T, D) if each image has tokens.

Shapes: V views, B images, T tokens of an image, N rows, D columns, H x W positions of a map.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import debug_unwrap

from rankgap.choices import Side
from rankgap.errors import UserError, unknown
from rankgap.spectra.float64 import at_least_float32
from rankgap.spectra.pair import SIDES

Layout = Literal["n d", "v n d", "b t d"]
Then = Callable[[Any], Any]

MOST_VIEWS = 16  # of a step; a longer first dimension counts images


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputReader:
    """Finds what is read in the outputs of one branch.

    Args:
        name: the branch's module, for messages.
        layout: what the dimensions of an output are: "n d" rows, "v n d" views, "b t d" tokens of images. None
            takes two dimensions as rows, and three as `three` says. Four or more are a map (B, D, H, W), or
            (B, H, W, D) with "b t d", whose positions are tokens; with a single position its images are rows.
        select: the key, attribute or index of the tensor, if the output holds several; "heads.-1" goes deeper.
        stacked: number of views in one output, one after the other.
        then: applied to the tensor of an output, or to all tensors of a list: to a copy in float32 or better,
            without gradient.
        late: apply `then` when the step ends, and not right after the module gave the output.
        three: the layout of three dimensions if none was chosen; None: up to `MOST_VIEWS` are views.
        say: called with a remark on the output.

    Raises:
        UserError: an option has a wrong value.
    """

    name: str
    layout: Layout | None = None
    select: str | int | None = None
    stacked: int = 1
    then: Then | None = None
    late: bool = False
    three: Layout | None = None
    say: Callable[[str], None] = print

    def __post_init__(self) -> None:
        if self.layout is not None and self.layout not in get_args(Layout):
            raise unknown("layout", str(self.layout), get_args(Layout))
        if not isinstance(self.stacked, int) or self.stacked < 1:
            raise UserError(f"stacked must be 1 or more, got {self.stacked}")
        if self.then is not None and not callable(self.then):
            raise UserError(f"then takes a function for each branch (or None), got {self.then!r:.60}")

    def tensors(self, output: Any) -> Sequence[Tensor]:
        """What is to be read of an output, detached: a list of tensors if it is a list, otherwise one in a tuple.

        Raises:
            UserError: there is none, or `then` gave none.
        """
        output = self.selected(output)
        found = _read_from(output)
        if found is None:
            raise UserError(
                f"{self.name} gives {_described(output)}, which holds no batch of floating-point numbers: name "
                "another module, choose a tensor with select=, or call update"
            )
        parts = found if isinstance(found, list) else (found,)
        return parts if self.late else self._followed(parts)

    def selected(self, output: Any) -> Any:
        """What `select` names in an output.

        Raises:
            UserError: the output has no such item.
        """
        return output if self.select is None else _selected(output, self.select, self.name)

    def views(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """The views in what `tensors` gave, each (N, D) or tokens (B, T, D).

        Raises:
            UserError: a tensor does not have the layout, or `then` gave none.
        """
        return [view for z in (self._followed(parts) if self.late else parts) for view in self._views_of(z)]

    @torch.no_grad()
    def _followed(self, parts: Sequence[Tensor]) -> Sequence[Tensor]:
        """What `then` makes of the parts of an output."""
        if self.then is None:
            return parts
        with torch.random.fork_rng([parts[0].device] if parts[0].is_cuda else []):
            result = self.then([_copy(z) for z in parts] if isinstance(parts, list) else _copy(parts[0]))
        if (found := _read_from(result)) is None:
            raise UserError(f"then gave {_described(result)} for {self.name}: return a batch of numbers")
        return found if isinstance(found, list) else (found,)

    def _views_of(self, z: Tensor) -> Iterator[Tensor]:
        if z.ndim > 3:
            z = z.flatten(1, -2) if self._ends_in_channels(z) else z.flatten(2).mT  # (B, H W, D)
            z = z[:, 0] if z.shape[1] == 1 else z
            layout: Layout = "n d" if z.ndim == 2 else "b t d"
        else:
            layout = self.layout or ("n d" if z.ndim == 2 else self._layout_of_three(z))
        if z.ndim == 2 and layout == "b t d":
            raise UserError(f"{self.name} gives {tuple(z.shape)}, but the layout 'b t d' has three dimensions")
        for part in z if z.ndim == 3 and layout == "v n d" else [z.flatten(0, -2) if layout == "n d" else z]:
            yield from part.chunk(self.stacked) if len(part) % self.stacked == 0 else [part]

    def _ends_in_channels(self, z: Tensor) -> bool:
        """Whether a map is (B, H, W, D), as Swin's are: a square with a last dimension that is not its side."""
        _, first, second, *rest = z.shape
        if self.layout is not None or first != second or len(rest) > 1 or rest[0] == second:
            return self.layout == "b t d"
        self.say(
            f"{self.name} gives {tuple(z.shape)}, which is read as a square of tokens with {z.shape[-1]} columns "
            "each: pass layout='b t d' if it is, or move the columns to dimension 1 with then="
        )
        return True

    def _layout_of_three(self, z: Tensor) -> Layout:
        first, second, _ = z.shape
        if (self.three or ("v n d" if first <= MOST_VIEWS else "b t d")) == "v n d":
            return "v n d"
        self.say(
            f"{self.name} gives {tuple(z.shape)}, which is read as {first} images of {second} tokens each: pass "
            f"layout='b t d' if they are, or layout='v n d' if they are {first} views"
        )
        return "b t d"


def for_side(value: Any, side: Side) -> Any:
    """One branch's value of an option that holds for both, or is a pair (online, target)."""
    if not isinstance(value, tuple):
        return value
    if len(value) != 2:
        raise UserError(f"an option is one value for both branches or a pair (online, target), got {value!r:.80}")
    return value[SIDES.index(side)]


def all_tensors(output: Any) -> Iterator[Tensor]:
    """Every tensor in lists, tuples, mappings and dataclasses, however deep."""
    if isinstance(output, Tensor):
        yield output
    for item in _items(output):
        yield from all_tensors(item)


def _read_from(output: Any) -> Tensor | list[Tensor] | None:
    """What is read: a tensor, all tensors of a list, or what is read from the first item of another container."""
    if isinstance(output, Tensor):
        output = debug_unwrap(output).detach()  # as it is outside torch.func's transforms
        return output if output.ndim >= 2 and output.numel() > 0 and output.is_floating_point() else None
    found = (part for item in _items(output) if (part := _read_from(item)) is not None)
    if not isinstance(output, list):
        return next(found, None)
    return [z for part in found for z in (part if isinstance(part, list) else [part])] or None


def _copy(z: Tensor) -> Tensor:
    """A copy in float32 or better, so that nothing done to it reaches the training."""
    return z.clone() if at_least_float32(z) is z else at_least_float32(z)


def _items(output: Any) -> Iterator[Any]:
    """What a container holds."""
    if isinstance(output, Mapping):
        yield from output.values()
    elif isinstance(output, list | tuple):
        yield from output
    elif dataclasses.is_dataclass(output):
        yield from (getattr(output, field.name) for field in dataclasses.fields(output))


def _selected(output: Any, select: str | int, name: str) -> Any:
    path = str(select)
    while path:
        if isinstance(output, Mapping) and path in output:
            return output[path]
        key, _, path = path.partition(".")
        if isinstance(output, Mapping) and key in output:
            output = output[key]
        elif isinstance(output, list | tuple) and key in map(str, range(-len(output), len(output))):
            output = output[int(key)]
        elif hasattr(output, key):
            output = getattr(output, key)
        else:
            raise UserError(f"{name} gives {_described(output)}, which has no {key!r}: choose another select=")
    return output


def _described(output: Any) -> str:
    """A few words on an output, for messages."""
    if isinstance(output, Tensor):
        return f"{str(output.dtype).removeprefix('torch.')} of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, list(output)[:8])) or 'nothing'}"
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"
