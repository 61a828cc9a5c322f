"""Matplotlib figures as PNG files; Matplotlib is imported only when one is drawn."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.figure import Figure


@contextlib.contextmanager
def png_figure(path: pathlib.Path, width: float, height: float, *, dpi: int = 150) -> "Iterator[Figure]":
  """A figure to draw on, which is written to `path` when the block ends.

  The file is replaced in one step; after an error it is what it was. No display is needed.

  Args:
    path: the PNG file.
    width: in inches.
    height: in inches.
    dpi: pixels per inch.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  figure = Figure(figsize=(width, height), layout="constrained")
  FigureCanvasAgg(figure)
  yield figure
  part = path.with_name(path.name + ".part")
  figure.savefig(part, format="png", dpi=dpi)
  part.replace(path)
