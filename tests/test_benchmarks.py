"""The benchmarks' scripts, in small: what they measure is not tested, that they run and resume is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.suites.scale import Growth, doubled, grow


def test_the_gpu_script_does_all_of_it_in_small_and_goes_on_where_it_was(tmp_path: Path) -> None:
    files = ["--out", str(tmp_path / "runs"), "--table", str(tmp_path / "gpu.md")]
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--data", "digits", *files]
    first = subprocess.run([*command, "--seconds", "0"], check=True, capture_output=True, text=True).stdout
    assert first.startswith("0 done, left: step simsiam 16")
    assert "| simsiam | not measured | not measured |" in (tmp_path / "gpu.md").read_text()
    done = tmp_path / "runs" / "done.json"
    done.write_text(json.dumps({"step simsiam 16": {"images_per_second": 7, "milliseconds": 1, "share": 0.5}}))
    second = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "step simsiam 16: done" not in second  # it was
    assert second.endswith("left: nothing\n")
    text = (tmp_path / "gpu.md").read_text()
    assert "not measured" not in text.lower()
    assert "| simsiam | 7 | 50% |" in text
    assert json.loads(done.read_text())["run byol"]["knn"] > 0.5


def test_growth_is_the_slope_of_its_last_sizes() -> None:
    sizes = doubled(10, 3)
    cubic = Growth(
        what="", over="", sizes=sizes, seconds=(9.0, *(1e-9 * n**3 for n in sizes[1:])), mebibytes=(1.0,) * 4
    )
    assert abs(cubic.exponent(cubic.seconds) - 3) < 1e-9
    assert abs(cubic.exponent(cubic.mebibytes)) < 1e-9


def test_growth_sees_the_memory_that_a_call_holds() -> None:
    found = grow("bytes", "MiB", (64, 128), lambda size: lambda: sum(bytearray(size * 2**20)), repeats=1)
    assert found.mebibytes[1] - found.mebibytes[0] > 50
