"""Matplotlib figures as PNG files; Matplotlib is imported only when one is drawn."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from moe.files import AnyPath, write_whole

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@contextlib.contextmanager
def png_figure(path: AnyPath, width: float, height: float, *, dpi: int = 150) -> "Iterator[Figure]":
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
  drawn, smaller = io.BytesIO(), io.BytesIO()
  figure.savefig(drawn, format="png", dpi=dpi)
  Image.open(drawn).convert("RGB").quantize(256).save(smaller, format="png", optimize=True)
  write_whole(path, smaller.getvalue())
