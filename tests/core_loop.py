"""A watched loop, and spectra and filters, as the core installation must run them."""

import torch
from torch import nn

import rankgap as rg
from rankgap.model import METHODS

model = nn.ModuleDict({"projector": nn.Linear(8, 4), "predictor": nn.Linear(4, 4)})
with rg.RankMonitor(model, online="predictor", target="projector", every=1) as monitor:
    for _ in range(6):
        z = [model["projector"](torch.randn(32, 8)) for _ in range(2)]
        p = [model["predictor"](each) for each in z]
        (p[0] * z[1].detach() + p[1] * z[0].detach()).sum().backward()
assert len(monitor.history) == 6, monitor.history
print(monitor.compute(), monitor.verdict())
spectra = rg.PairSpectra(4)
spectra.update(p[0].detach(), z[1].detach())
assert spectra.compute() is not None
out = rg.SpectralFilter("power:0.5", branch="online")(torch.randn(32, 8))
assert rg.effective_rank(out) < 8
assert rg.rank_difference(out, torch.randn(32, 8)) > 0
assert "byol" in METHODS
assert rg.design("simsiam", target="power:-0.5").target
