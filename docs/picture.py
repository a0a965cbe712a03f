"""Draw the picture of the method, by day and by night: `python docs/picture.py` writes docs/pictures/."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rankgap.show.colours import DARK, LIGHT

FOLDER = Path(__file__).parent / "pictures"
WIDTH, TOP, HEIGHT = 560, 34, 262
ROWS = {"online": 66, "target": 162}  # the middle of each branch's row
COLUMNS = {"encoder": (104, 84), "projector": (208, 88), "map": (316, 66)}  # left edge and width
LOSS = (474, 82)


def picture(colours: Mapping[str, str]) -> str:
    """The picture as SVG, in these colours."""
    ink, muted, line = colours["ink"], colours["muted"], colours["line"]

    def text(x: float, y: float, said: str, colour: str = ink, *, size: int = 15, bold: bool = False) -> str:
        weight = ' font-weight="bold"' if bold else ""
        return f'<text x="{x:g}" y="{y:g}" fill="{colour}" font-size="{size}"{weight}>{said}</text>'

    def box(x: float, width: float, top: float, height: float, colour: str) -> str:
        return (
            f'<rect x="{x:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="6" fill="{colours["card"]}" '
            f'stroke="{colour}" stroke-width="1.5"/>'
        )

    def arrow(x1: float, y1: float, x2: float, y2: float, colour: str, extra: str = "") -> str:
        return (
            f'<path d="M{x1:g} {y1:g} L{x2:g} {y2:g}" stroke="{colour}" stroke-width="1.5" fill="none" '
            f'marker-end="url(#head)"{extra}/>'
        )

    middle = sum(ROWS.values()) / 2
    parts = [
        box(4, 72, middle - 30, 60, muted),
        text(40, middle - 5, "views of"),
        text(40, middle + 14, "images"),
        box(*LOSS, middle - 30, 60, muted),
        text(LOSS[0] + LOSS[1] / 2, middle - 5, "alignment"),
        text(LOSS[0] + LOSS[1] / 2, middle + 14, "loss"),
    ]
    for (side, y), vector in zip(ROWS.items(), "PT", strict=True):
        colour = colours[side]
        parts.append(arrow(76, middle + (y - middle) * 0.4, 102, y, muted))
        for label, (x, width) in COLUMNS.items():
            parts.append(box(x, width, y - 19, 38, colour if label == "map" else muted))
            if label == "map":
                parts += [
                    text(x + width / 2, y - 1, side, colour, bold=True),
                    text(x + width / 2, y + 13, "map", colour),
                ]
            else:
                parts.append(text(x + width / 2, y + 5, label))
        parts += [arrow(188, y, 206, y, muted), arrow(296, y, 314, y, muted), arrow(382, y, 404, y, colour)]
        parts.append(text(416, y + 6, vector, colour, size=18, bold=True))
        parts.append(arrow(428, y, 472, middle + (y - middle) * 0.4, colour))
    dashed = ' stroke-dasharray="4 3"'
    parts += [
        arrow(146, ROWS["online"] + 19, 146, ROWS["target"] - 21, muted, dashed),
        arrow(252, ROWS["online"] + 19, 252, ROWS["target"] - 21, muted, dashed),
        text(199, middle - 3, "same weights,", muted, size=12),
        text(199, middle + 13, "or EMA copy", muted, size=12),
        text(416, ROWS["target"] + 34, "no gradient", muted, size=13),
        f'<path d="M10 214 H{WIDTH - 10}" stroke="{line}"/>',
        f'<text x="{WIDTH / 2:g}" y="234" fill="{ink}" font-size="15">rank difference = erank(<tspan '
        f'fill="{colours["target"]}" font-weight="bold">T</tspan>) − erank(<tspan fill="{colours["online"]}" '
        f'font-weight="bold">P</tspan>)</text>',
        text(WIDTH / 2, 254, "above 0, dimensions grow; at or below 0, they collapse", muted),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 {TOP} {WIDTH} {HEIGHT - TOP}" width="{WIDTH}" '
        f'font-family="system-ui, sans-serif" text-anchor="middle">\n'
        f"<title>Two branches of one network, the maps on them, and the loss that aligns them</title>\n"
        f'<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        f'orient="auto"><path d="M0 0 L8 4 L0 8 Z" fill="{muted}"/></marker></defs>\n'
        f'<rect y="{TOP}" width="{WIDTH}" height="{HEIGHT - TOP}" fill="{colours["paper"]}"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


PICTURES = {"method-light.svg": LIGHT, "method-dark.svg": DARK}

if __name__ == "__main__":
    for name, colours in PICTURES.items():
        (FOLDER / name).write_text(picture(colours), encoding="utf-8")
