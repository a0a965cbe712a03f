from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankgap.errors import UserError
from rankgap.model.methods import METHODS
from rankgap.run.presets import Work, adapt, adapt_views, warnings
from rankgap.run.recipes import from_dict, load_recipe, override, recipe_names, to_dict

BODIES = ("byol", "simsiam", "swav", "dino")


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("body", BODIES)
def test_every_recipe_loads_says_what_it_reaches_and_survives_a_round_trip(name: str, body: str) -> None:
    recipe = load_recipe(name, body)
    assert "top-1" in recipe.about
    assert from_dict(yaml.safe_load(yaml.safe_dump(to_dict(recipe)))) == recipe


def test_cifar_recipes_hold_the_published_numbers() -> None:
    byol, simsiam, swav, dino = (load_recipe("cifar", body) for body in BODIES)
    assert (byol.optimizer.name, byol.optimizer.lr, byol.heads.projector) == ("lars", 1.0, (4096, 256))
    assert (simsiam.optimizer.lr, simsiam.optimizer.constant_predictor_lr) == (0.5, True)
    assert (swav.heads.prototypes, swav.heads.queue, swav.heads.queue_epochs) == (3000, 3840, 50)
    assert (dino.heads.prototypes, dino.heads.momentum, dino.heads.projector_norm) == (4096, 0.9995, False)
    assert [v.solarize_p for v in byol.views] == [0.0, 0.2]
    assert swav.views[0].jitter == (0.8, 0.8, 0.8, 0.2)


def values() -> dict[str, Any]:
    return to_dict(load_recipe("cifar", "simsiam"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimiser": {}}, "did you mean 'optimizer'"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr takes a float"),
        ({"optimizer": {"weight_decay": 0.1}}, "lacks lr"),
        ({"optimizer": {"lr": 0.1, "name": "adam"}}, "adamw"),
        ({"views": [{}]}, "two views"),
        ({"views": 3}, "takes a list"),
        ({"heads": 3}, "keys and values"),
        ({"heads": {"projector": [8], "projector_norm": "yes"}}, "takes a bool"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        from_dict(values() | change)


def test_override_changes_one_value_and_knows_its_keys() -> None:
    recipe = override(load_recipe("cifar", "simsiam"), {"optimizer.lr": 0.1, "heads.projector": [64, 32]})
    assert (recipe.optimizer.lr, recipe.heads.projector) == (0.1, (64, 32))
    with pytest.raises(UserError, match=r"did you mean 'heads\.predictor'"):
        override(recipe, {"heads.preditor": 3})


def test_a_recipe_can_be_a_file_of_one_s_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values() | {"about": "mine"}))
    assert load_recipe(str(file), "simsiam").about == "mine"
    with pytest.raises(UserError, match="did you mean 'cifar'"):
        load_recipe("cifra", "simsiam")


SMALL = Work(images=10_000, batch_size=256, epochs=10, features=128)


@pytest.mark.parametrize("method", METHODS)
def test_the_preset_for_small_work_leaves_nothing_to_warn_of(method: str) -> None:
    row = METHODS[method]
    published = load_recipe("cifar", row.body)
    adapted, notes = adapt(published, row, SMALL)
    assert SMALL.small
    assert notes
    assert all(v.scale == (0.2, 1.0) and v.jitter <= (0.4, 0.4, 0.4, 0.1) for v in adapted.views)
    assert adapted.optimizer.lr == (0.00375 if row.alignment == "squared" else 0.06)
    assert warnings(adapted, row, SMALL) == []
    if method in ("swav", "dino"):
        assert adapted.heads.prototypes == 256
        assert adapted.heads.freeze_epochs == 1
        assert adapted.heads.queue == 0 or method == "dino"
    remembers = adapted.heads.correlation_momentum
    assert (
        (remembers == 1 - 4 / SMALL.steps)
        if method in ("directcopy", "isoloss", "isoloss_l2")
        else remembers is None
    )
    if row.ema:
        assert adapted.heads.momentum < 0.99 < published.heads.momentum + 0.001


def test_long_work_keeps_the_published_recipe() -> None:
    assert not Work(images=50_000, batch_size=256, epochs=400, features=512).small


def test_known_failures_are_warned_of() -> None:
    swav, dino = METHODS["swav"], METHODS["dino"]
    assert any("codes cannot be balanced" in w for w in warnings(load_recipe("cifar", "swav"), swav, SMALL)) is (
        3000 > 256 + 3840
    )
    crowded = override(load_recipe("cifar", "swav"), {"heads.queue": 0})
    assert any("codes cannot be balanced" in w for w in warnings(crowded, swav, SMALL))
    assert any("random start" in w for w in warnings(load_recipe("cifar", "dino"), dino, SMALL))
    alone = dataclasses.replace(SMALL, images=2561)
    assert any("1 image" in w for w in warnings(crowded, swav, alone))
    few = dataclasses.replace(SMALL, batch_size=16)
    assert any("32 or more" in w for w in warnings(crowded, swav, few))


def test_digits_are_never_mirrored() -> None:
    recipe, notes = adapt_views(load_recipe("cifar", "byol"), "digits", 1)
    assert all(view.flip == view.solarize_p == 0 for view in recipe.views)
    assert notes
