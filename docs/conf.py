"""How the site is built: `make docs`.

The repository is the source folder, so that a link from one page to another, or to a file of the repository, is
the same on the site and in a checkout. Pages are those under docs/, the measurements under benchmarks/, and the
changelog and the guide for contributors.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # the benchmarks and tests that pages take tables from; made.py

import rankgap  # noqa: E402

project = "rankgap"
version = release = rankgap.__version__
root_doc = "docs/index"
include_patterns = [
    "docs/**.md",
    "docs/**.ipynb",
    "benchmarks/**.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = ["docs/_build", "**/ABOUT.md", "shared", "src", "tests", "runs", "data", "build", "dist", ".*"]
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "made", "docstrings"]

myst_enable_extensions = ["deflist", "attrs_block"]
myst_heading_anchors = 3
smartquotes_action = "D"  # dashes alone: quotes in a text may be those of a command
highlight_language = "none"  # of blocks that name none: pictures in text, lines of output

# Notebooks run while the site is built, and again when they have changed.
nb_execution_mode = "cache"
nb_execution_cache_path = str(ROOT / "docs" / "_build" / ".jupyter_cache")
nb_execution_in_temp = True  # they write runs and pictures
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # they would be fetched from the network

# Docstrings have Google's sections, and names in single backticks: a link where the name is documented.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

# Every reference must resolve, except that a type or a word in a docstring is a link only where it is documented.
nitpicky = True
nitpick_ignore_regex = [("py:obj", ".*"), ("py:class", ".*")]

html_theme = "furo"
pygments_dark_style = "monokai"
html_title = f"rankgap {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # index.html of the folder above docs/
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
copybutton_exclude = ".linenos, .gp, .go"

linkcheck_anchors = False
linkcheck_timeout = 20
linkcheck_retries = 2
