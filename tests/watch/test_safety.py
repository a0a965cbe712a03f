"""Nothing that the monitor meets ends a training; each thing is said once."""

from __future__ import annotations

import gc
import pickle
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankgap.errors import UserError
from rankgap.watch.monitor import RankMonitor


class Head(nn.Module):
    """A layer whose output is made into something else."""

    def __init__(self, make: Any = lambda z: z) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.make = nn.Linear(6, 6), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.layer(x))


def backward(model: nn.ModuleDict, rows: int = 8) -> None:
    """A step of training; the loss is of the predictor's layer, whatever its output is made into."""
    seen: list[Tensor] = []
    handle = model["predictor"].layer.register_forward_hook(lambda _m, _i, z: seen.append(z))  # type: ignore[union-attr]
    x = torch.randn(rows, 6)
    model["projector"](x), model["predictor"](x)
    handle.remove()
    seen[0].square().mean().backward()


def heads(online: Any = lambda z: z, target: Any = lambda z: z) -> nn.ModuleDict:
    return nn.ModuleDict({"predictor": Head(online), "projector": Head(target)})


def watch(model: nn.ModuleDict, *, steps: int = 3, rows: int = 8, **options: Any) -> tuple[RankMonitor, list[str]]:
    """Train while the monitor watches; returns it and what was said."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with RankMonitor(model, every=1, **options) as monitor:
            for _ in range(steps):
                backward(model, rows)
    return monitor, [str(warning.message) for warning in told]


def failing(z: Tensor) -> Tensor:
    raise KeyError("centre")


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (heads(target=lambda z: {"x": 1}), {}, "a step was not read: projector gives a dict of x, which holds no"),
        (heads(target=lambda z: z.long()), {}, "projector gives int64 of shape (8, 6), which holds no batch"),
        (heads(online=lambda z: (z, z.long())), {"select": (1, None)}, "predictor gives int64 of shape (8, 6)"),
        (heads(), {"layout": "b t d"}, "the layout 'b t d' has three dimensions"),
        (heads(), {"pair": lambda p, t: (p[0], t[0][:, :2])}, "pair gave (8, 6) and (8, 2)"),
        (heads(target=lambda z: z[:1]), {}, "a single row or column has no rank to speak of: use larger batches"),
    ],
)
def test_what_cannot_be_read_is_left_out_and_said_once(
    model: nn.ModuleDict, options: dict[str, Any], said: str
) -> None:
    monitor, told = watch(model, **options)
    assert monitor.step == 3
    assert not monitor.history
    assert said in monitor.skipped["readings"] or said.removeprefix("a step was not read: ") in told[0]
    assert said in told[0]
    assert len(told) == 2  # and that nothing was read, when the block ends
    assert "no step has been read" in told[1]
    with pytest.raises(UserError):
        watch(model, strict=True, **options)


def test_an_error_disables_the_watching_with_one_warning() -> None:
    monitor, told = watch(heads(), then=(None, failing))
    assert len(told) == 1
    assert told[0].startswith("rankgap has stopped watching, and the training goes on: KeyError: 'centre'")
    assert "strict=True" in told[0]
    assert monitor.disabled == "KeyError: 'centre'"
    with pytest.raises(UserError, match="KeyError: 'centre'"):
        monitor.compute()
    with pytest.raises(UserError, match="KeyError: 'centre'"):
        watch(heads(), then=(None, failing), strict=True)
    by_hand = RankMonitor(pair=lambda p, t: failing(p[0]))  # type: ignore[arg-type,return-value]
    with pytest.warns(UserWarning, match="stopped watching"):
        by_hand.update(torch.eye(3), torch.eye(3))
    by_hand.update(torch.eye(3), torch.eye(3))
    assert by_hand.step == 2


def test_where_warnings_are_errors_the_training_still_goes_on() -> None:
    model = heads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with RankMonitor(model, every=1, then=(failing, None)) as monitor:
            backward(model)
    assert monitor.disabled


@pytest.mark.filterwarnings("ignore")  # Dynamo has many of its own
def test_a_model_that_must_be_one_graph_is_trained_and_not_read() -> None:
    torch._dynamo.reset()
    model = heads()
    whole = torch.compile(lambda x: model["predictor"](model["projector"](x)), backend="eager", fullgraph=True)
    with (
        pytest.warns(UserWarning, match="no step has been read"),
        pytest.warns(UserWarning, match="fullgraph=True. hides a watched module, so it is not read: compile"),
        RankMonitor(model) as monitor,
    ):
        whole(torch.randn(8, 6)).square().mean().backward()
    assert not monitor.history
    assert not monitor.disabled


def test_a_module_that_never_runs_is_said_at_the_end() -> None:
    model = heads()
    with pytest.warns(UserWarning, match="no step has been read: neither module has run"), RankMonitor(model):
        pass
    with (
        pytest.warns(UserWarning, match="predictor gave nothing to read in a step in which the other module did"),
        RankMonitor(model, "projector", "predictor", every=1),
    ):
        model["projector"](torch.randn(4, 6)).mean().backward()
    with (
        pytest.warns(UserWarning, match=r"no backward pass has reached .* Call monitor\.step\(\)"),
        RankMonitor(model, every=1) as monitor,
        torch.no_grad(),
    ):
        model["projector"](torch.randn(4, 6)), model["predictor"](torch.randn(4, 6))
    with pytest.raises(UserError, match=r"Call monitor\.step\(\)"):
        monitor.verdict()


def test_a_target_that_is_the_online_module_is_said() -> None:
    model = heads()
    with pytest.warns(UserWarning, match="online and target are the same module, so the rank difference is 0"):
        monitor = RankMonitor(model, "predictor", "predictor", every=1)
    with monitor:
        model["predictor"](torch.randn(8, 6)).square().mean().backward()
    assert monitor.history[0].rank_difference == 0
    RankMonitor(model, "predictor", "predictor", select=(0, 1))  # two of its outputs


def test_two_monitors_and_a_monitor_that_is_entered_twice() -> None:
    model = heads()
    with RankMonitor(model, every=1, strict=True) as first, RankMonitor(model, every=1, strict=True) as second:
        backward(model)
        with pytest.warns(UserWarning, match="watching already"), first:
            backward(model)
        backward(model)
    assert first.history == second.history
    assert len(first.history) == 3
    assert not model["predictor"]._forward_hooks
    with first:  # and again, later
        backward(model)
    assert len(first.history) == 4
    first.__exit__(None, None, None)  # once too often
    with first:
        backward(model)
    assert len(first.history) == 5


def test_a_tensor_of_an_object_of_any_class_may_be_selected() -> None:
    model = heads(online=lambda z: SimpleNamespace(z=z))
    with RankMonitor(model, every=1, select=("z", None), strict=True) as monitor:
        model["projector"](torch.randn(8, 6)), model["predictor"](torch.randn(8, 6)).z.sum().backward()
    assert len(monitor.history) == 1


def test_widths_may_change_between_steps() -> None:
    widths = iter([6, 6, 3, 3])
    model = heads(target=lambda z: z[:, : next(widths)])
    monitor, told = watch(model, steps=4)
    assert [r.full_rank for r in monitor.history] == [6, 6, 3, 3]
    assert monitor.skipped == {"alignment, filter and transfer": "online views are (8, 6), target views (8, 3)"}
    assert not told


def test_outputs_that_are_not_finite_are_readings() -> None:
    model = heads(target=lambda z: z / 0)
    monitor, told = watch(model, steps=1)
    assert (monitor.history[0].finite, monitor.diagnosis.kind) == (False, "non-finite")
    assert not told
    with pytest.raises(UserError, match="no finite outputs have been read yet"):
        monitor.compute()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pair": "other"}, "unknown rule for pairs 'other'"),
        ({"layout": "bnd"}, "unknown layout 'bnd'"),
        ({"stacked": (2, 0)}, "stacked must be 1 or more, got 0"),
        ({"stacked": (2, 3, 4)}, "one value for both branches or a pair"),
        ({"every": 0}, "every and steps must be 1 or more, got 0 and None"),
        ({"every": "often"}, "every and steps must be 1 or more, got often and None"),
        ({"model": [nn.Identity()]}, "model must be a module, got a list: pass the modules themselves"),
        ({"steps": 0}, "every and steps must be 1 or more, got auto and 0"),
        ({"then": ("softmax", None)}, "then takes a function for each branch"),
        ({"online": nn.Identity()}, "the target module is named 'projector', but there is no model"),
    ],
)
def test_options_are_checked_when_they_are_given(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RankMonitor(**options)


def test_the_number_of_steps_can_be_kept_in_a_checkpoint() -> None:
    monitor = RankMonitor()
    monitor.update(torch.eye(3), torch.eye(3))
    assert repr(pickle.loads(pickle.dumps({"step": monitor.step}))) == "{'step': 1}"


def test_a_monitor_keeps_no_model_alive() -> None:
    model = heads()
    last = weakref.ref(model["predictor"])
    with RankMonitor(model, every=1, strict=True) as monitor:
        backward(model)
        gc.disable()  # so that a circle of references would keep it
        try:
            del model
            assert last() is None
        finally:
            gc.enable()
    assert len(monitor.history) == 1
    with pytest.warns(UserWarning, match="neither module has run"), RankMonitor(heads()):
        pass


def test_steps_that_begin_again_are_counted_on() -> None:
    monitor, rows = RankMonitor(), torch.ones(6, 4)
    for step in range(5):
        monitor.update(rows, rows, step=step)
    with pytest.warns(UserWarning, match="step 0 comes after step 4: the monitor counts on by itself"):
        monitor.update(rows, rows, step=0)
    for step in range(1, 5):
        monitor.update(rows, rows, step=step)
    assert [r.step for r in monitor.history] == list(range(10))


def test_outputs_of_one_column_have_no_rank() -> None:
    monitor = RankMonitor()
    with pytest.warns(UserWarning, match="a single row or column has no rank to speak of"):
        monitor.update(torch.randn(8, 1), torch.randn(8, 1))
    assert not monitor.history


def test_a_step_by_hand_needs_hooks() -> None:
    with pytest.raises(UserError, match="without a model, call update"):
        RankMonitor().step()
