"""Batches: rows of examples packed side by side, each example a segment of its own."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from moe.data.packing import best_fit
from moe.row_format import RowFormat as RowFormat

Batch = dict[str, np.ndarray]
# An example's inputs and targets, int32; or what the shape of its rows takes.
Example = Any


class Examples(Protocol):
  """The examples of one block. lengths: [n, 2] int64, of the inputs and targets of each."""

  lengths: np.ndarray

  def __getitem__(self, i: int) -> Example:
    """Makes example i."""


@dataclasses.dataclass(frozen=True)
class RowShape:
  """How long rows are, and what a batch of them contains.

  With the format "inputs_and_targets" a batch has `inputs` [rows, inputs_length] and `targets` [rows, targets_length].
  With "targets" it has `targets` [rows, inputs_length + targets_length]: each example's inputs, then its targets. Each
  array comes with `_positions` (0, 1, ... in every segment) and `_segments` (1, 2, ..., and 0 for padding), int32.
  `loss_weights` is float32, the shape of `targets`: 1 for what is to be predicted.
  """

  format: RowFormat
  inputs_length: int
  targets_length: int

  @property
  def lengths(self) -> dict[str, int]:
    """Tokens per row of each array."""
    if self.format == "targets":
      return {"targets": self.inputs_length + self.targets_length}
    return {"inputs": self.inputs_length, "targets": self.targets_length}

  def empty(self, rows: int) -> Batch:
    """A batch of padding."""
    batch: Batch = {}
    for name, length in self.lengths.items():
      for suffix in ("", "_positions", "_segments"):
        batch[name + suffix] = np.zeros((rows, length), np.int32)
    batch["loss_weights"] = np.zeros(batch["targets"].shape, np.float32)
    return batch

  def pack(self, examples: Examples, together: bool) -> list[np.ndarray]:
    """Divides the examples' numbers into rows; one example per row unless `together`."""
    lengths = examples.lengths
    if not together:
      return list(np.arange(len(lengths))[:, None])
    if self.format == "targets":
      lengths = lengths.sum(axis=1, keepdims=True)
    return best_fit(lengths, np.array(list(self.lengths.values())))

  def fill(self, batch: Batch, row: int, examples: list[Example]) -> None:
    """Writes the examples of row number `row` into a batch where that row is empty."""
    ends = dict.fromkeys(self.lengths, 0)
    for segment, (inputs, targets) in enumerate(examples, 1):
      parts = {"inputs": inputs, "targets": targets}
      if self.format == "targets":
        parts = {"targets": np.concatenate([inputs, targets])}
      for name, ids in parts.items():
        span = slice(ends[name], ends[name] + len(ids))
        batch[name][row, span] = ids
        batch[f"{name}_positions"][row, span] = np.arange(len(ids))
        batch[f"{name}_segments"][row, span] = segment
        ends[name] = span.stop
      batch["loss_weights"][row, ends["targets"] - len(targets) : ends["targets"]] = 1

  def fill_all(self, batch: Batch, rows: Mapping[int, list[Example]]) -> None:
    """As `fill`, for many rows by their numbers."""
    for row, examples in rows.items():
      self.fill(batch, row, examples)
