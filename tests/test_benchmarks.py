"""The benchmarks' scripts on small work: the tests check that they run and resume, not what they measure."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.testing import assert_close

from benchmarks.cifar10_mini.runs import Finished
from benchmarks.mechanism.__main__ import HERE, cell
from benchmarks.mechanism.analysis import early_difference, foretold, gain_of, interval, tau_by_place
from benchmarks.page import PAGE
from benchmarks.suites.scale import Growth, doubled, grow
from benchmarks.what_ranks_miss.data import class_sizes, mosaics, per_place
from rankgap.data import ImageSet
from tests.data.pictures import encoded, pixels


def test_the_gpu_script_runs_on_small_work_and_resumes(tmp_path: Path) -> None:
    files = ["--out", str(tmp_path / "runs"), "--table", str(tmp_path / "gpu.md")]
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--data", "digits", *files]
    first = subprocess.run([*command, "--seconds", "0"], check=True, capture_output=True, text=True).stdout
    assert first.startswith("0 done, left: step simsiam 16")
    assert "| simsiam | not measured | not measured |" in (tmp_path / "gpu.md").read_text()
    done = tmp_path / "runs" / "done.json"
    done.write_text(json.dumps({"step simsiam 16": {"images_per_second": 7, "milliseconds": 1, "share": 0.5}}))
    second = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "step simsiam 16: done" not in second  # it already was
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


def test_an_interval_is_student_s() -> None:
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert math.isnan(interval([1.0])[1])


def test_a_place_is_by_singular_value_only_and_scipy_s_default_is_told_beside_it() -> None:
    runs = json.loads((HERE / "results.json").read_text())["filters"]
    pages = [(HERE / "ABOUT.md").read_text(), (HERE / "README.md").read_text()]
    for method, name in {"byol": "BYOL", "simsiam": "SimSiam", "swav": "SwAV", "dino": "DINO"}.items():
        own = [each for each in runs if each["method"] == method]
        for each in own:
            assert tau_by_place(each["x"], each["transfer"]) == pytest.approx(each["transfer_tau"], abs=1e-3)
        default = cell([tau_by_place(each["x"], each["transfer"], "both") for each in own])
        assert all(f"{name} {default}" in page for page in pages)


def test_a_measured_filter_becomes_the_nearest_gain_that_never_falls() -> None:
    x, g = torch.tensor([4.0, 2.0, 1.0, 0.5]), torch.tensor([0.9, 1.0, 0.3, -0.2])
    gain = gain_of("own", x, g)
    assert (gain.is_low_pass, gain.is_high_pass) == (True, False)
    pooled = (16 * 0.9 + 4 * 1.0) / 20  # the first two, weighted by energy
    assert_close(gain(x), torch.tensor([pooled, pooled, 0.3, 0.001]))
    assert_close(gain(torch.tensor([100.0, 1e-6])), torch.tensor([pooled, 0.001]))
    assert_close(gain(torch.tensor([0.5**0.5])), torch.tensor([(0.3 * 0.001) ** 0.5]))  # between, straight in logs


def test_a_predictor_of_accuracy_is_told_from_noise_and_designs_are_drawn_whole() -> None:
    random = np.random.default_rng(0)
    designs = [str(i // 3) for i in range(60)]
    of_design = np.repeat(random.permutation(20), 3)
    perfect = foretold(designs, (of_design + 0.1 * random.random(60)).tolist(), of_design.tolist())
    assert perfect.correlation > 0.98
    assert perfect.low > 0.9
    assert (perfect.runs, perfect.designs) == (60, 20)
    none = foretold(designs, random.random(60).tolist(), of_design.tolist())
    assert none.low < 0 < none.high
    one = foretold(["a"] * 9 + ["b"] * 9, [1.0] * 9 + [2.0] * 9, [1.0] * 9 + [2.0] * 9)
    assert one.low == one.high == pytest.approx(1)


def test_early_means_the_first_two_epochs() -> None:
    metrics = {"epoch": [0.0, 1.0, 2.0, 3.0], "erank_online": [0.0] * 4, "erank_target": [100.0, 1.0, 3.0, 100.0]}
    assert early_difference(Finished("a", 0, {}, metrics)) == 2


def test_the_mechanism_script_measures_trains_again_and_writes(tmp_path: Path) -> None:
    script = (
        "import benchmarks.mechanism.__main__ as m, benchmarks.cifar10_mini.runs as r, pathlib, functools, sys\n"
        f"m.HERE = pathlib.Path({str(tmp_path)!r})\n"
        "(m.HERE / 'ABOUT.md').write_text('# About')\n"
        "m.METHODS = ('simsiam',)\n"
        "m.mini_config = functools.partial(r.mini_config, limit=256, epochs=1)\n"
        "sys.argv = ['mechanism', '--data', 'digits', '--seeds', '0', '--out', str(m.HERE / 'runs')]\n"
        "m.main()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    found = json.loads((tmp_path / "results.json").read_text())
    rows = {"simsiam", "simsiam online own_measured_filter", "simsiam online own_transfer"}
    assert set(found["replaced"]) == rows
    assert all(0 < run["knn"] <= 1 for runs in found["replaced"].values() for run in runs)
    kept = found["filters"][0]
    assert len({len(kept[name]) for name in ("x", "transfer", "measured_filter", "eigenspace_alignment")}) == 1
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# About")
    assert "| simsiam | 1 |" in text
    assert "Spearman" in text


def test_the_start_script_continues_an_encoder_on_images_that_it_has_not_seen(tmp_path: Path) -> None:
    for name, seeds in (("train", range(512)), ("test", range(512, 520))):
        columns = {"img": [encoded(pixels(seed=seed)) for seed in seeds], "label": [seed % 2 for seed in seeds]}
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    runs = tmp_path / "runs"
    script = (
        "import benchmarks.start.__main__ as m, pathlib, sys\n"
        f"m.HERE = pathlib.Path({str(runs)!r})\n"
        "m.HERE.mkdir(exist_ok=True)\n"
        "(m.HERE / 'ABOUT.md').write_text('# About')\n"
        f"sys.argv = ['start', '--data', 'hf:{tmp_path}', '--out', {str(runs)!r}, '--seeds', '0'] + "
        "['--first', '256', '--then', '256', '--first-epochs', '1', '--epochs', '1']\n"
        "m.main()\n"
    )
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=os.environ | cache)
    parts = [pq.read_table(runs / f"images-{name}-seed0/train.parquet")["img"] for name in ("first", "then")]
    first_images, then_images = (set(part.to_pylist()) for part in parts)
    assert len(first_images | then_images) == 512
    first, then = (
        json.loads((runs / "seed0" / name / "results.json").read_text()) for name in ("first", "continued")
    )
    assert then["start"]["knn"] is not None
    assert "knn" not in first
    kept = {run["row"]: run["results"]["knn"] for run in json.loads((runs / "results.json").read_text())["runs"]}
    assert kept.keys() == {"frozen start", "continued", "from scratch"}
    assert kept["frozen start"] == then["start"]["knn"]
    assert f"| frozen start | 1 | {100 * kept['frozen start']:.1f} | - |" in (runs / "README.md").read_text()


def test_a_long_tail_has_its_factor_and_all_its_images() -> None:
    sizes = class_sizes(5000, 100.0)
    assert sum(sizes) == 5000
    assert sizes[0] / sizes[-1] == pytest.approx(100, rel=0.05)
    assert sizes == sorted(sizes, reverse=True)
    assert class_sizes(5000, 1.0) == [500] * 10


def test_each_place_of_a_mosaic_has_the_class_of_the_image_that_lies_there() -> None:
    labels = torch.arange(9)
    flat = labels.to(torch.uint8).view(9, 1, 1, 1).expand(9, 3, 4, 4).contiguous()  # image i has the value i
    made, classes = mosaics(ImageSet("flat", flat, labels, (0.5,) * 3, (0.25,) * 3))
    assert made.batch([0, 1]).images.shape == (2, 3, 8, 8)
    assert_close(
        made.batch([1]).images[0, 0],
        torch.tensor([[4, 5], [6, 7]]).repeat_interleave(4, 0).repeat_interleave(4, 1).to(torch.uint8),
    )
    shrunk = made.batch([0, 1]).images[:, 0, ::2, ::2].flatten()  # 4 x 4 places
    assert_close(per_place(classes, 4), shrunk.long())


def test_the_page_on_ranks_has_the_numbers_that_were_measured() -> None:
    home = PAGE.parent.parent
    page = (home / "docs" / "what-ranks-cannot-tell.md").read_text()
    found = json.loads((home / "benchmarks" / "what_ranks_miss" / "results.json").read_text())
    sweep = [row for row in found["designs"] if row["design"].startswith("simsiam") and row["seed"] == 0]
    assert len(sweep) == 6
    for row in sweep:
        scores = (("RankMe", 1), ("alpha-ReQ", 2), ("LiDAR", 1), ("log LID", 2), ("DSE", 2), ("uniformity", 2))
        cells = [f"{row[name]:.{digits}f}" for name, digits in scores]
        cells += [f"{100 * row['knn']:.1f}", ", ".join(row["alarms"]) or "-"]
        assert f" | {' | '.join(cells)} |" in page
    report = (home / "benchmarks" / "what_ranks_miss" / "README.md").read_text()
    assert "-3.54 ± 2.24" in report  # "lowers RankMe by 3.5 ± 2.2"
    assert "3.5 ± 2.2" in page


def test_the_script_on_what_ranks_miss_trains_measures_and_writes(tmp_path: Path) -> None:
    for name, seeds in (("train", range(1_200)), ("test", range(1_200, 1_300))):
        columns = {
            "img": [encoded(pixels((16, 16), seed=seed)) for seed in seeds],
            "label": [s % 10 for s in seeds],
        }
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    runs = tmp_path / "runs"
    script = (
        "import benchmarks.what_ranks_miss.__main__ as m, pathlib, sys\n"
        f"m.HERE = pathlib.Path({str(tmp_path)!r})\n"
        "(m.HERE / 'ABOUT.md').write_text('# About')\n"
        "m.DESIGNS = m.TAILED = (('simsiam', None), ('simsiam', 'power:-1'))\n"
        "m.LAYERED = m.DESIGNS[:1]\n"
        f"sys.argv = ['what', '--data', 'hf:{tmp_path}', '--out', {str(runs)!r}, '--seeds', '0'] + "
        "['--images', '260', '--epochs', '1', '--long-epochs', '2']\n"
        "m.main()\n"
    )
    cache = {"HF_DATASETS_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, env=os.environ | cache)
    found = json.loads((tmp_path / "results.json").read_text())
    assert [row["epoch"] for row in found["checkpoints"]] == [1, 2]
    assert [row["tailed"] for row in found["designs"] + found["tailed"]] == [False, False, True, True]
    assert [row["stage"] for row in found["layers"]] == [1, 2, 3, 4]
    assert all(0 <= row["miou"] <= row["token_accuracy"] <= 1 for row in found["checkpoints"])
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# About")
    assert "| simsiam target power:-1 | 1 |" in text
    assert "| over 2 pairs |" in text
    train = pq.read_table(runs / "images-tailed/train.parquet")["label"].to_pylist()
    assert sorted(map(train.count, range(10)), reverse=True) == class_sizes(260, 100.0)
