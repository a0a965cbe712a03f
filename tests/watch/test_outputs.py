from __future__ import annotations

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from rankgap.errors import UserError
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.outputs import OutputReader, all_tensors

Named = namedtuple("Named", "z w")


@dataclasses.dataclass
class Record:
    ids: Tensor
    z: Tensor


Z = torch.arange(24.0).reshape(6, 4)
IDS = torch.arange(6)


def reader(**options: Any) -> OutputReader:
    return OutputReader(name="head", say=fail, **options)


def fail(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize(
    "output",
    [Z, (Z, 1), [Z], ((Z, 1), 2), Named(Z, 1), {"x": Z}, Record(IDS, Z), (None, Z), (IDS, Z), (Z.sum(), Z)],
    ids=lambda output: type(output).__name__,
)
def test_the_tensor_of_any_container_is_found(output: Any) -> None:
    (found,) = reader().tensors(output)
    assert torch.equal(found, Z)
    assert not found.requires_grad


def test_a_list_counts_whole_and_other_containers_give_their_first_tensor() -> None:
    assert len(reader().tensors([Z, Z, [Z, IDS]])) == 3
    assert len(reader().tensors(([[Z], [Z]], Z))) == 2
    assert len(reader().tensors((Z, Z))) == 1
    assert len(reader().tensors(OrderedDict(x=Z, y=Z))) == 1


@pytest.mark.parametrize(
    ("select", "output"),
    [
        ("x", {"y": -Z, "x": Z}),
        (1, (-Z, Z)),
        ("1", [-Z, Z]),
        ("z", Named(Z, -Z)),
        ("heads.0", {"heads": [Z, -Z]}),
        ("hidden_states.-1", {"hidden_states": (-Z, Z)}),
        (-1, (-Z, Z)),
        ("a.b", {"a": -Z, "a.b": Z}),
        ("z", Record(IDS, Z)),
    ],
)
def test_one_tensor_is_selected(select: str | int, output: Any) -> None:
    (found,) = reader(select=select).tensors(output)
    assert torch.equal(found, Z)


@pytest.mark.parametrize(
    ("output", "options", "message"),
    [
        (
            IDS,
            {},
            r"head gives int64 of shape \(6,\), which holds no batch of floating-point numbers: name another",
        ),
        ((), {}, "head gives a tuple of 0, which holds no batch"),
        ({"x": 1}, {}, "head gives a dict of x, which holds no batch"),
        ("text", {}, "head gives a str, which"),
        (torch.zeros(0, 4), {}, "holds no batch"),
        ({"x": Z}, {"select": "y"}, "head gives a dict of x, which has no 'y': choose another select="),
        ([Z], {"select": 3}, "head gives a list of 1, which has no '3'"),
        (Z, {"then": lambda z: None}, "then gave a NoneType for head: return a batch of numbers"),
    ],
)
def test_what_cannot_be_read_is_named(output: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reader(**options).tensors(output)


@pytest.mark.parametrize(
    ("shape", "options", "wanted"),
    [
        ((6, 4), {}, [(6, 4)]),
        ((6, 4), {"stacked": 3}, [(2, 4)] * 3),
        ((6, 4), {"stacked": 4}, [(6, 4)]),  # rows of one view, if they cannot be told apart
        ((2, 6, 4), {"layout": "v n d"}, [(6, 4)] * 2),
        ((2, 6, 4), {"layout": "b t d"}, [(2, 6, 4)]),
        ((2, 6, 4), {"layout": "n d"}, [(12, 4)]),
        ((6, 5, 4), {"layout": "b t d", "stacked": 2}, [(3, 5, 4)] * 2),
        ((2, 6, 4), {"three": "v n d"}, [(6, 4)] * 2),
        ((2, 6, 4), {}, [(6, 4)] * 2),
        ((6, 4, 1, 1), {}, [(6, 4)]),
        ((6, 4, 3, 2), {}, [(6, 6, 4)]),
        ((6, 4, 3, 2, 2), {}, [(6, 12, 4)]),
        ((6, 2, 2, 2), {}, [(6, 4, 2)]),
        ((6, 3, 3, 3, 2), {}, [(6, 18, 3)]),
    ],
)
def test_dimensions_are_told_apart(
    shape: tuple[int, ...], options: dict[str, Any], wanted: list[tuple[int, ...]]
) -> None:
    z = torch.randn(shape)
    found = reader(**options).views([z])
    assert [tuple(view.shape) for view in found] == wanted
    if len(shape) == 4 and len(wanted[0]) == 3:
        assert torch.equal(found[0][2, 3], z[2, :, 1, 1])


def test_maps_may_end_in_their_columns() -> None:
    said: list[str] = []
    z = torch.randn(6, 3, 3, 4)  # as Swin gives them
    (guess,) = OutputReader(name="head", say=said.append).views([z])
    assert torch.equal(guess, z.flatten(1, 2))
    assert said == [
        "head gives (6, 3, 3, 4), which is read as a square of tokens with 4 columns each: pass layout='b t d' if "
        "it is, or move the columns to dimension 1 with then="
    ]
    video = torch.randn(6, 2, 3, 5, 4)
    (told,) = reader(layout="b t d").views([video])
    assert torch.equal(told, video.flatten(1, 3))


def test_functions_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    reader(then=torch.rand_like).tensors(Z)
    assert torch.equal(torch.get_rng_state(), before)


def test_tokens_are_taken_with_a_remark_and_a_wrong_layout_is_an_error() -> None:
    said: list[str] = []
    guess = OutputReader(name="head", three="b t d", say=said.append)
    assert [tuple(view.shape) for view in guess.views([torch.randn(8, 5, 4)])] == [(8, 5, 4)]
    assert said[0].startswith("head gives (8, 5, 4), which is read as 8 images of 5 tokens each: pass layout=")
    assert len(OutputReader(name="update", say=said.append).views([torch.randn(17, 5, 4)])) == 1
    assert len(said) == 2
    with pytest.raises(UserError, match="the layout 'b t d' has three dimensions"):
        reader(layout="b t d").views([Z])
    with pytest.raises(UserError, match="unknown layout 'b n d'"):
        reader(layout="b n d")
    with pytest.raises(UserError, match="stacked must be 1 or more, got 0"):
        reader(stacked=0)
    with pytest.raises(UserError, match="then takes a function"):
        reader(then=3)


def test_what_follows_gets_a_copy_in_float32_without_gradient() -> None:
    z = Z.bfloat16().requires_grad_()
    seen: list[Tensor] = []

    def halved(x: Tensor) -> Tensor:
        seen.append(x)
        return x.div_(2)

    (found,) = reader(then=halved).tensors(z)
    assert torch.equal(found, Z / 2)
    assert torch.equal(z.detach().float(), Z)
    assert (seen[0].dtype, seen[0].requires_grad) == (torch.float32, False)
    for count in (1, 2):  # a list stays a list
        assert len(reader(then=lambda xs: [x + 1 for x in xs]).tensors([Z] * count)) == count


def test_every_tensor_is_found_however_deep() -> None:
    assert len(list(all_tensors([Z, {"x": (IDS, Record(IDS, Z))}, None, "text"]))) == 4


def test_tokens_have_three_numbers_and_each_is_what_it_says() -> None:
    torch.manual_seed(0)
    images, positions = torch.randn(32, 1, 8), torch.randn(1, 9, 8)
    monitor = RankMonitor(layout="b t d", strict=True)
    alike = positions.expand(32, 9, 8) + 1e-4 * torch.randn(32, 9, 8)  # depends on position alone
    monitor.update(alike, images.expand(32, 9, 8).contiguous())
    reading = monitor.history[0]
    assert (reading.rows, reading.images) == (288, 32)
    assert reading.position_share_online == pytest.approx(1, abs=1e-6)
    assert reading.image_rank_online == pytest.approx(1, abs=1e-3)
    assert reading.erank_online > 4
    assert reading.position_share_target == pytest.approx(0, abs=1e-6)
    assert reading.image_rank_target == pytest.approx(reading.erank_target)
    flat = RankMonitor(layout="n d", strict=True)
    flat.update(alike, alike)
    assert flat.history[0].images is None
    assert flat.history[0].erank_online == pytest.approx(reading.erank_online)
