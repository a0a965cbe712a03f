"""Draw the figures of the RDM paper from our own runs on CIFAR-10, and write them beside this file.

    python -m benchmarks.figures --data hf:DIR_OR_NAME [--out runs/mini]

The runs are those of the mini benchmark with one seed. Runs that exist are read, and the others are trained.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cifar10_mini.runs import mini_config, pooled, result_row, run_one
from rankgap.demo import trace
from rankgap.run.folder import RunFolder
from rankgap.show.figures import mini_figure, ranks_figure
from rankgap.show.pair_figures import alignment_figure, filters_figure
from rankgap.show.report.page import write_report

HERE = Path(__file__).parent
SYMMETRIC, ASYMMETRIC = ("siamese", "symsimsiam"), ("byol", "simsiam", "swav", "dino")


def main() -> None:
    """Train or read the runs, draw the four figures, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="as rankgap train takes it (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/mini"), help="run folders (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the runs (default: %(default)s)")
    given = parser.parse_args()
    configs = {
        method: mini_config(method, None, None, data=given.data, seed=given.seed, out=given.out)
        for method in (*SYMMETRIC, *ASYMMETRIC)
    }
    rows = [result_row(method, [run_one(config)]) for method, config in configs.items()]
    mini_figure(rows, HERE / "1-symmetric-asymmetric.png", title="Symmetric against asymmetric")
    traces = [trace(RunFolder(configs[method].path), method) for method in ASYMMETRIC]
    ranks_figure(traces, HERE / "2-ranks.png")
    pairs = {method: pooled(RunFolder(configs[method].path)) for method in ASYMMETRIC}
    alignment_figure(pairs, HERE / "3-alignment.png")
    filters_figure(pairs, HERE / "4-filters.png")
    write_report([RunFolder(config.path) for config in configs.values()], HERE / "report.html")


if __name__ == "__main__":
    main()
