"""What the pages take from the code while the site is built: tables, the commands, the API reference.

    ```{made} commands
    ```

stands for what `commands` below returns, which is Markdown. So no page repeats what the code says.
"""

from __future__ import annotations

import ast
import dataclasses
import graphlib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import docstring_parser
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import rankgap
from benchmarks.cifar10_mini.__main__ import first_alarms, recorded, spread
from rankgap.cli import command_parser
from rankgap.commands import COMMANDS
from rankgap.evaluate.scores import SCORES
from rankgap.show.columns import (
    CONVENTION,
    ERANK_ONLINE,
    ERANK_TARGET,
    KNN,
    LINEAR,
    RANK_DIFFERENCE,
    RESULTS,
    Column,
)
from rankgap.watch.doctor import FAULTS, Doctor
from rankgap.watch.reading import Reading
from tests.test_architecture import ARROWS, PACKAGE, modules


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    cells = ([re.sub(r"[ \n]+", " ", cell).replace("|", r"\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def sentence(text: str) -> str:
    """A text with a capital letter."""
    return text[:1].upper() + text[1:]


def flagged(text: str) -> str:
    """A text with its flags as code."""
    return re.sub(r"(?<![`\w-])--[a-z][\w-]*", r"`\g<0>`", text)


def contents(caption: str, *patterns: str) -> str:
    """A part of the contents with the pages that match, if there are any; `toctree` warns where there are none."""
    root = PACKAGE.parents[1]
    files = [file.relative_to(root) for pattern in patterns for file in sorted(root.glob(pattern))]
    pages = "\n".join(f"/{file.with_suffix('')}" for file in files)
    return f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n" if files else ""


def commands() -> str:
    """Every command: what it does, how it is called, and its flags with their help, from the parser."""
    return "\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    parser = command_parser(name)
    text = [f"## rankgap {name}\n\n{parser.description}\n"]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions and group.title not in ("positional arguments", "options"):
            text.append(f"**{(group.title or '').capitalize()}**\n")
        for action in actions:
            words = [*action.option_strings[-1:]] or [action.dest.upper()]
            if action.option_strings and action.nargs != 0:
                words.append(str(action.metavar or action.dest.upper()))
            named = " ".join(words)
            text.append(f"`{named}{' ...' if action.nargs == '+' else ''}`\n: {flagged(action.help)}\n")
    return "\n".join(text)


def fields(name: str) -> str:
    """The fields of a class, from its docstring: `fields rankgap.watch.reading.Reading`."""
    home, _, own = name.rpartition(".")
    documented = docstring_parser.parse(inspect.getdoc(getattr(importlib.import_module(home), own)) or "")
    return table(("field", "meaning"), ((f"`{p.arg_name}`", p.description or "") for p in documented.params))


def limits(name: str) -> str:
    """The fields of a dataclass with their defaults, from its docstring."""
    home, _, own = name.rpartition(".")
    kind = getattr(importlib.import_module(home), own)
    default = {field.name: field.default for field in dataclasses.fields(kind)}
    documented = docstring_parser.parse(inspect.getdoc(kind) or "").params
    rows = ((f"`{p.arg_name}`", str(default[p.arg_name]), p.description or "") for p in documented)
    return table(("limit", "default", "meaning"), rows)


def results() -> str:
    """The columns of every table of results, with their keys in `results.json`."""
    rows = ((column.heading, f"`{column.key}`") for column in RESULTS)
    return f"{table(('column', 'in results.json'), rows)}\nIn them, {CONVENTION}\n"


def faults() -> str:
    """Every kind of alarm: what it means, its likely cause and the first thing to change."""
    broken = Doctor()(Reading(0, finite=False))
    means = "an output is infinite or not a number; named at the first reading"
    rows = [(f"`{broken.kind}`", means, f"{sentence(broken.cause)}. First, {broken.knob}.")]
    rows += [(f"`{each.kind}`", each.means, f"{sentence(each.cause)}. First, {each.knob}.") for each in FAULTS]
    return table(("alarm", "what it means", "likely cause, and what to change"), rows)


def scores() -> str:
    """Every score without labels: what it takes, which way is better, and what it may compare."""
    rows = (
        (f"**{name}**" if score.first else name, score.takes, score.best or "none", sentence(score.valid))
        for name, score in SCORES.items()
    )
    return table(("score", "of", "best", "what it may compare"), rows)


def recipes() -> str:
    """Every recipe with what the first lines of its file say."""
    text = []
    for recipe in sorted({file.parent for file in (PACKAGE / "run" / "recipes").glob("*/*.yaml")}):
        text.append(f"**`--recipe {recipe.name}`**\n")
        for file in sorted(recipe.glob("*.yaml")):
            lines = file.read_text(encoding="utf-8").splitlines()
            said = " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))
            text.append(f"`{file.stem}`\n: {flagged(said.replace('deepmind/ deepmind', 'deepmind/deepmind'))}\n")
    return "\n".join(text)


def mini() -> str:
    """The rows of the mini benchmark: accuracies in percent and final ranks, mean ± deviation over seeds."""
    rows, untrained = recorded()

    def over(results: list[dict[str, Any]], column: Column) -> str:
        return spread([column.scaled(each) for each in results]).replace(" ", "\N{NO-BREAK SPACE}")

    columns = (KNN, LINEAR, ERANK_ONLINE, ERANK_TARGET, RANK_DIFFERENCE)
    lines = [
        [title, *(over([run.results for run in runs], column) for column in columns), first_alarms(runs)]
        for title, runs in rows.items()
    ]
    floor = [over(untrained, column) for column in (KNN, LINEAR)]
    lines.append(["(untrained encoder)", *floor, "", "", "", ""])
    return table(("design", *(column.heading for column in columns), "alarm (first at epoch; runs)"), lines)


def folders() -> str:
    """The folders and modules of the package, lowest first, with what each holds and may import."""
    graph = {source: targets.split() for source, targets in ARROWS.items()}
    order = graphlib.TopologicalSorter(graph).static_order()
    homes = modules(PACKAGE)

    def row(name: str) -> tuple[str, str, str]:
        said = (ast.get_docstring(ast.parse(homes[name].read_text())) or "").partition("\n")[0]
        return f"`{name}`", said, " ".join(graph[name]) or "nothing of ours"

    return table(("folder or module", "what it holds", "may import"), (row(name) for name in order))


def api(module: str, *chosen: str) -> str:
    """The reference of a module's public names, or of some names of it.

    What `rankgap` itself offers is in its own list.
    """
    public = importlib.import_module(module)
    if chosen:
        return "\n".join(_reference(module, name, getattr(public, name)) for name in chosen)
    names = [name for name in public.__all__ if public is rankgap or name not in rankgap.__all__]
    again = [f"{{py:obj}}`rankgap.{name}`" for name in public.__all__ if name not in names]
    also = f"\nAlso here: {', '.join(again)}.\n" if again else ""
    return f"{also}\n" + "\n".join(_reference(module, name, getattr(public, name)) for name in names)


def _reference(module: str, name: str, value: Any) -> str:
    if inspect.isclass(value):
        lines = [f".. autoclass:: {module}.{name}", "   :members:"]
        if all(base.__module__.partition(".")[0] == "rankgap" for base in value.__mro__[:-1]):
            lines.append("   :inherited-members:")  # what a class of ours has from another is its own
    elif inspect.isfunction(value):
        lines = [f".. autofunction:: {module}.{name}"]
    else:
        lines = [f".. py:data:: {module}.{name}", "", f"   {_contents(value)}"]
    return "\n".join(["```{eval-rst}", *lines, "```", ""])


def _contents(value: Any) -> str:
    names = value if isinstance(value, Mapping | tuple) else getattr(value, "__args__", ())
    kind = "By name" if isinstance(value, Mapping) else "One of"
    return f"{kind}: {', '.join(f'``{name}``' for name in names)}."


_ALL = (contents, commands, fields, limits, results, faults, scores, recipes, mini, folders, api)
MAKERS: dict[str, Callable[..., str]] = {maker.__name__: maker for maker in _ALL}


class Made(SphinxDirective):
    """`{made} NAME [ARGUMENT ...]`: what the function of that name returns, in place of the directive."""

    required_arguments = 1
    optional_arguments = 9

    def run(self) -> list[nodes.Node]:
        """The nodes of the Markdown that was made."""
        self.env.note_reread()  # the code may change without the page
        maker, *given = self.arguments
        place = nodes.section()
        place.document = self.state.document
        lines = StringList(MAKERS[maker](*given).splitlines(), source=f"made {maker}")
        self.state.nested_parse(lines, self.content_offset, place, match_titles=True)
        return place.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the directive."""
    app.add_directive("made", Made)
    return {"parallel_read_safe": True}
