"""The picture of a training run."""

import pathlib

import numpy as np

from moe.training.metrics import Record, read_metrics


def draw_loss(metrics: pathlib.Path, figure: pathlib.Path, title: str, gzip_bits: float | None = None) -> None:
  """Draws training and validation loss in bits per byte over steps, and what gzip reaches, into a PNG.

  It is made anew from `metrics` each time, so it replaces an older picture of the same run.

  Args:
    metrics: the run's `metrics.jsonl`.
    figure: the file to write.
    title: of the figure.
    gzip_bits: bits per byte that `gzip -9` needs for the validation text, where there is text.
  """
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  records = read_metrics(metrics)
  canvas = FigureCanvasAgg(Figure(figsize=(7, 4.5), layout="constrained"))
  axes = canvas.figure.subplots()
  steps, bits = _curve(records, "train")
  axes.plot(steps, bits, color="tab:blue", alpha=0.25, linewidth=1)
  axes.plot(steps, running_mean(bits), color="tab:blue", label="training (smoothed)")
  axes.plot(*_curve(records, "validation"), color="tab:orange", marker="o", markersize=4, label="validation")
  if gzip_bits is not None:
    axes.axhline(gzip_bits, color="black", linestyle="--", linewidth=1, label="gzip -9 on the validation text")
  axes.set(title=title, xlabel="training step", ylabel="loss (bits per byte)")
  axes.grid(alpha=0.3)
  axes.legend()
  part = figure.with_name(figure.name + ".part")
  canvas.figure.savefig(part, format="png", dpi=150)
  part.replace(figure)


def _curve(records: list[Record], kind: str) -> tuple[np.ndarray, np.ndarray]:
  """Steps and bits per byte of one kind of records, without those that JSON could not hold as numbers."""
  chosen = [record for record in records if record["kind"] == kind and isinstance(record["bits_per_byte"], float)]
  return np.array([r["step"] for r in chosen]), np.array([r["bits_per_byte"] for r in chosen])


def running_mean(values: np.ndarray, share: float = 0.02) -> np.ndarray:
  """Running mean over about a fiftieth of the curve, narrower at its ends instead of padded."""
  half = int(len(values) * share / 2) + 1
  total = np.concatenate([[0.0], np.cumsum(values)])
  low = np.maximum(np.arange(len(values)) - half, 0)
  high = np.minimum(np.arange(len(values)) + half + 1, len(values))
  return (total[high] - total[low]) / (high - low)
