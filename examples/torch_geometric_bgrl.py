"""Watch BGRL on a graph: two encoders of torch_geometric's layers and a predictor, written as its paper says.

BGRL (Thakoor et al., ICLR 2022) calls its modules in the order q1, y2, q2, y1.

python -m examples.torch_geometric_bgrl
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.nn import GCNConv
from torch_geometric.utils import dropout_edge, stochastic_blockmodel_graph

import rankgap as rg

NODES, FEATURES = 150, 64  # nodes of each of four communities, features of a node


class Encoder(nn.Module):
    """A graph convolutional network of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([GCNConv(FEATURES, 64), GCNConv(64, 32)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(64), nn.BatchNorm1d(32)])

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Nodes (N, FEATURES) and edges (2, E) -> embeddings (N, 32)."""
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = F.relu(norm(layer(x, edges)))
        return x


class BGRL(nn.Module):
    """An online encoder with its predictor, and a target encoder that follows it."""

    def __init__(self) -> None:
        super().__init__()
        self.online_encoder = Encoder()
        self.predictor = nn.Sequential(nn.Linear(32, 64), nn.PReLU(), nn.Linear(64, 32))
        self.target_encoder = copy.deepcopy(self.online_encoder).requires_grad_(False)

    def forward(self, view: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of one view's predictions against the other's targets."""
        q = self.predictor(self.online_encoder(*view))
        y = self.target_encoder(*other)
        return 1 - F.cosine_similarity(q, y).mean()


def graph() -> tuple[Tensor, Tensor]:
    """A graph of four communities: features of its nodes (N, FEATURES) and edges (2, E)."""
    communities = torch.full((4,), NODES)
    x = torch.randn(4, FEATURES).repeat_interleave(communities, 0) + 2 * torch.randn(4 * NODES, FEATURES)
    return x, stochastic_blockmodel_graph(communities, 0.002 + 0.04 * torch.eye(4))


def view(x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """A graph without some of its features and edges."""
    return x * (torch.rand(FEATURES) > 0.2), dropout_edge(edges, p=0.2)[0]


def main(steps: int = 200) -> rg.RankMonitor:
    """Train for some steps."""
    torch.manual_seed(0)
    x, edges = graph()
    model = BGRL()
    optimizer = torch.optim.AdamW([*model.online_encoder.parameters(), *model.predictor.parameters()], lr=1e-3)

    with rg.RankMonitor(model, online="predictor", target="target_encoder", steps=steps) as monitor:
        while monitor.step < steps:
            view1, view2 = view(x, edges), view(x, edges)
            loss = model(view1, view2) + model(view2, view1)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                pairs = zip(model.online_encoder.parameters(), model.target_encoder.parameters(), strict=True)
                for p, average in pairs:
                    average.lerp_(p, 0.01)
    print(f"rank difference {monitor.history[-1].rank_difference:+.2f}, {monitor.diagnosis}")
    return monitor


if __name__ == "__main__":
    main()
