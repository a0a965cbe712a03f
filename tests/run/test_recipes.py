from __future__ import annotations

import dataclasses
from collections import Counter
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankgap.errors import UserError
from rankgap.filters.spectral import FilterOptions
from rankgap.model.assignments import CentredAssignmentOptions, SinkhornOptions
from rankgap.model.closed_forms import CLOSED_FORMS, ClosedForm
from rankgap.model.encoder_options import EncoderOptions
from rankgap.model.maps import MAPS
from rankgap.model.methods import METHODS, design
from rankgap.model.schedule import Clock
from rankgap.run.optimizer import OptimizerOptions
from rankgap.run.presets import adapt, adapt_views, warnings
from rankgap.run.reader import plain
from rankgap.run.recipes import Recipe, load_recipe, override, recipe_for, recipe_from, recipe_names
from rankgap.run.work import Work
from rankgap.views.view_config import ViewConfig

BODIES = ("byol", "simsiam", "swav", "dino")


RECIPES = [
    *[(name, body) for name in ("cifar", "imagenet", "imagenet100") for body in BODIES],
    ("multicrop", "swav"),
    ("multicrop", "dino"),
]


@pytest.mark.parametrize(("name", "body"), RECIPES)
def test_every_recipe_loads_says_what_it_reaches_and_survives_a_round_trip(name: str, body: str) -> None:
    recipe = load_recipe(name, body)
    published = name != "multicrop"
    assert ("top-1" in recipe.about) is published
    assert ("not published" in recipe.about) is not published
    assert recipe_from(yaml.safe_load(yaml.safe_dump(plain(recipe))), "recipe") == recipe
    text = (resources.files("rankgap.run.recipes") / name / f"{body}.yaml").read_text()
    assert text.startswith("# Expected: " if published else "# Not published: ")


def test_the_recipes_are_these() -> None:
    assert recipe_names() == sorted({name for name, _ in RECIPES})
    with pytest.raises(UserError, match="multicrop is for dino and swav, not for byol: choose auto, or one of"):
        load_recipe("multicrop", "byol")


@pytest.mark.parametrize(
    ("body", "size", "name"),
    [
        ("swav", 95, "cifar"),
        ("swav", 96, "multicrop"),
        ("dino", 224, "multicrop"),
        ("byol", 96, "cifar"),
        ("byol", 97, "imagenet100"),
        ("simsiam", 224, "imagenet100"),
    ],
)
def test_auto_chooses_multicrop_for_swav_and_dino_from_96_px_on(body: str, size: int, name: str) -> None:
    assert recipe_for(body, size) == name


def test_cifar_recipes_hold_the_published_numbers() -> None:
    byol, simsiam, swav, dino = (load_recipe("cifar", body) for body in BODIES)
    assert (byol.optimizer.name, byol.optimizer.lr, byol.projector.widths) == ("lars", 1.0, (4096, 256))
    assert (simsiam.optimizer.lr, simsiam.optimizer.constant_predictor_lr) == (0.5, True)
    queue = swav.options("target", MAPS["sinkhorn"])
    assert (swav.prototypes.count, queue.queue, queue.queue_epochs) == (3000, 3840, 50)
    assert (dino.prototypes.count, dino.teacher.momentum, dino.projector.norm) == (4096, 0.9995, False)
    assert [v.solarize_p for v in byol.views] == [0.0, 0.2]
    assert swav.views[0].jitter == (0.8, 0.8, 0.8, 0.2)


def crops(recipe: Recipe) -> Counter[tuple[int | None, bool, tuple[float, float]]]:
    return Counter((view.size, view.target, view.scale) for view in recipe.views)


def test_imagenet_swav_is_that_of_its_authors_for_small_batches() -> None:
    recipe = load_recipe("imagenet", "swav")
    assert crops(recipe) == {(224, True, (0.14, 1.0)): 2, (96, False, (0.05, 0.14)): 6}
    assert {(v.jitter, v.jitter_p, v.grey_p, v.blur_p, v.flip) for v in recipe.views} == {
        ((0.8, 0.8, 0.8, 0.2), 0.8, 0.2, 0.5, 0.5)
    }
    assert recipe.encoder == EncoderOptions(backbone="resnet50")
    assert (recipe.projector.widths, recipe.projector.norm) == ((2048, 128), True)
    assert (recipe.prototypes.count, recipe.prototypes.freeze_epochs) == (3000, 1)
    assert recipe.options("online", MAPS["assignment"]).temperature == 0.1
    assert recipe.options("target", MAPS["sinkhorn"]) == SinkhornOptions(
        eps=0.05, iterations=3, queue=3840, queue_epochs=15
    )
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.final_lr, optimizer.weight_decay) == ("lars", 0.6, 6e-4, 1e-6)
    assert (optimizer.warmup_epochs, optimizer.trust, optimizer.trust_clip, optimizer.decay_all) == (
        0,
        0.001,
        False,
        True,
    )


def test_imagenet_dino_is_that_of_its_authors() -> None:
    recipe = load_recipe("imagenet", "dino")
    assert crops(recipe) == {(224, True, (0.4, 1.0)): 2, (96, False, (0.05, 0.4)): 8}
    assert {(v.jitter, v.jitter_p, v.grey_p, v.interpolation) for v in recipe.views} == {
        ((0.4, 0.4, 0.2, 0.1), 0.8, 0.2, "bicubic")
    }
    assert [v.blur_p for v in recipe.views] == [1.0, 0.1, *[0.5] * 8]
    assert [v.solarize_p for v in recipe.views] == [0.0, 0.2, *[0.0] * 8]
    assert recipe.encoder == EncoderOptions(backbone="vit_small_patch16_224", drop_path=0.1)
    projector = recipe.projector
    assert (projector.widths, projector.norm, projector.activation) == ((2048, 2048, 256), False, "gelu")
    assert (recipe.prototypes.count, recipe.prototypes.freeze_epochs) == (65_536, 1)
    assert recipe.teacher.momentum == 0.996
    assert recipe.options("online", MAPS["assignment"]).temperature == 0.1
    assert recipe.options("target", MAPS["centred_assignment"]) == CentredAssignmentOptions(
        temperature=0.07, warmup_temperature=0.04, warmup_epochs=30, momentum=0.9
    )
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.warmup_epochs, optimizer.clip) == ("adamw", 5e-4, 10, 3.0)
    assert (optimizer.weight_decay, optimizer.final_weight_decay, optimizer.decay_all) == (0.04, 0.4, False)
    first, last = (Clock(step=step, steps=1000, steps_per_epoch=10) for step in (0, 1000))
    assert [optimizer.rate(clock, 1024) for clock in (first, last)] == pytest.approx([0, 1e-6])


def test_imagenet_byol_and_simsiam_are_those_of_their_authors() -> None:
    byol, simsiam = (load_recipe("imagenet", body) for body in ("byol", "simsiam"))
    assert byol.encoder == simsiam.encoder == EncoderOptions(backbone="resnet50")
    assert byol.projector.widths == (4096, 256)
    assert byol.options("online", MAPS["predictor"]).widths == (4096,)
    assert byol.teacher.momentum == 0.996
    assert byol.optimizer == OptimizerOptions(
        name="lars", lr=0.2, weight_decay=1.5e-6, warmup_epochs=10, warmup_lr=0, trust=0.001, trust_clip=False
    )
    assert [(v.scale, v.blur_p, v.solarize_p) for v in byol.views] == [
        ((0.08, 1.0), 1.0, 0.0),
        ((0.08, 1.0), 0.1, 0.2),
    ]
    assert (simsiam.projector.widths, simsiam.projector.output_norm) == ((2048, 2048, 2048), "batch")
    assert simsiam.options("online", MAPS["predictor"]).widths == (512,)
    assert simsiam.optimizer == OptimizerOptions(
        lr=0.05, weight_decay=1e-4, warmup_epochs=0, decay_all=True, constant_predictor_lr=True
    )
    assert crops(simsiam) == {(None, True, (0.2, 1.0)): 2}
    assert {v.blur_p for v in simsiam.views} == {0.5}


@pytest.mark.parametrize("body", ["swav", "dino"])
def test_multicrop_is_imagenet100_with_the_authors_crops(body: str) -> None:
    small, solo, authors = (load_recipe(name, body) for name in ("multicrop", "imagenet100", "imagenet"))
    assert dataclasses.replace(small, views=solo.views, about=solo.about) == solo
    assert crops(small) == crops(authors)


def test_sizes_of_views_become_multiples_of_a_patch() -> None:
    recipe = load_recipe("imagenet", "dino")
    for size, patch, local in ((96, 1, 41), (64, 1, 27), (64, 16, 32), (224, 16, 96), (224, 14, 98), (16, 16, 16)):
        assert set(recipe.sized(size, patch).sizes(size)) == {size, local}
    assert load_recipe("imagenet", "byol").sized(64, 16).sizes(64) == (64, 64)


@pytest.mark.parametrize("name", ["cifar", "imagenet", "imagenet100"])
def test_simsiam_decays_biases_and_norms_too_as_solo_learn_and_fair_do(name: str) -> None:
    published = load_recipe(name, "simsiam")
    assert published.optimizer.decay_all
    adapted, _ = adapt(published, METHODS["simsiam"], SMALL)
    assert adapted.optimizer.decay_all is (name == "imagenet")  # the preset's choice is its own


def values() -> dict[str, Any]:
    found: dict[str, Any] = plain(load_recipe("cifar", "simsiam"))
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"optimiser": {}}, r"unknown key of recipe 'optimiser': did you mean 'optimizer'"),
        ({"optimizer": {"lr": "fast"}}, r"recipe\.optimizer\.lr takes a number, got 'fast'"),
        ({"optimizer": {"weight_decay": 0.1}}, r"recipe\.optimizer lacks lr"),
        ({"optimizer": {"lr": 0.1, "name": "adam"}}, r"recipe\.optimizer\.name 'adam': did you mean 'adamw'"),
        ({"views": [{}]}, "two views or more, got 1"),
        ({"views": 3}, r"recipe\.views takes a list, got 3"),
        ({"views": [{}, {"flip": 2}]}, r"recipe\.views\.1: expected flip to be a probability"),
        ({"projector": 3}, r"recipe\.projector takes keys and values, got 3"),
        ({"projector": {"widths": [8], "norm": "yes"}}, r"recipe\.projector\.norm takes true or false, got 'yes'"),
        ({"projector": {"widths": [0.9]}}, r"recipe\.projector\.widths\.0 takes a whole number, got 0\.9"),
        ({"prototypes": {"count": 0.9}}, r"recipe\.prototypes\.count takes a whole number, got 0\.9"),
        ({"prototypes": {"count": True}}, r"takes a whole number, got True"),
        ({"encoder": {"drop_path": 1.5}}, r"recipe\.encoder: drop_path must be from 0 to 0\.99, got 1\.5"),
        ({"optimizer": {"lr": 0.1, "clip": -1}}, r"recipe\.optimizer: clip must be from 0 to"),
        ({"optimizer": {"lr": 0.1, "layer_decay": 2}}, r"recipe\.optimizer: layer_decay must be from 0 to 1, got"),
        ({"optimizer": {"lr": 0.1, "final_weight_decay": -1}}, r"final_weight_decay must be from 0 to"),
        ({"optimizer": {"lr": 0.1, "freeze_encoder_epochs": -1}}, r"freeze_encoder_epochs must be from 0 to inf"),
        ({"target": {"sinkhon": {}}}, r"unknown map of recipe\.target 'sinkhon': did you mean 'sinkhorn'"),
        ({"target": {"sinkhorn": {"ep": 1}}}, r"unknown key of recipe\.target\.sinkhorn 'ep': did you mean 'eps'"),
        ({"target": {"sinkhorn": {"iterations": 1.5}}}, r"target\.sinkhorn\.iterations takes a whole number"),
        ({"target": {"predictor": {}}}, r"unknown map of recipe\.target 'predictor'"),
        ({"online": {"directcopy": {"eps": -1}}}, r"recipe\.online\.directcopy: expected finite alpha"),
    ],
)
def test_a_wrong_recipe_is_named_with_its_place(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        recipe_from(values() | change, "recipe")


def test_override_changes_one_value_and_knows_its_keys() -> None:
    settings = {"optimizer.lr": 0.1, "projector.widths": [64, 32], "views.1.flip": 0, "target.sinkhorn.eps": 0.1}
    recipe = override(load_recipe("cifar", "simsiam"), settings)
    assert (recipe.optimizer.lr, recipe.projector.widths) == (0.1, (64, 32))
    assert [view.flip for view in recipe.views] == [0.5, 0]
    assert recipe.options("target", MAPS["sinkhorn"]).eps == 0.1
    assert recipe.options("online", MAPS["predictor"]).widths == (512,)
    every = override(recipe, {"views.*.turn": 0.75, "views.*.grey_p": 0, "views.0.grey_p": 1})
    assert [(view.turn, view.grey_p, view.flip) for view in every.views] == [(0.75, 1, 0.5), (0.75, 0, 0)]
    assert override(recipe, {"projector.widths.*": 8}).projector.widths == (8, 8)
    for key, meant in (
        ("views.0.flp", r"did you mean 'views\.0\.flip'"),
        ("views.*.flp", r"did you mean 'views\.\*\.flip'"),
        ("views.flip", r"did you mean 'views\.\*\.flip'"),
        ("views..flip", r"did you mean 'views\.\*\.flip'"),
        ("views.-1.flip", "unknown setting"),
        ("optimizer.*", "unknown setting"),
        ("", "unknown setting"),
        ("projector.width", r"did you mean 'projector\.widths'"),
        ("target.sinkhorn.ep", r"did you mean 'target\.sinkhorn\.eps'"),
        ("views.2.flip", "unknown setting"),
        ("about.x", "unknown setting"),
    ):
        with pytest.raises(UserError, match=meant):
            override(recipe, {key: 3})
    with pytest.raises(UserError, match=r"prototypes\.count takes a whole number, got 0\.9"):
        override(recipe, {"prototypes.count": 0.9})


def test_a_recipe_keeps_the_options_of_the_rows_own_maps_alone() -> None:
    row = design("directset", target="power:-0.5", online="directset:2")
    used = load_recipe("cifar", row.body).used_by(row)
    assert used.online == {"directset": ClosedForm(alpha=2, eps=0.1, momentum=0.3)}
    assert used.target == {"filter": FilterOptions()}


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
        assert (adapted.prototypes.count, adapted.prototypes.freeze_epochs) == (256, 1)
    if method == "swav":
        assert adapted.target == {"sinkhorn": SinkhornOptions(queue=0, queue_epochs=50)}
    remembers = [options.momentum for options in adapted.online.values() if isinstance(options, ClosedForm)]
    slow = 1 - 4 / SMALL.steps
    fast = CLOSED_FORMS["directpred"].momentum
    expected = {"directcopy": slow, "isoloss": slow, "isoloss_l2": slow, "directpred": fast, "directset": fast}
    assert remembers == [expected[name] for name in (method,) if name in expected]
    if row.ema:
        assert adapted.teacher.momentum < 0.99 < published.teacher.momentum + 0.001


@pytest.mark.parametrize(("epochs", "says"), [(1, "1 step is too few"), (2, "2 steps are too few")])
def test_the_note_on_a_short_run_counts_its_steps(epochs: int, says: str) -> None:
    row = METHODS["byol"]
    _, notes = adapt(
        load_recipe("cifar", row.body), row, Work(images=256, batch_size=256, epochs=epochs, features=128)
    )
    assert any(says in note for note in notes)


def test_prototypes_that_never_learn_are_warned_of() -> None:
    recipe, row = load_recipe("cifar", "dino"), METHODS["dino"]
    said = {
        epochs: warnings(recipe, row, Work(images=256, batch_size=256, epochs=epochs, features=128))
        for epochs in (1, 2)
    }
    assert recipe.prototypes.freeze_epochs == 1
    assert {epochs: any("frozen for the whole run" in each for each in said[epochs]) for epochs in said} == {
        1: True,
        2: False,
    }


def test_long_work_keeps_the_published_recipe() -> None:
    assert not Work(images=50_000, batch_size=256, epochs=400, features=512).small


def test_known_failures_are_warned_of() -> None:
    swav, dino = METHODS["swav"], METHODS["dino"]
    assert any("codes cannot be balanced" in w for w in warnings(load_recipe("cifar", "swav"), swav, SMALL)) is (
        3000 > 256 + 3840
    )
    crowded = override(load_recipe("cifar", "swav"), {"target.sinkhorn.queue": 0})
    assert any("codes cannot be balanced" in w for w in warnings(crowded, swav, SMALL))
    assert any("near its start" in w for w in warnings(load_recipe("cifar", "dino"), dino, SMALL))
    frozen = override(crowded, {"optimizer.freeze_encoder_epochs": SMALL.epochs})
    assert any("lower optimizer.freeze_encoder_epochs" in w for w in warnings(frozen, swav, SMALL))
    resting = override(crowded, {"optimizer.encoder_lr": 0})
    assert any("raise optimizer.encoder_lr" in w for w in warnings(resting, swav, SMALL))
    alone = dataclasses.replace(SMALL, images=2561)
    assert any("1 image" in w for w in warnings(crowded, swav, alone))
    few = dataclasses.replace(SMALL, batch_size=16)
    assert any("32 or more" in w for w in warnings(crowded, swav, few))
    still = ViewConfig(scale=(1, 1), ratio=(1, 1), flip=0, jitter_p=0, grey_p=0)
    for views, alike in (((still, still), True), ((still, dataclasses.replace(still, flip=1)), False)):
        said = warnings(dataclasses.replace(crowded, views=views), swav, SMALL)
        assert any("all views of an image are the same" in w for w in said) is alike


def test_digits_are_never_mirrored() -> None:
    recipe, notes = adapt_views(load_recipe("cifar", "byol"), "digits", 1)
    assert all(view.flip == view.solarize_p == 0 for view in recipe.views)
    assert notes


LOCAL = {"size": 96, "scale": [0.05, 0.4], "target": False}


def multicrop(**more: Any) -> Any:
    """A recipe with two large views and three local ones."""
    views = [{"count": 2, "size": 224}, {**LOCAL, "count": 3}]
    return recipe_from(values() | {"views": views} | more, "recipe")


def test_a_count_stands_for_so_many_views_and_only_the_first_are_the_target_s() -> None:
    recipe = multicrop()
    assert [(view.size, view.target) for view in recipe.views] == [(224, True)] * 2 + [(96, False)] * 3
    assert recipe.targets == 2
    assert recipe_from(yaml.safe_load(yaml.safe_dump(plain(recipe))), "recipe") == recipe
    changed = override(recipe, {"views.4.size": 64, "views.0.flip": 0})
    assert [view.size for view in changed.views] == [224, 224, 96, 96, 64]


@pytest.mark.parametrize(
    ("size", "expected"), [(224, (224, 96)), (96, (96, 41)), (64, (64, 27)), (32, (32, 14)), (5, (5, 2))]
)
def test_views_keep_their_proportions_at_another_size(size: int, expected: tuple[int, int]) -> None:
    recipe = multicrop().sized(size)
    assert (recipe.views[0].size, recipe.views[-1].size) == expected
    two = load_recipe("cifar", "simsiam")
    assert two.sized(size) == two  # views without a size of their own take the run's


@pytest.mark.parametrize(
    ("views", "says"),
    [
        ([LOCAL, {"count": 2}], r"those that the target branch sees come first.*got target \[False, True, True\]"),
        ([LOCAL, LOCAL], "at least one"),
        ([{"count": 0}, {}], r"recipe\.views\.0\.count takes a whole number from 1 to 64, got 0"),
        ([{}, {"count": 2.5}], r"recipe\.views\.1\.count takes a whole number from 1 to 64, got 2\.5"),
        ([{}, {"count": True}], r"recipe\.views\.1\.count .* got True"),
        ([{}, {"count": 10**9}], r"recipe\.views\.1\.count takes"),
        ([{}, {"size": 0}], r"recipe\.views\.1: expected size to be from 2 to 8192 pixels, got 0"),
        ([{}, {"size": 1.5}], r"recipe\.views\.1\.size takes a whole number, got 1\.5"),
        ([{}, {"target": "no"}], r"recipe\.views\.1\.target takes true or false, got 'no'"),
        ([{}, 3], r"recipe\.views\.1 takes keys and values, got 3"),
    ],
)
def test_views_that_make_no_sense_are_refused(views: list[Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        recipe_from(values() | {"views": views}, "recipe")


def test_the_preset_leaves_local_crops_small() -> None:
    adapted, _ = adapt(multicrop(), METHODS["simsiam"], SMALL)
    assert [view.scale for view in adapted.views] == [(0.2, 1.0)] * 2 + [(0.05, 0.4)] * 3
