from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from rankgap.errors import UserError
from rankgap.model.assignments import CentredAssignmentOptions
from rankgap.model.branches import TeacherOptions
from rankgap.model.heads import Heads
from rankgap.model.methods import Method
from rankgap.model.mlp import ProjectorOptions
from rankgap.model.predictor import PredictorOptions
from rankgap.model.prototypes import PrototypeOptions
from rankgap.run.build import build
from rankgap.spectra.effective_rank import effective_rank
from rankgap.spectra.gram import singular_values
from rankgap.spectra.pair import measured_filter, pair_spectrum
from rankgap.watch.doctor import Diagnosis, Kind, Thresholds, alarms
from rankgap.watch.monitor import RankMonitor
from rankgap.watch.reading import Reading, readings
from tests.training import descend, sgd, tiny_encoder


class SimSiam(nn.Module):
    """As people write it: each view passes through the modules by itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.projector = nn.Linear(16, 8)
        self.predictor = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.backbone(x))
        return z.detach(), self.predictor(z)


def views(seed: int, rows: int = 20) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 12, generator=generator)
    return x, x + 0.1 * torch.randn(rows, 12, generator=generator)


def loss_of(p: Tensor, z: Tensor) -> Tensor:
    return -nn.functional.cosine_similarity(p, z.detach()).mean()


def step(model: SimSiam, seed: int) -> tuple[Tensor, Tensor]:
    """A training step; returns the rows that the monitor should compare."""
    (z1, p1), (z2, p2) = (model(x) for x in views(seed))
    (loss_of(p1, z2) + loss_of(p2, z1)).backward()
    return p1.detach(), z2


def test_online_view_1_is_paired_with_target_view_2_however_often_modules_run() -> None:
    model = SimSiam()
    with RankMonitor(model, every=1) as monitor:
        pairs = [step(model, seed) for seed in range(3)]
    online, target = (torch.cat(side) for side in zip(*pairs, strict=True))
    found = monitor.compute()
    assert found.rows == 60
    assert_close(found.erank_online, effective_rank(online), rtol=1e-6, atol=0)
    assert_close(found.erank_target, effective_rank(target), rtol=1e-6, atol=0)
    assert_close(found.rank_difference, found.erank_target - found.erank_online)
    assert found.step == 2
    assert_close(found.measured_filter, measured_filter(online, target)[1], rtol=1e-5, atol=1e-8)
    assert [r.step for r in monitor.history] == [0, 1, 2]
    assert monitor.history[1].erank_online == pytest.approx(float(effective_rank(pairs[1][0])), rel=1e-5)


def test_views_stacked_in_one_batch_are_told_apart() -> None:
    model = SimSiam()
    with RankMonitor(model, every=1, stacked=2) as monitor:
        z, p = model(torch.cat(views(0)))
        loss_of(p, z.roll(20, 0)).backward()
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(p[:20])), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(z[20:])), rel=1e-5)


@pytest.mark.parametrize("method", ["byol", "swav"])
def test_our_own_models_return_all_views_at_once(method: str) -> None:
    model = build(method, backbone="resnet_tiny", heads=HEADS, size=8, channels=1)
    with RankMonitor(model, online="online_map", target="target_map", every=1) as monitor:
        out = model(torch.randn(2, 8, 1, 8, 8))
        out.loss.backward()
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(out.online[0])), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(out.target[1])), rel=1e-5)


def test_every_few_steps_are_read_and_evaluation_is_not() -> None:
    model = SimSiam()
    with RankMonitor(model, every=3) as monitor:
        for seed in range(7):
            step(model, seed)
            model.eval()
            with torch.no_grad():
                model(views(0)[0])
            model.train()
            with torch.no_grad():
                model.projector(torch.randn(4, 16))
    assert [r.step for r in monitor.history] == [0, 3, 6]
    assert monitor.step == 7
    assert monitor.compute().rows == 60


def test_hooks_are_gone_after_the_block_even_after_an_error() -> None:
    model = SimSiam()
    monitor = RankMonitor(model, every=1)

    def interrupted() -> None:
        with monitor:
            step(model, 0)
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not model.predictor._forward_hooks
    assert not model.projector._forward_hooks
    step(model, 1)
    assert len(monitor.history) == 1


def test_autocast_and_checkpointing_change_nothing_but_digits() -> None:
    model = SimSiam()
    with RankMonitor(model, every=1) as monitor, torch.autocast("cpu", torch.bfloat16):
        p, _ = step(model, 0)
    assert p.dtype == torch.bfloat16
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(p)), rel=1e-4)
    with RankMonitor(model, every=1) as monitor:
        for seed in range(2):
            x1, x2 = views(seed)
            z1 = checkpoint(lambda x: model.projector(model.backbone(x)), x1, use_reentrant=False)
            p1 = checkpoint(model.predictor, z1, use_reentrant=False)
            z2 = model.projector(model.backbone(x2))
            loss_of(p1, z2).backward()
    assert len(monitor.history) == 2
    assert monitor.compute().rows == 40


def test_without_a_model_update_does_the_same_and_reset_begins_a_window() -> None:
    monitor = RankMonitor()
    for seed in range(3):
        monitor.update(*views(seed))
    assert monitor.compute().rows == 60
    monitor.reset()
    monitor.update(*views(5))
    assert monitor.compute().rows == 20
    assert_close(monitor.compute().erank_online, effective_rank(views(5)[0]), rtol=1e-6, atol=0)
    assert len(monitor.history) == 4


def whole(seed: int) -> tuple[Tensor, Tensor]:
    """All views of both branches (2, N, D)."""
    return torch.stack(views(seed)), torch.stack(views(seed + 100))


def test_views_given_whole_are_read_as_the_opposite_rows_given_by_hand() -> None:
    both, by_hand = RankMonitor(), RankMonitor()
    for seed in range(3):
        online, target = whole(seed)
        both.update(online, target)
        by_hand.update(online[0], target[1])
    assert both.history == by_hand.history
    found, wanted = both.compute(), by_hand.compute()
    assert found.plain() == wanted.plain()
    record = both.batch_spectrum()  # ranks of what was read; filter and eigenspaces within the target's view
    assert_close(record.spectrum_online, singular_values(online[0]))
    within = pair_spectrum(online[1], target[1])
    assert_close(record.spectrum_target, within.spectrum_target)
    assert_close(record.measured_filter, within.measured_filter)
    assert_close(record.eigenspace_alignment, within.eigenspace_alignment)


def test_an_identity_map_has_a_flat_filter_and_its_own_eigenspaces() -> None:
    """What the views do not share is no filter of the map."""
    monitor = RankMonitor(window=False)
    monitor.update(*(torch.stack(views(0)),) * 2)
    record = monitor.batch_spectrum()
    assert_close(record.measured_filter, torch.ones_like(record.measured_filter))
    assert_close(record.transfer, torch.ones_like(record.transfer))
    assert_close(record.eigenspace_alignment, torch.ones_like(record.eigenspace_alignment))


def test_the_newest_rows_have_a_record_and_are_not_copied() -> None:
    monitor = RankMonitor(window=False)
    with pytest.raises(UserError, match="no step has been read yet"):
        monitor.batch_spectrum()
    monitor.update(torch.full((4, 3), torch.nan), torch.zeros(4, 3))
    with pytest.raises(UserError, match="no finite outputs have been read yet"):
        monitor.batch_spectrum()
    for seed in range(2):
        p, t = views(seed)
        monitor.update(p.requires_grad_(), t, step=10 * seed)
    assert monitor.batch_spectrum().plain() == dataclasses.replace(pair_spectrum(p, t), step=10).plain()
    monitor.update(torch.full((4, 3), torch.nan), torch.zeros(4, 3))
    found = monitor.batch_spectrum()
    assert (found.step, found.rows) == (10, 20)
    with torch.no_grad():
        p.mul_(2)
    assert_close(monitor.batch_spectrum().measured_filter, 2 * found.measured_filter)


def test_without_a_window_readings_are_the_same_and_no_sums_are_kept() -> None:
    with_sums, without = RankMonitor(), RankMonitor(window=False)
    for seed in range(3):
        with_sums.update(*views(seed))
        without.update(*views(seed))
    assert without.history == with_sums.history
    assert without.batch_spectrum().plain() == with_sums.batch_spectrum().plain()
    with pytest.raises(UserError, match="keeps no sums: call batch_spectrum, or create it with window=True"):
        without.compute()
    without.reset()


def test_a_step_and_an_exponent_can_be_given() -> None:
    monitor = RankMonitor()
    monitor.update(*views(0), step=20, exponent=-0.5)
    monitor.update(*views(1))
    assert [(r.step, r.exponent) for r in monitor.history] == [(20, -0.5), (21, None)]
    assert monitor.history[0].numbers()["exponent"] == -0.5
    assert "exponent" not in monitor.history[1].numbers()
    assert monitor.compute().step == 21
    assert monitor.step == 22


def test_a_resumed_monitor_continues_as_if_it_had_not_been_interrupted() -> None:
    rows = [(torch.eye(6, 4),) * 2] * 4 + [(torch.ones(6, 4),) * 2] * 6
    whole_run, first, second = (RankMonitor(thresholds=Thresholds(patience=3, apart=1, early=6)) for _ in range(3))
    for pair in rows:
        whole_run.update(*pair)
    for pair in rows[:7]:
        first.update(*pair)
    second.resume(iter(first.history))
    assert (second.step, second.diagnosis) == (first.step, first.diagnosis)
    assert second.diagnosis.kind == "complete"
    assert second.news() is None
    for pair in rows[7:]:
        second.update(*pair)
    assert second.history == whole_run.history
    assert second.diagnosis == whole_run.diagnosis
    assert (second.doctor.peak, second.doctor.seen) == (whole_run.doctor.peak, whole_run.doctor.seen)
    assert list(second.doctor.recent) == list(whole_run.doctor.recent)
    assert second.news() is None  # the alarm was told before the interruption
    fresh = RankMonitor()
    fresh.resume([])
    assert (fresh.step, fresh.history) == (0, [])


def test_a_module_has_all_its_names() -> None:
    model = nn.ModuleDict({"student": nn.ModuleDict({"head": nn.Linear(8, 4)}), "projector": nn.Linear(8, 4)})
    model["predictor"] = model["student"]["head"]  # type: ignore[index]
    with RankMonitor(model, every=1, strict=True) as monitor:
        model["projector"](torch.randn(6, 8)), model["predictor"](torch.randn(6, 8)).sum().backward()
    assert len(monitor.history) == 1


def test_modules_and_outputs_that_cannot_be_watched_are_named() -> None:
    model = SimSiam()
    with pytest.raises(UserError, match=r"SimSiam has no module 'predictr'; nearest: predictor"):
        RankMonitor(model, online="predictr")
    with pytest.raises(UserError, match=r"backbone\.1"):
        RankMonitor(model, online="backbone.9")
    with pytest.raises(UserError, match="no step has been read"):
        RankMonitor().compute()
    with pytest.raises(UserError, match="1 or more"):
        RankMonitor(every=0)
    zero = RankMonitor()
    zero.update(torch.zeros(4, 3), torch.ones(4, 3))
    with pytest.raises(UserError, match="online outputs are all zero"):
        zero.compute()
    with (
        pytest.raises(UserError, match="predictor gave nothing to read in a step in which the other module did"),
        RankMonitor(model, online="projector", target="predictor", every=1, strict=True),
    ):
        model.projector(torch.randn(4, 16)).sum().backward()


# Diagnosis: a run is trained into each kind, on points that come in groups and are seen with noise.


HEADS = Heads(
    projector=ProjectorOptions(widths=(32, 16)),
    prototypes=PrototypeOptions(count=16),
    teacher=TeacherOptions(momentum=0.9),
    online={"predictor": PredictorOptions(widths=(4,))},
)


def train(
    method: str | Method,
    *,
    online: str | None = None,
    target: str | None = None,
    heads: Heads = HEADS,
    lr: float = 0.1,
    steps: int = 60,
    thresholds: Thresholds | None = None,
) -> RankMonitor:
    torch.manual_seed(0)
    model = build(method, backbone=tiny_encoder(), online=online, target=target, heads=heads)
    monitor = RankMonitor(every=1, thresholds=thresholds or Thresholds(apart=1))
    generator = torch.Generator().manual_seed(1)
    groups = torch.randn(8, 24, generator=generator)
    batches = [
        groups[torch.randint(8, (64,), generator=generator)] + 0.5 * torch.randn(2, 64, 24, generator=generator)
        for _ in range(steps)
    ]
    for out in descend(model, batches, sgd(model, lr, 0.9), steps_per_epoch=10):
        if monitor.update(out.online, out.target).kind == "non-finite":
            break
    return monitor


NO_CENTRE = dataclasses.replace(
    HEADS,
    projector=ProjectorOptions(widths=(32, 16), norm=False),
    teacher=TeacherOptions(momentum=0.0),
    target={
        "centred_assignment": CentredAssignmentOptions(momentum=1.0, temperature=0.01, warmup_temperature=0.01)
    },
)
SOFT = dataclasses.replace(
    HEADS, target={"centred_assignment": CentredAssignmentOptions(temperature=5.0, warmup_temperature=5.0)}
)

CASES: list[tuple[Kind, Callable[[], RankMonitor]]] = [
    ("healthy", lambda: train("simsiam", target="power:-0.5")),
    ("complete", lambda: train("siamese", lr=0.5, steps=250, thresholds=Thresholds(constant=0.05, apart=1))),
    ("dimensional", lambda: train("symsimsiam", lr=0.5, steps=200, thresholds=Thresholds(share=0.5, apart=1))),
    ("uniform assignment", lambda: train("dino", heads=SOFT)),
    ("one prototype", lambda: train("dino", heads=NO_CENTRE, lr=0.5, steps=400)),
    ("negative rank difference", lambda: train("simsiam", online="power:-0.5", lr=0.01)),
    ("non-finite", lambda: train("byol", lr=1e30)),
]


@pytest.mark.parametrize(("kind", "run"), CASES, ids=[kind for kind, _ in CASES])
def test_each_kind_is_named_in_a_run_that_has_it(kind: Kind, run: Callable[[], RankMonitor]) -> None:
    monitor = run()
    found = monitor.diagnosis
    assert found.kind == kind, (found, monitor.history[-1])
    assert bool(found) == (kind != "healthy")
    assert found.step == monitor.history[-1].step
    if found:
        assert all((found.saw, found.cause, found.knob))
        assert f"{kind} at step {found.step}" in str(found)


def test_patience_is_the_number_of_readings_that_agree() -> None:
    same = torch.ones(6, 4)
    monitor = RankMonitor(thresholds=Thresholds(patience=3, apart=1))
    assert [monitor.update(same, same).kind for _ in range(3)] == ["healthy", "healthy", "complete"]
    assert monitor.update(*(torch.eye(6, 4),) * 2).kind == "healthy"


def test_a_fault_that_comes_and_goes_is_told_once_until_the_run_is_healthy_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kinds: list[Kind] = ["dimensional", "one branch constant", "dimensional", "healthy", "dimensional"]
    monitor = RankMonitor()
    monkeypatch.setattr(monitor, "doctor", lambda reading: Diagnosis(kinds[reading.step], reading.step))
    told = []
    for _ in kinds:
        monitor.update(torch.eye(6, 4), torch.eye(6, 4))
        told.append(news.kind if (news := monitor.news()) else None)
    assert told == ["dimensional", "one branch constant", None, None, "dimensional"]


def test_thresholds_are_frozen_and_shared_without_the_doctor_s_memory() -> None:
    thresholds = Thresholds(patience=2, apart=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        thresholds.patience = 3  # type: ignore[misc]
    same = torch.ones(6, 4)
    first, second = RankMonitor(thresholds=thresholds), RankMonitor(thresholds=thresholds)
    assert [first.update(same, same).kind for _ in range(2)] == ["healthy", "complete"]
    assert [second.update(same, same).kind for _ in range(2)] == ["healthy", "complete"]


def test_a_history_gives_each_alarm_once_and_is_read_back_from_columns() -> None:
    monitor = RankMonitor(thresholds=Thresholds(patience=2, apart=1))
    for online in [torch.eye(6, 4)] * 2 + [torch.ones(6, 4)] * 4 + [torch.eye(6, 4)] * 2 + [torch.ones(6, 4)] * 2:
        monitor.update(online, online)
    found = alarms(monitor.history, Thresholds(patience=2, apart=1))
    assert [(d.kind, d.step) for d in found] == [("complete", 3), ("complete", 9)]
    columns = {name: [getattr(r, name) for r in monitor.history] for name in ("step", "erank_target", "spread")}
    again = readings({**columns, "lr": [0.1] * 10})
    assert [(r.step, r.spread) for r in again] == [(r.step, r.spread) for r in monitor.history]


def test_all_that_was_measured_is_read_back_from_columns() -> None:
    monitor = RankMonitor()
    for seed in range(3):
        monitor.update(*(view.softmax(-1) for view in views(seed)), exponent=-0.1 * seed)
    names = list(monitor.history[0].numbers())
    assert len(names) == 14
    columns = {name: [getattr(r, name) for r in monitor.history] for name in ("step", *names)}
    assert readings(columns) == monitor.history


def test_outputs_that_are_all_zero_are_a_complete_collapse() -> None:
    monitor = RankMonitor(thresholds=Thresholds(patience=1))
    assert monitor.update(torch.zeros(6, 4), torch.zeros(6, 4)).kind == "complete"
    assert monitor.update(torch.full((6, 4), torch.inf), torch.zeros(6, 4)).kind == "non-finite"


def test_news_of_a_fault_come_once_however_often_they_are_asked_for() -> None:
    monitor, told = RankMonitor(thresholds=Thresholds(patience=2, apart=1)), []
    healthy, constant = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.ones(6, 4)
    for z in [healthy] * 3 + [constant] * 6 + [healthy] * 3 + [constant] * 6:
        monitor.update(z, z)
        told += [alarm for _ in range(3) if (alarm := monitor.news())]
    assert told == alarms(monitor.history, monitor.doctor.thresholds)
    assert [alarm.kind for alarm in told] == ["complete"] * 2
    assert monitor.diagnosis.kind == "complete"  # the state stays


def test_news_wait_until_they_are_asked_for() -> None:
    monitor = RankMonitor(thresholds=Thresholds(patience=2, apart=1))
    for z in [torch.ones(6, 4)] * 3 + [torch.eye(6, 4)] * 3:
        monitor.update(z, z)
    assert not monitor.diagnosis
    assert (alarm := monitor.news()) is not None
    assert (alarm.kind, alarm.step) == ("complete", 1)


def test_the_history_is_a_table(tmp_path: Path) -> None:
    monitor = RankMonitor()
    for seed in range(3):
        monitor.update(*views(seed), step=10 * seed)
    monitor.to_csv(tmp_path / "ranks.csv")
    frame = pd.DataFrame(monitor.history)
    saved = pd.read_csv(tmp_path / "ranks.csv")
    assert list(frame) == list(saved) == list(Reading._fields)
    assert saved.step.tolist() == [0, 10, 20]
    assert saved.erank_target.tolist() == [r.erank_target for r in monitor.history]
    with pytest.raises(UserError, match=r"nowhere.ranks.csv cannot be written: No such file"):
        monitor.to_csv(tmp_path / "nowhere" / "ranks.csv")


def test_what_the_monitor_found_is_printed_as_a_table() -> None:
    monitor = RankMonitor()
    monitor.update(*views(0), step=7)
    found = monitor.compute()
    lines = str(found).splitlines()
    assert lines == repr(found).splitlines()
    assert lines[0].split() == ["rows", "20,", "step", "7"]
    assert f"{float(found.rank_difference):+.2f}" in lines[3]
    assert f"{float(found.low_pass_score):+.2f}" in lines[5]
    assert all(len(line) <= 80 for line in lines)


def test_help_names_every_attribute() -> None:
    attributes = {name for name in vars(RankMonitor()) if not name.startswith("_")}
    text = inspect.getdoc(RankMonitor) or ""
    assert attributes <= set(re.findall(r"^    (\w+):", text, flags=re.MULTILINE))


def test_a_healthy_diagnosis_is_false() -> None:
    assert not Diagnosis("healthy", 3)
    assert str(Diagnosis("healthy", 3)) == "healthy at step 3"


def test_outputs_of_several_calls_are_followed_one_by_one() -> None:
    """By hand as by hooks: what follows a module gets what it gave in a call."""
    online, target = whole(0)
    monitor = RankMonitor(then=(lambda z: z.softmax(-1), None), strict=True)
    monitor.update(list(online), tuple(target))
    assert monitor.history[0].erank_online == pytest.approx(float(effective_rank(online[0].softmax(-1))), rel=1e-5)
    assert monitor.history[0].erank_target == pytest.approx(float(effective_rank(target[1])), rel=1e-5)
    parts = RankMonitor(then=(lambda zs: [2 * z for z in zs], None), strict=True)
    parts.update([list(online)], target)
    assert not parts.skipped
