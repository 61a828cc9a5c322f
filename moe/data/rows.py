"""Rows of a batch: examples packed side by side, each a segment of its own."""

import dataclasses

import numpy as np

from moe.data.data_config import Architecture, DataConfig
from moe.data.objectives import Examples
from moe.data.packing import best_fit

Batch = dict[str, np.ndarray]
# One row: its examples, each (inputs, targets).
Row = list[tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class RowShape:
  """How long rows are, and what a batch of them looks like.

  An encoder-decoder has `inputs` [rows, inputs_length] and `targets` [rows, targets_length]; a decoder has `targets`
  [rows, inputs_length + targets_length] with both in turn, and loss only where it writes. Each comes with `_positions`
  (0, 1, ... in every segment) and `_segments` (1, 2, ... and 0 for padding), int32; `loss_weights` is float32.
  """

  architecture: Architecture
  inputs_length: int
  targets_length: int

  @classmethod
  def of(cls, config: DataConfig, architecture: Architecture) -> "RowShape":
    return cls(architecture, config.inputs_length, config.targets_length)

  @property
  def lengths(self) -> dict[str, int]:
    if self.architecture == "decoder":
      return {"targets": self.inputs_length + self.targets_length}
    return {"inputs": self.inputs_length, "targets": self.targets_length}

  def empty(self, rows: int) -> Batch:
    """A batch of nothing but padding."""
    batch: Batch = {}
    for name, length in self.lengths.items():
      for suffix in ("", "_positions", "_segments"):
        batch[name + suffix] = np.zeros((rows, length), np.int32)
    batch["loss_weights"] = np.zeros(batch["targets"].shape, np.float32)
    return batch

  def pack(self, examples: Examples, chosen: np.ndarray, together: bool) -> list[np.ndarray]:
    """Rows of the chosen examples' numbers; one example a row unless `together`."""
    if not together:
      return [chosen[i : i + 1] for i in range(len(chosen))]
    lengths = examples.lengths[chosen]
    if self.architecture == "decoder":
      lengths = lengths.sum(axis=1, keepdims=True)
    return [chosen[row] for row in best_fit(lengths, np.array(list(self.lengths.values())))]

  def fill(self, batch: Batch, place: int, row: Row) -> None:
    """Writes the row's examples into row `place` of an empty batch."""
    ends = dict.fromkeys(self.lengths, 0)
    for segment, (inputs, targets) in enumerate(row, 1):
      parts = {"inputs": inputs, "targets": targets}
      if self.architecture == "decoder":
        parts = {"targets": np.concatenate([inputs, targets])}
      for name, ids in parts.items():
        span = slice(ends[name], ends[name] + len(ids))
        batch[name][place, span] = ids
        batch[f"{name}_positions"][place, span] = np.arange(len(ids))
        batch[f"{name}_segments"][place, span] = segment
        ends[name] = span.stop
      batch["loss_weights"][place, ends["targets"] - len(targets) : ends["targets"]] = 1
