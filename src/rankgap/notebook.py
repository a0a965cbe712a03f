"""What notebooks show of our objects: a small table, and curves, as HTML.

Text and lines have the notebook's own colour, so that light and dark notebooks can both be read. Styles are
inline and there is no script, as Jupyter, VS Code and Colab want it. The HTML is also well-formed XML.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Protocol

# Okabe and Ito's vermilion and blue, which colour-blind readers can tell apart.
ONLINE, TARGET = "#D55E00", "#0072B2"
POINTS = 200  # of a curve, at most

_COLOURS = {"online": ONLINE, "target": TARGET}
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 380, 160, 54, 20, 34  # pixels
_LARGEST = 1e300  # larger numbers count as infinite


def thin(count: int, most: int) -> list[int]:
    """At most `most` of `count` indices, evenly spaced, including the first and the last.

    Example:
        >>> thin(7, 3), thin(2, 5)
        ([0, 3, 6], [0, 1])
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]


def summary(title: str, facts: Mapping[str, str], *below: str, done: float | None = None) -> str:
    """A title and a table of two columns.

    Args:
        title: the title, as text.
        facts: name -> value, both as text. A value may have several lines; without one, the row is left out.
        below: HTML below the table, such as `curves`.
        done: the share of a piece of work that is done, in [0, 1], for a bar under the title.

    Example:
        >>> "a &lt; b" in summary("a < b", {})
        True
    """
    bar = ""
    if done is not None:
        frame = "max-width:32em;height:.6em;margin:.3em 0;border:1px solid currentColor;border-radius:.3em"
        inside = f"width:{100 * done:.1f}%;height:100%;background:{TARGET}"
        now = f'role="progressbar" aria-valuenow="{100 * done:.0f}"'
        bar = f'<div {now} style="{frame}"><div style="{inside}"></div></div>'
    cell = "text-align:left;vertical-align:top;padding:.1em .8em .1em 0"
    rows = "".join(
        f'<tr><td style="{cell};opacity:.75;white-space:nowrap">{_text(name)}</td>'
        f'<td style="{cell};white-space:pre-line;max-width:48em">{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value
    )
    table = f'<table style="border-collapse:collapse;margin:.3em 0"><tbody>{rows}</tbody></table>' if rows else ""
    return f"<div><div><b>{_text(title)}</b></div>{bar}{table}{''.join(below)}</div>"


def curves(x: Sequence[float], named: Mapping[str, Sequence[float]], *, over: str, of: str) -> str:
    """Curves on a logarithmic axis, as an SVG picture.

    Args:
        x: the abscissae, ascending.
        named: name -> one value for each of the first abscissae. "online" and "target" have the branches' colours.
            A value that is not a positive number leaves a gap.
        over: what x is.
        of: what the values are.

    Returns:
        The picture; empty if there is nothing to draw.
    """
    places = thin(len(x), POINTS)
    series = {name: [_log(y[i]) if i < len(y) else math.nan for i in places] for name, y in named.items()}
    finite = [y for ys in series.values() for y in ys if y == y]
    if not finite:
        return ""
    low, high, first, last = min(finite), max(finite), x[places[0]], x[places[-1]]
    bottom = _HEIGHT - _BOTTOM

    def at(value: float, least: float, most: float, start: float, end: float) -> str:
        return f"{start + (end - start) * ((value - least) / (most - least) if most > least else 0.5):.1f}"

    across = [at(x[i], first, last, _LEFT + 4, _WIDTH - 6) for i in places]
    drawn, legend = "", ""
    for name, ys in series.items():
        heights = (None if y != y else at(y, low, high, bottom - 4, _TOP + 4) for y in ys)
        points = [py and f"{px},{py}" for px, py in zip(across, heights, strict=True)]
        # A point without neighbours is drawn as a dot: a line of no length, with a round end.
        steps = (f"M{p}L{p}" if not i or points[i - 1] is None else f"L{p}" for i, p in enumerate(points) if p)
        colour = _COLOURS.get(name, "currentColor")
        drawn += f'<path d="{"".join(steps)}" stroke="{colour}"/>'
        legend += f'<tspan fill="{colour}">&#9644;</tspan> {_text(name)}  '
    labels = (
        (_LEFT, 12, "start", legend),
        (_WIDTH - 6, 12, "end", f"{_text(of)}, logarithmic"),
        (_LEFT - 6, _TOP + 8, "end", f"{10**high:.3g}"),
        (_LEFT - 6, bottom, "end", f"{10**low:.3g}" if high > low else ""),
        (_LEFT, bottom + 14, "start", f"{first:.6g}"),
        (_WIDTH - 6, bottom + 14, "end", f"{last:.6g}" if last > first else ""),
        ((_LEFT + _WIDTH) // 2, bottom + 28, "middle", _text(over)),
    )
    texts = "".join(f'<text x="{px}" y="{py}" text-anchor="{end}">{text}</text>' for px, py, end, text in labels)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" role="img" '
        f'aria-label="{_text(of)} over {_text(over)}" style="max-width:100%;height:auto">'
        f'<g fill="none" stroke-width="2" stroke-linecap="round" stroke-linejoin="round">{drawn}'
        f'<path d="M{_LEFT},{_TOP}V{bottom}H{_WIDTH - 6}" stroke="currentColor" stroke-width="1" opacity=".4"/>'
        "</g>"
        f'<g fill="currentColor" font-size="11" font-family="sans-serif" xml:space="preserve">{texts}</g></svg>'
    )


class Ranks(Protocol):
    """A reading of both branches' effective ranks at a step."""

    @property
    def step(self) -> int:
        """The training step."""

    @property
    def erank_online(self) -> float:
        """The online branch's effective rank."""

    @property
    def erank_target(self) -> float:
        """The target branch's effective rank."""


def rank_curves(history: Sequence[Ranks]) -> str:
    """The curves of both ranks over the steps, as `curves` draws them."""
    ranks = {"online": [r.erank_online for r in history], "target": [r.erank_target for r in history]}
    return curves([r.step for r in history], ranks, over="step", of="effective rank")


def _log(value: float) -> float:
    """The decimal logarithm; NaN if the value is not a positive number."""
    return math.log10(value) if 0 < value < _LARGEST else math.nan


def _text(text: str) -> str:
    """Text without markup, and without the characters that XML does not allow."""
    return escape("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text))
