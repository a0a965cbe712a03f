"""Kinds of fault that no row of the zoo has, each trained into on purpose; and every false alarm that was met."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

from rankgap.watch.doctor import Doctor, Kind, Thresholds, alarms
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading
from rankgap.watch.verdict import Outcome, judge

STEPS, EVERY = 240, 5
Loss = tuple[Tensor, Tensor, Tensor]  # the loss, P and T


def descend(
    model: nn.Module, loss_of: Callable[[int], Loss], lr: float = 0.03, decay: float = 0.0
) -> list[Reading]:
    """Train, and read every fifth step."""
    monitor = RankMonitor()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=decay)
    for step in range(STEPS):
        loss, online, target = loss_of(step)
        if step % EVERY == 0:
            monitor.update(online, target, step=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return monitor.history


def away(p: Tensor, t: Tensor) -> Tensor:
    return -cosine_similarity(p, t, dim=-1).mean()


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16))


class Points:
    """Points that come in eight groups, and are seen with noise."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.groups = torch.randn(8, 24)

    def views(self, noise: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
        """Two views (64, 24), and the points' groups (64,)."""
        labels = torch.randint(8, (64,))
        first, second = (self.groups[labels] + noise * torch.randn(64, 24) for _ in range(2))
        return first, second, labels


def both_branches_alike() -> list[Reading]:
    points, net = Points(), mlp()

    def loss_of(step: int) -> Loss:
        p, t = (net(view) for view in points.views()[:2])
        return away(p, t), p, t

    return descend(net, loss_of)


def views_that_become_too_strong() -> list[Reading]:
    """Halfway, the term of the loss that holds the dimensions apart weakens, and the views differ more."""
    points, net = Points(), mlp()

    def loss_of(step: int) -> Loss:
        late = step >= STEPS / 2
        p, t = (net(view) for view in points.views(noise=2.0 if late else 0.5)[:2])
        unit = normalize(p, dim=-1)
        apart = (unit.T @ unit / len(unit) - torch.eye(16) / 16).square().sum()
        return away(p, t) + (0.3 if late else 2.0) * apart, p, t

    return descend(net, loss_of)


def views_that_share_nothing() -> list[Reading]:
    """The teacher never moves, so the best that the online branch can do is the teacher's mean."""
    torch.manual_seed(0)
    net, teacher = mlp(), mlp()

    def loss_of(step: int) -> Loss:
        p, t = net(torch.randn(64, 24)), teacher(torch.randn(64, 24)).detach()
        return away(p, t), p, t

    return descend(net, loss_of, decay=0.01)


def weights_that_decay_to_the_bias() -> list[Reading]:
    """The projector decays to its bias; a batch norm makes the online outputs differ all the same."""
    points, hidden, last = Points(), nn.Sequential(nn.Linear(24, 32), nn.ReLU()), nn.Linear(32, 16)
    net, predictor = nn.Sequential(hidden, last), nn.BatchNorm1d(16, eps=1e-12, affine=False)

    def loss_of(step: int) -> Loss:
        first, second, _ = points.views()
        last.weight.data.mul_(0.7)
        p, t = predictor(net(first)), net(second)
        return away(p, t.detach()), p, t

    return descend(net, loss_of, lr=0.0003)


def class_means_as_targets() -> list[Reading]:
    """As in SupSiam: the target is its class's mean, of four classes of two groups each."""
    points, net, predictor = Points(), nn.Sequential(mlp(), nn.BatchNorm1d(16, affine=False)), nn.Linear(16, 16)

    def loss_of(step: int) -> Loss:
        first, second, labels = points.views()
        p, z = predictor(net(first)), net(second).detach()
        t = torch.stack([z[labels % 4 == label].mean(0) for label in range(4)])[labels % 4]
        return away(p, t), p, t

    return descend(nn.Sequential(net, predictor), loss_of, lr=0.003)


# Tokens (B, T, D).


def views_that_share_positions(norm: bool, *, content: float = 0.0) -> list[Reading]:
    """What keeps the outputs apart is a batch norm, or a term of the loss that wants them to vary.

    Two views of an image share their positions, and `content` times what the image shows.
    """
    torch.manual_seed(0)
    first, last = nn.Linear(24, 32), nn.Sequential(nn.ReLU(), nn.Linear(32, 16))
    bn = nn.BatchNorm1d(16, affine=False)
    first.register_parameter("position", nn.Parameter(torch.randn(9, 32)))
    images, monitor = content * torch.randn(8, 1, 24), RankMonitor(layout="b t d")
    optimizer = torch.optim.SGD([*first.parameters(), *last.parameters()], lr=0.1 if norm else 0.03, momentum=0.9)

    def encode(shown: Tensor) -> Tensor:
        z: Tensor = last(first(shown + torch.randn(64, 9, 24)) + first.position)
        return bn(z.flatten(0, 1)).view(z.shape) if norm else z

    for step in range(STEPS):
        shown = images[torch.randint(8, (64,))]
        p, t = encode(shown), encode(shown)
        if step % EVERY == 0:
            monitor.update(p, t, step=step)
        loss = away(p, t) if norm else (p - t).square().mean() + (1 - p.flatten(0, 1).std(0)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return monitor.history


CASES: list[tuple[Callable[[], list[Reading]], Kind, str, Outcome]] = [
    (views_that_become_too_strong, "falling late", "after a plateau", "shrinking"),
    (views_that_share_nothing, "one branch constant", "online outputs all point one way", "collapsed"),
    (weights_that_decay_to_the_bias, "one branch constant", "target outputs all point one way", "collapsed"),
    (lambda: views_that_share_positions(norm=True), "positional collapse", "differ by position", "collapsed"),
    (lambda: views_that_share_positions(norm=False), "positional collapse", "differ by position", "collapsed"),
]


@pytest.mark.parametrize(("run", "kind", "saw", "outcome"), CASES)
def test_each_kind_is_named_in_a_run_that_has_it(
    run: Callable[[], list[Reading]], kind: Kind, saw: str, outcome: Outcome
) -> None:
    history = run()
    *_, last = alarms(history, steps=STEPS)
    assert last.kind == kind
    assert saw in last.saw
    assert all((last.cause, last.knob))
    verdict = judge(history)
    assert verdict.kind == outcome
    assert saw in verdict.saw


def test_a_target_that_is_too_close_is_named_before_the_dimensions_are_gone() -> None:
    first, second, *_ = alarms(both_branches_alike(), steps=STEPS)
    assert (first.kind, second.kind) == ("target too close", "dimensional")
    assert first.step < second.step


def test_tokens_that_show_what_is_in_the_image_are_no_positional_collapse() -> None:
    for norm in (True, False):
        found = {alarm.kind for alarm in alarms(views_that_share_positions(norm, content=3.0), steps=STEPS)}
        assert "positional collapse" not in found


def test_two_views_that_are_taken_for_images_are_no_positional_collapse() -> None:
    views = torch.randn(1, 64, 16) + 0.1 * torch.randn(2, 64, 16)  # alike at each "position"
    monitor = RankMonitor(layout="b t d", thresholds=Thresholds(patience=1), strict=True)
    assert monitor.update(views, views).kind == "healthy"
    assert (monitor.history[0].position_share_target or 0) > 0.98


def test_class_means_lower_the_target_s_rank_and_the_alarm_says_so() -> None:
    history = class_means_as_targets()
    (alarm,) = alarms(history, steps=STEPS)
    assert alarm.kind == "negative rank difference"
    assert "since step 0 (" in alarm.saw
    assert "class means" in alarm.cause
    assert judge(history).kind == "healthy"


# Patience.


def reading(step: int, target: float = 8.0, online: float = 4.0, **more: Any) -> Reading:
    return Reading(step, online, target, target - online, spread=0.5, spread_target=0.5, full_rank=64)._replace(
        **more
    )


def first_alarm(every: int, steps: int | None) -> int:
    """The step at which outputs are called constant that are so from step 20 on."""
    history = [
        reading(step, spread=0.0 if step >= 20 else 0.5, spread_target=0.0) for step in range(0, 200, every)
    ]
    (alarm,) = (each for each in alarms(history, steps=steps) if each.kind == "complete")
    return alarm.step - 20


def test_readings_must_agree_and_span_enough_steps() -> None:
    assert first_alarm(every=10, steps=None) == 40
    assert first_alarm(every=20, steps=None) == 80  # five readings
    assert first_alarm(every=1, steps=None) == 40  # 41 readings
    assert first_alarm(every=1, steps=100_000) == 40
    assert first_alarm(every=1, steps=240) == 20  # a twelfth of the run
    assert first_alarm(every=1, steps=48) == 4
    assert first_alarm(every=1, steps=10) == 4


def test_five_noisy_steps_are_no_alarm() -> None:
    noise = range(30, 35)
    assert not alarms(reading(step, target=1.0 if step in noise else 8.0) for step in range(200))


def test_what_is_kept_of_the_past_does_not_grow() -> None:
    doctor = Doctor(steps=5000)
    for step in range(5000):
        assert not doctor(reading(step))
    kept = [ranks.step for ranks in doctor.since(0)]
    assert len(kept) <= 64
    assert len(doctor.recent) == 5
    assert {b - a for a, b in pairwise(kept)} == {128}
    assert kept[0] == 0
    assert doctor.since(2500)[0].step == 2432
    assert doctor.since(-1)[0].step == 0


def test_a_reading_that_is_not_finite_does_not_end_what_the_others_show() -> None:
    doctor = Doctor(Thresholds(patience=3))
    history = [reading(step, target=1.0) for step in (0, 10, 30)]
    assert [doctor(each).kind for each in history[:2]] == ["healthy", "healthy"]
    assert doctor(Reading(20, finite=False)).kind == "non-finite"
    assert doctor(history[2]).kind == "dimensional"


# Late falls.


def falls_at(step: int, to: float) -> list[Reading]:
    return [reading(each, target=20.0 if each < step else to) for each in range(0, 1000, 10)]


def test_a_late_fall_is_an_alarm_in_a_run_of_known_length_and_always_a_verdict() -> None:
    late = falls_at(700, 9.0)
    (alarm,) = alarms(late, steps=1000)
    assert (alarm.kind, alarm.step) == ("falling late", 760)
    assert "from 20.0 to 9.0" in alarm.saw
    assert "rankgap score" in alarm.knob
    assert not alarms(late)  # at step 700, the run may have only begun
    assert judge(late).kind == "shrinking"
    assert "after a plateau" in judge(late).saw


@pytest.mark.parametrize("every", [10, 25])
def test_a_late_fall_is_named_however_few_readings_a_run_of_known_length_has(every: int) -> None:
    steps = 40 * every
    late = [reading(step, target=20.0 if step < 0.7 * steps else 9.0) for step in range(0, steps, every)]
    (alarm,) = alarms(late, steps=steps)
    assert (alarm.kind, alarm.step) == ("falling late", 0.7 * steps + 6 * every)
    assert judge(late).kind == "shrinking"


def test_a_fall_between_two_kept_marks_of_a_long_run_s_beginning_is_no_late_one() -> None:
    assert not alarms((reading(step, target=20.0 if step < 2115 else 9.0) for step in range(4000)), steps=100_000)


def test_what_is_no_late_fall() -> None:
    assert not alarms(falls_at(300, 9.0), steps=1000)  # ranks fall early in healthy runs, after a warm-up too
    assert not alarms(falls_at(700, 11.0), steps=1000)
    steadily = [reading(step, target=60 * 0.1 ** (step / 1000)) for step in range(0, 1000, 10)]
    assert not alarms(steadily, steps=1000)
    few = [reading(step, target=20.0 if step < 600 else 9.0) for step in range(0, 1000, 30)]
    assert not alarms(few, steps=1000)


# False alarms that were met, and what now prevents them.


def test_a_predictor_that_begins_with_the_mean_is_no_constant_branch() -> None:
    """A healthy BYOL's: its spread was 0.025 to 0.05 for 100 steps, with the target's at 0.7."""
    for spread in (0.025, 0.015):
        history = [reading(step, online=1.2, spread=spread, spread_target=0.7) for step in range(0, 400, 10)]
        assert not alarms(history)
        assert judge(history).kind == "healthy"


def test_an_older_run_without_the_target_s_spread_is_judged_by_the_online_one() -> None:
    history = [reading(step, spread=0.01, spread_target=float("nan")) for step in range(0, 400, 10)]
    assert judge(history).saw.startswith("all outputs point the same way")


def test_soft_assignments_point_the_same_way_and_are_not_constant() -> None:
    """DINO's student is near the uniform distribution at first, at any number of prototypes."""
    shown = {"assignment": 0.8, "usage": 0.95}
    for target in (0.3, 0.001):
        assert not alarms(reading(step, spread=0.001, spread_target=target, **shown) for step in range(0, 400, 10))


def test_a_jepa_s_predictor_begins_with_positions_and_its_target_does_not() -> None:
    """On CIFAR-10 with sine positions: 95% of the predictor's variance at first, with an image rank of 1.06."""
    online = {"position_share_online": 0.952, "image_rank_online": 1.06}
    target = {"position_share_target": 0.214, "image_rank_target": 2.21}
    assert not alarms(reading(step, **online, **target) for step in range(0, 400, 10))


def test_positions_that_explain_much_are_no_collapse_while_images_differ() -> None:
    tokens = {"position_share_target": 0.97, "image_rank_target": 8.7}
    assert not alarms(reading(step, **tokens) for step in range(0, 400, 10))


def test_a_wider_online_branch_makes_no_negative_difference() -> None:
    wide = [reading(step, target=9.0, online=30.0, full_rank=16.0) for step in range(0, 400, 10)]
    assert not alarms(wide)
    assert judge(wide).kind == "healthy"
    (alarm,) = alarms(each._replace(full_rank=64.0) for each in wide)
    assert alarm.kind == "negative rank difference"


# A healthy SimSiam on CIFAR-10 (JPEG), every tenth step: the two ranks cross while both fall.
TARGET = (
    38.6,
    29.1,
    16.3,
    10.6,
    6.7,
    5.2,
    4.2,
    4.2,
    3.6,
    3.8,
    4.4,
    4.3,
    4.2,
    4.4,
    4.2,
    3.6,
    3.7,
    4.2,
    4.1,
    3.7,
    3.8,
)
ONLINE = (
    19.0,
    12.9,
    8.4,
    5.9,
    5.1,
    4.8,
    4.1,
    4.0,
    4.3,
    4.2,
    4.3,
    4.6,
    4.6,
    4.4,
    4.4,
    4.1,
    4.0,
    3.9,
    4.0,
    3.6,
    3.4,
)


def test_ranks_that_cross_while_they_fall_are_not_too_close() -> None:
    history = [reading(10 * i, t, p) for i, (t, p) in enumerate(zip(TARGET, ONLINE, strict=True))]
    assert not alarms(history, steps=628)
