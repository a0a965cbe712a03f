"""Watch lightly's SimSiam, built as in its documentation, with two lines.

python -m examples.lightly_simsiam
"""

from __future__ import annotations

import torch
import torchvision
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimSiamTransform
from torch import Tensor, nn

import rankgap as rg
from examples.digits import Digits


class SimSiam(nn.Module):
    """A backbone with lightly's heads."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection_head = SimSiamProjectionHead(512, 512, 128)
        self.prediction_head = SimSiamPredictionHead(128, 64, 128)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """A view -> its embedding, without gradient, and its prediction."""
        z = self.projection_head(self.backbone(x).flatten(start_dim=1))
        return z.detach(), self.prediction_head(z)


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    model = SimSiam(nn.Sequential(*list(torchvision.models.resnet18().children())[:-1]))
    loader = Digits(SimSiamTransform(input_size=32)).batches(64)
    criterion = NegativeCosineSimilarity()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    with rg.RankMonitor(model, online="prediction_head", target="projection_head") as monitor:
        while monitor.step < steps:
            for x0, x1 in loader:
                (z0, p0), (z1, p1) = model(x0), model(x1)
                loss = 0.5 * (criterion(z0, p1) + criterion(z1, p0))
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if monitor.step >= steps:
                    break
    print(f"rank difference {monitor.compute().rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
