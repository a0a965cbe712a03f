"""Watch a hand-written SimSiam in a plain PyTorch loop.

python -m examples.plain_pytorch
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import rankgap as rg
from examples.digits import Digits, two_crops


class SimSiam(nn.Module):
    """An encoder, a projector and a predictor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 128), nn.BatchNorm1d(128), nn.ReLU())
        self.projector = nn.Sequential(nn.Linear(128, 64), nn.BatchNorm1d(64, affine=False))
        self.predictor = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 64))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """A view (B, 3, 32, 32) -> prediction and embedding (B, 64)."""
        z = self.projector(self.encoder(view))
        return self.predictor(z), z.detach()


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps, print what the monitor found, and return the monitor."""
    torch.manual_seed(0)
    loader = Digits(two_crops).batches()
    model = SimSiam()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with rg.RankMonitor(model, online="predictor", target="projector", every=10) as monitor:
        while monitor.step < steps:
            for view1, view2 in loader:
                (p1, z1), (p2, z2) = model(view1), model(view2)
                loss = -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if alarm := monitor.news():
                    print(alarm)
    print(monitor.compute())
    return monitor


if __name__ == "__main__":
    main()
