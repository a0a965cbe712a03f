from __future__ import annotations

import math

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.testing import assert_close

from rankgap.errors import UserError
from rankgap.evaluate import dense_structure, dse
from rankgap.spectra import between_image_share
from tests.matrices import gaussian, orthogonal


def scenes(images: int, tokens: int, width: int, *, noise: float, seed: int = 0) -> Tensor:
    """Tokens about six directions that all images share."""
    kinds = torch.randint(6, (images, tokens), generator=torch.Generator().manual_seed(seed))
    return 4 * gaussian(6, width)[kinds] + noise * gaussian(images, tokens, width, seed=seed + 1)


def written_out(z: Tensor, seed: int) -> tuple[float, float, float, float]:
    """The parts of DSE by the authors' definitions, one row and one cluster after another."""
    images, tokens, width = z.shape
    z = z / z.norm(dim=-1, keepdim=True)
    middle = z.reshape(-1, width).mean(0)
    unit = sum(float((row - middle).norm()) for row in z.reshape(-1, width)) / (images * tokens)

    def spreads(rows: Tensor, labels: list[int], count: int) -> list[float]:
        found = []
        for label in range(count):
            own = torch.stack([row for row, its in zip(rows, labels, strict=True) if its == label])
            if len(own) > 1:
                nuclear = float(torch.linalg.matrix_norm(own - own.mean(0), "nuc"))
                found.append(nuclear / math.sqrt(max(len(own) - 1, width)))
        return found

    of_images = []
    for image in z:
        labels = KMeans(3, n_init=1, random_state=seed).fit_predict(image.numpy()).tolist()
        own = spreads(image, labels, 3)
        of_images.append(sum(own) / len(own))
    of_groups, separations = [], []
    for start in range(0, images - 7, 8):
        rows = z[start : start + 8].reshape(-1, width)
        labels = KMeans(24, n_init=1, random_state=seed).fit_predict(rows.numpy()).tolist()
        of_groups += spreads(rows, labels, 24)
        centres = [rows[torch.tensor(labels) == label].mean(0) for label in range(24)]
        separations.append(
            sum(
                min(float((row - centre).norm()) for label, centre in enumerate(centres) if label != own)
                for row, own in zip(rows, labels, strict=True)
            )
            / len(rows)
        )
    order = torch.rand(images, tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
    ranks = []
    for draw in range(tokens):
        s = torch.linalg.svdvals(torch.stack([z[b, order[b, draw]] for b in range(images)]))
        p = s / s.sum()
        ranks.append(float((-p * p.log()).sum().exp()) / min(images, width))
    count = len(separations)
    return (
        sum(separations) / count / unit,
        sum(of_images) / images / unit,
        sum(of_groups) / len(of_groups) / unit,
        sum(ranks) / tokens,
    )


def test_the_parts_of_dse_are_their_definitions_written_out() -> None:
    z = scenes(19, 9, 7, noise=1.0)  # two groups of 8 images, and 3 images in none
    found = dense_structure(z, seed=3)
    expected = written_out(z, seed=3)
    assert [float(part) for part in found] == pytest.approx(list(expected), rel=1e-9)
    separation, image, group, dimension = expected
    assert float(dse(z, seed=3)) == pytest.approx(separation - (image + group) / 2 + dimension, rel=1e-9)


def test_exact_clusters_on_orthogonal_axes() -> None:
    """24 directions, three to an image: no spread, neighbours at sqrt 2, and all images independent."""
    z = torch.eye(24, dtype=torch.float64).view(8, 3, 24).repeat_interleave(4, 1)
    found = dense_structure(z)
    assert float(found.image_spread) == pytest.approx(0, abs=1e-6)
    assert float(found.group_spread) == pytest.approx(0, abs=1e-6)
    assert float(found.separation) == pytest.approx(math.sqrt(2 / (23 / 24)), rel=1e-6)
    assert float(found.dimension) == pytest.approx(1, rel=1e-6)
    assert float(dse(z)) == pytest.approx(math.sqrt(48 / 23) + 1, rel=1e-6)


def test_dse_falls_as_kinds_blur_and_as_dimensions_die() -> None:
    kinds = gaussian(24, 32).view(8, 3, 32).repeat_interleave(4, 1).repeat(4, 1, 1)  # 24 in each 8 images
    noise = gaussian(32, 12, 32, seed=1)
    sharp, blurred = dense_structure(kinds + 0.1 * noise), dense_structure(kinds + 2 * noise)
    assert float(sharp.separability) > float(blurred.separability) + 0.5
    flat = kinds + noise
    flat[..., 2:] *= 1e-3
    assert float(dense_structure(flat).dimension) < 0.1 < float(sharp.dimension)


def test_sharp_kinds_that_are_fewer_than_the_clusters_are_cut() -> None:
    sharp, blurred = (dense_structure(scenes(64, 16, 32, noise=noise)) for noise in (0.2, 3.0))
    assert float(sharp.separation) < float(blurred.separation)


def test_dse_knows_no_axes_and_no_length_of_a_token() -> None:
    z = scenes(16, 9, 6, noise=0.3)
    lengths = gaussian(16, 9, 1, seed=5).exp()
    for other in (1e6 * z, z @ orthogonal(6), lengths * z, z.float()):
        assert float(dse(other)) == pytest.approx(float(dse(z)), rel=1e-5)
    assert_close(dse(z, seed=1), dse(z, seed=1))
    assert float(dse(z, seed=1)) != float(dse(z, seed=2))


def test_tokens_without_a_structure_are_refused() -> None:
    with pytest.raises(UserError, match=r"tokens \(B, T, D\) with B >= 8 and T > 3, got \(8, 1, 4\)"):
        dse(gaussian(8, 1, 4))
    with pytest.raises(UserError, match=r"B >= 8.*got \(7, 9, 4\)"):
        dse(gaussian(7, 9, 4))
    with pytest.raises(UserError, match=r"got \(80, 4\)"):
        dse(gaussian(80, 4))
    with pytest.raises(UserError, match="got int64"):
        dse(torch.ones(8, 9, 4, dtype=torch.int64))
    broken = gaussian(8, 9, 4)
    broken[0, 0, 0] = math.inf
    with pytest.raises(UserError, match="dense_structure: 1 of 288 values are not finite"):
        dse(broken)
    with pytest.raises(UserError, match="all tokens point one way"):
        dse(gaussian(8, 9, 1).exp() * torch.ones(4))


def test_tokens_that_are_alike_within_images_have_a_score() -> None:
    """Fewer distinct rows than clusters are no error: a collapsed feature map must be scored too."""
    z = gaussian(16, 1, 6).expand(16, 9, 6)
    assert float(between_image_share(z)) == pytest.approx(1)
    found = dense_structure(z)
    assert float(found.image_spread) == pytest.approx(0, abs=1e-6)
    assert 0 < float(found.dimension) <= 1
