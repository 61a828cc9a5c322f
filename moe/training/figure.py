"""The loss figure of a training run."""

import numpy as np

from moe.figures import png_figure
from moe.files import AnyPath
from moe.training.metrics_file import Record, read_metrics


def draw_loss(metrics: AnyPath, path: AnyPath, title: str, gzip_bits: float | None = None) -> None:
  """Draws training and validation loss over steps as a PNG that replaces an older one.

  It is in bits per byte of text; in nats where there is no text, as of pictures.

  Args:
    metrics: the run's `metrics.jsonl`.
    path: the file to write.
    title: of the figure.
    gzip_bits: bits per byte of the validation text after `gzip -9`, as a reference line; None without one.
  """
  records = read_metrics(metrics)
  unit = "bits_per_byte" if any("bits_per_byte" in record for record in records) else "loss"
  steps, losses = _curve(records, "train", unit)
  with png_figure(path, 7, 4.5) as figure:
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=1)
    axes.plot(steps, running_mean(losses), color="tab:blue", label="training (smoothed)")
    axes.plot(*_curve(records, "validation", unit), color="tab:orange", marker="o", markersize=4, label="validation")
    if gzip_bits is not None:
      axes.axhline(gzip_bits, color="black", linestyle="--", linewidth=1, label="gzip -9 on the validation text")
    axes.set(title=title, xlabel="training step", ylabel=f"loss ({'nats' if unit == 'loss' else 'bits per byte'})")
    axes.grid(alpha=0.3)
    axes.legend()


def _curve(records: list[Record], kind: str, unit: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and losses of one kind of records, without values that JSON cannot hold as numbers."""
  chosen = [record for record in records if record["kind"] == kind and isinstance(record.get(unit), float)]
  return np.array([r["step"] for r in chosen]), np.array([r[unit] for r in chosen])


def running_mean(values: np.ndarray, share: float = 0.02) -> np.ndarray:
  """The mean over a window of `share` of the curve; at the ends the window is cut, not padded."""
  half = int(len(values) * share / 2) + 1
  total = np.concatenate([[0.0], np.cumsum(values)])
  low = np.maximum(np.arange(len(values)) - half, 0)
  high = np.minimum(np.arange(len(values)) + half + 1, len(values))
  return (total[high] - total[low]) / (high - low)
