"""The notebooks' table, and their links to Colab: the repository's address is `url` in `setup.cfg`, and only there."""

import configparser
import json
import pathlib
import re

from moe.markdown import markdown_table

BADGE = "https://colab.research.google.com/assets/colab-badge.svg"
_COLAB = "https://colab.research.google.com/github"


def address(root: pathlib.Path) -> str:
  """The address of the repository, for `git clone`."""
  setup = configparser.ConfigParser()
  setup.read(root / "setup.cfg")
  return setup["metadata"]["url"]


def table(root: pathlib.Path) -> str:
  """A row for each notebook: its title, which links to it, what it shows, and its badge."""
  rows = [_row(path, address(root)) for path in sorted((root / "notebooks").glob("*.ipynb"))]
  return "\n".join(markdown_table(("notebook", "what it shows", ""), rows))


def with_address(text: str, name: str, url: str) -> str:
  """The text of a notebook's file with the address in its badge and in its first cell of code.

  Args:
    text: of the file.
    name: of the file.
    url: of the repository.
  """
  text = re.sub(rf"{_COLAB}/[^)]*", _colab(name, url), text)
  return re.sub(r'(REPOSITORY = \\")[^"\\]*', rf"\g<1>{url}", text)


def _row(path: pathlib.Path, url: str) -> tuple[str, str, str]:
  """Its first cell has the title, the badge, and a paragraph, whose first sentence is taken."""
  lines = "".join(json.loads(path.read_text())["cells"][0]["source"]).split("\n\n")
  title = lines[0].removeprefix("# ")
  first, *_ = re.split(r"\. (?=[A-Z])", " ".join(lines[2].split()))
  return (
    f"[{title}](../notebooks/{path.name})",
    f"{first.removesuffix('.')}.",
    f"[![Open in Colab]({BADGE})]({_colab(path.name, url)})",
  )


def _colab(name: str, url: str) -> str:
  repository = url.removeprefix("https://github.com/")
  return f"{_COLAB}/{repository}/blob/main/notebooks/{name}"
