"""PNG files of Matplotlib figures."""

import struct
import subprocess
import sys

import pytest

from moe.figures import png_figure


def test_a_figure_is_written_with_its_size_and_replaces_an_older_one(tmp_path):
  path = tmp_path / "curve.png"
  path.write_text("older")
  with png_figure(path, 4, 3, dpi=50) as figure:
    figure.subplots().plot([0, 1], [1, 0])
  content = path.read_bytes()
  assert content.startswith(b"\x89PNG") and struct.unpack(">II", content[16:24]) == (200, 150)
  assert [file.name for file in tmp_path.iterdir()] == ["curve.png"]


def test_an_error_while_drawing_leaves_the_older_file(tmp_path):
  path = tmp_path / "curve.png"
  path.write_text("older")
  with pytest.raises(ZeroDivisionError), png_figure(path, 4, 3):
    raise ZeroDivisionError
  assert path.read_text() == "older"


def test_matplotlib_is_not_imported_before_a_figure_is_drawn():
  code = "import sys, moe.figures, moe.training.figure; assert 'matplotlib' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
