"""The repository's address in notebooks."""

import json

from scripts.notebooks import address, table, with_address

CELLS = [
  {
    "cell_type": "markdown",
    "source": [
      "# Who goes where?\n\n",
      "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
      "(https://colab.research.google.com/github/x)\n\n",
      "Shown by Zhou et al. 2022\nin pictures. And more.",
    ],
  },
  {"cell_type": "code", "source": ["import os\n", 'REPOSITORY = ""\n', 'clone(REPOSITORY, "here")\n']},
]


def test_the_address_is_written_into_badge_and_code_and_can_be_changed():
  text = json.dumps({"cells": CELLS})
  for url in ("https://github.com/one/first", "https://github.com/two/second"):
    text = with_address(text, "who.ipynb", url)
    badge, code = ("".join(cell["source"]) for cell in json.loads(text)["cells"])
    path = url.removeprefix("https://github.com/")
    assert f"(https://colab.research.google.com/github/{path}/blob/main/notebooks/who.ipynb)\n" in badge
    assert "assets/colab-badge.svg)]" in badge  # the picture is another address of Colab's
    assert code == f'import os\nREPOSITORY = "{url}"\nclone(REPOSITORY, "here")\n'
  assert text.count("second") == 2 and "first" not in text


def test_a_row_of_the_table_has_title_first_sentence_and_badge(tmp_path):
  (tmp_path / "notebooks").mkdir()
  (tmp_path / "setup.cfg").write_text("[metadata]\nurl = https://github.com/one/first\n")
  (tmp_path / "notebooks" / "who.ipynb").write_text(json.dumps({"cells": CELLS}))
  assert address(tmp_path) == "https://github.com/one/first"
  (row,) = table(tmp_path).splitlines()[2:]
  title, about, badge = (cell.strip() for cell in row.strip("| ").split(" | "))
  assert title == "[Who goes where?](../notebooks/who.ipynb)"
  assert about == "Shown by Zhou et al. 2022 in pictures."
  assert badge.endswith("github/one/first/blob/main/notebooks/who.ipynb)")
