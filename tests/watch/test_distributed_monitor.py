from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from rankgap.spectra.effective_rank import effective_rank
from rankgap.watch.monitor import RankMonitor
from tests.matrices import gaussian
from tests.processes import WORLD, needs_distributed, run_on_processes

STEPS = 4


class Both(nn.Module):
    """Both views in one forward, as DDP wants it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.projector, self.predictor = nn.Linear(12, 8), nn.Linear(8, 8)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        z1, z2 = self.projector(first), self.projector(second)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return -(torch.cosine_similarity(p1, z2.detach()) + torch.cosine_similarity(p2, z1.detach())).mean()


def on_process(process: int) -> None:
    model, twin = DistributedDataParallel(Both()), Both()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    seen: dict[str, list[Tensor]] = {"online": [], "target": []}
    with RankMonitor(model, every=2) as monitor:
        for step in range(STEPS):
            views = [gaussian(24, 12, seed=10 * step + view, dtype=torch.float32) for view in (0, 1)]
            if step % 2 == 0:  # what the whole batch gives, with this step's weights
                twin.load_state_dict(model.module.state_dict())
                with torch.no_grad():
                    seen["online"].append(twin.predictor(twin.projector(views[0])))
                    seen["target"].append(twin.projector(views[1]))
            loss = model(*(view[process::WORLD] for view in views))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    found = monitor.compute()
    assert found.rows == 2 * len(seen["online"][0])
    assert monitor.compute().plain() == found.plain()  # a process's own sums stay as they are
    for name in ("online", "target"):
        wanted = effective_rank(torch.cat(seen[name]))
        assert_close(getattr(found, f"erank_{name}"), wanted, rtol=1e-5, atol=0)
    assert len(monitor.history) == 2


@needs_distributed
def test_under_ddp_every_process_watches_and_their_rows_add_up(tmp_path: Path) -> None:
    run_on_processes(on_process, tmp_path)
