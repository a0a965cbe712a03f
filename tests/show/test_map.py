"""The map of a data set: its tables, and the page in a real browser where there is one."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page
from sklearn.datasets import load_sample_images

from rankgap.cli import main
from rankgap.data.fingerprint import Fingerprint
from rankgap.data.sources import open_source
from rankgap.embed.formats import FeatureFile, Listing, read_features, write_features
from rankgap.embed.record import Record
from rankgap.embed.survey import survey
from rankgap.errors import UserError
from rankgap.show.map.page import write_map
from tests.data.pictures import photograph

GROUPS, EACH = 4, 30
HOSTILE = "<b>bold & 'quoted' \"name\"<script>.jpg"


def features(home: Path, *, labels: bool = True) -> Path:
    """Features of four tight groups of images in `home/photos`, one of which has a hostile name."""
    (home / "photos").mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    centres = random.normal(size=(GROUPS, 32)) * 4
    rows = np.repeat(centres, EACH, 0) + random.normal(size=(GROUPS * EACH, 32))
    rows[1] = rows[0] + 1e-3 * random.normal(size=32)
    names = [f"{k:03}.jpg" for k in range(len(rows))]
    names[5] = HOSTILE
    for k, name in enumerate(names):
        photograph((40, 48), k % 2).rotate(90 * (k // EACH)).save(home / "photos" / name, "JPEG")
    files = open_source(f"folder:{home / 'photos'}").train.images
    record = Record(
        encoder="timm:none",
        weights="",
        data=f"folder:{home / 'photos'}",
        images={"train": Fingerprint.of(files.entries())},
        rows={"train": len(rows)},
        size=32,
        centre=1.0,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        levels=None,
        shape=(32,),
        batch_size=64,
        precision="32-true",
        rankgap="0",
    )
    kinds: list[str | None] = [f"kind {k}" for k in range(GROUPS) for _ in range(EACH)]
    listing = Listing(names=names, splits=["train"] * len(rows), labels=kinds if labels else None)
    path = home / "f.npy"
    write_features(path, record, listing, [rows.astype(np.float32)])
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("map")
    assert main(["map", str(features(home)), "--out", str(home / "map.html")]) == 0
    return home


@pytest.fixture(scope="module")
def page(home: Path, browser: Browser) -> Page:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto((home / "map.html").as_uri())
    page.wait_for_selector(".js-plotly-plot")
    page.wait_for_function("document.getElementById('map').data?.length > 0")
    known = ("data:", "blob:", "[.WebGL")  # the driver's remarks on its speed
    assert [text for text in said if not text.startswith(known)] == [(home / "map.html").as_uri()]
    return page


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_tables_name_clusters_representatives_and_near_duplicates(home: Path) -> None:
    rows = table(home / "map.clusters.csv")
    assert [row["name"] for row in rows] == read_features(home / "f.npy").listing.names
    for group in range(GROUPS):
        own = {row["cluster"] for row in rows[group * EACH : (group + 1) * EACH]}
        assert len(own) == 1
    assert {row["cluster"] for row in rows} == {"1", "2", "3", "4"}
    first = [row for row in rows if row["representative"] == "1"]
    assert len(first) == GROUPS
    for row in first:
        assert float(row["distance"]) == min(float(r["distance"]) for r in rows if r["cluster"] == row["cluster"])
    assert [(row["first"], row["second"]) for row in table(home / "map.duplicates.csv")] == [
        ("000.jpg", "001.jpg")
    ]


def test_the_page_draws_every_point_by_cluster_and_by_label(page: Page) -> None:
    count = "document.getElementById('map').data.reduce((sum, trace) => sum + trace.x.length, 0)"
    assert page.evaluate(count) == GROUPS * EACH
    names = "document.getElementById('map').data.map((trace) => trace.name)"
    assert page.evaluate(names) == [f"Cluster {k + 1}" for k in range(GROUPS)]
    page.locator("#by").select_option("labels")
    assert page.evaluate(names) == [f"kind {k}" for k in range(GROUPS)]
    assert page.evaluate(count) == GROUPS * EACH
    page.locator("#by").select_option("clusters")


def test_the_image_is_shown_under_the_pointer_with_its_own_name(page: Page) -> None:
    where = page.evaluate(
        """() => {
            const { left, top } = map.getBoundingClientRect();
            const { xaxis, yaxis } = map._fullLayout;
            return [left + xaxis._offset + xaxis.l2p(POINTS.x[5]), top + yaxis._offset + yaxis.l2p(POINTS.y[5])];
        }"""
    )
    page.evaluate("say({points: [{customdata: 5}], event: {clientX: 300, clientY: 300}})")
    tip = page.locator("#tip")
    assert tip.locator("b").inner_text() == HOSTILE
    assert "kind 0" in tip.locator("span").inner_text()
    assert "data:image/jpeg" in tip.locator("i").evaluate("(e) => e.style.backgroundImage")
    page.mouse.move(1, 1)
    page.mouse.move(*where)
    page.wait_for_function("!document.getElementById('tip').hidden")


def test_a_cluster_that_is_chosen_stands_out(page: Page) -> None:
    page.locator("[data-cluster='1']").click()
    faint = "document.getElementById('map').data.map((trace) => trace.marker.opacity < 0.2)"
    assert page.evaluate(faint) == [True, False, True, True]
    assert page.locator("[aria-pressed='true']").inner_text().strip() == "Cluster 2"
    page.locator("[data-cluster='1']").click()
    assert page.evaluate(faint) == [False] * 4


def test_names_are_never_markup(page: Page, home: Path) -> None:
    assert page.locator("#tip b b, main b b").count() == 0
    text = (home / "map.html").read_text()
    assert "<b>bold" not in text
    assert "\\u003cb>bold" in text  # among the points


def test_the_pictures_are_those_of_the_images(page: Page) -> None:
    pair = page.locator("#pairs li").first.locator(".picture")
    assert [each.get_attribute("title") for each in pair.all()] == ["000.jpg", "001.jpg"]
    colours = page.evaluate(
        """async () => {
            const image = new Image();
            image.src = POINTS.sheets[0];
            await image.decode();
            const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d");
            canvas.drawImage(image, 0, 0);
            return [0, 1].map((k) => [...canvas.getImageData(k * 64 + 32, 32, 1, 1).data].slice(0, 3));
        }"""
    )
    for k, found in enumerate(colours):  # the two photographs, in turn, and their middle
        wanted = np.asarray(photograph((40, 48), k))[17:23, 21:27].mean((0, 1))
        assert np.abs(np.array(found) - wanted).max() < 40
    assert len(load_sample_images().images) == 2


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_does_not_scroll_sideways(page: Page, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_function("document.documentElement.scrollWidth <= innerWidth")  # the plot follows the window
    page.set_viewport_size({"width": 1280, "height": 900})


def test_without_the_images_the_page_says_so_and_takes_their_new_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = features(tmp_path, labels=False)
    shutil.move(tmp_path / "photos", tmp_path / "moved")
    map_of = ["map", str(file), "--method", "pca", "--out", str(tmp_path / "map.html")]
    assert main(map_of) == 0
    assert f"there is no folder {tmp_path}" in "".join(capsys.readouterr().out.split("\n"))
    text = (tmp_path / "map.html").read_text()
    assert "there is no folder photos; --data says where the images are now" in text
    assert str(tmp_path) not in text
    assert 'class="picture gone" title="000.jpg">000.jpg</span>' in text
    assert main([*map_of, "--data", f"folder:{tmp_path / 'moved'}"]) == 0
    said = capsys.readouterr().out
    assert "gone" not in said
    assert "changed" not in said
    (tmp_path / "moved" / "003.jpg").unlink()
    (tmp_path / "moved" / "004.jpg").write_bytes(b"no image")
    assert main([*map_of, "--data", f"folder:{tmp_path / 'moved'}"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "2 images are gone or broken" in said
    assert "the images have changed, so pictures may be of other ones: 120 images then, 119 now" in said


def test_it_can_be_drawn_again(tmp_path: Path) -> None:
    found = read_features(features(tmp_path))
    pages = []
    for _ in range(2):
        made = write_map(found, tmp_path / "map.html", method="pca", clusters=4, similarity=0.9)
        pages.append([file.read_bytes() for file in (made.page, made.clusters, made.pairs)])
    assert pages[0] == pages[1]


def test_groups_of_no_density_are_made_by_k_means(tmp_path: Path) -> None:
    found = read_features(features(tmp_path))
    even = np.random.default_rng(0).normal(size=(400, 32))
    made = survey(rows_of(found, even), method="pca")
    assert made.clusters.count == 7
    assert "by k-means, because" in made.clusters.how
    assert (made.clusters.of >= 0).all()


def test_no_place_of_this_machine_is_on_the_page(home: Path, tmp_path: Path) -> None:
    text = (home / "map.html").read_text()
    assert str(home) not in text
    assert "folder:.../photos, seen by timm:none. Made" in text
    found = read_features(home / "f.npy")
    names = [f"row {k} ({home}/{'abc'[k % 3]}/{k}.jpg)" for k in range(len(found.features))]
    record = replace(found.record, encoder=f"{home}/a, b, last, online branch", data=f"hf:{home}/table")
    listed = replace(found, record=record, listing=replace(found.listing, names=names))
    made = write_map(listed, tmp_path / "map.html", method="pca", clusters=4, similarity=0.9)
    text = made.page.read_text()
    assert str(home) not in text
    assert "hf:.../table, seen by a, b (last, online branch). Made" in text
    assert '"row 3 (a/3.jpg)"' in text
    assert table(made.clusters)[3]["name"] == names[3]  # as in the file of features


def rows_of(found: FeatureFile, rows: np.ndarray) -> FeatureFile:
    listing = Listing(names=[str(k) for k in range(len(rows))], splits=["train"] * len(rows), labels=None)
    return FeatureFile(features=rows.astype(np.float32), listing=listing, record=found.record)


def test_features_of_a_collapsed_encoder_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    found = read_features(features(tmp_path))
    with pytest.raises(UserError, match="all images have the same features, so there is nothing to map"):
        survey(rows_of(found, np.ones((40, 8))))
    with pytest.raises(UserError, match="some features are not finite"):
        survey(rows_of(found, np.full((40, 8), np.nan)))


def test_features_of_one_number_are_placed_on_a_line(tmp_path: Path) -> None:
    found = read_features(features(tmp_path))
    made = survey(rows_of(found, np.random.default_rng(0).normal(size=(40, 1))))
    assert np.ptp(made.places[:, 0]) > 0
    assert not made.places[:, 1].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--clusters", "1"], "--clusters must be from 2 to the number of images, 120, got 1"),
        (["--clusters", "121"], "--clusters must be from 2 to the number of images, 120, got 121"),
        (["--similarity", "1.5"], "--similarity must be above 0, and at most 1, got 1.5"),
        (["--method", "umap"], "--method"),
        (["--out", "map.txt"], "map.txt ends in .txt: the file name must end in .html"),
        (["--data", "folder:nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_mapped_is_said_in_one_line(
    arguments: list[str], says: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["map", str(home / "f.npy"), *arguments]) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_the_points_are_plain_json(home: Path) -> None:
    (text,) = re.findall(r'id="points">(.*?)</script>', (home / "map.html").read_text())
    points = json.loads(text)
    assert points["names"][5] == HOSTILE
    assert len(points["x"]) == GROUPS * EACH
