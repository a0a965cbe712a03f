"""Measure the project's claims about speed, side by side in one run, and write the tables beside this file.

python -m benchmarks [--suite views,photos,step,changes,filters,monitor,eval,embed,report,run,onnx,scale]
                     [--peers] [--data hf:DIR]

--peers also compares with kornia and lightly (pip install '.[bench]'). --data is CIFAR-10, for the suite `run`,
which measures a whole run. The tables keep the earlier results of suites that do not run now. The same command
works on a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from benchmarks.suites.scale import Growth
from benchmarks.suites.timing import Row, Settings

HERE = Path(__file__).parent
_HOW = "Seconds are medians. A ratio is the median over repetitions, in which the two sides took turns."
SUITES = (
    "views",
    "photos",
    "step",
    "changes",
    "filters",
    "monitor",
    "eval",
    "embed",
    "report",
    "run",
    "onnx",
    "scale",
)


def table(rows: list[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| what | against | seconds | ratio | least to greatest | bar | met |",
        "|---|---|--:|--:|--:|---|---|",
    ]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.3f}"
        low, high = row.spread
        lines.append(
            f"| {row.what} | {row.against} | {row.seconds:.3f} | {ratio} | {low:.3f} to {high:.3f} | {row.bar} | "
            f"{'yes' if row.met else '**no**'} |"
        )
    return "\n".join(lines) + "\n"


def growth_table(growths: list[Growth]) -> str:
    """The growth of time and memory as a Markdown table."""
    lines = [
        "| what | over | sizes | milliseconds | exponent | peak MiB | exponent |",
        "|---|---|---|---|--:|---|--:|",
    ]
    for growth in growths:
        columns = [growth.sizes, [1000 * t for t in growth.seconds], growth.mebibytes]
        sizes, times, memory = (", ".join(f"{x:,.3g}" if x < 1000 else f"{x:,.0f}" for x in c) for c in columns)
        lines.append(
            f"| {growth.what} | {growth.over} | {sizes} | {times} | {growth.exponent(growth.seconds):.2f} | "
            f"{memory} | {growth.exponent(growth.mebibytes):.2f} |"
        )
    return "\n".join(lines) + "\n"


def measured(name: str, settings: Settings) -> dict[str, Any]:
    """Run a suite: the machine, the settings, and the results."""
    found = importlib.import_module(f"benchmarks.suites.{name}").measure(settings)
    return {
        "machine": machine(),
        "repeats": settings.repeats,
        "peers": settings.peers,
        "found": [dataclasses.asdict(each) for each in found],
    }


def tables(suites: dict[str, dict[str, Any]], names: Sequence[str] = SUITES) -> str:
    """The results of suites, one section each."""
    parts = [f"# Speed\n\n{_HOW}\n"]
    for name in names:
        if name not in suites:
            parts.append(f"## {name}\n\nNot measured.\n")
            continue
        suite = suites[name]
        peers = " --peers" if suite["peers"] else ""
        flags = f"--suite {name} --repeats {suite['repeats']}{peers}"
        found = suite["found"]
        text = growth_table([Growth(**x) for x in found]) if name == "scale" else table([Row(**x) for x in found])
        parts.append(f"## {name}\n\n    python -m benchmarks {flags}\n\n{suite['machine']}\n\n{text}")
    return "\n".join(parts)


def main() -> None:
    """Run the suites that the flags ask for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", default=",".join(SUITES), help="joined by commas (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="of each measurement (default: %(default)s)")
    parser.add_argument("--peers", action="store_true", help="also compare with the libraries of the bench extra")
    parser.add_argument(
        "--data", help="CIFAR-10, such as hf:DIR_OR_NAME; if it is missing, no whole run is measured"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the tables (default: beside this file)")
    given = parser.parse_args()
    names = given.suite.split(",")
    if unknown := [name for name in names if name not in SUITES]:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    record = given.out / "speed.json"
    suites: dict[str, dict[str, Any]] = json.loads(record.read_text()) if record.is_file() else {}
    for name in names:
        suites[name] = measured(name, Settings(repeats=given.repeats, peers=given.peers, data=given.data))
        record.write_text(json.dumps(suites, indent=2) + "\n")
        (given.out / "speed.md").write_text(tables(suites))
        print(f"{name}: done", flush=True)
    print(tables(suites, names))


if __name__ == "__main__":
    main()
