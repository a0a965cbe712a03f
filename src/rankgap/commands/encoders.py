"""The commands that use a trained encoder."""

from __future__ import annotations

from rankgap.choices import FormatName, OnBadImage, Placing, Precision, Side, SplitName
from rankgap.errors import UserError


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
        push: upload the folder to the Hugging Face Hub under this name, such as you/encoder; a new repository is
            public.
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
        workers: processes that decode files ahead; by default 0 on a CPU, else one per core.
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
