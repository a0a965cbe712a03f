"""Measure what the project claims of its speed, side by side in one run, and write the table beside this file.

python -m benchmarks [--suite views,filters,monitor,report] [--repeats 7]

The views are compared with kornia: pip install '.[bench]'.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.suites.timing import Row

HERE = Path(__file__).parent
SUITES = ("views", "filters", "monitor", "report")


def table(rows: list[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| what | against | seconds | ratio | least to greatest | bar | met |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        low, high = row.spread
        lines.append(
            f"| {row.what} | {row.against} | {row.seconds:.3f} | {ratio} | {low:.3f} to {high:.3f} | {row.bar} | "
            f"{'yes' if row.met else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the suites that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=",".join(SUITES), help="joined by commas (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the results (default: beside this file)")
    given = parser.parse_args()
    names = given.suite.split(",")
    if unknown := [name for name in names if name not in SUITES]:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    rows = [
        row
        for name in names
        for row in importlib.import_module(f"benchmarks.suites.{name}").measure(given.repeats)
    ]
    text = table(rows)
    print(text)
    (given.out / "speed.md").write_text(
        f"# Speed\n\n    python -m benchmarks --suite {given.suite} --repeats {given.repeats}\n\n"
        f"Machine: {machine()}. Ratios are medians over {given.repeats} repetitions in turns.\n\n{text}"
    )
    found = {"machine": machine(), "repeats": given.repeats, "rows": [dataclasses.asdict(row) for row in rows]}
    (given.out / "speed.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
