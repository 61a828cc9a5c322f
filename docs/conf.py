"""The site: `sphinx-build -W -b html docs build/site`, after `pip install -e ".[docs]"`.

Pages are Markdown that GitHub shows too, and the notebooks with the outputs that are checked in; nothing is executed.
"""

import pathlib
import re
import shutil

import sphinx.application

HERE = pathlib.Path(__file__).parent
# Pages lie below this folder, so these are copies, which git ignores.
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", dirs_exist_ok=True)

project = "moe"
author = "the authors of moe"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "sphinx_book_theme"
html_title = "moe"
html_theme_options = {"show_toc_level": 2}
highlight_language = "bash"  # of blocks that are indented
suppress_warnings = [
  "ref.python",  # fields of the same name in several configs
  "misc.highlighting_failure",  # blocks that are not quite of that language
]

nb_execution_mode = "off"
myst_heading_anchors = 3
myst_enable_extensions = ["dollarmath"]

default_role = "code"  # of `words` in docstrings
autodoc_typehints = "none"  # docstrings give shapes, which types do not
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": False, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def link_notebooks(app: sphinx.application.Sphinx, document: str, source: list[str]) -> None:
  """Links to notebooks lead to their pages, and those of notebooks to the pages of this folder."""
  source[0] = re.sub(r"\]\((?:\.\./)+(notebooks/\w+\.ipynb)\)", r"](/\1)", source[0])
  if document.startswith("notebooks/"):
    source[0] = source[0].replace("](../docs/", "](../")


def escape_bars(app: sphinx.application.Sphinx, what: str, name: str, of: object, options: object, lines: list) -> None:
  """Docstrings are Markdown, which has no substitutions: `|x|` is an absolute value."""
  lines[:] = [line.replace("|", "\\|") for line in lines]


def setup(app: sphinx.application.Sphinx) -> None:
  app.connect("source-read", link_notebooks)
  app.connect("autodoc-process-docstring", escape_bars)
