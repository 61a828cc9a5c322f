"""Rows of pictures."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from moe.data.batch import Batch, RowShape
from moe.parallel.processors import processors
from moe.row_format import PictureFormat


class Labelled(NamedTuple):
  """For a row: `image` float32 `[h, w, channels]`; `targets` int32 `[t]` and their `weights` float32 `[t]`."""

  image: np.ndarray
  targets: np.ndarray
  weights: np.ndarray


@dataclasses.dataclass(frozen=True)
class PictureShape(RowShape):
  """A picture in each row; an example is a function that makes a `Labelled`.

  A batch has `images` float32 [rows, h, w, channels]; `inputs_segments` int32 [rows, tokens], 1 for the tokens that the
  model makes of a picture, and 0 in a row without one; `targets` and `targets_segments` int32 [rows, t], and their
  `loss_weights` float32, which sum to 1 for each picture.
  """

  format: PictureFormat

  def empty(self, rows: int) -> Batch:
    size, targets = self.format.size, (rows, self.targets_length)
    return {
      "images": np.zeros((rows, size, size, self.format.channels), np.float32),
      "inputs_segments": np.zeros((rows, self.format.tokens), np.int32),
      "targets": np.zeros(targets, np.int32),
      "targets_segments": np.zeros(targets, np.int32),
      "loss_weights": np.zeros(targets, np.float32),
    }

  def pack(self, examples: Any, together: bool) -> list[np.ndarray]:
    """One picture per row."""
    return super().pack(examples, False)

  def fill(self, batch: Batch, row: int, examples: Sequence[Callable[[], Labelled]]) -> None:
    (make,) = examples
    batch["images"][row], batch["targets"][row], batch["loss_weights"][row] = make()
    batch["inputs_segments"][row] = batch["targets_segments"][row] = 1

  def fill_all(self, batch: Batch, rows: Mapping[int, Sequence[Callable[[], Labelled]]]) -> None:
    """As `fill`, on all cores: decoders of pictures work beside each other."""
    pool, workers = _pool()

    def some(first: int) -> None:
      for row in list(rows)[first::workers]:
        self.fill(batch, row, rows[row])

    if workers == 1:
      some(0)
    else:
      list(pool.map(some, range(workers)))


@functools.cache
def _pool() -> tuple[ThreadPoolExecutor, int]:
  """Threads that decode pictures, and how many."""
  workers = min(len(processors()), 32)
  return ThreadPoolExecutor(workers, "moe-pictures"), workers
