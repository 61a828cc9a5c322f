"""Blocks of measured figures in the documents."""

import pytest

from moe.config import UserError
from scripts import update_readme
from scripts.update_readme import updated_documents

BLOCKS = {"first": "1\n\\2", "second": "3"}


def test_a_block_is_replaced_wherever_its_markers_stand_and_nothing_else():
  documents = {
    "a": "A\n<!-- first -->\nold\nlines\n<!-- /first -->\nB\n",
    "b": "<!-- second -->\n<!-- /second -->\n<!-- first -->\n<!-- /first -->\n",
    "c": "first\n",
  }
  assert updated_documents(documents, BLOCKS) == {
    "a": "A\n<!-- first -->\n1\n\\2\n<!-- /first -->\nB\n",
    "b": "<!-- second -->\n3\n<!-- /second -->\n<!-- first -->\n1\n\\2\n<!-- /first -->\n",
    "c": "first\n",
  }


def test_a_figure_is_linked_from_the_readme_and_from_the_docs():
  block = "![cost](docs/layer.png)"
  empty = "<!-- layer -->\n<!-- /layer -->"
  found = updated_documents({"README.md": empty, "docs/benchmarks.md": empty}, {"layer": block})
  assert found["README.md"].splitlines()[1] == "![cost](docs/layer.png)"
  assert found["docs/benchmarks.md"].splitlines()[1] == "![cost](layer.png)"


def test_a_block_that_no_document_has_is_an_error():
  with pytest.raises(UserError, match="second: expected a block with this name in one of a, b"):
    updated_documents({"a": "<!-- first -->\n<!-- /first -->", "b": ""}, BLOCKS)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--check"], 2), (["README.md"], 2)])
def test_only_the_command_without_arguments_writes(monkeypatch, capsys, arguments, code):
  monkeypatch.setattr(update_readme, "read_documents", lambda: pytest.fail("reads the documents, to write them"))
  with pytest.raises(SystemExit) as ended:
    update_readme.main(arguments)
  assert ended.value.code == code
  out, error = capsys.readouterr()
  assert "Writes measured figures" in out if code == 0 else error.startswith("error: unrecognized arguments: ")
