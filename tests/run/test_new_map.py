"""A new map is one class in one file: registered here, it is known everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankgap.cli import main
from rankgap.errors import UserError
from rankgap.model.maps import MAPS, Place, register_map
from rankgap.run.folder import RunFolder
from rankgap.run.restored import restore


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftThresholdOptions:
    """The threshold.

    Args:
        share: threshold as a share of the largest entry.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise UserError(f"share is at least 0 and below 1, got {self.share}")


class SoftThreshold(nn.Module):
    """Entries below a share of the largest become 0."""

    def __init__(self, place: Place, options: SoftThresholdOptions) -> None:
        super().__init__()
        self.side, self.share = place.side, options.share

    def forward(self, z: Tensor) -> Tensor:
        """(V, B, D) -> (V, B, D)."""
        out: Tensor = nn.functional.softshrink(z, self.share * float(z.detach().abs().max()))
        return out


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register_map("soft", "online", "target", options=SoftThresholdOptions(), predicts=True)(SoftThreshold)
    yield
    del MAPS["soft"]


FLAGS = ["--epochs", "1", "--batch-size", "64", "--limit", "128", "--loggers", "none", "--protocol", "none"]


@pytest.mark.parametrize("side", ["online", "target"])
def test_a_map_of_ones_own_trains_from_the_command_line_with_its_option(side: str, tmp_path: Path) -> None:
    flags = [f"--{side}", "soft", "--settings", f"{side}.soft.share=0.25", "--out", str(tmp_path / "run")]
    assert main(["train", *FLAGS, *flags]) == 0
    saved = RunFolder(tmp_path / "run").saved()
    assert saved.recipe.options(side, MAPS["soft"]) == SoftThresholdOptions(share=0.25)  # type: ignore[arg-type]
    model = restore(tmp_path / "run").model
    soft = next(iter((model.online_map if side == "online" else model.target_map).children()))
    assert isinstance(soft, SoftThreshold)
    assert (soft.side, soft.share) == (side, 0.25)
    assert torch.isfinite(model(torch.randn(2, 8, 1, 8, 8)).loss)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--online", "soft", "--settings", "online.soft.shar=0.1"], "did you mean 'online.soft.share'"),
        (["--online", "soft", "--settings", "online.soft.share=x"], "online.soft.share takes a number, got 'x'"),
        (["--online", "soft", "--settings", "online.soft.share=2"], "share is at least 0 and below 1, got 2"),
        (["--settings", "online.soft.share=0.1"], "the online branch of simsiam has predictor, not"),
        (["--online", "sofd"], "did you mean 'soft'"),
        (["--online", "soft:3"], "unknown map 'soft:3'"),
    ],
)
def test_its_errors_are_like_those_of_any_other(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *FLAGS, *flags, "--out", str(tmp_path / "run")]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "sides", "options", "says"),
    [
        ("log", ("online",), SoftThresholdOptions(), "a word that is neither a gain nor identity"),
        ("a:b", ("online",), SoftThresholdOptions(), "a word that is neither a gain nor identity"),
        ("new", ("onlin",), SoftThresholdOptions(), r"got \['onlin'\]"),
        ("new", ("online",), None, "an instance of a dataclass, got None"),
    ],
)
def test_a_registration_that_cannot_work_is_refused(
    name: str, sides: tuple[Any, ...], options: object, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        register_map(name, *sides, options=options)(SoftThreshold)


def test_a_name_can_be_registered_only_once() -> None:
    with pytest.raises(UserError, match="there is already a map called 'soft'"):
        register_map("soft", "online", options=SoftThresholdOptions())(SoftThreshold)
