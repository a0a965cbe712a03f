"""The command that looks at images before a run."""

from __future__ import annotations

from pathlib import Path

EXIT_PROBLEMS = 1  # training would stop


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
            check_writable(Path(file).absolute().parent)
    found, names, pictures, views, notes = preview(config)
    if broken is not None:
        replace_file(Path(broken), "".join(f"{image}\n" for image in found.broken).encode())
    with writing(picture):
        contact_sheet(pictures, views, names, picture)
    show_inspection(found, [view.shape[-1] for view in views], notes, picture)
    return EXIT_PROBLEMS if found.problems else 0
