"""Matplotlib figures as PNG files; Matplotlib is imported only when one is drawn."""

import contextlib
import io
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@contextlib.contextmanager
def png_figure(path: pathlib.Path, width: float, height: float, *, dpi: int = 150) -> "Iterator[Figure]":
  """A figure to draw on, which is written to `path` when the block ends.

  It has 256 colours, which makes it a third as large. The file is replaced in one step; after an error it is what it
  was. No display is needed.

  Args:
    path: the PNG file.
    width: in inches.
    height: in inches.
    dpi: pixels per inch.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure
  from PIL import Image

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  yield figure
  part = path.with_name(path.name + ".part")
  drawn = io.BytesIO()
  figure.savefig(drawn, format="png", dpi=dpi)
  Image.open(drawn).convert("RGB").quantize(256).save(part, format="png", optimize=True)
  part.replace(path)
