from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from rankgap.evaluate import label_free
from rankgap.evaluate.linear import linear_probe
from rankgap.evaluate.neighbours import knn
from rankgap.filters.gains import AutoPower
from rankgap.filters.learned import LearnedFilter
from rankgap.filters.spectral import SpectralFilter
from rankgap.model.methods import METHODS
from rankgap.model.schedule import Clock
from rankgap.run.build import build
from rankgap.run.optimizer import build_optimizer
from rankgap.run.recipes import load_recipe
from rankgap.spectra.effective_rank import effective_rank, mean_energy, rank_difference, rankme
from rankgap.spectra.float64 import double, float64_device, with_float64
from rankgap.spectra.gram import singular_values, svd_basis
from rankgap.spectra.pair import low_pass_score, measured_filter, pair_spectrum
from rankgap.spectra.streaming import EffectiveRank, PairSpectra
from rankgap.views import ViewConfig, Views, eval_view
from rankgap.watch.monitor import RankMonitor
from tests.apple import REFUSAL, AppleGPU, AppleTensor, move


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    with AppleGPU():
        yield


def rows(n: int = 40, d: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_device_of_these_tests_refuses_float64_and_mixes_with_no_cpu_tensor() -> None:
    z = rows().to("mps")
    assert z.device.type == "mps"
    for refused in (
        z.double,
        lambda: z.to(torch.float64),
        lambda: torch.zeros(3, dtype=torch.float64, device="mps"),
    ):
        with pytest.raises(TypeError, match=REFUSAL):
            refused()
    with pytest.raises(RuntimeError, match="same device"):
        z + rows()
    assert type(z.cpu()) is type(rows()) is Tensor
    assert z.new_zeros(2).device == (z @ z.mT).device == torch.zeros(1, device="mps").device == z.device


def test_float64_work_is_done_on_the_cpu_where_the_device_has_none_and_else_where_the_tensor_is() -> None:
    z, ours = rows(), rows().to("mps")
    assert float64_device(z) == float64_device(ours) == torch.device("cpu")
    assert with_float64(z) is z
    assert torch.equal(double(ours), z.double())


@pytest.mark.parametrize(
    "measure",
    [
        effective_rank,
        lambda z: effective_rank(z, of="features", center=True),
        lambda z: effective_rank(z.repeat(15, 50)),  # large enough for a decomposition in float32
        lambda z: effective_rank(z * 1e30),
        rankme,
        mean_energy,
        singular_values,
        lambda z: svd_basis(z, "test").s,
        lambda z: rank_difference(z, z.square()),
        lambda z: pair_spectrum(z, z.square()).transfer,
        lambda z: low_pass_score(*measured_filter(z.square(), z)),
        lambda z: low_pass_score(z[0].abs(), z[1]),
        AutoPower().exponent,
        label_free.stable_rank,
        label_free.participation_ratio,
        label_free.nesum,
        label_free.alpha_req,
        lambda z: label_free.lidar(z.view(20, 2, 12)),
        label_free.uniformity,
        lambda z: label_free.alignment(z, z.square()),
        label_free.intrinsic_dimension,
        label_free.cluster_learnability,
    ],
)
def test_a_measure_is_that_of_the_cpu(measure: Callable[[Tensor], Tensor]) -> None:
    assert torch.equal(measure(rows().to("mps")), measure(rows()))


@pytest.mark.parametrize("solver", ["auto", "gram", "svd", "iterative"])
@pytest.mark.parametrize("gain", ["power:0.5", "power:-0.5", "power:2", "power:0.3", "log1p", "s/(s+0.1)", "auto"])
@pytest.mark.parametrize("shape", [(40, 12), (2, 10, 24)])
def test_a_filter_and_its_gradient_are_those_of_the_cpu(solver: str, gain: str, shape: tuple[int, ...]) -> None:
    if (solver, gain) == ("iterative", "auto"):
        pytest.skip("auto needs the spectrum")
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0))

    def filtered(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.clone().requires_grad_()
        p = SpectralFilter(gain, solver=solver)(z)  # type: ignore[arg-type]
        (p * p.detach().sin()).sum().backward()
        assert p.device == z.device
        assert z.grad is not None
        return p.detach(), z.grad

    for there, here in zip(filtered(z.to("mps")), filtered(z), strict=True):
        assert torch.equal(there.cpu().as_subclass(Tensor), here)


@pytest.mark.parametrize("solver", ["gram", "iterative"])
def test_a_learned_gain_is_trained_as_on_the_cpu(solver: str) -> None:
    def gradients(*, gpu: bool) -> list[Tensor]:
        model = LearnedFilter(solver=solver)  # type: ignore[arg-type]
        z = rows(10, 24)
        if gpu:
            move(model)
            z = z.to("mps")
        z.requires_grad_()
        p = model(z)
        (p * p.detach().sin()).sum().backward()
        return [x.grad.cpu().as_subclass(Tensor) for x in (z, model.gain.raw) if x.grad is not None]

    for there, here in zip(gradients(gpu=True), gradients(gpu=False), strict=True):
        assert torch.equal(there, here)


def test_a_running_filter_keeps_its_float64_where_there_is_some() -> None:
    model = SpectralFilter("auto", branch="target", estimator="ema", dim=12, every=1)
    move(model)
    assert model.running is not None
    assert model.running.correlation.dtype == torch.float64
    assert isinstance(model.running.held, AppleTensor)
    here = SpectralFilter("auto", branch="target", estimator="ema", dim=12, every=1)
    assert torch.equal(model(rows().to("mps")).cpu(), here(rows()))
    assert model.exponent is not None
    assert here.exponent is not None
    assert float(model.exponent) == float(here.exponent)


def test_streams_and_the_monitor_read_what_they_read_on_the_cpu() -> None:
    monitors = RankMonitor(strict=True), RankMonitor(strict=True)
    streams = EffectiveRank(12), EffectiveRank(12)
    move(streams[0])
    pairs = PairSpectra(12), PairSpectra(12)
    for seed in range(6):
        z, p = rows(seed=seed), rows(seed=seed) ** 3
        monitors[0].update(p.to("mps"), z.to("mps"))
        monitors[1].update(p, z)
        streams[0].update(z.to("mps"))
        streams[1].update(z)
        pairs[0].update(p.to("mps"), z.to("mps"))
        pairs[1].update(p, z)
    assert monitors[0].history == monitors[1].history
    assert str(monitors[0].compute()) == str(monitors[1].compute())
    assert str(monitors[0].batch_spectrum()) == str(monitors[1].batch_spectrum())
    assert torch.equal(streams[0].compute(), streams[1].compute())
    assert str(pairs[0].compute()) == str(pairs[1].compute())


def test_classifiers_score_as_on_the_cpu() -> None:
    z, labels = rows(80), torch.arange(80) % 7
    z = z + 2 * torch.nn.functional.one_hot(labels, 12)
    for score in (knn, linear_probe, lambda *sets: linear_probe(*sets, solver="sgd")):
        sets = z[:60], labels[:60], z[60:], labels[60:]
        assert score(*(x.to("mps") for x in sets)) == score(*sets)


def test_views_are_drawn_there() -> None:
    images = torch.randint(0, 256, (4, 3, 20, 24), dtype=torch.uint8)
    views = Views([ViewConfig(blur_p=1, solarize_p=1), ViewConfig(grey_p=1)], 16, [0.5] * 3, [0.25] * 3)
    here = views(images, generator=torch.Generator().manual_seed(0))
    move(views)
    there = views(images.to("mps"), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(there.cpu(), here, atol=1e-6)
    view = eval_view(images.to("mps"), None, 16, [0.5] * 3, [0.25] * 3)
    assert torch.equal(view.cpu(), eval_view(images, None, 16, [0.5] * 3, [0.25] * 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("online", [None, "learned", "power:0.5"])
def test_every_row_takes_a_training_step(method: str, online: str | None) -> None:
    torch.manual_seed(0)
    model = build(method, online=online, backbone="resnet_tiny", channels=1, size=8)
    move(model)
    clock = Clock(step=3, steps=10, steps_per_epoch=1)
    optimizer = build_optimizer(model, load_recipe("cifar", METHODS[method].body).optimizer)
    model.prepare(clock)
    views = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    out = model(views.to("mps"))
    out.loss.backward()
    optimizer.step()
    model.update_teacher(clock)
    monitor = RankMonitor(strict=True)
    monitor.update(out.online, out.target)
    assert out.loss.device.type == "mps"
    assert monitor.history[0].finite
