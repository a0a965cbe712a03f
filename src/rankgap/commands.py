"""The commands, one function each. Their flags come from the types and docstrings of their parameters."""

from __future__ import annotations

import os
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankgap.errors import UserError

if TYPE_CHECKING:  # listing the commands must not load torch
    from rankgap.data.loading import OnBadImage
    from rankgap.embed.clusters import Placing
    from rankgap.embed.embedding import SplitName
    from rankgap.evaluate.evaluation import Protocol
    from rankgap.exporting.formats import FormatName
    from rankgap.run.config import Precision
    from rankgap.spectra.pair import Side

EXIT_PROBLEMS = 1  # of `inspect`: training would stop


def demo(out: str = "runs/demo", seed: int = 0, epochs: int = 40) -> None:
    """Train seven methods on scikit-learn's digits and show their rank differences (two minutes, no download).

    Args:
        out: folder for the runs and the picture; an earlier demo there is replaced.
        seed: seed of all runs.
        epochs: passes over the images in each run; far fewer show little.
    """
    from rankgap.demo import run_demo, story
    from rankgap.show.terminal import show_demo

    results, picture = run_demo(Path(out), seed, epochs=epochs)
    show_demo(results, picture, story(results))


def train(**given: Any) -> None:
    """Train and evaluate an encoder, and log the ranks of both branches."""
    from rankgap.data.names import shown
    from rankgap.run.config import TrainConfig
    from rankgap.run.processes import is_main_process
    from rankgap.run.resuming import resumed
    from rankgap.run.trainer import train as run
    from rankgap.show.progress import Progress
    from rankgap.show.terminal import show_results

    config = TrainConfig(**given)
    if config.resume:
        config = resumed(config.path, given)
    progress = Progress(config.title)
    results = run(config, callbacks=[progress], announce=progress.announce, other_data="data" in given)
    if is_main_process():
        show_results({config.title: results})
        print(f"run folder: {shown(str(config.path))}")


def evaluate(
    run: str,
    protocol: tuple[Protocol, ...] = ("knn", "linear"),
    branch: Side = "online",
    data: str | None = None,
    eval: Mapping[str, str] = types.MappingProxyType({}),
) -> None:
    """Evaluate a run's last checkpoint again, and update its results.json.

    Args:
        run: the run folder.
        protocol: knn, linear, linear_sgd, joined by commas; none for label-free ranks only.
        branch: the branch whose encoder is evaluated; the target's is the EMA teacher if the method has one.
        data: the new location of the run's images, as in `train --data`; by default the recorded one.
        eval: evaluation sets in addition to the data's own, as NAME=DATA; by default the run's.
    """
    from rankgap.run.files import check_writable
    from rankgap.run.folder import RunFolder
    from rankgap.run.restored import evaluate_plan, restore
    from rankgap.show.terminal import show_results

    folder = RunFolder(Path(run))
    changes: dict[str, Any] = {name: value for name, value in (("data", data), ("eval", eval)) if value}
    before = folder.results()
    check_writable(folder.path)
    plan = restore(run, protocol=protocol, **changes)
    found = evaluate_plan(plan, branch=branch)
    folder.write_results(before | (found if branch == "online" else {"target_branch": found}))
    show_results({f"{plan.config.title} ({branch})": folder.results() | found})


def compare(runs: list[str]) -> None:
    """Show runs side by side.

    Args:
        runs: run folders.
    """
    from rankgap.run.folder import RunFolder, labels
    from rankgap.show.terminal import show_results

    folders = [RunFolder(Path(path)) for path in runs]
    found = [folder.last_reading() | folder.results() for folder in folders]
    show_results(dict(zip(labels(folders), found, strict=True)))


def score(
    run: str,
    images: int = 2048,
    repeats: int = 20,
    branch: Side = "online",
    data: str | None = None,
    all: bool = False,
) -> None:
    """Score every checkpoint of a run without labels, and show which comparisons each score supports.

    Args:
        run: the run folder; `train` keeps more than the last checkpoint with --keep-every and --save-best.
        images: size of the fixed sample of training images.
        repeats: number of half-samples for each score's interval.
        branch: the branch whose encoder is scored.
        data: the new location of the run's images, as in `train --data`; by default the recorded one.
        all: show all scores of all checkpoints, not only the main ones.
    """
    from rankgap.run.folder import RunFolder
    from rankgap.run.scoring import score_run
    from rankgap.show.terminal import show_scores

    folder = RunFolder(Path(run))
    found = score_run(folder, images=images, repeats=repeats, branch=branch, data=data)
    show_scores(found, folder.verdict(), everything=all)


def report(runs: list[str], out: str = "report.html") -> None:
    """Write a page that compares one or more runs: verdicts, results, ranks, loss, spectra and filters.

    Args:
        runs: run folders, finished or not, or folders of runs.
        out: the output file (.html); an existing file is replaced.
    """
    from rankgap.data.names import shown
    from rankgap.show.report.inline import report as make
    from rankgap.show.terminal import say

    made = make(runs, out)
    if made.skipped:
        say(("skipped:", "yellow"), f" {shown('; '.join(made.skipped))}")
    count = f" on {len(made.runs)} runs" if len(made.runs) > 1 else ""
    say(f"report{count}: {shown(out)}", wrap=False)


def export(
    run: str,
    to: FormatName | None = None,
    out: str | None = None,
    checkpoint: str = "last",
    branch: Side = "online",
    preprocessing: bool = False,
    license: str = "unknown",
    overwrite: bool = False,
    push: str | None = None,
) -> None:
    """Export a run's encoder as a folder that timm, ONNX, torch.export or the Hugging Face Hub loads.

    Args:
        run: the run folder.
        to: timm (timm.create_model), safetensors (weights, for your own code), onnx (any runtime), torch-export
            (torch alone), or hf (PyTorchModelHubMixin).
        out: the folder to write; by default exports/RUN-FORMAT.
        checkpoint: last, best, or one like epoch-0010.
        branch: the branch whose encoder is exported; the target's is the EMA teacher if the method has one.
        preprocessing: with onnx and torch-export: put resize, crop and normalisation inside the graph, which then
            takes images of any size.
        license: the licence of the weights, for the card: an identifier of the Hugging Face Hub, such as mit.
        overwrite: replace an earlier export.
        push: upload the folder to the Hugging Face Hub under this name, such as you/encoder.
    """
    from rankgap.exporting.export import export_run
    from rankgap.exporting.formats import FORMATS
    from rankgap.show.terminal import show_export

    if to is None:
        raise UserError(f"export needs a format: --to {', '.join(FORMATS)} (see rankgap export --help)")
    made = export_run(
        run,
        to=to,
        out=out,
        checkpoint=checkpoint,
        branch=branch,
        preprocessing=preprocessing,
        license=license,
        overwrite=overwrite,
        push=push,
    )
    show_export(made)


def watch(run: str, every: float = 1.0, web: bool = False) -> None:
    """Follow a run while it trains: loss, both ranks, speed, alarms. Works over ssh; Ctrl-C does not stop the run.

    Args:
        run: the run folder.
        every: seconds between updates.
        web: serve the run's report to browsers on this machine, as a page that updates itself, until Ctrl-C.
    """
    from rankgap.run.folder import RunFolder

    if every <= 0:
        raise UserError(f"--every must be above 0 seconds, got {every:g}")
    if web:
        from rankgap.show.web import serve as follow
    else:
        from rankgap.show.live import follow
    follow(RunFolder(Path(run)), every)


def embed(
    encoder: str,
    data: str,
    out: str = "features.parquet",
    tokens: bool = False,
    checkpoint: str = "last",
    branch: Side = "online",
    split: SplitName = "all",
    batch_size: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    precision: Precision = "32-true",
    on_bad_image: OnBadImage = "error",
    overwrite: bool = False,
) -> None:
    """Write the features of a data set to a file. After an interruption, the same command continues.

    Args:
        encoder: a run folder; or timm:NAME, a timm model with its pretrained weights.
        data: the images, as in `train --data`; labels are kept if there are any.
        out: the file; its suffix chooses the format: .parquet, .npy (names and labels in a .json beside it) or
            .safetensors.
        tokens: write the patch tokens of a transformer, or the places of a feature map, instead of one vector.
        checkpoint: one of the run's checkpoints: last, best, or one like epoch-0010.
        branch: the branch whose encoder is used; the target's is the EMA teacher if the method has one.
        split: train, test, or all images.
        batch_size: images per forward pass; by default 64 on a CPU, else 256.
        workers: processes that decode files ahead; one per core by default.
        threads: threads of a CPU; by default as many as torch takes.
        precision: as in `train`; bf16-mixed is faster, and changes a feature by about a hundredth at most.
        on_bad_image: skip leaves out images that cannot be read, and lists them beside the file.
        overwrite: replace an existing file.
    """
    import torch

    from rankgap.embed.embedding import embed_images
    from rankgap.show.embedding import show_embedding

    if threads is not None:
        if threads < 1:
            raise UserError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    work = embed_images(
        encoder,
        data,
        out,
        checkpoint=checkpoint,
        branch=branch,
        tokens=tokens,
        split=split,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_bad_image=on_bad_image,
        overwrite=overwrite,
    )
    show_embedding(work)


def map_features(
    features: str,
    out: str = "map.html",
    clusters: int | None = None,
    method: Placing = "tsne",
    similarity: float = 0.95,
    data: str | None = None,
) -> None:
    """Draw a page on a data set from its features: a map, clusters, outliers and near-duplicates.

    Args:
        features: a file that `embed` has written.
        out: the page (.html); tables of clusters and near-duplicates are written beside it.
        clusters: their number, for k-means; by default HDBSCAN finds the dense parts of the map, if it has any.
        method: tsne keeps neighbours together, and takes six seconds of a core for each thousand images; pca is
            instant.
        similarity: the least similarity of near-duplicates, up to 1.
        data: the new location of the images; by default the recorded one.
    """
    from rankgap.data.names import shown
    from rankgap.embed.formats import read_features
    from rankgap.run.files import check_writable
    from rankgap.show.map.page import write_map
    from rankgap.show.outputs import PAGE, output_file
    from rankgap.show.terminal import say

    check_writable(output_file(out, PAGE).parent)
    made = write_map(
        read_features(features), out, method=method, clusters=clusters, similarity=similarity, data=data
    )
    for line in made.lines:
        say(line)
    for name, file in (("clusters", made.clusters), ("near-duplicates", made.pairs), ("map", made.page)):
        say(f"{name}: {shown(str(file))}", wrap=False)


def methods() -> None:
    """Show the zoo of methods as a table."""
    from rankgap.show.terminal import show_methods

    show_methods()


def design(
    online: str | None = None, target: str | None = None, spectrum: str | None = None, out: str = "design.png"
) -> None:
    """Assess a pair of filters without training: kind, rank difference, growth, numerics, and a picture.

    Args:
        online: the gain of the online filter: power:0.5, log1p, or a formula in s, such as "s/(s+0.1)".
        target: the gain of the target filter (power:-0.5).
        spectrum: the spectrum to assess it on: a run folder, or singular values over sqrt(batch size) in a file or
            as numbers (4,3,2,1); by default 256 directions whose eigenvalues fall as 1/j.
        out: the picture's file; its suffix chooses the format: .png, .pdf or .svg.
    """
    from rankgap.model.maps import MAPS
    from rankgap.run.files import writing
    from rankgap.show.design_figure import design_figure
    from rankgap.show.outputs import PICTURE, output_file
    from rankgap.show.terminal import show_assessment
    from rankgap.theory.design import assess
    from rankgap.theory.reference import reference_spectrum

    picture = output_file(out, PICTURE)
    for gain in (online, target):
        if gain is not None and gain.partition(":")[0] in MAPS:
            raise UserError(f"expected a gain such as power:0.5, got {gain}, which a run sets or learns")
    if spectrum is not None and os.path.isdir(spectrum):
        from rankgap.run.folder import RunFolder
        from rankgap.run.reference import spectrum_of_run

        reference = spectrum_of_run(RunFolder(Path(spectrum)))
    else:
        reference = reference_spectrum(spectrum)
    found = assess(online, target, reference)
    with writing(picture):
        design_figure(found, picture)
    show_assessment(found, picture)


def inspect_data(
    data: str,
    method: str = "simsiam",
    size: int | None = None,
    channels: int | None = None,
    out: str = "contact_sheet.png",
    broken: str | None = None,
    seed: int = 0,
) -> int:
    """Inspect images: sizes, channels, broken files, statistics, views (exit code 1 if training would stop).

    Args:
        data: the images, as in `train --data`.
        method: the method whose views are drawn.
        size: side of a view in pixels; by default the images' own up to 96 px, otherwise at most 224.
        channels: convert all images to this many channels (1 or 3).
        out: the contact sheet's file: .png, .pdf or .svg.
        broken: a text file for the list of unreadable images, one per line with the reason.
        seed: seed of the sample and its views.
    """
    from rankgap.run.config import TrainConfig
    from rankgap.run.files import check_writable, replace_file, writing
    from rankgap.run.preview import preview
    from rankgap.show.outputs import PICTURE, output_file
    from rankgap.show.sheet import contact_sheet
    from rankgap.show.terminal import show_inspection

    config = TrainConfig(data=data, method=method, size=size, channels=channels, seed=seed)
    picture = output_file(out, PICTURE)
    for file in (out, broken):
        if file is not None:
            check_writable(Path(file).parent)
    found, names, pictures, views, notes = preview(config)
    if broken is not None:
        replace_file(Path(broken), "".join(f"{image}\n" for image in found.broken).encode())
    with writing(picture):
        contact_sheet(pictures, views, names, picture)
    show_inspection(found, [view.shape[-1] for view in views], notes, picture)
    return EXIT_PROBLEMS if found.problems else 0


COMMANDS: dict[str, Callable[..., int | None]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "score": score,
    "report": report,
    "export": export,
    "embed": embed,
    "map": map_features,
    "watch": watch,
    "methods": methods,
    "design": design,
    "inspect": inspect_data,
}
POSITIONAL = {
    "evaluate": ("run",),
    "score": ("run",),
    "export": ("run",),
    "watch": ("run",),
    "compare": ("runs",),
    "report": ("runs",),
    "inspect": ("data",),
    "embed": ("encoder", "data"),
    "map": ("features",),
}
